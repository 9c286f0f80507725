"""Report of a reward model: its agreement with held-out labels, compared with a bag of words."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from jaxrl_lm import storage
from jaxrl_lm.algorithms.reward_model import Objective
from jaxrl_lm.core.calibration import Interval
from jaxrl_lm.rewards import bag_of_words
from jaxrl_lm.rewards.bag_of_words import BagOfWords, BagOfWordsConfig
from jaxrl_lm.storage import Section
from jaxrl_lm.training.reward_model.agreement import Agreement, measure_agreement
from jaxrl_lm.training.reward_model.labels import LabelledSet

PICTURE = "plots/reliability.png"
NUM_WORDS = 12
NUM_EXAMPLES = 5
MAX_CHARACTERS = 400


def fit_baseline(objective: Objective, training: LabelledSet, config: BagOfWordsConfig) -> BagOfWords:
    """Fit the bag of words to the training rows."""
    groups = [row.texts() for row in training.rows]
    if objective == "binary":
        return bag_of_words.fit_labels([group[0] for group in groups], training.targets, config)
    return bag_of_words.fit_choices(groups, training.targets, config)


def baseline_agreement(objective: Objective, baseline: BagOfWords, held: LabelledSet) -> Agreement:
    """Agreement of the bag of words with the held-out rows."""
    texts = [text for row in held.rows for text in row.texts()]
    scores = baseline.score(texts).reshape(-1, held.num_completions)
    return measure_agreement(objective, scores, held.targets, lengths_of(held), held.groups)


def lengths_of(labelled: LabelledSet) -> np.ndarray:
    """Number of characters of each completion, `[N, K]`, before the model truncates it."""
    return np.array([[len(text) for text in row.texts()] for row in labelled.rows])


def write_evaluation(
    folder: storage.RunFolder,
    neural: Agreement,
    words: Agreement,
    baseline: BagOfWords,
    held: LabelledSet,
    scores: np.ndarray,
    facts: dict[str, Any],
) -> None:
    """Write `evaluation.json`, `plots/reliability.png` and the report's sections.

    Args:
        folder: the run folder.
        neural: agreement of the reward model.
        words: agreement of the bag of words.
        baseline: the bag of words.
        held: the held-out rows.
        scores: scores of the reward model, `[N, K]`.
        facts: numbers of rows and the scale, by name.
    """
    record = {"reward_model": neural.as_record(), "bag_of_words": words.as_record(), **facts}
    storage.write_atomically(folder.path / "evaluation.json", json.dumps(record, indent=2) + "\n")
    _draw(folder.path / PICTURE, neural, words)
    sections = [
        _comparison(neural, words, held),
        Section(
            title="Reliability",
            note="On the dotted line, predicted probabilities equal observed frequencies. The area of a point is "
            "proportional to the number of examples in its bin.",
            picture=PICTURE,
        ),
        _margins(neural, words),
        _words(baseline),
        _worst(held, scores, neural),
        Section(
            title="Data and scale",
            heads=("", "value"),
            rows=tuple((name.replace("_", " "), _shown(value)) for name, value in facts.items()),
        ),
    ]
    storage.write_sections(folder, [section for section in sections if section.rows or section.picture])


def show_interval(share: Interval) -> str:
    """Format an accuracy: `0.734 [0.689, 0.775]`."""
    return f"{share.estimate:.3f} [{share.low:.3f}, {share.high:.3f}]"


def _comparison(neural: Agreement, words: Agreement, held: LabelledSet) -> Section:
    rows = [
        ("accuracy [95 % interval]", *(show_interval(each.accuracy) for each in (neural, words))),
        ("loss, nats", *(f"{each.loss:.4f}" for each in (neural, words))),
        ("expected calibration error", *(f"{each.calibration_error:.4f}" for each in (neural, words))),
        ("correlation of score and length", *(f"{each.length_correlation:+.3f}" for each in (neural, words))),
    ]
    note = (
        f"{len(held.rows)} held-out labels of {held.num_prompts} prompts. Labels of one prompt are correlated, "
        "so Wilson's intervals use the effective number of labels. Labels without a prompt of their own are "
        "treated as independent, although they may share completions."
    )
    if neural.length_bias is not None and words.length_bias is not None:
        rows.append(
            (
                "share of longer completions preferred",
                *(_share(each.length_bias.longer_preferred) for each in (neural, words) if each.length_bias),
            )
        )
        note += f" Always preferring the longer completion has accuracy {neural.length_bias.longer_wins:.3f}."
    return Section(
        title="Held-out labels",
        note=note,
        heads=("", "reward model", "bag of words"),
        rows=tuple(rows),
    )


def _margins(neural: Agreement, words: Agreement) -> Section:
    rows = [
        (name, f"{each.low:.3g} to {each.high:.3g}", str(each.count), show_interval(each.accuracy))
        for name, agreement in (("reward model", neural), ("bag of words", words))
        for each in agreement.by_margin
    ]
    return Section(
        title="Accuracy by margin",
        note="The margin is the difference of the two highest scores (thumbs: the absolute score), in logits before "
        "normalisation.",
        heads=("", "margin", "examples", "accuracy"),
        rows=tuple(rows),
    )


def _words(baseline: BagOfWords) -> Section:
    best, worst = baseline.strongest(NUM_WORDS)
    return Section(
        title="What the bag of words learned",
        heads=("direction", "words"),
        is_prose=True,
        rows=(("raise the score", ", ".join(best)), ("lower the score", ", ".join(worst))),
    )


def _worst(held: LabelledSet, scores: np.ndarray, neural: Agreement) -> Section:
    """The wrong choices with the largest margins."""
    targets = held.targets
    if held.num_completions == 1:
        lead = -scores[:, 0] * (2.0 * targets - 1)
    else:
        preferred = np.take_along_axis(scores, targets[:, None], axis=-1)[:, 0]
        others = np.where(np.arange(scores.shape[1]) == targets[:, None], -np.inf, scores)
        lead = others.max(axis=-1) - preferred
    order = [int(i) for i in np.argsort(-lead, kind="stable")[:NUM_EXAMPLES] if lead[i] > 0]
    rows = []
    for index in order:
        texts = held.rows[index].texts()
        wrong = 0 if held.num_completions == 1 else int(np.argmax(scores[index]))
        people = ("up" if targets[index] else "down") if held.num_completions == 1 else _cut(texts[targets[index]])
        rows.append((f"{lead[index]:.3f}", _cut(texts[wrong]), people))
    return Section(
        title="Most confident mistakes",
        note=f"Accuracy {show_interval(neural.accuracy)}; these held-out rows have the highest loss.",
        is_prose=True,
        heads=("margin", "model's choice" if held.num_completions > 1 else "completion", "annotator's choice"),
        rows=tuple(rows),
    )


def _draw(path: Path, neural: Agreement, words: Agreement) -> None:
    path.parent.mkdir(exist_ok=True)
    figure = Figure(figsize=(8.4, 4.0), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2, sharey=True)
    for panel, name, agreement, color in (
        (panels[0], "reward model", neural, "#0072B2"),
        (panels[1], "bag of words", words, "#D55E00"),
    ):
        _draw_curve(panel, name, agreement, color)
    panels[0].set_ylabel("observed frequency")
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    storage.write_atomically(path, picture.getvalue())


def _draw_curve(panel: Axes, name: str, agreement: Agreement, color: str) -> None:
    curve = agreement.reliability
    low = 0.0 if agreement.length_bias is None else min(0.5, float(curve.predicted.min()))
    panel.plot([low, 1], [low, 1], color="#888888", linestyle=":", linewidth=1)
    panel.plot(curve.predicted, curve.observed, color=color, linewidth=1.4)
    panel.scatter(curve.predicted, curve.observed, s=200 * curve.counts / curve.counts.max(), color=color, alpha=0.6)
    panel.set_title(f"{name} (ECE {agreement.calibration_error:.3f})", fontsize=10)
    panel.set_xlabel("predicted probability")
    panel.set_ylim(-0.03, 1.03)
    panel.grid(visible=True, color="#DDDDDD", linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)


def _share(value: float) -> str:
    return "no such pairs" if np.isnan(value) else f"{value:.3f}"


def _cut(text: str) -> str:
    return text if len(text) <= MAX_CHARACTERS else text[:MAX_CHARACTERS] + " ..."


def _shown(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)
