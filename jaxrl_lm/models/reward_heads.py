"""Reward normalisation: scores with mean 0 and standard deviation 1 over reference samples.

The gain is folded into the saved head's weights. For an encoder, whose head has a bias, the bias is too, and torch's
class returns the normalised score. A decoder's head has no bias in torch's class: its score lacks a constant, the
offset, which is stored in `reward_scale.json` and added by a learned reward. The file also stores the longest text of
training.
"""

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxrl_lm import guarded
from jaxrl_lm.errors import InputError
from jaxrl_lm.models.pretrained import REWARD_SCALE_FILE, RewardModel
from jaxrl_lm.types import PyTree


@dataclass(frozen=True, kw_only=True)
class RewardScale:
    """The normalisation of scores, `normalised = gain * logit + bias`, and the longest text.

    Attributes:
        gain: already in the head's weights. `(score - bias) / gain` is the logit that the model was trained on.
        bias: the samples' mean, scaled and negated.
        offset: constant to add to the saved model's score: the bias if the head has none, otherwise 0.
        max_tokens: longest text in training and normalisation, in tokens; None for the model's context.
    """

    gain: float = 1.0
    bias: float = 0.0
    offset: float = 0.0
    max_tokens: int | None = None


def measure_scale(scores: Float[np.ndarray, " N"]) -> tuple[float, float]:
    """Gain and bias that normalise these scores to mean 0 and standard deviation 1: `1 / std` and `-mean / std`.

    Args:
        scores: scores of at least two samples of the reference policy.

    Returns:
        Gain and bias.

    Raises:
        InputError: the scores do not differ, or are not finite.

    Reference: Ziegler et al., 2019, Fine-Tuning Language Models from Human Preferences, section 2.1.
    """
    std = float(np.std(np.asarray(scores, np.float64)))
    if not (math.isfinite(std) and std > 0):
        raise InputError(
            f"normalisation.num_samples={len(scores)}: the scores of the reference samples have a standard deviation "
            f"of {std}; give samples that differ, or 0 for no normalisation"
        )
    return 1 / std, -float(np.mean(np.asarray(scores, np.float64))) / std


def scale_head(model: RewardModel, params: PyTree, gain: float, bias: float) -> tuple[PyTree, float]:
    """Scale the head so that scores become `gain * score + bias`, up to the returned offset.

    Args:
        model: a reward model.
        params: its parameters.
        gain: factor.
        bias: constant to add.

    Returns:
        New parameters, and the offset: 0 if the head has a bias, otherwise `bias`.
    """
    name = model.family.score_head
    head = {"kernel": params[name]["kernel"] * gain}
    if "bias" in params[name]:
        head["bias"] = params[name]["bias"] * gain + bias
        bias = 0.0
    return {**params, name: head}, bias


def new_head(model: RewardModel, params: PyTree, key: jax.Array, std: float | None = None) -> PyTree:
    """Reinitialise the score head: weights N(0, std), bias 0.

    Args:
        model: a reward model.
        params: its parameters.
        key: random key.
        std: standard deviation of the weights; None for 1/sqrt(D + 1).

    Reference: Stiennon et al., 2020, Learning to Summarize from Human Feedback.
    """
    name = model.family.score_head
    scale = (model.config.model_size + 1) ** -0.5 if std is None else std
    head = {path: jnp.zeros_like(leaf) for path, leaf in params[name].items()}
    head["kernel"] = scale * jax.random.normal(key, head["kernel"].shape, head["kernel"].dtype)
    return {**params, name: head}


def with_padding(model: RewardModel, pad_token: int) -> RewardModel:
    """Set the pad token in the model's configuration; torch's classes use it to find a row's last token."""
    hf: dict[str, Any] = model.config.hf_config() | {"pad_token_id": pad_token}
    return model.clone(config=replace(model.config, hf_json=json.dumps(hf, sort_keys=True)))


def write_scale(folder: Path, scale: RewardScale) -> None:
    """Save the scale with the weights; call it after `save_pretrained`, which deletes an old one."""
    (folder / REWARD_SCALE_FILE).write_text(json.dumps(asdict(scale), indent=2) + "\n")


def read_scale(folder: Path) -> RewardScale:
    """Load the scale of a reward model's folder; without normalisation it has gain 1, bias 0 and no length limit.

    Raises:
        InputError: the file is invalid.
    """
    path = folder / REWARD_SCALE_FILE
    if not path.is_file():
        return RewardScale()
    remedy = "save the reward model again"
    found = guarded.read_object(path, remedy=remedy)
    with guarded.foreign_errors(f"{path}: not a valid reward scale", remedy):
        max_tokens = found.pop("max_tokens", None)
        if max_tokens is not None and not (type(max_tokens) is int and 0 < max_tokens < 2**31):
            raise ValueError(f"max_tokens={max_tokens!r:.60} must be a positive integer")
        scale = RewardScale(**{name: float(value) for name, value in found.items()}, max_tokens=max_tokens)
    if not all(map(math.isfinite, (scale.gain, scale.bias, scale.offset))) or not scale.gain > 0:
        raise InputError(f"{path}: {scale} must be finite with a gain above 0; save the reward model again")
    return scale
