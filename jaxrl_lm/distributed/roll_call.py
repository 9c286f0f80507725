"""The processes of a run find each other before JAX connects them.

JAX ends the process where another one is missing. Here process 0 waits for the others on the coordinator's address, and
where some do not come in time, all that came are told which.
"""

import json
import socket
import time
from contextlib import closing, suppress

from jaxrl_lm.errors import InputError

_PAUSE = 0.2  # seconds between attempts to connect


def call_roll(address: str, num_processes: int, process_id: int, timeout: float) -> None:
    """Return when all processes have called this; the address is free again afterwards.

    Args:
        address: HOST:PORT of process 0.
        num_processes: how many there are.
        process_id: number of this one.
        timeout: seconds to wait.

    Raises:
        InputError: processes are missing, or the address cannot be used.
    """
    host, _, port = address.rpartition(":")
    if not (host and port.isdigit() and 0 < int(port) < 2**16):
        raise InputError(f"hosts.coordinator={address!r} must be HOST:PORT of process 0, such as 10.0.0.1:9876")
    deadline = time.monotonic() + timeout
    if process_id == 0:
        missing = _gather(int(port), address, num_processes, deadline)
    else:
        missing = _report((host, int(port)), process_id, deadline)
    if missing:
        raise InputError(
            f"hosts: process {', '.join(map(str, missing))} of {num_processes} did not reach {address} within "
            f"{timeout:.0f} s; start it with the same command and its own --hosts.process-id, or raise --hosts.timeout"
        )


def _gather(port: int, address: str, num_processes: int, deadline: float) -> list[int]:
    """Wait for the others, tell them who is missing, and return the same."""
    try:
        server = socket.create_server(("", port))
    except OSError as error:
        raise InputError(f"hosts.coordinator={address!r} cannot be used ({error}); choose another port") from None
    found: dict[int, socket.socket] = {}
    with closing(server):
        while len(found) < num_processes - 1 and (left := deadline - time.monotonic()) > 0:
            server.settimeout(left)
            with suppress(OSError, ValueError):  # a timeout, or a stranger
                connection, _ = server.accept()
                connection.settimeout(max(0.1, deadline - time.monotonic()))
                number = int(connection.makefile().readline())
                if 0 < number < num_processes:
                    found[number] = connection
        missing = sorted(set(range(1, num_processes)) - set(found))
        for connection in found.values():
            with suppress(OSError), closing(connection):
                connection.sendall(json.dumps(missing).encode() + b"\n")
    return missing


def _report(address: tuple[str, int], process_id: int, deadline: float) -> list[int]:
    """Tell process 0 that this one is here, and return the missing ones."""
    while (left := deadline - time.monotonic()) > 0:
        with suppress(OSError, ValueError), closing(socket.create_connection(address, timeout=left)) as connection:
            connection.sendall(f"{process_id}\n".encode())
            connection.settimeout(left + 1)
            return json.loads(connection.makefile().readline())
        time.sleep(_PAUSE)
    return [0]
