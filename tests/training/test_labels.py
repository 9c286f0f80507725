"""Labelled completions: the split by prompt, batches, and what is measured on the held-out ones."""

import json
import re
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl_lm.algorithms.reward_model import Objective
from jaxrl_lm.core.calibration import wilson_interval
from jaxrl_lm.errors import InputError
from jaxrl_lm.training.reward_model import labels
from jaxrl_lm.training.reward_model.agreement import measure_agreement
from jaxrl_lm.training.reward_model.config import RewardModelRunConfig
from jaxrl_lm.training.reward_model.labels import LabelledRow, LabelledSet, read_labels, split_by_prompt


def pair(prompt, chosen, rejected):
    return LabelledRow(prompt=prompt, completions=(chosen, rejected), target=0)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@given(
    prompts=st.lists(st.integers(0, 6), min_size=2, max_size=40), fraction=st.floats(0.05, 0.9), seed=st.integers(0, 5)
)
@settings(max_examples=60, deadline=None)
def test_no_prompt_is_on_both_sides_and_no_row_is_lost(prompts, fraction, seed):
    rows = [pair(f"p{prompt}", f"c{index}", "r") for index, prompt in enumerate(prompts)]
    if len(set(prompts)) < 2:
        with pytest.raises(InputError, match="--evaluation"):
            split_by_prompt(rows, fraction=fraction, seed=seed)
        return
    training, held = split_by_prompt(rows, fraction=fraction, seed=seed)
    assert {row.prompt for row in training}.isdisjoint({row.prompt for row in held})
    assert training
    assert held
    assert sorted(row.completions[0] for row in training + held) == sorted(row.completions[0] for row in rows)


def test_conversations_are_prompts_as_well():
    chats = [[{"role": "user", "content": f"{index // 2}"}] for index in range(8)]
    training, held = split_by_prompt([pair(chat, "c", "r") for chat in chats], fraction=0.5, seed=0)
    assert all(row.prompt not in [each.prompt for each in held] for row in training)
    assert len(training) == len(held) == 4


def test_rows_without_a_prompt_share_no_answer_across_the_split(caplog):
    rows = [pair("", f"text {index}", f"text {index + 1}") for index in range(20)]
    training, held = split_by_prompt(rows, fraction=0.2, seed=0)
    shown = {text for row in held for text in row.texts()}
    assert len(held) == 4
    assert training
    assert all(shown.isdisjoint(row.texts()) for row in training)
    num_lost = len(rows) - len(held) - len(training)
    assert num_lost > 0
    assert f"of 16 training rows, {num_lost} without their own prompt share a completion" in caplog.text
    assert "--evaluation FILE" in caplog.text
    caplog.clear()
    split_by_prompt([pair("", f"good {index}", f"bad {index}") for index in range(20)], fraction=0.2, seed=0)
    assert not caplog.text


def test_one_prompt_of_all_rows_is_as_good_as_none():
    rows = [pair("Review: ", f"text {index}", f"text {index + 1}") for index in range(20)]
    without = [replace(row, prompt="") for row in rows]
    training, held = split_by_prompt(rows, fraction=0.2, seed=0)
    assert [[replace(row, prompt="") for row in part] for part in (training, held)] == [
        *split_by_prompt(without, fraction=0.2, seed=0)
    ]
    labels.check_held_out(rows[:5], rows[6:], "e.jsonl")
    common = labels.common_prompt(rows)
    assert LabelledSet(rows=held, tokens=[], common=common).num_prompts == 4
    assert LabelledSet(rows=held, tokens=[], common=None).num_prompts == 1, "one of several prompts"
    several = [*rows[:5], pair("Summary: ", "long", "short")]
    with pytest.raises(InputError, match="1 of its prompts"):
        labels.check_held_out(several, rows[6:], "e.jsonl")
    with pytest.raises(InputError, match="all rows have the same prompt"):
        split_by_prompt(rows[:1], fraction=0.2, seed=0)


def test_shared_prompt_of_a_given_evaluation_is_refused():
    with pytest.raises(InputError, match=r"evaluation='e\.jsonl': 1 of its prompts"):
        labels.check_held_out([pair("a", "x", "y"), pair("b", "x", "y")], [pair("a", "z", "y")], "e.jsonl")
    labels.check_held_out([pair("a", "x", "y")], [pair("b", "x", "y")], "e.jsonl")


@pytest.mark.parametrize("prompt", ["", "Review: "])
def test_answers_of_a_given_evaluation_that_training_shows_are_counted(caplog, prompt):
    training = [pair(prompt, "a", "b"), pair(prompt, "c", "d")]
    labels.check_held_out(training, [pair(prompt, "e", "f")], "e.jsonl")
    assert not caplog.text
    labels.check_held_out(training, [pair(prompt, "a", "x"), pair(prompt, "y", "d")], "e.jsonl")
    assert "evaluation='e.jsonl': 2 of its completions are also in training rows, such as 'a'" in caplog.text
    with pytest.raises(InputError, match="1 of its prompts"):
        labels.check_held_out(training, [pair(prompt, "a", "b")], "e.jsonl")


