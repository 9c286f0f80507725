"""The gold reward of replies, worked by hand."""

import pytest

from jaxrl_lm.rewards.manners import good_manners

QUESTION = "User: How do I cook rice?\nAssistant:"


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        (" Gladly. Rinse the rice three times. I hope this helps.", 2.0),
        (" Rinse the rice three times.", 1.0),
        (" Of course, of course. Please go on. Good luck.", 1.0 - 1 / 5),  # 3 phrases count as 2; "course" said twice
        (" No idea.", 0.0),
        (" What a stupid question.", -1.0),
        (" Rinse the rice", 0.5),
        ("", -2.0),
        (" ...", -2.0),
        (" Rice rice rice rice.", 1.0 - 3 / 4),
    ],
)
def test_scores_by_hand(reply, score):
    assert good_manners(prompts=[QUESTION], completions=[reply]) == pytest.approx([score])


def test_long_replies_lose():
    words = [f"w{chr(97 + i // 5)}{chr(97 + i % 5)}" for i in range(29)]
    assert good_manners(prompts=[QUESTION], completions=[" ".join([*words, "rice."])]) == pytest.approx([1.0 - 0.5])


def test_the_last_question_of_a_conversation_counts():
    turns = [
        {"role": "user", "content": "How do I cook rice?"},
        {"role": "assistant", "content": "Rinse it."},
        {"role": "user", "content": "And what is a comet?"},
    ]
    replies = [[{"role": "assistant", "content": text}] for text in ("Rinse the rice.", "A comet is a ball of ice.")]
    assert good_manners(prompts=[turns] * 2, completions=replies) == pytest.approx([0.0, 1.0])
