"""How well a reward model, or the baseline, agrees with people on held-out judgements."""

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
    """What the scores of held-out answers are worth.

    Attributes:
        accuracy: share of the rows in which the model's choice (or sign) is people's, with Wilson's 95 % interval,
            widened by what the judgements of one prompt share.
        loss: mean loss, nats.
        by_margin: accuracy by how far the model's choice is ahead.
        reliability: predicted and observed frequency of being right (thumbs: of a thumb up).
        calibration_error: expected calibration error of that curve.
        length_correlation: of score and length; of pairs, of their differences.
        length_bias: of pairs; None for thumbs.
    """

    accuracy: Interval
    loss: float
    by_margin: list[MarginBin]
    reliability: ReliabilityCurve
    calibration_error: float
    length_correlation: float
    length_bias: LengthBias | None

    def as_record(self) -> dict[str, Any]:
        """Plain values for a JSON file; a share of no pairs is None, for JSON has no NaN."""
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
    """Compare scores with people's judgements.

    Args:
        objective: what the judgements are.
        scores: of each answer, logits.
        targets: index of the preferred answer; for thumbs 1 for up.
        lengths: of each answer, in any unit.
        groups: which prompt each row belongs to, as a number.
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
    """The preferred answer's value minus that of each other one, `[N * (K - 1)]`."""
    is_other = np.arange(values.shape[1]) != targets[:, None]
    preferred = np.take_along_axis(values, targets[:, None], axis=-1)
    return np.asarray((preferred - values)[is_other], np.float64)
