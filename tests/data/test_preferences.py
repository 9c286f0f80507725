"""Readers of preferences: where the answers begin, best-of-K as choices and pairs, and rows that do not fit."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxrl_lm.data import AssumedTokenizer, BestOfK, Preference, read_best_of_k, read_preferences
from jaxrl_lm.errors import InputError
from tests.data.files import BLUE, GREEN, MORE, SKY, SYSTEM, as_jsonl, one, refused, write


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        # TRL's own example of an implicit prompt.
        ({"chosen": "The sky is blue.", "rejected": "The sky is green."}, ("The sky is", " blue.", " green.")),
        ({"chosen": "1+1=2", "rejected": "1+1=3"}, ("1+1=", "2", "3")),
        ({"chosen": [SKY, BLUE], "rejected": [SKY, GREEN]}, ([SKY], [BLUE], [GREEN])),
        (
            {"chosen": [SYSTEM, SKY, BLUE, MORE, GREEN], "rejected": [SYSTEM, SKY, BLUE, MORE, BLUE]},
            ([SYSTEM, SKY, BLUE, MORE], [GREEN], [BLUE]),
        ),
        ({"chosen": [SKY, BLUE], "rejected": [SKY, BLUE, MORE, GREEN]}, ([SKY], [BLUE], [BLUE, MORE, GREEN])),
        # A prompt given twice: as text next to conversations, or in front of answers that hold it again.
        ({"prompt": "sky?", "chosen": [SKY, BLUE], "rejected": [SKY, GREEN]}, ([SKY], [BLUE], [GREEN])),
        ({"prompt": [SKY], "chosen": [SKY, BLUE], "rejected": [GREEN]}, ([SKY], [BLUE], [GREEN])),
        # Plain answers to a conversation stay plain.
        ({"prompt": [SKY], "chosen": "Blue.", "rejected": "Green."}, ([SKY], "Blue.", "Green.")),
        # Dialogues as HH has them: the border is after `Assistant:` though both answers begin with " I ".
        (
            {
                "chosen": "\n\nHuman: Hi\n\nAssistant: Hm\n\nHuman: Why?\n\nAssistant: I think",
                "rejected": "\n\nHuman: Hi\n\nAssistant: Hm\n\nHuman: Why?\n\nAssistant: I know",
            },
            ("\n\nHuman: Hi\n\nAssistant: Hm\n\nHuman: Why?\n\nAssistant:", " I think", " I know"),
        ),
        (
            {
                "chosen": "\n\nHuman: Hi\n\nAssistant: Hello",
                "rejected": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: And?\n\nAssistant: Bye",
            },
            ("\n\nHuman: Hi\n\nAssistant:", " Hello", " Hello\n\nHuman: And?\n\nAssistant: Bye"),
        ),
    ],
)
def test_the_prompt_of_a_preference_is_found_by_hand(tmp_path, row, wanted):
    prompt, chosen, rejected = wanted
    assert one(read_preferences, tmp_path, row) == [Preference(prompt=prompt, chosen=chosen, rejected=rejected)]


def trl_extract_prompt(chosen, rejected):
    """TRL's loop, where it is right: the texts differ in a character both have, and not in the first one."""
    index = next(i for i in range(min(len(chosen), len(rejected))) if chosen[i] != rejected[i])
    if chosen[index - 1] == " ":
        index -= 1
    return chosen[:index], chosen[index:], rejected[index:]


