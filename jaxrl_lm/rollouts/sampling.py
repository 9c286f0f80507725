"""Sample tokens from logits."""

import operator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxrl_lm import checks
from jaxrl_lm.errors import InputError

SamplingWeights = Literal["same", "int8"]

_BLOCK = 256  # tokens a block of the two-level inverse of the cumulative distribution


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Settings of sampling.

    Attributes:
        max_new_tokens: maximum length of a completion, in tokens.
        temperature: divides the logits; 0 is greedy decoding.
        top_k: sample from the k most likely tokens only; 0 for all.
        top_p: sample from the smallest set of most likely tokens with a total probability of at least p; 1 for all.
        repetition_penalty: divides the positive logits, and multiplies the negative ones, of every token in the prompt
            or the completion so far; 1 for none.
        min_new_tokens: minimum length; stop tokens are not sampled before it.
        suppress_tokens: ids of tokens that are never sampled; also a list, one id or None.
        stop_tokens: ids of tokens that end the completion and are its last token; also a list, one id or None.
        ignore_stops_before: number of first tokens among which a stop token is an ordinary token
            (Ziegler et al. 2019 cut completions at the first full stop after a minimum length).
        pad_token: id after the end of a completion. It may be outside the vocabulary.
        weights: the parameters of the blocks' projections as they are ("same"), or rounded to "int8" for decoding.

    `top_k`, `top_p`, `repetition_penalty`, `min_new_tokens` and `suppress_tokens` change the sampling distribution, but
    not the log-probabilities that `generate` returns, which are the model's at this temperature. Do not use them for
    learning: the KL divergence estimated from these log-probabilities would be biased and could be negative.

    Reference: Keskar et al., 2019, CTRL: A Conditional Transformer Language Model for Controllable Generation (the
    repetition penalty).
    """

    max_new_tokens: int = 64
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    min_new_tokens: int = 0
    suppress_tokens: tuple[int, ...] = ()
    stop_tokens: tuple[int, ...] = ()
    ignore_stops_before: int = 0
    pad_token: int = 0
    weights: SamplingWeights = "same"

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "top_k", "min_new_tokens", "ignore_stops_before", "pad_token"):
            object.__setattr__(self, name, _whole(name, getattr(self, name)))
        for name in ("temperature", "top_p", "repetition_penalty"):
            object.__setattr__(self, name, _real(name, getattr(self, name)))
        for name in ("suppress_tokens", "stop_tokens"):
            object.__setattr__(self, name, _token_ids(name, getattr(self, name)))
        checks.one_of(self, weights=SamplingWeights)
        _check(self.max_new_tokens >= 1, "max_new_tokens", self.max_new_tokens, "at least 1")
        _check(self.temperature >= 0, "temperature", self.temperature, "0 (greedy) or more")
        _check(self.top_k >= 0, "top_k", self.top_k, "0 (all) or more")
        _check(0 < self.top_p <= 1, "top_p", self.top_p, "above 0 and at most 1")
        _check(0 < self.repetition_penalty < float("inf"), "repetition_penalty", self.repetition_penalty, "above 0")
        _check(self.min_new_tokens >= 0, "min_new_tokens", self.min_new_tokens, "0 or more")
        _check(self.ignore_stops_before >= 0, "ignore_stops_before", self.ignore_stops_before, "0 or more")

    @property
    def log_prob_temperature(self) -> float:
        """Temperature of the returned log-probabilities: the sampling temperature, or 1 when greedy."""
        return self.temperature or 1.0


def _check(is_good: bool, field: str, value: object, wanted: str) -> None:
    if not is_good:
        raise InputError(f"{field}={value!r} must be {wanted}")


def _whole(field: str, value: Any) -> int:
    """A Python integer, so that equal configurations share one compiled program."""
    try:
        found = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        found = None
    if found is None:
        raise InputError(f"{field}={value!r} must be a whole number")
    return found


def _real(field: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise InputError(f"{field}={value!r} must be a number") from None


def _token_ids(field: str, value: Any) -> tuple[int, ...]:
    """Ids from any collection of them, one id or None."""
    if value is None:
        return ()
    ids = value if hasattr(value, "__iter__") and not isinstance(value, str) else [value]
    try:
        found = tuple(_whole(field, each) for each in ids)
    except InputError:
        raise InputError(f"{field}={value!r} must be token ids: a tuple or list of whole numbers") from None
    _check(min(found, default=0) >= 0, field, value, "token ids, 0 or more")
    return found


def sample(
    logits: Float[Array, "B V"],
    keys: Key[Array, " B"],
    config: SamplingConfig,
    is_early: Bool[Array, ""],
    is_seen: Bool[Array, "B V"] | None = None,
) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
    """Sample one token per row; also return its log-probability under softmax(logits / temperature).

    Args:
        logits: unscaled, float32.
        keys: one per row, so that a row's token does not depend on the batch.
        config: sampling settings.
        is_early: whether stop tokens are still forbidden.
        is_seen: tokens in the prompt or the completion so far; only needed with a repetition penalty.
    """
    scaled = logits / config.log_prob_temperature
    penalized = logits if is_seen is None else penalize_repetition(logits, is_seen, config.repetition_penalty)
    allowed = _restrict(penalized / config.log_prob_temperature, config, is_early)
    tokens = jnp.argmax(allowed, axis=-1) if config.temperature == 0 else sample_categorical(keys, allowed)
    chosen = jnp.take_along_axis(scaled, tokens[:, None], axis=-1)[:, 0]
    return tokens.astype(jnp.int32), chosen - jax.nn.logsumexp(scaled, axis=-1)


def penalize_repetition(
    logits: Float[Array, "B V"], is_seen: Bool[Array, "B V"], penalty: float
) -> Float[Array, "B V"]:
    """Replace the logit z of seen tokens by `z / penalty` if it is positive, else by `z * penalty`.

    Args:
        logits: unscaled.
        is_seen: tokens in the prompt or the completion so far.
        penalty: above 1 makes seen tokens less likely.

    Reference: Keskar et al., 2019, CTRL: A Conditional Transformer Language Model for Controllable Generation.
    """
    return jnp.where(is_seen, jnp.where(logits < 0, logits * penalty, logits / penalty), logits)


def sample_categorical(keys: Key[Array, " B"], logits: Float[Array, "B V"]) -> Int[Array, " B"]:
    """Sample from softmax(logits) by inverting the cumulative distribution, with one uniform number per row.

    The Gumbel trick would need one random number per token of the vocabulary. Block sums locate the block first, then
    the token within it.
    """
    batch, vocab_size = logits.shape
    weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    blocks = jnp.pad(weights, ((0, 0), (0, -vocab_size % _BLOCK))).reshape(batch, -1, _BLOCK)
    block_ends = jnp.cumsum(jnp.sum(blocks, axis=-1), axis=-1)
    uniform = jax.vmap(partial(jax.random.uniform, dtype=jnp.float32))(keys)
    target = uniform * block_ends[:, -1]
    block = _first_above(block_ends, target)
    before = jnp.where(block > 0, _pick(block_ends, jnp.maximum(block - 1, 0)), 0.0)
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    token = _first_above(jnp.cumsum(inside, axis=-1), target - before)
    return _settle(block * _BLOCK + token, weights)


def _first_above(ends: Float[Array, "B M"], target: Float[Array, " B"]) -> Int[Array, " B"]:
    return jnp.minimum(jnp.sum(ends <= target[:, None], axis=-1), ends.shape[-1] - 1)


def _pick(x: Float[Array, "B M"], index: Int[Array, " B"]) -> Float[Array, " B"]:
    return jnp.take_along_axis(x, index[:, None], axis=-1)[:, 0]


def _settle(tokens: Int[Array, " B"], weights: Float[Array, "B V"]) -> Int[Array, " B"]:
    """Replace tokens of probability 0, which rounding of the sums can select, by the most likely token."""
    tokens = jnp.minimum(tokens, weights.shape[-1] - 1)
    return jnp.where(_pick(weights, tokens) > 0, tokens, jnp.argmax(weights, axis=-1))


def _restrict(scaled: Float[Array, "B V"], config: SamplingConfig, is_early: Bool[Array, ""]) -> Float[Array, "B V"]:
    if config.suppress_tokens:
        scaled = scaled.at[:, jnp.array(config.suppress_tokens)].set(-jnp.inf)
    if config.min_new_tokens and config.stop_tokens:
        is_stop = jnp.zeros(scaled.shape[-1], bool).at[jnp.array(config.stop_tokens)].set(True)
        scaled = jnp.where(is_stop & is_early, -jnp.inf, scaled)
    if 0 < config.top_k < scaled.shape[-1]:
        lowest = jax.lax.top_k(scaled, config.top_k)[0][:, -1:]
        scaled = jnp.where(scaled < lowest, -jnp.inf, scaled)
    if config.top_p < 1:
        ordered = jnp.sort(scaled, axis=-1, descending=True)
        probs = jax.nn.softmax(ordered, axis=-1)
        mass_before = jnp.cumsum(probs, axis=-1) - probs
        lowest = jnp.min(jnp.where(mass_before < config.top_p, ordered, jnp.inf), axis=-1, keepdims=True)
        scaled = jnp.where(scaled < lowest, -jnp.inf, scaled)
    return scaled
