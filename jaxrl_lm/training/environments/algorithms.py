"""The algorithms of `jaxrl-lm train`: a settings class each, and the table."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

from jaxrl_lm.algorithms.dqn import DQNConfig, DQNHyperparams, make_dqn
from jaxrl_lm.algorithms.environment_ppo import EnvironmentPPOConfig, EnvironmentPPOHyperparams, make_environment_ppo
from jaxrl_lm.algorithms.ppo import PPOConfig, PPOHyperparams
from jaxrl_lm.algorithms.pqn import PQNConfig, PQNHyperparams, make_pqn
from jaxrl_lm.algorithms.tabular import TabularConfig, TabularHyperparams, make_tabular
from jaxrl_lm.errors import InputError
from jaxrl_lm.models.trunks import TrunkConfig
from jaxrl_lm.rollouts.agent_policy import PolicyConfig
from jaxrl_lm.training.environments.config import EnvironmentRunConfig
from jaxrl_lm.training.environments.task import MakeLearner


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
    """Train PPO in an environment."""

    algorithm: Literal["ppo"] = "ppo"
    num_envs: int = 128
    policy: PolicyConfig = field(default_factory=_ppo_policy)
    ppo: PPOConfig = field(default_factory=_ppo_update)

    def __post_init__(self) -> None:
        EnvironmentRunConfig.__post_init__(self)
        EnvironmentPPOConfig.__post_init__(self)


@dataclass(frozen=True, kw_only=True)
class TrainDQNConfig(EnvironmentRunConfig, DQNConfig):
    """Train DQN, with optional extensions, in an environment with discrete actions."""

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


@dataclass(frozen=True, kw_only=True)
class TrainPQNConfig(EnvironmentRunConfig, PQNConfig):
    """Train PQN, Q-learning without a replay memory, in an environment with discrete actions."""

    algorithm: Literal["pqn"] = "pqn"

    def __post_init__(self) -> None:
        EnvironmentRunConfig.__post_init__(self)
        PQNConfig.__post_init__(self)


@dataclass(frozen=True, kw_only=True)
class TrainTabularConfig(EnvironmentRunConfig, TabularConfig):
    """Train a tabular algorithm in an environment with discrete observations and actions."""

    # A table needs observations that are integers.
    default_env_options: ClassVar[dict[str, dict[str, Any]]] = {}

    env: str = "ChainMaze-v0"

    def __post_init__(self) -> None:
        EnvironmentRunConfig.__post_init__(self)
        TabularConfig.__post_init__(self)


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


class Trainer(NamedTuple):
    """One algorithm of the table.

    Attributes:
        config: its settings class.
        make_learner: makes the learner from such settings.
        hyperparams: classes of its traced settings, which can be swept.
    """

    config: type[EnvironmentRunConfig]
    make_learner: MakeLearner
    hyperparams: tuple[type, ...]


TRAINERS: dict[str, Trainer] = {
    "q-learning": Trainer(TrainQLearningConfig, make_tabular, (TabularHyperparams,)),
    "double-q": Trainer(TrainDoubleQConfig, make_tabular, (TabularHyperparams,)),
    "sarsa": Trainer(TrainSarsaConfig, make_tabular, (TabularHyperparams,)),
    "expected-sarsa": Trainer(TrainExpectedSarsaConfig, make_tabular, (TabularHyperparams,)),
    "q-lambda": Trainer(TrainQLambdaConfig, make_tabular, (TabularHyperparams,)),
    "dqn": Trainer(TrainDQNConfig, make_dqn, (DQNHyperparams,)),
    "pqn": Trainer(TrainPQNConfig, make_pqn, (PQNHyperparams,)),
    "ppo": Trainer(TrainPPOConfig, make_environment_ppo, (PPOHyperparams, EnvironmentPPOHyperparams)),
}
"""Every algorithm by its name on the command line."""
