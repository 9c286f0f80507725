"""`jaxrl-lm label`: people judge answers on a web page; `label export`, `import` and `stats` go with it."""

import json
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from jaxrl_lm import feedback, storage
from jaxrl_lm.cli.config_file import expand_config_file
from jaxrl_lm.cli.console import print_text
from jaxrl_lm.cli.label_answers import LabelAnsweringConfig, answer_all, read_answers
from jaxrl_lm.cli.label_import import read_judged
from jaxrl_lm.cli.label_tables import print_statistics
from jaxrl_lm.errors import InputError
from jaxrl_lm.feedback import Mode, Pairs
from jaxrl_lm.training.reward_model.judgements import load_named_tokenizer

_SERVE = "serve"
_NUM_SHOWN = 5
_HOST = re.compile(r"\*|(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*")
"""What browsers send as a host's name, less its port; a star stands for all names, or all in front of the rest."""


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Serve a page on which people judge answers; without --policy and --answers, go on with those of the folder.

    Attributes:
        out: folder of the labels, for labels.sqlite and the answers that the policy makes; the same command again
            goes on where it stopped.
        policy: a folder or a Hugging Face hub id of the model that answers --prompts.
        prompts: a file of prompts, in any form that `ppo` reads.
        prompt_column: column of --prompts or --answers that holds the prompt.
        answers: a file of answers that were made elsewhere, in place of --policy: rows with a prompt, and
            completions, a list of texts.
        database: SQLAlchemy URL for the labels, such as postgresql+psycopg://user@host/name, in place of
            labels.sqlite in --out.
        mode: which of two is better, thumbs up or down, or which of four is best.
        pairs: with more than two answers to a prompt, compare 1 with 2, 3 with 4 and so on, or each with each.
        overlap: how many people judge each item.
        lease_minutes: how long a person has an item before it may go to another.
        port: of the page on 127.0.0.1; 0 for any that is free.
        hosts: names besides localhost under which browsers may reach the page, such as that of an HTTPS proxy that
            passes requests on.
        end_when_done: stop once every item has its labels, or was skipped and nobody is at it.
        answering: how the policy answers.
    """

    out: str | None = None
    policy: str | None = None
    prompts: str | None = None
    prompt_column: str = "prompt"
    answers: str | None = None
    database: str | None = None
    mode: Mode = "pairwise"
    pairs: Pairs = "disjoint"
    overlap: int = 1
    lease_minutes: float = 10.0
    port: int = 8642
    hosts: tuple[str, ...] = ()
    end_when_done: bool = False
    answering: LabelAnsweringConfig = field(default_factory=LabelAnsweringConfig)

    def __post_init__(self) -> None:
        if self.out is None and self.database is None:
            raise InputError("out: none given; name the folder of the labels by --out FOLDER")
        if self.policy is not None and self.answers is not None:
            raise InputError("policy and answers are both given; leave one out")
        if (self.policy is None) != (self.prompts is None):
            raise InputError("policy and prompts go together: --policy MODEL --prompts FILE; or give --answers FILE")
        if self.policy is not None and self.out is None:
            raise InputError("out: none given; the policy's answers are kept there: --out FOLDER")
        if self.overlap < 1:
            raise InputError(f"overlap={self.overlap} must be at least 1, the people who judge each item")
        if not self.lease_minutes > 0:
            raise InputError(f"lease_minutes={self.lease_minutes} must be above 0")
        wrong = [host for host in self.hosts if not _HOST.fullmatch(host)]
        if wrong:
            raise InputError(
                f"hosts={wrong[0]!r} matches no browser's request; write a name in small letters without https://, "
                "port or path, such as label.example.org (*.example.org for all in front of it)"
            )
        num = self.answering.num_completions
        if self.policy is not None and num is not None and num < feedback.NUM_COMPLETIONS[self.mode]:
            raise InputError(f"answering.num_completions={num} is too few for mode {self.mode}; leave it out")


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Write labels as a data set that `reward-model` reads: preferences, thumbs or best of four.

    Attributes:
        labels: the folder that `label` wrote.
        database: SQLAlchemy URL of the labels, where that was given to `label`.
        out: a .jsonl file, which must not exist.
        mode: whose labels, where there are items of several.
        annotators: names of the people whose labels are wanted; none for all.
        all_verdicts: in place of a data set, write every verdict a row with its item, ties and skips too, and who said
            it when, in how many seconds, of answers in which order; `label import` reads it back.
    """

    out: str
    labels: str | None = None
    database: str | None = None
    mode: Mode | None = None
    annotators: tuple[str, ...] = ()
    all_verdicts: bool = False


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """Add labels of a data set (preferences, thumbs or best of four) or of `label export --all-verdicts`.

    Attributes:
        labels: the folder of the labels, made if it is not there.
        database: SQLAlchemy URL for the labels, in place of labels.sqlite in --labels.
        source: a file in the form of the mode: preference, unpaired preference, or best of four; or one of
            `label export --all-verdicts`.
        tokenizer: folder or hub id of the tokenizer whose ids the file holds, as OpenAI's labels hold GPT-2's; None
            where it holds texts.
        mode: how its items were judged; rows of --all-verdicts say it themselves.
        annotator: the name under which the labels are kept, in place of each row's `annotator`.
    """

    source: str
    annotator: str | None = None
    labels: str | None = None
    database: str | None = None
    tokenizer: str | None = None
    mode: Mode = "pairwise"


