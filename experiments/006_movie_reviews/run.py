"""Human ratings of film reviews give preference pairs, these a reward model, and PPO trains SmolLM2 on it.

Three reward models are evaluated on the same held-out pairs, each compared with a bag of words of the same pairs:
SmolLM2 and MiniLM (a BERT) on one half of the sentences, and MiniLM on the other half, as a judge that is not used in
the policy's training. Writes runs, `results.json` and `curves.png` to `runs/006_movie_reviews/`; run the same command
again to continue.

Reference: Hutto and Gilbert, 2014, VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text
(the ratings); Ziegler et al., 2019, Fine-Tuning Language Models from Human Preferences.
"""

import json
import os
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxrl_lm import data, rewards, storage
from jaxrl_lm.algorithms import AdamWConfig, KLConfig, PPOConfig
from jaxrl_lm.cli.demo import DIALOGUE
from jaxrl_lm.data import Preference, Prompt, Rating
from jaxrl_lm.models.lora_config import LoraConfig
from jaxrl_lm.rollouts import AnswerConfig
from jaxrl_lm.training.answering import AnsweringConfig, answer_prompts
from jaxrl_lm.training.online.config import PPORunConfig
from jaxrl_lm.training.online.train import train_online
from jaxrl_lm.training.reward_model.config import NormalisationConfig, RewardModelRunConfig
from jaxrl_lm.training.reward_model.train import train_reward_model
from jaxrl_lm.training.run import train_stage

RATINGS = Path(__file__).resolve().parents[3] / "shared" / "data" / "movie_reviews" / "ratings.tsv"
MARGIN = 1.0
WORDS_A_PROMPT = 6
ANSWER = AnswerConfig(max_new_tokens=16)


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Ratings, pairs, reward models, PPO.

    Attributes:
        smollm2: folder of SmolLM2-135M-Instruct, or its hub id.
        minilm: folder of all-MiniLM-L6-v2, or its hub id.
        ratings: the movie-review table; its columns `text` and `rating` are read.
        out: folder for the runs.
        num_pairs: training pairs of the two reward models that are compared.
        num_judge_pairs: training pairs of the judge.
        num_held_out: maximum number of evaluation pairs; no sentence is in two of them.
        num_updates: PPO updates.
        lora_rank: rank of the adapters that PPO trains instead of the whole policy, at ten times the learning rate; its
            results are written beside the others. 0 trains all parameters.
        num_prompts: sentences whose first words are prompts.
        seed: random seed.
        debug: tiny models and a few updates, in seconds.
    """

    smollm2: str = os.environ.get("JAXRL_LM_SMOLLM2", "HuggingFaceTB/SmolLM2-135M-Instruct")
    minilm: str = os.environ.get("JAXRL_LM_MINILM", "sentence-transformers/all-MiniLM-L6-v2")
    ratings: Path = RATINGS
    out: Path = Path("runs/006_movie_reviews")
    num_pairs: int = 1600
    num_judge_pairs: int = 6000
    num_held_out: int = 1000
    num_updates: int = 60
    lora_rank: int = 0
    num_prompts: int = 256
    seed: int = 0
    debug: bool = False


def debug_version(experiment: Experiment) -> Experiment:
    """The same with the demo's small model in both places."""
    tiny = str(DIALOGUE / "model")
    sizes = {"num_pairs": 32, "num_judge_pairs": 32, "num_held_out": 16, "num_updates": 2, "num_prompts": 8}
    out = experiment.out.with_name(f"{experiment.out.name}-debug")
    return replace(experiment, out=out, smollm2=tiny, minilm=tiny, **sizes)


def write_data(experiment: Experiment) -> list[Prompt]:
    """Pairs of held-out sentences, of the policy's and of the judge's, no row in two of them; held-out prompts.

    The table contains a few duplicates.
    """
    ratings = data.read_ratings(experiment.ratings, text_column="text", rating_column="rating")
    order = np.random.default_rng(experiment.seed).permutation(len(ratings))
    num_held = len(ratings) // 5
    half = (len(ratings) - num_held) // 2
    held, policy, judge = ([ratings[place] for place in part] for part in np.split(order, [num_held, num_held + half]))
    data.write_jsonl(experiment.out / "held.jsonl", disjoint_pairs(held)[: experiment.num_held_out])
    for name, rows, count in (("policy", policy, experiment.num_pairs), ("judge", judge, experiment.num_judge_pairs)):
        pairs = data.pairs_from_ratings(rows, margin=MARGIN, num_pairs=count, seed=experiment.seed, prompt="")
        data.write_jsonl(experiment.out / f"{name}.jsonl", pairs)
    starts = first_words(policy, experiment.num_prompts)
    data.write_jsonl(experiment.out / "prompts.jsonl", starts)
    return first_words(held, experiment.num_prompts)


