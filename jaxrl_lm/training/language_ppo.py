"""PPO on a language model: generate, score on the host, learn in one jitted program."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import struct

from jaxrl_lm import models, rewards, rollouts, storage
from jaxrl_lm.algorithms import make_ppo
from jaxrl_lm.core import kl, masked
from jaxrl_lm.errors import InputError
from jaxrl_lm.models import CausalLM
from jaxrl_lm.rollouts import Generation
from jaxrl_lm.training.answer_task import (
    AnswerTask,
    finish_answer_training,
    load_answer_task,
    make_answer_update,
    run_answer_training,
    with_heads,
)
from jaxrl_lm.training.language_config import LanguagePPOConfig
from jaxrl_lm.types import Algorithm, Evaluate, Metrics, PyTree


@struct.dataclass(kw_only=True)
class LanguageState:
    """Everything that training changes; what a checkpoint holds.

    Attributes:
        ppo: parameters, optimizer, counters, hyperparameters.
        kl_coefficient: float32 scalar.
        key: base of all randomness; update number k draws from `fold_in(key, k)`.
    """

    ppo: PyTree
    kl_coefficient: PyTree
    key: PyTree


@dataclass(frozen=True, kw_only=True)
class Task(AnswerTask):
    """What stays the same during training.

    Attributes:
        value_model: the module of a separate value network, or None.
    """

    value_model: CausalLM | None

    def evaluate(self) -> Evaluate:
        """The policy's `evaluate`."""
        return rollouts.make_evaluate(self.model, temperature=self.sampling.temperature, value_model=self.value_model)

    def algorithm(self) -> Algorithm:
        """PPO on this policy."""
        ppo = self.config.ppo
        if ppo.anneal_updates is None:
            ppo = replace(ppo, anneal_updates=self.config.num_updates)
        return make_ppo(ppo, self.evaluate())

    def policy_params(self, params: PyTree) -> PyTree:
        """The policy's part of the trained parameters."""
        return params if self.value_model is None else params["policy"]


def train_language_ppo(config: LanguagePPOConfig) -> storage.RunFolder:
    """Train, and leave a run folder with metrics, checkpoints, plots, samples, report and model.

    Raises:
        InputError: an input is not what it must be; raised before the run folder is made where it can be known then.
        Interrupted: Ctrl-C or SIGTERM; the state is saved.
        TrainingDivergedError: a loss is not finite.
    """
    folder, task, state = run_answer_training(
        config, lambda: load_task(config), lambda task, params: (init_state(task, params), make_update(task))
    )
    _finish(task, state, folder)
    return folder


def load_task(config: LanguagePPOConfig) -> tuple[Task, PyTree]:
    """Load models, tokenizer, prompts and reward function.

    Returns:
        what stays the same, and the parameters to train.

    Raises:
        InputError: one of them is not what it must be.
    """
    loaded, params = load_answer_task(config, None if config.value_model else "value")
    value_model = None
    if config.value_model:
        value_model, value_params = models.from_pretrained(
            config.value_model,
            "reward",
            dtype=jnp.dtype(config.dtype),
            is_remat=config.remat,
            key=jax.random.key(config.seed),
        )
        value_model = _check_value_model(config.value_model, value_model, loaded.model)
        params = {"policy": params, "value": value_params}
    return Task(**vars(loaded), value_model=value_model), params


def init_state(task: Task, params: PyTree) -> LanguageState:
    """The state before the first update; `params` are copied, for they may be the reference's as well."""
    key = jax.random.key(task.config.seed)
    return LanguageState(
        ppo=task.algorithm().init(jax.tree.map(jnp.copy, params), key),
        kl_coefficient=jnp.asarray(task.config.kl.coefficient, jnp.float32),
        key=key,
    )


def make_update(task: Task) -> Callable[[LanguageState, int], tuple[LanguageState, dict[str, float]]]:
    """One update on the host: answers, scores, learning, metrics."""
    return make_answer_update(
        task,
        jax.jit(partial(_learn, task), donate_argnums=0),
        params_of=lambda state: task.policy_params(state.ppo.params),
        num_prompts=task.config.batch_size,
    )


