"""Convert rows of each form to records. All errors name the position of the row."""

from collections.abc import Callable
from typing import Any

from jaxrl_lm.data.chat import shared_length
from jaxrl_lm.data.fields import (
    check_nonblank,
    check_text,
    index_field,
    label_field,
    nonblank_field,
    required,
    text_field,
)
from jaxrl_lm.data.records import (
    BestOfK,
    LanguageModeling,
    Message,
    Preference,
    PromptCompletion,
    Text,
    UnpairedPreference,
)
from jaxrl_lm.data.rows import excerpt
from jaxrl_lm.errors import InputError

Decode = Callable[[list[int]], str]

_HH_HUMAN = "\n\nHuman:"
_HH_ASSISTANT = "\n\nAssistant:"


def to_language_modeling(row: dict[str, Any], where: str) -> LanguageModeling:
    """Convert a row with `messages` or `text`; `messages` take precedence."""
    name = "text" if row.get("messages") is None else "messages"
    return LanguageModeling(text=nonblank_field(row, name, where))


def to_prompt_completion(row: dict[str, Any], where: str) -> PromptCompletion:
    """Convert a row with `prompt` and `completion`."""
    prompt, (completion,) = _completed(row, ("completion",), where)
    return PromptCompletion(prompt=prompt, completion=completion)


def to_unpaired_preference(row: dict[str, Any], where: str) -> UnpairedPreference:
    """Convert a row with `prompt`, `completion` and `label`."""
    prompt, (completion,) = _completed(row, ("completion",), where)
    return UnpairedPreference(prompt=prompt, completion=completion, label=label_field(row, "label", where))


def to_preferences(row: dict[str, Any], where: str, decode: Decode | None) -> list[Preference]:
    """Convert a row of any preference form; a best-of-K row gives a pair of the best and each other completion."""
    is_best_of_k = row.get("sample0") is not None or row.get("summaries") is not None
    if row.get("chosen") is not None or not is_best_of_k:
        return [_to_preference(row, where)]
    labelled = to_best_of_k(row, where, decode)
    best = labelled.completions[labelled.best]
    return [
        Preference(prompt=labelled.prompt, chosen=best, rejected=other)
        for other in labelled.completions
        if other != best
    ]


def to_best_of_k(row: dict[str, Any], where: str, decode: Decode | None) -> BestOfK:
    """Convert a row of OpenAI's data: `query`, `sample0`, `sample1`, ..., `best`, or `info.post`, `summaries[].text`,
    `choice`."""
    if row.get("summaries") is not None:
        prompt, completions, choice = _summaries(row, where)
    else:
        prompt, completions, choice = _samples(row, where, decode)
    if len(completions) < 2:
        raise InputError(f"{where}: too few completions to compare, {len(completions)}; give two or more")
    if all(completion == completions[0] for completion in completions):
        raise InputError(f"{where}: all completions are equal, {excerpt(completions[0])}; remove the row")
    return BestOfK(prompt=prompt, completions=completions, best=index_field(row, choice, len(completions), where))


def _to_preference(row: dict[str, Any], where: str) -> Preference:
    chosen, rejected = (text_field(row, name, where) for name in ("chosen", "rejected"))
    _check_differ(chosen, rejected, where)
    prompt = row.get("prompt")
    # A plain prompt next to conversations repeats their content, as in TRL.
    if prompt is not None and (isinstance(chosen, str) or not isinstance(prompt, str)):
        prompt, (chosen, rejected) = _completed(row, ("chosen", "rejected"), where)
        _check_differ(chosen, rejected, where)  # only one of them may have repeated the prompt
        return Preference(prompt=prompt, chosen=chosen, rejected=rejected)
    if isinstance(chosen, str) and isinstance(rejected, str):
        border = _text_border(chosen, rejected, where)
    elif isinstance(chosen, list) and isinstance(rejected, list):
        remedy = "give a column 'prompt'" if prompt is None else "give the prompt as messages"
        border = _message_border(chosen, rejected, where, remedy)
    else:
        raise InputError(f"{where}: one of chosen and rejected is text, the other messages; use the same form for both")
    return Preference(
        prompt=chosen[:border],
        chosen=check_nonblank(chosen[border:], f"{where}, 'chosen' after the shared prompt"),
        rejected=check_nonblank(rejected[border:], f"{where}, 'rejected' after the shared prompt"),
    )


def _check_differ(chosen: Text, rejected: Text, where: str) -> None:
    if chosen == rejected:
        raise InputError(f"{where}: chosen and rejected are equal, {excerpt(chosen)}; remove the row")


