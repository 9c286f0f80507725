"""Answers for people to judge: made by a policy, or read from a file."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp

from jaxrl_lm import data, feedback, storage
from jaxrl_lm.cli.language import as_chat
from jaxrl_lm.errors import InputError
from jaxrl_lm.feedback import Answers, Mode
from jaxrl_lm.training.answering import answer_prompts
from jaxrl_lm.training.language_config import check_seed


@dataclass(frozen=True, kw_only=True)
class AnsweringConfig:
    """How the policy answers.

    Attributes:
        num_completions: answers to a prompt; None for as many as an item of the mode shows.
        chat: wrap each prompt that is plain text as a user's message in the tokenizer's chat template.
        max_new_tokens: length of the longest answer, in tokens.
        temperature: divides the logits; 0 takes the likeliest token, so that all answers to a prompt are equal.
        top_k: draw from the k likeliest tokens only; 0 for all.
        top_p: draw from the smallest set of likeliest tokens whose probability reaches p; 1 for all.
        min_new_tokens: no answer ends before so many tokens.
        stop: texts of one token each that end an answer, beside the model's end-of-text token.
        batch_size: answers made at a time.
        seed: of sampling.
        dtype: of activations.
    """

    num_completions: int | None = None
    chat: bool = False
    max_new_tokens: int = 64
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_new_tokens: int = 0
    stop: tuple[str, ...] = ()
    batch_size: int = 16
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        if self.num_completions is not None and self.num_completions < 1:
            raise InputError(f"answering.num_completions={self.num_completions} must be at least 1")
        if self.batch_size < 1:
            raise InputError(f"answering.batch_size={self.batch_size} must be at least 1")
        check_seed(self.seed)


def answer_all(
    policy: str, prompts: str, prompt_column: str, mode: Mode, config: AnsweringConfig, out: Path
) -> list[Answers]:
    """The policy's answers: those of an earlier start, if it had the same options, or else new ones.

    Args:
        policy: a folder or a Hugging Face hub id.
        prompts: a file of prompts.
        prompt_column: that holds the prompt.
        mode: how the answers will be judged.
        config: how the policy answers.
        out: folder to keep the answers in.

    Raises:
        InputError: the policy, a prompt or an option is not what it must be, or an earlier start had other options.
    """
    folder = storage.RunFolder(out)
    file = folder.path / "answers.jsonl"
    num = config.num_completions or feedback.NUM_COMPLETIONS[mode]
    options = asdict(config) | {"num_completions": num, "stop": list(config.stop)}
    made_by = {"policy": policy, "prompts": prompts, "prompt_column": prompt_column, "answering": options}
    if file.is_file():
        storage.RunFolder.open(out, made_by)
        return read_answers(str(file), "prompt")
    rows = data.read_prompts(prompts, column=prompt_column)
    texts = _generate(policy, rows, num, config)
    answered = [
        {"prompt": prompt.prompt, "completions": texts[num * place : num * (place + 1)]}
        for place, prompt in enumerate(rows)
    ]
    if not folder.config_file.is_file():
        storage.RunFolder.create(out, made_by)
    storage.write_atomically(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in answered))
    return read_answers(str(file), "prompt")


def _generate(policy: str, prompts: list[data.Prompt], num: int, config: AnsweringConfig) -> list[str]:
    """`num` answers to each prompt, those of one prompt beside each other."""
    return answer_prompts(
        policy,
        [as_chat(prompt) if config.chat else prompt for prompt in prompts for _ in range(num)],
        stop=config.stop,
        batch_size=config.batch_size,
        seed=config.seed,
        dtype=jnp.dtype(config.dtype),
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        min_new_tokens=config.min_new_tokens,
    )


def read_answers(source: str, prompt_column: str) -> list[Answers]:
    """Rows with a prompt, and completions, a list of texts.

    Raises:
        InputError: the source or a row is not what it must be.
    """
    rows = []
    for number, prompt in enumerate(data.read_prompts(source, column=prompt_column), 1):
        where = f"{source}, row {number}"
        completions = prompt.columns.get("completions")
        if not isinstance(completions, list) or not completions:
            raise InputError(f"{where}: completions={completions!r:.60} is no list; give the answers to the prompt")
        for completion in completions:
            _check_text(completion, where)
        rows.append(Answers(prompt=prompt.prompt, completions=tuple(completions), where=where))
    return rows


def _check_text(text: Any, where: str) -> None:
    is_message = isinstance(text, list) and all(
        isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))
        for message in text
    )
    if not isinstance(text, str) and not is_message:
        raise InputError(f"{where}: {text!r:.60} is no answer; give a text, or messages with role and content")
    try:
        json.dumps(text, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: an answer holds half of a surrogate pair; write the pair whole") from error