words = st.text("ab ", max_size=6)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shared=words.filter(str.strip), ends=st.tuples(words, words))
def test_implicit_prompts_of_texts_are_those_of_trl(tmp_path, shared, ends):
    chosen, rejected = shared + "x" + ends[0], shared + "y" + ends[1]
    (pair,) = one(read_preferences, tmp_path, {"chosen": chosen, "rejected": rejected})
    assert (pair.prompt, pair.chosen, pair.rejected) == trl_extract_prompt(chosen, rejected)


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ({"prompt": "Q", "chosen": "a"}, "there is no 'rejected'. The row has: 'prompt', 'chosen'"),
        ({"prompt": "Q", "chosen": "a", "rejectd": "b"}, "there is no 'rejected'; did you mean 'rejectd'?"),
        ({}, "there is no 'chosen'. The row has: nothing"),
        ({"prompt": "Q", "chosen": "a", "rejected": "a"}, "chosen and rejected are equal, 'a'"),
        ({"chosen": [SKY, BLUE], "rejected": [SKY, BLUE]}, "chosen and rejected are equal"),
        ({"prompt": [SKY], "chosen": [SKY, BLUE], "rejected": [BLUE]}, "chosen and rejected are equal"),
        ({"prompt": "Q", "chosen": " \n", "rejected": "a"}, "'chosen': it is empty"),
        ({"prompt": "Q", "chosen": "a", "rejected": ""}, "'rejected': it is empty"),
        ({"prompt": [SKY], "chosen": [{**BLUE, "content": ""}], "rejected": [GREEN]}, "'chosen': it is empty"),
        ({"prompt": [SKY], "chosen": [SKY], "rejected": [GREEN]}, "does not begin with a message of the role"),
        ({"prompt": [SKY], "chosen": [MORE], "rejected": [GREEN]}, "does not begin with a message of the role"),
        ({"prompt": [SKY], "chosen": [], "rejected": [GREEN]}, "'chosen': the list of messages is empty"),
        ({"prompt": [SKY], "chosen": ["x"], "rejected": [GREEN]}, "'chosen', message 0: 'x' is not an object"),
        ({"prompt": 3, "chosen": "a", "rejected": "b"}, "'prompt': 3 is not text"),
        ({"prompt": "Q", "chosen": 3, "rejected": "b"}, "'chosen': 3 is not text"),
        ({"prompt": "Q", "chosen": "half \ud83d", "rejected": "b"}, "character 5 is half of a surrogate pair"),
        ({"prompt": [{**SKY, "name": "\ud83d"}], "chosen": "a", "rejected": "b"}, "half of a surrogate pair"),
        ({"prompt": "Q", "chosen": "a", "rejected": [GREEN]}, "'rejected': messages, but the prompt is text"),
        ({"chosen": "a", "rejected": [SKY, GREEN]}, "one of chosen and rejected is text, the other messages"),
        ({"chosen": "yes", "rejected": "no"}, "share no prefix"),
        ({"chosen": "Yes.", "rejected": "Yes. And no."}, "'chosen' after the shared prompt: it is empty"),
        (
            {"chosen": [SKY, BLUE], "rejected": [MORE, GREEN]},
            "share no first message to use as the prompt; give a column 'prompt'",
        ),
        (
            {"prompt": "sky?", "chosen": [BLUE], "rejected": [GREEN]},
            "share no first message to use as the prompt; give the prompt as messages",
        ),
        ({"chosen": [SKY, BLUE, MORE, BLUE], "rejected": [SKY, BLUE, SKY, BLUE]}, "message 2 has the role 'user'"),
        (
            {"chosen": "\n\nHuman: Hi\n\nAssistant: a", "rejected": "\n\nHuman: Ho\n\nAssistant: a"},
            "differ before the first 'Assistant:'",
        ),
        ({"chosen": "\n\nHuman: Hi\n\nAssistant:", "rejected": "\n\nHuman: Hi\n\nAssistant: b"}, "it is empty"),
    ],
)
def test_preferences_that_do_not_fit_are_named(tmp_path, row, part):
    refused(read_preferences, tmp_path, row, part)


QUERY = {"query": "Q", "sample0": "a", "sample1": "b", "sample2": "b", "sample3": "d", "best": 1}
SUMMARIES = {
    "info": {"id": "t3", "post": "A long post", "title": "T", "subreddit": "r"},
    "summaries": [{"text": " short", "policy": "ref"}, {"text": " worse", "policy": "sup"}],
    "choice": 1,
    "extra": {"confidence": 7},
}


def test_openais_best_of_four_becomes_a_choice_or_pairs(tmp_path):
    source = write(tmp_path, "labels.json", json.dumps([QUERY]))
    assert read_best_of_k(source) == [BestOfK(prompt="Q", completions=("a", "b", "b", "d"), best=1)]
    # Equal to the best, sample2 makes no pair.
    pairs = [Preference(prompt="Q", chosen="b", rejected=other) for other in "ad"]
    assert read_preferences(source) == pairs
    assert read_preferences(source, limit=1) == pairs[:1]