@dataclass(frozen=True, kw_only=True)
class StatsConfig:
    """Print who did how much, how fast, and how far they agree.

    Attributes:
        labels: the folder that `label` wrote.
        database: SQLAlchemy URL of the labels, where that was given to `label`.
    """

    labels: str | None = None
    database: str | None = None


def parse_label(args: list[str]) -> Callable[[], None]:
    """What `jaxrl-lm label` with these arguments is to do; prints help or the mistake and exits where there is one."""
    name, rest = (args[0], args[1:]) if args and args[0] in LABEL_COMMANDS else (_SERVE, args)
    config = tyro.extras.subcommand_cli_from_dict(
        {command: kind for command, (kind, _) in LABEL_COMMANDS.items()},
        args=expand_config_file([name, *rest]),
        prog="jaxrl-lm label",
        description="People judge answers on a web page. `label` alone is `label serve`.",
    )
    return lambda: _call(LABEL_COMMANDS[name][1], config)


@contextmanager
def database_errors_in_words() -> Iterator[None]:
    """Make errors of the labels' database, such as a full disk, InputErrors that say what to do."""
    try:
        yield
    except DBAPIError as error:
        raise InputError(f"labels: {feedback.describe_error(error)}") from error


def run_serve(config: ServeConfig) -> None:
    """Make or read the answers, and serve the page until Ctrl-C."""
    serve_labels(config)


def serve_labels(config: ServeConfig) -> int | None:
    """Make or read the answers, and serve the page until a signal, or until nothing is left where that is wanted.

    Returns:
        the number of the signal, Ctrl-C or SIGTERM, that ended it; None where nothing was left.
    """
    console = Console(file=sys.stdout)
    rows = None if config.answers is None else read_answers(config.answers, config.prompt_column)
    found = None if rows is None else feedback.make_items(rows, config.mode, pairs=config.pairs)
    is_new_allowed = bool(config.policy or config.answers)
    with (
        feedback.listen(config.port) as listener,
        _opened(config.out, config.database, is_new_allowed=is_new_allowed) as engine,
        feedback.lock_server(engine) as check_lock,
    ):
        if config.policy is not None:
            found = feedback.make_items(_answer(config, config.policy), config.mode, pairs=config.pairs)
        if found is not None:
            _say_what_is_new(console, found, feedback.add_items(engine, found.items))
        _check_mode(engine, config.mode)
        feedback.keep_overlap(engine, config.mode, config.overlap)
        store = feedback.LabelStore(
            engine, mode=config.mode, overlap=config.overlap, lease_seconds=60 * config.lease_minutes
        )
        stopped_by = None
        try:
            feedback.serve(
                store,
                listener,
                hosts=config.hosts,
                is_ended_when_done=config.end_when_done,
                check_lock=check_lock,
                announce=_announce,
            )
        except KeyboardInterrupt as stop:
            stopped_by = stop.args[0] if stop.args else signal.SIGINT
            console.print("Stopped.")
        print_statistics(feedback.compute_statistics(engine, config.mode), overlap=config.overlap)
    return stopped_by


