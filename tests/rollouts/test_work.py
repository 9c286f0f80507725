"""Operations of generation, against a count by hand."""

import numpy as np

from jaxrl_lm.rollouts import generation_flops
from tests.models import tiny


def test_prompts_are_read_once_and_each_further_token_is_a_step(tiny_gpt2):
    model, _ = tiny_gpt2
    cfg = model.config
    size, layers, vocab = cfg.model_size, cfg.num_layers, cfg.vocab_size

    def read(rows: int, tokens: int, slots: int) -> int:
        weights = 12 * size**2  # q, k, v and output; the feed-forward layer is four times as wide
        attention = 2 * slots * size  # scores, and the sum of values
        return 2 * rows * (tokens * layers * (weights + attention) + size * vocab)

    mask = np.array([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1]])
    found = generation_flops(model, mask, 3, per_prompt=2)
    assert found == read(2, 3, 3) + read(5, 1, 6)


def test_layers_that_are_not_alike_are_counted_too():
    model, _ = tiny.random_model("qwen3_moe", mlp_only_layers=[0])
    assert not model.config.is_uniform
    assert generation_flops(model, np.ones((2, 2)), 3) > 0
