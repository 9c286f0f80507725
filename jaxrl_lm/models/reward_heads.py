"""The scale of a reward: its head brought to mean 0 and standard deviation 1 over reference samples, and kept so.

The gain lies in the saved head's weights. So does the bias of an encoder, whose head has one, and torch's class then
gives the normalised score. The head of a decoder has no bias in torch's class: there the score is short of a constant,
the offset, which `reward_scale.json` holds and a learned reward adds. It also holds the longest text of training.
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
    """How scores were normalised, `normalised = gain * logit + bias`, and over how long texts.

    Attributes:
        gain: lies in the head's weights already. `(score - bias) / gain` is the logit that the model was trained on.
        bias: mean of the samples, negative and scaled.
        offset: what is still to be added to the saved model's score: the bias where the head has none, else 0.
        max_tokens: longest text that the model was trained and normalised on, tokens; None for what it holds.
    """

    gain: float = 1.0
    bias: float = 0.0
    offset: float = 0.0
    max_tokens: int | None = None


def measure_scale(scores: Float[np.ndarray, " N"]) -> tuple[float, float]:
    """Gain and bias that give these scores mean 0 and standard deviation 1: `1 / std` and `-mean / std`.

    Args:
        scores: of samples of the reference policy, at least two.

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
            f"of {std}; give samples that differ, or 0 to leave scores as they are"
        )
    return 1 / std, -float(np.mean(np.asarray(scores, np.float64))) / std


def scale_head(model: RewardModel, params: PyTree, gain: float, bias: float) -> tuple[PyTree, float]:
    """Parameters whose scores are `gain * score + bias`, but for the offset that is returned.

    Args:
        model: a reward model.
        params: its parameters.
        gain: factor.
        bias: what is added behind it.

    Returns:
        New parameters, and the offset: 0 where the head has a bias, else `bias`.
    """
    name = model.family.score_head
    head = {"kernel": params[name]["kernel"] * gain}
    if "bias" in params[name]:
        head["bias"] = params[name]["bias"] * gain + bias
        bias = 0.0
    return {**params, name: head}, bias


def new_head(model: RewardModel, params: PyTree, key: jax.Array, std: float | None = None) -> PyTree:
    """Parameters with the score head drawn anew: weights N(0, std), bias 0.

    Args:
        model: a reward model.
        params: its parameters.
        key: of the draw.
        std: standard deviation of the weights; None for 1/sqrt(D + 1).

    Reference: Stiennon et al., 2020, Learning to Summarize from Human Feedback.
    """
    name = model.family.score_head
    scale = (model.config.model_size + 1) ** -0.5 if std is None else std
    head = {path: jnp.zeros_like(leaf) for path, leaf in params[name].items()}
    head["kernel"] = scale * jax.random.normal(key, head["kernel"].shape, head["kernel"].dtype)
    return {**params, name: head}


def with_padding(model: RewardModel, pad_token: int) -> RewardModel:
    """The model with this pad token in its configuration: torch's classes find a row's last token by it."""
    hf: dict[str, Any] = model.config.hf_config() | {"pad_token_id": pad_token}
    return model.clone(config=replace(model.config, hf_json=json.dumps(hf, sort_keys=True)))


def write_scale(folder: Path, scale: RewardScale) -> None:
    """Put the scale beside the weights, after `save_pretrained`, which takes an old one away."""
    (folder / REWARD_SCALE_FILE).write_text(json.dumps(asdict(scale), indent=2) + "\n")


def read_scale(folder: Path) -> RewardScale:
    """The scale of a reward model's folder; one that was never normalised has gain 1, bias 0 and no limit.

    Raises:
        InputError: the file is no scale.
    """
    path = folder / REWARD_SCALE_FILE
    if not path.is_file():
        return RewardScale()
    remedy = "save the reward model again"
    found = guarded.read_object(path, remedy=remedy)
    with guarded.foreign_errors(f"{path}: no scale of a reward", remedy):
        max_tokens = found.pop("max_tokens", None)
        if max_tokens is not None and not (type(max_tokens) is int and 0 < max_tokens < 2**31):
            raise ValueError(f"max_tokens={max_tokens!r:.60} is no whole number above 0")
        scale = RewardScale(**{name: float(value) for name, value in found.items()}, max_tokens=max_tokens)
    if not all(map(math.isfinite, (scale.gain, scale.bias, scale.offset))) or not scale.gain > 0:
        raise InputError(f"{path}: {scale} must be finite with a gain above 0; save the reward model again")
    return scale
