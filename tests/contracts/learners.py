"""Every learner in one form: a first state, an update, and arguments made up at random; none needs a file."""

from collections.abc import Callable
from dataclasses import MISSING, fields
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_lm.algorithms import (
    ALGORITHMS,
    AdamWConfig,
    GroupPolicyConfig,
    PPOConfig,
    PreferenceBatch,
    ReferencedRows,
)
from jaxrl_lm.cli.commands import COMMANDS
from jaxrl_lm.data import PackedRows
from jaxrl_lm.models.lora import add_adapters
from jaxrl_lm.models.lora_config import LoraConfig
from jaxrl_lm.rollouts import AnswerConfig, Generation
from jaxrl_lm.training.environments.config import EnvironmentRunConfig
from jaxrl_lm.training.environments.task import make_env
from jaxrl_lm.training.offline.config import ExamplesRunConfig
from jaxrl_lm.training.online.config import OnlineRunConfig
from jaxrl_lm.training.settings import default_value
from jaxrl_lm.types import EnvironmentLearner, PyTree
from tests.algorithms.fixtures import evaluate, init_params, make_trajectory
from tests.models import tiny
from tests.text_model import text_model

BATCH, PROMPT, ANSWER, ROW = 4, 3, 4, 8


def commands_with(kind: type) -> dict[str, Any]:
    """Settings classes of the commands whose settings are of this kind."""
    settings = {name: command.load_settings() for name, command in COMMANDS.items()}
    return {name: each for name, each in settings.items() if issubclass(each, kind)}


ONLINE = commands_with(OnlineRunConfig)
SUPERVISED = commands_with(ExamplesRunConfig)
TRAINERS = {name.removeprefix("train "): each for name, each in commands_with(EnvironmentRunConfig).items()}


class Case(NamedTuple):
    """A learner.

    Attributes:
        start: makes the state before the first update.
        update: `update(state, *args) -> (state, metrics)`.
        args: `args(number) -> args` of update `number`.
        params: the parameters in a state.
    """

    start: Callable[[], PyTree]
    update: Callable[..., Any]
    args: Callable[[int], tuple[Any, ...]]
    params: Callable[[PyTree], PyTree] = lambda state: state.params


@cache
def language_model(head: Any, lora: LoraConfig | None = None) -> tuple[Any, PyTree]:
    """A GPT-2 of one layer, with a head or without, and with adapters or without."""
    model, params = tiny.random_model("gpt2", n_layer=1, n_embd=16, n_head=2, head=head)
    return (model, params) if lora is None else add_adapters(model, params, lora, key_of(0))


def key_of(number: int) -> jax.Array:
    return jax.random.fold_in(jax.random.key(7), number)


def generation(number: int) -> Generation:
    """Answers of random lengths to left-padded prompts."""
    rng = np.random.default_rng(number)
    is_prompt = np.arange(PROMPT) >= rng.integers(0, PROMPT, size=(BATCH, 1))
    is_answer = np.arange(ANSWER) < rng.integers(1, ANSWER + 1, size=(BATCH, 1))
    mask = np.concatenate([is_prompt, is_answer], axis=1)
    return Generation(
        sequences=jnp.asarray(np.where(mask, rng.integers(0, tiny.PAD_TOKEN, mask.shape), tiny.PAD_TOKEN), jnp.int32),
        attention_mask=jnp.asarray(mask, jnp.int32),
        response_mask=jnp.asarray(is_answer, jnp.int32),
        log_probs=jnp.asarray(-4.6 * is_answer, jnp.float32),
        values=jnp.zeros(is_answer.shape, jnp.float32),
        num_steps=jnp.asarray(ANSWER, jnp.int32),
    )


