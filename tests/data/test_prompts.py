"""Prompts as tokens: encoding, left padding and the order in which batches hold them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from jaxrl_lm.core.host_streams import Stream, host_generator
from jaxrl_lm.data import Prompt, bucket_width, encode_prompts, left_pad, prompt_order
from jaxrl_lm.errors import InputError

VOCABULARY = {"<s>": 0, "[user]": 1, "[assistant]": 2, "go": 3, "left": 4, "right": 5}
TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] != 'user' %}{{ raise_exception('users only') }}{% endif %}"
    "<s> [{{ message['role'] }}] {{ message['content'] }} "
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture
def tokenizer():
    backend = Tokenizer(models.WordLevel(VOCABULARY, unk_token=None))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", chat_template=TEMPLATE)


def plain(text):
    return Prompt(prompt=text, columns={})


def asked(content, role="user"):
    return Prompt(prompt=[{"role": role, "content": content}], columns={})


def test_plain_prompts_get_the_tokenizers_own_special_tokens(tokenizer):
    assert encode_prompts([plain("go left"), plain("right")], tokenizer, max_tokens=3) == [[0, 3, 4], [0, 5]]


def test_conversations_get_the_templates_special_tokens_once_and_the_generation_prompt(tokenizer):
    assert encode_prompts([asked("go left")], tokenizer, max_tokens=9) == [[0, 1, 3, 4, 2]]


def test_a_prompt_of_exactly_the_limit_passes_and_one_more_token_is_refused(tokenizer):
    prompts = [plain("go"), plain("go left")]
    assert len(encode_prompts(prompts, tokenizer, max_tokens=3)) == 2
    with pytest.raises(InputError, match=r"prompt 1 .*'go left': 3 tokens, but the limit is 2; shorten"):
        encode_prompts(prompts, tokenizer, max_tokens=2)


def test_a_prompt_without_tokens_is_refused(tokenizer):
    tokenizer.backend_tokenizer.post_processor = processors.Sequence([])
    with pytest.raises(InputError, match=r"prompt 0 .*' ': the tokenizer makes no token"):
        encode_prompts([plain(" ")], tokenizer, max_tokens=3)


def test_a_conversation_needs_a_chat_template(tokenizer):
    tokenizer.chat_template = None
    with pytest.raises(InputError, match=r"prompt 1 .*no chat template; give plain prompts"):
        encode_prompts([plain("go"), asked("go")], tokenizer, max_tokens=9)


def test_a_conversation_that_the_template_refuses_is_named(tokenizer):
    with pytest.raises(InputError, match=r"prompt 0 .*TemplateError: users only"):
        encode_prompts([asked("go", role="system")], tokenizer, max_tokens=9)


def test_left_pad_by_hand():
    ids, mask = left_pad([[7, 8], [], [1, 2, 3]], pad_id=9, width=3)
    np.testing.assert_array_equal(ids, [[9, 7, 8], [9, 9, 9], [1, 2, 3]])
    np.testing.assert_array_equal(mask, [[0, 1, 1], [0, 0, 0], [1, 1, 1]])
    assert ids.dtype == mask.dtype == np.int32


def test_widths_by_hand():
    found = {length: bucket_width([1, length], longest=10_000) for length in (1, 16, 17, 130, 255, 256, 257, 1025)}
    assert found == {1: 16, 16: 16, 17: 32, 130: 144, 255: 256, 256: 256, 257: 288, 1025: 1152}
    assert bucket_width([40, 3], longest=45) == 45


def test_few_widths_serve_all_lengths():
    widths = {bucket_width([length], longest=4096) for length in range(1, 4097)}
    assert len(widths) == 48


def test_left_pad_refuses_a_sequence_wider_than_the_batch():
    with pytest.raises(AssertionError, match="sequence 1 has 3 tokens, the width is 2"):
        left_pad([[1], [1, 2, 3]], pad_id=0, width=2)


@given(
    sequences=st.lists(st.lists(st.integers(0, 5), max_size=6), max_size=5),
    pad_id=st.integers(0, 5),
    room=st.integers(0, 3),
)
def test_left_pad_keeps_every_token_whatever_the_pad_id(sequences, pad_id, room):
    width = max(map(len, sequences), default=0) + room
    ids, mask = left_pad(sequences, pad_id=pad_id, width=width)
    assert ids.shape == mask.shape == (len(sequences), width)
    assert [row[is_token == 1].tolist() for row, is_token in zip(ids, mask, strict=True)] == sequences
    assert (ids[mask == 0] == pad_id).all()
    assert (np.diff(mask, axis=1) >= 0).all()


def reference_order(num_prompts, batch_size, step, seed):
    stream, epoch = [], 0
    while len(stream) < (step + 1) * batch_size:
        stream += list(host_generator(Stream.PROMPT_ORDER, seed, epoch).permutation(num_prompts))
        epoch += 1
    return stream[step * batch_size : (step + 1) * batch_size]


@settings(deadline=None)
@given(st.integers(1, 7), st.integers(1, 20), st.integers(0, 9), st.integers(0, 2**32))
def test_prompt_order_is_a_slice_of_the_stream_of_permutations(num_prompts, batch_size, step, seed):
    order = prompt_order(num_prompts, batch_size, step, seed)
    assert order.tolist() == reference_order(num_prompts, batch_size, step, seed)


@pytest.mark.parametrize("batch_size", [1, 3, 5, 12])
def test_each_prompt_appears_once_an_epoch(batch_size):
    num_prompts = 5
    steps = [prompt_order(num_prompts, batch_size, step, seed=3) for step in range(20)]
    stream = np.concatenate(steps)[: 20 * batch_size // num_prompts * num_prompts]
    for epoch in stream.reshape(-1, num_prompts):
        assert sorted(epoch) == list(range(num_prompts))


def test_epochs_and_seeds_are_shuffled_differently():
    first, second = prompt_order(50, 50, 0, seed=1), prompt_order(50, 50, 1, seed=1)
    assert (first != second).any()
    assert (first != prompt_order(50, 50, 0, seed=2)).any()
