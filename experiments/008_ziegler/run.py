"""Stylistic continuation: best-of-four labels, a reward model, PPO, with the settings of Ziegler et al.

The labels are OpenAI's JSON of lm-human-preferences (sentiment or descriptiveness): rows of `query`, `sample0` to
`sample3`, as GPT-2's token ids or as text, and `best`. Writes runs, `results.json` and `curves.png` to
`runs/008_ziegler/`; run the same command again to continue.

Reference: Ziegler et al., 2019, Fine-Tuning Language Models from Human Preferences; Huang et al., 2024, The N+
Implementation Details of RLHF with PPO.
"""

import json
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from matplotlib.figure import Figure
from transformers import AutoTokenizer

from jaxrl_lm import data, storage
from jaxrl_lm.algorithms import AdamWConfig, PPOConfig
from jaxrl_lm.cli.demo import DIALOGUE
from jaxrl_lm.data import Prompt
from jaxrl_lm.models.pretrained import resolve_folder
from jaxrl_lm.rewards.manners import good_manners
from jaxrl_lm.rollouts import AnswerConfig
from jaxrl_lm.training.answering import AnsweringConfig, answer_prompts
from jaxrl_lm.training.online.config import PPORunConfig
from jaxrl_lm.training.online.train import train_online
from jaxrl_lm.training.reward_model.config import NormalisationConfig, RewardModelRunConfig
from jaxrl_lm.training.reward_model.train import train_reward_model
from jaxrl_lm.training.run import train_stage

NUM_SAMPLES = 4
CURVES = ("reward/mean", "kl/answer", "kl/coefficient", "answer/stopped", "loss/value", "ratio/clip_fraction")


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Labels, reward model, PPO.

    Attributes:
        policy: a folder or hub id; the reward model starts from it too. OpenAI's labels hold GPT-2's tokens.
        labels: JSON of the labels.
        prompts: what PPO continues, as `jaxrl-lm ppo` reads it; None for the labels' queries.
        out: folder for the runs.
        num_updates: PPO updates; 1,953 (a million completions) in the paper.
        batch_size: completions per update.
        dtype: dtype of activations.
        seed: random seed.
        debug: the demo's small model and a stand-in for the labels, in seconds.
    """

    policy: str = "gpt2"
    labels: Path | None = None
    prompts: str | None = None
    out: Path = Path("runs/008_ziegler")
    num_updates: int = 1953
    batch_size: int = 512
    dtype: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0
    debug: bool = False


def write_stand_in(path: Path, num_rows: int, seed: int) -> None:
    """Labels in OpenAI's form, as token ids: the small model's replies, and the best-mannered of each four."""
    folder = DIALOGUE / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    known = data.read_prompts(str(DIALOGUE / "prompts.jsonl"))
    prompts = [known[index] for index in data.prompt_order(len(known), num_rows, 0, seed)]
    asked = [prompt for prompt in prompts for _ in range(NUM_SAMPLES)]
    answers = answer_prompts(folder, asked, AnsweringConfig(batch_size=64, seed=seed, max_new_tokens=24))
    scores = good_manners(prompts=[prompt.text() for prompt in asked], completions=answers)
    rows = []
    for number, prompt in enumerate(prompts):
        part = slice(NUM_SAMPLES * number, NUM_SAMPLES * (number + 1))
        samples = {f"sample{index}": tokenizer.encode(text) for index, text in enumerate(answers[part])}
        rows.append({"query": tokenizer.encode(prompt.text()), **samples, "best": int(np.argmax(scores[part]))})
    path.write_text(json.dumps(rows))


def write_queries(experiment: Experiment, labels: Path) -> None:
    """The labels' queries as prompts."""
    tokenizer = AutoTokenizer.from_pretrained(resolve_folder(experiment.policy))
    rows = data.read_best_of_k(labels, tokenizer=tokenizer)
    queries = dict.fromkeys(row.prompt for row in rows if isinstance(row.prompt, str))
    data.write_jsonl(experiment.out / "queries.jsonl", [Prompt(prompt=query, columns={}) for query in queries])


