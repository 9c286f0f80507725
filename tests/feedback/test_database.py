"""Opening databases, one server at a time, and errors in words."""

import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Engine, event
from sqlalchemy.exc import DBAPIError

from jaxrl_lm import feedback
from jaxrl_lm.errors import InputError
from jaxrl_lm.feedback import LabelledItem, LabelStore
from jaxrl_lm.feedback import database as database_module
from tests.feedback.conftest import numbered_items


def test_every_commit_is_synced(engine: Engine) -> None:
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", "database='nonsense' is not an SQLAlchemy URL"),
        ("postgresql://host:port/name", "database='postgresql:...' is not an SQLAlchemy URL"),
        ("postgresql://me:secret@host:port/name", "an SQLAlchemy URL"),
        ("postgres:/me:secret@host/name", "database='postgres:...' is not an SQLAlchemy URL"),
        ("secret@host", "an SQLAlchemy URL"),
        ("oracle://host/name?password=secret", "database='oracle://host/name'"),
        ("sqlite://me:secret@/labels.sqlite", "names a host"),
        ("sqlite:///labels.sqlite?timeout=30", "has SQLite options, timeout; remove"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("sqlite:////no/such/folder/labels.sqlite", "does not exist; create it first"),
        ("oracle://host/name", "oracle is not supported"),
        ("postgresql+pg8000://user:secret@host/name", "driver that is not installed"),
    ],
)
def test_urls_that_cannot_be_used(url: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        feedback.open_database(url, is_new_allowed=True)
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None or "secret" not in str(caught.value.__cause__)


def test_a_database_that_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        feedback.open_database(f"sqlite:///{tmp_path / 'labels.sqlite'}", is_new_allowed=False)
    assert list(tmp_path.iterdir()) == []
    sqlite3.connect(tmp_path / "empty.sqlite").execute("VACUUM")
    with pytest.raises(InputError, match="holds no labels"):
        feedback.open_database(f"sqlite:///{tmp_path / 'empty.sqlite'}", is_new_allowed=False)


def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "labels.sqlite"
    file.write_text("not a database " * 100)
    with pytest.raises(InputError, match="not an intact SQLite database"):
        feedback.open_database(f"sqlite:///{file}", is_new_allowed=True)
    assert file.read_text() == "not a database " * 100


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ('completions = \'["a", "b\'', "not an intact SQLite database .*Unterminated string"),
        ("mode = 'pairwisf'", "mode 'pairwisf' of an item is none of pairwise, thumbs, best-of-4"),
    ],
)
def test_rows_that_were_damaged_are_refused(damage: str, message: str, engine: Engine) -> None:
    feedback.add_items(engine, numbered_items(1, "pairwise"))
    with engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE items SET {damage}")
    with pytest.raises(InputError, match=message):
        [feedback.compute_statistics(engine, mode) for mode in feedback.list_modes(engine)]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("items SET prompt = '5'", "prompt=5 of item 1"),
        ("items SET completions = '5'", "completions=5 of item 1"),
        ("items SET completions = '[\"a\"]'", r"completions=\['a'\] of item 1"),
        ("items SET template = '[1]'", r"template=\[1\] of item 1"),
        ("items SET template = '\"x\"'", "template='x' of item 1"),
        ("labels SET verdict = 'x'", "verdict='x' of label 1"),
        ("labels SET verdict = '7'", "verdict='7' of label 1"),
        ("labels SET verdict = x'00'", "verdict=b'.*' of label 1"),
        ("labels SET shown_order = '[0, 0]'", r"shown_order=\[0, 0\] of label 1"),
        ("labels SET shown_order = '[]'", r"shown_order=\[\] of label 1"),
        ("labels SET seconds = 'soon'", "seconds='soon' of label 1"),
        ("labels SET created_at = 'now'", "created_at='now' of label 1"),
        ("annotators SET name = x'00'", "name=b'.*' of an annotator"),
        ("settings SET value = 'two' WHERE name = 'overlap pairwise'", "overlap pairwise='two' in the settings"),
        ("items SET completions = '[' || replace(hex(zeroblob(50000)), '0', '[')", "not an intact SQLite database"),
    ],
)
def test_values_that_no_label_program_writes_are_refused(damage: str, message: str, engine: Engine) -> None:
    (item,) = numbered_items(1, "pairwise")
    labelled = LabelledItem(item=item, verdict="1", seconds=2.0, shown_order=(1, 0))
    feedback.import_labels(engine, [labelled], name="ann")
    feedback.keep_overlap(engine, "pairwise", 2)
    with engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE {damage}")
    store = LabelStore(engine, mode="pairwise", overlap=9)
    said = []
    for read in (
        lambda: feedback.export_labels(engine, "pairwise"),
        lambda: feedback.export_verdicts(engine, "pairwise"),
        lambda: feedback.compute_statistics(engine, "pairwise"),
        lambda: feedback.kept_overlap(engine, "pairwise"),
        lambda: feedback.import_labels(engine, [labelled], name="bob"),
        lambda: store.next_lease(store.find_annotator("eve").id),
    ):
        try:
            read()
        except InputError as error:
            said.append(str(error))
    assert said
    assert all(re.search(message, each) for each in said), said


