"""Learn a reward model from human preferences: pairs, the best of k completions, or thumbs up and down.

With scores s_k of the completions of one prompt, the loss is the mean over prompts of

    pairwise     -log sigmoid(s_chosen - s_rejected)
    best_of_k    -log softmax(s)[best]
    binary       -y log sigmoid(s) - (1 - y) log sigmoid(-s)

The caller's `score` function computes the scores.

Reference: Christiano et al., 2017, Deep Reinforcement Learning from Human Preferences; Ziegler et al., 2019,
Fine-Tuning Language Models from Human Preferences.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from jaxrl_lm.algorithms.supervised import AdamWConfig, LossSums, make_supervised
from jaxrl_lm.core import preference_losses
from jaxrl_lm.core.records import record
from jaxrl_lm.errors import InputError
from jaxrl_lm.types import PyTree, SupervisedLearner

Objective = Literal["pairwise", "best_of_k", "binary"]
Score = Callable[[PyTree, PyTree], jax.Array]
"""`score(params, inputs) -> scores`: leaves of the inputs `[N, ...]`, scores `[N]`."""

_NUM_COMPLETIONS = {"pairwise": "2", "best_of_k": "2 or more", "binary": "1"}


@record
class PreferenceBatch:
    """Completions with preferences.

    Attributes:
        inputs: pytree that `score` reads, leaves `[B, K, ...]`: K completions per prompt; 2 for pairs, 1 for thumbs.
        targets: index of the preferred completion; for thumbs 1 is up and 0 is down. int32 `[B]`.
    """

    inputs: PyTree
    targets: PyTree


def make_reward_model(
    objective: Objective, config: AdamWConfig, score: Score, *, num_updates: int
) -> SupervisedLearner:
    """A reward model's `init` and `update`; leaves of a `PreferenceBatch` are `[num_accumulated, B, ...]`.

    Args:
        objective: kind of preferences.
        config: the optimizer.
        score: the model's scoring function.
        num_updates: length of the learning rate schedule.

    Returns:
        The algorithm. `update` returns the loss in nats, the accuracy on the batch before the step (a tie of n best
        completions counts 1/n), and the mean and mean square of the scores.

    Raises:
        InputError: by `update`, if the batch does not fit the objective.
    """

    def loss(params: PyTree, batch: PreferenceBatch, _: PyTree) -> LossSums:
        return sum_preference_losses(objective, score, params, batch)

    return make_supervised(config, loss, num_updates=num_updates)


def sum_preference_losses(objective: Objective, score: Score, params: PyTree, batch: PreferenceBatch) -> LossSums:
    """Sum of the losses of a batch, with its number of prompts.

    Raises:
        InputError: the number of completions per prompt does not fit the objective.
    """
    size, num_completions = jax.tree.leaves(batch.inputs)[0].shape[:2]
    check_num_completions(objective, num_completions)
    rows = jax.tree.map(lambda x: x.reshape(size * num_completions, *x.shape[2:]), batch.inputs)
    scores = score(params, rows).reshape(size, num_completions)
    metrics = {
        "accuracy/batch": jnp.sum(_correctness(objective, scores, batch.targets)),
        "score/mean": jnp.sum(jnp.mean(scores, axis=-1)),
        "score/mean_square": jnp.sum(jnp.mean(jnp.square(scores), axis=-1)),
    }
    return LossSums(
        loss=jnp.sum(preference_loss(objective, scores, batch.targets)),
        weight=jnp.asarray(size, jnp.float32),
        metrics=jax.lax.stop_gradient(metrics),
    )


def preference_loss(objective: Objective, scores: jax.Array, targets: jax.Array) -> jax.Array:
    """Loss `[B]` of scores `[B, K]` under targets `[B]`, nats."""
    if objective == "binary":
        return preference_losses.binary_preference_loss(scores[:, 0], targets.astype(scores.dtype))
    if objective == "pairwise":
        chosen, rejected = (jnp.take_along_axis(scores, each[:, None], 1)[:, 0] for each in (targets, 1 - targets))
        return preference_losses.bradley_terry_loss(chosen, rejected)
    return preference_losses.best_of_k_loss(scores, targets)


def _correctness(objective: Objective, scores: jax.Array, targets: jax.Array) -> jax.Array:
    """1 if right, 0 if wrong, 1/n if the preferred completion is among n best (thumbs: 1/2 at 0), `[B]`.

    The chosen completion of a pair comes first, so an argmax would count every tie as right.
    """
    if objective == "binary":
        return (1 + jnp.sign(scores[:, 0]) * (2 * targets - 1)) / 2
    is_best = scores == jnp.max(scores, axis=-1, keepdims=True)
    return jnp.take_along_axis(is_best, targets[:, None], 1)[:, 0] / jnp.sum(is_best, axis=-1)


def check_num_completions(objective: Objective, num_completions: int) -> None:
    """Check that an objective supports this number of completions per prompt.

    Raises:
        InputError: it does not.
    """
    fits = {"pairwise": num_completions == 2, "best_of_k": num_completions >= 2, "binary": num_completions == 1}
    if not fits[objective]:
        raise InputError(
            f"objective={objective!r} learns from {_NUM_COMPLETIONS[objective]} completions per prompt, but the data "
            f"has {num_completions}; choose another objective"
        )
