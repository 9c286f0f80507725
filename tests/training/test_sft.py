"""Supervised fine-tuning end to end on a tiny byte-level model."""

import json
import math
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import chex
import jax
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from jaxrl_lm import data
from jaxrl_lm.algorithms import AdamWConfig
from jaxrl_lm.errors import InputError
from jaxrl_lm.models import from_pretrained
from jaxrl_lm.storage import RunFolder, read_jsonl, read_metrics
from jaxrl_lm.training.errors import Interrupted
from jaxrl_lm.training.offline import train as offline
from jaxrl_lm.training.offline.sft import SFTRunConfig
from jaxrl_lm.training.offline.task import load_task, read_split
from jaxrl_lm.training.offline.train import train_offline
from tests.measured import numbers
from tests.training.conftest import END_OF_TEXT_ID, SECOND_STOP

MakeConfig = Callable[..., SFTRunConfig]


@pytest.fixture(scope="module")
def examples_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty questions with one answer."""
    file = tmp_path_factory.mktemp("examples") / "examples.jsonl"
    rows = [{"prompt": f"{letter}?", "completion": "ok!"} for letter in "abcdefghijklmnopqrst"]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="module")
def make_config_in(byte_model: Path, examples_file: Path) -> MakeConfig:
    """Builds a configuration of a run in a given folder; what is given replaces the small defaults."""

    def make(folder: Path, **changes: Any) -> SFTRunConfig:
        settings: dict[str, Any] = {
            "model": str(byte_model),
            "data": str(examples_file),
            "out": str(folder / "run"),
            "evaluation_fraction": 0.2,
            "evaluate_every": 2,
            "num_updates": 5,
            "batch_size": 1,
            "num_accumulated": 2,
            "row_length": 16,
            "optimizer": AdamWConfig(learning_rate=1e-2),
            "save_every": 2,
            "num_samples": 2,
            "max_new_tokens": 4,
        }
        return SFTRunConfig(**(settings | changes))

    return make


@pytest.fixture
def make_sft_config(make_config_in: MakeConfig, tmp_path: Path) -> MakeConfig:
    """The same in a folder of the test's own."""
    return partial(make_config_in, tmp_path)


