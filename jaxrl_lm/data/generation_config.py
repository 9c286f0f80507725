"""Read a model folder's generation_config.json as Hugging Face's `generate` does."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from jaxrl_lm import guarded
from jaxrl_lm.errors import InputError

GENERATION_FILE = "generation_config.json"

_NUMBERS = ("temperature", "top_k", "top_p", "repetition_penalty", "max_new_tokens", "min_new_tokens")
# What these say is read elsewhere, has no meaning for text from a decoder, or cannot change which tokens are drawn.
_WITHOUT_EFFECT = {
    *("_from_model_config", "bos_token_id", "decoder_start_token_id", "do_sample", "eos_token_id", "pad_token_id"),
    *("transformers_version", "trust_remote_code", "early_stopping", "suppress_tokens", *_NUMBERS),
    *("cache_config", "cache_implementation", "compile_config", "disable_compile", "low_memory", "max_cache_len"),
    *("output_attentions", "output_hidden_states", "output_logits", "output_scores", "prefill_chunk_size"),
    *("return_dict_in_generate", "use_cache"),
}
# Values at which a field that is not supported does nothing; null does nothing anywhere.
_NEUTRAL: dict[str, Any] = {
    **dict.fromkeys(("num_beams", "num_beam_groups", "num_return_sequences", "typical_p", "length_penalty"), 1),
    **dict.fromkeys(("encoder_repetition_penalty", "guidance_scale"), 1),
    **dict.fromkeys(("min_length", "min_p", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size"), 0),
    **dict.fromkeys(("epsilon_cutoff", "eta_cutoff", "diversity_penalty", "penalty_alpha"), 0),
    **dict.fromkeys(("renormalize_logits", "remove_invalid_values", "token_healing"), False),
    "max_length": 20,
}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class GenerationDefaults:
    """Generation settings of a model folder.

    Attributes:
        file: their file; None without a file.
        stop_tokens: ids of tokens that end a completion.
        pad_token: id that fills padding, or None.
        sampling: what `rollouts.SamplingConfig` has a field for: temperature (0 where `do_sample` is false), top_k,
            top_p, repetition_penalty, max_new_tokens, min_new_tokens, suppress_tokens; only those that the file has.
        left_out: "name=value" of what is not supported.
        content: the file's, which the folder of a trained model gets as well.
    """

    file: Path | None = None
    stop_tokens: tuple[int, ...] = ()
    pad_token: int | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    content: dict[str, Any] = field(default_factory=dict)


def read_generation_config(folder: Path, *, vocab_size: int) -> GenerationDefaults:
    """Read generation_config.json; without one, the stop tokens where config.json lists several.

    A single `eos_token_id` of config.json is not read: in many folders it is the default of its class, and no token of
    this tokenizer's that would end anything.

    Args:
        folder: a model folder.
        vocab_size: rows of the embedding; ids outside are left out.

    Raises:
        InputError: the file is not a JSON object, or a field has a value of another type.
    """
    path = folder / GENERATION_FILE
    if not path.is_file():
        path = folder / "config.json"
    content = _content_of(path)
    if not content:
        return GenerationDefaults()
    stops = _token_ids(content, "eos_token_id", path)
    pads = _token_ids(content, "pad_token_id", path)
    suppressed = _token_ids(content, "suppress_tokens", path)
    sampling: dict[str, Any] = {
        name: _number(content, name, path) for name in _NUMBERS if content.get(name) is not None
    }
    if _flag(content, "do_sample", path) is False:
        sampling["temperature"] = 0.0
    if suppressed:
        sampling["suppress_tokens"] = tuple(token for token in suppressed if 0 <= token < vocab_size)
    outside = [f"eos_token_id={token} (not in the vocabulary)" for token in stops if not 0 <= token < vocab_size]
    return GenerationDefaults(
        file=path,
        stop_tokens=tuple(token for token in stops if 0 <= token < vocab_size),
        pad_token=next((token for token in pads if 0 <= token < vocab_size), None),
        sampling=sampling,
        left_out=(*outside, *(f"{name}={value!r}" for name, value in content.items() if _is_missed(name, value))),
        content=content if path.name == GENERATION_FILE else {},
    )


def write_generation_config(folder: Path, defaults: GenerationDefaults, stop_tokens: tuple[int, ...]) -> None:
    """Write the file that a trained model was started with into its own folder, with its stop tokens.

    Args:
        folder: of the trained model.
        defaults: of the model that training started from; nothing is written where it had no file.
        stop_tokens: ids of tokens that end a completion.
    """
    if not defaults.content:
        return
    ids = list(stop_tokens) if len(stop_tokens) > 1 else next(iter(stop_tokens), None)
    content = defaults.content | {"eos_token_id": ids}
    (folder / GENERATION_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def warn_left_out(defaults: GenerationDefaults, *, is_learning: bool) -> None:
    """Name, once, the fields of the file that are not used.

    Args:
        defaults: what the file says.
        is_learning: whether completions are learned from, or compared with those that are. They are drawn from the
            whole softmax, as their log-probabilities say, so that fields of sampling are not used either.
    """
    sampling = [f"{name}={value}" for name, value in defaults.sampling.items()] if is_learning else []
    if defaults.left_out:
        _warn_once(f"{defaults.file}: not supported and left out: {', '.join(defaults.left_out)}")
    if sampling:
        _warn_once(
            f"{defaults.file}: left out: {', '.join(sampling)}; completions are sampled here from the full softmax, "
            "with the temperature and length of the options"
        )


def warn_other_defaults(defaults: GenerationDefaults, given: Mapping[str, Any]) -> None:
    """Say, once, where Hugging Face's `generate` fills in what the file lacks, and completions are sampled here.

    Without `do_sample` it decodes greedily, and with it, but without `top_k`, it samples from 50 tokens.

    Args:
        defaults: what the file says.
        given: values of the options that are given.
    """
    content = defaults.content
    temperature = given.get("temperature", defaults.sampling.get("temperature", 1))
    if temperature == 0:
        return
    if content and content.get("do_sample") is None and "temperature" not in given:
        _warn_once(
            f"{defaults.file}: has no do_sample, so Hugging Face decodes greedily; completions are sampled here, at "
            f"temperature {temperature:g}; give temperature 0 to decode greedily"
        )
    elif content.get("do_sample") and content.get("top_k") is None and "top_k" not in given:
        _warn_once(
            f"{defaults.file}: has no top_k, so Hugging Face samples from the 50 most likely tokens; all tokens are "
            "sampled from here; give top_k 50 for the same"
        )


@cache
def _warn_once(message: str) -> None:
    _log.warning(message)


def _is_missed(name: str, value: Any) -> bool:
    is_neutral = value is None or value in ([], {}) or (name in _NEUTRAL and value == _NEUTRAL[name])
    return name not in _WITHOUT_EFFECT and not is_neutral


def _content_of(path: Path) -> dict[str, Any]:
    """What generation_config.json holds, or the list of stop tokens in config.json."""
    content = guarded.read_object(path, remedy="copy or download it again") if path.is_file() else {}
    if path.name == GENERATION_FILE:
        return content
    ids = content.get("eos_token_id")
    return {"eos_token_id": ids} if isinstance(ids, list) else {}


def _token_ids(content: dict[str, Any], name: str, path: Path) -> list[int]:
    value = content.get(name)
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(type(token) is int for token in ids):
        raise InputError(f"{path}: {name}={value!r} must be a token id or a list of them; correct it")
    return ids


def _flag(content: dict[str, Any], name: str, path: Path) -> bool | None:
    value = content.get(name)
    if value is not None and type(value) is not bool:
        raise InputError(f"{path}: {name}={value!r} must be true or false; correct it")
    return value


def _number(content: dict[str, Any], name: str, path: Path) -> int | float:
    value = content[name]
    if type(value) not in (int, float):
        raise InputError(f"{path}: {name}={value!r} must be a number; correct it")
    return value
