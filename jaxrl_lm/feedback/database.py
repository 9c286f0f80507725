"""The label database: opening it, one server at a time, and readable errors."""

import os
import re
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
"""MySQL locks belong to the server, not the database; names have at most 64 characters."""
_LOCK_NUMBER = 0x6A61785F6C6D
_DATABASE_LOCKS = {
    "postgresql": text(f"select pg_try_advisory_lock({_LOCK_NUMBER})"),
    "mysql": text(f"select get_lock({_MYSQL_LOCK}, 0)"),
    "mariadb": text(f"select get_lock({_MYSQL_LOCK}, 0)"),
}
"""Locks tied to a connection, released however it ends."""
_HOLDS_LOCK = {
    "postgresql": text(
        "select exists (select 1 from pg_locks where locktype = 'advisory' and granted and pid = pg_backend_pid() "
        f"and classid = {_LOCK_NUMBER >> 32} and objid = {_LOCK_NUMBER & 0xFFFFFFFF} and objsubid = 1)"
    ),
    "mysql": text(f"select is_used_lock({_MYSQL_LOCK}) = connection_id()"),
    "mariadb": text(f"select is_used_lock({_MYSQL_LOCK}) = connection_id()"),
}
"""Whether this connection still holds the lock; a connection pooler may route the next statement elsewhere."""

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
"""Meaning of the error codes of SQLite, SQLSTATE (strings) and MySQL (numbers)."""


def open_database(url: str, *, is_new_allowed: bool, busy_seconds: float = 5.0) -> Engine:
    """Open a label database and create missing tables.

    SQLite uses a write-ahead log synced at every commit. PostgreSQL does too, even where its settings let commits
    return earlier. Committed labels survive a kill.

    Args:
        url: any SQLAlchemy URL of SQLite, PostgreSQL, MySQL or MariaDB.
        is_new_allowed: whether the database may be empty, or for SQLite missing.
        busy_seconds: how long SQLite waits for another writer.

    Raises:
        InputError: the URL, its driver or the database is invalid.
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
        raise InputError(
            f"database={_shown(parsed)!r} needs a driver that is not installed ({error}); install it"
        ) from error
    try:
        _check_intact(engine)
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
    """A read-only transaction, which does not wait for writers.

    Raises:
        InputError: a text in the database is not UTF-8, or is not JSON where it must be.
    """
    with damage_in_words(engine), engine.connect().execution_options(**{_READING: True}) as connection:
        yield connection


@contextmanager
def damage_in_words(engine: Engine) -> Iterator[None]:
    """Turn the errors of decoding damaged texts into one that says so.

    Raises:
        InputError: a text in the database is not UTF-8, or is not JSON where it must be.
    """
    try:
        yield
    except InputError:
        raise
    except (ValueError, RecursionError) as error:  # of decoding; JSON may have thousands of digits or brackets
        raise InputError(f"database={_shown(engine.url)!r}: {_damaged(str(error))}") from error


def lock_server(engine: Engine) -> AbstractContextManager[Callable[[], None]]:
    """Lock the database for one server; the lock is released when the process ends, even if killed.

    Returns:
        a context that yields a check for `serve`. The check raises InputError once the lock is lost, which happens on
        PostgreSQL and MySQL with the connection that holds it. Calling it keeps that connection from idling out.

    Raises:
        InputError: another server holds it.
    """
    return _file_lock(engine.url) if engine.dialect.name == "sqlite" else _connection_lock(engine)


def keep_overlap(engine: Engine, mode: str, overlap: int) -> None:
    """Store the overlap of a mode, for statistics without the server."""
    name = f"{_OVERLAP_NAME} {mode}"
    with engine.begin() as connection:
        connection.execute(delete(settings).where(settings.c.name == name))
        connection.execute(insert(settings).values(name=name, value=str(overlap)))


def kept_overlap(engine: Engine, mode: str) -> int:
    """The overlap of a mode as the last server set it; 1 if no server has run.

    Raises:
        InputError: the database holds another value than a whole number.
    """
    name = f"{_OVERLAP_NAME} {mode}"
    with reading(engine) as connection:
        value = connection.scalar(select(settings.c.value).where(settings.c.name == name))
    if value is None:
        return 1
    if not (isinstance(value, str) and re.fullmatch("[1-9][0-9]{0,8}", value)):
        raise InputError(f"labels: {name}={value!r:.60} in the settings is invalid; restore a backup of the database")
    return int(value)


def describe_error(error: exc.DBAPIError) -> str:
    """Describe a database error and its remedy by its code; the driver's message may contain a URL or a path."""
    cause = str(error.orig)
    kind = next((kind for kind, codes in _CODES.items() if _code_of(error.orig) in codes), None)
    if kind == "locked":
        return "the database is locked by another program; close that program, then try again"
    if kind == "full":
        return "the database or its disk is full; free some space, then try again"
    if kind == "closed":
        return f"the database cannot be opened for writing ({cause}); check the path and its permissions"
    if kind == "broken":
        return _damaged(cause)
    return f"the database refused the request ({cause}); check that it is running and that its URL is right"


def _damaged(cause: str) -> str:
    return f"the file is not an intact SQLite database ({cause}); choose another file, or restore a backup"


def _check_intact(engine: Engine) -> None:
    """Refuse a SQLite file whose pages are damaged; reading rows would find only some of the damage."""
    if engine.dialect.name == "sqlite":
        with reading(engine) as connection:
            found = connection.execute(text("PRAGMA quick_check(1)")).scalar()
        if found != "ok":
            raise InputError(f"database={_shown(engine.url)!r}: {_damaged(str(found))}")


