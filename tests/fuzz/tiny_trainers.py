"""Every kind of trainer as a command of a few tiny updates, and what its folder must hold in the end."""

import json
from pathlib import Path
from typing import Any

from jaxrl_lm import data
from jaxrl_lm.data import Preference, PromptCompletion
from tests.byte_model import write_byte_model
from tests.measured import is_measured

_ENVIRONMENT = (
    *("--total-steps=256", "--chunk-updates=1", "--num-envs=4", "--eval-episodes=4", "--num-seeds=2"),
    "--eval-every=1",
)
_ONLINE = ("--num-updates=4", "--batch-size=4", "--num-samples=2", "--answers.max-new-tokens=4", "--reward=vowels")
_OFFLINE = ("--num-updates=4", "--batch-size=2", "--evaluation-fraction=0.3")
_CHAIN = (
    *("--labels.gold=vowels", "--labels.num-pairs=12", "--labels.noise=0", "--num-compared=4"),
    *("--sft.num-updates=2", "--sft.batch-size=2", "--sft.row-length=32", "--sft.max-new-tokens=4"),
    *("--sft.save-every=1", "--reward-model.save-every=1", "--ppo.save-every=1"),
    *("--reward-model.num-updates=2", "--reward-model.batch-size=4", "--reward-model.evaluation-fraction=0.3"),
    *("--reward-model.normalisation.num-samples=4", "--ppo.num-updates=2", "--ppo.batch-size=4"),
    *("--ppo.num-samples=2", "--ppo.answers.max-new-tokens=4", "--ppo.ppo.num-epochs=1"),
)
CHAIN = "rlhf"

COMMANDS: dict[str, tuple[str, ...]] = {
    "train-q-learning": ("train", "q-learning", "--num-steps=16", *_ENVIRONMENT),
    "train-dqn": (
        *("train", "dqn", "--env=ChainMaze-v0", "--steps-per-update=16", "--learning-starts=32", "--batch-size=16"),
        *("--buffer-size=256", *_ENVIRONMENT),
    ),
    "train-ppo": ("train", "ppo", "--env=ChainMaze-v0", "--num-steps=16", "--ppo.num-minibatches=2", *_ENVIRONMENT),
    "sft": ("sft", "--data={examples}", "--row-length=32", "--max-new-tokens=4", *_OFFLINE),
    "dpo": ("dpo", "--preferences={preferences}", "--max-new-tokens=4", *_OFFLINE),
    "reward-model": ("reward-model", "--preferences={preferences}", "--normalisation.num-samples=4", *_OFFLINE),
    "ppo": ("ppo", "--prompts={prompts}", "--ppo.num-epochs=1", *_ONLINE),
    "rloo": ("rloo", "--prompts={prompts}", *_ONLINE),
    "grpo": ("grpo", "--prompts={prompts}", *_ONLINE),
    CHAIN: ("rlhf", "--prompts={prompts}", "--sft-data={examples}", *_CHAIN),
}
"""Arguments by the trainer's name; files of `write_inputs` are named in braces."""


def write_inputs(folder: Path) -> None:
    """Write a model of one layer, prompts, examples and preferences."""
    write_byte_model(folder / "model", num_layers=1, model_size=16, num_heads=2, context=48)
    (folder / "prompts.txt").write_text("ab\ncd\nef\ngh\n")
    examples = [PromptCompletion(prompt=f"p{number}", completion=" aeiou") for number in range(12)]
    data.write_jsonl(folder / "examples.jsonl", examples)
    pairs = [Preference(prompt=f"q{number}", chosen=" aei", rejected=" xyz") for number in range(12)]
    data.write_jsonl(folder / "preferences.jsonl", pairs)


def arguments(name: str, inputs: Path, out: Path, *, save_every: int, keep: int) -> list[str]:
    """The command line of a trainer.

    Args:
        name: of the trainer.
        inputs: folder of `write_inputs`.
        out: folder of the run.
        save_every: updates between checkpoints; the chain has its own.
        keep: checkpoints that are kept; the chain has its own.
    """
    files = {"prompts": inputs / "prompts.txt"}
    files |= {each: inputs / f"{each}.jsonl" for each in ("examples", "preferences")}
    found = [*(each.format(**files) for each in COMMANDS[name]), f"--out={out}"]
    if not name.startswith("train-"):
        found.append(f"--model={inputs / 'model'}")
    if name != CHAIN:
        found += [f"--save-every={save_every}", f"--keep-checkpoints={keep}"]
    return found


def outcome(folder: Path) -> dict[str, Any]:
    """What a run, or a chain of runs, leaves: its files by path, with their content where it does not hold times.

    Of a checkpoint it is the description, which has a checksum of every array.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_dir() or "tensorboard" in parts:
            continue
        if "checkpoints" in parts and parts[-2:] != ("description", "metadata"):
            continue
        found["/".join(parts)] = _content(path)
    return found


def leftovers(folder: Path) -> list[Path]:
    """Files and folders that were written to be renamed."""
    return [path for path in folder.rglob("*") if path.name.startswith(".") or "orbax-checkpoint-tmp" in path.name]


def _content(path: Path) -> Any:
    if path.name == "report.html" or path.suffix == ".png":
        return None
    if path.name == "metrics.jsonl":
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        return [{name: value for name, value in row.items() if not is_measured(name)} for row in rows]
    return path.read_bytes()
