"""Every learner keeps its types where JAX_ENABLE_X64 widens the default ones: states, metrics and generation.

Shapes and types alone are computed, so nothing is compiled: a scan over updates fails where its carry changes type.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_lm.algorithms import (
    AdamWConfig,
    DPOLossConfig,
    GroupPolicyConfig,
    GRPOConfig,
    PPOConfig,
    PreferenceBatch,
    ReferencedRows,
    RLOOConfig,
    make_dpo,
    make_grpo,
    make_ppo,
    make_reward_model,
    make_rloo,
    make_sft,
)
from jaxrl_lm.algorithms.schedules import ScheduleConfig
from jaxrl_lm.data import PackedRows
from jaxrl_lm.envs import make
from jaxrl_lm.models.trunks import TrunkConfig
from jaxrl_lm.rollouts import SamplingConfig, generate
from jaxrl_lm.rollouts.agent_policy import PolicyConfig
from jaxrl_lm.rollouts.text_policy import ContextConfig
from jaxrl_lm.rollouts.token_policy import make_evaluate, token_trajectory
from tests.contracts.learners import TRAINERS
from tests.models import tiny
from tests.text_model import text_model

KEY = jax.random.key(0)
COSINE = ScheduleConfig(kind="cosine", warmup_fraction=0.1)
MAZE = {"size": 7, "observation": "grid", "reward": "sparse", "num_levels": 8}
SMALL = TrunkConfig(hidden_sizes=(8,))
DQN = {
    "learning_starts": 128,
    "batch_size": 16,
    "buffer_size": 512,
    "steps_per_update": 4,
    "trunk": SMALL,
    "anneal_updates": 9,
}
PPO = PPOConfig(
    anneal_updates=9,
    minibatch_unit="steps",
    num_minibatches=2,
    target_kl=0.1,
    clip_range_schedule=COSINE,
    value_loss="huber",
)
CASES: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "dqn": ("dqn", "CartPole-v1", {}, DQN),
    "dqn, all switches": (
        "dqn",
        "Maze-v0",
        MAZE,
        DQN | {"is_double": True, "is_dueling": True, "is_prioritized": True, "num_steps": 3, "td_loss": "huber"},
    ),
    "pqn": ("pqn", "CartPole-v1", {}, {"num_steps": 4, "num_minibatches": 2, "trunk": SMALL, "anneal_updates": 9}),
    "ppo": ("ppo", "Maze-v0", MAZE, {"num_steps": 4, "ppo": PPO, "policy": PolicyConfig(trunk=SMALL)}),
    "ppo, normalised and continuous": (
        "ppo",
        "Pendulum-v1",
        {},
        {
            "num_steps": 4,
            "has_normalized_observations": True,
            "has_normalized_rewards": True,
            "policy": PolicyConfig(trunk=SMALL, std="state"),
            "ppo": replace(PPO, adam="tensorflow", whiten_rewards=True, whiten_advantages="minibatch"),
        },
    ),
    "ppo, lstm": (
        "ppo",
        "CartPole-v1",
        {},
        {
            "num_steps": 4,
            "policy": PolicyConfig(trunk=SMALL, memory_size=4, memory="lstm"),
            "ppo": replace(PPO, minibatch_unit="sequences"),
        },
    ),
    "text-ppo": ("text-ppo", "TextMaze-v0", {"max_steps": 3}, {"num_steps": 4}),
    "text-ppo, remembering": (
        "text-ppo",
        "TextMaze-v0",
        {"observed": "partially"},
        {"num_steps": 4, "unit": "turn", "kl_coefficient": 0.1, "context": ContextConfig(turns=3, kept=1)},
    ),
    **{
        name: (name, "ChainMaze-v0", {}, {"num_steps": 4, "anneal_updates": 9})
        for name in ("q-learning", "double-q", "sarsa", "expected-sarsa", "q-lambda")
    },
}


def wide(tree: Any) -> list[str]:
    """Paths of the leaves of 64 bits."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    is_key = jax.dtypes.prng_key
    narrow = [(path, x) for path, x in leaves if not jnp.issubdtype(x.dtype, is_key)]
    return [jax.tree_util.keystr(path) for path, x in narrow if np.dtype(x.dtype).itemsize == 8]


def types_of(tree: Any) -> Any:
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


def check(step: Any, state: Any, *inputs: Any, is_maze: bool = True) -> None:
    """Two steps in a scan leave the types of the state as they are; neither it nor the metrics are wide."""
    # The states of gymnax's environments are its own.
    assert [path for path in wide(state) if "env_states" not in path or is_maze] == []
    twice = partial(jax.lax.scan, lambda s, _: step(s, *inputs), length=2)
    after, metrics = jax.eval_shape(lambda s: twice(s, None), state)
    assert types_of(after) == types_of(state)
    assert not wide(metrics)
    losses = [x.dtype for name, x in metrics.items() if name.startswith(("loss/", "episode/"))]
    assert losses
    assert set(losses) == {jnp.dtype(jnp.float32)}


