"""The host loop: what a signal in the last update does."""

import os
import signal
from pathlib import Path

import jax.numpy as jnp
import pytest

from jaxrl_lm import storage
from jaxrl_lm.training.interrupts import Interrupted
from jaxrl_lm.training.loop import LoopConfig, run_updates

LOOP = LoopConfig(num_updates=2, save_every=10, keep_checkpoints=1, shown=())


def test_a_signal_in_the_last_update_stops_the_run_which_then_has_nothing_left_to_do(tmp_path: Path) -> None:
    folder = storage.RunFolder.create(tmp_path / "run", {})

    def update(state, num_done):
        if num_done == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return {"count": state["count"] + 1}, {"loss/total": 0.0}

    def fails(state, num_done):
        raise AssertionError("all updates are made")

    start = {"count": jnp.zeros(())}
    with pytest.raises(Interrupted, match="update 2 of 2") as caught:
        run_updates(folder, start, update, LOOP, fingerprints={}, resume=False)
    assert caught.value.signal_number == signal.SIGTERM
    assert run_updates(folder, start, fails, LOOP, fingerprints={}, resume=True)["count"] == 2
