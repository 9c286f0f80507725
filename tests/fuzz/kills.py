"""Kill every trainer at random file-system events, and resume: `python -m tests.fuzz.kills --num 50`.

After each kill the same command without --resume must start again, if no checkpoint had been written, or be refused in
clear words and change nothing. With --resume the run must end with the files of a run that was never stopped: the same
metrics, samples, checkpoints and weights bit for bit, and nothing half-written. The chain of RLHF has no --resume: the
same command continues it. Some runs meet a full disk instead: exit code 1, one clear error, and then the same.
"""

import os

from tests import quick_xla  # noqa: F401

# Compiled programs are shared by all processes.
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["EAGER_IMPORT"] = "1"  # lazy_loader's: everything is imported once, before the forks

import argparse
import gc
import json
import random
import shutil
import sys
import tempfile
import zlib
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import matplotlib.figure
import numpy as np

# A JAX backend does not survive a fork, and gymnax would start one: it makes an array when it is imported.
with patch("jax.numpy.array", np.array):
    import gymnax  # noqa: F401

from jaxrl_lm.cli.main import run
from tests.fuzz.file_events import Ended, Plan, run_forked
from tests.fuzz.tiny_trainers import CHAIN, COMMANDS, arguments, leftovers, outcome, write_inputs

_PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63606060000000040001"
    "f61738550000000049454e44ae426082"
)
_AGAIN = 0.5  # how often a run that continues is killed once more
_SAVING = ((1, 1), (2, 2))  # save_every, keep_checkpoints


@dataclass(frozen=True, kw_only=True)
class Case:
    """A trainer with its settings, and what it leaves when nothing happens.

    Attributes:
        name: of the trainer.
        args: its command line, without --resume.
        out: folder of the run.
        work: folder for what the harness keeps.
        files: the outcome of a run that was never stopped.
        num_events: its file-system events.
        seconds: how long it took.
    """

    name: str
    args: list[str]
    out: Path
    work: Path
    files: dict[str, Any]
    num_events: int
    seconds: float

    @property
    def resuming(self) -> list[str]:
        return self.args if self.name == CHAIN else [*self.args, "--resume"]

    def start(self, args: list[str], plan: Plan) -> Ended:
        return run_forked(partial(run, args), self.out, plan, self.work / "said.txt")


class Failed(AssertionError):
    """A run did not do what it must after a kill."""


def make_case(name: str, inputs: Path, work: Path, *, saving: tuple[int, int]) -> Case:
    """Run a trainer undisturbed.

    Raises:
        Failed: it does not end well.
    """
    out = work / "run"
    args = arguments(name, inputs, out, save_every=saving[0], keep=saving[1])
    case = Case(name=name, args=args, out=out, work=work, files={}, num_events=0, seconds=0.0)
    ended = case.start(args, Plan())
    _require(ended.code == 0, f"exit code {ended.code} undisturbed", ended)
    _require(not leftovers(out), f"left {leftovers(out)} undisturbed", ended)
    return replace(case, files=outcome(out), num_events=ended.num_events, seconds=ended.seconds)


def attempt(case: Case, rng: random.Random, plan: Plan, counts: Counter[str]) -> None:
    """Start a run, let the planned fault happen, perhaps kill what continues it, and check what can be done next.

    Raises:
        Failed: with what was wrong.
    """
    shutil.rmtree(case.out, ignore_errors=True)
    _check_first(case.start(case.args, plan), plan, counts)
    _without_resume(case, counts)
    while rng.random() < _AGAIN and case.out.exists():
        plan = draw_kill(case, rng)
        again = case.start(case.resuming, replace(plan, event=rng.randint(0, plan.event)))  # there are fewer events
        counts["kills" if again.is_killed else "ended before the kill"] += 1
        if not again.is_killed:
            _check_whole(case, again, "resumed")
            return
    if case.out.exists() or case.name == CHAIN:
        _check_whole(case, case.start(case.resuming, Plan()), "resumed")
        return
    refused = case.start(case.resuming, Plan())
    _require(refused.code == 2, "resumed nothing", refused)
    _check_words(refused)


def draw_kill(case: Case, rng: random.Random) -> Plan:
    """When to kill: before an event, shortly after one, or at any time."""
    kind = rng.choices(("kill before", "kill after", "kill at a time"), (5, 4, 1))[0]
    seconds = rng.uniform(0, case.seconds if kind == "kill at a time" else rng.choice((0.002, 0.05)))
    return Plan(fault=kind, event=rng.randrange(case.num_events), seconds=seconds)


def _check_first(ended: Ended, plan: Plan, counts: Counter[str]) -> None:
    if plan.fault == "full disk":
        counts["full disks"] += 1
        is_met = "is full" in ended.said
        _require(ended.code == (1 if is_met else 0), f"exit code {ended.code} on a full disk", ended)
        _check_words(ended)
        _require(ended.code == 0 or ended.said.count("jaxrl-lm: ") == 1, "more than one error", ended)
        return
    counts["kills" if ended.is_killed else "ended before the kill"] += 1
    _require(ended.is_killed or ended.code == 0, f"exit code {ended.code} at the start", ended)


