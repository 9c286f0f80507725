"""A gold reward of English replies: relevant to the question, courteous, and complete.

It replaces people in simulated feedback: it labels preferences, and evaluates a policy whose reward model has only seen
these labels.
"""

import re
from typing import Any

from jaxrl_lm.data.records import content_text

COURTEOUS = (
    "gladly",
    "with pleasure",
    "happy to help",
    "thank you",
    "of course",
    "good question",
    "sorry to hear",
    "i understand",
    "here for you",
    "hope this helps",
    "please",
    "good luck",
)
RUDE = ("stupid", "fool", "shut up", "go away", "bother me", "boring", "idiot", "nonsense")
MAX_COURTESIES = 2
MAX_WORDS = 25
# Words that do not identify the topic of a question.
_COMMON_WORDS = """
the and you can tell how what want know that this with for are was not but from have has user assistant
feel into your about should when make less
"""
_COMMON = frozenset(_COMMON_WORDS.split())


def good_manners(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    """Reward a courteous reply to the question.

    score = [shares a word of the question] + 0.5 * min(courteous phrases, 2) - [rude] - 0.5 * [does not end a sentence]
            - 0.1 * (words beyond 25) - (share of repeated words); -2 for an empty reply

    Args:
        prompts: texts or messages; only the user's last line or message is used.
        completions: replies.
        columns: unused.

    Returns:
        One score per reply, at most 2.
    """
    del columns
    return [
        _score(_question(prompt), _text(completion)) for prompt, completion in zip(prompts, completions, strict=True)
    ]


def _score(question: str, reply: str) -> float:
    lowered = reply.lower()
    words = _words(lowered)
    if not words:
        return -2.0
    about = {word for word in _words(question.lower()) if len(word) > 2 and word not in _COMMON}
    score = 1.0 if about.intersection(words) else 0.0
    score += 0.5 * min(MAX_COURTESIES, sum(phrase in lowered for phrase in COURTEOUS))
    score -= 1.0 if any(phrase in lowered for phrase in RUDE) else 0.0
    score -= 0.0 if reply.rstrip().endswith((".", "!", "?")) else 0.5
    score -= 0.1 * max(0, len(words) - MAX_WORDS)
    return score - _repeated(words)


def _repeated(words: list[str]) -> float:
    """Share of repeated words, without common ones."""
    rare = [word for word in words if len(word) > 2 and word not in _COMMON]
    return 1.0 - len(set(rare)) / len(rare) if rare else 0.0


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text)


def _question(prompt: Any) -> str:
    if isinstance(prompt, str):
        asked = [line for line in prompt.splitlines() if line.strip() and not line.startswith("Assistant:")]
        return asked[-1] if asked else ""
    asked = [content_text(message) for message in prompt if message["role"] == "user"]
    return asked[-1] if asked else ""


def _text(completion: Any) -> str:
    if isinstance(completion, str):
        return completion
    return " ".join(map(content_text, completion))
