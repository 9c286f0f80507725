"""Settings of a run in an environment."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Protocol, cast, runtime_checkable

from jaxrl_lm import checks
from jaxrl_lm.algorithms.schedules import follows_length
from jaxrl_lm.envs.binning_config import BinningConfig
from jaxrl_lm.errors import InputError
from jaxrl_lm.storage import RunFolder
from jaxrl_lm.training.environments.sweep import Sweep, at_point, read_sweep
from jaxrl_lm.training.settings import RunConfig
from jaxrl_lm.types import EnvironmentLearner, PyTree

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_GENERATED = {"Maze-v0": {"size", "generator", "num_levels"}}  # options that do not go with a layout
_WORDS = {"true": True, "false": False, "null": None, "none": None}


@runtime_checkable
class AgentSettings(Protocol):
    """What every algorithm in environments has among its settings."""

    @property
    def num_envs(self) -> int:
        """Environments stepped together."""
        ...

    @property
    def discount(self) -> float:
        """Gamma."""
        ...


@dataclass(frozen=True, kw_only=True)
class EnvironmentRunConfig(RunConfig):
    """A run in an environment; an algorithm's settings class inherits from this and from the algorithm's settings.

    Attributes:
        env: id of an environment of this package (such as Maze-v0) or of gymnax (such as CartPole-v1);
            `jaxrl_lm.envs.list_ids()` returns them all. Or file.py:NAME for your own, where NAME is a class or a
            function that returns an environment.
        env_options: options of the environment as KEY=VALUE, such as size=7 observation=grid. Maze-v0 is trained with
            size=7 observation=grid reward=sparse by default. Gymnax environments take the arguments of their class and
            the fields of their parameters, such as max_steps_in_episode=100.
        wrappers: wrappers as NAME or NAME=VALUE, innermost first: frame_stack=4, sticky_actions=0.25, clip_reward=1,
            flatten.
        binning: discretisation of continuous observations and actions; off by default.
        total_steps: environment steps per seed, rounded up to whole chunks.
        num_seeds: independent seeds, trained together with vmap. Each has its own training and evaluation levels.
        seed: seed of the first run; the others are derived from it.
        sweep: hyperparameter values as NAME=V1,V2,..., such as learning_rate=1e-3,3e-4 discount=0.9,0.99: every
            combination is trained with every seed in one program; metric names contain the values.
        chunk_updates: updates per jitted scan; metrics are written and levels refreshed between chunks.
        refresh_levels: train on new mazes: replace the levels as often as the length of episodes allows.
        eval_every: chunks between evaluations on held-out levels, of which the best checkpoint is kept; 0 evaluates
            only at the end.
        eval_episodes: episodes per evaluation; for mazes the number of held-out levels.
        num_devices: devices to shard the environments over; 0 for all.
        save_every: chunks of updates between checkpoints; the last is always saved.
        keep_checkpoints: number of newest checkpoints to keep; with --eval-every, the best one is kept as well.
        profile_updates: number of chunks of updates to profile, after the first one, into the run's folder `profile`,
            for TensorBoard or Perfetto; 0 profiles none.
    """

    default_env_options: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "Maze-v0": {"size": 7, "observation": "grid", "reward": "sparse"}
    }

    HYPERPARAMS: ClassVar[tuple[type, ...]] = ()
    """Classes of the algorithm's traced hyperparameters, which can be swept."""

    env: str = "Maze-v0"
    env_options: tuple[str, ...] = ()
    wrappers: tuple[str, ...] = ()
    binning: BinningConfig = field(default_factory=BinningConfig)
    total_steps: int = 1_000_000
    num_seeds: int = 1
    sweep: tuple[str, ...] = ()
    chunk_updates: int = 16
    refresh_levels: bool = True
    eval_every: int = 0
    eval_episodes: int = 256
    num_devices: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.at_least(self, 1, "total_steps", "num_seeds", "chunk_updates", "eval_episodes")
        checks.at_least(self, 0, "eval_every", "num_devices")
        self.parsed_env_options()
        self.parsed_sweep()

    @classmethod
    def summary(cls) -> str:
        """What `--help` says of the algorithm."""
        names = ", ".join(field.name for owner in cls.HYPERPARAMS for field in fields(owner))
        return f"{(cls.__doc__ or '').partition('Attributes:')[0].strip()} --sweep takes: {names}."

    def make_learner(self, env: Any, env_params: Any) -> EnvironmentLearner:
        """The learner of these settings in an environment."""
        raise NotImplementedError

    def env_objects(self) -> dict[str, Any]:
        """Options of the environment that are no text, such as a model's tokenizer."""
        return {}

    def first_learners(self, learners: PyTree) -> PyTree:
        """The learners before training, leaves `[V * S, ...]`, from those that `init` returned."""
        return learners

    def write_results(self, folder: RunFolder, learners: PyTree) -> None:
        """Write what a run leaves in addition to its checkpoints, metrics and report."""

    @property
    def agent(self) -> AgentSettings:
        """These settings as the algorithm's."""
        return cast(AgentSettings, self)

    @classmethod
    def algorithm_name(cls) -> str:
        """The algorithm, as the command line calls it."""
        return str(getattr(cls, "algorithm", None) or getattr(cls, "kind", cls.__name__))

    def parsed_env_options(self) -> dict[str, Any]:
        """Options of the environment by name, with this trainer's defaults for it."""
        return self.with_env_options(self.default_env_options.get(self.env, {}), read_env_options(self.env_options))

    def with_env_options(self, options: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
        """Options of the environment, with those given in their place, and without those that do not go with them.

        A maze is either generated or has a layout.
        """
        generated = _GENERATED.get(self.env, set())
        excluded = generated if given.get("layout") is not None else {"layout"} if generated & given.keys() else set()
        return {name: value for name, value in options.items() if name not in excluded} | dict(given)

    def parsed_sweep(self) -> Sweep:
        """The grid of hyperparameters."""
        return read_sweep(self.sweep)

    @property
    def num_points(self) -> int:
        """Points of the sweep; 1 where nothing is swept."""
        return len(self.parsed_sweep().points)

    def sweep_columns(self) -> list[tuple[str, slice]]:
        """Label of each point of the sweep, and where its seeds are among all learners `[V * S]`."""
        size = self.num_seeds
        return [
            (label, slice(point * size, (point + 1) * size)) for point, label in enumerate(self.parsed_sweep().labels)
        ]

    def saved(self) -> dict[str, Any]:
        """What config.yaml holds, every option of the environment written out."""
        given = read_env_options(self.env_options)
        options = {name: value for name, value in self.parsed_env_options().items() if name not in given}
        written = [*self.env_options, *(f"{name}={value}" for name, value in options.items())]
        return super().saved() | {"env_options": written}

    def length_setting(self) -> str | None:
        """A run can be made longer where no schedule follows its length."""
        return None if _follows_length(self) else "total_steps"

    def free_settings(self) -> frozenset[str]:
        """What may differ between a run and its resumption; other devices change numbers by rounding alone."""
        return super().free_settings() | {"num_devices"}


def _follows_length(config: EnvironmentRunConfig) -> bool:
    """Whether settings change over the length of the run, in any point of the sweep."""
    both: tuple[Any, Any] = config, getattr(config, "ppo", None)
    owners = [owner for owner in both if hasattr(owner, "anneal_updates")]
    return any(follows_length(at_point(owner, point)) for owner in owners for point in config.parsed_sweep().points)


def read_env_options(env_options: tuple[str, ...]) -> dict[str, Any]:
    """Options of an environment by name; numbers, true, false, null and lists are read as such, all else as text.

    Raises:
        InputError: one is not KEY=VALUE, or comes twice.
    """
    options: dict[str, Any] = {}
    for option in env_options:
        name, equals, value = option.partition("=")
        name = name.replace("-", "_")
        if not equals or not name:
            raise InputError(f"env_options={option!r} must be KEY=VALUE, such as size=7")
        if not value.strip():
            raise InputError(f"env_options={option!r} has no value; give one, or leave the option out")
        if name in options:
            raise InputError(f"env_options={option!r}: {name} is given twice; remove one")
        options[name] = _value(value)
    return options


def _value(text: str) -> Any:
    """A number, one of `_WORDS`, a list of these in brackets, or else the text, such as 1:30 and on."""
    word = text.strip()
    if word.lower() in _WORDS:
        return _WORDS[word.lower()]
    if re.fullmatch(r"[-+]?\d+", word):
        return int(word)
    if _NUMBER.fullmatch(word):
        return float(word)
    if word.startswith("[") and word.endswith("]"):
        return [_value(item) for item in word[1:-1].split(",") if item.strip()]
    return text  # such as a name, or the drawing of a layout
