"""Reward functions that misbehave, called by name from the tests."""

import os
import signal
from typing import Any

CALLS = {"count": 0}


def terminate_at_third_call(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """Vowels, and a SIGTERM to this process in the second update (the first call scores the samples)."""
    CALLS["count"] += 1
    if CALLS["count"] == 3:
        os.kill(os.getpid(), signal.SIGTERM)
    return vowels(prompts, completions)


def fail_at_second_and_fourth_call(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """Vowels, and an exception in the first update, and in the second one when the first has been made up for."""
    CALLS["count"] += 1
    if CALLS["count"] in (2, 4):
        raise RuntimeError("the scorer is out of order")
    return vowels(prompts, completions)


def vowels(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """Number of vowels."""
    return [float(sum(letter in "aeiou" for letter in text)) for text in completions]


def huge(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """Finite, but its square is not."""
    return [(-1) ** index * 3e30 for index in range(len(completions))]


def huge_at_third_call(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """Good until the second update."""
    CALLS["count"] += 1
    return (huge if CALLS["count"] == 3 else vowels)(prompts, completions)


def one_too_few(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """A reward is missing."""
    return [0.0] * (len(completions) - 1)


def not_a_number(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """The last reward is NaN."""
    return [0.0] * (len(completions) - 1) + [float("nan")]
