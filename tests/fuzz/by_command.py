"""Damaged files given to the commands that read them: `python -m tests.fuzz.by_command --num 2000`.

Prints how many ended with which exit code, which with another exception than the clear error, and the slowest.
"""

import argparse
import contextlib
import io
import json
import logging
import random
import shutil
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from jaxrl_lm.cli.main import run
from tests.fuzz.mutations import mutate
from tests.fuzz.targets import Target, make_targets

Arguments = Callable[[Path], list[str]]

_TINY = ("--batch-size=2", "--num-updates=1")
_ALL = "--evaluation-fraction=0"  # few rows have different prompts

# Beginnings of the names of targets that no command reads as they are.
_WITHOUT_COMMAND = (
    "ratings",  # read by the library only
    "answers.jsonl",  # `label serve` would serve it
    "config.json alone",  # the same file as config.json
    "reward_scale.json",  # the model there has no score head, so it is refused before
    "run checkpoints/",  # of no trainer
)


def commands(targets: dict[str, Target], out: Path) -> dict[str, Arguments]:
    """For each target what reads its file: arguments of a command, given the file.

    Raises:
        AssertionError: a target has no command, and is not known to have none.
    """
    named = {name: target for name, target in targets.items() if not name.startswith(_WITHOUT_COMMAND)}
    table, found = _table(targets, out), dict[str, Arguments]()
    for name in named:
        matching = [arguments for beginning, arguments in table.items() if name.startswith(beginning)]
        assert len(matching) == 1, f"{name}: {len(matching)} commands; add a command that reads it"
        (found[name],) = matching
    return found


def _table(targets: dict[str, Target], out: Path) -> dict[str | tuple[str, ...], Arguments]:
    """Arguments of a command by the beginning of targets' names."""
    model, sharded = (f"--model={targets[name].folder}" for name in ("config.json", "index.json"))
    prompts = f"--prompts={targets['prompts.jsonl'].folder / 'prompts.jsonl'}"
    chain = targets["chain config.yaml"].folder
    generate, trained = ["generate", "--max-new-tokens=2"], [f"--out={out}", *_TINY]
    ppo = ["ppo", prompts, "--reward=vowels", *trained]

    def reward_model(path: Path, form: str) -> list[str]:
        return ["reward-model", model, f"--preferences={path}", f"--objective={form}", *trained]

    return {
        ("prompts", "poem", "alpaca"): lambda path: [*generate, model, f"--prompts={path}"],
        ("completions", "talks", "chats"): lambda path: [
            *("sft", model, f"--data={path}", *trained, "--row-length=32", _ALL)
        ],
        "pairs": lambda path: ["dpo", model, f"--preferences={path}", *trained, _ALL],
        "unpaired": lambda path: reward_model(path, "binary"),
        "fours": lambda path: reward_model(path, "best_of_k"),
        "labels.sqlite": lambda path: ["label", "stats", f"--labels={path.parent}"],
        "labels ": lambda path: ["label", "import", f"--labels={out}", "--mode=best-of-4", f"--source={path}"],
        ("config.json", "flax_model", "tokenizer", "generation"): lambda path: [*generate, model, prompts],
        "index.json": lambda path: [*generate, sharded, prompts],
        "adapter_": lambda path: [
            *("merge", f"--adapter={path.parent}", f"--base={targets['config.json'].folder}", f"--out={out}")
        ],
        "value_head": lambda path: [*ppo, sharded, "--answers.max-new-tokens=2"],
        "agent ": lambda path: ["evaluate", f"--run={path.parent}", "--episodes=4"],
        "run ": lambda path: ["report", f"--run={path.parent}"],
        "chain ": lambda path: _continue_chain(chain, model, prompts),
        "--config": lambda path: [*ppo, model, f"--config={path}"],
    }


def _continue_chain(chain: Path, model: str, prompts: str) -> list[str]:
    """The command of the chain up to its labels, which are made again: no model is loaded."""
    (chain / "round-1" / "labels.jsonl").unlink(missing_ok=True)
    return ["rlhf", model, prompts, f"--out={chain}", "--labels.gold=vowels", "--stop-after=labels"]


def attempt(target: Target, content: bytes, arguments: Arguments, out: Path) -> tuple[str, float]:
    """How a command ended that reads this content, and in how many seconds."""
    path = target.folder / target.file
    good = path.read_bytes()
    path.write_bytes(content)
    said = io.StringIO()
    began = time.monotonic()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            ended = f"exit code {run(arguments(path))}"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        ended = f"{type(error).__name__}: {error}"[:200]
    seconds = time.monotonic() - began
    path.write_bytes(good)
    shutil.rmtree(out, ignore_errors=True)
    return ("a traceback" if "Traceback" in said.getvalue() else ended), seconds


def main() -> None:
    """Draw targets and damages, and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=1e9)
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        targets = make_targets(Path(folder) / "targets")
        out = Path(folder) / "out"
        reading = commands(targets, out)
        ends, slowest = Counter[str](), []
        rng = random.Random(options.seed)
        began = time.monotonic()
        for number in range(options.num):
            name = rng.choice(list(reading))
            target = targets[name]
            seed = zlib.crc32(f"{options.seed} {number}".encode())
            content = mutate((target.folder / target.file).read_bytes(), target.file, random.Random(seed))
            ended, seconds = attempt(target, content, reading[name], out)
            ends[ended] += 1
            slowest = sorted([*slowest, (round(seconds, 1), name, number)], reverse=True)[:5]
            if not ended.startswith("exit code"):
                print(name, number, ended, content[:200], flush=True)
            if time.monotonic() - began > 60 * options.minutes:
                break
    print(json.dumps({"num": sum(ends.values()), "ends": ends, "slowest": slowest}, indent=1))


if __name__ == "__main__":
    main()
