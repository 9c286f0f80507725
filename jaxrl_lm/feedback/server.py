"""The server of the label page, on this machine only."""

import asyncio
import errno
import secrets
import socket
from collections.abc import Callable, Sequence

import uvicorn

from jaxrl_lm.errors import InputError
from jaxrl_lm.feedback.app import make_app
from jaxrl_lm.feedback.store import LabelStore

ADDRESS = "127.0.0.1"


def serve(
    store: LabelStore,
    listener: socket.socket,
    *,
    hosts: Sequence[str] = (),
    is_ended_when_done: bool = False,
    announce: Callable[[str], None],
) -> None:
    """Serve the page until Ctrl-C, or until nothing is left to label.

    Args:
        store: what is labelled; hold `lock_server` of its database meanwhile.
        listener: from `listen`.
        hosts: names besides the local ones under which browsers may reach it, such as that of an HTTPS proxy.
        is_ended_when_done: stop once every item has its labels, or was skipped and nobody is at it.
        announce: called with the page's address, token and all, when it can be opened.

    Raises:
        KeyboardInterrupt: Ctrl-C, after requests under way were answered.
    """
    token = secrets.token_urlsafe(32)
    app = make_app(store, token, hosts=hosts)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", server_header=False, ws="none"))
    # The token is behind '#': browsers do not send it, so it stands in no log and no Referer.
    announce(f"http://{ADDRESS}:{listener.getsockname()[1]}/#token={token}")
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


async def _run(server: uvicorn.Server, listener: socket.socket, watched: LabelStore | None) -> None:
    async def stop_when_done(store: LabelStore) -> None:
        while not await asyncio.to_thread(store.is_over):
            await asyncio.sleep(0.5)
        server.should_exit = True

    watcher = None if watched is None else asyncio.create_task(stop_when_done(watched))
    try:
        await server.serve(sockets=[listener])
    finally:
        if watcher is not None:
            watcher.cancel()
