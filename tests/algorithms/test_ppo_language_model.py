"""The same PPO on a language model: a tiny GPT-2 that answers left-padded prompts."""

from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transformers import GPT2Config

from jaxrl_lm.algorithms import PPOConfig, make_ppo
from jaxrl_lm.models import CausalLM, init_params
from jaxrl_lm.models.families import family_of
from jaxrl_lm.rewards.token_rewards import value_mask_of
from jaxrl_lm.rollouts import Generation, SamplingConfig, generate
from jaxrl_lm.rollouts.token_policy import make_evaluate, observe, token_trajectory
from jaxrl_lm.types import ActionEvaluation, Algorithm, PyTree, Trajectory
from tests.algorithms.fixtures import QUICK

BATCH, PROMPT, ANSWER, VOCAB = 16, 5, 6, 11
WANTED, STOP, PAD = 3, 8, 10
CONFIG = PPOConfig(learning_rate=3e-3, num_epochs=2, num_minibatches=2)


@cache
def tiny_model() -> tuple[CausalLM, PyTree]:
    hf_config = GPT2Config(vocab_size=VOCAB, n_positions=16, n_embd=16, n_layer=1, n_head=2).to_dict()
    model = CausalLM(config=family_of("gpt2").config_from_hf(hf_config), head="value")
    params = init_params(model, jax.random.key(0))
    # Larger weights than GPT-2 begins with, so that temperature and padding matter and values are not 0.
    rng = np.random.default_rng(1)
    return model, jax.tree.map(lambda p: p + np.float32(0.15) * rng.normal(size=p.shape).astype(np.float32), params)


@cache
def algorithm_at(temperature: float) -> tuple[Algorithm, Any]:
    """PPO of answers drawn at a temperature, and its update compiled."""
    algorithm = make_ppo(CONFIG, make_evaluate(tiny_model()[0], temperature=temperature))
    return algorithm, jax.jit(algorithm.update, compiler_options=QUICK)


def prompts() -> tuple[jax.Array, jax.Array]:
    """Prompts of 1 to 5 tokens, padded on the left."""
    rng = np.random.default_rng(0)
    mask = np.arange(PROMPT) >= rng.integers(0, PROMPT, size=(BATCH, 1))
    return jnp.asarray(np.where(mask, rng.integers(0, VOCAB - 1, mask.shape), PAD)), jnp.asarray(mask, jnp.int32)


@partial(jax.jit, static_argnames="temperature")
def score(params: PyTree, generation: Generation, *, temperature: float) -> ActionEvaluation:
    actions = generation.sequences[:, PROMPT:]
    return make_evaluate(tiny_model()[0], temperature=temperature)(params, observe(generation), actions)


@partial(jax.jit, static_argnames="temperature", compiler_options=QUICK)
def rollout(params: PyTree, key: jax.Array, *, temperature: float) -> tuple[Generation, Trajectory]:
    """Completions, and their trajectory with the share of the wanted token as the reward, paid after the end."""
    sampling = SamplingConfig(max_new_tokens=ANSWER, temperature=temperature, stop_tokens=(STOP,), pad_token=PAD)
    generation = generate(tiny_model()[0], params, *prompts(), key, sampling)
    mask = generation.response_mask
    share = jnp.sum((generation.sequences[:, PROMPT:] == WANTED) * mask, axis=1) / jnp.sum(mask, axis=1)
    value_mask = value_mask_of(mask, is_paid_after_end=True)
    is_last = value_mask > jnp.pad(value_mask[:, 1:], ((0, 0), (0, 1)))
    rewards = jnp.where(is_last, share[:, None], 0.0)
    evaluation = score(params, generation, temperature=temperature)
    return generation, token_trajectory(
        generation,
        rewards,
        value_mask,
        log_probs=evaluation.log_probs,
        values=evaluation.values,
        discount=1.0,
        trace_decay=0.95,
    )


@pytest.mark.parametrize("temperature", [0.7, 1.3])
def test_the_first_ratio_is_one_for_tokens_drawn_at_any_temperature(temperature):
    params, (algorithm, update) = tiny_model()[1], algorithm_at(temperature)
    generation, trajectory = rollout(params, jax.random.key(2), temperature=temperature)
    assert int(jnp.sum(generation.response_mask)) < BATCH * ANSWER  # some answers stop early
    start = algorithm.init(params, jax.random.key(3))
    # Scored without a cache, and as they were drawn, with one.
    for log_probs in (trajectory.log_probs, generation.log_probs):
        _, metrics = update(start, replace(trajectory, log_probs=log_probs), jax.random.key(4))
        assert metrics["ratio/first_max_error"] < 1e-4
        assert metrics["ratio/max_error"] > 1e-2
    at_one = score(params, generation, temperature=1.0).log_probs
    _, metrics = update(start, replace(trajectory, log_probs=at_one), jax.random.key(4))
    assert metrics["ratio/first_max_error"] > 0.05


def test_the_reward_rises():
    algorithm, update = algorithm_at(1.3)
    state, rewards = algorithm.init(tiny_model()[1], jax.random.key(3)), []
    for key in jax.random.split(jax.random.key(5), 30):
        rollout_key, update_key = jax.random.split(key)
        _, trajectory = rollout(state.params, rollout_key, temperature=1.3)
        rewards.append(float(jnp.sum(trajectory.rewards)) / BATCH)
        state, metrics = update(state, trajectory, update_key)
        assert metrics["ratio/first_max_error"] < 1e-4
    assert np.mean(rewards[:3]) < 0.3
    assert np.mean(rewards[-3:]) > 0.7
