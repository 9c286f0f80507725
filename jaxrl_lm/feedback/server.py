"""The label page's server, on this machine only."""

import asyncio
import errno
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import uvicorn
from sqlalchemy.exc import DBAPIError
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from jaxrl_lm.errors import InputError
from jaxrl_lm.feedback import security
from jaxrl_lm.feedback.app import make_app
from jaxrl_lm.feedback.store import LabelStore

ADDRESS = "127.0.0.1"
END_SECONDS = 6.0
"""Delay between the last label and the server's end, so that the label can be undone and pages can poll again."""
_POLL_SECONDS = 0.5
LOCK_CHECK_SECONDS = 3.0
_SHUTDOWN_SECONDS = 5
"""Time for requests in progress to finish after a signal; Docker kills after 10 s."""


def serve(
    store: LabelStore,
    listener: socket.socket,
    *,
    hosts: Sequence[str] = (),
    is_ended_when_done: bool = False,
    end_seconds: float = END_SECONDS,
    check_lock: Callable[[], None] = lambda: None,
    announce: Callable[[str], None],
) -> None:
    """Serve the page until Ctrl-C or SIGTERM, until all items are labelled, or until the database lock is lost.

    Args:
        store: the items to label; the caller holds `lock_server` of its database.
        listener: from `listen`.
        hosts: extra host names under which browsers may reach the page, such as that of an HTTPS proxy.
        is_ended_when_done: stop once every item has its labels, or was skipped and is not being labelled.
        end_seconds: how long that must hold before the server stops.
        check_lock: the check from `lock_server`; called every few seconds.
        announce: called with the page's address, including the token, once the page can be opened.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM (with the signal's number), after requests in progress have finished.
        InputError: the lock was lost.
    """
    token = secrets.token_urlsafe(32)
    app = make_app(store, token, hosts=hosts, is_ended_when_done=is_ended_when_done)
    server = make_server(app)
    # Browsers do not send what follows '#', so the token appears in no log or Referer header.
    announce(f"http://{ADDRESS}:{listener.getsockname()[1]}/#token={token}")
    with _signals_as_interrupts(), _stopping_when_lost(server, check_lock):
        asyncio.run(_run(server, listener, store if is_ended_when_done else None, end_seconds))


def make_server(app: ASGIApp) -> uvicorn.Server:
    """The HTTP server of an application, not yet running."""
    config = uvicorn.Config(
        app,
        http=_TimedProtocol,
        ws="none",
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
    )
    return uvicorn.Server(config)


def listen(port: int) -> socket.socket:
    """Bind a port of this machine, so that it is reserved while completions are generated.

    Args:
        port: 0 for any free port.

    Raises:
        InputError: the port is in use or invalid.
    """
    if not 0 <= port < 2**16:
        raise InputError(f"port={port} must be 0 to 65535")
    try:
        return socket.create_server((ADDRESS, port))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise InputError(f"port={port} is in use; choose another --port, or 0 for any free port") from error
        raise InputError(f"port={port} cannot be opened ({error}); choose another --port") from error


class _TimedProtocol(H11Protocol):
    """Closes connections whose headers are not complete in time; `read_body` limits bodies.

    Each unfinished request holds a file descriptor, and uvicorn would wait for it forever.
    """

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._set_timer()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._set_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._cancel_timer()

    def _set_timer(self) -> None:
        """Run a timer from the first byte until the response starts."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._cancel_timer()
        elif self._timer is None:
            self._timer = self.loop.call_later(security.REQUEST_SECONDS, self.transport.close)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


@contextmanager
def _signals_as_interrupts() -> Iterator[None]:
    """Stop on Ctrl-C and SIGTERM alike.

    By default Python exits on SIGTERM at once without closing the database, and a shell's background process ignores
    SIGINT, which the server would catch and then lose.
    """

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def _stopping_when_lost(server: uvicorn.Server, check_lock: Callable[[], None]) -> Iterator[None]:
    """Check the database lock every few seconds; if it is lost, stop the server and raise the error."""
    is_over, lost = threading.Event(), list[InputError]()

    def watch() -> None:
        while not lost:
            try:
                check_lock()
            except InputError as error:
                lost.append(error)
                server.should_exit = True
            if is_over.wait(LOCK_CHECK_SECONDS):
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        is_over.set()
        watcher.join(LOCK_CHECK_SECONDS)
    if lost:
        raise lost[0]


async def _run(server: uvicorn.Server, listener: socket.socket, watched: LabelStore | None, end_seconds: float) -> None:
    async def stop_when_over(store: LabelStore) -> None:
        await _until_over(store, end_seconds)
        server.should_exit = True

    watcher = None if watched is None else asyncio.create_task(stop_when_over(watched))
    try:
        await server.serve(sockets=[listener])
    finally:
        if watcher is not None:
            watcher.cancel()


async def _until_over(store: LabelStore, end_seconds: float) -> None:
    """Wait until nothing has been left to label for `end_seconds` without interruption."""
    since: float | None = None
    while True:
        now = time.monotonic()
        since = (since or now) if await asyncio.to_thread(_is_over, store) else None
        if since is not None and now - since >= end_seconds:
            return
        await asyncio.sleep(min(_POLL_SECONDS, end_seconds or _POLL_SECONDS))


def _is_over(store: LabelStore) -> bool:
    try:
        return store.is_over()
    except DBAPIError:  # such as a busy database; requests report it, and the next check may succeed
        return False
