"""Texts as a reward model reads them: special tokens once, the one that begins a text kept when it is cut."""

import pytest
from transformers import AutoTokenizer

from jaxrl_lm.data import Conversation
from jaxrl_lm.rewards.scoring import TextReader, plain_text
from tests.data.chat_templates import CHATML, LLAMA3, TOOLS, chat_tokenizer
from tests.rewards.reward_folders import write_encoder

USER = {"role": "user", "content": "ab"}


def reader(template, *, max_tokens=99):
    return TextReader(tokenizer=chat_tokenizer(template), pad_token=0, max_tokens=max_tokens, is_causal=True)


def read(tokens, template=CHATML):
    return chat_tokenizer(template).decode(tokens.ids)


@pytest.mark.parametrize(("max_tokens", "wanted"), [(99, "<s>abc def"), (6, "<s>c def"), (2, "<s>f"), (1, "f")])
def test_a_text_that_is_cut_keeps_its_bos_token(max_tokens, wanted):
    tokens = reader(CHATML, max_tokens=max_tokens).encode("abc", " def")
    assert read(tokens) == wanted
    assert tokens.is_cut == (max_tokens < 99)


def test_a_conversation_that_is_cut_keeps_the_bos_token_that_its_template_writes():
    whole = reader(LLAMA3).encode([USER], "cd").ids
    cut = reader(LLAMA3, max_tokens=5).encode([USER], "cd").ids
    assert cut == [whole[0], *whole[-4:]]
    without = reader(CHATML, max_tokens=5).encode([USER], "cd").ids
    assert without == reader(CHATML).encode([USER], "cd").ids[-5:]


def test_a_text_that_begins_with_the_bos_token_is_read_with_one():
    assert read(reader(CHATML).encode("<s>ab", "c")) == "<s>abc"
    assert read(reader(CHATML).encode("<s>ab", "")) == "<s>ab"


def test_an_answer_that_continues_the_prompts_last_message_is_read_as_one_message():
    begun = [USER, {"role": "assistant", "content": "The film"}]
    whole = reader(CHATML).encode([USER], "The film ended.")
    assert reader(CHATML).encode(begun, " ended.") == whole


def test_tools_of_the_prompt_are_read():
    tool = {"type": "function", "function": {"name": "weather"}}
    tokens = reader(TOOLS).encode(Conversation([USER], tools=[tool]), "ok")
    assert '"name": "weather"' in read(tokens, TOOLS)


def test_an_encoder_reads_its_own_special_tokens_once(tmp_path):
    write_encoder(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    encoder = TextReader(tokenizer=tokenizer, pad_token=0, max_tokens=32, is_causal=False, num_token_types=2)
    assert encoder.encode("[CLS] a b [SEP]", "[CLS] c [SEP]") == encoder.encode("a b", "c")


def test_a_conversation_as_plain_text_has_its_parts_joined_and_its_calls():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}
    assert plain_text([{"role": "user", "content": parts}]) == "ab"
    assert plain_text([USER, call]) == 'user: ab\nassistant: [{"function": {"name": "f"}}]'
