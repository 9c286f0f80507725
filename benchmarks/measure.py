"""Peers in alternation with ours, and what the scripts have in common; timing itself is `jaxrl_lm.benchmarking`."""

import json
import statistics
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, NullFormatter

from jaxrl_lm.benchmarking.timing import seconds_of, summary

RESULTS = Path("runs/benchmarks")
"""Default output folder, so that a trial does not overwrite committed results."""


class Peer:
    """A peer program in its own interpreter that runs in alternation (see peers/turns.py)."""

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def turn(self) -> float:
        """Seconds of one run."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._answer("seconds "))

    def finish(self) -> dict[str, str]:
        """Stop the program and return the versions measured."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        versions = json.loads(self._answer("done "))
        self._process.wait()
        return versions

    def _answer(self, prefix: str) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(prefix):
                return line.removeprefix(prefix)
        raise RuntimeError(f"the peer ended with code {self._process.wait()} before it responded; see its output")


def timed_against(peer: Peer, call: Callable[[], Any], *, repeats: int) -> dict[str, Any]:
    """Seconds of a warmed-up call and peer in alternation, because a machine's speed drifts.

    Returns:
        the seconds of both, and `speedup`, the median ratio of adjacent turns.
    """
    ours, theirs = [], []
    peer.turn()
    for _ in range(repeats):
        theirs.append(peer.turn())
        ours.append(seconds_of(call))
    ratios = [other / own for own, other in zip(ours, theirs, strict=True)]
    return {
        "seconds": summary(ours),
        "peer_seconds": summary(theirs),
        "speedup": statistics.median(ratios),
        "peer_versions": peer.finish(),
    }


def write_results(path: Path, results: dict[str, Any]) -> None:
    """Write a benchmark's results as JSON and print the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n")
    print(f"written: {path}")


def make_plain(axis: Axis) -> None:
    """Label the ticks of a linear or logarithmic axis with plain numbers such as 0.1, 64 and 8,192."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axis.set_minor_formatter(NullFormatter())