def rows(number: int, *shape: int) -> PackedRows:
    """Rows of random tokens, one sequence each, whose second half is to be learned."""
    rng = np.random.default_rng(number)
    ids = jnp.asarray(rng.integers(0, tiny.PAD_TOKEN, (*shape, ROW)), jnp.int32)
    is_target = jnp.broadcast_to(jnp.arange(ROW) >= ROW // 2, ids.shape)
    return PackedRows(ids, jnp.ones_like(ids), is_target)


def online_case(name: str, lora: LoraConfig | None = None, **changes: Any) -> Case:
    """PPO, RLOO or GRPO on a language model, from the table of commands; with adapters, its base is the reference.

    `changes` are settings of the update.
    """
    kind = ONLINE[name]
    # A large epsilon: Adam else makes whole steps of gradients that are nothing but rounding.
    settings: dict[str, Any] = {"answers": AnswerConfig(max_new_tokens=ANSWER)}
    update: dict[str, Any] = {"learning_rate": 1.0, "num_epochs": 2, "num_minibatches": 2, "adam_epsilon": 1.0}
    if name == "ppo":
        settings["ppo"] = PPOConfig(**update | changes)
    else:
        settings["policy"] = GroupPolicyConfig(**update | changes)
        settings["group_size"] = 2
    config = kind(model="", prompts="", reward="", out="", batch_size=BATCH, **settings)
    model, params = language_model("value" if name == "ppo" else None, lora)
    learner = config.make_learner(model)
    reference = {part: leaves for part, leaves in params.items() if part != "value_head"} if lora is None else None

    def args(number: int) -> tuple[Any, ...]:
        scores = jnp.asarray(np.random.default_rng(number).normal(size=BATCH), jnp.float32)
        return reference, generation(number), scores, key_of(number)

    return Case(
        start=lambda: learner.init(jax.tree.map(jnp.copy, params), key_of(0)),
        update=learner.evaluate_and_update,
        args=args,
        params=learner.policy_params,
    )


def labelled_pairs(number: int) -> PreferenceBatch:
    """Pairs of completions of which the first is better."""
    ids = rows(number, 2, BATCH, 2).ids
    inputs = {"input_ids": ids, "attention_mask": jnp.ones_like(ids)}
    return PreferenceBatch(inputs=inputs, targets=jnp.zeros((2, BATCH), jnp.int32))


class Batches(NamedTuple):
    """What a command learns from: two accumulated batches.

    Attributes:
        make: `make(number)` -> the batch of update `number`.
        head: of the model.
    """

    make: Callable[[int], PyTree]
    head: str | None = None


BATCHES: dict[str, Batches] = {
    "sft": Batches(lambda number: rows(number, 2, BATCH)),
    "dpo": Batches(lambda number: ReferencedRows(rows(number, 2, BATCH, 2), jnp.full((2, BATCH, 2), -20.0))),
    "reward-model": Batches(labelled_pairs, head="reward"),
}
"""The one entry that a new command needs that learns from examples."""


def supervised_case(name: str, lora: LoraConfig | None = None) -> Case:
    """A command that learns from examples, from the table of commands."""
    kind, batches = SUPERVISED[name], BATCHES[name]
    required = {each.name: "" for each in fields(kind) if default_value(each) is MISSING}
    # A large epsilon, as in `online_case`: the gradient of the keys' bias is nothing but rounding.
    config = kind(**required, optimizer=AdamWConfig(learning_rate=1e-2, epsilon=1e-3))
    model, params = language_model(batches.head, lora)
    learner = config.make_learner(model, num_updates=10)
    return Case(
        start=lambda: learner.init(jax.tree.map(jnp.copy, params)),
        update=learner.update,
        args=lambda number: (batches.make(number),),
    )


def trajectory_case(name: str, **settings: Any) -> Case:
    """An algorithm that learns from trajectories, on a policy that is a table."""
    make_config, make_algorithm = ALGORITHMS[name]
    algorithm = make_algorithm(make_config(learning_rate=3e-3, num_epochs=2, **settings), evaluate)
    return Case(
        start=lambda: algorithm.init(init_params(), key_of(0)),
        update=algorithm.update,
        args=lambda number: (make_trajectory(seed=number, noise=0.1), key_of(number)),
    )


SMALL_ENVIRONMENT: dict[str, dict[str, Any]] = {
    "dqn": {"num_envs": 16, "steps_per_update": 4, "learning_starts": 32, "batch_size": 16, "buffer_size": 512},
    "pqn": {"num_envs": 16, "num_steps": 4, "num_minibatches": 2},
    "ppo": {"num_envs": 16, "num_steps": 4},
    "text-ppo": {"num_envs": 16, "num_steps": 4, "env_options": ("observed=partially", "max_steps=3")},
}


def environment_learner(name: str, **settings: Any) -> tuple[Any, EnvironmentLearner, Any, Any]:
    """Settings, learner, environment and its parameters of an algorithm, small."""
    kind, small = TRAINERS[name], SMALL_ENVIRONMENT.get(name)
    given: dict[str, Any] = {"num_envs": 16, "num_steps": 4, "env": "ChainMaze-v0"}
    if name == "text-ppo":
        given = {"model": text_model()}
    elif small is not None:
        given = {"env": "CartPole-v1"}
    config = kind(out="", **given, **(small or {}), **settings)
    env, env_params = make_env(config)
    return config, config.make_learner(env, env_params), env, env_params


def environment_case(name: str) -> Case:
    """An algorithm with the environments it acts in."""
    _, learner, _, env_params = environment_learner(name)
    return Case(
        start=lambda: jax.jit(learner.init)(key_of(0), env_params),
        update=lambda state: learner.update(state, env_params),
        args=lambda number: (),
    )


CASES: dict[str, Callable[[], Case]] = {
    "trajectories-ppo": partial(trajectory_case, "ppo", num_minibatches=4),
    "trajectories-ppo-steps": partial(
        trajectory_case,
        "ppo",
        num_minibatches=2,
        minibatch_unit="steps",
        value_loss="huber",
        adam="tensorflow",
        whiten_rewards=True,
        anneal_updates=10,
    ),
    **{name: partial(online_case, name) for name in ONLINE},
    **{name: partial(supervised_case, name) for name in SUPERVISED},
    **{f"train-{name}": partial(environment_case, name) for name in TRAINERS},
}
