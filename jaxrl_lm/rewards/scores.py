"""Score a batch of completions and collect what the reward functions log."""

import json
import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float32

from jaxrl_lm.data import Prompt
from jaxrl_lm.data.records import content_text
from jaxrl_lm.data.rows import excerpt
from jaxrl_lm.distributed import hosts
from jaxrl_lm.errors import InputError
from jaxrl_lm.rewards.builtin import RewardFunction
from jaxrl_lm.rewards.calls import COMPLETION_IDS, OFFERED, RewardCall, call_rewards, name_of
from jaxrl_lm.rewards.combined import CombinedReward
from jaxrl_lm.rewards.learned import LearnedReward

RESERVED = frozenset({"mean", "std", "std_in_group", "score", "with_penalty"})
"""Reserved names of the trainer's metrics `reward/NAME`."""

TRAINER_GROUPS = frozenset(
    {"answer", "energy", "flops", "watched", "kl", "loss", "minibatches", "policy", "ratio", "steps", "time", "value"}
)
"""Groups of metrics, GROUP/NAME, that only the trainer logs to."""

SAMPLE_FIELDS = frozenset({"step", "phase", "index", "prompt", "completion", "reward", "kl", "watched"})
"""Reserved fields of samples.jsonl; `watched/...` are those of watched rewards."""


@dataclass(frozen=True, kw_only=True)
class TrainerState:
    """Progress of training, with the names of Hugging Face's `TrainerState`.

    Attributes:
        global_step: updates done.
        max_steps: total updates of the run; 0 outside of training.
    """

    global_step: int = 0
    max_steps: int = 0


class Scores(NamedTuple):
    """Rewards and metrics of a batch.

    Attributes:
        rewards: float32 `[B]`; NaN where no function returns a reward, which only `is_partial` allows.
        metrics: `reward/NAME`: the mean of each function over the completions it scores (if there are several), and the
            metrics of `log_metric`.
        columns: the columns of `log_extra`, each with B values.
    """

    rewards: Float32[np.ndarray, " B"]
    metrics: dict[str, float]
    columns: dict[str, list[Any]]


def score_batch(
    reward: RewardFunction,
    prompts: list[Prompt],
    completions: list[str],
    *,
    completion_ids: list[list[int]] | None = None,
    trainer_state: TrainerState | None = None,
    is_partial: bool = False,
) -> Scores:
    """Compute the reward of each completion of a batch, and collect what the functions log.

    Of several processes, each scores a part of the batch, unless a reward model is split over them: then all call all
    functions with all completions. Metrics are means over the processes, weighted by their completions.

    Args:
        reward: called once per batch, by keyword, as in TRL.
        prompts: B prompts; a column that is missing in some rows is None there.
        completions: text of the completions, one per prompt. For a conversational prompt the function gets it as an
            assistant message. If the prompt ends in an assistant message, which the completion continues, the function
            gets that message as a whole, and the prompt without it (as in TRL).
        completion_ids: tokens of the completions; None if not known.
        trainer_state: progress of training; None outside of training.
        is_partial: whether completions without a reward are allowed.

    Raises:
        InputError: a function raises, or does not return one finite number or None per completion; or a completion
            that needs a reward has none.
    """
    assert len(prompts) == len(completions), f"{len(prompts)} prompts, {len(completions)} completions"
    state = trainer_state or TrainerState()
    is_shared = jax.process_count() > 1 and not _is_split_over_processes(reward)
    own = hosts.rows_of_process(len(prompts)) if is_shared else slice(None)
    ids = None if completion_ids is None else completion_ids[own]

    def score() -> Scores:
        columns = {name: values[own] for name, values in _columns(prompts).items()}
        if is_shared and not prompts[own]:
            return Scores(np.zeros(0, np.float32), {}, {})
        return _score(reward, prompts[own], completions[own], columns, ids, state, is_partial)

    found = hosts.together(score)
    return _joined(found) if is_shared else found


def _joined(found: Scores) -> Scores:
    """The scores of all processes' parts; completions of a process that has not logged a column have None there."""
    parts = hosts.all_values([found.rewards.tolist(), found.columns])
    names = dict.fromkeys(name for _, columns in parts for name in columns)
    return Scores(
        rewards=np.array([value for rewards, _ in parts for value in rewards], np.float32),
        metrics=hosts.mean_over_processes(found.metrics, weight=len(found.rewards)),
        columns={
            name: [value for rewards, columns in parts for value in columns.get(name, [None] * len(rewards))]
            for name in names
        },
    )


def _is_split_over_processes(reward: RewardFunction) -> bool:
    """Whether a reward contains a learned one, whose model may be split over the devices of all processes."""
    functions = reward.functions.values() if isinstance(reward, CombinedReward) else [reward]
    return any(isinstance(function, LearnedReward) for function in functions)


