"""Conversations as tokens: those of Hugging Face's `apply_chat_template`, and which of them the assistant says."""

from typing import Any

import pytest

from jaxrl_lm.data import Conversation, Prompt, encode_completion, encode_prompts, encode_text
from jaxrl_lm.data.chat import end_of_turn_token
from jaxrl_lm.errors import InputError
from tests.data.chat_templates import (
    CHATML,
    GENERATION,
    LLAMA3,
    MISTRAL,
    PARTS,
    R1,
    THINKING,
    TOOLS,
    chat_tokenizer,
)

TEMPLATES = {
    "chatml": CHATML,
    "generation": GENERATION,
    "llama3": LLAMA3,
    "mistral": MISTRAL,
    "parts": PARTS,
    "r1": R1,
    "thinking": THINKING,
    "tools": TOOLS,
}
each_template = pytest.mark.parametrize("template", list(TEMPLATES.values()), ids=list(TEMPLATES))
WEATHER = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]


def user(content: Any = "go"):
    return {"role": "user", "content": content}


def assistant(content: Any = "ok", **others: Any):
    return {"role": "assistant", "content": content, **others}


def by_hugging_face(tokenizer, messages, **options):
    return tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **options)


def ids_of(prompt, tokenizer, **columns):
    return encode_prompts([Prompt(prompt=prompt, columns=columns)], tokenizer, max_tokens=999)[0]


def learned(encoded, tokenizer):
    """The assistant's tokens as text, ` / ` between those of different turns."""
    text, was_assistant = "", False
    for token, is_assistant in zip(encoded.ids, encoded.is_assistant, strict=True):
        if is_assistant:
            text += (" / " if text and not was_assistant else "") + tokenizer.decode([token])
        was_assistant = is_assistant
    return text


@each_template
@pytest.mark.parametrize("messages", [[user()], [user("ab"), assistant(" ok"), user("é?")]], ids=["one", "three"])
def test_a_prompt_that_awaits_the_assistant_is_that_of_hugging_face(template, messages):
    tokenizer = chat_tokenizer(template)
    assert ids_of(messages, tokenizer) == by_hugging_face(tokenizer, messages, add_generation_prompt=True)


@each_template
@pytest.mark.parametrize("begun", ["The film ab", "ab \n"], ids=["text", "trailing white space"])
def test_a_prompt_that_ends_in_an_assistant_message_continues_it(template, begun):
    tokenizer = chat_tokenizer(template)
    messages = [user(), assistant(begun)]
    ids = ids_of(messages, tokenizer)
    assert ids == by_hugging_face(tokenizer, messages, continue_final_message=True)
    assert tokenizer.decode(ids).rstrip().endswith(begun.rstrip())
    encoded = encode_completion(messages, "cd", tokenizer)
    assert encoded.ids[: encoded.num_prompt_tokens] == ids
    end = end_of_turn_token(tokenizer)
    assert end is not None
    assert tokenizer.decode(encoded.ids[encoded.num_prompt_tokens :]).lstrip() == f"cd{tokenizer.decode([end])}"


def test_an_empty_assistant_message_is_a_turn_that_begins():
    tokenizer = chat_tokenizer(CHATML)
    assert ids_of([user(), assistant("")], tokenizer) == ids_of([user()], tokenizer)


def test_messages_do_not_continue_a_message():
    with pytest.raises(InputError, match=r"prompt ends in an assistant message.*give the completion as text"):
        encode_completion([user(), assistant("The")], [assistant(" film")], chat_tokenizer(CHATML))


@each_template
def test_whole_conversations_and_answers_are_those_of_hugging_face_up_to_the_end_of_the_turn(template):
    tokenizer = chat_tokenizer(template)
    messages = [user("ab"), assistant("one"), user("é?"), assistant("ok.")]
    wanted = by_hugging_face(tokenizer, messages)
    end = end_of_turn_token(tokenizer)
    assert end is not None
    while wanted[-1] != end:
        assert not tokenizer.decode([wanted.pop()]).strip()
    assert encode_text(messages, tokenizer).ids == wanted
    encoded = encode_completion(messages[:3], messages[3:], tokenizer)
    assert encoded.ids == wanted
    assert encoded == encode_completion(messages[:3], "ok.", tokenizer)


@pytest.mark.parametrize(("template", "end"), [(CHATML, "<|im_end|>"), (LLAMA3, "<|eot_id|>"), (R1, "</s>")])
def test_a_turn_that_has_its_own_end_does_not_get_the_end_of_text_as_well(template, end):
    tokenizer = chat_tokenizer(template)
    for encoded in (encode_completion([user()], "ok", tokenizer), encode_text([user(), assistant()], tokenizer)):
        assert tokenizer.decode(encoded.ids).endswith(f"ok{end}")
    assert end_of_turn_token(tokenizer) == tokenizer.convert_tokens_to_ids(end)
    cut = encode_completion([user()], "ok", tokenizer, is_ended=False)
    assert tokenizer.decode(cut.ids).endswith("ok")


