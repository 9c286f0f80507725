"""Answers as tokens: the prompt's are those of generation, the end-of-text token comes once and only when due."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from jaxrl_lm.data import EncodedText, Prompt, encode_completion, encode_prompts, encode_text
from jaxrl_lm.errors import InputError

CHAT = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<s>", "<|end|>", "<|user|>", "<|assistant|>"]
USER = [{"role": "user", "content": "go"}]


def assistant(content):
    return [{"role": "assistant", "content": content}]


def byte_tokenizer(*, template=CHAT, single="<s> $A", eos="<|end|>"):
    """Bytes, the merges `a b` and `o k`, and special tokens around a text as `single` says."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*alphabet, "ab", "ok"])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[("a", "b"), ("o", "k")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIAL)
    ids = [(token, backend.token_to_id(token)) for token in SPECIAL]
    backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos, chat_template=template)


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


def pieces(encoded, tokenizer):
    """The prompt's and the completion's tokens, joined by `|`."""
    tokens = [tokenizer.decode([token]) for token in encoded.ids]
    border = encoded.num_prompt_tokens
    return "|".join(tokens[:border]), "|".join(tokens[border:])


@pytest.mark.parametrize(
    ("prompt", "completion", "is_ended", "wanted"),
    [
        ("hi", " ok", True, ("<s>|h|i", " |ok|<|end|>")),
        ("hi", " ok", False, ("<s>|h|i", " |ok")),
        ("hi", " ok<|end|>", True, ("<s>|h|i", " |ok|<|end|>")),
        ("", "ok", True, ("<s>", "ok|<|end|>")),
        ("xa", "b", True, ("<s>|x|a", "b|<|end|>")),
        (USER, "ok", True, ("<|user|>|g|o|<|end|>|\n|<|assistant|>", "ok|<|end|>")),
        (USER, "ok", False, ("<|user|>|g|o|<|end|>|\n|<|assistant|>", "ok")),
        (USER, assistant("ok"), True, ("<|user|>|g|o|<|end|>|\n|<|assistant|>", "ok|<|end|>")),
        (USER, [*assistant("a"), *USER, *assistant("b")], True, (
            "<|user|>|g|o|<|end|>|\n|<|assistant|>",
            "a|<|end|>|\n|<|user|>|g|o|<|end|>|\n|<|assistant|>|b|<|end|>",
        )),
        (USER, [*assistant("a"), *USER, *assistant("go")], False, (
            "<|user|>|g|o|<|end|>|\n|<|assistant|>",
            "a|<|end|>|\n|<|user|>|g|o|<|end|>|\n|<|assistant|>|g|o",
        )),
    ],
)  # fmt: skip
def test_prompt_then_completion_then_the_end_by_hand(tokenizer, prompt, completion, is_ended, wanted):
    encoded = encode_completion(prompt, completion, tokenizer, is_ended=is_ended)
    assert pieces(encoded, tokenizer) == wanted


def test_whole_texts_end_with_the_end_token_once(tokenizer):
    for text, wanted in [
        ("hi", "<s>|h|i|<|end|>"),
        ("hi<|end|>", "<s>|h|i|<|end|>"),
        ([*USER, *assistant("ok")], "<|user|>|g|o|<|end|>|\n|<|assistant|>|ok|<|end|>"),
    ]:
        assert pieces(encode_text(text, tokenizer), tokenizer) == ("", wanted)


def test_a_template_without_the_end_token_gets_one():
    tokenizer = byte_tokenizer(template=CHAT.replace("<|end|>", "."), eos="<s>")
    assert pieces(encode_completion(USER, "ok", tokenizer), tokenizer)[1] == "ok|.|\n|<s>"
    assert pieces(encode_completion(USER, "ok", tokenizer, is_ended=False), tokenizer)[1] == "ok"
    # One inside the answer does not end it.
    assert pieces(encode_completion(USER, "o<s>k", tokenizer), tokenizer)[1] == "o|<s>|k|.|\n|<s>"
    assert pieces(encode_text(USER, tokenizer), tokenizer)[1] == "<|user|>|g|o|.|\n|<s>"


def test_special_tokens_of_both_ends_are_around_prompt_and_completion_together():
    bert_like = byte_tokenizer(single="<s> $A <|user|>", eos=None)
    for is_ended in (True, False):
        encoded = encode_completion("hi", "ok", bert_like, is_ended=is_ended)
        assert pieces(encoded, bert_like) == ("<s>|h|i", "ok|<|user|>")
    assert pieces(encode_completion("", "ok", bert_like), bert_like) == ("<s>", "ok|<|user|>")
    assert pieces(encode_text("hi", bert_like), bert_like) == ("", "<s>|h|i|<|user|>")
    assert pieces(encode_text(USER, bert_like), bert_like)[1].endswith("o|<|end|>")


