"""Answers for people to judge: made by a policy, or read from a file."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jaxrl_lm import data, feedback, storage
from jaxrl_lm.data import Text, fields, forms
from jaxrl_lm.errors import InputError
from jaxrl_lm.feedback import Answers, Mode
from jaxrl_lm.training.answering import AnsweringConfig, answer_prompts


@dataclass(frozen=True, kw_only=True)
class LabelAnsweringConfig(AnsweringConfig):
    """How the policy answers.

    Attributes:
        num_completions: answers to a prompt; None for as many as an item of the mode shows.
    """

    num_completions: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_completions is not None and self.num_completions < 1:
            raise InputError(f"answering.num_completions={self.num_completions} must be at least 1")


def answer_all(
    policy: str, prompts: str, prompt_column: str, mode: Mode, config: LabelAnsweringConfig, out: Path
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
    if file.is_file() or folder.config_file.is_file():
        storage.RunFolder.open(out, made_by)
    if file.is_file():
        return read_answers(str(file), "prompt")
    rows = data.read_prompts(prompts, column=prompt_column, chat=config.chat)
    # Those of one prompt beside each other.
    texts = answer_prompts(policy, [prompt for prompt in rows for _ in range(num)], config)
    answered = [
        {"prompt": prompt.prompt, "completions": texts[num * place : num * (place + 1)]}
        for place, prompt in enumerate(rows)
    ]
    if not folder.config_file.is_file():
        storage.RunFolder.create(out, made_by)
    storage.write_atomically(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in answered))
    return read_answers(str(file), "prompt")


def read_answers(source: str, prompt_column: str) -> list[Answers]:
    """Rows with a prompt, and completions, a list of texts.

    Raises:
        InputError: the source or a row is not what it must be.
    """
    rows = []
    for number, prompt in enumerate(data.read_prompts(source, column=prompt_column), 1):
        where = f"{source}, row {number} of those with a prompt"
        completions = prompt.columns.get("completions")
        if not isinstance(completions, list) or not completions:
            raise InputError(f"{where}: completions={completions!r:.60} is no list; give the answers to the prompt")
        answers = {f"completions[{place}]": completion for place, completion in enumerate(completions)}
        checked = tuple(_checked(answers, name, prompt.prompt, where) for name in answers)
        rows.append(Answers(prompt=prompt.prompt, completions=checked, where=where))
    return rows


def _checked(answers: dict[str, Any], name: str, prompt: Text, where: str) -> Text:
    """An answer as the readers of data sets take it, so that its exported labels can be read back."""
    answer = fields.text_field(answers, name, where)
    if feedback.is_blank(answer):
        return answer  # nobody is asked about it; what is left out is listed
    row = {"prompt": prompt, "completion": answer}
    return forms.to_prompt_completion(row, f"{where}, {name!r}").completion