@pytest.fixture(scope="module")
def straight(make_config_in: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished run, for the tests that only look."""
    return train_offline(make_config_in(tmp_path_factory.mktemp("straight")))


def test_a_run_leaves_the_whole_run_folder_and_torch_loads_its_model(straight: RunFolder) -> None:
    folder = straight
    for member in ("config.yaml", "metrics.jsonl", "report.html", "plots/loss.png", "plots/evaluation.png"):
        assert (folder.path / member).is_file(), member
    assert "not finite" not in folder.report_file.read_text()
    assert [record["step"] for record in read_jsonl(folder.metrics_file)] == [1, 2, 3, 4, 5]
    curves = read_metrics(folder)
    assert curves["evaluation/perplexity"].steps.tolist() == [2, 4, 5]
    flops = curves["flops/update"].values
    assert flops[0] == flops[2] < flops[1] == flops[3]  # those with an evaluation
    assert flops[0] > 0
    np.testing.assert_allclose(curves["loss/perplexity"].values, np.exp(curves["loss/total"].values), rtol=1e-6)
    samples = read_jsonl(folder.samples_file)
    assert [sample["phase"] for sample in samples] == ["before"] * 2 + ["after"] * 2
    assert all(sample["prompt"].endswith("?") for sample in samples)
    model, params = from_pretrained(folder.model_folder)
    theirs = AutoModelForCausalLM.from_pretrained(folder.model_folder).eval()
    ids = np.array([[65, 66, 67]])
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).logits.numpy()
    np.testing.assert_allclose(model.apply({"params": params}, ids).logits, expected, rtol=0, atol=1e-4)


def test_the_stop_tokens_of_the_model_are_carried_over(straight: RunFolder) -> None:
    content = json.loads((straight.model_folder / "generation_config.json").read_text())
    assert content["eos_token_id"] == [END_OF_TEXT_ID, SECOND_STOP]


def test_fine_tuning_learns_the_answer_and_lowers_held_out_perplexity(make_sft_config: MakeConfig) -> None:
    folder = train_offline(
        make_sft_config(
            num_updates=60, evaluate_every=5, save_every=60, num_samples=1, optimizer=AdamWConfig(learning_rate=2e-2)
        )
    )
    perplexity = read_metrics(folder)["evaluation/perplexity"].values
    assert perplexity[0] > 1.5 * perplexity[-1]
    assert perplexity[-1] < 1.2
    before, after = (sample["completion"] for sample in read_jsonl(folder.samples_file))
    assert before != after == "ok!"


def test_evaluation_is_the_mean_over_held_out_tokens_by_hand(make_sft_config: MakeConfig) -> None:
    config = make_sft_config(num_updates=1, evaluate_every=1)
    task = load_task(config)
    loaded = task.loaded
    state, metrics = offline.make_update(task)(task.learner.init(loaded.params), 0)
    _, held_out = read_split(config)
    assert len(held_out) == 4
    total, count = 0.0, 0
    for example in held_out:
        encoded = data.encode_completion(example.prompt, example.completion, loaded.tokenizer)
        output = loaded.model.apply({"params": state.params}, np.array([encoded.ids]))
        log_probs = np.asarray(jax.nn.log_softmax(output.logits[0]))
        for place in range(encoded.num_prompt_tokens, len(encoded.ids)):
            total -= log_probs[place - 1, encoded.ids[place]]
            count += 1
    assert count == 4 * 4  # two letters, a mark, the end
    assert metrics["evaluation/loss"] == pytest.approx(total / count, rel=1e-5)
    assert metrics["evaluation/perplexity"] == pytest.approx(math.exp(total / count), rel=1e-5)


def test_interrupted_run_resumes_bit_for_bit(
    make_sft_config: MakeConfig, straight: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_sft_config()
    make_update = offline.make_update

    def interrupted(task: Any) -> Any:
        update = make_update(task)

        def stopping(state: Any, num_done: int) -> Any:
            if num_done == 2:
                signal.raise_signal(signal.SIGINT)
            return update(state, num_done)

        return stopping

    with monkeypatch.context() as patch:
        patch.setattr(offline, "make_update", interrupted)
        with pytest.raises(Interrupted, match="after update 3 of 5"):
            train_offline(config)
    resumed = train_offline(replace(config, resume=True))
    assert numbers(resumed) == numbers(straight)
    assert read_jsonl(resumed.samples_file) == read_jsonl(straight.samples_file)
    chex.assert_trees_all_equal(from_pretrained(resumed.model_folder)[1], from_pretrained(straight.model_folder)[1])


def test_resuming_on_changed_data_is_refused(make_sft_config: MakeConfig, tmp_path: Path) -> None:
    file = tmp_path / "changing.jsonl"
    rows = [{"prompt": letter, "completion": "x"} for letter in "abcd"]
    file.write_text("\n".join(map(json.dumps, rows)))
    constant = AdamWConfig(learning_rate=1e-2, schedule="constant", warmup_fraction=0.0)
    config = make_sft_config(data=str(file), num_updates=1, optimizer=constant)
    train_offline(config)
    file.write_text("\n".join(map(json.dumps, rows[::-1])))
    with pytest.raises(InputError, match="data changed since the run was started"):
        train_offline(replace(config, num_updates=2, resume=True))


def test_updates_are_those_of_the_epochs(make_sft_config: MakeConfig) -> None:
    task = load_task(make_sft_config(num_updates=None, num_epochs=3.0, evaluation_fraction=0.0))
    # 20 sequences of 6 tokens, two a row of 16: 10 rows, 2 an update.
    assert task.num_updates == 15
    rows = [batch for step in range(5) for batch in task.take_batch(step).ids.reshape(-1, 16)]
    assert len({row.tobytes() for row in rows}) == 10, "an epoch deals out every row once"
    assert task.evaluation_batches == []


def test_accumulating_equals_a_larger_batch(make_sft_config: MakeConfig) -> None:
    results = []
    for batch_size, num_accumulated in ((4, 1), (1, 4)):
        task = load_task(make_sft_config(batch_size=batch_size, num_accumulated=num_accumulated))
        _, metrics = jax.jit(task.learner.update)(task.learner.init(task.loaded.params), task.take_batch(0))
        results.append((metrics["loss/total"], metrics["loss/grad_norm"]))
    np.testing.assert_allclose(results[0], results[1], rtol=1e-5)


@pytest.mark.parametrize(
    "rows",
    [
        ["a plain text", "and another one"],
        [[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]] * 2,
    ],
    ids=["texts", "conversations"],
)
def test_texts_and_conversations_are_learned_whole(
    make_sft_config: MakeConfig, byte_model: Path, tmp_path: Path, rows: list[Any]
) -> None:
    name = "text" if isinstance(rows[0], str) else "messages"
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({name: row}) + "\n" for row in rows))
    model = tmp_path / "chat-model"
    _copy_with_template(byte_model, model)
    task = load_task(make_sft_config(data=str(file), model=str(model), evaluation_fraction=0.0, row_length=32))
    batch = task.take_batch(0)
    num_sequences = np.sum(np.max(batch.segment_ids, axis=-1))
    assert np.sum(batch.is_target) == np.sum(batch.segment_ids > 0) - num_sequences
    assert task.sample_prompts[0][0] in ("a pl", "and ", "user: ")


def test_the_assistants_turns_alone_are_learned(make_sft_config: MakeConfig, tmp_path: Path) -> None:
    config = make_sft_config(loss_on="assistant", row_length=32, batch_size=1, num_accumulated=1)
    tokenizer = data.load_tokenizer(Path(config.model), vocab_size=None)
    tokenizer.chat_template = "{% for m in messages %}{{ m.role[0] }}: {{ m.content }}<|endoftext|>{% endfor %}" + (
        "{% if add_generation_prompt %}a: {% endif %}"
    )
    folder = tmp_path / "chat"
    shutil.copytree(config.model, folder)
    tokenizer.save_pretrained(folder)
    turns = [{"role": role, "content": text} for role, text in zip(["user", "assistant"] * 2, "why", strict=False)]
    turns.append({"role": "assistant", "content": "ok"})
    rows = [{"messages": turns}, {"prompt": turns[:1], "completion": turns[1:]}]
    for row, form in zip(rows, ("language-modeling", "prompt-completion"), strict=True):
        file = tmp_path / f"{form}.jsonl"
        file.write_text(json.dumps(row) + "\n")
        task = load_task(replace(config, model=str(folder), data=str(file), evaluation_fraction=0.0))
        batch = task.take_batch(0)
        learned = batch.ids[np.asarray(batch.is_target)]
        assert tokenizer.decode(learned) == "h<|endoftext|>ok<|endoftext|>"


def test_prompts_of_one_group_stay_on_one_side(make_sft_config: MakeConfig, tmp_path: Path) -> None:
    file = tmp_path / "grouped.jsonl"
    rows = [{"prompt": f"p{number % 5}", "completion": f"c{number}"} for number in range(20)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    train, held_out = read_split(make_sft_config(data=str(file), evaluation_fraction=0.4))
    assert {each.prompt for each in train}.isdisjoint({each.prompt for each in held_out})
    assert len(held_out) == 8


@pytest.mark.parametrize(
    ("first", "row"),
    [
        ({"prompt": "p", "completion": ""}, {"prompt": "p", "completion": "c"}),
        ({"prompt": "p"}, {"prompt": "p", "completion": "c"}),
        ([], {"text": "t"}),
        ({"text": "", "prompt": None, "completion": None}, {"text": "t"}),
    ],
)
def test_a_first_row_that_does_not_fit_leaves_the_form_to_the_columns(
    make_sft_config: MakeConfig, tmp_path: Path, first: Any, row: dict[str, str]
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(each) + "\n" for each in [first, *[row] * 999]))
    train, _ = read_split(make_sft_config(data=str(file), evaluation_fraction=0.0))
    assert len(train) == 999


def test_rows_of_neither_form_are_refused_with_what_the_first_has(make_sft_config: MakeConfig, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    for content, part in (('{"txt": "a"}\n', "line 1 has: 'txt'"), ("{\n", "line 1: not valid JSON"), ("", "no rows")):
        file.write_text(content)
        with pytest.raises(InputError, match=f"nor 'text' or 'messages'.*{part}"):
            read_split(make_sft_config(data=str(file)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"row_length": 33}, "row_length=33"),
        ({"row_length": 1}, "row_length=1"),
        ({"num_epochs": 0.0}, "num_epochs=0.0"),
        ({"evaluation_fraction": 1.0}, "evaluation_fraction=1.0"),
        ({"data": "no-such-file.jsonl"}, "no-such-file.jsonl"),
        ({"row_length": 2}, "no sequence has a target token"),
    ],
)
def test_bad_input_is_refused_before_the_folder_is_made(
    make_sft_config: MakeConfig, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        train_offline(make_sft_config(**changes))
    assert not Path(make_sft_config().out).exists()


def test_what_is_cut_is_said(make_sft_config: MakeConfig, caplog: pytest.LogCaptureFixture) -> None:
    load_task(make_sft_config(row_length=5, evaluation_fraction=0.0))
    assert "of 20 sequences, at row_length=5, 0 texts were split, 20 completions truncated" in caplog.text


def _copy_with_template(source: Path, target: Path) -> None:
    from transformers import AutoTokenizer

    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    tokenizer.save_pretrained(target)