def test_openais_comparisons_of_summaries_are_one_a_line_in_json_files(tmp_path):
    article = {**SUMMARIES, "info": {"article": "News", "title": None}, "choice": 0}
    source = write(tmp_path, "batch3.json", as_jsonl([SUMMARIES, article]))
    assert read_best_of_k(source) == [
        BestOfK(prompt="A long post", completions=(" short", " worse"), best=1),
        BestOfK(prompt="News", completions=(" short", " worse"), best=0),
    ]
    assert read_preferences(source) == [
        Preference(prompt="A long post", chosen=" worse", rejected=" short"),
        Preference(prompt="News", chosen=" short", rejected=" worse"),
    ]


class Letters:
    """A tokenizer of the letters a to z."""

    def __len__(self):
        return 26

    def decode(self, ids, *, clean_up_tokenization_spaces):
        assert not clean_up_tokenization_spaces
        return "".join(chr(ord("a") + token) for token in ids)


def test_token_ids_become_text_and_ids_past_the_vocabulary_are_padding(tmp_path):
    row = {"query": [7, 8, 26, 26], "sample0": [0, 1], "sample1": [2, 26], "best": 1}
    assert one(read_best_of_k, tmp_path, row, tokenizer=Letters()) == [
        BestOfK(prompt="hi", completions=("ab", "c"), best=1)
    ]
    assert one(read_preferences, tmp_path, row, tokenizer=Letters()) == [
        Preference(prompt="hi", chosen="c", rejected="ab")
    ]
    refused(read_best_of_k, tmp_path, row, "'query': token ids; give their tokenizer")
    refused(read_best_of_k, tmp_path, {**row, "sample1": [26, 26]}, "it is empty", tokenizer=Letters())


def test_a_tokenizer_that_nobody_named_must_read_all_ids_but_one(tmp_path):
    assumed = AssumedTokenizer(tokenizer=Letters(), remedy="name it by --labels-tokenizer")
    row = {"query": [7, 8, 99, 99], "sample0": [0, 1], "sample1": [2, 99], "best": 1}
    wanted = BestOfK(prompt="hi", completions=("ab", "c"), best=1)
    assert one(read_best_of_k, tmp_path, row, tokenizer=assumed) == [wanted]
    source = write(tmp_path, "labels.jsonl", as_jsonl([row] * 200 + [{**row, "sample0": [0, 27]}]))
    said = r"labels\.jsonl: holds token ids that the tokenizer Letters does not have, such as 27 and 99, .*--labels-tok"
    for reader in (read_best_of_k, read_preferences):
        with pytest.raises(InputError, match=said):
            reader(source, tokenizer=assumed)
    assert len(read_best_of_k(source, tokenizer=Letters())) == 201


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ({**QUERY, "best": 4}, "'best': 4 is not an index; write 0 to 3"),
        ({**QUERY, "best": -1}, "'best': -1 is not an index"),
        ({**QUERY, "best": 0.5}, "'best': 0.5 is not an index"),
        ({**QUERY, "best": True}, "'best': True is not an index"),
        ({**QUERY, "best": None}, "there is no 'best'"),
        ({**QUERY, "sample3": ""}, "'sample3': it is empty"),
        ({"query": "Q", "sample0": "a", "best": 0}, "too few completions to compare, 1"),
        ({"query": "Q", "sample0": "a", "sample1": "a", "best": 0}, "all completions are equal, 'a'"),
        ({"query": "Q", "best": 0}, "there is no 'sample0'"),
        ({**SUMMARIES, "choice": 2}, "'choice': 2 is not an index"),
        ({**SUMMARIES, "info": {"title": "T"}}, "'info': there is no 'article'"),
        ({**SUMMARIES, "info": "post"}, "'info' must be an object"),
        ({**SUMMARIES, "summaries": [{"text": "a"}, {"txt": "b"}]}, "'summaries[1]': there is no 'text'"),
        ({**SUMMARIES, "summaries": ["a", "b"]}, "'summaries[0]': 'a' is not an object"),
        ({**SUMMARIES, "summaries": []}, "too few completions to compare, 0"),
        ({**SUMMARIES, "summaries": [{"text": "a"}, {"text": " "}]}, "'summaries[1]': it is empty"),
    ],
)
def test_choices_that_do_not_fit_are_named(tmp_path, row, part):
    refused(read_best_of_k, tmp_path, row, part)
