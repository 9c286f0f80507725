"""Deterministic text rewards, for smoke tests and first experiments.

All have TRL's signature, `f(prompts, completions, **columns) -> list[float]`. Words are separated by white space; an
empty completion gets 0 (-2 from `good_manners`).
"""

from collections.abc import Callable
from typing import Any

from jaxrl_lm.data.records import Text, content_text
from jaxrl_lm.rewards.manners import good_manners

RewardFunction = Callable[..., Any]
"""`f(prompts, completions, **columns) -> list[float | None]`, called by keyword, one entry per completion.

Plain prompts and completions are strings. Conversational ones are lists of messages: a completion is
`[{"role": "assistant", "content": "..."}]`. Each further column of the data set is a list with one value per prompt.
None skips a completion. A function may be async, a callable object or a `functools.partial`, and may take:

- `completion_ids`: tokens of the completions, lists of int.
- `trainer_state`: with `global_step` (updates done) and `max_steps`.
- `log_metric(name, value)`: logs a number for this batch as `reward/NAME`, or as it is if it has the form GROUP/NAME.
- `log_extra(column, values)`: adds a column to the samples, one value per completion.

A watched reward `W=...` logs `watched/W/NAME` (or `watched/W/GROUP/NAME`) and the column `watched/W/COLUMN`. Outside of
training nothing is logged.
"""


def words(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    """Reward long completions: the number of words."""
    return [float(len(_text(completion).split())) for completion in completions]


def brevity(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    """Reward short completions: minus the number of words."""
    return [-float(len(_text(completion).split())) for completion in completions]


def distinct_words(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    """Reward completions without repetition: distinct words over all words, in [0, 1]; case matters."""
    split = [_text(completion).split() for completion in completions]
    return [_share(len(set(one)), len(one)) for one in split]


def lowercase(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    """Reward lower case: share of lower-case letters among all letters, in [0, 1]."""
    return [_share_of_letters(_text(completion), str.islower) for completion in completions]


def vowels(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    """Reward vowels: share of a, e, i, o, u (either case) among all letters, in [0, 1]."""
    return [_share_of_letters(_text(completion), "aeiouAEIOU".__contains__) for completion in completions]


REWARDS: dict[str, RewardFunction] = {
    "words": words,
    "brevity": brevity,
    "distinct_words": distinct_words,
    "lowercase": lowercase,
    "vowels": vowels,
    "good_manners": good_manners,
}


def _text(completion: Text) -> str:
    if isinstance(completion, str):
        return completion
    return " ".join(map(content_text, completion))


def _share(count: int, total: int) -> float:
    return count / total if total else 0.0


def _share_of_letters(text: str, counts: Callable[[str], bool]) -> float:
    letters = [character for character in text if character.isalpha()]
    return _share(sum(counts(letter) for letter in letters), len(letters))
