"""Every kind of file that the package reads, and how it is read."""

import contextlib
import gzip
import io
import json
import math
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_lm import data, feedback, storage
from jaxrl_lm.cli.label import database_errors_in_words
from jaxrl_lm.cli.label_completions import read_completions
from jaxrl_lm.cli.label_import import read_labelled
from jaxrl_lm.cli.main import parse
from jaxrl_lm.core.checksums import checksum_value
from jaxrl_lm.errors import InputError
from jaxrl_lm.models import adapters, from_pretrained, save_pretrained
from jaxrl_lm.models.lora import add_adapters
from jaxrl_lm.models.lora_config import LoraConfig
from jaxrl_lm.models.pretrained import VALUE_HEAD_FILE, read_config
from jaxrl_lm.models.reward_heads import RewardScale, read_scale, write_scale
from jaxrl_lm.models.weights import FILE_NAMES, read_file, read_weights
from jaxrl_lm.training.environments.agent import load_settings
from jaxrl_lm.training.environments.algorithms import TrainPPOConfig
from jaxrl_lm.training.rlhf import train as rlhf
from jaxrl_lm.training.rlhf.config import LabelingConfig, RLHFConfig
from tests.byte_model import write_byte_model
from tests.data.files import BLUE, GREEN, MORE, SKY, WRITERS

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@dataclass(frozen=True)
class Target:
    """A folder with a good file, and what reads it."""

    folder: Path
    file: str
    read: Callable[[Path], object]


def make_targets(root: Path) -> dict[str, Target]:
    """All targets by name, their folders made below `root`."""
    return {
        **_data_sets(root / "data"),
        **_labels(root / "labels"),
        **_models(root / "models"),
        **_runs(root / "runs"),
        **_settings(root / "settings", model=root / "models" / "whole", prompts=root / "data" / "prompts.jsonl"),
    }


def _data_sets(folder: Path) -> dict[str, Target]:
    folder.mkdir(parents=True)
    plain = [{"prompt": f"What is {n}?", "completion": f"It is {n}.", "label": True} for n in range(3)]
    pairs = [{"prompt": f"Say {n}", "chosen": f"{n}.", "rejected": "No."} for n in range(3)]
    samples = {f"sample{n}": f"answer {n}" for n in range(4)}
    fours = [{"query": f"Q{n}", **samples, "best": n, "annotator": "Ann"} for n in range(3)]
    talks = [{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]}] * 2
    chats = [{"messages": [SKY, BLUE, MORE, GREEN]}] * 2
    alpaca = [{"instruction": "Add.", "input": "1 2", "output": "3"}]
    targets = {}
    kinds = (
        ("prompts", plain, lambda path: data.read_prompts(str(path))),
        ("completions", plain, data.read_prompt_completions),
        ("unpaired", plain, data.read_unpaired_preferences),
        ("pairs", pairs, data.read_preferences),
        ("fours", fours, data.read_best_of_k),
        ("ratings", [{"text": f"Text {n}", "rating": n / 2} for n in range(3)], data.read_ratings),
        ("alpaca", alpaca, data.read_prompt_completions),
        ("talks", talks, data.read_language_modeling),
        ("chats", chats, data.read_language_modeling),
    )
    for kind, rows, read in kinds:
        for suffix, writer in WRITERS.items():
            if kind in ("talks", "chats") and suffix in ("csv", "tsv"):
                continue
            name = f"{kind}.{suffix}"
            (folder / name).write_bytes(writer(rows))
            targets[name] = Target(folder, name, read)
    for name in ("pairs.jsonl", "prompts.csv", "talks.parquet"):
        (folder / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes(), mtime=0))
        targets[f"{name}.gz"] = Target(folder, f"{name}.gz", targets[name].read)
    (folder / "poem.txt").write_text("A line\nand another\n")
    targets["poem.txt"] = Target(folder, "poem.txt", data.read_language_modeling)
    return targets


