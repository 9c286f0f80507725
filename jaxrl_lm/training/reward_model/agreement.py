"""Agreement of a reward model, or of the baseline, with human labels on held-out rows."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy import special

from jaxrl_lm.algorithms.reward_model import Objective
from jaxrl_lm.core import calibration
from jaxrl_lm.core.calibration import Interval, LengthBias, MarginBin, ReliabilityCurve


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How well scores predict held-out labels.

    Attributes:
        accuracy: share of rows in which the model prefers the same completion as the annotator (thumbs: the score has
            the label's sign), with Wilson's 95 % interval, widened for labels that share a prompt.
        loss: mean loss, nats.
        by_margin: accuracy by the margin between the two highest scores (thumbs: by the absolute score).
        reliability: predicted and observed frequency of a correct choice (thumbs: of a thumb up).
        calibration_error: expected calibration error of that curve.
        length_correlation: correlation of score and length (pairs: of their differences).
        length_bias: length bias in pairs; None for thumbs.
    """

    accuracy: Interval
    loss: float
    by_margin: list[MarginBin]
    reliability: ReliabilityCurve
    calibration_error: float
    length_correlation: float
    length_bias: LengthBias | None

    def as_record(self) -> dict[str, Any]:
        """Plain values for a JSON file; NaN (a share of no pairs) becomes None."""
        return {
            "accuracy": self.accuracy._asdict(),
            "loss": self.loss,
            "by_margin": [each._asdict() | {"accuracy": each.accuracy._asdict()} for each in self.by_margin],
            "reliability": {name: values.tolist() for name, values in self.reliability._asdict().items()},
            "calibration_error": self.calibration_error,
            "length_correlation": self.length_correlation,
            "length_bias": None if self.length_bias is None else _without_nan(self.length_bias._asdict()),
        }


def measure_agreement(
    objective: Objective,
    scores: Float[np.ndarray, "N K"],
    targets: Int[np.ndarray, " N"],
    lengths: Int[np.ndarray, "N K"],
    groups: Int[np.ndarray, " N"],
) -> Agreement:
    """Compare scores with human labels.

    Args:
        objective: kind of the labels.
        scores: score of each completion, logits.
        targets: index of the preferred completion; for thumbs, 1 is up and 0 is down.
        lengths: length of each completion, in any unit.
        groups: number of the prompt that each row belongs to.
    """
    scores = np.asarray(scores, np.float64)
    if objective == "binary":
        return _of_thumbs(scores[:, 0], targets, lengths[:, 0], groups)
    probabilities, correct = calibration.choice_confidence(scores, targets)
    curve = calibration.reliability_curve(probabilities, correct)
    ordered = np.sort(scores, axis=-1)
    log_probs = special.log_softmax(scores, axis=-1)
    bias = calibration.length_bias(_against_others(scores, targets), _against_others(lengths, targets))
    return Agreement(
        accuracy=calibration.clustered_interval(correct, groups),
        loss=float(-np.mean(np.take_along_axis(log_probs, targets[:, None], axis=-1))),
        by_margin=calibration.accuracy_by_margin(correct, ordered[:, -1] - ordered[:, -2], groups),
        reliability=curve,
        calibration_error=calibration.expected_calibration_error(curve),
        length_correlation=bias.correlation,
        length_bias=bias,
    )


def _without_nan(shares: dict[str, float]) -> dict[str, float | None]:
    return {name: None if np.isnan(share) else share for name, share in shares.items()}


def _of_thumbs(scores: np.ndarray, labels: np.ndarray, lengths: np.ndarray, groups: np.ndarray) -> Agreement:
    signs = 2.0 * labels - 1
    correct = calibration.correctness(scores * signs)
    curve = calibration.reliability_curve(special.expit(scores), labels)
    return Agreement(
        accuracy=calibration.clustered_interval(correct, groups),
        loss=float(np.mean(np.logaddexp(0, -scores * signs))),
        by_margin=calibration.accuracy_by_margin(correct, np.abs(scores), groups),
        reliability=curve,
        calibration_error=calibration.expected_calibration_error(curve),
        length_correlation=calibration.pearson(scores, lengths),
        length_bias=None,
    )


def _against_others(values: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The preferred completion's value minus each other one's, `[N * (K - 1)]`."""
    is_other = np.arange(values.shape[1]) != targets[:, None]
    preferred = np.take_along_axis(values, targets[:, None], axis=-1)
    return np.asarray((preferred - values)[is_other], np.float64)
