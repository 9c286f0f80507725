"""The database of labels: opening it, one server at a time, and its errors in words."""

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from sqlalchemy import Connection, Engine, create_engine, delete, event, exc, insert, inspect, select, text
from sqlalchemy.engine import URL, make_url

from jaxrl_lm.errors import InputError
from jaxrl_lm.feedback.schema import VERSION, metadata, settings

_VERSION_NAME = "version"
_OVERLAP_NAME = "overlap"
_READING = "is_reading"
_MYSQL_LOCK = "concat('jaxrl_lm_label_', left(sha2(database(), 256), 40))"
"""The locks of MySQL are the server's, not the database's, and their names have at most 64 characters."""
_LOCK_NUMBER = 0x6A61785F6C6D
_DATABASE_LOCKS = {
    "postgresql": text(f"select pg_try_advisory_lock({_LOCK_NUMBER})"),
    "mysql": text(f"select get_lock({_MYSQL_LOCK}, 0)"),
    "mariadb": text(f"select get_lock({_MYSQL_LOCK}, 0)"),
}
"""Locks that a database holds for a connection and gives up when it ends, however it ends."""
_HOLDS_LOCK = {
    "postgresql": text(
        "select exists (select 1 from pg_locks where locktype = 'advisory' and granted and pid = pg_backend_pid() "
        f"and classid = {_LOCK_NUMBER >> 32} and objid = {_LOCK_NUMBER & 0xFFFFFFFF} and objsubid = 1)"
    ),
    "mysql": text(f"select is_used_lock({_MYSQL_LOCK}) = connection_id()"),
    "mariadb": text(f"select is_used_lock({_MYSQL_LOCK}) = connection_id()"),
}
"""Whether the connection still holds it; behind a pooler of connections the next statement may be another's."""

_CODES: dict[str, set[int | str]] = {
    "locked": {
        *(f"sqlite {code}" for code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)),
        *("55P03", "40P01", "40001"),  # lock not available, deadlock, serialization
        *(1205, 1213),  # lock wait timeout, deadlock
    },
    "full": {f"sqlite {sqlite3.SQLITE_FULL}", "53100", 1021, 1114},
    "closed": {
        *(f"sqlite {code}" for code in (sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN)),
        *("25006", "42501"),  # read-only transaction, insufficient privilege
        *(1044, 1142, 1290, 1836),  # access to database or table denied, read-only server
    },
    "broken": {f"sqlite {code}" for code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)},
}
"""What the codes of SQLite, SQLSTATE (texts) and MySQL (numbers) mean."""


