"""Training of a reward model on human preferences, and its evaluation on held-out ones."""

import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrl_lm import data, distributed, storage
from jaxrl_lm.algorithms import SupervisedState
from jaxrl_lm.core.checksums import checksum_arrays, checksum_value
from jaxrl_lm.data import Prompt, Text
from jaxrl_lm.errors import InputError
from jaxrl_lm.models import RewardModel, reward_heads
from jaxrl_lm.models.pretrained import has_score_head, resolve_folder
from jaxrl_lm.models.reward_heads import RewardScale
from jaxrl_lm.rewards.scoring import ScoreTokens, TextReader, make_reader, score_rows
from jaxrl_lm.training.answering import Answerer, AnsweringConfig, load_answerer
from jaxrl_lm.training.language_model import LoadedModel, check_batch, load_model, save_model
from jaxrl_lm.training.offline.task import is_evaluation_due, rows_of_update
from jaxrl_lm.training.reward_model import labels, report
from jaxrl_lm.training.reward_model.agreement import Agreement, measure_agreement
from jaxrl_lm.training.reward_model.config import RewardModelRunConfig
from jaxrl_lm.training.reward_model.labels import LabelledRow, LabelledSet
from jaxrl_lm.training.run import Training, Update, train
from jaxrl_lm.types import PyTree, SupervisedLearner

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RewardTask:
    """What stays the same during training.

    Attributes:
        config: the settings.
        loaded: the model that training starts from.
        model: the reward model's module.
        reader: turns texts into its input.
        training: rows to learn from.
        held: held-out ones.
        references: samples that the scores are normalised over; empty for none.
        num_updates: of the whole run.
    """

    config: RewardModelRunConfig
    loaded: LoadedModel
    model: RewardModel
    reader: TextReader
    training: LabelledSet
    held: LabelledSet
    references: list[ScoreTokens]
    num_updates: int

    def learner(self) -> SupervisedLearner:
        """The learner of this model."""
        return self.config.make_learner(self.model, num_updates=self.num_updates)

    def scores(self, params: PyTree, rows: list[ScoreTokens]) -> np.ndarray:
        """Scores of rows under these parameters."""
        return score_rows(self.model, params, self.reader, rows, batch_size=self.config.evaluation_batch_size)


def train_reward_model(config: RewardModelRunConfig) -> storage.RunFolder:
    """Train, and leave a run folder with metrics, evaluation, checkpoints, report and model; raises as `train`."""

    def load() -> Training:
        task, params = load_task(config)
        return Training(
            state=distributed.init_state(task.learner().init, params),
            update=make_update(task),
            num_updates=task.num_updates,
            shown=config.SHOWN,
            fingerprints=fingerprints(task, params),
            finish=lambda folder, state: _finish(task, state.params, folder),
        )

    return train(config, load)


def load_task(config: RewardModelRunConfig) -> tuple[RewardTask, PyTree]:
    """Load preferences, model and tokenizer, and initialise a new head if one is asked for or missing.

    Returns:
        what stays the same, and the parameters to train.

    Raises:
        InputError: one of them is invalid.
    """
    training_rows, held_rows = _read(config)
    head_key = jax.random.fold_in(jax.random.key(config.seed), 0)
    is_new = config.new_head or not has_score_head(resolve_folder(config.model))
    check_batch({"batch_size": config.batch_size})
    loaded = load_model(config.model, "reward", **config.model_options, key=head_key)
    loaded = loaded.with_adapters(config.lora, config.seed)
    params, tokenizer = loaded.params, loaded.tokenizer
    model = reward_heads.with_padding(loaded.model, data.padding_token(tokenizer))
    reader = make_reader(model, tokenizer, config.max_tokens)
    common = labels.common_prompt(training_rows + held_rows)
    training, held = (labels.tokenise(rows, reader, common) for rows in (training_rows, held_rows))
    task = RewardTask(
        config=config,
        loaded=loaded,
        model=model,
        reader=reader,
        training=training,
        held=held,
        references=_references(config, training_rows, reader),
        num_updates=config.updates_of(len(training.rows)),
    )
    if is_new:
        params = reward_heads.new_head(model, params, head_key, config.head_std)
        if task.references and config.head_std != 0:
            params, _ = normalise(task, params)
    return task, params


