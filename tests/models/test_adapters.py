"""Folders of adapters: parity with torch's PEFT in both directions, and folders that do not fit."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import peft
import pytest
import torch
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from jaxrl_lm.errors import InputError
from jaxrl_lm.models import from_pretrained, save_pretrained
from jaxrl_lm.models.adapters import CONFIG_FILE, WEIGHTS_FILE, save_adapter
from jaxrl_lm.models.lora import add_adapters
from jaxrl_lm.models.lora_config import LoraConfig
from tests.models import tiny

IDS, MASK = tiny.padded_batch()
TOLERANCE = 1e-4  # as of the families
# A variant, whether it is a reward model, our settings.
CASES: dict[str, tuple[str, bool, LoraConfig]] = {
    "gpt2": ("gpt2", False, LoraConfig(rank=3, alpha=6.0, targets=("c_attn", "mlp.c_proj"))),
    "llama": ("llama_grouped_tied", False, LoraConfig(rank=2, alpha=3.5, rslora=True)),
    "reward": ("llama", True, LoraConfig(rank=2, targets=("q_proj", "up_proj"))),
    "bert": ("bert", True, LoraConfig(rank=2)),
}


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory) -> tuple[str, Path]:
    """The name of a case, and the folder of its base."""
    folder = tmp_path_factory.mktemp("base") / request.param
    base(request.param).save_pretrained(folder)
    return request.param, folder


@cache
def base(name: str) -> Any:
    variant, is_classifier, _ = CASES[name]
    if variant != "bert":
        return tiny.torch_model(variant, is_classifier=is_classifier)
    config = tiny.hf_config("bert", num_labels=1, type_vocab_size=2)
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").float().eval()


def load_base(name: str, folder: Path) -> Any:
    auto = AutoModelForSequenceClassification if CASES[name][1] else AutoModelForCausalLM
    return tiny.torch_load(auto, folder)[0]


def ours(model: Any, params: Any) -> np.ndarray:
    """Logits at tokens, or scores."""
    output: Any = jax.jit(lambda p: model.apply({"params": p}, IDS, MASK, tiny.positions(MASK)))(params)
    return np.asarray(output.logits)[MASK == 1] if model.head is None else np.asarray(output.scores)


def theirs(model: Any) -> np.ndarray:
    logits = tiny.torch_logits(model, IDS, MASK)
    return logits[MASK == 1] if logits.ndim == 3 else logits[:, 0]


def load(name: str, folder: Path, **options: Any) -> Any:
    return from_pretrained(folder, "reward", **options) if CASES[name][1] else from_pretrained(folder, **options)


def moved(params: Any) -> Any:
    """Adapters and heads away from where they start, by different amounts."""
    flat = flatten_dict(params)
    for number, path in enumerate(flat):
        if path[-1] == "lora_b" or path[0] != "backbone" or path[1] == "pooler":
            flat[path] = flat[path] + 0.1 * jax.random.normal(jax.random.key(number), flat[path].shape)
    return unflatten_dict(flat)


def test_peft_loads_our_adapters_and_so_do_we(case, tmp_path):
    name, folder = case
    model, params = add_adapters(*load(name, folder), CASES[name][2], jax.random.key(0))
    params = moved(params)
    save_adapter(tmp_path / "adapter", model, params, str(folder))
    expected = ours(model, params)
    assert np.max(np.abs(expected - theirs(base(name)))) > 0.05
    loaded = peft.PeftModel.from_pretrained(load_base(name, folder), tmp_path / "adapter")
    np.testing.assert_allclose(theirs(loaded), expected, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(ours(*load(name, tmp_path / "adapter")), expected, rtol=0, atol=TOLERANCE)
    save_pretrained(tmp_path / "merged", model, params)
    np.testing.assert_allclose(theirs(load_base(name, tmp_path / "merged")), expected, rtol=0, atol=TOLERANCE)


def peft_adapter(name: str, folder: Path, out: Path, **options: Any) -> Any:
    """PEFT's own adapters on a base, with random B and heads, saved."""
    _, is_classifier, lora = CASES[name]
    settings: dict[str, Any] = {
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "use_rslora": lora.rslora,
        "target_modules": "all-linear" if lora.targets == ("all-linear",) else list(lora.targets),
        "task_type": "SEQ_CLS" if is_classifier else "CAUSAL_LM",
    }
    model = peft.get_peft_model(load_base(name, folder), peft.LoraConfig(**(settings | options)))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in (each for each in model.parameters() if each.requires_grad):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    model.eval().save_pretrained(out)
    return model


def test_we_load_pefts_adapters(case, tmp_path):
    name, folder = case
    expected = theirs(peft_adapter(name, folder, tmp_path))
    assert np.max(np.abs(expected - theirs(base(name)))) > 0.05
    np.testing.assert_allclose(ours(*load(name, tmp_path)), expected, rtol=0, atol=TOLERANCE)