def _completed(row: dict[str, Any], names: tuple[str, ...], where: str) -> tuple[Text, list[Text]]:
    """The prompt and its completions. A completion that repeats the prompt's messages is cut to its new messages."""
    prompt = text_field(row, "prompt", where)
    completions: list[Text] = []
    for name in names:
        completion = nonblank_field(row, name, where)
        if isinstance(completion, list):
            completion = _added_messages(prompt, completion, f"{where}, {name!r}")
        completions.append(completion)
    return prompt, completions


def _added_messages(prompt: Text, completion: list[Message], at: str) -> Text:
    if isinstance(prompt, str):
        raise InputError(f"{at}: messages, but the prompt is text; give both as text, or both as messages")
    if completion[0]["role"] != "assistant" and completion[: len(prompt)] == prompt:
        completion = completion[len(prompt) :]
    if not completion or completion[0]["role"] != "assistant":
        raise InputError(
            f"{at}: the completion does not begin with a message of the role 'assistant'; "
            "leave out the messages of the prompt, and call the model's role 'assistant'"
        )
    return check_nonblank(completion, at)


def _text_border(chosen: str, rejected: str, where: str) -> int:
    """The index at which the completions begin in two texts that start with the same prompt.

    In HH dialogues it follows the last shared `Assistant:`. Otherwise it is where the texts first differ; a space
    before that belongs to the completions, as in TRL.
    """
    shared = shared_length(chosen, rejected)
    dialogue = chosen.rfind(_HH_ASSISTANT, 0, shared)
    if dialogue >= 0:
        return dialogue + len(_HH_ASSISTANT)
    if chosen.startswith(_HH_HUMAN) or rejected.startswith(_HH_HUMAN):
        raise InputError(f"{where}: the two dialogues differ before the first 'Assistant:'; remove the row")
    if 0 < shared < min(len(chosen), len(rejected)) and chosen[shared - 1] == " ":
        shared -= 1
    if shared == 0:
        raise InputError(f"{where}: chosen and rejected share no prefix to use as the prompt; give a column 'prompt'")
    return shared


def _message_border(chosen: list[Message], rejected: list[Message], where: str, remedy: str) -> int:
    """The index at which two conversations first differ, which is where their completions begin."""
    border = min(shared_length(chosen, rejected), len(chosen) - 1, len(rejected) - 1)
    if border == 0:
        raise InputError(f"{where}: chosen and rejected share no first message to use as the prompt; {remedy}")
    for name, messages in (("chosen", chosen), ("rejected", rejected)):
        if messages[border]["role"] != "assistant":
            raise InputError(
                f"{where}, {name!r}: where the conversations differ, message {border} has the role "
                f"{messages[border]['role']!r}, not 'assistant'; give two completions of the same messages"
            )
    return border


def _samples(row: dict[str, Any], where: str, decode: Decode | None) -> tuple[Text, tuple[Text, ...], str]:
    prompt = _maybe_tokens(row, "query", where, decode)
    names = ["sample0"]
    while row.get(f"sample{len(names)}") is not None:
        names.append(f"sample{len(names)}")
    completions = [check_nonblank(_maybe_tokens(row, name, where, decode), f"{where}, {name!r}") for name in names]
    return prompt, tuple(completions), "best"


def _maybe_tokens(row: dict[str, Any], name: str, where: str, decode: Decode | None) -> Text:
    value = required(row, name, where)
    if not (isinstance(value, list) and value and all(type(token) is int for token in value)):
        return text_field(row, name, where)
    if decode is None:
        raise InputError(
            f"{where}, {name!r}: token ids; give their tokenizer (GPT-2's for OpenAI's "
            "lm-human-preferences), for example with `label import --tokenizer`"
        )
    return decode(value)


def _summaries(row: dict[str, Any], where: str) -> tuple[Text, tuple[Text, ...], str]:
    info, summaries = required(row, "info", where), row["summaries"]
    if not isinstance(info, dict) or not isinstance(summaries, list):
        raise InputError(f"{where}: 'info' must be an object and 'summaries' a list; use OpenAI's files unchanged")
    # Posts of Reddit, or articles of CNN and the Daily Mail.
    source = "post" if info.get("post") is not None else "article"
    prompt = check_text(required(info, source, f"{where}, 'info'"), f"{where}, 'info.{source}'")
    completions = []
    for index, summary in enumerate(summaries):
        at = f"{where}, 'summaries[{index}]'"
        if not isinstance(summary, dict):
            raise InputError(f"{at}: {excerpt(summary)} is not an object; use OpenAI's files unchanged")
        completions.append(check_nonblank(check_text(required(summary, "text", at), at), at))
    return prompt, tuple(completions), "choice"
