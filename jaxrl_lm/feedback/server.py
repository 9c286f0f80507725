"""The server of the label page, on this machine only."""

import asyncio
import errno
import secrets
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import uvicorn

from jaxrl_lm.errors import InputError
from jaxrl_lm.feedback.app import make_app
from jaxrl_lm.feedback.store import LabelStore

ADDRESS = "127.0.0.1"
LOCK_CHECK_SECONDS = 3.0


def serve(
    store: LabelStore,
    listener: socket.socket,
    *,
    hosts: Sequence[str] = (),
    is_ended_when_done: bool = False,
    check_lock: Callable[[], None] = lambda: None,
    announce: Callable[[str], None],
) -> None:
    """Serve the page until Ctrl-C, until all is labelled, or until the lock of the database is lost.

    Args:
        store: what is labelled; hold `lock_server` of its database meanwhile.
        listener: from `listen`.
        hosts: names besides the local ones under which browsers may reach it, such as that of an HTTPS proxy.
        is_ended_when_done: stop once every item has its labels.
        check_lock: what `lock_server` gave; asked every few seconds.
        announce: called with the page's address, token and all, when it can be opened.

    Raises:
        KeyboardInterrupt: Ctrl-C, after requests under way were answered.
        InputError: the lock was lost.
    """
    token = secrets.token_urlsafe(32)
    app = make_app(store, token, hosts=hosts)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", server_header=False, ws="none"))
    # The token is behind '#': browsers do not send it, so it stands in no log and no Referer.
    announce(f"http://{ADDRESS}:{listener.getsockname()[1]}/#token={token}")
    with _stopping_when_lost(server, check_lock):
        asyncio.run(_run(server, listener, store if is_ended_when_done else None))


def listen(port: int) -> socket.socket:
    """Take a port of this machine, so that nobody else can while the answers are made.

    Args:
        port: 0 for any that is free.

    Raises:
        InputError: the port is in use, or no port.
    """
    if not 0 <= port < 2**16:
        raise InputError(f"port={port} must be 0 to 65535")
    try:
        return socket.create_server((ADDRESS, port))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise InputError(f"port={port} is in use; give another --port, or 0 for any that is free") from error
        raise InputError(f"port={port} cannot be listened on ({error}); give another --port") from error


@contextmanager
def _stopping_when_lost(server: uvicorn.Server, check_lock: Callable[[], None]) -> Iterator[None]:
    """Ask every few seconds whether the database is still this server's; if not, stop it and say why."""
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


async def _run(server: uvicorn.Server, listener: socket.socket, watched: LabelStore | None) -> None:
    async def stop_when_done(store: LabelStore) -> None:
        while not await asyncio.to_thread(store.is_done):
            await asyncio.sleep(0.5)
        server.should_exit = True

    watcher = None if watched is None else asyncio.create_task(stop_when_done(watched))
    try:
        await server.serve(sockets=[listener])
    finally:
        if watcher is not None:
            watcher.cancel()
