"""PPO, RLOO and GRPO on a language model: complete, score on the host, learn in one jitted program.

A new algorithm is a file in `jaxrl_lm/algorithms/`, its settings in `config.py`, and a line in
`jaxrl_lm/cli/commands.py`.
"""

from functools import partial
from pathlib import Path
from typing import Any

import jax

from jaxrl_lm import storage
from jaxrl_lm.errors import InputError
from jaxrl_lm.models import CausalLM
from jaxrl_lm.storage import RunFolder
from jaxrl_lm.training.language_model import LoadedModel, check_batch, load_model
from jaxrl_lm.training.online.config import OnlineRunConfig
from jaxrl_lm.training.online.task import load_task
from jaxrl_lm.training.online.update import Loaded, make_update
from jaxrl_lm.training.run import Training, train, write_samples_after


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


def _training(config: OnlineRunConfig, loaded: Loaded) -> Training:
    task, state = loaded.task, loaded.init_state()
    params = loaded.policy_params(state)
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
    params = loaded.policy_params(state)
    if loaded.value is not None:
        loaded.value.save(folder.path / "value_model", loaded.learner_state(state).ppo.params["value"])
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