def test_every_trainer_has_a_case():
    assert {trainer for trainer, *_ in CASES.values()} == TRAINERS.keys()


@pytest.mark.parametrize("case", CASES)
def test_learners_in_environments(case):
    trainer, env_id, options, settings = CASES[case]
    with jax.enable_x64(True):
        if trainer == "text-ppo":
            settings = settings | {"model": text_model()}
        config = TRAINERS[trainer](out="", num_envs=16, **settings)
        env, env_params = make(env_id, **options, **config.env_objects())
        learner = config.make_learner(env, env_params)
        state = jax.eval_shape(learner.init, KEY, env_params)
        check(learner.update, state, env_params, is_maze="Maze" in env_id)
        memory = learner.init_memory(3)
        observations = jax.tree.map(lambda x: jnp.zeros((3, *x.shape[1:]), x.dtype), acting_of(state).observations)
        _, after = jax.eval_shape(learner.act, state, observations, jnp.ones(3, bool), memory, KEY)
        assert types_of(after) == types_of(memory)


def acting_of(state: Any) -> Any:
    return state.rollout.acting if hasattr(state, "rollout") else state.acting


@pytest.fixture(scope="module")
def language_model() -> Any:
    model, params = tiny.random_model("gpt2", head="value")
    return model, params


def generation_of(model: Any, params: Any) -> Any:
    prompts = jnp.ones((4, 3), jnp.int32)
    sampling = SamplingConfig(max_new_tokens=4, temperature=0.7, top_p=0.9, stop_tokens=(2,), pad_token=tiny.PAD_TOKEN)
    return generate(model, params, prompts, prompts, KEY, sampling)


def test_generation_and_ppo_of_a_language_model(language_model):
    model, params = language_model
    with jax.enable_x64(True):
        generation = jax.eval_shape(lambda p: generation_of(model, p), params)
        assert not wide(generation)
        evaluate = make_evaluate(model)

        def trajectory_of(generation: Any) -> Any:
            mask, zeros = generation.response_mask, jnp.zeros((4, 4), jnp.float32)
            return token_trajectory(
                generation, zeros, mask, log_probs=zeros, values=zeros, discount=1.0, trace_decay=0.95
            )

        trajectory = jax.eval_shape(trajectory_of, generation)
        assert not wide(trajectory)
        algorithm = make_ppo(PPOConfig(num_minibatches=2, learning_rate_schedule=COSINE, anneal_updates=5), evaluate)
        state = jax.eval_shape(algorithm.init, params, KEY)
        check(lambda s, t: algorithm.update(s, t, KEY), state, zeros_of(trajectory))


@pytest.mark.parametrize(("make_config", "make_learner"), [(RLOOConfig, make_rloo), (GRPOConfig, make_grpo)])
def test_rloo_and_grpo(language_model, make_config, make_learner):
    model, params = language_model
    with jax.enable_x64(True):
        generation = zeros_of(jax.eval_shape(lambda p: generation_of(model, p), params))
        scores = jnp.zeros(4, jnp.float32)
        policy = GroupPolicyConfig(num_minibatches=2, anneal_updates=5)
        learner = make_learner(make_config(group_size=2, policy=policy), model)
        state = jax.eval_shape(learner.init, params, KEY)
        check(lambda s, p, g: learner.evaluate_and_update(s, p, g, scores, KEY), state, params, generation)


def rows(*shape: int) -> PackedRows:
    return PackedRows(
        ids=jnp.ones(shape, jnp.int32), segment_ids=jnp.ones(shape, jnp.int32), is_target=jnp.ones(shape, bool)
    )


def test_sft_and_dpo(language_model):
    model, params = language_model
    with jax.enable_x64(True):
        config = AdamWConfig(warmup_fraction=0.2)
        sft = make_sft(config, model, num_updates=5)
        check(sft.update, jax.eval_shape(sft.init, params), rows(2, 3, 6))
        dpo = make_dpo(config, DPOLossConfig(), model, num_updates=5)
        pairs = ReferencedRows(rows(2, 3, 2, 6), jnp.zeros((2, 3, 2), jnp.float32))
        check(dpo.update, jax.eval_shape(dpo.init, params), pairs)


@pytest.mark.parametrize(("objective", "num_answers"), [("pairwise", 2), ("best_of_k", 4), ("binary", 1)])
def test_reward_models(objective, num_answers):
    with jax.enable_x64(True):
        params = {"w": jnp.ones(3, jnp.float32)}
        algorithm = make_reward_model(objective, AdamWConfig(), lambda p, x: x @ p["w"], num_updates=5)
        batch = PreferenceBatch(
            inputs=jnp.ones((2, 4, num_answers, 3), jnp.float32), targets=jnp.zeros((2, 4), jnp.int32)
        )
        check(algorithm.update, jax.eval_shape(algorithm.init, params), batch)


def zeros_of(tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), tree)