def _code_of(error: BaseException | None) -> int | str | None:
    """SQLite's primary result code, PostgreSQL's SQLSTATE or MySQL's error number; None if there is none."""
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", None)
        return None if code is None else f"sqlite {code & 0xFF}"
    state = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
    if state is None and error is not None and error.args:
        first = error.args[0]
        state = first.get("C") if isinstance(first, dict) else first  # pg8000; MySQL drivers
    return state if isinstance(state, int | str) else None


def _parse(url: str, *, is_new_allowed: bool) -> URL:
    try:
        parsed = make_url(url)
    except (exc.ArgumentError, ValueError):  # ValueError: the port is not a number
        raise InputError(
            f"database={_shown_beginning(url)!r} is not an SQLAlchemy URL; use one such as sqlite:///labels.sqlite or "
            "postgresql+psycopg://user@host:5432/name"
        ) from None  # the cause may contain a password
    kind = parsed.get_backend_name()
    if kind == "sqlite":
        _check_file(parsed, is_new_allowed=is_new_allowed)
    elif kind not in _DATABASE_LOCKS:
        raise InputError(f"database={_shown(parsed)!r}: {kind} is not supported; use SQLite, PostgreSQL or MySQL")
    return parsed


def _check_file(url: URL, *, is_new_allowed: bool) -> None:
    shown = _shown(url)
    if url.host or url.username or url.password:
        raise InputError(f"database={shown!r} names a host, but SQLite has none; write three slashes before the file")
    if not url.database or url.database == ":memory:":
        raise InputError(f"database={shown!r} names no file, so labels would be lost; use sqlite:///labels.sqlite")
    if url.query:
        options = ", ".join(url.query)
        raise InputError(f"database={shown!r} has SQLite options, {options}; remove the '?' and everything after it")
    file = Path(url.database)
    if not is_new_allowed and not file.is_file():
        raise InputError(f"database={shown!r}: file {str(file)!r} does not exist; `jaxrl-lm label` creates it")
    if not file.parent.is_dir():
        raise InputError(f"database={shown!r}: folder {str(file.parent)!r} does not exist; create it first")


def _shown(url: URL) -> str:
    """The URL without its password, which may also be among the options."""
    return url.set(query={}).render_as_string(hide_password=True)


def _shown_beginning(url: str) -> str:
    """The part of an unparseable URL that cannot contain the password."""
    if not set(url) & set(":@?"):
        return url
    kind, colon, _ = url.partition(":")
    return f"{kind}:..." if colon and not set(kind) & set("@?") else "..."


def _prepare_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def set_up(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # the driver would begin transactions itself, and too late
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # Writers lock at once: upgrading from reader to writer could deadlock.
        is_reading = connection.get_execution_options().get(_READING, False)
        connection.exec_driver_sql("BEGIN" if is_reading else "BEGIN IMMEDIATE")


def _prepare_postgresql(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def set_up(connection: Any, record: Any) -> None:
        # "off" would confirm labels that a crash can lose; all other values wait for the disk.
        name = "'synchronous_commit'"
        cursor = connection.cursor()
        cursor.execute(f"select set_config({name}, 'on', false) where current_setting({name}) = 'off'")
        cursor.close()
        connection.commit()  # or the next rollback reverts it


def _prepare_tables(engine: Engine, *, is_new_allowed: bool) -> None:
    with reading(engine) as connection:
        names = inspect(connection).get_table_names()
    if settings.name not in names:
        if not is_new_allowed:
            raise InputError(f"database={_shown(engine.url)!r} holds no labels; `jaxrl-lm label` creates its tables")
        if set(names) & set(metadata.tables):
            raise InputError(
                f"database={_shown(engine.url)!r} holds tables of another program; choose another database"
            )
        with engine.begin() as connection:
            metadata.create_all(connection)
            connection.execute(insert(settings).values(name=_VERSION_NAME, value=VERSION))
        return
    with reading(engine) as connection:
        version = connection.scalar(select(settings.c.value).where(settings.c.name == _VERSION_NAME))
    if version != VERSION:
        raise InputError(
            f"database={_shown(engine.url)!r} was made by another version ({version}, this is {VERSION}); "
            "export its labels with that version and import them here"
        )


@contextmanager
def _file_lock(url: URL) -> Iterator[Callable[[], None]]:
    path = os.path.realpath(str(url.database)) + ".lock"  # resolves symbolic links to the same file
    lock = FileLock(path, blocking=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise InputError(f"database={_shown(url)!r}: another label server is using it; stop that one first") from error
    except OSError as error:
        raise InputError(
            f"database={_shown(url)!r}: its lock file {path!r} cannot be opened ({error.strerror}); make it "
            "writable, or delete it while no label server is running"
        ) from error
    try:
        yield lambda: None  # held as long as the process
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
                f"database={shown!r}: the connection holding this server's lock has closed, and another server may be "
                "using the database; all labels are saved, run the same command again to continue"
            )

    # Closed instead of returned to the pool, because the lock lasts as long as the connection.
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if not connection.scalar(_DATABASE_LOCKS[dialect]):
            raise InputError(f"database={shown!r}: another label server is using it; stop that one first")
        try:
            yield check
        finally:
            connection.invalidate()
