"""The smallest trainer: it counts its updates."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from jaxrl_lm.storage import RunFolder
from jaxrl_lm.training.run import Training, train
from jaxrl_lm.training.settings import RunConfig


@dataclass(frozen=True, kw_only=True)
class Config(RunConfig):
    num_updates: int = 3
    size: int = 1
    is_annealed: bool = False

    def length_setting(self) -> str | None:
        return None if self.is_annealed else "num_updates"


class Trainer:
    """Counts updates; `at_update` is called with the number of updates done before each."""

    def __init__(self, at_update: Callable[[int], Any] | None = None, **fields: Any) -> None:
        self.made: list[int] = []
        self.finished = 0
        self._at_update = at_update or (lambda num_done: None)
        self._fields = fields

    def __call__(self, config: Config) -> RunFolder:
        return train(config, lambda: self.load(config))

    def load(self, config: Config) -> Training:
        settings = {"samples_before": lambda: [{"step": 0, "phase": "before"}], "shown": ()} | self._fields
        return Training(
            state={"count": jnp.zeros(())},
            update=self.update,
            num_updates=config.num_updates,
            finish=self.finish,
            **settings,
        )

    def update(self, state: Any, num_done: int) -> tuple[Any, dict[str, float]]:
        self._at_update(num_done)
        self.made.append(num_done)
        return {"count": state["count"] + 1}, {"loss/total": float(state["count"])}

    def finish(self, folder: RunFolder, state: Any) -> None:
        self.finished += 1
        (folder.path / "count").write_text(str(int(state["count"])))


def kill_at(num_done: int) -> Callable[[int], None]:
    """An exception that no one catches acts as a kill: what is on the disk stays as it is."""

    def at_update(now: int) -> None:
        if now == num_done:
            raise KeyboardInterrupt

    return at_update
