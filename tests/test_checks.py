"""`jaxrl_lm.checks`: each check lets the allowed values pass and names the field, the value and the bound."""

from types import SimpleNamespace
from typing import Literal

import pytest

from jaxrl_lm import checks
from jaxrl_lm.errors import InputError


@pytest.mark.parametrize(
    ("check", "passing", "failing", "message"),
    [
        (lambda c: checks.at_least(c, 1, "x"), [1, 2, None], [0, float("nan")], "must be at least 1"),
        (lambda c: checks.above(c, 0, "x"), [1e-9, None], [0, -1, float("nan")], "must be above 0"),
        (lambda c: checks.fraction(c, "x"), [0, 0.5, None], [1, -0.1, float("nan")], "must be at least 0 and below 1"),
        (lambda c: checks.between(c, 0, 1, "x"), [0, 1, None], [1.1, -0.1, float("nan")], "must be from 0 to 1"),
        (lambda c: checks.one_of(c, x=Literal["a", "b"]), ["a", "b"], ["c", None], "must be one of a, b"),
    ],
)
def test_bounds(check, passing, failing, message):
    for value in passing:
        check(SimpleNamespace(x=value))
    for value in failing:
        with pytest.raises(InputError, match=f"x={value!r}.* {message}"):
            check(SimpleNamespace(x=value))


def test_prefix_and_reason():
    with pytest.raises(InputError, match=r"kl\.horizon=0 must be at least 1: it counts episodes"):
        checks.at_least(SimpleNamespace(horizon=0), 1, "horizon", prefix="kl.", why="it counts episodes")


@pytest.mark.parametrize("value", [-1, 2**32])
def test_seed(value):
    checks.seed(0)
    checks.seed(2**32 - 1)
    with pytest.raises(InputError, match="must be at least 0 and below"):
        checks.seed(value)
