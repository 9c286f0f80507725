"""Deterministic rewards of a text, for smoke tests and first experiments.

All have TRL's signature, `f(prompts, completions, **columns) -> list[float]`. A word is what stands between
white space; an empty completion earns 0 (by `good_manners` -2).
"""

from collections.abc import Callable
from typing import Any

from jaxrl_lm.rewards.manners import good_manners

RewardFunction = Callable[..., list[float]]
"""`f(prompts, completions, **columns) -> list[float]`, called by keyword, one number a completion.

Plain prompts and completions are strings; those of a conversation are lists of messages with `role` and
`content`. Each further column of the data set is a list with one value a prompt.
"""


def words(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    """Reward long answers: the number of words."""
    return [float(len(_text(completion).split())) for completion in completions]


def brevity(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    """Reward short answers: minus the number of words."""
    return [-float(len(_text(completion).split())) for completion in completions]


def distinct_words(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    """Reward answers without repetition: different words, as written, over all words, in [0, 1]."""
    split = [_text(completion).split() for completion in completions]
    return [_share(len(set(one)), len(one)) for one in split]


def lowercase(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    """Reward lower case: lower-case letters over all letters, in [0, 1]."""
    return [_share_of_letters(_text(completion), str.islower) for completion in completions]


def vowels(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    """Reward vowels: the letters a, e, i, o, u of either case over all letters, in [0, 1]."""
    return [_share_of_letters(_text(completion), "aeiouAEIOU".__contains__) for completion in completions]


REWARDS: dict[str, RewardFunction] = {
    "words": words,
    "brevity": brevity,
    "distinct_words": distinct_words,
    "lowercase": lowercase,
    "vowels": vowels,
    "good_manners": good_manners,
}


def _text(completion: str | list[dict[str, str]]) -> str:
    if isinstance(completion, str):
        return completion
    return " ".join(message["content"] for message in completion)


def _share(count: int, total: int) -> float:
    return count / total if total else 0.0


def _share_of_letters(text: str, counts: Callable[[str], bool]) -> float:
    letters = [character for character in text if character.isalpha()]
    return _share(sum(counts(letter) for letter in letters), len(letters))
