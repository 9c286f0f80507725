"""On a PostgreSQL of the test's own: each item once, one server, a lost lock, commits that wait for the disk."""

import importlib.util
import os
import shutil
import subprocess
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, text

from jaxrl_lm import feedback
from jaxrl_lm.errors import InputError
from jaxrl_lm.feedback import LabelStore, server
from tests.feedback.conftest import numbered_items, skip_without

_FOLDER = Path(os.environ.get("JAXRL_LM_POSTGRESQL", "/usr/lib/postgresql"))
_NUMBERS = count()


def _programs() -> Path | None:
    """The folder of PostgreSQL's programs, the newest that is installed."""
    found = shutil.which("pg_ctl")
    folders = [*sorted(_FOLDER.glob("*/bin"), key=lambda path: float(path.parent.name))[::-1]]
    folders += [Path(found).resolve().parent] if found else []
    return next((folder for folder in folders if (folder / "initdb").exists() and (folder / "pg_ctl").exists()), None)


def _as_user() -> tuple[str, list[str]] | None:
    """A user that may run PostgreSQL, which refuses root, and the command's beginning that makes one it."""
    if os.getuid() != 0:
        return "", []
    for user in ("postgres", "nobody"):
        begin = ["runuser", "-u", user, "--"]
        if (
            shutil.which("runuser")
            and subprocess.run([*begin, "true"], capture_output=True, check=False).returncode == 0
        ):
            return user, begin
    return None


@pytest.fixture(scope="module")
def server_url() -> Iterator[str]:
    """URL of a PostgreSQL server behind a socket in a folder, less the database's name."""
    programs, allowed = _programs(), _as_user()
    if importlib.util.find_spec("psycopg") is None:
        skip_without("postgresql", "there is no driver of it; install psycopg[binary]")
    if programs is None:
        skip_without("postgresql", f"there is no initdb on the PATH or in {_FOLDER}; install Debian's postgresql")
    if allowed is None:
        skip_without("postgresql", "PostgreSQL refuses root, and runuser cannot become postgres or nobody")
    user, begin = allowed
    with tempfile.TemporaryDirectory(prefix="pg", dir="/tmp", ignore_cleanup_errors=True) as folder:
        if user:
            shutil.chown(folder, user)
        control = [*begin, str(programs / "pg_ctl"), "-D", f"{folder}/data", "-w"]
        initdb = [*begin, str(programs / "initdb"), "-D", f"{folder}/data", "-U", "postgres", "-A", "trust"]
        subprocess.run(initdb, check=True, capture_output=True, cwd=folder)
        options = f"-c listen_addresses= -c synchronous_commit=off -k {folder}"
        subprocess.run([*control, "-l", f"{folder}/log", "-o", options, "start"], check=True, cwd=folder)
        yield f"postgresql+psycopg://postgres@/%s?host={folder}"
        subprocess.run([*control, "-m", "immediate", "stop"], check=True, cwd=folder)


@pytest.fixture
def engines(server_url: str) -> Iterator[list[Engine]]:
    """Two ways into one new database, as two servers have."""
    name = f"labels{next(_NUMBERS)}"
    root = create_engine(server_url % "postgres", isolation_level="AUTOCOMMIT")
    with root.connect() as connection:
        connection.execute(text(f"create database {name}"))
    root.dispose()
    opened = [feedback.open_database(server_url % name, is_new_allowed=True) for _ in range(2)]
    yield opened
    for engine in opened:
        engine.dispose()


def end_connection_that_holds_the_lock(engine: Engine) -> None:
    of_it = "locktype = 'advisory' and database = (select oid from pg_database where datname = current_database())"
    with engine.connect() as connection:
        ended = connection.scalars(text(f"select pg_terminate_backend(pid) from pg_locks where {of_it}"))
        assert list(ended) == [True]


def test_threads_get_each_item_once(engines: list[Engine]) -> None:
    feedback.add_items(engines[0], numbered_items(24, "pairwise"))
    store = LabelStore(engines[0], mode="pairwise")
    handed: list[str] = []

    def label_items(name: str) -> None:
        annotator = store.find_annotator(name).id
        while (lease := store.next_lease(annotator)) is not None:
            handed.append(str(lease.prompt))
            store.label(annotator, lease.id, "0")

    threads = [threading.Thread(target=label_items, args=(f"person {place}",)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(handed) == {f"prompt {place}": 1 for place in range(24)}
    assert len(feedback.export_labels(engines[1], "pairwise").rows) == 24


def test_a_second_server_is_refused_until_the_first_ends(engines: list[Engine]) -> None:
    first, second = engines
    with feedback.lock_server(first) as check:
        with pytest.raises(InputError, match="another label server is using it"), feedback.lock_server(second):
            pass
        check()
    with feedback.lock_server(second):
        pass


def test_a_server_whose_lock_is_lost_stops_and_says_so(engines: list[Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "LOCK_CHECK_SECONDS", 0.1)
    first, second = engines
    feedback.add_items(first, numbered_items(1, "pairwise"))
    store = LabelStore(first, mode="pairwise")
    lost = pytest.raises(InputError, match="the connection holding this server's lock has closed")
    with feedback.listen(0) as listener, lost, feedback.lock_server(first) as check:
        check()
        feedback.serve(store, listener, check_lock=check, announce=lambda _: end_connection_that_holds_the_lock(second))
    with feedback.lock_server(second) as check:  # and nothing is left locked
        check()


def test_a_commit_waits_for_the_disk(engines: list[Engine]) -> None:
    for engine in engines:
        with engine.connect() as connection:
            connection.rollback()
            assert connection.scalar(text("show synchronous_commit")) == "on"
