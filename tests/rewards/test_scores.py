"""Reward functions as TRL's users write them: None, async, extra arguments, several with weights, conversations."""

import asyncio
import sys
import time
from functools import partial

import jax
import numpy as np
import pytest

from jaxrl_lm.data import Prompt
from jaxrl_lm.distributed import hosts
from jaxrl_lm.errors import InputError
from jaxrl_lm.rewards import (
    REWARDS,
    CombinedReward,
    TrainerState,
    load_rewards,
    mean_of_scored,
    reward_fingerprint,
    score_batch,
    score_completions,
)

PLAIN = [Prompt(prompt=f"question {index}", columns={"level": index}) for index in range(3)]
ANSWERS = ["one", "three", "fifteen"]
WHY = {"role": "user", "content": "Why?"}
CHAT = [Prompt(prompt=[WHY], columns={}) for _ in range(3)]

# Since Python 3.12 a comprehension has no frame whose variables could tell which row it failed at.
AT_COMPLETION = " at completion" if sys.version_info < (3, 12) else "; the last completion that it read was"


def length(prompts, completions, **columns):
    return [len(text) for text in completions]


def only_short(prompts, completions, level):
    return [1.0 if len(text) < 4 else None for text in completions]


async def slow_length(completions, delay=0.2, **columns):
    await asyncio.sleep(delay)
    return [len(text) for text in completions]


class Scorer:
    """An object that can be called."""

    def __call__(self, completions, **columns):
        return [2 * len(text) for text in completions]


class AsyncScorer:
    """One that is awaited."""

    async def __call__(self, completions, **columns):
        return [None, *(3 * len(text) for text in completions[1:])]


def combined(*functions, weights=()):
    names = {f"f{index}": function for index, function in enumerate(functions)}
    return CombinedReward(functions=names, weights=weights or (1.0,) * len(functions))


@pytest.mark.parametrize(
    ("reward", "wanted"),
    [
        (slow_length, [3, 5, 7]),
        (Scorer(), [6, 10, 14]),
        (Scorer().__call__, [6, 10, 14]),
        (partial(slow_length, delay=0.0), [3, 5, 7]),
        (partial(partial(length)), [3, 5, 7]),
    ],
    ids=["async", "object", "method", "partial of async", "partial"],
)
def test_whatever_can_be_called_scores(reward, wanted):
    assert score_completions(reward, PLAIN, ANSWERS).tolist() == wanted
    assert score_completions(combined(reward, length), PLAIN, ANSWERS).tolist() == [
        a + b for a, b in zip(wanted, [3, 5, 7], strict=True)
    ]


def test_none_is_no_score_and_means_are_over_what_was_scored():
    found = score_batch(only_short, PLAIN, ANSWERS, is_partial=True).rewards
    np.testing.assert_array_equal(found, [1.0, np.nan, np.nan])
    assert mean_of_scored(found) == 1.0
    assert np.isnan(mean_of_scored(found[1:]))
    # TRL's nansum: 0.5 * 3 + 10 * 1, 0.5 * 5 + 2 * 15, 0.5 * 7 + 2 * 21
    reward = combined(length, only_short, AsyncScorer(), weights=(0.5, 10.0, 2.0))
    scores = score_batch(reward, PLAIN, ANSWERS)
    np.testing.assert_allclose(scores.rewards, [11.5, 32.5, 45.5])
    assert scores.metrics == {"reward/f0": 5.0, "reward/f1": 1.0, "reward/f2": 18.0}
    assert reward(["q"] * 3, ANSWERS, level=[0, 1, 2]) == [11.5, 32.5, 45.5]
    assert combined(only_short)(["q"] * 3, ANSWERS, level=[0, 1, 2]) == [1.0, None, None]


@pytest.mark.parametrize(("reward", "who"), [
    (only_short, "reward function 'only_short' returned None"),
    (combined(only_short, only_short), "all of f0, f1 returned None"),
])  # fmt: skip
def test_a_completion_that_nothing_scores_is_named_where_learning_needs_a_reward(reward, who):
    with pytest.raises(InputError) as caught:
        score_completions(reward, PLAIN, ANSWERS)
    assert "completion 1 (counting from 0), 'three', of the prompt 'question 1'" in str(caught.value)
    assert f"{who}, and so for 2 of 3" in str(caught.value)


