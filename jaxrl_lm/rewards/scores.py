"""Scores of a batch of completions, and what the reward functions log of it."""

import json
import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32

from jaxrl_lm.data import Prompt
from jaxrl_lm.data.records import content_text
from jaxrl_lm.data.rows import excerpt
from jaxrl_lm.errors import InputError
from jaxrl_lm.rewards.builtin import RewardFunction
from jaxrl_lm.rewards.calls import COMPLETION_IDS, OFFERED, RewardCall, call_rewards, name_of
from jaxrl_lm.rewards.combined import CombinedReward

RESERVED = frozenset({"mean", "std", "score", "with_penalty"})
"""Names of the trainer's own metrics `reward/NAME`."""

SAMPLE_FIELDS = frozenset({"step", "phase", "index", "prompt", "completion", "reward", "kl"})
"""What every row of samples.jsonl has."""


@dataclass(frozen=True, kw_only=True)
class TrainerState:
    """Where training is, named as in Hugging Face's `TrainerState`.

    Attributes:
        global_step: updates done.
        max_steps: updates of the run; 0 outside of training.
    """

    global_step: int = 0
    max_steps: int = 0


class Scores(NamedTuple):
    """What rewards say of a batch.

    Attributes:
        rewards: float32 `[B]`; NaN where no function judges, which only `is_partial` allows.
        metrics: `reward/NAME`, the mean of each of several functions over what it judges, and what `log_metric` got.
        columns: what `log_extra` got, each with B values.
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
    """Reward each completion of a batch, and collect what the functions log.

    Args:
        reward: called once for the batch, by keyword, as TRL calls it.
        prompts: B prompts; a column that some of them lack is None there.
        completions: the answers' text, one a prompt. Where the prompt is a conversation, the function gets it as the
            assistant's message; if the prompt ends in a message of the assistant, which the answer continues, as the
            whole of that message, and the prompt without it (as in TRL).
        completion_ids: the answers' tokens; None where they are not known.
        trainer_state: where training is; None outside of it.
        is_partial: whether a completion may remain without a reward.

    Raises:
        InputError: a function raises, or does not return one finite number or None a completion; or all return None
            for one that needs a reward.
    """
    assert len(prompts) == len(completions), f"{len(prompts)} prompts, {len(completions)} completions"
    log = _Log(num_rows=len(prompts))
    offered = {
        **({} if completion_ids is None else {COMPLETION_IDS: completion_ids}),
        "trainer_state": trainer_state or TrainerState(),
        "log_metric": log.metric,
        "log_extra": log.extra,
    }
    rows = [_as_given(prompt, text) for prompt, text in zip(prompts, completions, strict=True)]
    call = RewardCall(
        prompts=[row[0] for row in rows],
        completions=[row[1] for row in rows],
        columns=_columns(prompts),
        offered=offered,
    )
    if isinstance(reward, CombinedReward):
        table = call_rewards(reward.functions, call)
        totals = reward.total(table).astype(np.float32)
        metrics = {f"reward/{name}": mean_of_judged(row) for name, row in zip(reward.functions, table, strict=True)}
    else:
        (totals,) = call_rewards({name_of(reward): reward}, call)
        metrics = {}
    if not is_partial:
        _check_judged(reward, totals, prompts, completions)
    judged = {name: mean for name, mean in metrics.items() if not math.isnan(mean)}
    return Scores(rewards=totals, metrics=judged | log.means(), columns=log.columns)


def score_completions(
    reward: RewardFunction, prompts: list[Prompt], completions: list[str]
) -> Float32[np.ndarray, " B"]:
    """The rewards of `score_batch`, all finite, where nothing is known of training."""
    return score_batch(reward, prompts, completions).rewards


def mean_of_judged(row: Float32[np.ndarray, " B"]) -> float:
    """The mean over the completions that were judged, which are not NaN; NaN where none was."""
    judged = row[~np.isnan(row)]
    return float(np.mean(judged)) if len(judged) else math.nan


@dataclass(frozen=True, kw_only=True)
class _Log:
    """What the functions log by `log_metric` and `log_extra`."""

    num_rows: int
    values: dict[str, list[float]] = field(default_factory=dict)
    columns: dict[str, list[Any]] = field(default_factory=dict)

    def metric(self, name: str, value: Any) -> None:
        """Keep a number of this batch; the mean of one name's numbers is logged, as `reward/NAME` unless it has a /."""
        if name in RESERVED:
            raise InputError(
                f"log_metric({name!r}, ...): reward/{name} is a metric of the trainer's; choose another name"
            )
        number = float(value)
        if not math.isfinite(number):
            raise InputError(f"log_metric({name!r}, {number}): log finite numbers")
        self.values.setdefault(name if "/" in name else f"reward/{name}", []).append(number)

    def extra(self, column: str, values: Any) -> None:
        """Keep a column of the samples, one value a completion."""
        values = values.tolist() if hasattr(values, "tolist") else list(values)
        if len(values) != self.num_rows:
            raise InputError(f"log_extra({column!r}, ...): {len(values)} values for {self.num_rows} completions")
        if column in SAMPLE_FIELDS:
            raise InputError(f"log_extra({column!r}, ...): every sample has a field of this name; choose another")
        try:
            json.dumps(values, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InputError(f"log_extra({column!r}, ...): {error}; give values that JSON can hold") from error
        self.columns[column] = values

    def means(self) -> dict[str, float]:
        """Each metric's mean over the batch."""
        return {name: sum(values) / len(values) for name, values in self.values.items()}


def _check_judged(reward: RewardFunction, totals: np.ndarray, prompts: list[Prompt], completions: list[str]) -> None:
    unjudged = np.flatnonzero(np.isnan(totals))
    if not len(unjudged):
        return
    row = int(unjudged[0])
    names = list(reward.functions) if isinstance(reward, CombinedReward) else [name_of(reward)]
    who = f"reward function {names[0]!r} returned" if len(names) == 1 else f"all of {', '.join(names)} returned"
    raise InputError(
        f"completion {row} (counting from 0), {excerpt(completions[row])}, of the prompt {excerpt(prompts[row].text())}"
        f": {who} None, and so for {len(unjudged)} of {len(completions)}; learning needs a reward for each: return a "
        "number, add a reward that judges it, or leave such prompts out"
    )


def _columns(prompts: list[Prompt]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for prompt in prompts for name in prompt.columns)
    for taken in ("prompts", "completions", *OFFERED):
        if taken in names:
            raise InputError(f"the data set has a column {taken!r}, the name of an argument of every reward; rename it")
    return {name: [prompt.columns.get(name) for prompt in prompts] for name in names}


def _as_given(prompt: Prompt, text: str) -> tuple[Any, Any]:
    """Prompt and completion as the function gets them."""
    messages = prompt.prompt
    if isinstance(messages, str):
        return messages, text
    begun = ""
    if messages[-1]["role"] == "assistant" and not messages[-1].get("tool_calls"):
        begun, messages = content_text(messages[-1]), messages[:-1]
    return messages, [{"role": "assistant", "content": begun + text}]