def run_export(config: ExportConfig) -> None:
    """Write the labels to a file, and say what had no place in it."""
    out = Path(config.out)
    if out.exists():
        raise InputError(f"out={config.out!r} exists; choose another file")
    if not out.parent.is_dir():
        raise InputError(f"out={config.out!r}: there is no folder {str(out.parent)!r}; make it first")
    with _opened(config.labels, config.database, is_new_allowed=False) as engine:
        modes: list[Mode] = [config.mode] if config.mode else feedback.list_modes(engine)
        if len(modes) != 1:
            raise InputError(f"mode: the labels are of {' and '.join(modes) or 'no mode'}; name one by --mode")
        if config.all_verdicts:
            rows = feedback.export_verdicts(engine, modes[0], names=config.annotators)
            text = f"{len(rows)} verdicts in {config.out}"
        else:
            exported = feedback.export_labels(engine, modes[0], names=config.annotators)
            rows = exported.rows
            left_out = f"{exported.num_ties} ties and {exported.num_skips} skips have no place in it"
            text = f"{len(rows)} labels in {config.out}; {left_out} (--all-verdicts writes them too)"
    storage.write_atomically(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    print_text(text, soft_wrap=True)


def run_import(config: ImportConfig) -> None:
    """Add the labels of a file, and say how many were new."""
    tokenizer = None if config.tokenizer is None else load_named_tokenizer("tokenizer", config.tokenizer)
    judged = read_judged(config.source, config.mode, annotator=config.annotator, tokenizer=tokenizer)
    with _opened(config.labels, config.database, is_new_allowed=True) as engine:
        counts = feedback.import_labels(engine, judged)
    text = f"{counts.num_added} labels added, {counts.num_repeated} were there already"
    if counts.num_contradicting:
        who = config.annotator or "the same person"
        text += f", {counts.num_contradicting} contradict what {who} had said and were left out"
    print_text(text, soft_wrap=True)


def run_stats(config: StatsConfig) -> None:
    """Print the statistics of every mode."""
    with _opened(config.labels, config.database, is_new_allowed=False) as engine:
        for mode in feedback.list_modes(engine):
            overlap = feedback.kept_overlap(engine, mode)
            print_statistics(feedback.compute_statistics(engine, mode), overlap=overlap)


LABEL_COMMANDS: dict[str, tuple[type, Callable[[Any], None]]] = {
    _SERVE: (ServeConfig, run_serve),
    "export": (ExportConfig, run_export),
    "import": (ImportConfig, run_import),
    "stats": (StatsConfig, run_stats),
}


def _call(command: Callable[[Any], None], config: Any) -> None:
    with database_errors_in_words():
        command(config)


@contextmanager
def _opened(folder: str | None, database: str | None, *, is_new_allowed: bool) -> Iterator[Engine]:
    """The database of labels, closed at the end, so that SQLite's file holds all and its WAL file is gone."""
    if folder is None and database is None:
        raise InputError("labels: none given; name the folder that `jaxrl-lm label` wrote by --labels FOLDER")
    if is_new_allowed and folder is not None:
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder!r} cannot be made a folder ({error}); name another") from error
    url = database or f"sqlite:///{Path(folder or '') / 'labels.sqlite'}"
    engine = feedback.open_database(url, is_new_allowed=is_new_allowed)
    try:
        yield engine
    finally:
        engine.dispose()


def _check_mode(engine: Engine, mode: Mode) -> None:
    modes = feedback.list_modes(engine)
    if mode not in modes:
        raise InputError(
            f"mode={mode!r}: the items there are for {', '.join(modes) or 'no mode'}; give --mode or new answers"
        )


def _answer(config: ServeConfig, policy: str) -> list[feedback.Answers]:
    folder = Path(config.out or "") / "answers"
    return answer_all(policy, config.prompts or "", config.prompt_column, config.mode, config.answering, folder)


def _say_what_is_new(console: Console, found: feedback.ItemList, num_new: int) -> None:
    num_known = len(found.items) - num_new
    console.print(f"{num_new} new items" + (f", {num_known} were there already" if num_known else ""))
    for reason in found.left_out[:_NUM_SHOWN]:
        print_text(f"left out: {reason}", console=console, soft_wrap=True)
    if len(found.left_out) > _NUM_SHOWN:
        console.print(f"left out: {len(found.left_out) - _NUM_SHOWN} more")


def _announce(address: str) -> None:
    sys.stdout.write(f"Open this link to judge; Ctrl-C ends it:\n  {address}\n")
    sys.stdout.flush()