def test_a_function_that_scores_nothing_has_no_metric():
    def silent(completions, **columns):
        return [None] * len(completions)

    assert score_batch(combined(length, silent), PLAIN, ANSWERS).metrics == {"reward/f0": 5.0}


def test_functions_get_what_they_ask_for():
    def asks(prompts, completions, level, completion_ids, trainer_state, log_metric, log_extra):
        log_metric("level", sum(level))
        log_metric("level", 0)
        log_metric("parts/longest", max(map(len, completion_ids)))
        log_extra("first_token", np.array([ids[0] for ids in completion_ids]))
        return [trainer_state.global_step + trainer_state.max_steps] * len(completions)

    ids, state = [[7], [8, 9], [5]], TrainerState(global_step=2, max_steps=9)
    for reward in (asks, combined(asks)):
        scores = score_batch(reward, PLAIN, ANSWERS, completion_ids=ids, trainer_state=state)
        assert scores.rewards.tolist() == [11.0] * 3
        assert scores.metrics["reward/level"] == 1.5
        assert scores.metrics["parts/longest"] == 2.0
        assert scores.columns == {"first_token": [7, 8, 5]}
    with pytest.raises(InputError, match=r"'asks' asks for completion_ids, which only training provides"):
        score_completions(asks, PLAIN, ANSWERS)


def test_arguments_that_are_not_asked_for_are_not_given():
    def narrow(prompts, completions, level, completion_ids=None):
        return [0.0 if completion_ids is None else 1.0] * len(completions)

    assert score_completions(narrow, PLAIN, ANSWERS).tolist() == [0.0] * 3
    assert score_batch(narrow, PLAIN, ANSWERS, completion_ids=[[1]] * 3).rewards.tolist() == [1.0] * 3


@pytest.mark.parametrize(("log", "part"), [
    (lambda metric, extra: metric("mean", 1.0), "reward/mean is a metric of the trainer"),
    (lambda metric, extra: metric("reward/mean", 1.0), "reward/mean is a metric of the trainer"),
    (lambda metric, extra: metric("std_in_group", 1.0), "reward/std_in_group is a metric of the trainer"),
    (lambda metric, extra: metric("kl/answer", 1.0), "'kl/answer', .*: the group kl/ belongs to the trainer"),
    (lambda metric, extra: metric("energy/mine", 1.0), "the group energy/ belongs to the trainer"),
    (lambda metric, extra: metric("", 1.0), "give NAME, which is logged as reward/NAME, or GROUP/NAME"),
    (lambda metric, extra: metric("/part", 1.0), "give NAME, which"),
    (lambda metric, extra: metric("parts/", 1.0), "give NAME, which"),
    (lambda metric, extra: metric("part", float("nan")), "log finite numbers"),
    (lambda metric, extra: extra("part", [1]), "1 values for 3 completions"),
    (lambda metric, extra: extra("reward", [1, 2, 3]), "every sample has a field of this name"),
    (lambda metric, extra: extra("watched/gold", [1, 2, 3]), "every sample has a field of this name"),
    (lambda metric, extra: [extra("part", [1, 2, 3]), extra("part", [4, 5, 6])], "this batch has a column of this"),
    (lambda metric, extra: extra("part", [1, 2, {3}]), "give values that JSON can hold"),
])  # fmt: skip
def test_what_cannot_be_logged_is_refused(log, part):
    def logs(completions, log_metric, log_extra, **columns):
        log(log_metric, log_extra)
        return [0.0] * len(completions)

    with pytest.raises(InputError, match=part):
        score_completions(logs, PLAIN, ANSWERS)


def test_the_mean_of_a_function_is_not_overwritten_by_what_another_logs():
    def logs(completions, log_metric, **columns):
        log_metric("f0", 100.0)
        return [0.0] * len(completions)

    with pytest.raises(InputError, match=r"log_metric\('f0', ...\): reward/f0 is the mean of a reward function"):
        score_batch(combined(length, logs), PLAIN, ANSWERS)
    assert score_batch(logs, PLAIN, ANSWERS).metrics == {"reward/f0": 100.0}  # alone, it has no metric of its own


def test_async_functions_wait_for_each_other_and_run_inside_a_running_loop():
    reward = combined(*[partial(slow_length, delay=0.4)] * 4)
    started = time.perf_counter()
    assert score_completions(reward, PLAIN, ANSWERS).tolist() == [12.0, 20.0, 28.0]
    assert time.perf_counter() - started < 1.2, "4 times 0.4 s one after another are 1.6 s"

    async def notebook():
        return score_completions(partial(slow_length, delay=0.0), PLAIN, ANSWERS)

    assert asyncio.run(notebook()).tolist() == [3.0, 5.0, 7.0]


