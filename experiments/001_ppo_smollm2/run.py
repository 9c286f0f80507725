"""PPO trains SmolLM2-135M-Instruct to continue film reviews positively.

Prompts are the first words of the sentences in the movie-review data; the reward is the compound sentiment of the
continuation under the VADER lexicon, between -1 and 1. Writes `runs/001_ppo_smollm2/seed-N/` for each seed, plus the
curves of all seeds and `results.json`.

Reference: Hutto and Gilbert, 2014, VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text.
"""

import csv
import json
import os
import sys
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from matplotlib.figure import Figure
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from jaxrl_lm.algorithms import KLConfig, PPOConfig
from jaxrl_lm.cli.demo import DIALOGUE
from jaxrl_lm.rollouts import AnswerConfig
from jaxrl_lm.storage import RunFolder, read_jsonl, read_metrics
from jaxrl_lm.training.online.config import PPORunConfig
from jaxrl_lm.training.online.train import train_online

HERE = Path(__file__).resolve().parent
RATINGS = HERE.parents[2] / "shared" / "data" / "movie_reviews" / "ratings.tsv"
WORDS_A_PROMPT = 6
CURVES = ("reward/mean", "kl/answer", "loss/value", "ratio/clip_fraction", "policy/entropy", "answer/length")


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """PPO on SmolLM2 with a sentiment reward.

    Attributes:
        model: folder of SmolLM2-135M-Instruct, or its hub id HuggingFaceTB/SmolLM2-135M-Instruct.
        ratings: the movie-review table; its column `text` is read.
        out: folder for the runs.
        seeds: one run per seed.
        num_updates: updates per run.
        num_prompts: sentences whose first words are prompts.
        debug: a tiny model and two updates, in seconds.
    """

    model: str = os.environ.get("JAXRL_LM_SMOLLM2", "HuggingFaceTB/SmolLM2-135M-Instruct")
    ratings: Path = RATINGS
    out: Path = Path("runs/001_ppo_smollm2")
    seeds: tuple[int, ...] = (0,)
    num_updates: int = 60
    num_prompts: int = 512
    debug: bool = False


@cache
def _lexicon() -> SentimentIntensityAnalyzer:
    return SentimentIntensityAnalyzer()


def sentiment(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """Compound VADER score of each continuation, in [-1, 1]; 0 is neutral."""
    return [_lexicon().polarity_scores(completion)["compound"] for completion in completions]


def training_config(experiment: Experiment, prompts: Path, seed: int) -> PPORunConfig:
    """The settings of one run."""
    config = PPORunConfig(
        model=experiment.model,
        prompts=str(prompts),
        reward=f"{Path(__file__).resolve()}:sentiment",
        out=str(experiment.out / f"seed-{seed}"),
        num_updates=experiment.num_updates,
        batch_size=48,
        seed=seed,
        resume=(experiment.out / f"seed-{seed}" / "config.yaml").exists(),
        save_every=20,
        keep_checkpoints=1,
        num_samples=16,
        answers=AnswerConfig(max_new_tokens=16),
        kl=KLConfig(coefficient=0.02, target=8.0, horizon=500),
        ppo=PPOConfig(learning_rate=5e-5, num_epochs=2, num_minibatches=2, adam="tensorflow"),
    )
    if not experiment.debug:
        return config
    return replace(
        config,
        num_updates=2,
        batch_size=4,
        num_samples=4,  # as many as a batch: one program samples both
        answers=AnswerConfig(max_new_tokens=4),
        ppo=PPOConfig(num_epochs=1),
    )


def write_prompts(experiment: Experiment, path: Path) -> None:
    """The first words of sentences that go on for at least twice as long, drawn with a fixed seed."""
    with experiment.ratings.open(encoding="utf-8", newline="") as file:
        texts = [row["text"].split() for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]
    long = [words for words in texts if len(words) >= 2 * WORDS_A_PROMPT]
    order = np.random.default_rng(0).permutation(len(long))[: experiment.num_prompts]
    starts = [" ".join(long[index][:WORDS_A_PROMPT]) for index in order]
    path.write_text("".join(json.dumps({"prompt": start}) + "\n" for start in starts), encoding="utf-8")


def summarize(folder: RunFolder) -> dict[str, float]:
    """The figures of one run for the README: first update, and means over the last five."""
    curves = {name: curve.values for name, curve in read_metrics(folder).items()}
    samples = read_jsonl(folder.samples_file)
    by_phase = {phase: [s["reward"] for s in samples if s["phase"] == phase] for phase in ("before", "after")}
    last = slice(-5, None)
    rise = float(np.mean(curves["reward/mean"][last]) - curves["reward/mean"][0])
    rise /= max(float(curves["reward/std"][0]), 1e-8)
    return {
        "reward_start": float(curves["reward/mean"][0]),
        "reward_std_start": float(curves["reward/std"][0]),
        "reward_end": float(np.mean(curves["reward/mean"][last])),
        "rise_in_start_std": rise,
        "kl_end_nats_per_answer": float(np.mean(curves["kl/answer"][last])),
        "kl_max_nats_per_answer": float(np.max(curves["kl/answer"])),
        "first_minibatch_ratio_error_max": float(np.max(curves["ratio/first_max_error"])),
        "rollout_ratio_error_max": float(np.max(curves["ratio/rollout_max_error"])),
        "sample_reward_before": float(np.mean(by_phase["before"])),
        "sample_reward_after": float(np.mean(by_phase["after"])),
        "seconds_per_update": float(np.median(curves["time/update"])),
    }


def plot(folders: list[RunFolder], path: Path) -> None:
    """The curves of all seeds."""
    figure = Figure(figsize=(12, 6), layout="constrained")
    for name, panel in zip(CURVES, figure.subplots(2, 3).flat, strict=True):
        for folder in folders:
            curve = read_metrics(folder)[name]
            panel.plot(curve.steps, curve.values, label=folder.path.name)
        panel.set(title=name, xlabel="update")
        panel.grid(alpha=0.3)
    figure.axes[0].legend()
    figure.savefig(path, dpi=110)


def main(experiment: Experiment) -> None:
    """Train or continue each seed, then write figures and curves."""
    if not experiment.ratings.is_file():
        sys.exit(f"skipped: {experiment.ratings} is not there; --ratings names the movie-review table")
    if experiment.debug:
        experiment = replace(experiment, out=experiment.out.with_name(f"{experiment.out.name}-debug"))
    experiment.out.mkdir(parents=True, exist_ok=True)
    prompts = experiment.out / "prompts.jsonl"
    write_prompts(experiment, prompts)
    if experiment.debug:
        experiment = replace(experiment, model=str(DIALOGUE / "model"))
    configs = [training_config(experiment, prompts, seed) for seed in experiment.seeds]
    folders = [train_online(config) for config in configs]
    results = {folder.path.name: summarize(folder) for folder in folders}
    (experiment.out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    plot(folders, experiment.out / "curves.png")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main(tyro.cli(Experiment))