def disjoint_pairs(rows: list[Rating]) -> list[Preference]:
    """Neighbours that are a margin apart, no sentence in two pairs: then an interval may take pairs as independent."""
    found = []
    for one, other in zip(rows[::2], rows[1::2], strict=False):
        better, worse = (one, other) if one.rating > other.rating else (other, one)
        if better.rating - worse.rating >= MARGIN and better.text != worse.text:
            found.append(Preference(prompt="", chosen=better.text, rejected=worse.text))
    return found


def first_words(rows: list[Rating], count: int) -> list[Prompt]:
    """The first words of sentences that go on for at least twice as long."""
    words = [row.text.split() for row in rows]
    long = [each for each in words if len(each) >= 2 * WORDS_A_PROMPT][:count]
    return [Prompt(prompt=" ".join(each[:WORDS_A_PROMPT]), columns={}) for each in long]


def reward_settings(experiment: Experiment, name: str, model: str, part: str, rate: float) -> RewardModelRunConfig:
    """One epoch, as Ziegler et al.; only the learning rate depends on the model."""
    return RewardModelRunConfig(
        model=model,
        preferences=str(experiment.out / f"{part}.jsonl"),
        evaluation=str(experiment.out / "held.jsonl"),
        out=str(experiment.out / name),
        batch_size=16,
        max_tokens=64,
        optimizer=AdamWConfig(learning_rate=rate, schedule="linear", warmup_fraction=0.1, weight_decay=0.0),
        normalisation=NormalisationConfig(num_samples=16 if experiment.debug else 256),
        evaluate_every=1000,  # at the end only
        seed=experiment.seed,
    )


def variant(experiment: Experiment) -> str:
    """What names PPO's run and results."""
    return f"-lora-{experiment.lora_rank}" if experiment.lora_rank else ""


def ppo_settings(experiment: Experiment, reward_model: Path) -> PPORunConfig:
    """60 updates at 7e-5 (adapters: 7e-4) decayed to 0; the penalty's target is 8 nats per completion."""
    rank = experiment.lora_rank
    return PPORunConfig(
        model=experiment.smollm2,
        prompts=str(experiment.out / "prompts.jsonl"),
        reward=f"model:{reward_model}",
        out=str(experiment.out / f"ppo{variant(experiment)}"),
        lora=LoraConfig(rank=rank, alpha=32.0),
        num_updates=experiment.num_updates,
        batch_size=8 if experiment.debug else 48,
        answers=ANSWER,
        kl=KLConfig(coefficient=0.05, target=8.0, horizon=500),
        ppo=PPOConfig(learning_rate=7e-4 if rank else 7e-5, num_epochs=2, num_minibatches=2, adam="tensorflow"),
        seed=experiment.seed,
        save_every=10,
        keep_checkpoints=1,
    )


def compare(experiment: Experiment, prompts: list[Prompt], policies: dict[str, Path | str]) -> dict[str, Any]:
    """Scores of the reward model and the judge for each policy's sentences, prompt and completion."""
    judges = {name: rewards.load_reward(f"model:{experiment.out / name / 'model'}") for name in ("smollm2", "judge")}
    found: dict[str, Any] = {}
    for policy, folder in policies.items():
        answers = answer_prompts(
            folder,
            prompts,
            AnsweringConfig(batch_size=64, seed=experiment.seed, max_new_tokens=ANSWER.max_new_tokens),
        )
        whole = [prompt.text() + answer for prompt, answer in zip(prompts, answers, strict=True)]
        scores = {name: judge(prompts=[""] * len(whole), completions=whole) for name, judge in judges.items()}
        found[policy] = {name: mean_and_half_width(values) for name, values in scores.items()}
        found[policy]["answers"] = whole[:8]
    return found


def mean_and_half_width(values: list[float]) -> dict[str, float]:
    """Mean, and half the width of its 95 % interval over prompts."""
    return {"mean": float(np.mean(values)), "half_width": float(1.96 * np.std(values, ddof=1) / len(values) ** 0.5)}