def test_an_item_whose_text_was_changed_gets_no_more_labels(engine: Engine) -> None:
    (item,) = numbered_items(1, "pairwise")
    feedback.import_labels(engine, [LabelledItem(item=item, verdict="1")], name="ann")
    with engine.begin() as connection:
        connection.exec_driver_sql('UPDATE items SET completions = \'["other", "texts"]\'')
    with pytest.raises(InputError, match="content_hash of item 1 is invalid; restore a backup"):
        feedback.import_labels(engine, [LabelledItem(item=item, verdict="1")], name="bob")


def test_damaged_pages_are_refused_when_the_database_is_opened(tmp_path: Path, engine: Engine) -> None:
    feedback.add_items(engine, numbered_items(500, "pairwise"))
    engine.dispose()
    file = tmp_path / "labels.sqlite"
    content = bytearray(file.read_bytes())
    content[-4096:] = b"\xff" * 4096
    file.write_bytes(content)
    with pytest.raises(InputError, match="not an intact SQLite database"):
        feedback.open_database(f"sqlite:///{file}", is_new_allowed=False)


def test_tables_of_other_programs_and_versions_are_refused(tmp_path: Path, database: str, engine: Engine) -> None:
    with sqlite3.connect(tmp_path / "other.sqlite") as connection:
        connection.execute("CREATE TABLE labels (x)")
    with pytest.raises(InputError, match="another program"):
        feedback.open_database(f"sqlite:///{tmp_path / 'other.sqlite'}", is_new_allowed=True)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE settings SET value = '0'")
    with pytest.raises(InputError, match="another version"):
        feedback.open_database(database, is_new_allowed=False)


def test_a_second_server_is_refused_until_the_first_ends(engine: Engine) -> None:
    refused = pytest.raises(InputError, match="another label server is using it")
    with feedback.lock_server(engine), refused, feedback.lock_server(engine):
        pass
    with feedback.lock_server(engine):
        pass


def test_a_second_server_through_a_symbolic_link_is_refused(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "link.sqlite").symlink_to(tmp_path / "labels.sqlite")
    linked = feedback.open_database(f"sqlite:///{tmp_path / 'elsewhere' / 'link.sqlite'}", is_new_allowed=False)
    refused = pytest.raises(InputError, match="another label server is using it")
    with feedback.lock_server(engine), refused, feedback.lock_server(linked):
        pass
    linked.dispose()


def test_a_lock_file_that_cannot_be_written_is_named(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "labels.sqlite.lock").mkdir()  # what fails for root too; a file of another's fails alike
    with pytest.raises(InputError, match="make it writable") as caught, feedback.lock_server(engine):
        pass
    assert str(tmp_path / "labels.sqlite.lock") in str(caught.value)