def _learn(
    task: Task,
    state: LanguageState,
    reference_params: PyTree,
    generation: Generation,
    scores: jax.Array,
    key: jax.Array,
) -> tuple[LanguageState, Metrics]:
    """Everything behind the scores, in one program: reference, trajectory, PPO, KL coefficient."""
    config = task.config
    params = state.ppo.params
    observations = rollouts.observe(generation)
    mask = generation.response_mask
    actions = generation.actions
    log_probs, values, metrics = _behaviour(task, params, generation)
    reference = rollouts.make_evaluate(task.model, temperature=task.sampling.temperature)(
        with_heads(reference_params, task.policy_params(params)), observations, actions
    )
    value_mask = rewards.value_mask_of(mask, is_paid_after_end=config.answers.score_at == "after_end")
    step_rewards, token_kl = rewards.token_rewards(
        scores, log_probs, reference.log_probs, mask, value_mask, state.kl_coefficient
    )
    trajectory = rollouts.token_trajectory(
        generation,
        step_rewards,
        value_mask,
        log_probs=log_probs,
        values=values,
        discount=config.discount,
        trace_decay=config.trace_decay,
    )
    ppo_state, ppo_metrics = task.algorithm().update(state.ppo, trajectory, key)
    answer_kl = jnp.mean(jnp.sum(token_kl, axis=-1))
    metrics |= ppo_metrics | {
        "reward/with_penalty": jnp.mean(jnp.sum(step_rewards, axis=-1)),
        "kl/answer": answer_kl,
        "kl/token": masked.masked_mean(token_kl, mask),
        "kl/coefficient": state.kl_coefficient,
        "answer/length": jnp.mean(jnp.sum(mask, axis=-1)),
    }
    new = replace(state, ppo=ppo_state, kl_coefficient=_next_coefficient(config, state.kl_coefficient, answer_kl))
    return new, metrics


def _behaviour(task: Task, params: PyTree, generation: Generation) -> tuple[jax.Array, jax.Array, Metrics]:
    """Log-probabilities and values `[B, T]` that the update starts from, and how far decoding's lie from them."""
    if not task.config.rescore:
        return generation.log_probs, generation.values, {}
    mask = generation.response_mask
    actions = generation.actions
    evaluation = task.evaluate()(params, rollouts.observe(generation), actions)
    rollout_error = jnp.abs(jnp.expm1(evaluation.log_probs - generation.log_probs))
    metrics = {"ratio/rollout_max_error": masked.masked_max(rollout_error, mask)}
    return evaluation.log_probs, evaluation.values, metrics


def _next_coefficient(config: LanguagePPOConfig, coefficient: jax.Array, answer_kl: jax.Array) -> jax.Array:
    if config.kl.target is None:
        return coefficient
    return kl.adaptive_kl_coefficient(
        coefficient,
        answer_kl,
        target=config.kl.target,
        horizon=config.kl.horizon,
        num_episodes=config.batch_size,
    )


def _check_value_model(name: str, value_model: models.RewardModel, model: CausalLM) -> CausalLM:
    if not isinstance(value_model, CausalLM):
        raise InputError(
            f"value_model={name!r} is an encoder, which gives no value a token; choose a decoder, or leave it out"
        )
    for field in ("vocab_size", "max_positions"):
        ours, policys = getattr(value_model.config, field), getattr(model.config, field)
        if ours < policys:
            raise InputError(
                f"value_model={name!r} has {field}={ours}, the policy {policys}; "
                "choose one that reads the policy's tokens"
            )
    return value_model


def _finish(task: Task, state: LanguageState, folder: storage.RunFolder) -> None:
    """The value network's folder, if there is one, and what every run ends with."""
    if task.value_model is not None:
        value_folder = folder.path / "value_model"
        models.save_pretrained(value_folder, task.value_model, state.ppo.params["value"])
        task.tokenizer.save_pretrained(value_folder)
    params = task.policy_params(state.ppo.params)
    finish_answer_training(task, params, folder, title=f"PPO on {Path(task.config.model).name}")
