"""Rewards of texts: found by name, module or file; called as TRL calls them; checked when they answer."""

import sys
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_lm.data import Prompt
from jaxrl_lm.errors import InputError
from jaxrl_lm.rewards import REWARDS, load_reward, score_completions

SOURCE = """
import dataclasses

@dataclasses.dataclass
class Weight:
    value: float = 2.0

def scaled(prompts, completions, **columns):
    return [Weight().value * len(completion) for completion in completions]

TABLE = {}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mouse_rewards.py").write_text(SOURCE)
    return tmp_path


def plain(text="?", **columns):
    return Prompt(prompt=text, columns=columns)


def answer(value):
    def returns_value(prompts, completions, **columns):
        return value

    return returns_value


def refused(spec, *parts):
    with pytest.raises(InputError) as caught:
        load_reward(spec)
    for part in (spec, *parts):
        assert part in str(caught.value)
    return caught.value


def test_every_built_in_is_found_by_its_name():
    assert {name: load_reward(name) for name in REWARDS} == REWARDS
    assert not any(":" in name for name in REWARDS)


def test_a_module_of_the_current_directory_is_found(folder):
    reward = load_reward("mouse_rewards:scaled")
    np.testing.assert_array_equal(score_completions(reward, [plain()], ["four"]), [8.0])


def test_a_file_is_found_by_its_path_and_read_again(folder):
    path = folder / "deep" / "my rewards.py"
    path.parent.mkdir()
    path.write_text(SOURCE)
    np.testing.assert_array_equal(score_completions(load_reward(f"{path}:scaled"), [plain()], ["four"]), [8.0])
    path.write_text(SOURCE.replace("2.0", "30.0"))
    reward = load_reward("deep/my rewards.py:scaled")
    np.testing.assert_array_equal(score_completions(reward, [plain()], ["four"]), [120.0])


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("wrods", ["did you mean words?", *REWARDS, "module:function"]),
        ("", ["module:function"]),
        (":scaled", ["before or after its colon"]),
        ("mouse_rewards:", ["before or after its colon"]),
        ("mouse_reward:scaled", ["no module 'mouse_reward'", "current directory"]),
        ("mouse_rewards.deep:scaled", ["no module 'mouse_rewards.deep'"]),
        ("mouse_rewards:scale", ["has no 'scale'", "did you mean scaled?"]),
        ("mouse_rewards.py:scale", ["has no 'scale'", "did you mean scaled?"]),
        ("mouse_rewards:TABLE", ["TABLE is a dict", "name a function"]),
        ("mouse_rewards:Weight", ["Weight is a class", "an instance that can be called"]),
        ("absent.py:scaled", ["there is no file 'absent.py'"]),
        ("./notes.md:scaled", ["ends in .py"]),
        (".mouse_rewards:scaled", ["raised TypeError"]),
        ("needy:scaled", ["importing needy raised ModuleNotFoundError", "absent_dependency"]),
        ("needy.py:scaled", ["importing needy.py raised ModuleNotFoundError", "absent_dependency"]),
        ("broken.py:scaled", ["raised SyntaxError"]),
    ],
)
def test_a_reward_that_cannot_be_loaded_is_named_with_a_remedy(folder, spec, parts):
    (folder / "needy.py").write_text("import absent_dependency\n")
    (folder / "broken.py").write_text("def scaled(:\n")
    (folder / "notes.md").write_text("none")
    refused(spec, *parts)


def test_an_error_while_importing_is_chained(folder):
    (folder / "fails.py").write_text("1 / 0\n")
    assert isinstance(refused("fails.py:scaled", "ZeroDivisionError").__cause__, ZeroDivisionError)


def test_the_reward_receives_prompts_completions_and_columns_as_trl_passes_them():
    received = {}

    def spy(**arguments):
        received.update(arguments)
        for name in ("trainer_state", "log_metric", "log_extra"):
            received.pop(name)
        return [1, 2.5]

    question = [{"role": "user", "content": "Where?"}]
    prompts = [plain("Why?", level=3, hint="a"), Prompt(prompt=question, columns={"level": 4})]
    scores = score_completions(spy, prompts, ["because", "there"])
    np.testing.assert_array_equal(scores, [1.0, 2.5])
    assert scores.dtype == np.float32
    assert received == {
        "prompts": ["Why?", question],
        "completions": ["because", [{"role": "assistant", "content": "there"}]],
        "level": [3, 4],
        "hint": ["a", None],
    }


@pytest.mark.parametrize(
    "returned",
    [
        [0.5, 1],
        (0.5, True),
        np.array([0.5, 1.0]),
        jnp.array([0.5, 1.0]),
        [jnp.float32(0.5), np.float64(1.0)],
        [Fraction(1, 2), np.bool_(True)],
    ],
)
def test_real_numbers_of_any_kind_are_taken(returned):
    np.testing.assert_array_equal(score_completions(answer(returned), [plain()] * 2, ["a", "b"]), [0.5, 1.0])


def test_an_empty_batch_has_no_rewards():
    assert score_completions(answer([]), [], []).shape == (0,)


@pytest.mark.parametrize(
    ("returned", "part"),
    [
        ([1.0], "returned 1 numbers for 2 completions"),
        (np.zeros(3), "returned 3 numbers for 2 completions"),
        (None, "returned a NoneType; return a list"),
        (1.0, "returned a float"),
        (np.float32(1.0), "returned a float32"),
        ("12", "returned a str"),
        ({0: 1.0, 1: 2.0}, "returned a dict"),
        ([1.0, None], "'returns_value' returned None, and so for 1 of 2"),
        ([1.0, "2"], "'2', a str"),
        ([1.0, 2j], "'2j', a complex"),
        (np.zeros((2, 1)), "'[0.0]', a list"),
        ([1.0, float("nan")], "returned nan, not finite"),
        ([1.0, np.float32("-inf")], "returned -inf, not finite"),
        ([1.0, 1e39], "returned 1e+39, not finite in float32"),
        ([1.0, 10**400], "not finite"),
    ],
)
def test_an_answer_that_is_not_one_finite_number_a_completion_is_named(returned, part):
    with pytest.raises(InputError) as caught:
        score_completions(answer(returned), [plain()] * 2, ["a", "b"])
    assert "eward function 'returns_value'" in str(caught.value)
    assert part in str(caught.value)


def test_the_completion_at_fault_is_shown_by_index_and_its_first_sixty_characters():
    completions = ["fine", "x" * 60 + "y"]
    with pytest.raises(InputError) as caught:
        score_completions(answer([0.0, float("inf")]), [plain()] * 2, completions)
    assert f"completion 1 (counting from 0), '{'x' * 59}...: returned inf" in str(caught.value)


def test_an_exception_of_the_reward_is_named_and_chained():
    def divides(prompts, completions, **columns):
        return [1 / 0]

    with pytest.raises(InputError, match="'divides' raised ZeroDivisionError: division by zero") as caught:
        score_completions(divides, [plain()], ["a"])
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_reward_that_takes_no_columns_is_told_how_it_was_called():
    def narrow(prompts, completions):
        return [0.0]

    with pytest.raises(InputError, match=r"narrow\(prompts=\[...\], completions=\[...\], level=\[...\]\)"):
        score_completions(narrow, [plain(level=1)], ["a"])


@pytest.mark.parametrize("name", ["prompts", "completions", "completion_ids", "trainer_state", "log_metric"])
def test_a_column_named_like_an_argument_of_the_reward_is_refused(name):
    with pytest.raises(InputError, match=f"column '{name}'"):
        score_completions(answer([0.0]), [plain(**{name: 1})], ["a"])
