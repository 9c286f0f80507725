"""PPO once more, in plain numpy loops: one epoch of one minibatch on a softmax table, gradients by hand."""

import math
from typing import Any

import numpy as np

from jaxrl_lm.algorithms import PPOConfig
from jaxrl_lm.types import Trajectory

B1, B2 = 0.9, 0.999


class NumpyPPO:
    """The softmax table that `tests.algorithms.fixtures.evaluate` scores, with its optimizer."""

    def __init__(self, config: PPOConfig, params: dict) -> None:
        assert config.num_epochs == config.num_minibatches == 1
        self.config = config
        self.params = {name: np.array(x, np.float64) for name, x in params.items()}
        self.m = {name: np.zeros_like(x) for name, x in self.params.items()}
        self.v = {name: np.zeros_like(x) for name, x in self.params.items()}
        self.t = 0

    def update(self, trajectory: Trajectory) -> dict[str, float]:
        """Change `params`; returns the metrics that are worth comparing."""
        tr = {name: np.array(getattr(trajectory, name)) for name in Trajectory.__dataclass_fields__}
        advantages, returns = prepare(self.config, tr)
        metrics = {"value/returns": float(np.mean(returns[tr["value_mask"] > 0]))}
        grads, losses = loss_and_gradient(self.config, self.params, tr, advantages, returns)
        norm = math.sqrt(sum(float(np.sum(g**2)) for g in grads.values()))
        longest = self.config.max_grad_norm
        if longest and norm > longest:
            grads = {name: g * longest / norm for name, g in grads.items()}
        self._adam_step(grads)
        return metrics | losses | {"loss/grad_norm": norm}

    def _adam_step(self, grads: dict[str, np.ndarray]) -> None:
        self.t += 1
        c1, c2 = 1 - B1**self.t, 1 - B2**self.t
        epsilon = self.config.adam_epsilon
        for name, g in grads.items():
            for index in np.ndindex(g.shape):
                self.m[name][index] = B1 * self.m[name][index] + (1 - B1) * g[index]
                self.v[name][index] = B2 * self.v[name][index] + (1 - B2) * g[index] ** 2
                m, v = self.m[name][index], self.v[name][index]
                if self.config.adam == "pytorch":
                    step = (m / c1) / (math.sqrt(v / c2) + epsilon)
                else:
                    step = math.sqrt(c2) / c1 * m / (math.sqrt(v) + epsilon)
                self.params[name][index] -= self.config.learning_rate * step


def whiten(x: np.ndarray, mask: np.ndarray, *, shift_mean: bool) -> np.ndarray:
    kept = [float(v) for v, keep in zip(x.flat, mask.flat, strict=True) if keep]
    mean = sum(kept) / len(kept)
    std = math.sqrt(sum((v - mean) ** 2 for v in kept) / len(kept) + 1e-8)
    return np.where(mask > 0, (x - mean) / std + (0.0 if shift_mean else mean), 0.0)


def prepare(config: PPOConfig, tr: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Advantages and returns as the losses see them."""
    rewards = tr["rewards"].astype(np.float64)
    if config.whiten_rewards:
        rewards = whiten(rewards, tr["value_mask"], shift_mean=False)
    advantages = np.zeros(rewards.shape)
    for b in range(rewards.shape[0]):
        accumulated = 0.0
        for t in reversed(range(rewards.shape[1])):
            if not tr["value_mask"][b, t]:
                continue
            discount = float(tr["discounts"][b, t])
            delta = rewards[b, t] + discount * tr["next_values"][b, t] - tr["values"][b, t]
            accumulated = delta + discount * tr["traces"][b, t] * accumulated
            advantages[b, t] = accumulated
    returns = advantages + tr["values"]
    if config.whiten_advantages != "none":  # one minibatch is the batch
        advantages = whiten(advantages, tr["mask"], shift_mean=True)
    return advantages, returns


def loss_and_gradient(
    config: PPOConfig,
    params: dict[str, np.ndarray],
    tr: dict[str, Any],
    advantages: Any,
    returns: Any,
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Gradient of PPO's loss for the table, step by step."""
    grads = {name: np.zeros_like(x) for name, x in params.items()}
    num_actions, num_values = float(np.sum(tr["mask"])), float(np.sum(tr["value_mask"]))
    policy_loss = value_loss = entropy_sum = 0.0
    num_clipped_values = 0
    for index in np.ndindex(advantages.shape):
        state, action = tr["observations"][index], tr["actions"][index]
        if tr["mask"][index]:
            log_pi = params["logits"][state] - np.log(np.sum(np.exp(params["logits"][state])))
            loss, slope = _surrogate(log_pi[action] - tr["log_probs"][index], advantages[index], config.clip_range)
            entropy = -np.sum(np.exp(log_pi) * log_pi)
            entropy_slope = -np.exp(log_pi) * (log_pi + entropy)
            log_prob_slope = np.eye(len(log_pi))[action] - np.exp(log_pi)
            grads["logits"][state] += slope * log_prob_slope / num_actions
            grads["logits"][state] -= config.entropy_coefficient * entropy_slope / num_actions
            policy_loss += loss / num_actions
            entropy_sum += entropy / num_actions
        if tr["value_mask"][index]:
            value = float(params["values"][state])
            loss, slope, is_clipped = _value_loss(config, value, tr["values"][index], returns[index])
            grads["values"][state] += config.value_coefficient * slope / num_values
            value_loss += loss / num_values
            num_clipped_values += is_clipped
    metrics = {"loss/policy": policy_loss, "loss/value": value_loss, "policy/entropy": entropy_sum}
    if config.value_loss == "clipped":
        metrics["value/clip_fraction"] = num_clipped_values / num_values
    return grads, metrics


def _surrogate(log_ratio: float, advantage: float, clip_range: float) -> tuple[float, float]:
    """Loss of one step and its slope in the log-prob."""
    ratio = math.exp(log_ratio)
    clipped = min(max(ratio, 1 - clip_range), 1 + clip_range)
    if -advantage * clipped > -advantage * ratio:
        return -advantage * clipped, 0.0
    return -advantage * ratio, -advantage * ratio


def _value_loss(config: PPOConfig, value: float, old: float, target: float) -> tuple[float, float, bool]:
    """Loss of one value, its slope, and whether the clipped error was the larger."""
    width = config.value_clip_range
    error = value - target
    if config.value_loss == "huber":
        if abs(error) <= width:
            return 0.5 * error**2, error, False
        return width * (abs(error) - 0.5 * width), math.copysign(width, error), False
    if config.value_loss == "squared":
        return 0.5 * error**2, error, False
    clipped = min(max(value, old - width), old + width)
    if (clipped - target) ** 2 > error**2:
        return 0.5 * (clipped - target) ** 2, 0.0, True
    return 0.5 * error**2, error, False