def test_a_turn_whose_end_is_no_token_gets_the_end_of_text():
    tokenizer = chat_tokenizer(CHATML.replace("<|im_end|>", "."))
    assert tokenizer.decode(encode_completion([user()], "ok", tokenizer).ids).endswith("ok.\n</s>")
    assert end_of_turn_token(tokenizer) is None
    assert end_of_turn_token(chat_tokenizer(None)) is None
    assert end_of_turn_token(chat_tokenizer("{{ raise_exception('no') }}")) is None


@each_template
def test_text_that_begins_with_the_bos_token_gets_no_second_one(template):
    tokenizer = chat_tokenizer(template)
    bos = tokenizer.bos_token_id
    written = tokenizer.apply_chat_template([user()], tokenize=False, add_generation_prompt=True)
    for prompt in (written, "<s>hi", "hi", "<s>", ""):
        wanted = tokenizer(f"<s>{prompt.removeprefix('<s>')}", add_special_tokens=False)["input_ids"]
        if prompt:
            assert ids_of(prompt, tokenizer) == wanted
        encoded = encode_completion(prompt, "ok", tokenizer)
        assert encoded.ids[: encoded.num_prompt_tokens] == wanted
        assert encoded.ids.count(bos) == 1
        assert encode_text(f"{prompt}ok", tokenizer).ids == encoded.ids
    assert ids_of([user()], tokenizer).count(bos) == ("bos_token" in template)
    # One that was written twice was meant twice, and a tokenizer that adds none takes none away.
    assert ids_of("<s><s>hi", tokenizer).count(bos) == 2
    assert ids_of("<s><s>hi", chat_tokenizer(template, single="$A")).count(bos) == 2


def test_an_answer_that_the_template_begins_otherwise_than_the_generation_prompt_keeps_its_special_tokens():
    tokenizer = chat_tokenizer(R1)
    for answer in ("ok", "<b>", "<think>ab</think>ok"):
        encoded = encode_completion([user()], answer, tokenizer)
        assert tokenizer.decode(encoded.ids[: encoded.num_prompt_tokens]) == "<s><|User|>go<|Assistant|>"
        assert encoded.ids == by_hugging_face(tokenizer, [user(), assistant(answer)])


def test_a_template_that_begins_an_answered_turn_otherwise_is_said_once(caplog):
    tokenizer = chat_tokenizer(R1.replace("User", "Person"))
    for answer in ("ok", "<b>"):
        encode_completion([user()], answer, tokenizer)
    (said,) = caplog.messages
    assert r"whole generation prompt, '<|Assistant|><think>\n': the loss starts where they first differ" in said


def test_a_generation_prompt_that_ends_inside_a_special_token_is_refused():
    broken = R1.replace("<|Assistant|><think>\n", "<|Assis")
    with pytest.raises(InputError, match="generation prompt ends inside a special token"):
        encode_completion([user()], "ok", chat_tokenizer(broken))


@pytest.mark.parametrize(
    ("template", "wanted"),
    [
        (CHATML, "one<|im_end|> / two ab<|im_end|>"),
        (GENERATION, "one<|im_end|> / two ab<|im_end|>"),
        (LLAMA3, "one<|eot_id|> / two ab<|eot_id|>"),
        (R1, "one</s> / two ab</s>"),
        (MISTRAL, "one</s> / two ab</s>"),
        (TOOLS, "one<|im_end|> / two ab<|im_end|>"),
        (THINKING, "one<|im_end|> / two ab<|im_end|>"),
    ],
    ids=["chatml", "generation", "llama3", "r1", "mistral", "tools", "thinking"],
)
def test_the_assistants_turns_are_told_from_the_others(template, wanted):
    tokenizer = chat_tokenizer(template)
    messages = [user("two"), assistant("one"), user("one"), assistant("two ab")]
    marked = encode_text(messages, tokenizer, is_assistant_marked=True)
    assert marked.ids == encode_text(messages, tokenizer).ids
    assert learned(marked, tokenizer) == wanted
    answered = encode_completion(messages[:1], messages[1:], tokenizer, is_assistant_marked=True)
    assert answered.ids == marked.ids
    assert learned(answered, tokenizer) == wanted
    later = encode_completion(messages[:3], messages[3:], tokenizer, is_assistant_marked=True)
    assert learned(later, tokenizer) == wanted.partition(" / ")[2]


def test_marked_tokens_are_those_of_hugging_face_where_the_template_has_generation_tags():
    tokenizer = chat_tokenizer(GENERATION)
    messages = [user("é"), assistant("é ok"), user(), assistant(" ab")]
    found = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    marked = encode_text(messages, tokenizer, is_assistant_marked=True)
    length = len(marked.ids)
    assert marked.ids == found["input_ids"][:length]
    assert marked.is_assistant == [bool(flag) for flag in found["assistant_masks"][:length]]
    assert not any(found["assistant_masks"][length:])


