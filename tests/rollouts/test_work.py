"""Operations of generation, against a count by hand."""

import numpy as np

from jaxrl_lm.rollouts import Generation, generation_flops


def completions(prompt_length: int, masks: list[list[int]]) -> Generation:
    mask = np.asarray(masks)
    whole = np.ones((len(mask), prompt_length + mask.shape[1]), np.int32)
    return Generation(
        sequences=whole,
        attention_mask=whole,
        response_mask=mask,
        log_probs=mask,
        values=mask,
        num_steps=np.int32(mask.shape[1]),
    )


def test_prompts_are_read_once_and_each_further_token_is_a_step(tiny_gpt2):
    model, _ = tiny_gpt2
    cfg = model.config
    size, layers, vocab = cfg.model_size, cfg.num_layers, cfg.vocab_size

    def read(rows: int, tokens: int, slots: int) -> int:
        weights = 12 * size**2  # q, k, v and output; the feed-forward layer is four times as wide
        attention = 2 * slots * size  # scores, and the sum of values
        return 2 * rows * (tokens * layers * (weights + attention) + size * vocab)

    found = generation_flops(model, completions(3, [[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1]]), per_prompt=2)
    assert found == read(2, 3, 3) + read(5, 1, 6)
