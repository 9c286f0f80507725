"""Settings of training in environments: the run, and one class an algorithm."""

from dataclasses import dataclass, field
from typing import Any, Literal

import yaml

from jaxrl_lm import checks
from jaxrl_lm.algorithms.dqn import DQNConfig
from jaxrl_lm.algorithms.environment_ppo import EnvironmentPPOConfig
from jaxrl_lm.algorithms.pqn import PQNConfig
from jaxrl_lm.algorithms.tabular import TabularConfig
from jaxrl_lm.envs.binning import BinningConfig
from jaxrl_lm.errors import InputError


def read_env_options(env_options: tuple[str, ...]) -> dict[str, Any]:
    """Options of an environment by name, values read as YAML.

    Raises:
        InputError: one is not KEY=VALUE.
    """
    options: dict[str, Any] = {}
    for option in env_options:
        name, equals, value = option.partition("=")
        if not equals or not name:
            raise InputError(f"env_options={option!r} must be KEY=VALUE, such as size=7")
        options[name.replace("-", "_")] = yaml.safe_load(value)
    return options


@dataclass(frozen=True, kw_only=True)
class EnvironmentRunConfig:
    """A run in an environment.

    Attributes:
        out: folder of the run; must not exist yet, unless resuming.
        env: id: Maze-v0, ChainMaze-v0, or any of gymnax's.
        env_options: of the environment, KEY=VALUE each, such as size=7 observation=grid.
        binning: how continuous observations and actions are made discrete; as a default they are not.
        total_steps: environment steps of each seed; rounded up to whole chunks.
        num_seeds: independent runs, trained together by vmap.
        seed: of the first; the others follow from it.
        sweep: NAME=V1,V2,... of a traced hyperparameter, such as learning_rate=1e-3,3e-4: every seed is trained with
            every value, all in one program; metrics carry the value in their names.
        chunk_updates: updates in one jitted scan, between which metrics are written and levels refreshed.
        refresh_levels: meet new mazes: replace the levels that episodes are drawn from as often as their length allows.
        eval_every: chunks between evaluations on held-out levels; 0 for one at the end alone.
        eval_episodes: episodes of an evaluation; for mazes the number of held-out levels.
        save_every: chunks between checkpoints.
        keep_checkpoints: checkpoints that stay.
        num_devices: devices that the environments are spread over; 0 for all.
        wandb_project: also log to this Weights & Biases project.
        resume: go on with the run in `out`.
    """

    out: str
    env: str = "Maze-v0"
    env_options: tuple[str, ...] = ()
    binning: BinningConfig = field(default_factory=BinningConfig)
    total_steps: int = 1_000_000
    num_seeds: int = 1
    seed: int = 0
    sweep: str | None = None
    chunk_updates: int = 16
    refresh_levels: bool = True
    eval_every: int = 0
    eval_episodes: int = 256
    save_every: int = 50
    keep_checkpoints: int = 2
    num_devices: int = 1
    wandb_project: str | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        for name in ("total_steps", "num_seeds", "chunk_updates", "eval_episodes", "save_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("eval_every", "num_devices"):
            if getattr(self, name) < 0:
                raise InputError(f"{name}={getattr(self, name)} must be 0 or more")
        checks.seed(self.seed)
        self.parsed_env_options()
        self.parsed_sweep()

    def parsed_env_options(self) -> dict[str, Any]:
        """`env_options` by name."""
        return read_env_options(self.env_options)

    def parsed_sweep(self) -> tuple[str, tuple[float, ...]] | None:
        """Name and values of the hyperparameter to sweep."""
        if self.sweep is None:
            return None
        name, _, values = self.sweep.partition("=")
        try:
            return name.replace("-", "_"), tuple(float(value) for value in values.split(","))
        except ValueError:
            raise InputError(f"sweep={self.sweep!r} must be NAME=V1,V2,..., such as learning_rate=1e-3,3e-4") from None

    def sweep_columns(self) -> list[tuple[str, slice]]:
        """Where each swept value's seeds stand among all learners, by a label; one without label if none is swept."""
        sweep = self.parsed_sweep()
        if sweep is None:
            return [("", slice(0, self.num_seeds))]
        name, values = sweep
        return [
            (f" {name}={value:g}", slice(number * self.num_seeds, (number + 1) * self.num_seeds))
            for number, value in enumerate(values)
        ]


@dataclass(frozen=True, kw_only=True)
class TrainPPOConfig(EnvironmentRunConfig, EnvironmentPPOConfig):
    """Train PPO in an environment."""

    algorithm: Literal["ppo"] = "ppo"

    def __post_init__(self) -> None:
        EnvironmentRunConfig.__post_init__(self)
        EnvironmentPPOConfig.__post_init__(self)


@dataclass(frozen=True, kw_only=True)
class TrainDQNConfig(EnvironmentRunConfig, DQNConfig):
    """Train DQN, with its improvements as switches, in an environment with discrete actions."""

    algorithm: Literal["dqn"] = "dqn"

    def __post_init__(self) -> None:
        EnvironmentRunConfig.__post_init__(self)
        DQNConfig.__post_init__(self)
        if self.learning_starts >= self.total_steps:
            raise InputError(
                f"learning_starts={self.learning_starts}: nothing would be learned in total_steps={self.total_steps}; "
                "choose fewer"
            )


@dataclass(frozen=True, kw_only=True)
class TrainPQNConfig(EnvironmentRunConfig, PQNConfig):
    """Train PQN, Q-learning without a replay memory, in an environment with discrete actions."""

    algorithm: Literal["pqn"] = "pqn"

    def __post_init__(self) -> None:
        EnvironmentRunConfig.__post_init__(self)
        PQNConfig.__post_init__(self)


@dataclass(frozen=True, kw_only=True)
class TrainTabularConfig(EnvironmentRunConfig, TabularConfig):
    """Train a table of values in an environment with discrete observations and actions."""

    env: str = "ChainMaze-v0"

    def __post_init__(self) -> None:
        EnvironmentRunConfig.__post_init__(self)
        TabularConfig.__post_init__(self)


@dataclass(frozen=True, kw_only=True)
class TrainQLearningConfig(TrainTabularConfig):
    """Q-learning: the target is the best action's value."""

    kind: Literal["q-learning"] = "q-learning"


@dataclass(frozen=True, kw_only=True)
class TrainDoubleQConfig(TrainTabularConfig):
    """Double Q-learning: one table chooses the best action, the other values it."""

    kind: Literal["double-q"] = "double-q"


@dataclass(frozen=True, kw_only=True)
class TrainSarsaConfig(TrainTabularConfig):
    """SARSA: the target is the value of the action taken next."""

    kind: Literal["sarsa"] = "sarsa"


@dataclass(frozen=True, kw_only=True)
class TrainExpectedSarsaConfig(TrainTabularConfig):
    """Expected SARSA: the target is the mean value under the policy that acts."""

    kind: Literal["expected-sarsa"] = "expected-sarsa"


@dataclass(frozen=True, kw_only=True)
class TrainQLambdaConfig(TrainTabularConfig):
    """Q(lambda): Q-learning with eligibility traces."""

    kind: Literal["q-lambda"] = "q-lambda"