def _labels(folder: Path) -> dict[str, Target]:
    folder.mkdir(parents=True)
    verdicts = [{"mode": "pairwise", "prompt": "P", "completions": ["a", "b"], "verdict": "1", "annotator": "Ann",
                 "seconds": 2.5, "shown_order": [1, 0], "created_at": 1.7e9}]  # fmt: skip
    samples = {f"sample{n}": f"answer {n}" for n in range(4)}
    fours = [{"query": f"Q{n}", **samples, "best": n, "annotator": "Ann"} for n in range(3)]
    answers = [{"prompt": [SKY], "completions": ["a", "b"], "tools": [{"name": "f"}]}] * 2
    rows = {"verdicts.jsonl": verdicts, "fours.jsonl": fours, "answers.jsonl": answers}
    for name, content in rows.items():
        (folder / name).write_bytes(WRITERS["jsonl"](content))
    labelled = read_labelled(str(folder / "verdicts.jsonl"), "pairwise", annotator=None, tokenizer=None)
    engine = feedback.open_database(f"sqlite:///{folder / 'labels.sqlite'}", is_new_allowed=True)
    feedback.import_labels(engine, labelled)
    feedback.keep_overlap(engine, "pairwise", 2)
    engine.dispose()  # the last connection moves the write-ahead log into the file
    return {
        **{
            f"labels {name}": Target(
                folder, name, lambda path: read_labelled(str(path), "best-of-4", annotator=None, tokenizer=None)
            )
            for name in ("verdicts.jsonl", "fours.jsonl")
        },
        "answers.jsonl": Target(folder, "answers.jsonl", lambda path: read_completions(str(path), "prompt")),
        "labels.sqlite": Target(folder, "labels.sqlite", _read_labels),
    }


def _read_labels(path: Path) -> object:
    with tempfile.TemporaryDirectory() as folder, database_errors_in_words():
        copy = shutil.copy(path, folder)  # SQLite puts files next to it
        engine = feedback.open_database(f"sqlite:///{copy}", is_new_allowed=False)
        try:
            return [
                (
                    feedback.compute_statistics(engine, mode),
                    feedback.export_verdicts(engine, mode),
                    feedback.export_labels(engine, mode),
                    feedback.kept_overlap(engine, mode),
                )
                for mode in feedback.list_modes(engine)
            ]
        finally:
            engine.dispose()


def _models(root: Path) -> dict[str, Target]:
    folder = root / "whole"
    write_byte_model(folder, num_layers=1, model_size=16, num_heads=2, context=32)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": CHAT_TEMPLATE}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [256], "temperature": 0.7}))
    write_scale(folder, RewardScale(gain=2.0, bias=0.5, offset=0.25, max_tokens=32))
    model, params = from_pretrained(folder, "value")
    sharded = root / "sharded"
    save_pretrained(sharded, model, params, max_shard_bytes=20_000)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / name, sharded)
    adapter = root / "adapter"
    adapters.save_adapter(
        adapter, *add_adapters(*from_pretrained(folder), LoraConfig(rank=2), jax.random.key(0)), str(folder)
    )
    return {
        "config.json": Target(folder, "config.json", lambda path: from_pretrained(path.parent)),
        "config.json alone": Target(folder, "config.json", lambda path: read_config(path.parent)),
        **{
            name: Target(folder, name, lambda path: _tokenize(path.parent))
            for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
        },
        "flax_model.msgpack": Target(folder, "flax_model.msgpack", lambda path: read_weights(path.parent)),
        "reward_scale.json": Target(folder, "reward_scale.json", lambda path: read_scale(path.parent)),
        "index.json": Target(
            sharded, f"{FILE_NAMES['safetensors']}.index.json", lambda path: read_weights(path.parent)
        ),
        adapters.CONFIG_FILE: Target(adapter, adapters.CONFIG_FILE, lambda path: adapters.read_adapter(path.parent)),
        adapters.WEIGHTS_FILE: Target(adapter, adapters.WEIGHTS_FILE, lambda path: from_pretrained(path.parent)),
        "value_head.safetensors": Target(sharded, VALUE_HEAD_FILE, lambda path: read_file(path, "safetensors")),
    }


def _tokenize(folder: Path) -> object:
    tokenizer = data.load_tokenizer(folder, vocab_size=None)
    prompts = [data.Prompt(prompt="Hello", columns={}), data.Prompt(prompt=[SKY], columns={})]
    data.stop_token_ids(tokenizer, ())
    return data.encode_prompts(prompts, tokenizer, max_tokens=10_000)


