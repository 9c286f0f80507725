"""Batches of any offline method: rows taken from nested arrays, and their tokens counted."""

import numpy as np

from jaxrl_lm.algorithms import ReferencedRows
from jaxrl_lm.data import EncodedText
from jaxrl_lm.training.offline.preferences import one_row_each
from jaxrl_lm.training.offline.task import count_tokens, take_rows


def test_rows_are_taken_in_any_shape_and_minus_one_is_padding():
    sequences = [
        (EncodedText(ids=ids, num_prompt_tokens=1), EncodedText(ids=[*ids, 9], num_prompt_tokens=1))
        for ids in ([1, 2], [3, 4])
    ]
    arrays = {"pairs": ReferencedRows(one_row_each(sequences), np.array([[-1.0, -2.0], [-3.0, -4.0]], np.float32))}
    pairs = take_rows(arrays, np.array([[1, -1], [0, 1]]))["pairs"]
    padding, first, second = [[0, 0, 0]] * 2, [[1, 2, 0], [1, 2, 9]], [[3, 4, 0], [3, 4, 9]]
    np.testing.assert_array_equal(pairs.rows.ids, [[second, padding], [first, second]])
    np.testing.assert_array_equal(pairs.rows.is_target.sum(axis=(2, 3)), [[3, 0], [3, 3]])
    np.testing.assert_array_equal(pairs.reference_log_probs, [[[-3, -4], [0, 0]], [[-1, -2], [-3, -4]]])
    assert [part.dtype for part in (pairs.rows.ids, pairs.rows.is_target)] == [np.int32, bool]
    assert count_tokens({"pairs": pairs}) == 15  # three pairs of 2 + 3 tokens
