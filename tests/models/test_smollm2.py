"""A real instruct model: the same logits and the same greedy answers as torch's class gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from jaxrl_lm.models import from_pretrained
from jaxrl_lm.rollouts import SamplingConfig, generate
from tests.models import tiny

pytestmark = pytest.mark.real_model

QUESTIONS = [
    "What is the capital of France?",
    "Write one sentence about a cat that is afraid of mice.",
    "List three colours, one a line, and say of each what it reminds you of.",
]
NUM_TOKENS = 40


@pytest.fixture(scope="module")
def prompts(smollm2):
    """Three chat prompts, left-padded: ids, mask, and the tokenizer's pad and end tokens."""
    tokenizer = AutoTokenizer.from_pretrained(smollm2, padding_side="left")
    chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
    batch = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_dict=True, return_tensors="np"
    )
    assert len(set(batch["attention_mask"].sum(axis=1))) > 1
    return batch["input_ids"], batch["attention_mask"], tokenizer.pad_token_id, tokenizer.eos_token_id


@pytest.fixture(scope="module")
def torch_model(smollm2):
    return AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def ours(smollm2):
    return from_pretrained(smollm2)


def test_logits_equal_those_of_torch(ours, torch_model, prompts):
    model, params = ours
    ids, mask, *_ = prompts
    expected = tiny.torch_logits(torch_model, ids, mask)
    actual = jax.jit(lambda p: model.apply({"params": p}, jnp.asarray(ids), jnp.asarray(mask)).logits)(params)
    np.testing.assert_allclose(np.asarray(actual)[mask == 1], expected[mask == 1], rtol=0, atol=2e-3)


def test_greedy_answers_equal_those_of_torch(ours, torch_model, prompts):
    ids, mask, pad_token, end_token = prompts
    with torch.no_grad():
        expected = torch_model.generate(
            input_ids=torch.tensor(ids),
            attention_mask=torch.tensor(mask),
            do_sample=False,
            max_new_tokens=NUM_TOKENS,
            pad_token_id=pad_token,
            eos_token_id=end_token,
        ).numpy()
    config = SamplingConfig(max_new_tokens=NUM_TOKENS, temperature=0.0, stop_tokens=(end_token,), pad_token=pad_token)
    actual = generate(*ours, jnp.asarray(ids), jnp.asarray(mask), jax.random.key(0), config).sequences
    np.testing.assert_array_equal(actual[:, : expected.shape[1]], expected)
    assert np.all(np.asarray(actual)[:, expected.shape[1] :] == pad_token)