def _runs(root: Path) -> dict[str, Target]:
    folder = storage.RunFolder.create(
        root / "run", {"seed": 0, "ppo": {"clip": 0.2, "lr": 1e-5}, "layers": [64, 64], "note": None, "out": "x"}
    )
    metrics = [{"step": step, "loss/total": 1.0 / (step + 1), "eval/reward": math.nan} for step in range(3)]
    storage.append_jsonl(folder.metrics_file, metrics)
    seeds = [{"step": n, "num_steps": 100 * n, "eval/reward": [0.1 * n, None]} for n in range(3)]
    storage.append_jsonl(folder.seeds_file, seeds)
    # In a folder without curves a report has nothing to draw, which takes most of its time.
    plain = storage.RunFolder.create(root / "plain", {"seed": 0})
    sample = {"step": 0, "index": 0, "prompt": "Hi", "completion": "Ho", "reward": 1.0, "kl": None}
    storage.append_jsonl(plain.samples_file, [sample | {"phase": phase} for phase in ("before", "after")])
    strip = storage.Strip(label="score", pieces=("a", "b"), values=(0.5, -1.0))
    section = storage.Section(title="T", note="N", heads=("a",), rows=(("1",),), strips=(strip,))
    storage.write_sections(plain, [section])
    reads: dict[str, tuple[storage.RunFolder, Callable[[Path], object]]] = {
        "config.yaml": (folder, lambda _: folder.read_config()),
        "metrics.jsonl": (folder, lambda _: storage.read_metrics(folder)),
        "seeds.jsonl": (folder, lambda _: storage.read_seeds(folder)),
        "samples.jsonl": (plain, lambda _: storage.write_report(plain, title="run")),
        "sections.json": (plain, lambda _: storage.write_report(plain, title="run")),
    }
    return {
        **{f"run {file}": Target(run.path, file, read) for file, (run, read) in reads.items()},
        **_checkpoint(folder),
    }


def _settings(root: Path, *, model: Path, prompts: Path) -> dict[str, Target]:
    """What holds settings: a file of options, and the folders of an environment's run and of a chain."""
    root.mkdir(parents=True)
    options = root / "options.yaml"
    options.write_text("seed: 3\nppo: {num-minibatches: 1, learning-rate: 1e-4}\nanswers:\n  max-new-tokens: 2\n")
    config = TrainPPOConfig(out=str(root / "agent"), env_options=("size=5",), sweep=("ppo.learning_rate=0.1,0.2",))
    storage.RunFolder.create(root / "agent", config.saved())
    labels = LabelingConfig(gold="vowels")
    chain = RLHFConfig(model=str(model), prompts=str(prompts), out=str(root / "chain"), labels=labels)
    asked = data.read_prompts(chain.prompts)
    inputs = {"prompts": checksum_value([(each.prompt, each.columns) for each in asked]), "labels.gold": 0}
    rlhf._open(chain, inputs)
    round_folder = root / "chain" / "round-1"
    round_folder.mkdir()
    pairs = [{"index": index, "prompt": "p", "completions": ["a", "b"]} for index in range(2)]
    storage.append_jsonl(round_folder / "pairs.jsonl", pairs)
    return {
        "--config": Target(root, options.name, _parse_options),
        "agent config.yaml": Target(root / "agent", "config.yaml", lambda path: load_settings(path.parent)),
        **{
            f"chain {name}": Target(root / "chain", name, lambda _: rlhf._open(chain, inputs))
            for name in ("config.yaml", "inputs.json")
        },
        "chain pairs.jsonl": Target(round_folder, "pairs.jsonl", lambda path: rlhf._read_pairs(path, asked)),
    }


def _parse_options(path: Path) -> object:
    """The settings of a command; what the parser prints before it exits is the error."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            return parse(["ppo", f"--config={path}", "--model=m", "--prompts=p", "--reward=vowels", "--out=o"])
    except SystemExit as done:
        raise (InputError if done.code == 2 else AssertionError)(said.getvalue()) from done


def _checkpoint(folder: storage.RunFolder) -> dict[str, Target]:
    state = {"w": jnp.arange(4.0), "key": jax.random.key(0), "n": jnp.int32(3)}
    with storage.Checkpoints(folder.checkpoints_folder) as checkpoints:
        checkpoints.save(1, state, {"note": "x"}, score=storage.Score(0.5))

    def restore(_: Path) -> object:
        with storage.Checkpoints(folder.checkpoints_folder) as checkpoints:
            _, restored, _ = checkpoints.restore(state)
        np.testing.assert_array_equal(restored["w"], state["w"])
        return restored

    files = (path for path in sorted(folder.checkpoints_folder.rglob("*")) if path.is_file())
    names = [str(path.relative_to(folder.path)) for path in files]
    return {f"run {name}": Target(folder.path, name, restore) for name in names}