def summarize_ppo(folder: storage.RunFolder) -> dict[str, float]:
    """First update, and means over the last five."""
    curves = {name: curve.values for name, curve in storage.read_metrics(folder).items()}
    return {
        "seconds_per_update": float(np.median(curves["time/update"][1:])),
        "reward_start": float(curves["reward/mean"][0]),
        "reward_std_start": float(curves["reward/std"][0]),
        "reward_end": float(np.mean(curves["reward/mean"][-5:])),
        "kl_end_nats_per_answer": float(np.mean(curves["kl/answer"][-5:])),
        "kl_max_nats_per_answer": float(np.max(curves["kl/answer"])),
        "first_minibatch_ratio_error_max": float(np.max(curves["ratio/first_max_error"])),
    }


def plot(experiment: Experiment, results: dict[str, Any], ppo: storage.RunFolder) -> None:
    """Accuracies, the course of PPO, and what both judges think in the end."""
    figure = Figure(figsize=(12, 6.4), layout="constrained")
    accuracy, judged, reward, kl = figure.subplots(2, 2).flat
    _plot_accuracy(accuracy, results["reward_models"])
    for place, (policy, row) in enumerate(results["policies"].items()):
        means, widths = ([row[name][part] for name in ("smollm2", "judge")] for part in ("mean", "half_width"))
        judged.bar(np.arange(2) + 0.4 * place, means, 0.38, yerr=widths, capsize=4, label=policy)
    judged.set_xticks([0.2, 1.2], ["reward model of the training", "judge"])
    judged.set(title="Score of prompt and answer, 95 % intervals", ylabel="standard deviations")
    judged.legend()
    curves = storage.read_metrics(ppo)
    for panel, name, unit in ((reward, "reward/mean", "reward"), (kl, "kl/answer", "nats a completion")):
        panel.plot(curves[name].steps, curves[name].values)
        panel.set(title=name, xlabel="update", ylabel=unit)
        panel.grid(alpha=0.3)
    figure.savefig(experiment.out / f"curves{variant(experiment)}.png", dpi=110)


def _plot_accuracy(panel: Axes, rows: dict[str, Any]) -> None:
    for shift, kind in ((0.0, "reward_model"), (0.4, "bag_of_words")):
        found = [row[kind] for row in rows.values()]
        middle = np.array([each["estimate"] for each in found])
        error = np.abs(np.array([[each["low"] for each in found], [each["high"] for each in found]]) - middle)
        panel.bar(np.arange(len(found)) + shift, middle, 0.38, yerr=error, capsize=4, label=kind.replace("_", " "))
    panel.set_xticks(np.arange(len(rows)) + 0.2, [f"{name}\n{row['num_pairs']} pairs" for name, row in rows.items()])
    panel.set(title="Held-out pairs judged as people did, 95 % intervals", ylim=(0.5, 1.0))
    panel.legend()


def main(experiment: Experiment) -> None:
    """Train missing parts, compare, write figures."""
    if not experiment.ratings.is_file():
        sys.exit(f"skipped: {experiment.ratings} is not there; --ratings names the movie-review table")
    if experiment.debug:
        experiment = debug_version(experiment)
    # Only the same settings continue; others need another folder.
    shared = asdict(replace(experiment, lora_rank=0))
    storage.RunFolder.open_or_create(experiment.out, json.loads(json.dumps(shared, default=str)))
    prompts = write_data(experiment)
    stages = {
        "minilm": (experiment.minilm, "policy", 1e-4, experiment.num_pairs),
        "judge": (experiment.minilm, "judge", 1e-4, experiment.num_judge_pairs),
        "smollm2": (experiment.smollm2, "policy", 5e-5, experiment.num_pairs),
    }
    models = {}
    for name, (model, part, rate, num_pairs) in stages.items():
        run = train_stage(train_reward_model, reward_settings(experiment, name, model, part, rate))
        verdict = json.loads((run.path / "evaluation.json").read_text())
        models[name] = {"num_pairs": num_pairs} | {
            kind: verdict[kind]["accuracy"] for kind in ("reward_model", "bag_of_words")
        }
    ppo = train_stage(train_online, ppo_settings(experiment, experiment.out / "smollm2" / "model"))
    policies = compare(experiment, prompts, {"before": experiment.smollm2, "after PPO": ppo.model_folder})
    results = {"reward_models": models, "ppo": summarize_ppo(ppo), "policies": policies}
    file = experiment.out / f"results{variant(experiment)}.json"
    file.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    plot(experiment, results, ppo)
    print(json.dumps(results, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main(tyro.cli(Experiment))
