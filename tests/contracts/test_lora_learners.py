"""Every learner of language models on adapters: only these and the heads move, and nothing is kept for the base."""

from functools import cache
from typing import Any

import jax
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from jaxrl_lm.algorithms.sft import sum_token_losses
from jaxrl_lm.models.lora_config import LoraConfig
from jaxrl_lm.models.partition import ADAPTER, join, split, without_adapters
from jaxrl_lm.types import PyTree
from tests.algorithms.fixtures import QUICK
from tests.contracts.learners import ONLINE, SUPERVISED, Case, language_model, online_case, supervised_case

LORA = LoraConfig(rank=2, alpha=4.0, targets=("c_attn", "mlp.c_proj"))
every_learner = pytest.mark.parametrize("name", [*ONLINE, *SUPERVISED])


@cache
def two_updates(name: str) -> tuple[Case, PyTree, list[dict[str, Any]]]:
    """A learner, its state after two updates, and their metrics."""
    case = (online_case if name in ONLINE else supervised_case)(name, LORA)
    update, state, metrics = jax.jit(case.update, donate_argnums=0, compiler_options=QUICK), case.start(), []
    for number in (1, 2):
        state, found = update(state, *case.args(number))
        metrics.append(jax.device_get(found))
    return case, state, metrics


def leaves(tree: PyTree) -> dict[str, np.ndarray]:
    return {"/".join(path): np.asarray(leaf) for path, leaf in flatten_dict(tree).items()}  # pyright: ignore


@every_learner
def test_the_base_stays_as_it_is_bit_by_bit_and_adapters_and_heads_move(name):
    case, state, _ = two_updates(name)
    before, after = leaves(case.params(case.start())), leaves(case.params(state))
    moved = {path for path in before if not np.array_equal(before[path], after[path])}
    assert before.keys() == after.keys()
    expected = {path for path in before if path.split("/")[-1] in ADAPTER or path.split("/")[0] != "backbone"}
    assert moved == expected
    assert sum(path.endswith("lora_b") for path in expected) == 2


@every_learner
def test_the_optimizer_keeps_moments_of_the_trained_leaves_only(name):
    case, state, _ = two_updates(name)
    num_trained = sum(leaf.size for leaf in jax.tree.leaves(split(case.params(state))[0]))
    optimizer = state.ppo.optimizer if hasattr(state, "ppo") else state.optimizer
    counters = [leaf for leaf in jax.tree.leaves(optimizer) if not leaf.shape]
    assert sum(leaf.size for leaf in jax.tree.leaves(optimizer)) == 2 * num_trained + len(counters)


@pytest.mark.parametrize("name", ONLINE)
def test_the_reference_is_the_base_from_which_the_policy_moves_away(name):
    _, _, metrics = two_updates(name)
    assert metrics[0]["kl/answer"] == 0
    assert metrics[1]["kl/answer"] != 0


def test_the_gradient_norm_counts_trained_leaves_only():
    case, _, metrics = two_updates("sft")
    (model, _), (part, frozen) = language_model(None, LORA), split(case.start().params)
    batch = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), case.args(1)[0])

    def loss(part: PyTree) -> jax.Array:
        sums = sum_token_losses(model, join(part, frozen), batch)
        return sums.loss / sums.weight

    norm = optax.tree.norm(jax.jit(jax.grad(loss))(part))
    np.testing.assert_allclose(metrics[0]["loss/grad_norm"], norm, rtol=1e-5)


@every_learner
def test_a_state_is_split_into_what_a_checkpoint_holds_and_the_base(name):
    case, state, _ = two_updates(name)
    kept, frozen = split(state)
    assert jax.tree.all(jax.tree.map(lambda one, other: one is other, join(kept, frozen), state))
    base = {path for path in leaves(without_adapters(case.params(state))) if path.startswith("backbone")}
    assert len(jax.tree.leaves(frozen)) == len(base)
    assert len(jax.tree.leaves(kept)) == len(jax.tree.leaves(state)) - len(base)
