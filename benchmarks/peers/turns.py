"""The peer's side of a paired measurement: wait for a turn, run once, report the time.

The protocol is line-based: the benchmark writes a line per turn, and the peer replies `seconds NUMBER`, or `done JSON`
with its versions at the end of input. Uses only the standard library, because peers run in their own interpreters.
"""

import json
import sys
import time


def wait_for_turn() -> bool:
    """Wait for the next turn; False if there is none."""
    return bool(sys.stdin.readline())


def report(start: float) -> None:
    """Report the seconds since `start`, a reading of `time.perf_counter`."""
    print(f"\nseconds {time.perf_counter() - start}", flush=True)


def finish(versions: dict[str, str]) -> None:
    """Report the versions of the packages measured."""
    print(f"\ndone {json.dumps(versions)}", flush=True)
