"""PPO, RLOO and GRPO on a language model: complete, score on the host, learn in one jitted program.

A new algorithm is a file in `jaxrl_lm/algorithms/`, its settings in `config.py`, and a line in
`jaxrl_lm/cli/commands.py`.
"""

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_lm import data, distributed, rollouts, storage
from jaxrl_lm.errors import InputError
from jaxrl_lm.models import CausalLM
from jaxrl_lm.storage import RunFolder
from jaxrl_lm.training.language_model import LoadedModel, check_batch, load_model
from jaxrl_lm.training.online.config import OnlineRunConfig
from jaxrl_lm.training.online.task import OnlineTask, load_task
from jaxrl_lm.training.run import Training, Update, train, write_samples_after
from jaxrl_lm.types import AnswerLearner, PyTree


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What a run has loaded.

    Attributes:
        task: prompts, rewards, the policy.
        learner: the algorithm.
        params: to train.
        value: a value network of its own, or None.
    """

    task: OnlineTask
    learner: AnswerLearner
    params: PyTree
    value: LoadedModel | None

    def init_state(self) -> PyTree:
        """The state before the first update.

        Parameters are copied, for they may be the reference's as well; with adapters it needs none of its own.
        """
        key = jax.random.key(self.task.config.seed)
        has_reference = self.task.reference_params is not None
        return distributed.init_state(self.learner.init, self.params, key, is_copied=has_reference)


def train_online(config: OnlineRunConfig) -> RunFolder:
    """Train, and leave a run folder with metrics, checkpoints, plots, samples, report and model; raises as `train`."""
    return train(config, lambda: _training(config, load(config)))


def load(config: OnlineRunConfig) -> Loaded:
    """Load models, tokenizer, prompts and reward functions.

    Raises:
        InputError: one of them is invalid.
    """
    value_name = config.value_model_name
    check_batch(config.split_batches())
    adapt = partial(LoadedModel.with_adapters, lora=config.lora, seed=config.seed)
    task = load_task(config, lambda: adapt(load_model(config.model, config.policy_head, **config.model_options)))
    if value_name is None:
        learner = config.make_learner(task.policy.model)
        return Loaded(task=task, learner=learner, params=task.policy.params, value=None)
    key, tokenizer = jax.random.key(config.seed), task.policy.tokenizer
    value = adapt(load_model(value_name, "reward", **config.model_options, key=key, tokenizer=tokenizer))
    _check_value_model(value_name, value.model, task.policy.model)
    learner = config.make_learner(task.policy.model, value.model)
    return Loaded(task=task, learner=learner, params={"policy": task.policy.params, "value": value.params}, value=value)


def make_update(loaded: Loaded) -> Update:
    """One update on the host: completions, scores, learning, metrics."""
    task, learner = loaded.task, loaded.learner
    config, num_answers = task.config, learner.answers_per_prompt
    learn = distributed.jit_update(learner.update)
    minibatches_of = jax.jit(learner.minibatches, static_argnums=1)
    base_key, reference_params = jax.random.key(config.seed), task.reference_params

    def update(state: PyTree, num_done: int) -> tuple[PyTree, dict[str, float]]:
        started = time.perf_counter()
        answer_key, learn_key = jax.random.split(jax.random.fold_in(base_key, num_done))
        num_prompts = config.batch_size // num_answers
        asked = data.prompt_order(len(task.prompts), num_prompts, num_done, config.seed)
        generation = task.answer(learner.policy_params(state), asked, answer_key, per_prompt=num_answers)
        completed = distributed.on_host(generation)
        rollouts.count_generation(task.policy.model, completed, per_prompt=num_answers)
        generated = time.perf_counter()
        scores, reward_metrics = task.score(np.repeat(asked, num_answers), completed, num_done=num_done)
        scored = time.perf_counter()
        scores = distributed.place_batch(jnp.asarray(scores))
        minibatches = np.asarray(minibatches_of(learn_key, config.batch_size))
        generation = rollouts.packed(task.policy.model, generation, completed, minibatches)
        state, metrics = learn(state, reference_params, generation, scores, learn_key)
        numbers = {name: float(value) for name, value in jax.device_get(metrics).items()}
        learned = time.perf_counter()
        num_tokens = numbers["answer/length"] * config.batch_size
        return state, reward_metrics | numbers | {
            "time/generate": generated - started,
            "time/reward": scored - generated,
            "time/learn": learned - scored,
            "time/update": learned - started,
            "time/tokens_per_second": num_tokens / (learned - started),
        }

    return update


def _training(config: OnlineRunConfig, loaded: Loaded) -> Training:
    task, state = loaded.task, loaded.init_state()
    params = loaded.learner.policy_params(state)
    return Training(
        state=state,
        update=make_update(loaded),
        num_updates=config.num_updates,
        shown=config.SHOWN[:2],
        fingerprints=task.fingerprints(loaded.params),
        samples_before=lambda: task.samples(params, phase="before", step=0),
        finish=partial(_finish, loaded),
    )


def _finish(loaded: Loaded, folder: RunFolder, state: Any) -> None:
    """Samples after training, the models' folders, plots and report."""
    task, config = loaded.task, loaded.task.config
    params = loaded.learner.policy_params(state)
    if loaded.value is not None:
        loaded.value.save(folder.path / "value_model", state.ppo.params["value"])
    write_samples_after(folder, task.samples(params, phase="after", step=config.num_updates))
    task.policy.save(folder.model_folder, params)
    storage.write_report(folder, title=f"{config.TITLE} on {Path(config.model).name}")


def _check_value_model(name: str, value_model: Any, model: CausalLM) -> None:
    if not isinstance(value_model, CausalLM):
        raise InputError(
            f"value_model={name!r} is an encoder, which gives no value per token; choose a decoder, or leave it out"
        )
    for field in ("vocab_size", "max_positions"):
        ours, policys = getattr(value_model.config, field), getattr(model.config, field)
        if ours < policys:
            raise InputError(
                f"value_model={name!r} has {field}={ours}, but the policy has {policys}; "
                "choose one that reads the policy's tokens"
            )