def _without_resume(case: Case, counts: Counter[str]) -> None:
    """The same command again: refused without a change, or accepted and whole; the folder is then as before."""
    kept = case.work / "kept"
    shutil.rmtree(kept, ignore_errors=True)
    if case.name == CHAIN:
        return
    if not case.out.exists():
        counts["nothing was made"] += 1
        return
    shutil.copytree(case.out, kept)
    ended = case.start(case.args, Plan())
    if ended.code == 2:
        counts["refused without --resume"] += 1
        _check_words(ended)
        _require("--resume" in ended.said, "the refusal does not name --resume", ended)
        _require(_every_file(case.out) == _every_file(kept), "the refused command changed files", ended)
        return
    counts["started again"] += 1
    _check_whole(case, ended, "started again")
    shutil.rmtree(case.out)
    kept.rename(case.out)


def _check_whole(case: Case, ended: Ended, how: str) -> None:
    _require(ended.code == 0, f"exit code {ended.code} when {how}", ended)
    _check_words(ended)
    differences = _differences(case.files, outcome(case.out))
    _require(not differences, f"{how}: {differences} are not those of a run that was never stopped", ended)
    _require(not leftovers(case.out), f"{how}: left {leftovers(case.out)}", ended)


def _check_words(ended: Ended) -> None:
    _require("Traceback" not in ended.said, "a traceback", ended)
    _require(ended.code == 0 or "jaxrl-lm: " in ended.said, "no clear error", ended)


def _differences(wanted: dict[str, Any], found: dict[str, Any]) -> list[str]:
    return sorted(name for name in wanted | found if wanted.get(name, ...) != found.get(name, ...))


def _every_file(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def _require(is_so: bool, problem: str, ended: Ended) -> None:
    if not is_so:
        raise Failed(f"{problem}\n{ended.said[-3000:]}")


def _save_no_picture(figure: Any, fname: Any, **options: Any) -> None:
    """A PNG of one pixel: drawing takes longer than such a run."""
    del figure, options
    if isinstance(fname, str | Path):
        Path(fname).write_bytes(_PNG)
    else:
        fname.write(_PNG)


def try_trainer(name: str, options: argparse.Namespace, root: Path) -> Counter[str]:
    """Kill a trainer many times; what failed is printed."""
    counts = Counter[str]()
    cases: dict[tuple[int, int], Case] = {}
    while (is_kill := counts["kills"] < options.num) or counts["full disks"] < options.num_full_disks:
        rng = random.Random(zlib.crc32(f"{options.seed} {name} {counts['attempts']}".encode()))
        is_first = name == CHAIN or options.num < len(_SAVING) ** 2
        saving = _SAVING[0 if is_first else counts["attempts"] % len(_SAVING)]
        if saving not in cases:
            work = root / f"{name}-{saving[0]}-{saving[1]}"
            work.mkdir()
            cases[saving] = make_case(name, root / "inputs", work, saving=saving)
        case = cases[saving]
        plan = draw_kill(case, rng) if is_kill else Plan(fault="full disk", event=rng.randrange(case.num_events))
        counts["attempts"] += 1
        try:
            attempt(case, rng, plan, counts)
        except Failed as failure:
            counts["failed"] += 1
            print(f"{name} {counts['attempts']} {plan} of {case.num_events} events:\n{failure}\n", flush=True)
            if options.keep:
                shutil.copytree(case.out, options.keep / f"{name}-{counts['attempts']}", dirs_exist_ok=True)
    return counts


def main() -> int:
    """Print the counts of every trainer; the exit code says whether all did what they must."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num", type=int, default=50, help="kills of each trainer")
    parser.add_argument("--num-full-disks", type=int, default=5, help="full disks of each trainer")
    parser.add_argument("--trainers", nargs="+", default=list(COMMANDS), choices=list(COMMANDS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="keep the folders of runs that failed here")
    options = parser.parse_args()
    patch.object(matplotlib.figure.Figure, "savefig", _save_no_picture).start()
    root = Path(tempfile.mkdtemp(prefix="kills-"))  # not a TemporaryDirectory, which the forked would delete
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(root / "compiled"))
    total = Counter[str]()
    gc.freeze()
    try:
        (root / "inputs").mkdir()
        # In a process of its own: a JAX backend does not survive a fork.
        made = run_forked(lambda: write_inputs(root / "inputs") or 0, root, Plan(), root / "said.txt")
        _require(made.code == 0, "the inputs cannot be made", made)
        for name in options.trainers:
            counts = try_trainer(name, options, root)
            print(json.dumps({name: counts}), flush=True)
            total += counts
    finally:
        shutil.rmtree(root, ignore_errors=True)
    print(json.dumps({"total": total}))
    return 1 if total["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
