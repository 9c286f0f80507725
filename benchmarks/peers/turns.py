"""A peer's side of a paired measurement: it waits for its turn, runs once, and says how long that took.

Both sides talk by lines: the benchmark writes one to give the turn, the peer answers `seconds NUMBER`, or `done JSON`
with its versions when its input ends. Needs only the standard library, for peers run in interpreters of their own.
"""

import json
import sys
import time


def wait_for_turn() -> bool:
    """Whether there is another turn; returns when it comes."""
    return bool(sys.stdin.readline())


def report(start: float) -> None:
    """Say how long ago `start`, a reading of `time.perf_counter`, was."""
    print(f"\nseconds {time.perf_counter() - start}", flush=True)


def finish(versions: dict[str, str]) -> None:
    """Name the packages that were measured."""
    print(f"\ndone {json.dumps(versions)}", flush=True)