def test_each_objective_reads_its_form(tmp_path):
    pairs = write(tmp_path / "p.jsonl", [{"prompt": "q", "chosen": "c", "rejected": "r"}])
    thumbs = write(tmp_path / "t.jsonl", [{"prompt": "q", "completion": "c", "label": False}])
    best = write(tmp_path / "b.jsonl", [{"query": "q", "sample0": "a", "sample1": "b", "sample2": "c", "best": 2}])
    assert read_labels(pairs, "pairwise") == [pair("q", "c", "r")]
    assert read_labels(thumbs, "binary") == [LabelledRow(prompt="q", completions=("c",), target=0)]
    assert read_labels(best, "best_of_k") == [LabelledRow(prompt="q", completions=("a", "b", "c"), target=2)]


def test_rows_of_the_columns_that_the_help_names_are_read(tmp_path):
    said = " ".join((RewardModelRunConfig.__doc__ or "").split())
    forms = re.findall(r"of ((?:[a-z0-9.]+, )+[a-z0-9]+) \((\w+)\)", said)
    assert {objective for _, objective in forms} == set(get_args(Objective))
    for columns, objective in forms:
        row = {name: 1 if name in ("best", "label") else name for name in columns.split(", ") if name != "..."}
        assert len(read_labels(write(tmp_path / "rows.jsonl", [row]), objective)) == 1


def test_rows_of_different_numbers_of_answers_are_refused(tmp_path):
    rows = [
        {"query": "q", "sample0": "a", "sample1": "b", "best": 0},
        {"query": "p", "sample0": "a", "sample1": "b", "sample2": "c", "best": 0},
    ]
    with pytest.raises(InputError, match="2 and 3 completions"):
        read_labels(write(tmp_path / "b.jsonl", rows), "best_of_k")


def test_verdict_on_pairs_worked_by_hand():
    scores = np.array([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    verdict = measure_agreement("pairwise", scores, np.zeros(3, int), np.array([[5, 3], [1, 1], [2, 6]]), np.arange(3))
    assert verdict.accuracy.estimate == pytest.approx(2 / 3)
    expected = np.mean(np.log1p(np.exp([-2.0, 1.0, -3.0])))
    assert verdict.loss == pytest.approx(expected)
    assert verdict.length_bias is not None
    assert verdict.length_bias.longer_wins == pytest.approx((1 + 0.5 + 0) / 3)
    assert verdict.length_bias.longer_preferred == pytest.approx(1 / 2)
    assert verdict.length_correlation == pytest.approx((4 - 12) / np.sqrt((4 + 1 + 9) * (4 + 16)))


def test_verdict_on_the_best_of_three_counts_the_top_answer():
    scores = np.array([[1.0, 2.0, 0.0], [5.0, 1.0, 1.0]])
    verdict = measure_agreement("best_of_k", scores, np.array([1, 2]), np.ones((2, 3), int), np.arange(2))
    assert verdict.accuracy.estimate == 0.5
    assert verdict.length_correlation == 0.0
    assert [each.low for each in verdict.by_margin] == [1.0, 4.0]


def test_verdict_on_thumbs_worked_by_hand():
    scores, labels = np.array([[2.0], [-1.0], [1.0], [0.0]]), np.array([1, 0, 0, 1])
    verdict = measure_agreement("binary", scores, labels, np.array([[4], [1], [3], [2]]), np.arange(4))
    assert verdict.accuracy.estimate == pytest.approx((1 + 1 + 0 + 0.5) / 4)
    assert verdict.loss == pytest.approx(np.mean(np.log1p(np.exp([-2.0, -1.0, 1.0, 0.0]))))
    assert verdict.length_bias is None
    assert verdict.length_correlation == pytest.approx(np.corrcoef(scores[:, 0], [4, 1, 3, 2])[0, 1])


@pytest.mark.parametrize("objective", ["pairwise", "binary"])
def test_intervals_know_which_labels_are_of_one_prompt(objective):
    # Right, wrong, right, ...; of three prompts one is always right and one always wrong: worth 3 of 6, and a half.
    scores, groups = np.array([[1.0], [-1.0]] * 3), np.array([0, 1, 0, 2, 2, 1])
    if objective == "pairwise":
        scores = np.hstack([scores, np.zeros((6, 1))])
    targets = np.full(6, int(objective == "binary"))
    verdict = measure_agreement(objective, scores, targets, np.ones(scores.shape, int), groups)
    number = 3 * (2.570582 / 4.302653) ** 2  # as test_calibration.py has it
    assert verdict.accuracy == pytest.approx(wilson_interval(number / 2, number), rel=1e-5)
    assert [each.accuracy for each in verdict.by_margin] == [verdict.accuracy]


def test_rows_without_a_prompt_share_none():
    rows = [pair(prompt, "c", "r") for prompt in ("b", "", "a", "b", "", [{"role": "user", "content": "b"}])]
    held = LabelledSet(rows=rows, tokens=[])
    assert held.groups.tolist() == [0, 1, 2, 0, 3, 4]
    assert held.num_prompts == 5


def test_verdict_is_plain_json():
    verdict = measure_agreement(
        "pairwise", np.array([[1.0, 0.0]]), np.zeros(1, int), np.array([[2, 1]]), np.zeros(1, int)
    )
    assert json.loads(json.dumps(verdict.as_record()))["accuracy"]["estimate"] == 1.0


def test_verdict_on_answers_of_one_length_is_json_without_nan():
    verdict = measure_agreement(
        "pairwise", np.array([[1.0, 0.0]]), np.zeros(1, int), np.array([[2, 2]]), np.zeros(1, int)
    )
    bias = json.loads(json.dumps(verdict.as_record(), allow_nan=False))["length_bias"]
    assert bias == {"correlation": 0.0, "longer_wins": 0.5, "longer_preferred": None}