@pytest.fixture(scope="module")
def gpt2_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("gpt2") / "base"
    base("gpt2").save_pretrained(folder)
    return folder


@pytest.fixture
def adapter(gpt2_folder, tmp_path) -> Path:
    """Our adapter of a GPT-2, to damage."""
    model, params = add_adapters(*from_pretrained(gpt2_folder), CASES["gpt2"][2], jax.random.key(0))
    save_adapter(tmp_path / "adapter", model, params, str(gpt2_folder))
    return tmp_path / "adapter"


def change(folder: Path, **options: Any) -> None:
    path = folder / CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | options))


def test_adapters_of_the_output_matrix_and_whole_modules_are_merged(gpt2_folder, tmp_path):
    options = {"target_modules": ["lm_head", "c_attn"], "modules_to_save": ["mlp.c_fc", "ln_f"]}
    untied = load_base("gpt2", gpt2_folder)
    untied.config.tie_word_embeddings = False
    untied.lm_head.weight = torch.nn.Parameter(untied.lm_head.weight.detach() * 0.9)
    untied.save_pretrained(tmp_path / "base")
    expected = theirs(peft_adapter("gpt2", tmp_path / "base", tmp_path / "adapter", **options))
    np.testing.assert_allclose(ours(*from_pretrained(tmp_path / "adapter")), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"peft_type": "IA3"}, "peft_type='IA3'"),
        ({"use_dora": True}, "use_dora=True"),
        ({"bias": "all"}, "bias='all'"),
        ({"rank_pattern": {"c_attn": 4}}, "rank_pattern="),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"an_option_of_tomorrow": 3}, "an_option_of_tomorrow=3"),
        ({"r": "8"}, "r='8'"),
        ({"r": 0}, "r=0"),
        ({"lora_alpha": None}, "lora_alpha=None"),
        ({"base_model_name_or_path": None}, "base_model_name_or_path is missing"),
        ({"base_model_name_or_path": "/no/such/folder"}, "/no/such/folder"),
    ],
)
def test_other_methods_and_damaged_settings_are_refused_by_name(adapter, options, named):
    change(adapter, **options)
    with pytest.raises(InputError) as error:
        from_pretrained(adapter)
    assert named in str(error.value)
    assert str(adapter) in str(error.value)


def test_an_adapter_that_is_another_base_s_is_refused_with_the_shapes(adapter, tmp_path):
    model, params = tiny.random_model("gpt2", n_embd=16)
    save_pretrained(tmp_path / "narrow", model, params)
    with pytest.raises(InputError, match=r"lora_A.weight has shape \(3, 32\), expected \(3, 16\) .*narrow"):
        from_pretrained(adapter, base=tmp_path / "narrow")
    model, params = tiny.random_model("llama")
    save_pretrained(tmp_path / "llama", model, params)
    with pytest.raises(InputError, match=r"has no place for transformer.h.0.attn.c_attn.lora_A.weight.*and 4 more"):
        from_pretrained(adapter, base=tmp_path / "llama")


def test_an_adapter_of_another_rank_than_it_says_is_refused(adapter):
    change(adapter, r=5)
    with pytest.raises(InputError, match=r"has shape \(3, 32\), expected \(5, 32\)"):
        from_pretrained(adapter)


def test_quantised_incomplete_and_missing_tensors_are_refused(adapter):
    tensors = load_file(adapter / WEIGHTS_FILE)
    first = next(iter(tensors))
    save_file(tensors | {first: tensors[first].astype(np.int8)}, adapter / WEIGHTS_FILE)
    with pytest.raises(InputError, match="dtype int8, not floating point"):
        from_pretrained(adapter)
    lost = next(name for name in tensors if "lora_B" in name)
    save_file({name: tensor for name, tensor in tensors.items() if name != lost}, adapter / WEIGHTS_FILE)
    with pytest.raises(InputError, match=rf"{lost.removeprefix('base_model.model.')} is missing"):
        from_pretrained(adapter)
    (adapter / WEIGHTS_FILE).write_bytes(b"torn")
    with pytest.raises(InputError, match="not a complete safetensors file"):
        from_pretrained(adapter)
    (adapter / WEIGHTS_FILE).unlink()
    with pytest.raises(InputError, match="save the adapter with PEFT's save_pretrained, as safetensors"):
        from_pretrained(adapter)


def test_an_adapter_cannot_be_the_base_of_another(adapter):
    change(adapter, base_model_name_or_path=str(adapter))
    with pytest.raises(InputError, match=r"config\.json: not found"):
        from_pretrained(adapter)
