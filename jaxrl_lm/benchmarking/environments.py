"""Steps per second of mazes under a random policy, and of training."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl_lm import distributed, envs
from jaxrl_lm.algorithms.environment_ppo import EnvironmentPPOConfig, make_environment_ppo
from jaxrl_lm.algorithms.ppo import PPOConfig
from jaxrl_lm.algorithms.pqn import PQNConfig, make_pqn
from jaxrl_lm.algorithms.tabular import TabularConfig, make_tabular
from jaxrl_lm.benchmarking.config import BenchConfig
from jaxrl_lm.benchmarking.measuring import Bench, Figure
from jaxrl_lm.benchmarking.timing import program_memory_gb
from jaxrl_lm.models.trunks import TrunkConfig

SIZE = 13


@dataclass(frozen=True, kw_only=True)
class Case:
    """An algorithm in an environment.

    Attributes:
        name: of the figure.
        config: settings of the algorithm.
        make_learner: `make_learner(config, env, env_params)`.
        env: id of the environment.
        env_options: its options.
        num_updates: updates per call.
    """

    name: str
    config: Any
    make_learner: Callable[[Any, Any, Any], Any]
    env: str = "CartPole-v1"
    env_options: Mapping[str, Any] = field(default_factory=dict)
    num_updates: int = 10


class TrainingCall:
    """Calls of `num_updates` updates, each continuing from the last.

    Attributes:
        steps: environment steps per call.
    """

    def __init__(self, case: Case) -> None:
        """Make the learner and its first state."""
        env, self._params = envs.make(case.env, **case.env_options)
        learner = case.make_learner(case.config, env, self._params)
        self._state = jax.jit(learner.init)(jax.random.key(0), self._params)
        self.steps = learner.steps_per_update * case.num_updates

        def chunk(state: Any, params: Any) -> Any:
            return jax.lax.scan(lambda s, _: learner.update(s, params), state, None, length=case.num_updates)

        self._jitted = jax.jit(chunk, donate_argnums=0)
        self._run = distributed.counted(self._jitted)

    def __call__(self) -> Any:
        """One chunk of updates."""
        self._state, metrics = self._run(self._state, self._params)
        return self._state, metrics

    def memory_gb(self) -> float:
        """Memory of the program."""
        return program_memory_gb(self._jitted.lower(self._state, self._params).compile())


@dataclass(kw_only=True)
class MazeSteps:
    """Steps in our mazes; each call first replaces half the levels, which is included in the time."""

    run: Any
    refresh: Any
    params: Any
    num_calls: int = 0

    def __call__(self) -> Any:
        """Replace levels, then make all steps."""
        self.num_calls += 1
        self.params = self.refresh(self.params, jax.random.key(self.num_calls))
        return self.run(self.params, jax.random.key(self.num_calls))

    def memory_gb(self) -> float:
        """Memory of the stepping program: levels, results and temporaries."""
        return program_memory_gb(self.run.lower(self.params, jax.random.key(0)).compile())


def maze_steps(*, size: int, observation: str, num_envs: int, num_steps: int, num_levels: int) -> MazeSteps:
    """Steps for one maze size, observation and batch size."""
    env, params = envs.make("Maze-v0", size=size, observation=observation, num_levels=num_levels)
    return MazeSteps(
        run=jax.jit(random_steps(env, num_envs, num_steps)),
        refresh=jax.jit(env.refresh, donate_argnums=0),
        params=jax.jit(env.refresh)(params, jax.random.key(0)),
    )


def random_steps(env: Any, num_envs: int, num_steps: int) -> Callable[[Any, jax.Array], Any]:
    """T random steps in B environments; returns the last states and observations and the sum of rewards."""

    def run(params: Any, key: jax.Array) -> Any:
        reset_key, scan_key = jax.random.split(key)
        observations, states = envs.reset_batch(env, reset_key, num_envs, params)
        space = env.action_space(params)

        def step(carry: Any, step_key: jax.Array) -> tuple[Any, jax.Array]:
            _, states = carry
            act_key, env_key = jax.random.split(step_key)
            actions = jax.random.randint(act_key, (num_envs,), 0, space.n)
            result = envs.step_batch(env, env_key, states, actions, params)
            return (result.observations, result.states), jnp.sum(result.rewards)

        carry, rewards = jax.lax.scan(step, (observations, states), jax.random.split(scan_key, num_steps))
        return carry, jnp.sum(rewards)

    return run


def training_cases(num_envs: int, num_levels: int) -> list[Case]:
    """PPO and PQN in mazes of so many levels, and Q-learning in a chain."""
    mazes: dict[str, Any] = {
        "env": "Maze-v0",
        "env_options": {"size": SIZE, "observation": "grid", "num_levels": num_levels},
        "num_updates": 1,
    }
    minibatches = PPOConfig(
        num_epochs=4, num_minibatches=4, minibatch_unit="steps", value_coefficient=0.5, max_grad_norm=0.5
    )
    trunk = TrunkConfig(hidden_sizes=(64, 64), activation="relu", layer_norm=True)
    return [
        Case(
            name="ppo",
            config=EnvironmentPPOConfig(num_envs=num_envs, num_steps=32, ppo=minibatches),
            make_learner=make_environment_ppo,
            **mazes,
        ),
        Case(
            name="pqn",
            config=PQNConfig(num_envs=num_envs, num_steps=32, num_epochs=2, num_minibatches=4, trunk=trunk),
            make_learner=make_pqn,
            **mazes,
        ),
        Case(
            name="q-learning",
            config=TabularConfig(num_envs=num_envs, num_steps=128),
            make_learner=make_tabular,
            env="ChainMaze-v0",
        ),
    ]


def measure_environments(config: BenchConfig, bench: Bench) -> dict[str, Figure]:
    """The figures of the suite env."""
    found, num_levels = {}, 8 if config.quick else 4096
    for observation in ("position", "grid"):
        call = maze_steps(
            size=SIZE,
            observation=observation,
            num_envs=config.num_envs,
            num_steps=config.num_steps,
            num_levels=num_levels,
        )
        steps = float(config.num_envs * config.num_steps)
        name = f"env/maze-{observation}"
        found[name] = bench.measure(name, call, amount=steps, unit="steps/s")
    for case in training_cases(max(1, config.num_envs // 4), num_levels):
        training = TrainingCall(case)
        name = f"env/{case.name}"
        found[name] = bench.measure(name, training, amount=float(training.steps), unit="steps/s")
    return found