def make_update(task: RewardTask) -> Update:
    """One update on the host: batch, learning step, and evaluation when it is due."""
    learn = distributed.jit_update(task.learner().update)

    def update(state: SupervisedState, num_done: int) -> tuple[SupervisedState, dict[str, float]]:
        started = time.perf_counter()
        chosen = rows_of_update(task.config, len(task.training.rows), num_done)
        batch = labels.make_batch(task.training, task.reader, chosen)
        state, metrics = learn(state, distributed.place_batch(batch, num_leading=1))
        numbers = {name: float(value) for name, value in jax.device_get(metrics).items()}
        numbers["score/std"] = max(0.0, numbers.pop("score/mean_square") - numbers["score/mean"] ** 2) ** 0.5
        numbers["time/update"] = time.perf_counter() - started
        if is_evaluation_due(task.config, num_done + 1, task.num_updates):
            numbers |= evaluation_metrics(evaluate(task, held_out_scores(task, state.params)))
        return state, numbers

    return update


def evaluation_metrics(agreement: Agreement) -> dict[str, float]:
    """`evaluation/...` for the curves."""
    return {
        "evaluation/accuracy": agreement.accuracy.estimate,
        "evaluation/loss": agreement.loss,
        "evaluation/calibration_error": agreement.calibration_error,
    }


def held_out_scores(task: RewardTask, params: PyTree) -> np.ndarray:
    """Scores `[N, K]` of the held-out completions."""
    rows = [tokens for row in task.held.tokens for tokens in row]
    return task.scores(params, rows).reshape(-1, task.held.num_completions)


def evaluate(task: RewardTask, scores: np.ndarray) -> Agreement:
    """How well these scores agree with people on the held-out labels."""
    return measure_agreement(
        task.config.objective, scores, task.held.targets, report.lengths_of(task.held), task.held.groups
    )


def normalise(task: RewardTask, params: PyTree) -> tuple[PyTree, RewardScale]:
    """Bring the scores of the reference samples to mean 0 and standard deviation 1.

    Returns:
        parameters and the scale; gain 1 and bias 0 where there are no samples.

    Raises:
        InputError: the samples' scores do not differ.
    """
    if not task.references:
        return params, RewardScale(max_tokens=task.config.max_tokens)
    gain, bias = reward_heads.measure_scale(task.scores(params, task.references))
    params, offset = reward_heads.scale_head(task.model, params, gain, bias)
    return params, RewardScale(gain=gain, bias=bias, offset=offset, max_tokens=task.config.max_tokens)


def fingerprints(task: RewardTask, params: PyTree) -> dict[str, int]:
    """Checksums of the inputs, of which the configuration has only the names."""
    parts = (task.training, task.held)
    rows = [[[tokens.ids for tokens in row] for row in part.tokens] for part in parts]
    return {
        "preferences": checksum_value([rows, [part.targets.tolist() for part in parts]]),
        "references": checksum_value([tokens.ids for tokens in task.references]),
        "model": checksum_arrays(params),
    }


def _read(config: RewardModelRunConfig) -> tuple[list[LabelledRow], list[LabelledRow]]:
    """Training and held-out rows."""
    tokenizer = None if config.objective == "binary" else labels.labels_tokenizer(config.model, config.labels_tokenizer)
    rows = labels.read_labels(config.preferences, config.objective, limit=config.limit, tokenizer=tokenizer)
    if config.evaluation is None:
        return labels.split_by_prompt(rows, fraction=config.evaluation_fraction, seed=config.seed)
    held = labels.read_labels(config.evaluation, config.objective, tokenizer=tokenizer)
    labels.check_held_out(rows, held, config.evaluation)
    return rows, held


