"""Report of an RLHF chain: a table of policies, completions in columns, and one policy token by token."""

import json
from collections.abc import Iterator

import numpy as np

from jaxrl_lm import storage
from jaxrl_lm.storage import Section, Strip
from jaxrl_lm.training.rlhf.comparison import PolicyCompletions

_NUM_SAMPLES = 12
_Z = 1.96  # of a 95 % interval


def write_chain_report(folder: storage.RunFolder, policies: list[PolicyCompletions]) -> None:
    """Write `results.json`, `samples.json` and `report.html` of a chain."""
    results = {policy.name: summarize_policy(policy) for policy in policies}
    storage.write_atomically(folder.path / "results.json", json.dumps(results, indent=2) + "\n")
    samples = [
        {"prompt": prompt, **{policy.name: policy.completions[row] for policy in policies}}
        for row, prompt in enumerate(policies[0].prompts)
    ]
    storage.write_atomically(folder.path / "samples.json", json.dumps(samples, indent=2, ensure_ascii=False) + "\n")
    storage.write_sections(folder, _sections(folder, policies))
    storage.write_report(folder, title="Reinforcement learning from human feedback")


def summarize_policy(policy: PolicyCompletions) -> dict[str, dict[str, float | None]]:
    """Mean of each reward and of the KL to the reference, with half the width of a 95 % interval over completions."""
    return {
        name: {
            "mean": float(np.mean(values)),
            "half_width": _half_width(values),
        }
        for name, values in _columns(policy).items()
    }


def _columns(policy: PolicyCompletions) -> dict[str, np.ndarray]:
    return policy.scores | {"kl": policy.kl}


def _cell(values: np.ndarray) -> str:
    # Adding 0 to a rounded number makes 0.00 of what would be -0.00.
    mean, half_width = f"{round(float(np.mean(values)), 2) + 0:.2f}", _half_width(values)
    return mean if half_width is None else f"{mean} ± {half_width:.2f}"


def _half_width(values: np.ndarray) -> float | None:
    if len(values) < 2:
        return None
    return float(_Z * np.std(values, ddof=1) / np.sqrt(len(values)))


def table_of(policies: list[PolicyCompletions]) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Column heads and rows: one row per policy, one column per reward, and the KL."""
    names = [*policies[0].scores, "kl"]
    heads = ("policy", *(f"{name} reward" if name != "kl" else "KL to the reference, nats" for name in names))
    rows = []
    for policy in policies:
        columns = _columns(policy)
        rows.append((policy.name, *(_cell(columns[name]) for name in names)))
    return heads, tuple(rows)


def _sections(folder: storage.RunFolder, policies: list[PolicyCompletions]) -> Iterator[Section]:
    heads, rows = table_of(policies)
    num_prompts = len(policies[0].prompts)
    note = (
        f"Means over the same {num_prompts} prompts, with 95 % intervals. 'proxy' is the reward of the last PPO stage."
    )
    yield Section(title="Policies", note=note, heads=heads, rows=rows)
    pictures = folder.path.glob("round-*/*/plots/*.png")
    for picture in sorted(pictures, key=lambda each: (len(each.parents[2].name), each)):  # round 10 after round 9
        stage = picture.relative_to(folder.path)
        if picture.stem in ("reward", "watched", "kl", "evaluation"):
            title = f"{stage.parts[0].replace('-', ' ')}, {stage.parts[1]}: {picture.stem}"
            yield Section(title=title, picture=str(stage))
    shown = min(_NUM_SAMPLES, num_prompts)
    yield Section(
        title="Completions side by side",
        heads=("prompt", *(policy.name for policy in policies)),
        is_prose=True,
        rows=tuple(
            (policies[0].prompts[row], *(policy.completions[row] for policy in policies)) for row in range(shown)
        ),
    )
    last = policies[-1]
    yield Section(
        title=f"Token by token: {last.name}",
        note="Reward of each token (the KL penalty with PPO's initial coefficient, and at the last token the proxy's "
        "score, not whitened), log pi - log pi_ref, and the advantage computed with the policy's value head (zeros "
        "without one). Orange is above 0, blue below.",
        strips=tuple(_strips(last)),
    )


def _strips(policy: PolicyCompletions) -> Iterator[Strip]:
    for prompt, strip in zip(policy.prompts, policy.strips, strict=False):
        for name in ("rewards", "kl", "advantages"):
            label = f"{prompt} | {name.removesuffix('s')}"
            yield Strip(label=label, pieces=tuple(strip.tokens), values=tuple(getattr(strip, name)))
