"""`jaxrl-lm label`: label completions on a web page; also `label export`, `import` and `stats`."""

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
"""A host name as browsers send it, without port; `*` matches every name, `*.` every subdomain."""


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Serve a page for labelling completions; without --policy and --answers, continue with the items in --out.

    Attributes:
        out: folder for labels.sqlite and the policy's completions; run the same command again to continue.
            policy: folder or Hugging Face hub id of the model that completes --prompts.
        prompts: a file of prompts, in any format that `ppo` reads.
        prompt_column: prompt column of --prompts or --answers.
        answers: a file of existing completions, instead of --policy: rows with a prompt and completions, a list of
            texts.
        database: SQLAlchemy URL for the labels, such as postgresql+psycopg://user@host/name, instead of
            labels.sqlite in --out.
        mode: the better of two, thumbs up or down, or the best of four.
        pairs: with more than two completions per prompt, compare 1 with 2, 3 with 4, ..., or all pairs.
        overlap: annotators per item.
        lease_minutes: how long an annotator keeps an item before it may go to another.
        port: port of the page on 127.0.0.1; 0 for any free port.
        hosts: extra host names under which browsers may reach the page, such as that of an HTTPS proxy.
            end_when_done: stop once every item has its labels, or was skipped and is not being labelled.
        answering: how the policy generates completions.
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
            raise InputError("out: not given; name the folder for the labels with --out FOLDER")
        if self.policy is not None and self.answers is not None:
            raise InputError("policy and answers are both given; remove one")
        if (self.policy is None) != (self.prompts is None):
            raise InputError("policy and prompts go together; use --policy MODEL --prompts FILE, or --answers FILE")
        if self.policy is not None and self.out is None:
            raise InputError("out: not given; name the folder for the policy's completions with --out FOLDER")
        if self.overlap < 1:
            raise InputError(f"overlap={self.overlap} must be at least 1, the number of annotators per item")
        if not self.lease_minutes > 0:
            raise InputError(f"lease_minutes={self.lease_minutes} must be above 0")
        wrong = [host for host in self.hosts if not _HOST.fullmatch(host)]
        if wrong:
            raise InputError(
                f"hosts={wrong[0]!r} is not a host name; write it in lower case without https://, "
                "port or path, such as label.example.org (*.example.org for all subdomains)"
            )
        num = self.answering.num_completions
        if self.policy is not None and num is not None and num < feedback.NUM_COMPLETIONS[self.mode]:
            raise InputError(f"answering.num_completions={num} is too few for mode {self.mode}; omit it")


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Write labels as a data set for `reward-model`: preferences, thumbs or best of four.

    Attributes:
        labels: the folder that `label` wrote.
        database: SQLAlchemy URL of the labels, if `label` was given one.
        out: a new .jsonl file.
        mode: which labels to export, if there are items of several modes.
        annotators: names of annotators to export; empty for all.
        all_verdicts: instead of a data set, write one row per verdict, including ties and skips, with its item,
            annotator, time, seconds and the order shown; `label import` reads it back.
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
        labels: the folder of the labels, created if missing.
        database: SQLAlchemy URL for the labels, instead of labels.sqlite in --labels.
        source: a file in the mode's format (preference, unpaired preference or best of four), or one written by
            `label export --all-verdicts`.
        tokenizer: folder or hub id of the tokenizer if the file contains token ids, as OpenAI's labels contain
            GPT-2's; None if it contains texts.
        mode: how the items were labelled; rows of --all-verdicts contain their mode.
        annotator: the annotator's name, instead of each row's `annotator`.
    """

    source: str
    annotator: str | None = None
    labels: str | None = None
    database: str | None = None
    tokenizer: str | None = None
    mode: Mode = "pairwise"


@dataclass(frozen=True, kw_only=True)
class StatsConfig:
    """Print labels, pace and agreement of annotators.

    Attributes:
        labels: the folder that `label` wrote.
        database: SQLAlchemy URL of the labels, where that was given to `label`.
    """

    labels: str | None = None
    database: str | None = None


def parse_label(args: list[str]) -> Callable[[], None]:
    """Parse the arguments of `jaxrl-lm label` into a call; prints help or the error and exits where needed."""
    name, rest = (args[0], args[1:]) if args and args[0] in LABEL_COMMANDS else (_SERVE, args)
    config = tyro.extras.subcommand_cli_from_dict(
        {command: kind for command, (kind, _) in LABEL_COMMANDS.items()},
        args=expand_config_file([name, *rest]),
        prog="jaxrl-lm label",
        description="Label completions on a web page. `label` alone is `label serve`.",
    )
    return lambda: _call(LABEL_COMMANDS[name][1], config)


@contextmanager
def database_errors_in_words() -> Iterator[None]:
    """Turn database errors, such as a full disk, into InputErrors with a remedy."""
    try:
        yield
    except DBAPIError as error:
        raise InputError(f"labels: {feedback.describe_error(error)}") from error


def run_serve(config: ServeConfig) -> None:
    """Generate or read completions, and serve the page until Ctrl-C."""
    serve_labels(config)


def serve_labels(config: ServeConfig) -> int | None:
    """Generate or read completions, and serve the page until a signal or, with `end_when_done`, the last label.

    Returns:
        the number of the signal, Ctrl-C or SIGTERM, that stopped it; None after the last label.
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
    """Write the labels to a file, and report what it leaves out."""
    out = Path(config.out)
    if out.exists():
        raise InputError(f"out={config.out!r} exists; choose another file")
    if not out.parent.is_dir():
        raise InputError(f"out={config.out!r}: folder {str(out.parent)!r} does not exist; create it first")
    with _opened(config.labels, config.database, is_new_allowed=False) as engine:
        modes: list[Mode] = [config.mode] if config.mode else feedback.list_modes(engine)
        if len(modes) != 1:
            raise InputError(f"mode: the labels are for {' and '.join(modes) or 'no mode'}; choose one with --mode")
        if config.all_verdicts:
            rows = feedback.export_verdicts(engine, modes[0], names=config.annotators)
            text = f"{len(rows)} verdicts in {config.out}"
        else:
            exported = feedback.export_labels(engine, modes[0], names=config.annotators)
            rows = exported.rows
            left_out = f"{exported.num_ties} ties and {exported.num_skips} skips left out"
            text = f"{len(rows)} labels in {config.out}; {left_out} (--all-verdicts includes them)"
    storage.write_atomically(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    print_text(text, soft_wrap=True)


def run_import(config: ImportConfig) -> None:
    """Add the labels of a file, and report how many are new."""
    tokenizer = None if config.tokenizer is None else load_named_tokenizer("tokenizer", config.tokenizer)
    judged = read_judged(config.source, config.mode, annotator=config.annotator, tokenizer=tokenizer)
    with _opened(config.labels, config.database, is_new_allowed=True) as engine:
        counts = feedback.import_labels(engine, judged)
    text = f"{counts.num_added} labels added, {counts.num_repeated} already there"
    if counts.num_contradicting:
        who = config.annotator or "the same annotator"
        text += f", {counts.num_contradicting} contradict earlier labels of {who} and were left out"
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
    """The label database, closed at the end so that SQLite merges its WAL file."""
    if folder is None and database is None:
        raise InputError("labels: not given; name the folder that `jaxrl-lm label` wrote with --labels FOLDER")
    if is_new_allowed and folder is not None:
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"folder {folder!r} cannot be created ({error}); choose another") from error
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
            f"mode={mode!r}: existing items are for {', '.join(modes) or 'no mode'}; change --mode or add completions"
        )


def _answer(config: ServeConfig, policy: str) -> list[feedback.Answers]:
    folder = Path(config.out or "") / "answers"
    return answer_all(policy, config.prompts or "", config.prompt_column, config.mode, config.answering, folder)


def _say_what_is_new(console: Console, found: feedback.ItemList, num_new: int) -> None:
    num_known = len(found.items) - num_new
    console.print(f"{num_new} new items" + (f", {num_known} already there" if num_known else ""))
    for reason in found.left_out[:_NUM_SHOWN]:
        print_text(f"left out: {reason}", console=console, soft_wrap=True)
    if len(found.left_out) > _NUM_SHOWN:
        console.print(f"left out: {len(found.left_out) - _NUM_SHOWN} more")


def _announce(address: str) -> None:
    sys.stdout.write(f"Open this link to label; press Ctrl-C to stop:\n  {address}\n")
    sys.stdout.flush()
