"""The algorithms of `jaxrl-lm train`: a settings class each, which makes the learner.

A new algorithm is a file in `jaxrl_lm/algorithms/`, a settings class here, and a line in `jaxrl_lm/cli/commands.py`.
"""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar, Literal

import jax

from jaxrl_lm.algorithms.dqn import DQNConfig, DQNHyperparams, make_dqn
from jaxrl_lm.algorithms.environment_ppo import EnvironmentPPOConfig, EnvironmentPPOHyperparams, make_environment_ppo
from jaxrl_lm.algorithms.ppo import PPOConfig, PPOHyperparams
from jaxrl_lm.algorithms.pqn import PQNConfig, PQNHyperparams, make_pqn
from jaxrl_lm.algorithms.tabular import TabularConfig, TabularHyperparams, make_tabular
from jaxrl_lm.algorithms.text_ppo import TextPPOConfig, TextPPOHyperparams, make_text_ppo, with_params
from jaxrl_lm.errors import InputError
from jaxrl_lm.models.trunks import TrunkConfig
from jaxrl_lm.rollouts.agent_policy import PolicyConfig
from jaxrl_lm.storage import RunFolder
from jaxrl_lm.training.environments.config import EnvironmentRunConfig
from jaxrl_lm.training.language_model import LoadedModel, load_model
from jaxrl_lm.training.settings import Dtype
from jaxrl_lm.types import EnvironmentLearner, PyTree


def _ppo_policy() -> PolicyConfig:
    """One network for policy and values; grid observations first pass 32 convolutions."""
    return PolicyConfig(trunk=TrunkConfig(hidden_sizes=(256,), activation="relu", channels=(32,)), is_shared=True)


def _ppo_update() -> PPOConfig:
    return PPOConfig(
        learning_rate=1e-3,
        num_epochs=4,
        num_minibatches=8,
        minibatch_unit="steps",
        value_coefficient=0.5,
        entropy_coefficient=0.01,
        max_grad_norm=0.5,
    )


@dataclass(frozen=True, kw_only=True)
class TrainPPOConfig(EnvironmentRunConfig, EnvironmentPPOConfig):
    """Train PPO in an environment.

    Attributes:
        algorithm: its name, by which a run's config.yaml is read.
    """

    HYPERPARAMS: ClassVar[tuple[type, ...]] = (PPOHyperparams, EnvironmentPPOHyperparams)

    algorithm: Literal["ppo"] = "ppo"
    num_envs: int = 128
    policy: PolicyConfig = field(default_factory=_ppo_policy)
    ppo: PPOConfig = field(default_factory=_ppo_update)

    def __post_init__(self) -> None:
        EnvironmentRunConfig.__post_init__(self)
        EnvironmentPPOConfig.__post_init__(self)

    def make_learner(self, env: Any, env_params: Any) -> EnvironmentLearner:
        return make_environment_ppo(self, env, env_params)


@dataclass(frozen=True, kw_only=True)
class TrainTextPPOConfig(EnvironmentRunConfig, TextPPOConfig):
    """Train PPO of a language model that plays in a text world.

    Attributes:
        algorithm: its name, by which a run's config.yaml is read.
        model: the policy at the start: a folder or a Hugging Face hub id. Its tokenizer writes the world's texts.
        dtype: dtype of activations.
    """

    HYPERPARAMS: ClassVar[tuple[type, ...]] = (PPOHyperparams, TextPPOHyperparams)

    algorithm: Literal["text-ppo"] = "text-ppo"
    model: str
    dtype: Dtype = "float32"
    env: str = "TextMaze-v0"

    def __post_init__(self) -> None:
        EnvironmentRunConfig.__post_init__(self)
        TextPPOConfig.__post_init__(self)
        if "kl_coefficient" in self.parsed_sweep().values and not self.kl_coefficient:
            raise InputError(
                f"sweep={self.sweep!r}: with kl_coefficient=0 no reference is kept; give a positive one as well"
            )

    def env_objects(self) -> dict[str, Any]:
        return {"tokenizer": self._loaded().tokenizer}

    def make_learner(self, env: Any, env_params: Any) -> EnvironmentLearner:
        return make_text_ppo(self, env, env_params, self._loaded().model)

    def first_learners(self, learners: PyTree) -> PyTree:
        return jax.vmap(with_params, (0, None))(learners, self._loaded().params)

    def write_results(self, folder: RunFolder, learners: PyTree) -> None:
        """Write the model of the first learner, as an ordinary Hugging Face folder."""
        params = jax.tree.map(lambda leaf: leaf[0], learners.ppo.params)
        self._loaded().save(folder.model_folder, params)

    def _loaded(self) -> LoadedModel:
        return _load_player(self.model, self.dtype)


