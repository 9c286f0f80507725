"""Over-optimisation: gold reward of a policy optimised against a reward model trained on few preferences.

The demo's small dialogue model; the gold reward `good_manners` simulates annotators and labels pairs of replies, with
noise. Reward models (proxies) are trained on 64, 256 or 1,024 pairs; PPO without a KL penalty, and best of n, optimise
each proxy, while gold is only measured. Writes runs, `results.json` and `curves.png` to `runs/007_overoptimisation/`;
run the same command again to continue.

Reference: Gao, Schulman and Hilton, 2022, Scaling Laws for Reward Model Overoptimization.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxrl_lm import data, rewards, storage
from jaxrl_lm.algorithms import AdamWConfig, KLConfig, PPOConfig
from jaxrl_lm.cli.demo import DIALOGUE
from jaxrl_lm.core.best_of_n import best_of_n_kl, expected_best_of_n
from jaxrl_lm.data import Prompt
from jaxrl_lm.rewards.manners import good_manners
from jaxrl_lm.rollouts import AnswerConfig
from jaxrl_lm.storage.plots import COLORS, running_mean
from jaxrl_lm.training.answering import AnsweringConfig, answer_prompts
from jaxrl_lm.training.offline.sft import SFTRunConfig
from jaxrl_lm.training.offline.train import train_offline
from jaxrl_lm.training.online.config import PPORunConfig
from jaxrl_lm.training.online.train import train_online
from jaxrl_lm.training.reward_model.config import NormalisationConfig, RewardModelRunConfig
from jaxrl_lm.training.reward_model.train import train_reward_model
from jaxrl_lm.training.rlhf.train import Pair, simulated_annotator
from jaxrl_lm.training.run import train_stage

GOLD = "good_manners"
MAX_NEW_TOKENS = 32

Curves = dict[str, list[float]]
"""Points of a run: sqrt_kl, proxy and gold."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Over-optimisation of proxies of several sizes.

    Attributes:
        out: folder for the runs.
        seeds: each has its own pairs, proxies and policies.
        proxy_pairs: numbers of training pairs of the proxies.
        num_held_out: evaluation pairs of all proxies, from other prompts.
        num_updates: PPO updates.
        num_answers: completions per prompt for best of n.
        noise: label noise, in units of the gold reward.
        debug: a few updates of everything, in seconds.
    """

    out: Path = Path("runs/007_overoptimisation")
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    proxy_pairs: tuple[int, ...] = (64, 256, 1024)
    num_held_out: int = 256
    num_updates: int = 100
    num_answers: int = 128
    noise: float = 0.3
    debug: bool = False


def debug_version(experiment: Experiment) -> Experiment:
    """Everything once, small."""
    small = {"seeds": (0,), "proxy_pairs": (16,), "num_held_out": 4, "num_updates": 2, "num_answers": 4}
    return replace(experiment, out=experiment.out.with_name(f"{experiment.out.name}-debug"), **small)


def fine_tune(experiment: Experiment) -> Path:
    """The policy that everything starts from, one for all seeds."""
    config = SFTRunConfig(
        model=str(DIALOGUE / "model"),
        data=str(DIALOGUE / "examples.jsonl"),
        out=str(experiment.out / "sft"),
        num_updates=1 if experiment.debug else 20,
        row_length=128,
        max_new_tokens=MAX_NEW_TOKENS,
        optimizer=AdamWConfig(learning_rate=1e-3, schedule="cosine", warmup_fraction=0.1),
    )
    return train_stage(train_offline, config).model_folder


def write_pairs(experiment: Experiment, start: Path, prompts: list[Prompt], seed: int) -> None:
    """Labelled pairs for the largest proxy, from four fifths of the prompts; smaller proxies use the first ones."""
    folder = experiment.out / f"seed-{seed}"
    folder.mkdir(exist_ok=True)
    if (folder / "held.jsonl").exists():
        return
    training = [prompt for index, prompt in enumerate(prompts) if index % 5]
    largest = max(experiment.proxy_pairs)
    labels = judged_pairs(experiment, start, training, largest, 2 * seed)
    for size in experiment.proxy_pairs:
        data.write_jsonl(folder / f"pairs-{size}.jsonl", labels[:size])
    data.write_jsonl(
        folder / "held.jsonl", judged_pairs(experiment, start, prompts[::5], experiment.num_held_out, 2 * seed + 1)
    )


def judged_pairs(
    experiment: Experiment, start: Path, prompts: list[Prompt], count: int, seed: int
) -> list[data.Preference]:
    """Pairs of different replies, labelled with noise by gold."""
    # A third more, for equal replies are left out.
    asked = [prompts[index] for index in data.prompt_order(len(prompts), count * 4 // 3, 0, seed)]
    doubled = [prompt for prompt in asked for _ in range(2)]
    answers = answer_prompts(start, doubled, AnsweringConfig(batch_size=256, seed=seed, max_new_tokens=MAX_NEW_TOKENS))
    pairs = [
        Pair(prompt, first, second)
        for prompt, first, second in zip(asked, answers[::2], answers[1::2], strict=True)
        if first != second and first.strip() and second.strip()
    ]
    labels = simulated_annotator(rewards.load_reward(GOLD), noise=experiment.noise, seed=seed)(pairs, Path(), 0)
    assert len(labels) >= count, f"only {len(labels)} pairs of different replies, {count} wanted"
    return labels[:count]


def train_proxy(experiment: Experiment, start: Path, seed: int, size: int) -> storage.RunFolder:
    """A reward model trained on this many pairs; smaller sets get more epochs."""
    folder = experiment.out / f"seed-{seed}"
    config = RewardModelRunConfig(
        model=str(start),
        preferences=str(folder / f"pairs-{size}.jsonl"),
        evaluation=str(folder / "held.jsonl"),
        out=str(folder / f"proxy-{size}"),
        num_updates=1 if experiment.debug else 40 + size // 16,
        batch_size=16,
        optimizer=AdamWConfig(learning_rate=5e-4, schedule="linear", warmup_fraction=0.1, weight_decay=0.0),
        normalisation=NormalisationConfig(
            num_samples=8 if experiment.debug else 256, policy=str(start), max_new_tokens=MAX_NEW_TOKENS
        ),
        evaluate_every=1000,  # at the end only
        save_every=1000,
        seed=seed,
    )
    return train_stage(train_reward_model, config)


def optimize(experiment: Experiment, start: Path, proxy: Path, seed: int, size: int) -> storage.RunFolder:
    """PPO on the proxy without a penalty; gold is only logged."""
    config = PPORunConfig(
        model=str(start),
        prompts=str(DIALOGUE / "prompts.jsonl"),
        reward=f"model:{proxy}",
        watch=(f"gold={GOLD}",),
        out=str(experiment.out / f"seed-{seed}" / f"ppo-{size}"),
        num_updates=experiment.num_updates,
        batch_size=8 if experiment.debug else 64,
        answers=AnswerConfig(max_new_tokens=MAX_NEW_TOKENS),
        kl=KLConfig(coefficient=0.0, target=None),
        ppo=PPOConfig(learning_rate=1e-4, num_epochs=2, num_minibatches=2, anneal_updates=0),
        seed=seed,
        save_every=1000,
    )
    return train_stage(train_online, config)


def best_of_n(
    experiment: Experiment, start: Path, proxies: dict[int, Path], prompts: list[Prompt], seed: int
) -> dict[int, Curves]:
    """Proxy and gold of the best of n replies, for n of 1, 2, 4, ..., by proxy."""
    count = experiment.num_answers
    asked = [prompt for prompt in prompts for _ in range(count)]
    answers = answer_prompts(
        start, asked, AnsweringConfig(batch_size=1600, seed=1000 + seed, max_new_tokens=MAX_NEW_TOKENS)
    )
    texts = [prompt.text() for prompt in asked]
    gold = jnp.array(good_manners(prompts=texts, completions=answers)).reshape(-1, count)
    sizes = [2**power for power in range(count.bit_length())]
    found = {}
    for size, folder in proxies.items():
        reward = rewards.load_reward(f"model:{folder}")
        proxy = jnp.array(reward(prompts=texts, completions=answers)).reshape(-1, count)
        found[size] = {
            "sqrt_kl": [float(jnp.sqrt(best_of_n_kl(jnp.float32(n)))) for n in sizes],
            "proxy": [float(jnp.mean(expected_best_of_n(proxy, proxy, n))) for n in sizes],
            "gold": [float(jnp.mean(expected_best_of_n(proxy, gold, n))) for n in sizes],
        }
    return found


def curves_of(run: storage.RunFolder) -> Curves:
    """Proxy and gold against the root of the KL divergence, update by update, in running means over nine updates."""
    curves = storage.read_metrics(run)
    names = {"sqrt_kl": "kl/answer", "proxy": "reward/mean", "gold": "watched/gold"}
    smooth = {name: running_mean(np.asarray(curves[metric].values), 9) for name, metric in names.items()}
    smooth["sqrt_kl"] = np.sqrt(np.maximum(smooth["sqrt_kl"], 0))
    return {name: values.tolist() for name, values in smooth.items()}


def summarize(runs: list[Curves]) -> dict[str, Any]:
    """Gold where it is highest and in the end; a seed's peak is where the mean of the others is highest.

    Its own highest point would lie above its end even on a flat curve, by noise alone.
    """
    gold = np.array([run["gold"] for run in runs])
    kl = np.square([run["sqrt_kl"] for run in runs])
    others = [np.delete(gold, seed, axis=0).mean(axis=0) if len(gold) > 1 else gold[0] for seed in range(len(gold))]
    peaks = np.argmax(others, axis=-1)[:, None]
    at_peak = np.take_along_axis(gold, peaks, axis=-1)[:, 0]
    columns = {
        "gold_peak": at_peak,
        "gold_end": gold[:, -1],
        "gold_lost": at_peak - gold[:, -1],
        "proxy_end": np.array([run["proxy"][-1] for run in runs]),
        "kl_at_peak": np.take_along_axis(kl, peaks, axis=-1)[:, 0],
        "kl_end": kl[:, -1],
    }
    return {name: with_interval(values) for name, values in columns.items()}


def with_interval(values: Any) -> dict[str, float]:
    """Interquartile mean over seeds with its 95 % bootstrap interval."""
    found = np.asarray(values, np.float64)
    low, high = storage.bootstrap_interval(found)
    return {"estimate": float(storage.interquartile_mean(found)), "low": float(low), "high": float(high)}


def plot(experiment: Experiment, found: dict[str, dict[int, list[Curves]]]) -> None:
    """Gold and proxy against the root of the KL, a panel a method, a colour a proxy."""
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    titles = {"best_of_n": "Best of n (KL: upper bound)", "ppo": "PPO without a KL penalty"}
    for panel, method in zip(figure.subplots(1, 2), titles, strict=True):
        for color, (size, runs) in zip(COLORS, found[method].items(), strict=False):
            _draw(panel, runs, color, f"{size} pairs")
        panel.set(
            title=titles[method],
            xlabel="square root of KL, nats",
            ylabel="standard deviations of the start",
        )
        panel.grid(alpha=0.3)
    figure.axes[0].legend(title="gold solid, proxy dashed")
    figure.savefig(experiment.out / "curves.png", dpi=110)


def _draw(panel: Axes, runs: list[Curves], color: str, label: str) -> None:
    """Every seed thin, their mean thick."""
    for name, style in (("gold", "-"), ("proxy", "--")):
        for run in runs:
            panel.plot(run["sqrt_kl"], run[name], style, color=color, alpha=0.15, linewidth=0.8)
        means = [np.mean([run[part] for run in runs], axis=0) for part in ("sqrt_kl", name)]
        panel.plot(*means, style, color=color, linewidth=2, label=label if name == "gold" else None)


def gold_at_start(experiment: Experiment, start: Path, prompts: list[Prompt]) -> tuple[float, float]:
    """Mean and standard deviation of gold over ten replies to every prompt, or fewer when debugging."""
    asked = prompts * min(10, experiment.num_answers)
    answers = answer_prompts(start, asked, AnsweringConfig(batch_size=500, seed=99, max_new_tokens=MAX_NEW_TOKENS))
    gold = good_manners(prompts=[prompt.text() for prompt in asked], completions=answers)
    return float(np.mean(gold)), float(np.std(gold))


def follow(experiment: Experiment, start: Path, prompts: list[Prompt], seed: int) -> dict[str, dict[int, Any]]:
    """The curves of both methods, accuracy and largest ratio error, by proxy."""
    write_pairs(experiment, start, prompts, seed)
    proxies = {size: train_proxy(experiment, start, seed, size) for size in experiment.proxy_pairs}
    policies = {size: optimize(experiment, start, run.model_folder, seed, size) for size, run in proxies.items()}
    verdicts = {size: json.loads((run.path / "evaluation.json").read_text()) for size, run in proxies.items()}
    folders = {size: run.model_folder for size, run in proxies.items()}
    return {
        "best_of_n": best_of_n(experiment, start, folders, prompts, seed),
        "ppo": {size: curves_of(run) for size, run in policies.items()},
        "accuracy": {size: each["reward_model"]["accuracy"]["estimate"] for size, each in verdicts.items()},
        "ratio_error": {
            size: max(storage.read_metrics(run)["ratio/first_max_error"].values) for size, run in policies.items()
        },
    }


def main(experiment: Experiment) -> None:
    """Train missing parts, optimise every proxy, write figures."""
    if experiment.debug:
        experiment = debug_version(experiment)
    # Only the same settings continue; others need another folder.
    storage.RunFolder.open_or_create(experiment.out, json.loads(json.dumps(asdict(experiment), default=str)))
    prompts = data.read_prompts(str(DIALOGUE / "prompts.jsonl"), limit=10 if experiment.debug else None)
    start = fine_tune(experiment)
    center, scale = gold_at_start(experiment, start, prompts)
    by_seed = [follow(experiment, start, prompts, seed) for seed in experiment.seeds]
    curves = {
        method: {size: [found[method][size] for found in by_seed] for size in experiment.proxy_pairs}
        for method in ("best_of_n", "ppo")
    }
    for run in (run for by_size in curves.values() for runs in by_size.values() for run in runs):
        run["gold"] = [(value - center) / scale for value in run["gold"]]
    results: dict[str, Any] = {
        "start": {"gold_mean": center, "gold_std": scale},
        "checks": {"first_minibatch_ratio_error_max": max(max(each["ratio_error"].values()) for each in by_seed)},
        "proxy_accuracy": {
            str(size): with_interval([found["accuracy"][size] for found in by_seed]) for size in experiment.proxy_pairs
        },
    }
    for method, by_size in curves.items():
        results[method] = {str(size): summarize(runs) for size, runs in by_size.items()}
    (experiment.out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    plot(experiment, curves)
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main(tyro.cli(Experiment))
