"""A store on a clock that tests turn, and what fills it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from jaxrl_lm import feedback
from jaxrl_lm.feedback import Item, LabelStore, Mode


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def database(tmp_path: Path) -> str:
    """URL of a database that is not there yet."""
    return f"sqlite:///{tmp_path / 'labels.sqlite'}"


@pytest.fixture
def engine(database: str) -> Iterator[Engine]:
    opened = feedback.open_database(database, is_new_allowed=True, busy_seconds=0.2)
    yield opened
    opened.dispose()


@pytest.fixture
def make_store(engine: Engine, clock: Clock) -> Callable[..., LabelStore]:
    """A store with so many items of a mode; answer k to prompt i is `i.k`."""

    def make(num_items: int = 3, *, mode: Mode = "pairwise", overlap: int = 1) -> LabelStore:
        feedback.add_items(engine, numbered_items(num_items, mode))
        return LabelStore(engine, mode=mode, overlap=overlap, lease_seconds=60.0, clock=clock)

    return make


def numbered_items(num_items: int, mode: Mode) -> list[Item]:
    num = feedback.NUM_COMPLETIONS[mode]
    return [
        Item(mode=mode, prompt=f"prompt {place}", completions=tuple(f"{place}.{answer}" for answer in range(num)))
        for place in range(num_items)
    ]
