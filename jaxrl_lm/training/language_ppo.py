"""PPO on a language model: generate, score on the host, learn in one jitted program."""

import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxrl_lm import data, models, rewards, rollouts, storage
from jaxrl_lm.algorithms import make_ppo
from jaxrl_lm.core import kl, masked
from jaxrl_lm.data import Prompt
from jaxrl_lm.errors import InputError
from jaxrl_lm.models import CausalLM
from jaxrl_lm.models.pretrained import resolve_folder
from jaxrl_lm.rollouts import Generation, SamplingConfig
from jaxrl_lm.training.language_config import LanguagePPOConfig
from jaxrl_lm.training.loop import LoopConfig, run_updates
from jaxrl_lm.training.run_files import check_out, open_run, write_samples_after
from jaxrl_lm.types import Algorithm, Evaluate, Metrics, PyTree

SHOWN = ("reward/mean", "kl/answer")


@struct.dataclass(kw_only=True)
class LanguageState:
    """Everything that training changes; what a checkpoint holds.

    Attributes:
        ppo: parameters, optimizer, counters, hyperparameters.
        kl_coefficient: float32 scalar.
        key: base of all randomness; update number k draws from `fold_in(key, k)`.
    """

    ppo: PyTree
    kl_coefficient: PyTree
    key: PyTree


@dataclass(frozen=True, kw_only=True)
class Task:
    """What stays the same during training.

    Attributes:
        config: the settings.
        model: the policy's module.
        value_model: the module of a separate value network, or None.
        reference_params: of the policy at the start, without heads.
        tokenizer: Hugging Face tokenizer of the policy.
        prompts: rows of the prompts file.
        prompt_ids: their tokens.
        prompt_width: tokens of the longest.
        reward: the reward function.
        sampling: how answers are drawn.
    """

    config: LanguagePPOConfig
    model: CausalLM
    value_model: CausalLM | None
    reference_params: PyTree
    tokenizer: Any
    prompts: list[Prompt]
    prompt_ids: list[list[int]]
    prompt_width: int
    reward: rewards.RewardFunction
    sampling: SamplingConfig

    def evaluate(self) -> Evaluate:
        """The policy's `evaluate`."""
        return rollouts.make_evaluate(self.model, temperature=self.sampling.temperature, value_model=self.value_model)

    def algorithm(self) -> Algorithm:
        """PPO on this policy."""
        ppo = self.config.ppo
        if ppo.anneal_updates is None:
            ppo = replace(ppo, anneal_updates=self.config.num_updates)
        return make_ppo(ppo, self.evaluate())

    def policy_params(self, params: PyTree) -> PyTree:
        """The policy's part of the trained parameters."""
        return params if self.value_model is None else params["policy"]


def train_language_ppo(config: LanguagePPOConfig) -> storage.RunFolder:
    """Train, and leave a run folder with metrics, checkpoints, plots, samples, report and model.

    Raises:
        InputError: an input is not what it must be; raised before the run folder is made where it can be known then.
        Interrupted: Ctrl-C or SIGTERM; the state is saved.
        TrainingDivergedError: a loss is not finite.
    """
    check_out(config)
    task, params = load_task(config)
    state = init_state(task, params)
    folder = open_run(
        config,
        lambda: answer_samples(task, task.policy_params(params), phase="before", step=0),
        # Where the learning rate does not follow the run's length, the run may be made longer.
        is_extensible=config.ppo.anneal_updates is not None,
    )
    loop = LoopConfig(
        num_updates=config.num_updates,
        save_every=config.save_every,
        keep_checkpoints=config.keep_checkpoints,
        shown=SHOWN,
        wandb_project=config.wandb_project,
    )
    state = run_updates(folder, state, make_update(task), loop, fingerprints=fingerprints(task), resume=config.resume)
    _finish(task, state, folder)
    return folder


def load_task(config: LanguagePPOConfig) -> tuple[Task, PyTree]:
    """Load models, tokenizer, prompts and reward function.

    Returns:
        what stays the same, and the parameters to train.

    Raises:
        InputError: one of them is not what it must be.
    """
    dtype = jnp.dtype(config.dtype)
    reward = rewards.load_reward(config.reward)
    prompts = data.read_prompts(config.prompts, column=config.prompt_column)
    folder = resolve_folder(config.model)
    head = None if config.value_model else "value"
    model, params = models.from_pretrained(folder, head, dtype=dtype, is_remat=config.remat)
    value_model = None
    reference_params = {name: part for name, part in params.items() if name != "value_head"}
    if config.value_model:
        value_model, value_params = models.from_pretrained(
            config.value_model, "reward", dtype=dtype, is_remat=config.remat, key=jax.random.key(config.seed)
        )
        value_model = _check_value_model(config.value_model, value_model, model)
        params = {"policy": params, "value": value_params}
    tokenizer = data.load_tokenizer(folder, vocab_size=model.config.vocab_size)
    longest = rollouts.longest_prompt(model, config.answers.max_new_tokens)
    prompt_ids = data.encode_prompts(prompts, tokenizer, max_tokens=longest)
    sampling = SamplingConfig(
        max_new_tokens=config.answers.max_new_tokens,
        temperature=config.answers.temperature,
        stop_tokens=data.stop_token_ids(tokenizer, config.answers.stop),
        ignore_stops_before=config.answers.ignore_stops_before,
        pad_token=data.padding_token(tokenizer),
    )
    task = Task(
        config=config,
        model=model,
        value_model=value_model,
        reference_params=reference_params,
        tokenizer=tokenizer,
        prompts=prompts,
        prompt_ids=prompt_ids,
        prompt_width=max(map(len, prompt_ids)),
        reward=reward,
        sampling=sampling,
    )
    return task, params


