"""Checkpoints: bit for bit, whole or not at all, and never a state that is not the one asked for."""

import inspect
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxrl_lm.errors import InputError
from jaxrl_lm.storage import Checkpoints, Score


class OptimizerState(NamedTuple):
    count: jax.Array
    empty: tuple
    nothing: None


def make_state(seed=0):
    keys = jax.random.split(jax.random.key(seed), 4)
    specials = np.array([np.nan, -np.nan, np.inf, -0.0, 1e-45, 1.1], np.float32)
    return {
        "params/with slash": {
            "kernel": jax.random.normal(keys[0], (17, 3)),
            "half": jax.random.normal(keys[1], (33,)).astype(jnp.bfloat16),
            "specials": jnp.asarray(specials),
            "odd_nans": jax.lax.bitcast_convert_type(jnp.arange(0x7FC00001, 0x7FC00006, dtype=jnp.uint32), jnp.float32),
            "bf16_nans": jax.lax.bitcast_convert_type(jnp.arange(0x7FC1, 0x7FC6, dtype=jnp.uint16), jnp.bfloat16),
        },
        "optimizer": [OptimizerState(jnp.asarray(2**31 - 1, jnp.int32), (), None)],
        "key": keys[2],
        "keys": jax.random.split(keys[3], (2, 3)),
        "other_key": jax.random.key(seed, impl="rbg"),
        "words": jnp.array([0, 2**32 - 1], jnp.uint32),
        "flags": jnp.array([[True], [False]]),
        "scalar": jnp.asarray(0.1, jnp.float32),
        "coefficient": jnp.asarray(0.2),
        "no_rows": jnp.zeros((0, 5), jnp.bfloat16),
    }


def leaf_bytes(leaf):
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf).tobytes()


def assert_same_bits(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        assert isinstance(a, jax.Array), path
        assert (a.shape, a.dtype, leaf_bytes(a)) == (b.shape, b.dtype, leaf_bytes(b)), path
        assert getattr(a, "weak_type", None) == getattr(b, "weak_type", None), path


@pytest.mark.parametrize("is_abstract", [False, True])
def test_every_kind_of_leaf_comes_back_bit_for_bit(tmp_path, is_abstract):
    state = make_state()
    meta = {"updates": 7, "best": 0.1 + 0.2, "name": "é\n", "nested": {"list": [1, None, True]}, "big": 2**70}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(7, state, meta)
    template = jax.eval_shape(make_state) if is_abstract else make_state(seed=1)
    with Checkpoints(tmp_path) as checkpoints:
        step, restored, restored_meta = checkpoints.restore(template)
    assert step == 7
    assert_same_bits(restored, state)
    assert restored_meta == meta


def test_a_restored_key_draws_the_same_numbers(tmp_path):
    key = jax.random.fold_in(jax.random.key(5), 9)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, {"key": key}, {})
        _, restored, _ = checkpoints.restore({"key": jax.random.key(0)})
    expected = jax.random.normal(key, (8,))
    np.testing.assert_array_equal(jax.random.normal(restored["key"], (8,)), expected)


def test_meta_with_whole_numbers_as_keys_is_not_taken_for_damage(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, {"x": jnp.ones(2)}, {"levels": {9: 1, 10: 2}, "shape": (1, 2)})
        _, _, meta = checkpoints.restore({"x": jnp.ones(2)})
    assert meta == {"levels": {"9": 1, "10": 2}, "shape": [1, 2]}


def test_the_newest_are_kept_and_any_of_them_can_be_asked_for(tmp_path):
    template = {"x": jnp.zeros(3)}
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.latest_step() is None
        for step in (0, 10, 20):
            checkpoints.save(step, {"x": jnp.full(3, float(step))}, {"step": step})
        assert checkpoints.latest_step() == 20
        assert float(checkpoints.restore(template)[1]["x"][0]) == 20
        assert float(checkpoints.restore(template, step=10)[1]["x"][0]) == 10
        with pytest.raises(
            InputError, match=r"checkpoint=0: .* has checkpoints 10, 20; choose one of these numbers, newest or best"
        ):
            checkpoints.restore(template, step=0)


