"""The model families: which module implements which `model_type` of a config.json.

A new family needs one file, with a configuration reader and a stack of blocks, and one line here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flax import linen as nn

from jaxrl_lm.errors import InputError
from jaxrl_lm.models import bert, gemma, gpt2, gpt_neox, llama, packing, phi, qwen3_moe
from jaxrl_lm.models.config import ModelConfig
from jaxrl_lm.models.packing import Packing


@dataclass(frozen=True, kw_only=True)
class Family:
    """The layout of a family's modules and public checkpoints.

    Attributes:
        config_from_hf: reads the Hugging Face configuration.
        backbone: the stack of blocks, `(config, dtype, param_dtype, remat, is_scanned)`; an encoder's is not scanned.
        embedding: name of the token embedding in the backbone.
        layers: name of the blocks in the backbone, without their number.
        prefix: prefix of the weights' names in the checkpoint of a full language model.
        is_torch_output_first: whether torch stores weights (out, in), like its Linear and our modules; Conv1D does not.
        is_flax_output_first: whether Hugging Face's Flax class stored kernels (out, in).
        flax_norm_scale: name of a norm's scale in Hugging Face's Flax class.
        class_prefix: prefix of Hugging Face's class names, such as `LlamaForCausalLM`.
        score_head: name of a reward model's head, in our parameters and in a checkpoint.
        is_causal: whether it is a decoder, which can generate text.
        packing: form of the tensors in a safetensors file.
        scorer_prefix: `class_prefix` of a reward model, where it is another.
    """

    config_from_hf: Callable[[dict[str, Any]], ModelConfig]
    backbone: Callable[..., nn.Module]
    embedding: str
    layers: str
    prefix: str
    is_torch_output_first: bool
    is_flax_output_first: bool
    flax_norm_scale: str
    class_prefix: str
    score_head: str = "score"
    is_causal: bool = True
    packing: Packing = packing.AS_IS
    scorer_prefix: str | None = None


def _llama(
    class_prefix: str,
    config_from_hf: Callable[[dict[str, Any]], ModelConfig] = llama.config_from_hf,
    backbone: Callable[..., nn.Module] = llama.Llama,
    **options: Any,
) -> Family:
    """A family whose checkpoints have the names of Llama's."""
    return Family(
        config_from_hf=config_from_hf,
        backbone=backbone,
        embedding="embed_tokens",
        layers="layers",
        prefix="model",
        is_torch_output_first=True,
        is_flax_output_first=False,
        flax_norm_scale="weight",
        class_prefix=class_prefix,
        **options,
    )


FAMILIES: dict[str, Family] = {
    "gpt2": Family(
        config_from_hf=gpt2.config_from_hf,
        backbone=gpt2.GPT2,
        embedding="wte",
        layers="h",
        prefix="transformer",
        is_torch_output_first=False,
        is_flax_output_first=True,
        flax_norm_scale="scale",
        class_prefix="GPT2",
    ),
    "llama": _llama("Llama"),
    "mistral": _llama("Mistral"),
    "ministral": _llama("Ministral"),
    "qwen2": _llama("Qwen2"),
    "qwen3": _llama("Qwen3"),
    "qwen3_moe": _llama("Qwen3Moe", qwen3_moe.config_from_hf, qwen3_moe.Qwen3MoE, packing=packing.EXPERTS),
    "gemma2": _llama("Gemma2", gemma.config_from_hf, gemma.Gemma),
    "gemma3_text": _llama("Gemma3", gemma.config_from_hf, gemma.Gemma, scorer_prefix="Gemma3Text"),
    "phi": _llama("Phi", phi.config_from_hf, phi.Phi),
    "phi3": _llama("Phi3", packing=packing.FUSED),
    "gpt_neox": Family(
        config_from_hf=gpt_neox.config_from_hf,
        backbone=gpt_neox.GPTNeoX,
        embedding="embed_in",
        layers="layers",
        prefix="gpt_neox",
        is_torch_output_first=True,
        is_flax_output_first=False,
        flax_norm_scale="scale",
        class_prefix="GPTNeoX",
        packing=packing.EMBED_OUT,
    ),
    "bert": Family(
        config_from_hf=bert.config_from_hf,
        backbone=bert.Bert,
        embedding="word_embeddings",
        layers="layer",
        prefix="bert",
        is_torch_output_first=True,
        is_flax_output_first=False,
        flax_norm_scale="scale",
        class_prefix="Bert",
        score_head="classifier",
        is_causal=False,
    ),
}


def family_of(model_type: Any) -> Family:
    """Return the family of a config.json's `model_type`.

    Raises:
        InputError: the family is not supported; the message lists those that are.
    """
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise InputError(f"config.json: model_type={model_type!r} is not supported; supported: {', '.join(FAMILIES)}")
    return FAMILIES[model_type]
