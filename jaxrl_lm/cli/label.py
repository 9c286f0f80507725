"""`jaxrl-lm label`: label completions on a web page; also `label export`, `import` and `stats`."""

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from jaxrl_lm import feedback, storage
from jaxrl_lm.cli.console import print_text
from jaxrl_lm.cli.label_completions import complete_prompts, read_completions
from jaxrl_lm.cli.label_import import read_labelled
from jaxrl_lm.cli.label_settings import ExportConfig, ImportConfig, ServeConfig, StatsConfig
from jaxrl_lm.cli.label_tables import print_statistics
from jaxrl_lm.errors import InputError
from jaxrl_lm.feedback import Mode
from jaxrl_lm.feedback.server import listen
from jaxrl_lm.training.reward_model.labels import load_named_tokenizer

_NUM_SHOWN = 5


@contextmanager
def database_errors_in_words() -> Iterator[None]:
    """Turn database errors, such as a full disk, into InputErrors with a remedy."""
    try:
        yield
    except DBAPIError as error:
        raise InputError(f"labels: {feedback.describe_error(error)}") from error


@database_errors_in_words()
def run_serve(config: ServeConfig) -> None:
    """Generate or read completions, and serve the page until Ctrl-C."""
    serve_labels(config)


def serve_labels(config: ServeConfig) -> int | None:
    """Generate or read completions, and serve the page until a signal or, with `end_when_done`, the last label.

    Returns:
        the number of the signal, Ctrl-C or SIGTERM, that stopped it; None after the last label.
    """
    console = Console(file=sys.stdout)
    rows = None if config.completions is None else read_completions(config.completions, config.prompt_column)
    found = None if rows is None else feedback.make_items(rows, config.mode, pairs=config.pairs)
    is_new_allowed = bool(config.policy or config.completions)
    with (
        listen(config.port) as listener,
        _opened(config.out, config.database, is_new_allowed=is_new_allowed) as engine,
        feedback.lock_server(engine) as check_lock,
    ):
        if config.policy is not None:
            found = feedback.make_items(_complete(config, config.policy), config.mode, pairs=config.pairs)
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


@database_errors_in_words()
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


@database_errors_in_words()
def run_import(config: ImportConfig) -> None:
    """Add the labels of a file, and report how many are new."""
    tokenizer = None if config.tokenizer is None else load_named_tokenizer("tokenizer", config.tokenizer)
    labelled = read_labelled(config.source, config.mode, annotator=config.annotator, tokenizer=tokenizer)
    with _opened(config.labels, config.database, is_new_allowed=True) as engine:
        counts = feedback.import_labels(engine, labelled)
    text = f"{counts.num_added} labels added, {counts.num_repeated} already there"
    if counts.num_contradicting:
        who = config.annotator or "the same annotator"
        text += f", {counts.num_contradicting} contradict earlier labels of {who} and were left out"
    print_text(text, soft_wrap=True)


@database_errors_in_words()
def run_stats(config: StatsConfig) -> None:
    """Print the statistics of every mode."""
    with _opened(config.labels, config.database, is_new_allowed=False) as engine:
        for mode in feedback.list_modes(engine):
            overlap = feedback.kept_overlap(engine, mode)
            print_statistics(feedback.compute_statistics(engine, mode), overlap=overlap)


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


def _complete(config: ServeConfig, policy: str) -> list[feedback.CompletedPrompt]:
    folder = Path(config.out or "") / "answers"
    return complete_prompts(policy, config.prompts or "", config.prompt_column, config.mode, config.answering, folder)


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