def open_database(url: str, *, is_new_allowed: bool, busy_seconds: float = 5.0) -> Engine:
    """Open a database of labels, and make its tables where they are missing.

    SQLite keeps a write-ahead log and syncs it at every commit, and so does PostgreSQL even where its settings let
    commits return earlier: what was committed survives a kill.

    Args:
        url: any SQLAlchemy URL of SQLite, PostgreSQL, MySQL or MariaDB.
        is_new_allowed: whether it may be empty, or for SQLite not there yet.
        busy_seconds: how long SQLite waits for another program that writes.

    Raises:
        InputError: the URL, its driver or the database is not what it must be.
    """
    parsed = _parse(url, is_new_allowed=is_new_allowed)
    try:
        if parsed.get_backend_name() == "sqlite":
            engine = create_engine(parsed, connect_args={"timeout": busy_seconds})
            _prepare_sqlite(engine)
        else:
            engine = create_engine(parsed, pool_pre_ping=True)
            if parsed.get_backend_name() == "postgresql":
                _prepare_postgresql(engine)
    except (ImportError, exc.SQLAlchemyError) as error:
        raise InputError(f"database={_shown(parsed)!r} needs a driver that is missing ({error}); install it") from error
    try:
        _prepare_tables(engine, is_new_allowed=is_new_allowed)
    except exc.DBAPIError as error:
        engine.dispose()
        raise InputError(f"database={_shown(parsed)!r}: {describe_error(error)}") from error
    except InputError:
        engine.dispose()
        raise
    return engine


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A transaction that only reads, so that it does not wait for those that write."""
    with engine.connect().execution_options(**{_READING: True}) as connection:
        yield connection


def lock_server(engine: Engine) -> AbstractContextManager[Callable[[], None]]:
    """Hold the database for one server; a process that ends, even killed, gives it up.

    Returns:
        a context that gives a check, for `serve`: it raises InputError once the lock is lost, as on PostgreSQL and
        MySQL with the connection that holds it; asking keeps that connection from being closed as idle.

    Raises:
        InputError: another server holds it.
    """
    return _file_lock(engine.url) if engine.dialect.name == "sqlite" else _connection_lock(engine)


def keep_overlap(engine: Engine, mode: str, overlap: int) -> None:
    """Remember how many people label an item of a mode, for statistics that are asked for without the server."""
    name = f"{_OVERLAP_NAME} {mode}"
    with engine.begin() as connection:
        connection.execute(delete(settings).where(settings.c.name == name))
        connection.execute(insert(settings).values(name=name, value=str(overlap)))


def kept_overlap(engine: Engine, mode: str) -> int:
    """How many people label an item of a mode, as the last server had it; 1 where there was none."""
    with reading(engine) as connection:
        value = connection.scalar(select(settings.c.value).where(settings.c.name == f"{_OVERLAP_NAME} {mode}"))
    return 1 if value is None else int(value)


def describe_error(error: exc.DBAPIError) -> str:
    """Say what a database error means and what to do, by its code: the driver's words may quote a URL or a path."""
    cause = str(error.orig)
    kind = next((kind for kind, codes in _CODES.items() if _code_of(error.orig) in codes), None)
    if kind == "locked":
        return "the database is locked by another program; close that program, then try again"
    if kind == "full":
        return "the database or its disk is full; make room, then try again"
    if kind == "closed":
        return f"the database cannot be opened for writing ({cause}); check the path and its permissions"
    if kind == "broken":
        return f"the file is no intact SQLite database ({cause}); name another file, or restore it from a copy"
    return f"the database refuses ({cause}); check that it runs and that its URL is right"


def _code_of(error: BaseException | None) -> int | str | None:
    """SQLite's primary result code, the SQLSTATE of PostgreSQL, or MySQL's number; None where there is none."""
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", None)
        return None if code is None else f"sqlite {code & 0xFF}"
    state = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
    if state is None and error is not None and error.args:
        first = error.args[0]
        state = first.get("C") if isinstance(first, dict) else first  # of pg8000; of MySQL's drivers
    return state if isinstance(state, int | str) else None


def _parse(url: str, *, is_new_allowed: bool) -> URL:
    try:
        parsed = make_url(url)
    except (exc.ArgumentError, ValueError):  # ValueError of a port that is no number
        raise InputError(
            f"database={_shown_beginning(url)!r} is no SQLAlchemy URL; write one such as sqlite:///labels.sqlite, or "
            "postgresql+psycopg://user@host:5432/name"
        ) from None  # which may quote a password
    kind = parsed.get_backend_name()
    if kind == "sqlite":
        _check_file(parsed, is_new_allowed=is_new_allowed)
    elif kind not in _DATABASE_LOCKS:
        raise InputError(f"database={_shown(parsed)!r}: {kind} is not known; use SQLite, PostgreSQL or MySQL")
    return parsed


def _check_file(url: URL, *, is_new_allowed: bool) -> None:
    shown = _shown(url)
    if url.host or url.username or url.password:
        raise InputError(f"database={shown!r} names a host, and SQLite has none; write three slashes before the file")
    if not url.database or url.database == ":memory:":
        raise InputError(f"database={shown!r} names no file; labels in memory would be lost: sqlite:///labels.sqlite")
    if url.query:
        options = ", ".join(url.query)
        raise InputError(f"database={shown!r} has options of SQLite, {options}; leave out the '?' and what follows it")
    file = Path(url.database)
    if not is_new_allowed and not file.is_file():
        raise InputError(f"database={shown!r}: there is no file {str(file)!r}; `jaxrl-lm label` makes it")
    if not file.parent.is_dir():
        raise InputError(f"database={shown!r}: there is no folder {str(file.parent)!r}; make it first")