@pytest.mark.filterwarnings("error")
def test_errors_of_async_functions_are_named_and_nothing_is_left_unawaited():
    async def fails(completions, **columns):
        raise ValueError("out of order")

    def fails_at_once(completions, **columns):
        raise KeyError("missing")

    with pytest.raises(InputError, match="'fails' raised ValueError: out of order"):
        score_completions(fails, PLAIN, ANSWERS)
    with pytest.raises(InputError, match="'f1' raised KeyError: 'missing'"):
        score_completions(combined(fails, fails_at_once), PLAIN, ANSWERS)


def test_an_error_names_the_row_and_says_what_completions_of_conversations_are():
    def lowers(completions, **columns):
        return [float("please" in text.lower()) for text in completions]

    def parses(completions, **columns):
        return [float(message[0]["content"]) for message in completions]

    with pytest.raises(InputError) as caught:
        score_completions(lowers, CHAT, ANSWERS)
    assert f"'list' object has no attribute 'lower'{AT_COMPLETION} 0 (counting from 0)" in str(caught.value)
    assert 'a list of messages, [{"role": "assistant", "content": ...}]' in str(caught.value)
    with pytest.raises(InputError, match=rf"{AT_COMPLETION} 1 \(counting from 0\).*three"):
        score_completions(parses, CHAT, ["1", "three", "3"])
    with pytest.raises(InputError) as caught:
        score_completions(lambda completions, **_: [float(text) for text in completions], PLAIN, ["1", "three", "3"])
    assert f"{AT_COMPLETION} 1 (counting from 0), 'three'; it was called as" in str(caught.value)
    assert "messages" not in str(caught.value)


def reads_pairs(prompts, completions, **columns):
    pairs = [f"{prompt}{completion}" for prompt, completion in zip(prompts, completions, strict=False)]
    return [len(pairs) / 0]


def reads_to_the_first(completions, **columns):
    return [1 / 0] if any("fi" in completion for completion in completions) else [0.0]


def reads_all(completions, **columns):
    return [sum(len(completion) for completion in completions) / 0]


@pytest.mark.parametrize(
    ("reward", "where"),
    [
        (reads_pairs, "; the last completion that it read was 2 (counting from 0), 'seven77'; it was called"),
        (reads_to_the_first, "; the last completion that it read was 1 (counting from 0), 'five5'; it was called"),
        (reads_all, "division by zero; it was called"),
    ],
)
def test_an_error_after_a_completion_was_read_does_not_blame_it(reward, where):
    with pytest.raises(InputError) as caught:
        score_completions(reward, PLAIN, ["thr", "five5", "seven77"])
    assert where in str(caught.value)
    assert "at completion" not in str(caught.value)


def test_an_answer_that_continues_a_message_is_given_as_the_whole_message():
    prompt = Prompt(prompt=[WHY, {"role": "assistant", "content": "Because"}], columns={})

    def reward(prompts, completions, **columns):
        assert prompts == [[WHY]]
        assert completions == [[{"role": "assistant", "content": "Because of rain."}]]
        return [1.0]

    assert score_completions(reward, [prompt], [" of rain."]).tolist() == [1.0]


@pytest.mark.parametrize("name", REWARDS)
def test_built_in_rewards_read_conversations_whose_prompts_have_parts_or_no_text(name):
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}
    parts = {"role": "user", "content": [{"type": "text", "text": "Is this a question?"}]}
    chat = Prompt(prompt=[parts, call, {"role": "tool", "content": "21"}], columns={})
    plain = Prompt(prompt="Is this a question?", columns={})
    assert score_completions(REWARDS[name], [chat], ["A question."]) == score_completions(
        REWARDS[name], [plain], ["A question."]
    )


SOURCE = "def reward(**_):\n    return [1.0]\ndef score(**_):\n    return [3.0]\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    monkeypatch.chdir(tmp_path)
    for name in ("a.py", "b.py"):
        (tmp_path / name).write_text(SOURCE)
    return tmp_path