def _score(
    reward: RewardFunction,
    prompts: list[Prompt],
    completions: list[str],
    columns: dict[str, list[Any]],
    completion_ids: list[list[int]] | None,
    trainer_state: TrainerState,
    is_partial: bool,
) -> Scores:
    """`score_batch` in one process."""
    functions = reward.functions if isinstance(reward, CombinedReward) else {}
    log = _Log(num_rows=len(prompts), taken=frozenset(f"reward/{name}" for name in functions))
    offered = {
        **({} if completion_ids is None else {COMPLETION_IDS: completion_ids}),
        "trainer_state": trainer_state,
        "log_metric": log.metric,
        "log_extra": log.extra,
    }
    rows = [_as_given(prompt, text) for prompt, text in zip(prompts, completions, strict=True)]
    call = RewardCall(
        prompts=[row[0] for row in rows],
        completions=[row[1] for row in rows],
        columns=columns,
        offered=offered,
    )
    if isinstance(reward, CombinedReward):
        table = call_rewards(reward.functions, call)
        totals = reward.total(table).astype(np.float32)
        metrics = {f"reward/{name}": mean_of_scored(row) for name, row in zip(reward.functions, table, strict=True)}
    else:
        (totals,) = call_rewards({name_of(reward): reward}, call)
        metrics = {}
    if not is_partial:
        _check_scored(reward, totals, prompts, completions)
    scored = {name: mean for name, mean in metrics.items() if not math.isnan(mean)}
    return Scores(rewards=totals, metrics=scored | log.means(), columns=log.columns)


def score_completions(
    reward: RewardFunction, prompts: list[Prompt], completions: list[str]
) -> Float32[np.ndarray, " B"]:
    """The rewards of `score_batch` outside of training; all finite."""
    return score_batch(reward, prompts, completions).rewards


def mean_of_scored(row: Float32[np.ndarray, " B"]) -> float:
    """The mean over the completions with a reward (not NaN); NaN if there is none."""
    scored = row[~np.isnan(row)]
    return float(np.mean(scored)) if len(scored) else math.nan


@dataclass(frozen=True, kw_only=True)
class _Log:
    """Collects the calls of `log_metric` and `log_extra`.

    Attributes:
        num_rows: completions of the batch.
        taken: metrics of the reward functions themselves.
        values: what was logged so far, by metric.
        columns: the columns so far.
    """

    num_rows: int
    taken: frozenset[str] = frozenset()
    values: dict[str, list[float]] = field(default_factory=dict)
    columns: dict[str, list[Any]] = field(default_factory=dict)

    def metric(self, name: str, value: Any) -> None:
        """Log a number of this batch, averaged over calls with the same name; as `reward/NAME` unless it has a /."""
        metric = name if "/" in name else f"reward/{name}"
        group, _, rest = metric.partition("/")
        call = f"log_metric({name!r}, ...)"
        if not (group and rest):
            raise InputError(f"{call}: give NAME, which is logged as reward/NAME, or GROUP/NAME")
        if group in TRAINER_GROUPS:
            raise InputError(f"{call}: the group {group}/ belongs to the trainer; choose another group, or none")
        if metric in self.taken or (group == "reward" and rest in RESERVED):
            whose = "the mean of a reward function" if metric in self.taken else "a metric of the trainer"
            raise InputError(f"{call}: {metric} is {whose}; choose another name")
        number = float(value)
        if not math.isfinite(number):
            raise InputError(f"log_metric({name!r}, {number}): log finite numbers")
        self.values.setdefault(metric, []).append(number)

    def extra(self, column: str, values: Any) -> None:
        """Add a column to the samples, one value per completion."""
        values = values.tolist() if hasattr(values, "tolist") else list(values)
        if len(values) != self.num_rows:
            raise InputError(f"log_extra({column!r}, ...): {len(values)} values for {self.num_rows} completions")
        if column.partition("/")[0] in SAMPLE_FIELDS:
            raise InputError(f"log_extra({column!r}, ...): every sample has a field of this name; choose another")
        if column in self.columns:
            raise InputError(f"log_extra({column!r}, ...): this batch has a column of this name; choose another")
        try:
            json.dumps(values, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InputError(f"log_extra({column!r}, ...): {error}; give values that JSON can hold") from error
        self.columns[column] = values

    def means(self) -> dict[str, float]:
        """Each metric's mean over the batch."""
        return {name: sum(values) / len(values) for name, values in self.values.items()}


def _check_scored(reward: RewardFunction, totals: np.ndarray, prompts: list[Prompt], completions: list[str]) -> None:
    unscored = np.flatnonzero(np.isnan(totals))
    if not len(unscored):
        return
    row = int(unscored[0])
    names = list(reward.functions) if isinstance(reward, CombinedReward) else [name_of(reward)]
    who = f"reward function {names[0]!r} returned" if len(names) == 1 else f"all of {', '.join(names)} returned"
    raise InputError(
        f"completion {row} (counting from 0), {excerpt(completions[row])}, of the prompt {excerpt(prompts[row].text())}"
        f": {who} None, and so for {len(unscored)} of {len(completions)}; learning needs a reward for each: return a "
        "number, add a reward function that scores it, or remove such prompts"
    )


def _columns(prompts: list[Prompt]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for prompt in prompts for name in prompt.columns)
    for taken in ("prompts", "completions", *OFFERED):
        if taken in names:
            raise InputError(f"the data set has a column {taken!r}, the name of an argument of every reward; rename it")
    return {name: [prompt.columns.get(name) for prompt in prompts] for name in names}


def _as_given(prompt: Prompt, text: str) -> tuple[Any, Any]:
    """Prompt and completion as passed to the function."""
    messages = prompt.prompt
    if isinstance(messages, str):
        return messages, text
    begun = ""
    if messages[-1]["role"] == "assistant" and not messages[-1].get("tool_calls"):
        begun, messages = content_text(messages[-1]), messages[:-1]
    return messages, [{"role": "assistant", "content": begun + text}]