def _shown(url: URL) -> str:
    """The URL without its password, which may stand among the options too."""
    return url.set(query={}).render_as_string(hide_password=True)


def _shown_beginning(url: str) -> str:
    """The part of an unreadable URL that holds no password, wherever it is meant to stand."""
    if not set(url) & set(":@?"):
        return url
    kind, colon, _ = url.partition(":")
    return f"{kind}:..." if colon and not set(kind) & set("@?") else "..."


def _prepare_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def set_up(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # the driver would begin by itself, and too late
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A writer takes the lock at once: a reader that turns writer midway could deadlock.
        is_reading = connection.get_execution_options().get(_READING, False)
        connection.exec_driver_sql("BEGIN" if is_reading else "BEGIN IMMEDIATE")


def _prepare_postgresql(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def set_up(connection: Any, record: Any) -> None:
        # "off" would confirm labels that a crash then loses; the other values wait for the disk, or for more.
        name = "'synchronous_commit'"
        cursor = connection.cursor()
        cursor.execute(f"select set_config({name}, 'on', false) where current_setting({name}) = 'off'")
        cursor.close()
        connection.commit()  # or the next rollback takes it back


def _prepare_tables(engine: Engine, *, is_new_allowed: bool) -> None:
    with reading(engine) as connection:
        names = inspect(connection).get_table_names()
    if settings.name not in names:
        if not is_new_allowed:
            raise InputError(f"database={_shown(engine.url)!r} holds no labels; `jaxrl-lm label` makes its tables")
        if set(names) & set(metadata.tables):
            raise InputError(f"database={_shown(engine.url)!r} holds tables of another program; name another")
        with engine.begin() as connection:
            metadata.create_all(connection)
            connection.execute(insert(settings).values(name=_VERSION_NAME, value=VERSION))
        return
    with reading(engine) as connection:
        version = connection.scalar(select(settings.c.value).where(settings.c.name == _VERSION_NAME))
    if version != VERSION:
        raise InputError(
            f"database={_shown(engine.url)!r} was made by another version ({version}, this is {VERSION}); "
            "export its labels with that version, and import them here"
        )


@contextmanager
def _file_lock(url: URL) -> Iterator[Callable[[], None]]:
    path = os.path.realpath(str(url.database)) + ".lock"  # through a symbolic link too, the file is the same
    lock = FileLock(path, blocking=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise InputError(f"database={_shown(url)!r}: another label server uses it; stop that one first") from error
    except OSError as error:
        raise InputError(
            f"database={_shown(url)!r}: its lock file {path!r} cannot be opened ({error.strerror}); give yourself the "
            "permission to write it, or remove it while no label server runs"
        ) from error
    try:
        yield lambda: None  # lives as long as the process
    finally:
        lock.release()


@contextmanager
def _connection_lock(engine: Engine) -> Iterator[Callable[[], None]]:
    shown, dialect = _shown(engine.url), engine.dialect.name

    def check() -> None:
        try:
            is_held = bool(connection.scalar(_HOLDS_LOCK[dialect]))
        except exc.DBAPIError:
            is_held = False
        if not is_held:
            raise InputError(
                f"database={shown!r}: the connection that held it for this server has ended, and another server may "
                "have it by now; the labels are kept, and the same command goes on"
            )

    # Closed and not pooled again, because the lock lives as long as the connection.
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if not connection.scalar(_DATABASE_LOCKS[dialect]):
            raise InputError(f"database={shown!r}: another label server uses it; stop that one first")
        try:
            yield check
        finally:
            connection.invalidate()