def test_thoughts_that_the_template_drops_are_not_learned_and_those_of_the_last_turn_are():
    tokenizer = chat_tokenizer(THINKING)
    messages = [user(), assistant("<think>a</think>one"), user(), assistant("<think>b</think>two")]
    marked = encode_text(messages, tokenizer, is_assistant_marked=True)
    assert learned(marked, tokenizer) == "one<|im_end|> / <think>b</think>two<|im_end|>"


def test_tool_calls_are_the_assistants_and_tool_results_are_not():
    tokenizer = chat_tokenizer(TOOLS)
    call = {"type": "function", "function": {"name": "weather", "arguments": {"town": "Bo"}}}
    messages = [user(), {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": "21"}, assistant()]
    wanted = '<call>{"name": "weather", "arguments": {"town": "Bo"}}</call><|im_end|> / ok<|im_end|>'
    assert learned(encode_text(messages, tokenizer, is_assistant_marked=True), tokenizer) == wanted
    answered = encode_completion(messages[:1], messages[1:], tokenizer, is_assistant_marked=True)
    assert learned(answered, tokenizer) == wanted


def test_a_template_whose_turns_depend_on_what_follows_is_refused_for_the_assistants_turns():
    counting = chat_tokenizer("{{ messages | length }}" + CHATML)
    with pytest.raises(InputError, match=r"message 1 differently when more messages follow.*generation"):
        encode_text([user(), assistant(), user()], counting, is_assistant_marked=True)


@pytest.mark.parametrize(
    "encode", [encode_text, lambda text, *rest, **options: encode_completion(text, text, *rest, **options)]
)
def test_plain_texts_have_no_turns(encode):
    with pytest.raises(InputError, match="loss_on=assistant: plain text has no turns"):
        encode("hi", chat_tokenizer(CHATML), is_assistant_marked=True)


def test_tools_and_template_arguments_reach_the_template():
    tokenizer = chat_tokenizer(TOOLS)
    options = {"tools": WEATHER, "enable_thinking": False}
    columns = {"tools": WEATHER, "chat_template_kwargs": {"enable_thinking": False}}
    ids = ids_of([user()], tokenizer, **columns)
    assert ids == by_hugging_face(tokenizer, [user()], add_generation_prompt=True, **options)
    assert ids != ids_of([user()], tokenizer)
    as_json = {"tools": '[{"type": "function", "function": {"name": "weather", "parameters": {}}}]'}
    assert ids_of([user()], tokenizer, **as_json) == ids_of([user()], tokenizer, tools=WEATHER)
    prompt = Conversation([user()], tools=WEATHER)
    wanted = by_hugging_face(tokenizer, [user(), assistant()], tools=WEATHER)
    assert encode_completion(prompt, "ok", tokenizer).ids == wanted[:-1]
    marked = encode_text(Conversation([user(), assistant()], tools=WEATHER), tokenizer, is_assistant_marked=True)
    assert marked.ids == wanted[:-1]
    assert learned(marked, tokenizer) == "ok<|im_end|>"


@pytest.mark.parametrize("template", [CHATML, LLAMA3, R1, PARTS], ids=["chatml", "llama3", "r1", "parts"])
def test_lists_of_text_parts_are_read_as_the_template_reads_them_or_joined(template):
    tokenizer = chat_tokenizer(template)
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    found = ids_of([user(parts)], tokenizer)
    if template is PARTS:
        assert found == by_hugging_face(tokenizer, [user(parts)], add_generation_prompt=True)
        assert "[a][b]" in tokenizer.decode(found)
    else:
        assert found == by_hugging_face(tokenizer, [user("ab")], add_generation_prompt=True)
    answer = encode_completion([user(parts)], [assistant(parts)], tokenizer)
    assert answer.ids[: answer.num_prompt_tokens] == found[: answer.num_prompt_tokens]
    begun = ids_of([user(), assistant(parts)], tokenizer)
    if template is PARTS:
        assert begun == by_hugging_face(tokenizer, [user(), assistant(parts)], continue_final_message=True)
    else:
        assert begun == ids_of([user(), assistant("ab")], tokenizer)


def test_tool_calls_that_the_template_does_not_write_are_refused():
    messages = [user(), {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "weather"}}]}]
    for template in (CHATML, LLAMA3):
        with pytest.raises(InputError, match="tool_calls, which the tokenizer's chat template does not write"):
            encode_text(messages, chat_tokenizer(template))


def test_what_the_template_does_not_read_is_said_once(caplog):
    tokenizer = chat_tokenizer(CHATML.replace("user", "person"))
    for _ in range(2):
        ids_of([user()], tokenizer, tools=WEATHER, chat_template_kwargs={"date": "today"})
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "column 'tools'",
        "chat_template_kwargs' 'date'",
    ]


def test_slices_and_sums_of_a_conversation_keep_its_tools():
    conversation = Conversation([user(), assistant()], tools=WEATHER, template_arguments={"date": "today"})
    answer = [assistant()]
    for part in (conversation[:1], conversation[:1] + answer, conversation[:]):
        assert isinstance(part, Conversation)
        assert (part.tools, part.template_arguments) == (WEATHER, {"date": "today"})
    assert conversation == [user(), assistant()]
    assert conversation[0] == user()
