"""Make the small dialogue model that the demo starts from: a GPT-2 of 0.9 M parameters, from this project's own text.

A byte-level BPE tokenizer and a randomly initialised model are written as a Hugging Face folder, and `jaxrl-lm sft`
teaches it all manners of reply alike. Writes the run, `results.json` and `curves.png` to `runs/005_dialogue_model/`,
and with `--install` the model, prompts and examples of better replies into the package.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import corpus
import jax
import numpy as np
import tyro
from matplotlib.figure import Figure
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, PreTrainedTokenizerFast

from jaxrl_lm import data, storage
from jaxrl_lm.algorithms import AdamWConfig
from jaxrl_lm.data import LanguageModeling, PromptCompletion
from jaxrl_lm.models import CausalLM, from_pretrained, init_params, save_pretrained
from jaxrl_lm.models.families import family_of
from jaxrl_lm.rewards.manners import good_manners
from jaxrl_lm.training.answering import AnsweringConfig, answer_prompts
from jaxrl_lm.training.offline.sft import SFTRunConfig
from jaxrl_lm.training.offline.train import train_offline

END_OF_TEXT = "<|endoftext|>"
ASSETS = Path(__file__).resolve().parents[2] / "jaxrl_lm" / "assets" / "dialogue"
# Every manner alike for the model; for fine-tuning, replies that a careful writer of examples might give.
ALIKE: dict[str, float] = dict.fromkeys(corpus.MANNERS, 1.0)
EXAMPLES = {"courteous": 1.0, "plain": 2.0, "curt": 1.0}


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Make the dialogue model.

    Attributes:
        out: folder for the run.
        num_exchanges: that it learns from.
        num_epochs: passes over them.
        seed: of text, weights and order.
        install: copy model, prompts and examples into the package.
        debug: a tiny model, in seconds.
    """

    out: Path = Path("runs/005_dialogue_model")
    num_exchanges: int = 20_000
    num_epochs: float = 6.0
    seed: int = 0
    install: bool = False
    debug: bool = False


def write_start(folder: Path, texts: list[str], experiment: Experiment) -> None:
    """A tokenizer learned from the texts, and a model with random weights."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=768, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT)
    num_layers, size, num_heads = (1, 16, 2) if experiment.debug else (4, 128, 4)
    end = fast.convert_tokens_to_ids(END_OF_TEXT)
    config = GPT2Config(
        vocab_size=len(fast),
        n_positions=128,
        n_embd=size,
        n_layer=num_layers,
        n_head=num_heads,
        bos_token_id=end,  # pyright: ignore[reportArgumentType]
        eos_token_id=end,  # pyright: ignore[reportArgumentType]
        pad_token_id=end,  # pyright: ignore[reportArgumentType]
    )
    model = CausalLM(family_of("gpt2").config_from_hf(config.to_dict()))
    params = init_params(model, jax.random.key(experiment.seed))
    save_pretrained(folder, model, params, format="flax")
    fast.save_pretrained(folder)


def settings(experiment: Experiment, folder: Path) -> SFTRunConfig:
    """Learn whole texts."""
    return SFTRunConfig(
        model=str(folder / "start"),
        data=str(folder / "texts.jsonl"),
        out=str(folder / "run"),
        form="language-modeling",
        num_epochs=experiment.num_epochs,
        batch_size=32,
        row_length=128,
        evaluate_every=100,
        optimizer=AdamWConfig(learning_rate=3e-3, schedule="cosine", warmup_fraction=0.05, weight_decay=0.1),
        max_new_tokens=32,
        seed=experiment.seed,
    )


def judge(model: Path) -> dict[str, Any]:
    """Gold reward of one completion per prompt."""
    prompts = [data.Prompt(prompt=prompt, columns={}) for prompt, _ in corpus.prompts()]
    answers = answer_prompts(model, prompts, AnsweringConfig(batch_size=len(prompts), max_new_tokens=32))
    scores = good_manners(prompts=[prompt.prompt for prompt in prompts], completions=answers)
    return {"gold_mean": float(np.mean(scores)), "gold_std": float(np.std(scores)), "answers": answers[:8]}


def plot_curves(run: storage.RunFolder, path: Path) -> None:
    """Loss while training."""
    curve = storage.read_metrics(run)["loss/total"]
    figure = Figure(figsize=(6, 3.4), layout="constrained")
    panel = figure.subplots()
    panel.plot(curve.steps, curve.values)
    panel.set(xlabel="update", ylabel="nats per token", title="Loss")
    figure.savefig(path, dpi=100)


def install(run: storage.RunFolder, experiment: Experiment) -> None:
    """Model, prompts and examples into the package."""
    shutil.rmtree(ASSETS, ignore_errors=True)
    model, params = from_pretrained(run.model_folder)
    save_pretrained(ASSETS / "model", model, params, format="flax")
    for file in run.model_folder.glob("*.json"):
        if "safetensors" not in file.name:
            shutil.copy(file, ASSETS / "model" / file.name)
    prompts = [data.Prompt(prompt=prompt, columns={}) for prompt, _ in corpus.prompts()]
    data.write_jsonl(ASSETS / "prompts.jsonl", prompts)
    examples = corpus.exchanges(400, experiment.seed + 1, EXAMPLES)
    pairs = [PromptCompletion(prompt=each.prompt, completion=each.reply) for each in examples]
    data.write_jsonl(ASSETS / "examples.jsonl", pairs)


def main(experiment: Experiment) -> None:
    """Write the text, train, score and install."""
    folder = experiment.out.with_name(f"{experiment.out.name}-debug") if experiment.debug else experiment.out
    count = 64 if experiment.debug else experiment.num_exchanges
    texts = [each.prompt + each.reply for each in corpus.exchanges(count, experiment.seed, ALIKE)]
    config = settings(experiment, folder)
    if storage.RunFolder(folder / "run").config_file.exists():
        raise SystemExit(f"{folder / 'run'} exists; delete it first")
    folder.mkdir(parents=True, exist_ok=True)
    data.write_jsonl(folder / "texts.jsonl", [LanguageModeling(text=text) for text in texts])
    write_start(folder / "start", texts, experiment)
    run = train_offline(config)
    curves = storage.read_metrics(run)
    results = judge(run.model_folder) | {
        "num_parameters": sum(leaf.size for leaf in jax.tree.leaves(from_pretrained(run.model_folder)[1])),
        "perplexity": {name: float(curve.values[-1]) for name, curve in curves.items() if "perplexity" in name},
    }
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    plot_curves(run, folder / "curves.png")
    if experiment.install:
        install(run, experiment)
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main(tyro.cli(Experiment))