def steps_in(folder):
    return sorted(int(path.name) for path in folder.iterdir())


def test_the_best_is_kept_beside_the_newest_and_comes_back(tmp_path):
    template = {"x": jnp.zeros(())}
    values = {1: 0.1, 2: 0.5, 3: None, 4: 0.5, 5: float("nan"), 6: 0.2}
    scores = {step: None if value is None else Score(value) for step, value in values.items()}
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step, score in scores.items():
            assert checkpoints.is_best(score) == (step in (1, 2)), step
            checkpoints.save(step, {"x": jnp.asarray(float(step))}, {}, score=score)
    assert steps_in(tmp_path) == [2, 5, 6]
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        step, restored, _ = checkpoints.restore(template, "best")
        assert (step, float(restored["x"])) == (2, 2.0)


def test_a_resumed_run_goes_on_with_the_best_that_its_checkpoint_knew(tmp_path):
    state = {"x": jnp.zeros(())}
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, state, {}, score=Score(0.5))
        checkpoints.save(2, state, {})
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        assert checkpoints.restore(state)[0] == 2
        assert not checkpoints.is_best(Score(0.4))
        checkpoints.save(3, state, {}, score=Score(0.4))
        assert steps_in(tmp_path) == [1, 3]
        checkpoints.save(4, state, {}, score=Score(0.6))
        assert steps_in(tmp_path) == [4]
        # As if the process had been killed before it deleted the old ones.
        shutil.copytree(tmp_path / "4", tmp_path / "1")
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.restore(state)
        checkpoints.delete_old()
        assert steps_in(tmp_path) == [4]


def test_a_best_that_does_not_exist_is_an_input_error(tmp_path):
    state = {"x": jnp.zeros(())}
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, state, {})
        with pytest.raises(
            InputError, match=r"has no best checkpoint: nothing was evaluated .* 1, .*; continue the run"
        ):
            checkpoints.restore(state, "best")
        checkpoints.save(2, state, {}, score=Score(1.0))
        checkpoints.save(3, state, {})
    shutil.rmtree(tmp_path / "2")
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(InputError, match=r"has no best checkpoint: .* 3, or the best was deleted"),
    ):
        checkpoints.restore(state, "best")


def test_a_later_comparison_starts_again_and_a_resumed_run_knows_it(tmp_path):
    state = {"x": jnp.zeros(())}
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, state, {}, score=Score(300.0))
        assert not checkpoints.is_best(Score(100.0))
        assert checkpoints.is_best(Score(100.0, comparison=1))
        checkpoints.save(2, state, {}, score=Score(100.0, comparison=1))
        checkpoints.save(3, state, {})
    assert steps_in(tmp_path) == [2, 3]
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        assert checkpoints.restore(state, "best")[0] == 2
        checkpoints.restore(state)
        assert not checkpoints.is_best(Score(90.0, comparison=1))
        assert checkpoints.is_best(Score(110.0, comparison=1))
        assert checkpoints.is_best(Score(5.0, comparison=2))


@pytest.mark.parametrize("which", ["latest", None, -1])
def test_a_checkpoint_that_is_none_is_refused_with_those_that_are(tmp_path, which):
    state = {"x": jnp.zeros(())}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        with pytest.raises(InputError, match=rf"checkpoint={which!r}: .* has checkpoints 1; .* newest or best"):
            inspect.unwrap(Checkpoints._find)(checkpoints, which)  # without the check of types that tests have


def test_after_the_deletion_of_the_best_the_next_evaluation_is_the_best(tmp_path):
    state = {"x": jnp.zeros(())}
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step, score in ((10, Score(0.5)), (20, None), (30, Score(0.7))):
            checkpoints.save(step, state, {}, score=score)
    assert steps_in(tmp_path) == [20, 30]
    shutil.rmtree(tmp_path / "30")
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.restore(state)[0] == 20
        assert checkpoints.is_best(Score(0.45))
        checkpoints.save(25, state, {}, score=Score(0.45))
        assert checkpoints.restore(state, "best")[0] == 25


