"""Packing: every token once, in order, no row overfull, the same from the same seed; what is cut is counted."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl_lm.core.host_streams import Stream, host_generator
from jaxrl_lm.data.encoding import EncodedText
from jaxrl_lm.data.packing import fit_sequences, pack_sequences, plan_rows
from jaxrl_lm.errors import InputError

LENGTHS = st.lists(st.integers(1, 12), min_size=1, max_size=30)


def encoded(ids: list[int], num_prompt_tokens: int = 0) -> EncodedText:
    return EncodedText(ids=ids, num_prompt_tokens=num_prompt_tokens)


@given(lengths=LENGTHS, window=st.integers(1, 40), seed=st.integers(0, 99), is_loss_on_all=st.booleans())
@settings(max_examples=60, deadline=None)
def test_every_sequence_is_whole_in_one_row_with_its_targets(lengths, window, seed, is_loss_on_all):
    rng = np.random.default_rng(seed)
    sequences = [encoded(rng.integers(1, 50, n).tolist(), int(rng.integers(0, n))) for n in lengths]
    plan = plan_rows(np.array(lengths), row_length=12, window=window, seed=seed)
    assert sorted(index for row in plan for index in row) == list(range(len(lengths)))
    rows = pack_sequences(sequences, plan, row_length=12, is_loss_on_all=is_loss_on_all)
    for row, members in enumerate(plan):
        start = 0
        for number, member in enumerate(members, 1):
            sequence, found = sequences[member], rows.segment_ids[row] == number
            assert np.flatnonzero(found).tolist() == list(range(start, start + len(sequence.ids)))
            assert rows.ids[row, found].tolist() == sequence.ids
            first = 1 if is_loss_on_all else max(1, sequence.num_prompt_tokens)
            assert rows.is_target[row, found].tolist() == [i >= first for i in range(len(sequence.ids))]
            start += len(sequence.ids)
        assert start <= 12
        assert not rows.segment_ids[row, start:].any()
        assert not rows.is_target[row, start:].any()


@given(lengths=LENGTHS, seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_rows_are_those_of_a_plain_loop(lengths, seed):
    expected: list[int] = []
    for length in sorted(lengths, reverse=True):
        for row, filled in enumerate(expected):
            if filled + length <= 12:
                expected[row] += length
                break
        else:
            expected.append(length)
    plan = plan_rows(np.array(lengths), row_length=12, window=len(lengths), seed=seed)
    assert [sum(lengths[i] for i in row) for row in plan] == expected


def test_a_case_worked_by_hand():
    # 5 and 4 fill a row of 9; 4 and 3 leave 2, which the last 2 takes.
    plan = plan_rows(np.array([4, 2, 5, 3, 4]), row_length=9, window=5, seed=0)
    assert [sorted([4, 2, 5, 3, 4][i] for i in row) for row in plan] == [[4, 5], [2, 3, 4]]


def test_the_seed_alone_decides_and_windows_do_not_mix():
    lengths = np.arange(1, 41) % 9 + 1
    plans = [plan_rows(lengths, row_length=10, window=8, seed=seed) for seed in (3, 3, 4)]
    assert plans[0] == plans[1] != plans[2]
    window_of = {
        int(index): place // 8 for place, index in enumerate(host_generator(Stream.PACKING, 3).permutation(40))
    }
    assert all(len({window_of[index] for index in row}) == 1 for row in plans[0])


def test_a_sequence_longer_than_a_row_is_refused():
    with pytest.raises(InputError, match="row_length=4: a sequence has 5 tokens"):
        plan_rows(np.array([5]), row_length=4, window=1, seed=0)


def test_long_texts_are_split_long_completions_cut_and_what_teaches_nothing_is_dropped():
    sequences = [
        encoded([1, 2, 3, 4, 5, 6, 7]),  # a text of two pieces
        encoded([1, 2, 3, 4, 5], 2),  # loses its last token
        encoded([1, 2, 3, 4, 5], 4),  # loses all that was to be learned
        encoded([9]),  # nothing is before its one token
        encoded([8, 9], 1),
    ]
    fitted, counts = fit_sequences(sequences, row_length=4, is_loss_on_all=False)
    assert [(each.ids, each.num_prompt_tokens) for each in fitted] == [
        ([1, 2, 3, 4], 0),
        ([5, 6, 7], 0),
        ([1, 2, 3, 4], 2),
        ([8, 9], 1),
    ]
    assert counts == (1, 2, 2)


def test_a_prompt_that_fills_the_row_is_kept_where_prompts_are_learned():
    fitted, counts = fit_sequences([encoded([1, 2, 3, 4, 5], 4)], row_length=4, is_loss_on_all=True)
    assert [each.ids for each in fitted] == [[1, 2, 3, 4]]
    assert counts == (0, 1, 0)


def test_only_the_assistants_tokens_are_targets_where_they_are_marked():
    turns = EncodedText(
        ids=[1, 2, 3, 4, 5, 6], num_prompt_tokens=0, is_assistant=[True, True, False, False, True, True]
    )
    answer = EncodedText(ids=[7, 8, 9], num_prompt_tokens=2, is_assistant=[True, True, True])
    rows = pack_sequences([turns, answer], [[0, 1]], row_length=10, is_loss_on_all=False)
    # A sequence's first token has nothing before it, and those of the prompt are not learned.
    assert rows.is_target[0].tolist() == [False, True, False, False, True, True, False, False, True, False]
    whole = pack_sequences([turns], [[0]], row_length=6, is_loss_on_all=True)
    assert whole.is_target[0].tolist() == [False] + [True] * 5


def test_pieces_of_a_text_keep_their_marks_and_those_without_any_are_left_out():
    turns = EncodedText(
        ids=[1, 2, 3, 4, 5, 6], num_prompt_tokens=0, is_assistant=[True, True, False, False, True, True]
    )
    pieces, cut = fit_sequences([turns], row_length=2, is_loss_on_all=False)
    assert [piece.ids for piece in pieces] == [[1, 2], [5, 6]]
    assert (cut.num_split, cut.num_dropped) == (1, 0)
    unsaid = EncodedText(ids=[1, 2], num_prompt_tokens=0, is_assistant=[False, False])
    assert fit_sequences([unsaid], row_length=2, is_loss_on_all=False)[1].num_dropped == 1