def test_an_error_while_the_lock_is_held_is_not_one_of_the_lock(engine: Engine) -> None:
    with pytest.raises(PermissionError, match="another file"), feedback.lock_server(engine):
        raise PermissionError("another file")
    with feedback.lock_server(engine):
        pass


def test_a_server_that_was_killed_holds_no_lock(engine: Engine, database: str) -> None:
    held = (
        "import sys, time; from jaxrl_lm import feedback as f\n"
        "with f.lock_server(f.open_database(sys.argv[1], is_new_allowed=False)):\n"
        "    print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", held, database], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(InputError, match="another label server"), feedback.lock_server(engine):
            pass
        process.kill()
        process.wait()
    with feedback.lock_server(engine):
        pass


def test_a_locked_database_says_so_and_takes_the_label_later(
    make_store: Callable[..., LabelStore], tmp_path: Path
) -> None:
    store = make_store()
    ann = store.find_annotator("ann").id
    lease = store.next_lease(ann)
    assert lease is not None
    other = sqlite3.connect(tmp_path / "labels.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(DBAPIError) as caught:
        store.label(ann, lease.id, "0")
    assert "locked by another program" in feedback.describe_error(caught.value)
    other.execute("ROLLBACK")
    assert store.label(ann, lease.id, "0")


def test_a_full_database_says_so_and_takes_nothing_by_halves(engine: Engine) -> None:
    @event.listens_for(engine, "begin")
    def allow_no_new_page(connection) -> None:
        connection.exec_driver_sql("PRAGMA max_page_count = 1")

    big = feedback.Item(mode="thumbs", prompt="p", completions=("x" * 10**6,))
    with pytest.raises(DBAPIError) as caught:
        feedback.add_items(engine, [*numbered_items(1, "thumbs"), big])
    assert "full" in feedback.describe_error(caught.value)
    event.remove(engine, "begin", allow_no_new_page)
    assert feedback.list_modes(engine) == []


def test_labels_can_be_read_while_another_program_writes(engine: Engine, database: str, tmp_path: Path) -> None:
    feedback.add_items(engine, numbered_items(1, "pairwise"))
    other = sqlite3.connect(tmp_path / "labels.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    reader = feedback.open_database(database, is_new_allowed=False, busy_seconds=0.1)
    assert feedback.compute_statistics(reader, "pairwise").num_items == 1
    reader.dispose()
    other.execute("ROLLBACK")


@pytest.mark.parametrize("kind", ["mysql", "mariadb"])
def test_the_servers_lock_of_mysql_is_of_one_database(kind: str) -> None:
    for statement in (database_module._DATABASE_LOCKS[kind], database_module._HOLDS_LOCK[kind]):
        assert "left(sha2(database(), 256), 40)" in str(statement)


class StateError(Exception):
    """As psycopg's."""

    sqlstate: str | None = None


@pytest.mark.parametrize(
    ("state", "arguments", "words"),
    [
        (None, ("failed to resolve host 'busyhost.full': locked, malformed",), "check that it is running"),
        ("53100", ("no room",), "is full"),
        ("55P03", ("wait",), "locked by another program"),
        ("25006", ("a replica",), "opened for writing"),
        (None, (1205, "wait"), "locked by another program"),  # MySQL
        (None, ({"C": "53100"},), "is full"),  # pg8000
    ],
)
def test_errors_are_told_apart_by_their_codes(state: str | None, arguments: tuple, words: str) -> None:
    cause = StateError(*arguments)
    cause.sqlstate = state
    assert words in feedback.describe_error(DBAPIError("select", None, cause))


def test_a_path_is_no_reason(tmp_path: Path) -> None:
    (tmp_path / "busy full").mkdir()
    connection = sqlite3.connect(tmp_path / "busy full" / "labels.sqlite")
    with pytest.raises(sqlite3.OperationalError) as caught:
        connection.execute("select * from [busy full]")
    assert "check that it is running" in feedback.describe_error(DBAPIError("select", None, caught.value))


def test_the_room_needs_no_jax() -> None:
    code = "import sys, jaxrl_lm.feedback; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
