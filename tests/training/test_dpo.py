"""Direct preference optimization end to end on a tiny byte-level model."""

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import chex
import numpy as np
import pytest

from jaxrl_lm import data
from jaxrl_lm.algorithms import AdamWConfig, DPOLossConfig
from jaxrl_lm.errors import InputError
from jaxrl_lm.models import from_pretrained
from jaxrl_lm.storage import read_jsonl, read_metrics
from jaxrl_lm.training.errors import Interrupted
from jaxrl_lm.training.offline import train as offline
from jaxrl_lm.training.offline.dpo import DPORunConfig
from jaxrl_lm.training.offline.task import load_task, read_split
from jaxrl_lm.training.offline.train import train_offline
from tests.measured import numbers

MakeConfig = Callable[..., DPORunConfig]


@pytest.fixture(scope="module")
def preferences_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve prompts with one kind of answer preferred."""
    file = tmp_path_factory.mktemp("preferences") / "preferences.jsonl"
    rows = [{"prompt": f"{letter}?", "chosen": "yes", "rejected": "no!!"} for letter in "abcdefghijkl"]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def make_dpo_config(byte_model: Path, preferences_file: Path, tmp_path: Path) -> MakeConfig:
    """Builds a configuration; what is given replaces the small defaults."""

    def make(**changes: Any) -> DPORunConfig:
        settings: dict[str, Any] = {
            "model": str(byte_model),
            "preferences": str(preferences_file),
            "out": str(tmp_path / "run"),
            "evaluation_fraction": 0.25,
            "evaluate_every": 2,
            "num_updates": 5,
            "batch_size": 2,
            "optimizer": AdamWConfig(learning_rate=1e-2),
            "save_every": 2,
            "num_samples": 1,
            "max_new_tokens": 4,
        }
        return DPORunConfig(**(settings | changes))

    return make


def test_interrupted_run_resumes_bit_for_bit_and_prefers_the_chosen(
    make_dpo_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = train_offline(make_dpo_config(out=str(tmp_path / "straight")))
    curves = read_metrics(straight)
    assert curves["loss/total"].values[0] == pytest.approx(np.log(2), abs=1e-5)
    assert curves["evaluation/loss"].steps.tolist() == [2, 4, 5]
    assert curves["evaluation/margin"].values[-1] > 0.01
    assert curves["evaluation/accuracy"].values[-1] == 1.0
    for member in ("report.html", "plots/rewards.png", "model/config.json", "model/tokenizer.json"):
        assert (straight.path / member).is_file(), member
    assert [sample["phase"] for sample in read_jsonl(straight.samples_file)] == ["before", "after"]

    config = make_dpo_config(out=str(tmp_path / "broken"))
    make_update = offline.make_update

    def interrupted(task: Any) -> Any:
        update = make_update(task)

        def stopping(state: Any, num_done: int) -> Any:
            if num_done == 2:
                signal.raise_signal(signal.SIGTERM)
            return update(state, num_done)

        return stopping

    with monkeypatch.context() as patch:
        patch.setattr(offline, "make_update", interrupted)
        with pytest.raises(Interrupted, match="after update 3 of 5"):
            train_offline(config)
    resumed = train_offline(replace(config, resume=True))
    assert numbers(resumed) == numbers(straight)
    chex.assert_trees_all_equal(from_pretrained(resumed.model_folder)[1], from_pretrained(straight.model_folder)[1])
    with pytest.raises(InputError, match=r"dpo\.beta: 0\.1 in the run, 0\.2 now"):
        train_offline(replace(config, resume=True, dpo=DPOLossConfig(beta=0.2)))


def test_labels_of_token_ids_are_read_by_the_models_tokenizer_or_the_one_named(
    make_dpo_config: MakeConfig, byte_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    encode = data.load_tokenizer(byte_model, vocab_size=None).encode
    row = {"query": encode("a?"), "sample0": encode("no"), "sample1": encode("yes"), "best": 1}
    (tmp_path / "labels.json").write_text(json.dumps([row]))
    pair = data.Preference(prompt="a?", chosen="yes", rejected="no")
    labels = {"preferences": str(tmp_path / "labels.json"), "evaluation": str(tmp_path / "labels.json")}
    assert read_split(make_dpo_config(**labels)) == ([pair], [pair])
    assert f"holds token ids, which are read as those of the tokenizer {byte_model}" in caplog.text
    named = make_dpo_config(model=str(tmp_path / "none"), labels_tokenizer=str(byte_model), **labels)
    assert read_split(named) == ([pair], [pair])
    with pytest.raises(InputError, match="labels_tokenizer="):
        read_split(make_dpo_config(labels_tokenizer=str(tmp_path), **labels))


def test_the_stored_reference_is_that_of_each_pair_in_any_batch(make_dpo_config: MakeConfig) -> None:
    tasks = [load_task(make_dpo_config(batch_size=size, evaluation_fraction=0.0)) for size in (5, 12)]
    several = [task.take_batch(0) for task in tasks]
    all_at_once = {row.tobytes(): value for row, value in zip(*_flat(several[1]), strict=True)}
    for row, value in zip(*_flat(several[0]), strict=True):
        assert value < -5.0
        np.testing.assert_allclose(value, all_at_once[row.tobytes()], rtol=1e-5)


def test_long_answers_are_cut_and_pairs_without_an_answer_left_out(
    make_dpo_config: MakeConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "long.jsonl"
    rows = [
        {"prompt": "a", "chosen": "b" * 9, "rejected": "c"},
        {"prompt": "p" * 8, "chosen": "b", "rejected": "c"},
        {"prompt": "a", "chosen": "d", "rejected": "e"},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = load_task(make_dpo_config(preferences=str(file), max_tokens=6, evaluation_fraction=0.0))
    assert "preferences: of 3 examples, 2 were truncated at max_tokens=6, and 1 dropped" in caplog.text
    rows_of = task.take_batch(0).rows
    assert rows_of.ids.shape == (1, 2, 2, 6)
    assert sorted(rows_of.is_target.sum(axis=-1).ravel().tolist()) == [2, 2, 2, 5]  # with their ends, but for the cut


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_tokens": 33}, "max_tokens=33"),
        ({"max_tokens": 2}, "preferences: no example has a completion"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_bad_input_is_refused_before_the_folder_is_made(
    make_dpo_config: MakeConfig, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        train_offline(make_dpo_config(**changes))
    assert not Path(make_dpo_config().out).exists()


def _flat(batch: Any) -> tuple[np.ndarray, np.ndarray]:
    ids = batch.rows.ids
    return ids.reshape(-1, ids.shape[-1]), batch.reference_log_probs.reshape(-1)
