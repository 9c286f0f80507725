"""Built-in rewards, by hand."""

import pytest

from jaxrl_lm.rewards import REWARDS


@pytest.mark.parametrize(
    ("name", "completion", "expected"),
    [
        ("words", "to be  or\nnot to be", 6.0),
        ("brevity", "to be  or\nnot to be", -6.0),
        ("distinct_words", "to be or not to be", 4 / 6),
        ("distinct_words", "The the", 1.0),
        ("lowercase", "Ab cD 12!", 2 / 4),
        ("lowercase", "éÉ", 1 / 2),
        ("vowels", "Every cat, 3 y", 3 / 9),
    ],
)
def test_reward_by_hand(name, completion, expected):
    assert REWARDS[name](prompts=["?"], completions=[completion]) == [expected]


@pytest.mark.parametrize("name", [name for name in REWARDS if name != "good_manners"])
def test_a_completion_with_nothing_to_count_earns_zero(name):
    assert REWARDS[name](prompts=["?"] * 2, completions=["", " \n"]) == [0.0, 0.0]


@pytest.mark.parametrize("name", REWARDS)
def test_conversations_earn_what_their_text_earns(name):
    text = "Over AND over and out"
    message = [{"role": "assistant", "content": text}]
    earned = REWARDS[name](prompts=[[], "?"], completions=[message, text], answer=["unused", None])
    assert earned[0] == earned[1] != 0.0
