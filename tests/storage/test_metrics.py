"""Metrics: JSON lines, cut on resume, read back as curves."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_lm.errors import InputError
from jaxrl_lm.storage import MetricsWriter, RunFolder, append_jsonl, read_jsonl, read_metrics


@pytest.fixture
def folder(tmp_path):
    return RunFolder.create(tmp_path / "run", {"seed": 3})


def test_each_step_is_one_flushed_json_line(folder):
    with MetricsWriter(folder, start_step=1) as writer:
        writer.write(1, {"reward/mean": 1.5, "loss/policy": jnp.float32(-0.25)})
        assert folder.metrics_file.read_text() == '{"step": 1, "reward/mean": 1.5, "loss/policy": -0.25}\n'
        writer.write(2, {"reward/mean": math.nan, "loss/policy": math.inf})
    assert read_jsonl(folder.metrics_file)[1] == {"step": 2, "reward/mean": None, "loss/policy": None}


def test_values_that_no_axis_can_show_are_written_as_null_and_refused_in_a_file(folder):
    with MetricsWriter(folder, start_step=1) as writer:
        writer.write(1, {"a/b": 1e308, "a/c": 1e299})
    assert read_jsonl(folder.metrics_file) == [{"step": 1, "a/b": None, "a/c": 1e299}]
    folder.metrics_file.write_text('{"step": 1, "a/b": 1e308}\n')
    with pytest.raises(InputError, match=r"line 1: a/b is 1e.308, not a number between -1e300 and 1e300"):
        read_metrics(folder)


def test_resuming_drops_what_was_written_from_the_start_step_on(folder):
    with MetricsWriter(folder, start_step=1) as writer:
        for step in range(1, 5):
            writer.write(step, {"reward/mean": float(step)})
    for file in (folder.samples_file, folder.seeds_file):
        append_jsonl(file, [{"step": step} for step in (0, 3, 5)])
    with MetricsWriter(folder, start_step=3) as writer:
        assert [record["step"] for record in read_jsonl(folder.samples_file)] == [0]
        assert [record["step"] for record in read_jsonl(folder.seeds_file)] == [0]
        writer.write(3, {"reward/mean": 30.0})
    curve = read_metrics(folder)["reward/mean"]
    np.testing.assert_array_equal(curve.steps, [1, 2, 3])
    np.testing.assert_array_equal(curve.values, [1, 2, 30])


def test_a_run_resumed_from_its_first_checkpoint_keeps_the_samples_from_before_training(folder):
    with MetricsWriter(folder, start_step=1) as writer:
        writer.write(1, {"a/b": 1.0})
    append_jsonl(folder.samples_file, [{"step": 0}])
    with MetricsWriter(folder, start_step=1):
        assert read_jsonl(folder.metrics_file) == []
        assert read_jsonl(folder.samples_file) == [{"step": 0}]


def test_a_metric_named_step_is_refused(folder):
    with MetricsWriter(folder, start_step=1) as writer, pytest.raises(ValueError, match="'step'"):
        writer.write(1, {"step": 1.0})
    assert not folder.metrics_file.exists()


def test_curves_come_in_the_order_of_the_file_with_gaps_as_nan(folder):
    records = [{"step": 0, "b/x": 1}, {"step": 2, "a/x": 5.0, "b/x": None}]
    folder.metrics_file.write_text("".join(json.dumps(record) + "\n" for record in records))
    curves = read_metrics(folder)
    assert list(curves) == ["b/x", "a/x"]
    np.testing.assert_array_equal(curves["b/x"].steps, [0, 2])
    np.testing.assert_array_equal(curves["b/x"].values, [1.0, np.nan])
    np.testing.assert_array_equal(curves["a/x"].steps, [2])


def test_a_value_that_is_no_number_is_an_error_with_its_line(folder):
    folder.metrics_file.write_text('{"step": 0}\n{"step": 1, "a/b": "high"}\n')
    with pytest.raises(InputError, match="line 2: a/b is 'high'"):
        read_metrics(folder)