def init_state(task: Task, params: PyTree) -> LanguageState:
    """The state before the first update; `params` are copied, for they may be the reference's as well."""
    key = jax.random.key(task.config.seed)
    return LanguageState(
        ppo=task.algorithm().init(jax.tree.map(jnp.copy, params), key),
        kl_coefficient=jnp.asarray(task.config.kl.coefficient, jnp.float32),
        key=key,
    )


def make_update(task: Task) -> Callable[[LanguageState, int], tuple[LanguageState, dict[str, float]]]:
    """One update on the host: answers, scores, learning, metrics."""
    learn = jax.jit(partial(_learn, task), donate_argnums=0)
    config = task.config

    def update(state: LanguageState, num_done: int) -> tuple[LanguageState, dict[str, float]]:
        started = time.perf_counter()
        sample_key, learn_key = jax.random.split(jax.random.fold_in(state.key, num_done))
        chosen = data.prompt_order(len(task.prompts), config.batch_size, num_done, config.seed)
        generation = answer(task, task.policy_params(state.ppo.params), chosen, sample_key)
        jax.block_until_ready(generation)
        generated = time.perf_counter()
        scores, reward_metrics = score(task, chosen, generation)
        scored = time.perf_counter()
        state, metrics = learn(state, task.reference_params, generation, scores, learn_key)
        numbers = {name: float(value) for name, value in jax.device_get(metrics).items()}
        learned = time.perf_counter()
        num_tokens = float(np.sum(generation.response_mask))
        return state, reward_metrics | numbers | {
            "time/generate": generated - started,
            "time/reward": scored - generated,
            "time/learn": learned - scored,
            "time/update": learned - started,
            "time/tokens_per_second": num_tokens / (learned - started),
        }

    return update


def answer(task: Task, params: PyTree, chosen: np.ndarray, key: jax.Array) -> Generation:
    """Answer the prompts with these indices."""
    input_ids, mask = data.left_pad(
        [task.prompt_ids[i] for i in chosen], pad_id=task.sampling.pad_token, width=task.prompt_width
    )
    return rollouts.generate(task.model, params, input_ids, mask, key, task.sampling)


def score(task: Task, chosen: np.ndarray, generation: Generation) -> tuple[np.ndarray, dict[str, float]]:
    """Score answers by the reward function; `[B]` float32, and metrics."""
    raw = rewards.score_completions(
        task.reward, [task.prompts[i] for i in chosen], rollouts.decode(task.tokenizer, generation)
    )
    is_stopped = _is_stopped(task, generation)
    scores = raw
    if task.config.answers.missing_stop_score is not None:
        scores = np.where(is_stopped, raw, task.config.answers.missing_stop_score).astype(np.float32)
    return scores, {
        "reward/mean": float(np.mean(raw)),
        "reward/std": float(np.std(raw)),
        "reward/score": float(np.mean(scores)),
        "answer/stopped": float(np.mean(is_stopped)),
    }


def answer_samples(task: Task, params: PyTree, *, phase: str, step: int) -> list[dict[str, Any]]:
    """Answers to the first prompts with their rewards and KL, as records for samples.jsonl.

    The key is the same before and after training, so that differences come from the weights.
    """
    count = min(task.config.num_samples, len(task.prompts))
    chosen = np.arange(count)
    generation = answer(task, params, chosen, jax.random.key(task.config.seed))
    answers = rollouts.decode(task.tokenizer, generation)
    scores = rewards.score_completions(task.reward, task.prompts[:count], answers)
    temperature = task.sampling.temperature
    policy_log_probs, reference_log_probs = (
        rollouts.answer_log_probs(task.model, each, generation, temperature)
        for each in (params, _with_heads(task.reference_params, params))
    )
    divergence = np.asarray(jnp.sum(policy_log_probs - reference_log_probs, axis=-1))
    return [
        {
            "step": step,
            "phase": phase,
            "index": index,
            "prompt": task.prompts[index].text(),
            "completion": answers[index],
            "reward": float(scores[index]),
            "kl": float(divergence[index]),
        }
        for index in range(count)
    ]