def test_a_step_that_is_not_later_is_refused_and_nothing_is_lost(tmp_path):
    state = {"x": jnp.ones(3)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, state, {})
        for step in (5, 4):
            with pytest.raises(InputError, match=f"step {step}: .* checkpoint of step 5"):
                checkpoints.save(step, {"x": jnp.zeros(3)}, {})
        assert_same_bits(checkpoints.restore(state)[1], state)


def test_an_empty_folder_and_a_keep_of_zero_are_input_errors(tmp_path):
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(InputError, match="has no checkpoint"):
        checkpoints.restore({"x": jnp.ones(3)})
    with pytest.raises(InputError, match="keep is 0"):
        Checkpoints(tmp_path, keep=0)


def test_a_python_number_in_the_state_is_refused_by_name(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(TypeError, match=r"state\['n'\] is int"):
            checkpoints.save(0, {"n": 3}, {})
        assert checkpoints.latest_step() is None


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            {"w": jnp.zeros((3, 2)), "k": jax.random.key(0)},
            r"state\['w'\] is float32\[2, 3\] in the checkpoint, float32\[3, 2\]",
        ),
        (
            {"w": jnp.zeros((2, 3), jnp.bfloat16), "k": jax.random.key(0)},
            r"float32\[2, 3\] in the checkpoint, bfloat16\[2, 3\]",
        ),
        ({"w": jnp.zeros((2, 3))}, r"state\['k'\] is key<fry>\[\] in the checkpoint, missing in this run"),
        (
            {"w": jnp.zeros((2, 3)), "k": jax.random.key(0), "b": jnp.zeros(1)},
            r"state\['b'\] is missing in the checkpoint, float32\[1\] in this run",
        ),
        ({"w": jnp.zeros((2, 3)), "k": jax.random.key(0, impl="rbg")}, r"key<fry>\[\] in the checkpoint, key<rbg>\[\]"),
        ({"w": jnp.zeros((2, 3)), "k": jnp.zeros(2, jnp.uint32)}, r"key<fry>\[\] in the checkpoint, uint32\[2\]"),
    ],
)
def test_a_template_that_differs_names_the_leaf_both_shapes_and_the_remedy(tmp_path, template, message):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, {"w": jnp.zeros((2, 3)), "k": jax.random.key(0)}, {})
        with pytest.raises(InputError, match=message + ".*use the configuration"):
            checkpoints.restore(template)


def test_arrays_take_the_templates_sharding_and_free_ones_stay_free(tmp_path):
    mesh = jax.make_mesh((jax.device_count(),), ("data",))
    spread = NamedSharding(mesh, PartitionSpec("data"))
    values = jnp.arange(8.0 * jax.device_count())
    keys = jax.random.split(jax.random.key(0), jax.device_count())
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, {"a": values, "k": keys, "free": values}, {})
        template = {
            "a": jax.ShapeDtypeStruct(values.shape, values.dtype, sharding=spread),
            "k": jax.device_put(jnp.zeros_like(keys), spread),
            "free": values,
        }
        restored = checkpoints.restore(template)[1]
    assert restored["a"].sharding == restored["k"].sharding == spread
    assert not restored["free"].committed
    np.testing.assert_array_equal(restored["a"], values)
    np.testing.assert_array_equal(jax.random.key_data(restored["k"]), jax.random.key_data(keys))


def test_leftovers_of_a_killed_save_are_passed_over_and_the_step_can_be_saved_again(tmp_path):
    state = {"x": jnp.arange(4.0)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
    leftover = tmp_path / "2.orbax-checkpoint-tmp" / "arrays.orbax-checkpoint-tmp"
    leftover.mkdir(parents=True)
    (leftover / "manifest.ocdbt").write_bytes(b"half")
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(state)[0] == 1
        checkpoints.save(2, {"x": -state["x"]}, {})
        assert_same_bits(checkpoints.restore(state)[1], {"x": -state["x"]})


def test_what_a_killed_deletion_left_is_deleted(tmp_path):
    state = {"x": jnp.arange(4.0)}
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, state, {})
    (tmp_path / "1" / "_CHECKPOINT_METADATA").unlink()
    shutil.rmtree(tmp_path / "1" / "arrays")
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        assert checkpoints.restore(state)[0] == 3
        assert {path.name for path in tmp_path.iterdir()} == {"1", "2", "3"}, "reading deletes nothing"
        checkpoints.delete_old()
        assert [path.name for path in tmp_path.iterdir()] == ["3"]
        checkpoints.save(4, state, {})
        assert [path.name for path in tmp_path.iterdir()] == ["4"]