def test_several_rewards_are_loaded_as_their_weighted_sum(folder):
    reward = load_rewards(("a.py:reward", "b.py:reward", "b.py:score", "words", "words"), (1.0, 0.5, 2.0, 0.0, -1.0))
    assert isinstance(reward, CombinedReward)
    assert list(reward.functions) == ["reward", "b.reward", "b.score", "words", "words-2"]
    scores = score_batch(reward, PLAIN[:1], ["two words"])
    assert scores.rewards.tolist() == [1.0 + 0.5 + 6.0 - 2.0]
    assert scores.metrics["reward/b.score"] == 3.0
    one = load_rewards(("a.py:reward", "words"))
    assert isinstance(one, CombinedReward)
    assert one.weights == (1.0, 1.0)
    assert load_rewards("words") is load_rewards(("words",)) is REWARDS["words"]
    halved = load_rewards("words", (0.5,))
    assert score_completions(halved, PLAIN[:1], ["two words"]).tolist() == [1.0]


@pytest.mark.parametrize(("specs", "weights", "part"), [
    (("words", "vowels"), (1.0,), "reward_weights: 1 for 2 rewards; give one per reward, or none"),
    ("words", (1.0, 2.0), "2 for 1 rewards"),
    (("words", "vowels"), (1.0, float("inf")), "must be finite"),
    ((), (), "reward: none given"),
    (("words", "vowls"), (), "did you mean vowels"),
])  # fmt: skip
def test_rewards_and_weights_that_do_not_fit_are_refused(specs, weights, part):
    with pytest.raises(InputError, match=part):
        load_rewards(specs, weights)


def test_fingerprints_of_several_rewards_change_with_each_and_with_the_weights(folder):
    first = reward_fingerprint(load_rewards(("a.py:reward", "words"), (1.0, 2.0)))
    assert first == reward_fingerprint(load_rewards(("a.py:reward", "words"), (1.0, 2.0)))
    (folder / "b.py").write_text(SOURCE.replace("1.0", "2.0"))
    others = [
        load_rewards(("a.py:reward", "words"), (1.0, 3.0)),
        load_rewards(("b.py:reward", "words"), (1.0, 2.0)),
        load_rewards(("a.py:reward", "vowels"), (1.0, 2.0)),
    ]
    assert first not in map(reward_fingerprint, others)


@pytest.fixture
def as_process(monkeypatch):
    """Makes `score_batch` score the part of one of several processes; what they tell each other is given."""

    def become(number, count, told):
        monkeypatch.setattr(jax, "process_count", lambda: count)
        monkeypatch.setattr(jax, "process_index", lambda: number)
        monkeypatch.setattr(hosts, "together", lambda function: function())
        answers = iter(told)
        monkeypatch.setattr(hosts, "all_values", lambda value: [value, *next(answers)])

    return become


def test_processes_score_parts_of_a_batch_and_may_log_different_columns(as_process):
    rows = [Prompt(prompt="Say", columns={} if number < 2 else {"answer": str(number)}) for number in range(3)]

    def reward(completions, answer, log_extra, log_metric, **columns):
        assert answer == [None]  # the column is in rows of other processes only
        log_metric("length", 3.0)
        log_extra("seen", ["first"])
        return [1.0] * len(completions)

    others = [[[2.0, 3.0], {"other": [5, 6]}]], [[{"reward/length": 9.0}, 2]]
    as_process(0, 2, others)
    scores = score_batch(reward, rows, ["a", "b", "c"])
    assert scores.rewards.tolist() == [1.0, 2.0, 3.0]
    assert scores.columns == {"seen": ["first", None, None], "other": [None, 5, 6]}
    assert scores.metrics == {"reward/length": (3.0 + 2 * 9.0) / 3}


def test_a_process_without_completions_calls_no_reward(as_process):
    as_process(0, 2, ([[[1.0], {}]], [[{}, 1]]))
    scores = score_batch(lambda completions, **columns: 1 / 0, PLAIN[:1], ["text"])
    assert scores.rewards.tolist() == [1.0]


@pytest.mark.parametrize("num_rows", [0, 1, 5, 8])
def test_every_row_belongs_to_one_process(monkeypatch, num_rows):
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    found = []
    for number in range(4):
        monkeypatch.setattr(jax, "process_index", lambda number=number: number)
        found.append(list(range(num_rows))[hosts.rows_of_process(num_rows)])
    assert [row for rows in found for row in rows] == list(range(num_rows))
    assert max(map(len, found)) - min(map(len, found)) <= 1
