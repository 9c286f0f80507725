"""RLOO and GRPO on a language model: several answers a prompt, scored on the host, compared, learned from."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import struct

from jaxrl_lm import rollouts, storage
from jaxrl_lm.algorithms import AnswerBatch, make_group_policy
from jaxrl_lm.core import kl, masked, policy_losses
from jaxrl_lm.rollouts import Generation
from jaxrl_lm.training.answer_task import (
    AnswerTask,
    finish_answer_training,
    load_answer_task,
    make_answer_update,
    run_answer_training,
)
from jaxrl_lm.training.group_config import GroupConfig, RLOOConfig
from jaxrl_lm.types import Algorithm, Evaluate, Metrics, PyTree


@struct.dataclass(kw_only=True)
class GroupState:
    """Everything that training changes; what a checkpoint holds.

    Attributes:
        policy: parameters, optimizer, counters, hyperparameters.
        key: base of all randomness; update number k draws from `fold_in(key, k)`.
    """

    policy: PyTree
    key: PyTree


@dataclass(frozen=True, kw_only=True)
class GroupTask(AnswerTask):
    """What stays the same during training."""

    @property
    def is_rloo(self) -> bool:
        """Whether this is RLOO, which has the KL in the reward, and not GRPO, which has it in the loss."""
        return isinstance(self.config, RLOOConfig)

    def evaluate(self) -> Evaluate:
        """The policy's `evaluate`."""
        return rollouts.make_evaluate(self.model, temperature=self.sampling.temperature)

    def algorithm(self) -> Algorithm:
        """The update on this policy."""
        policy = self.config.policy
        if policy.anneal_updates is None:
            policy = replace(policy, anneal_updates=self.config.num_updates)
        in_loss = 0.0 if self.is_rloo else self.config.kl_coefficient
        return make_group_policy(policy, self.evaluate(), kl_coefficient=in_loss)


def train_language_groups(config: GroupConfig) -> storage.RunFolder:
    """Train by RLOO or GRPO, and leave a run folder with metrics, checkpoints, plots, samples, report and model.

    Raises:
        InputError: an input is not what it must be; raised before the run folder is made where it can be known then.
        Interrupted: Ctrl-C or SIGTERM; the state is saved.
        TrainingDivergedError: a loss is not finite.
    """
    folder, task, state = run_answer_training(
        config, lambda: load_task(config), lambda task, params: (init_state(task, params), make_update(task))
    )
    name = "RLOO" if task.is_rloo else "GRPO"
    finish_answer_training(task, state.policy.params, folder, title=f"{name} on {Path(config.model).name}")
    return folder


def load_task(config: GroupConfig) -> tuple[GroupTask, PyTree]:
    """Load model, tokenizer, prompts and reward function.

    Returns:
        what stays the same, and the parameters to train.

    Raises:
        InputError: one of them is not what it must be.
    """
    loaded, params = load_answer_task(config, None)
    return GroupTask(**vars(loaded)), params


def init_state(task: GroupTask, params: PyTree) -> GroupState:
    """The state before the first update; `params` are copied, for they are the reference's as well."""
    key = jax.random.key(task.config.seed)
    return GroupState(policy=task.algorithm().init(jax.tree.map(jnp.copy, params), key), key=key)


def make_update(task: GroupTask) -> Callable[[GroupState, int], tuple[GroupState, dict[str, float]]]:
    """One update on the host: answers, scores, learning, metrics."""
    return make_answer_update(
        task,
        jax.jit(partial(_learn, task), donate_argnums=0),
        params_of=lambda state: state.policy.params,
        num_prompts=task.config.batch_size // task.config.group_size,
    )


def _learn(
    task: GroupTask,
    state: GroupState,
    reference_params: PyTree,
    generation: Generation,
    scores: jax.Array,
    key: jax.Array,
) -> tuple[GroupState, Metrics]:
    """Everything behind the scores, in one program: log-probabilities, advantages, epochs, metrics."""
    config, params, mask = task.config, state.policy.params, generation.response_mask
    actions = generation.actions
    observations, evaluate = rollouts.observe(generation), task.evaluate()
    log_probs = evaluate(params, observations, actions).log_probs
    reference = evaluate(reference_params, observations, actions).log_probs
    answer_kl = masked.masked_sum(kl.k1(log_probs, reference), mask, -1)
    earned = scores - config.kl_coefficient * answer_kl if task.is_rloo else scores
    kind = "leave_one_out" if task.is_rloo else "standardized"
    groups = earned.reshape(-1, config.group_size)
    batch = AnswerBatch(
        observations=observations,
        actions=actions,
        log_probs=log_probs,
        reference_log_probs=reference,
        advantages=policy_losses.group_advantages(groups, kind=kind).reshape(-1),
        mask=mask,
    )
    policy, metrics = task.algorithm().update(state.policy, batch, key)  # pyright: ignore[reportArgumentType]
    rollout_error = jnp.abs(jnp.expm1(log_probs - generation.log_probs))
    metrics |= {
        "ratio/rollout_max_error": masked.masked_max(rollout_error, mask),
        "reward/with_penalty": jnp.mean(scores - config.kl_coefficient * answer_kl),
        "reward/std_in_group": jnp.mean(jnp.std(groups, axis=-1)),
        "kl/answer": jnp.mean(answer_kl),
        "answer/length": jnp.mean(jnp.sum(mask, axis=-1)),
    }
    return replace(state, policy=policy), metrics