KILLED = """
import sys, pathlib
import jax.numpy as jnp
from jaxrl_lm.storage import Checkpoints, Score
checkpoints = Checkpoints(pathlib.Path(sys.argv[1]))
for step in range(1, 10_000):
    checkpoints.save(step, {"x": jnp.full((500_000,), float(step))}, {"step": step})
"""


def test_a_process_killed_while_saving_leaves_a_good_checkpoint(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], env=os.environ | {"JAX_PLATFORMS": "cpu"})
    try:
        deadline = time.monotonic() + 60
        while len(list(tmp_path.glob("*[0-9]"))) < 2 or not list(tmp_path.glob("*-tmp")):
            assert process.poll() is None
            assert time.monotonic() < deadline
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    with Checkpoints(tmp_path) as checkpoints:
        step, restored, meta = checkpoints.restore({"x": jnp.zeros(500_000)})
        assert meta == {"step": step}
        np.testing.assert_array_equal(restored["x"], np.full(500_000, step, np.float32))
        checkpoints.save(step + 1, restored, meta)


def damage(path, how, rng):
    content = bytearray(path.read_bytes())
    if how == "random":
        content = bytearray(rng.bytes(len(content)))
    elif how == "half":
        content = content[: len(content) // 2]
    elif how == "one bit":
        content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
    path.write_bytes(content)


def is_refused(folder, state, meta):
    """Restore the saved state, or raise an error that names the damaged folder; nothing else."""
    try:
        with Checkpoints(folder) as checkpoints:
            _, restored, restored_meta = checkpoints.restore(state)
    except InputError as error:
        return str(folder / "3") in str(error)
    assert_same_bits(restored, state)
    assert restored_meta == meta
    return False


@pytest.mark.parametrize("how", ["random", "half", "one bit"])
def test_a_damaged_file_never_gives_a_wrong_state(tmp_path, how):
    state, meta = {"w": jax.random.normal(jax.random.key(0), (64, 8))}, {"updates": 12}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, state, meta)
    rng = np.random.default_rng(0)
    num_refused = 0
    for path in sorted(path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size):
        original = path.read_bytes()
        for _ in range(3 if how == "one bit" else 1):
            damage(path, how, rng)
            num_refused += is_refused(tmp_path, state, meta)
            path.write_bytes(original)
    assert num_refused >= 3


def test_a_folder_of_random_bytes_is_an_input_error_that_names_it(tmp_path):
    (tmp_path / "9").mkdir()
    (tmp_path / "9" / "arrays").write_bytes(os.urandom(64))
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(InputError, match=r"9' is damaged .*delete that folder"),
    ):
        checkpoints.restore({"x": jnp.ones(3)})


def test_an_error_of_saving_is_raised_and_neither_logged_nor_printed_as_well(tmp_path, monkeypatch, capfd):
    """Orbax's threads log theirs with tracebacks: on a full disk, hundreds of lines."""
    late = threading.Timer(0.05, os.write, (2, b"Traceback (most recent call last)"))
    with Checkpoints(tmp_path) as checkpoints:

        def fail(*_, **__):
            logging.getLogger("absl").error("Traceback (most recent call last)")
            late.start()
            raise ValueError("No space left on device")

        monkeypatch.setattr(checkpoints._manager, "save", fail)
        with pytest.raises(ValueError, match="No space left"):
            checkpoints.save(0, {"x": jnp.zeros(3)}, {})
    late.join()
    assert "Traceback" not in capfd.readouterr().err
