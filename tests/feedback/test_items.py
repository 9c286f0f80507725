"""What is asked: grouping of answers, what is left out, names of contents."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrl_lm.errors import InputError
from jaxrl_lm.feedback import CompletedPrompt, Item, make_items


def row(*completions: str) -> CompletedPrompt:
    return CompletedPrompt(prompt="p", completions=completions, where="line 1")


def test_pairs_are_disjoint_or_all() -> None:
    disjoint = make_items([row("a", "b", "c", "d")], "pairwise")
    assert [item.completions for item in disjoint.items] == [("a", "b"), ("c", "d")]
    everyone = make_items([row("a", "b", "c")], "pairwise", pairs="all")
    assert [item.completions for item in everyone.items] == [("a", "b"), ("a", "c"), ("b", "c")]


def test_thumbs_ask_of_each_answer_and_best_of_4_of_four() -> None:
    assert [item.completions for item in make_items([row("a", "b")], "thumbs").items] == [("a",), ("b",)]
    assert [item.completions for item in make_items([row(*"abcd")], "best-of-4").items] == [tuple("abcd")]


def test_blank_equal_and_too_few_answers_are_left_out_and_listed() -> None:
    found = make_items([row("a", "b"), row("a", "a"), row("a", " \n"), row("a", "b", "c")], "pairwise")
    assert [item.completions for item in found.items] == [("a", "b"), ("a", "b")]
    reasons = " | ".join(found.left_out)
    assert "the completions are equal" in reasons
    assert "1 of 2 completions are blank" in reasons
    assert reasons.count("1 completions are too few for pairwise") == 2


@pytest.mark.parametrize("completions", [("same", "same"), ("", "x"), ()])
def test_nothing_to_ask_is_an_error(completions: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match="no items for mode pairwise"):
        make_items([row(*completions)], "pairwise")


@given(st.permutations(["a", "b", "c", "d"]))
def test_contents_have_one_name_in_any_order(completions: list[str]) -> None:
    item = Item(mode="best-of-4", prompt="p", completions=tuple(completions))
    assert item.content_hash() == Item(mode="best-of-4", prompt="p", completions=tuple("abcd")).content_hash()


def test_other_contents_have_another_name() -> None:
    items = [
        Item(mode="pairwise", prompt="p", completions=("a", "b")),
        Item(mode="pairwise", prompt="q", completions=("a", "b")),
        Item(mode="pairwise", prompt="p", completions=("a", "bb")),
        Item(mode="pairwise", prompt=[{"role": "user", "content": "p"}], completions=("a", "b")),
        Item(mode="thumbs", prompt="p", completions=("a",)),
    ]
    assert len({item.content_hash() for item in items}) == len(items)


def test_an_item_has_as_many_answers_as_its_mode_shows() -> None:
    with pytest.raises(InputError, match="needs 4 completions, but has 2"):
        Item(mode="best-of-4", prompt="p", completions=("a", "b"))
