"""PPO in environments: probes with known values, continuous actions, memory, action masks, bad settings."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from gymnax.environments import environment, spaces
from scipy import stats

from jaxrl_lm import envs
from jaxrl_lm.algorithms.environment_ppo import EnvironmentPPOConfig, make_environment_ppo
from jaxrl_lm.algorithms.ppo import PPOConfig
from jaxrl_lm.envs.base import BatchEnvironment
from jaxrl_lm.errors import InputError
from jaxrl_lm.models.trunks import TrunkConfig
from jaxrl_lm.rollouts.agent_policy import PolicyConfig, make_policy
from jaxrl_lm.types import PyTree
from tests.algorithms import probes

TRUNK = TrunkConfig(hidden_sizes=(16,))
PPO = PPOConfig(
    learning_rate=1e-2,
    num_epochs=4,
    num_minibatches=2,
    minibatch_unit="steps",
    value_clip_range=100.0,
    value_coefficient=0.5,
    max_grad_norm=0.5,
)
CONFIG = EnvironmentPPOConfig(num_envs=16, num_steps=8, discount=0.9, policy=PolicyConfig(trunk=TRUNK), ppo=PPO)


def learned(config: EnvironmentPPOConfig, all_probes: list[probes.Probe], env: Any, observations: list[Any]) -> None:
    """Train on every probe and check the values and actions of each."""
    params = all_probes[0].env_params
    learner = make_environment_ppo(config, env, params)
    states = probes.train_on_probes(learner, all_probes, 150, jax.random.key(0))
    policy = make_policy(config.policy, env, params)
    for index, probe in enumerate(all_probes):
        state = jax.tree.map(lambda leaf, index=index: leaf[index], states)
        is_first = jnp.ones(4, bool)
        memory = policy.init_memory(4)
        values = policy.value(state.ppo.params, observations[index], is_first, memory)
        actions, _ = policy.best(state.ppo.params, observations[index], is_first, memory)
        probes.check_probe(probe, values, actions, config.discount, tolerance=0.1)


def test_probes_of_known_value() -> None:
    env = probes.ProbeEnvironment()
    learned(CONFIG, probes.PROBES, env, [probes.OBSERVATIONS] * len(probes.PROBES))


def test_illegal_actions_are_neither_taken_nor_preferred() -> None:
    env = probes.ProbeEnvironment(has_action_mask=True)
    learned(CONFIG, probes.MASKED_PROBES, env, [probes.masked_observations(probe) for probe in probes.MASKED_PROBES])


@struct.dataclass
class RecallState(environment.EnvState):
    """The clue of the first step."""

    clue: PyTree = 0


class Recall(BatchEnvironment):
    """Shows a bit at the first step, nothing at the second, and pays 1 at the third for naming it."""

    @property
    def default_params(self) -> environment.EnvParams:
        return environment.EnvParams(max_steps_in_episode=100)

    def initial_states(self, key: jax.Array, shape: tuple[int, ...], params: Any) -> RecallState:
        clue = jax.random.randint(key, shape, 0, 2)
        return RecallState(time=jnp.zeros(shape, jnp.int32), clue=clue)  # pyright: ignore[reportArgumentType]

    def transition(self, state: RecallState, action: jax.Array, params: Any) -> tuple[RecallState, jax.Array]:
        reward = ((state.time == 2) & (action == state.clue)).astype(jnp.float32)
        return replace(state, time=state.time + 1), reward

    def is_terminated(self, state: RecallState, params: Any) -> jax.Array:
        return jnp.asarray(state.time >= 3)

    def observation(self, state: RecallState, params: Any) -> jax.Array:
        sign = 2.0 * state.clue - 1.0
        return jnp.stack([jnp.where(state.time == 0, sign, 0.0), jnp.asarray(state.time, jnp.float32)])

    def action_space(self, params: Any = None) -> spaces.Discrete:
        return spaces.Discrete(2)

    def observation_space(self, params: Any = None) -> spaces.Box:
        return spaces.Box(-1.0, 3.0, (2,), jnp.float32)


def final_return(config: EnvironmentPPOConfig, env: Any, params: Any, num_updates: int) -> float:
    """Mean return of the episodes that end in the last tenth of training."""
    learner = make_environment_ppo(config, env, params)

    @jax.jit
    def train(key: jax.Array) -> jax.Array:
        state = learner.init(key, params)
        _, metrics = jax.lax.scan(lambda s, _: learner.update(s, params), state, None, length=num_updates)
        return metrics["episode/return"]

    return float(jnp.nanmean(train(jax.random.key(0))[-num_updates // 10 :]))


@pytest.mark.parametrize("memory", ["gru", "lstm"])
def test_a_memory_recalls_what_a_policy_without_cannot(memory: Any) -> None:
    env = Recall()
    sequences = replace(CONFIG.ppo, minibatch_unit="sequences")
    with_memory = replace(
        CONFIG, policy=PolicyConfig(trunk=TRUNK, memory_size=8, memory=memory), ppo=sequences, num_envs=32
    )
    assert final_return(with_memory, env, env.default_params, 120) > 0.95
    if memory == "gru":
        assert final_return(replace(CONFIG, num_envs=32), env, env.default_params, 120) < 0.65


@struct.dataclass
class TargetState(environment.EnvState):
    """Where the action should be."""

    target: PyTree = 0.0


class Target(BatchEnvironment):
    """One step; pays minus the distance of the action from the observation, in [-2, 2]."""

    @property
    def default_params(self) -> environment.EnvParams:
        return environment.EnvParams(max_steps_in_episode=10)

    def initial_states(self, key: jax.Array, shape: tuple[int, ...], params: Any) -> TargetState:
        target = jax.random.uniform(key, shape, minval=-1.5, maxval=1.5)
        return TargetState(time=jnp.zeros(shape, jnp.int32), target=target)  # pyright: ignore[reportArgumentType]

    def transition(self, state: TargetState, action: jax.Array, params: Any) -> tuple[TargetState, jax.Array]:
        return replace(state, time=state.time + 1), -jnp.abs(action[0] - state.target)

    def is_terminated(self, state: TargetState, params: Any) -> jax.Array:
        return jnp.asarray(state.time >= 1)

    def observation(self, state: TargetState, params: Any) -> jax.Array:
        return state.target[None]

    def action_space(self, params: Any = None) -> spaces.Box:
        return spaces.Box(-2.0, 2.0, (1,), jnp.float32)

    def observation_space(self, params: Any = None) -> spaces.Box:
        return spaces.Box(-2.0, 2.0, (1,), jnp.float32)


@pytest.mark.parametrize(("bounds", "std"), [("clip", "parameter"), ("squash", "parameter"), ("clip", "state")])
def test_continuous_actions_find_their_target(bounds: Any, std: Any) -> None:
    env = Target()
    policy = PolicyConfig(trunk=TRUNK, bounds=bounds, std=std, initial_log_std=-0.5)
    config = replace(CONFIG, policy=policy, num_envs=64, ppo=replace(PPO, entropy_coefficient=0.0))
    assert final_return(config, env, env.default_params, 150) > -0.2  # an action that ignores the target earns -0.75


@pytest.mark.parametrize("bounds", ["clip", "squash"])
def test_what_the_environment_is_given_lies_within_its_bounds(bounds: Any) -> None:
    env = Target()
    policy = make_policy(PolicyConfig(trunk=TRUNK, bounds=bounds, initial_log_std=3.0), env, env.default_params)
    params = policy.init(jax.random.key(0))
    decision = policy.act(params, jnp.zeros((500, 1)), jnp.ones(500, bool), None, jax.random.key(1))
    given = np.asarray(policy.to_env(decision.actions))
    assert np.all(np.abs(given) <= 2.0)
    assert np.abs(given).max() > 1.9
    assert np.abs(np.asarray(decision.actions)).max() > 2.0, "what is scored is the draw itself"


@pytest.mark.parametrize("bound", [np.inf, np.finfo(np.float32).max, np.nan])
def test_actions_cannot_be_squashed_into_a_space_without_bounds(bound: float) -> None:
    class Unbounded(Target):
        """Takes any number."""

        def action_space(self, params: Any = None) -> spaces.Box:
            return spaces.Box(-1.0, bound, (1,), jnp.float32)

    env = Unbounded()
    with pytest.raises(InputError, match=r"policy.bounds='squash': .* choose policy.bounds=clip"):
        make_policy(PolicyConfig(bounds="squash"), env, env.default_params)
    policy = make_policy(PolicyConfig(), env, env.default_params)
    if not np.isnan(bound):
        assert float(policy.to_env(jnp.array([7.0]))[0]) == 7.0


def test_a_std_of_the_state_is_an_output_of_the_network_within_its_range() -> None:
    env = Target()
    config = PolicyConfig(trunk=TRUNK, std="state", initial_log_std=0.5)
    policy = make_policy(config, env, env.default_params)
    params = policy.init(jax.random.key(0))
    assert "log_std" not in params
    head = params["policy_head"]
    assert head["bias"].shape == (2,)
    observations = jnp.linspace(-1.5, 1.5, 6)[:, None]
    for bias, log_std in ((0.0, None), (50.0, 2.0), (-50.0, -20.0)):
        params["policy_head"] = head | {"bias": jnp.array([0.0, bias]), "kernel": 30.0 * head["kernel"]}
        decision = policy.act(params, observations, jnp.ones(6, bool), None, jax.random.key(1))
        evaluation = policy.evaluate(params, observations[:, None], decision.actions[:, None])
        np.testing.assert_allclose(evaluation.log_probs[:, 0], decision.log_probs, rtol=1e-5, atol=1e-6)
        log_stds = np.asarray(evaluation.entropies[:, 0]) - 0.5 * (1 + np.log(2 * np.pi))
        means, _ = policy.best(params, observations, jnp.ones(6, bool), None)
        density = stats.norm(means[:, 0], np.exp(log_stds)).logpdf(decision.actions[:, 0])
        np.testing.assert_allclose(decision.log_probs, density, rtol=1e-4, atol=1e-4)
        if log_std is None:
            assert np.ptp(log_stds) > 0.01
        else:
            np.testing.assert_allclose(log_stds, log_std, rtol=1e-5)


def test_gamma_and_lambda_are_swept_by_a_vmap_over_states() -> None:
    """Each lane equals a learner that was made with its gamma and lambda."""
    env, params = Recall(), Recall().default_params
    tiny = replace(CONFIG, num_envs=4, num_steps=4)
    learner = make_environment_ppo(tiny, env, params)
    start = learner.init(jax.random.key(0), params)
    gammas, lambdas = jnp.array([0.9, 0.5]), jnp.array([0.95, 0.2])

    def begin(discount: jax.Array, trace_decay: jax.Array) -> Any:
        return replace(start, hyperparams=replace(start.hyperparams, discount=discount, trace_decay=trace_decay))

    swept, metrics = jax.jit(jax.vmap(lambda state: learner.update(state, params)))(jax.vmap(begin)(gammas, lambdas))
    for lane, (discount, trace_decay) in enumerate(((0.9, 0.95), (0.5, 0.2))):
        alone = make_environment_ppo(replace(tiny, discount=discount, trace_decay=trace_decay), env, params)
        expected, found = jax.jit(alone.update)(alone.init(jax.random.key(0), params), params)
        np.testing.assert_allclose(metrics["value/returns"][lane], found["value/returns"], rtol=1e-5)
        jax.tree.map(
            lambda x, y, lane=lane: np.testing.assert_allclose(x[lane], y, rtol=1e-4, atol=1e-5),
            swept.ppo.params,
            expected.ppo.params,
        )
    assert abs(float(metrics["value/returns"][0] - metrics["value/returns"][1])) > 1e-3


def test_normalized_observations_and_rewards_learn_what_bad_scales_hide() -> None:
    class Scaled(probes.ProbeEnvironment):
        """Observations and rewards a thousand times too large."""

        def observation(self, state: Any, params: Any) -> Any:
            return 1e3 * super().observation(state, params) + 5e3

        def transition(self, state: Any, action: Any, params: Any) -> Any:
            state, reward = super().transition(state, action, params)
            return state, 1e3 * reward

        def observation_space(self, params: Any = None) -> spaces.Box:
            return spaces.Box(-1e4, 1e4, (2,), jnp.float32)

    by_match = probes.PROBES[4]
    config = replace(CONFIG, has_normalized_observations=True, has_normalized_rewards=True)
    found = final_return(config, Scaled(), by_match.env_params, 100)
    assert found > 950.0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_envs": 0}, "num_envs=0 must be at least 1"),
        ({"discount": -0.1}, "discount=-0.1 must be from 0 to 1"),
        ({"trace_decay": 2.0}, "trace_decay=2.0 must be from 0 to 1"),
        ({"num_envs": 3, "num_steps": 5}, "num_minibatches=2 does not divide the 15 steps"),
        ({"policy": PolicyConfig(memory_size=4)}, "memory_size=4 learns from whole sequences; use 'sequences'"),
    ],
)
def test_bad_settings_name_field_value_and_remedy(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        replace(CONFIG, **changes)
    assert words in str(caught.value)


def test_categories_cannot_be_normalized() -> None:
    env, params = envs.make("ChainMaze-v0")
    with pytest.raises(InputError, match="has_normalized_observations"):
        make_environment_ppo(replace(CONFIG, has_normalized_observations=True), env, params)