@lru_cache(maxsize=1)
def _load_player(name: str, dtype: Dtype) -> LoadedModel:
    return load_model(name, "value", dtype=dtype)


@dataclass(frozen=True, kw_only=True)
class TrainDQNConfig(EnvironmentRunConfig, DQNConfig):
    """Train DQN, with optional extensions, in an environment with discrete actions.

    Attributes:
        algorithm: its name, by which a run's config.yaml is read.
    """

    HYPERPARAMS: ClassVar[tuple[type, ...]] = (DQNHyperparams,)

    algorithm: Literal["dqn"] = "dqn"
    num_envs: int = 8

    def __post_init__(self) -> None:
        EnvironmentRunConfig.__post_init__(self)
        DQNConfig.__post_init__(self)
        if self.learning_starts >= self.total_steps:
            raise InputError(
                f"learning_starts={self.learning_starts}: nothing would be learned in total_steps={self.total_steps}; "
                "choose fewer"
            )

    def make_learner(self, env: Any, env_params: Any) -> EnvironmentLearner:
        return make_dqn(self, env, env_params)


@dataclass(frozen=True, kw_only=True)
class TrainPQNConfig(EnvironmentRunConfig, PQNConfig):
    """Train PQN, Q-learning without a replay memory, in an environment with discrete actions.

    Attributes:
        algorithm: its name, by which a run's config.yaml is read.
    """

    HYPERPARAMS: ClassVar[tuple[type, ...]] = (PQNHyperparams,)

    algorithm: Literal["pqn"] = "pqn"

    def __post_init__(self) -> None:
        EnvironmentRunConfig.__post_init__(self)
        PQNConfig.__post_init__(self)

    def make_learner(self, env: Any, env_params: Any) -> EnvironmentLearner:
        return make_pqn(self, env, env_params)


@dataclass(frozen=True, kw_only=True)
class TrainTabularConfig(EnvironmentRunConfig, TabularConfig):
    """Train a tabular algorithm in an environment with discrete observations and actions."""

    HYPERPARAMS: ClassVar[tuple[type, ...]] = (TabularHyperparams,)

    # A table needs observations that are integers.
    default_env_options: ClassVar[dict[str, dict[str, Any]]] = {}

    env: str = "ChainMaze-v0"

    def __post_init__(self) -> None:
        EnvironmentRunConfig.__post_init__(self)
        TabularConfig.__post_init__(self)

    def make_learner(self, env: Any, env_params: Any) -> EnvironmentLearner:
        return make_tabular(self, env, env_params)


@dataclass(frozen=True, kw_only=True)
class TrainQLearningConfig(TrainTabularConfig):
    """Q-learning: the target is the value of the best action."""

    kind: Literal["q-learning"] = "q-learning"


@dataclass(frozen=True, kw_only=True)
class TrainDoubleQConfig(TrainTabularConfig):
    """Double Q-learning: one table chooses the best action, the other evaluates it."""

    kind: Literal["double-q"] = "double-q"


@dataclass(frozen=True, kw_only=True)
class TrainSarsaConfig(TrainTabularConfig):
    """SARSA: the target is the value of the action taken next."""

    kind: Literal["sarsa"] = "sarsa"


@dataclass(frozen=True, kw_only=True)
class TrainExpectedSarsaConfig(TrainTabularConfig):
    """Expected SARSA: the target is the expected value under the acting policy."""

    kind: Literal["expected-sarsa"] = "expected-sarsa"


@dataclass(frozen=True, kw_only=True)
class TrainQLambdaConfig(TrainTabularConfig):
    """Q(lambda): Q-learning with eligibility traces."""

    kind: Literal["q-lambda"] = "q-lambda"


def find_settings(name: str) -> type[EnvironmentRunConfig] | None:
    """The settings class of an algorithm by its name in config.yaml; None if there is none."""
    kinds: list[type[EnvironmentRunConfig]] = [EnvironmentRunConfig]
    for kind in kinds:
        kinds += kind.__subclasses__()
    # Bases come first: a class that was derived for a help text has the same name.
    return next((kind for kind in kinds if kind.algorithm_name() == name), None)