def _learn(
    task: Task,
    state: LanguageState,
    reference_params: PyTree,
    generation: Generation,
    scores: jax.Array,
    key: jax.Array,
) -> tuple[LanguageState, Metrics]:
    """Everything behind the scores, in one program: reference, trajectory, PPO, KL coefficient."""
    config = task.config
    params = state.ppo.params
    observations = rollouts.observe(generation)
    mask = generation.response_mask
    actions = generation.sequences[:, -mask.shape[1] :]
    log_probs, values, metrics = _behaviour(task, params, generation)
    reference = rollouts.make_evaluate(task.model, temperature=task.sampling.temperature)(
        _with_heads(reference_params, task.policy_params(params)), observations, actions
    )
    value_mask = rewards.value_mask_of(mask, is_paid_after_end=config.answers.score_at == "after_end")
    step_rewards, token_kl = rewards.token_rewards(
        scores, log_probs, reference.log_probs, mask, value_mask, state.kl_coefficient
    )
    trajectory = rollouts.token_trajectory(
        generation,
        step_rewards,
        value_mask,
        log_probs=log_probs,
        values=values,
        discount=config.discount,
        trace_decay=config.trace_decay,
    )
    ppo_state, ppo_metrics = task.algorithm().update(state.ppo, trajectory, key)
    answer_kl = jnp.mean(jnp.sum(token_kl, axis=-1))
    metrics |= ppo_metrics | {
        "reward/with_penalty": jnp.mean(jnp.sum(step_rewards, axis=-1)),
        "kl/answer": answer_kl,
        "kl/token": masked.masked_mean(token_kl, mask),
        "kl/coefficient": state.kl_coefficient,
        "answer/length": jnp.mean(jnp.sum(mask, axis=-1)),
    }
    new = replace(state, ppo=ppo_state, kl_coefficient=_next_coefficient(config, state.kl_coefficient, answer_kl))
    return new, metrics


def _behaviour(task: Task, params: PyTree, generation: Generation) -> tuple[jax.Array, jax.Array, Metrics]:
    """Log-probabilities and values `[B, T]` that the update starts from, and how far decoding's lie from them."""
    if not task.config.rescore:
        return generation.log_probs, generation.values, {}
    mask = generation.response_mask
    actions = generation.sequences[:, -mask.shape[1] :]
    evaluation = task.evaluate()(params, rollouts.observe(generation), actions)
    rollout_error = jnp.abs(jnp.expm1(evaluation.log_probs - generation.log_probs))
    metrics = {"ratio/rollout_max_error": masked.masked_max(rollout_error, mask)}
    return evaluation.log_probs, evaluation.values, metrics


def _next_coefficient(config: LanguagePPOConfig, coefficient: jax.Array, answer_kl: jax.Array) -> jax.Array:
    if config.kl.target is None:
        return coefficient
    return kl.adaptive_kl_coefficient(
        coefficient,
        answer_kl,
        target=config.kl.target,
        horizon=config.kl.horizon,
        num_episodes=config.batch_size,
    )


def _with_heads(reference_params: PyTree, policy_params: PyTree) -> PyTree:
    """The reference's parameters in the policy's form; heads, which it does not use, are the policy's."""
    return {**policy_params, **reference_params}


def _is_stopped(task: Task, generation: Generation) -> np.ndarray:
    """Whether each answer ended by a stop token rather than by its length, bool `[B]`."""
    mask = np.asarray(generation.response_mask)
    tokens = np.asarray(generation.sequences)[:, -mask.shape[1] :]
    length = mask.sum(axis=-1)
    last = np.take_along_axis(tokens, length[:, None] - 1, axis=-1)[:, 0]
    return np.isin(last, task.sampling.stop_tokens) & (length > task.sampling.ignore_stops_before)


def fingerprints(task: Task) -> dict[str, int]:
    """Checksums of what a run reads and its configuration only names."""
    reference = 0
    for leaf in jax.tree.leaves(task.reference_params):
        reference = zlib.crc32(np.asarray(leaf).tobytes(), reference)
    return {"prompts": zlib.crc32(repr(task.prompt_ids).encode()), "model": reference}


def _check_value_model(name: str, value_model: models.RewardModel, model: CausalLM) -> CausalLM:
    if not isinstance(value_model, CausalLM):
        raise InputError(
            f"value_model={name!r} is an encoder, which gives no value a token; choose a decoder, or leave it out"
        )
    for field in ("vocab_size", "max_positions"):
        ours, policys = getattr(value_model.config, field), getattr(model.config, field)
        if ours < policys:
            raise InputError(
                f"value_model={name!r} has {field}={ours}, the policy {policys}; "
                "choose one that reads the policy's tokens"
            )
    return value_model


def _finish(task: Task, state: LanguageState, folder: storage.RunFolder) -> None:
    """Samples after training, the model's folder, plots and report."""
    params = task.policy_params(state.ppo.params)
    write_samples_after(folder, answer_samples(task, params, phase="after", step=task.config.num_updates))
    models.save_pretrained(folder.model_folder, task.model, params)
    task.tokenizer.save_pretrained(folder.model_folder)
    if task.value_model is not None:
        value_folder = folder.path / "value_model"
        models.save_pretrained(value_folder, task.value_model, state.ppo.params["value"])
        task.tokenizer.save_pretrained(value_folder)
    storage.write_plots(folder)
    storage.write_report(folder, title=f"PPO on {Path(task.config.model).name}")
