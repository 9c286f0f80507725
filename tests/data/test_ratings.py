"""Ratings as preferences: all pairs a margin apart, each equally likely, and labels by sign."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl_lm.data import (
    Preference,
    Rating,
    UnpairedPreference,
    labels_from_ratings,
    pairs_from_ratings,
    read_ratings,
)
from jaxrl_lm.errors import InputError


def rated(*pairs):
    return [Rating(text=text, rating=rating) for text, rating in pairs]


def reference_pairs(rows, margin):
    return {
        (high.text, low.text)
        for high in rows
        for low in rows
        if round(high.rating - low.rating, 6) >= margin and high.text != low.text
    }


def drawn_pairs(rows, **options):
    pairs = pairs_from_ratings(rows, prompt="", **options)
    return [(pair.chosen, pair.rejected) for pair in pairs]


def test_all_pairs_by_hand():
    rows = rated(("good", 2.0), ("bad", -1.0), ("so so", 0.2))
    pairs = pairs_from_ratings(rows, margin=1.2, num_pairs=3, seed=0, prompt="Review:")
    assert sorted(pairs, key=lambda pair: pair.chosen + pair.rejected) == [
        Preference(prompt="Review:", chosen="good", rejected="bad"),
        Preference(prompt="Review:", chosen="good", rejected="so so"),
        Preference(prompt="Review:", chosen="so so", rejected="bad"),
    ]


def test_rounded_ratings_exactly_a_margin_apart_are_a_pair():
    rows = rated(("a", -1.9995), ("b", -2.9995))
    assert rows[1].rating + 1.0 > rows[0].rating
    assert drawn_pairs(rows, margin=1.0, num_pairs=1, seed=0) == [("a", "b")]


@settings(deadline=None, max_examples=200)
@given(
    ratings=st.lists(st.integers(-6, 6), max_size=8), margin=st.sampled_from([0.5, 1.0, 2.5]), seed=st.integers(0, 9)
)
def test_every_pair_a_margin_apart_is_drawn_once_and_one_more_is_refused(ratings, margin, seed):
    rows = rated(*((f"text {index}", rating / 2) for index, rating in enumerate(ratings)))
    wanted = reference_pairs(rows, margin)
    if wanted:
        drawn = drawn_pairs(rows, margin=margin, num_pairs=len(wanted), seed=seed)
        assert len(drawn) == len(wanted)
        assert set(drawn) == wanted
    with pytest.raises(InputError, match=f"only {len(wanted)} pairs of different texts have ratings {margin}"):
        drawn_pairs(rows, margin=margin, num_pairs=len(wanted) + 1, seed=seed)


rated_texts = st.tuples(st.sampled_from("ab"), st.sampled_from([-2.0, -1.0, 0.0, 1.0, 2.0]))


@settings(deadline=None, max_examples=200)
@given(rows=st.lists(rated_texts, max_size=7), seed=st.integers(0, 9))
def test_texts_rated_twice_are_never_paired_with_themselves(rows, seed):
    wanted = Counter((high, low) for high, up in rows for low, down in rows if up - down >= 2 and high != low)
    if wanted:
        drawn = drawn_pairs(rated(*rows), margin=2.0, num_pairs=wanted.total(), seed=seed)
        assert Counter(drawn) == wanted


def test_pairs_are_drawn_evenly_and_by_the_seed():
    rows = rated(*((f"text {index}", float(index)) for index in range(5)))
    wanted = reference_pairs(rows, 2.0)
    counts = Counter(pair for seed in range(600) for pair in drawn_pairs(rows, margin=2.0, num_pairs=2, seed=seed))
    # 1200 draws over 6 pairs: 200 each, standard deviation sqrt(600 * 1/3 * 2/3) = 11.5.
    assert set(counts) == wanted
    assert all(abs(count - 200) < 5 * 11.5 for count in counts.values())
    again = [drawn_pairs(rows, margin=2.0, num_pairs=3, seed=1) for _ in range(2)]
    assert again[0] == again[1]


@pytest.mark.parametrize("margin", [0.0, -1.0, float("nan"), float("inf")])
def test_margins_that_are_none_are_refused(margin):
    with pytest.raises(InputError, match=f"margin is {margin}; give a number above 0"):
        drawn_pairs(rated(("a", 0.0), ("b", 2.0)), margin=margin, num_pairs=1, seed=0)


def test_no_pairs_are_refused():
    with pytest.raises(InputError, match="num_pairs is 0; give 1 or more"):
        drawn_pairs([], margin=1.0, num_pairs=0, seed=0)


def test_labels_are_the_signs_and_zero_has_none():
    rows = rated(("fine", 0.1), ("neither", 0.0), ("poor", -3.0))
    assert labels_from_ratings(rows, prompt="Review:") == [
        UnpairedPreference(prompt="Review:", completion="fine", label=True),
        UnpairedPreference(prompt="Review:", completion="poor", label=False),
    ]
    with pytest.raises(InputError, match="none of the 1 ratings is above or below 0"):
        labels_from_ratings(rows[1:2], prompt="")


def test_the_movie_reviews_are_all_read_and_give_pairs_a_point_apart(shared_data):
    rows = read_ratings(shared_data / "movie_reviews" / "ratings.tsv")
    assert len(rows) == 10_605
    assert rows[2] == Rating(text="Effective but too tepid biopic", rating=-0.6)
    assert all(-4 <= row.rating <= 4 for row in rows)
    by_text = {}
    for row in rows:
        by_text.setdefault(row.text, []).append(row.rating)
    drawn = drawn_pairs(rows, margin=1.0, num_pairs=5000, seed=0)
    assert len(set(drawn)) == 5000
    assert all(max(by_text[high]) - min(by_text[low]) >= 1.0 - 1e-9 for high, low in drawn)