def test_a_tokenizer_that_ends_every_text_itself_ends_an_answer_once_and_only_a_whole_one():
    ending = byte_tokenizer(single="$A <|end|>")
    assert pieces(encode_completion("hi", "ok", ending), ending) == ("h|i", "ok|<|end|>")
    assert pieces(encode_completion("hi", "ok", ending, is_ended=False), ending) == ("h|i", "ok")


def test_only_what_an_answered_conversation_shares_with_an_awaiting_one_is_the_prompts():
    thinking = byte_tokenizer(template=CHAT.replace("<|assistant|>{% endif", "<|assistant|>ab{% endif"))
    assert pieces(encode_completion(USER, "ok", thinking), thinking) == (
        "<|user|>|g|o|<|end|>|\n|<|assistant|>",
        "ok|<|end|>",
    )
    # The answer's `a` is half of the awaiting prompt's token `ab`, so that token is not shared.
    assert pieces(encode_completion(USER, "ac", thinking), thinking) == (
        "<|user|>|g|o|<|end|>|\n|<|assistant|>",
        "a|c|<|end|>",
    )


def test_a_template_that_strips_contents_is_cut_behind_what_it_wrote():
    tokenizer = byte_tokenizer(template=CHAT.replace("message['content']", "message['content'] | trim"))
    encoded = encode_completion(USER, " ok\n", tokenizer, is_ended=False)
    assert pieces(encoded, tokenizer)[1] == "ok"


def test_a_template_that_rewrites_the_prompt_once_completed_is_refused():
    counting = byte_tokenizer(template="{{ messages | length }}" + CHAT)
    with pytest.raises(InputError, match="writes the prompt's messages differently when a completion follows"):
        encode_completion(USER, "ok", counting)


@pytest.mark.parametrize(
    ("prompt", "completion", "part"),
    [
        ("hi", "", "completion is empty; fill it in"),
        (USER, " \n", "completion is empty"),
        (USER, [], "completion is empty"),
        ("hi", assistant("ok"), "messages after a plain-text prompt; give both as text"),
    ],
)
def test_answers_that_are_none_are_refused(tokenizer, prompt, completion, part):
    with pytest.raises(InputError, match=part):
        encode_completion(prompt, completion, tokenizer)


def test_texts_without_tokens_are_refused():
    backend = Tokenizer(models.WordLevel({"go": 0}, unk_token=None))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words = PreTrainedTokenizerFast(tokenizer_object=backend)
    with pytest.raises(InputError, match=r"text '  '.*no token"):
        encode_text("  ", words)
    with pytest.raises(InputError, match=r"completion '  '.*no token of the completion"):
        encode_completion("go", "  ", words)
    with pytest.raises(InputError, match="no token of the completion"):
        encode_completion("", "  ", words)


def test_a_conversation_needs_a_chat_template():
    bare = byte_tokenizer(template=None)
    with pytest.raises(InputError, match="no chat template; give plain prompts"):
        encode_completion(USER, "ok", bare)
    with pytest.raises(InputError, match="no chat template"):
        encode_text(USER, bare)


characters = st.text(st.sampled_from("abok \n<é🐭\x00"), max_size=8)


@settings(deadline=None, max_examples=200)
@given(prompt=characters, completion=characters.filter(str.strip), is_chat=st.booleans(), is_ended=st.booleans())
def test_prompt_tokens_are_those_of_generation_and_no_character_is_lost(
    tokenizer, prompt, completion, is_chat, is_ended
):
    given_prompt = [{"role": "user", "content": prompt}] if is_chat else prompt
    encoded = encode_completion(given_prompt, completion, tokenizer, is_ended=is_ended)
    (generated_from,) = encode_prompts([Prompt(prompt=given_prompt, columns={})], tokenizer, max_tokens=99)
    assert encoded.ids[: encoded.num_prompt_tokens] == generated_from
    written = f"<|user|>{prompt}<|end|>\n<|assistant|>" if is_chat else f"<s>{prompt}"
    assert tokenizer.decode(encoded.ids) == written + completion + "<|end|>" * is_ended


@pytest.mark.real_model
def test_smollm2_by_its_own_template(smollm2):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    encoded = encode_completion(USER, "Yes.", tokenizer)
    (generated_from,) = encode_prompts([Prompt(prompt=USER, columns={})], tokenizer, max_tokens=99)
    wanted = [*generated_from, *tokenizer("Yes.")["input_ids"], tokenizer.eos_token_id]
    assert encoded == EncodedText(ids=wanted, num_prompt_tokens=len(generated_from))