def reward_settings(experiment: Experiment, labels: Path) -> RewardModelRunConfig:
    """One epoch, best of four, learning rate 5e-5 to 0, normalised over 256 answers of the policy."""
    return RewardModelRunConfig(
        model=experiment.policy,
        preferences=str(labels),
        out=str(experiment.out / "reward-model"),
        objective="best_of_k",
        batch_size=8 if experiment.debug else 32,
        optimizer=AdamWConfig(
            learning_rate=5e-5, schedule="linear", warmup_fraction=0.0, weight_decay=0.0, max_grad_norm=0.0
        ),
        normalisation=NormalisationConfig(
            num_samples=8 if experiment.debug else 256,
            policy=experiment.policy,
            max_new_tokens=24,
            temperature=0.7,
        ),
        seed=experiment.seed,
    )


def ppo_settings(experiment: Experiment, reward_model: Path) -> PPORunConfig:
    """24 tokens at temperature 0.7, cut at the first full stop behind the sixteenth; without one the score is -1."""
    return PPORunConfig(
        model=experiment.policy,
        prompts=experiment.prompts or str(experiment.out / "queries.jsonl"),
        reward=f"model:{reward_model}",
        out=str(experiment.out / "ppo"),
        num_updates=experiment.num_updates,
        batch_size=experiment.batch_size,
        answers=AnswerConfig(
            max_new_tokens=24,
            temperature=0.7,
            stop=(".",),
            ignore_stops_before=16,
            missing_stop_score=-1.0,
            score_at="after_end",
        ),
        ppo=PPOConfig(adam="tensorflow", max_grad_norm=0.0, whiten_rewards=True),
        dtype=experiment.dtype,
        seed=experiment.seed,
    )


def summarize(reward_model: storage.RunFolder, ppo: storage.RunFolder) -> dict[str, dict[str, float]]:
    """Accuracies on held-out labels; first update of PPO, and means over its last five."""
    verdict = json.loads((reward_model.path / "evaluation.json").read_text())
    curves = {name: curve.values for name, curve in storage.read_metrics(ppo).items()}
    last = {name: float(np.mean(curves[name][-5:])) for name in ("reward/mean", "kl/answer", "answer/stopped")}
    return {
        "reward_model_accuracy": verdict["reward_model"]["accuracy"],
        "bag_of_words_accuracy": verdict["bag_of_words"]["accuracy"],
        "ppo": {
            "reward_start": float(curves["reward/mean"][0]),
            "reward_end": last["reward/mean"],
            "kl_end_nats_per_answer": last["kl/answer"],
            "stopped_end": last["answer/stopped"],
            "first_minibatch_ratio_error_max": float(np.max(curves["ratio/first_max_error"])),
        },
    }


def plot(run: storage.RunFolder, path: Path) -> None:
    """The course of PPO."""
    curves = storage.read_metrics(run)
    figure = Figure(figsize=(12, 6), layout="constrained")
    for name, panel in zip(CURVES, figure.subplots(2, 3).flat, strict=True):
        panel.plot(curves[name].steps, curves[name].values)
        panel.set(title=name, xlabel="update")
        panel.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def main(experiment: Experiment) -> None:
    """Train missing parts, then write figures."""
    if experiment.debug:
        small = {"policy": str(DIALOGUE / "model"), "num_updates": 2, "batch_size": 8}
        experiment = replace(experiment, out=experiment.out.with_name(f"{experiment.out.name}-debug"), **small)
    labels = experiment.out / "stand-in.json" if experiment.debug else experiment.labels
    if labels is None:
        sys.exit("--labels FILE names the labels; see README.md of this experiment")
    # Only the same settings continue; others need another folder.
    storage.RunFolder.open_or_create(experiment.out, json.loads(json.dumps(asdict(experiment), default=str)))
    if experiment.debug:
        write_stand_in(labels, 20, experiment.seed)
    write_queries(experiment, labels)
    reward_model = train_stage(train_reward_model, reward_settings(experiment, labels))
    ppo = train_stage(train_online, ppo_settings(experiment, reward_model.model_folder))
    results = summarize(reward_model, ppo)
    (experiment.out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    plot(ppo, experiment.out / "curves.png")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main(tyro.cli(Experiment))