def _references(config: RewardModelRunConfig, rows: list[LabelledRow], reader: TextReader) -> list[ScoreTokens]:
    """Samples that scores are normalised over: of the reference policy, or completions of the training rows."""
    settings = config.normalisation
    if not settings.num_samples:
        return []
    policy = None if settings.policy is None else _load_policy(config)
    if policy is not None:
        rows = _readable_rows(rows, policy, f"normalisation.policy={settings.policy!r}")
    chosen = data.prompt_order(len(rows), settings.num_samples, 0, config.seed)
    prompts = [rows[index].prompt for index in chosen]
    if policy is None:
        completions = [
            rows[index].completions[number % len(rows[0].completions)] for number, index in enumerate(chosen)
        ]
    else:
        completions = policy([Prompt(prompt=prompt, columns={}) for prompt in prompts])
    return [reader.encode(*pair) for pair in zip(prompts, completions, strict=True)]


def _load_policy(config: RewardModelRunConfig) -> Answerer:
    settings = config.normalisation
    assert settings.policy is not None
    return load_answerer(
        settings.policy,
        AnsweringConfig(
            seed=config.seed,
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            generation_config=False,  # the scale is that of the policy itself
        ),
    )


def _readable_rows(rows: list[LabelledRow], policy: Answerer, at: str) -> list[LabelledRow]:
    """The rows whose prompts the policy can complete: with at least one token, and not too long. A warning counts the
    others.

    Raises:
        InputError: it can complete none.
    """
    refusals: dict[str, InputError | None] = {}
    for row in rows:
        name = json.dumps(row.prompt)
        if name not in refusals:
            refusals[name] = _refusal(policy, row.prompt)
    found = [row for row in rows if refusals[json.dumps(row.prompt)] is None]
    if len(found) == len(rows):
        return rows
    first = next(error for error in refusals.values() if error is not None)
    if not found:
        raise InputError(f"{at}: it cannot read any training prompt ({first}); give another policy, or none") from first
    _log.warning(
        "%s: it cannot read the prompts of %d of %d training rows, which are skipped as reference samples; first: %s",
        *(at, len(rows) - len(found), len(rows), first),
    )
    return found


def _refusal(policy: Answerer, prompt: Text) -> InputError | None:
    """Why the policy cannot complete a prompt."""
    try:
        policy.encode([Prompt(prompt=prompt, columns={})])
    except InputError as error:
        return error
    return None


def _finish(task: RewardTask, params: PyTree, folder: storage.RunFolder) -> None:
    """Train the baseline, and write the evaluation, the normalised model, plots and the report."""
    config = task.config
    scores = held_out_scores(task, params)
    baseline = report.fit_baseline(config.objective, task.training, config.baseline)
    params, scale = normalise(task, params)
    facts: dict[str, Any] = {
        "training_rows": len(task.training.rows),
        "held_out_rows": len(task.held.rows),
        "held_out_prompts": task.held.num_prompts,
        "completions_too_long": task.training.num_cut + task.held.num_cut,
        "reference_samples": len(task.references),
        "gain": scale.gain,
        "bias": scale.bias,
    }
    save_model(folder.model_folder, task.model, params)
    task.reader.tokenizer.save_pretrained(folder.model_folder)
    adapter = task.loaded.save_adapter_of(folder.model_folder, params)
    for each in (folder.model_folder, adapter):
        if each is not None:
            reward_heads.write_scale(each, scale)
    words = report.baseline_agreement(config.objective, baseline, task.held)
    report.write_evaluation(folder, evaluate(task, scores), words, baseline, task.held, scores, facts)
    storage.write_report(folder, title=f"Reward model from {Path(config.model).name}")
