"""Training a reward model, end to end on tiny models: run folder, resuming, normalisation, bad input."""

import json
import os
import shutil
import signal
from dataclasses import replace

import jax
import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from jaxrl_lm import data
from jaxrl_lm.algorithms import AdamWConfig
from jaxrl_lm.cli.main import run
from jaxrl_lm.errors import InputError
from jaxrl_lm.models import from_pretrained
from jaxrl_lm.models.reward_heads import read_scale
from jaxrl_lm.rewards.learned import load_reward
from jaxrl_lm.rewards.scoring import score_rows
from jaxrl_lm.storage import read_metrics, read_sections
from jaxrl_lm.training.errors import Interrupted
from jaxrl_lm.training.reward_model import train as reward_model
from jaxrl_lm.training.reward_model.config import NormalisationConfig, RewardModelRunConfig
from jaxrl_lm.training.reward_model.train import load_task, train_reward_model
from tests.byte_model import write_byte_model
from tests.measured import numbers
from tests.rewards.reward_folders import write_encoder

OPTIMIZER = AdamWConfig(learning_rate=1e-2, schedule="linear", warmup_fraction=0.0, weight_decay=0.0)


def labelled(form, count=60):
    """LabelledSet in which what holds "good" is better than what holds "bad"."""
    words = np.random.default_rng(0).choice(["a", "b", "c", "d", "e"], (count, 4))
    for index, (first, second, third, fourth) in enumerate(words):
        prompt, good, bad = f"{'abcde'[index % 5]} {index // 3}", f"{first} good {second}", f"{third} bad {fourth}"
        if form == "pairwise":
            yield {"prompt": prompt, "chosen": good, "rejected": bad}
        elif form == "binary":
            yield {"prompt": prompt, "completion": (good, bad)[index % 2], "label": index % 2 == 0}
        else:
            answers = [bad, "the end", "long c"]
            answers.insert(index % 4, good)
            samples = {f"sample{place}": answer for place, answer in enumerate(answers)}
            yield {"query": prompt, **samples, "best": index % 4}


@pytest.fixture(scope="session")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "encoder"
    write_encoder(folder)
    return folder


@pytest.fixture(scope="module")
def make_config(byte_model, tmp_path_factory):
    root = tmp_path_factory.mktemp("reward_runs")
    for form in ("pairwise", "best_of_k", "binary"):
        (root / f"{form}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labelled(form)))

    def make(name, **changes):
        settings = {
            "model": str(byte_model),
            "preferences": str(root / f"{changes.get('objective', 'pairwise')}.jsonl"),
            "out": str(root / name),
            "num_updates": 6,
            "batch_size": 8,
            "evaluation_fraction": 0.2,
            "evaluate_every": 3,
            "evaluation_batch_size": 16,
            "optimizer": OPTIMIZER,
            "normalisation": NormalisationConfig(num_samples=20),
        }
        return RewardModelRunConfig(**(settings | changes))

    return make


@pytest.fixture(scope="module")
def finished(make_config):
    """A finished run, for the tests that only look."""
    config = make_config("finished")
    return config, train_reward_model(config)


def test_a_run_leaves_the_whole_run_folder(finished):
    _, folder = finished
    members = ["config.yaml", "metrics.jsonl", "evaluation.json", "sections.json", "report.html"]
    members += ["plots/loss.png", "plots/reliability.png", "model/config.json", "model/model.safetensors"]
    for member in [*members, "model/tokenizer.json", "model/reward_scale.json"]:
        assert (folder.path / member).is_file(), member
    curves = read_metrics(folder)
    assert curves["loss/total"].steps.tolist() == [1, 2, 3, 4, 5, 6]
    assert curves["evaluation/accuracy"].steps.tolist() == [3, 6]


def test_report_and_evaluation_hold_the_baseline_and_the_model(finished):
    config, folder = finished
    record = json.loads((folder.path / "evaluation.json").read_text())
    assert record["bag_of_words"]["accuracy"]["estimate"] == 1.0  # one word tells good from bad
    assert record["reward_model"]["accuracy"]["low"] < record["reward_model"]["accuracy"]["high"]
    assert record["training_rows"] + record["held_out_rows"] == 60
    task, _ = load_task(config)
    assert record["held_out_prompts"] == len({row.prompt for row in task.held.rows})
    page = folder.report_file.read_text()
    assert "bag of words" in page
    assert "Reliability" in page
    comparison = read_sections(folder)[0]
    assert f"of {record['held_out_prompts']} prompts" in comparison.note
    assert comparison.heads == ("", "reward model", "bag of words")
    assert comparison.rows[0][2].startswith("1.000 [")


def test_evaluation_is_that_of_the_last_curve_point(finished):
    _, folder = finished
    record = json.loads((folder.path / "evaluation.json").read_text())
    assert record["reward_model"]["loss"] == pytest.approx(read_metrics(folder)["evaluation/loss"].values[-1], rel=1e-5)


@pytest.mark.parametrize("backbone", ["decoder", "encoder"])
def test_saved_model_scores_the_reference_samples_with_mean_0_and_deviation_1(make_config, encoder, backbone, finished):
    config, folder = finished
    if backbone == "encoder":
        config = make_config("from_encoder", model=str(encoder))
        folder = train_reward_model(config)
    task, _ = load_task(config)
    texts = [task.reader.tokenizer.decode(row.ids, skip_special_tokens=True) for row in task.references]
    assert len(set(texts)) > 5
    learned = load_reward(folder.model_folder, batch_size=20)
    rows = task.references
    scores = score_rows(learned.model, learned.params, learned.reader, rows, batch_size=20) + learned.scale.offset
    assert np.mean(scores) == pytest.approx(0.0, abs=1e-4)
    assert np.std(scores) == pytest.approx(1.0, abs=1e-4)
    scale = read_scale(folder.model_folder)
    assert scale.offset == (0.0 if backbone == "encoder" else scale.bias)


def test_torch_loads_the_model_and_gives_the_same_scores(finished):
    _, folder = finished
    theirs = AutoModelForSequenceClassification.from_pretrained(folder.model_folder).float().eval()
    learned = load_reward(folder.model_folder)
    prompts, answers = ["a 1", "b 2", "c 3"], ["a good b", "d bad e", "good"]
    rows = [learned.reader.encode(*each) for each in zip(prompts, answers, strict=True)]
    inputs = learned.reader.stack(rows, 16)
    with torch.no_grad():
        expected = theirs(
            input_ids=torch.tensor(inputs["input_ids"]).long(),
            attention_mask=torch.tensor(inputs["attention_mask"]).long(),
        ).logits[:, 0]
    actual = np.array(learned(prompts, answers)) - learned.scale.offset
    np.testing.assert_allclose(actual, expected.numpy(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("objective", ["best_of_k", "binary"])
def test_other_objectives_learn(make_config, objective):
    folder = train_reward_model(make_config(objective, objective=objective, num_updates=30, num_accumulated=2))
    record = json.loads((folder.path / "evaluation.json").read_text())
    chance = {"best_of_k": 0.25, "binary": 0.5}[objective]
    assert record["reward_model"]["accuracy"]["low"] > chance
    assert record["bag_of_words"]["accuracy"]["estimate"] > 0.9


def test_terminated_run_resumes_bit_for_bit(make_config, finished, monkeypatch):
    whole = reward_model.make_update

    def stopping(task):
        update = whole(task)

        def stop(state, num_done):
            if num_done == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return update(state, num_done)

        return stop

    broken = make_config("broken")
    monkeypatch.setattr(reward_model, "make_update", stopping)
    with pytest.raises(Interrupted, match="--resume"):
        train_reward_model(broken)
    monkeypatch.undo()
    resumed = train_reward_model(replace(broken, resume=True))
    _, straight = finished
    assert numbers(resumed) == numbers(straight)
    for name in ("evaluation.json", "model/reward_scale.json", "model/model.safetensors"):
        assert (resumed.path / name).read_bytes() == (straight.path / name).read_bytes(), name


def test_reference_policy_answers_training_prompts(make_config, byte_model):
    settings = NormalisationConfig(num_samples=6, policy=str(byte_model), max_new_tokens=3)
    task, _ = load_task(make_config("policy", normalisation=settings))
    prompts = {row.prompt for row in task.training.rows}
    texts = [task.reader.tokenizer.decode(row.ids) for row in task.references]
    assert len(texts) == 6
    assert all(any(text.startswith(prompt) for prompt in prompts) for text in texts)


def test_reference_policy_answers_only_what_it_can_read(make_config, byte_model, tmp_path, caplog):
    rows = [{"prompt": prompt, "chosen": f"{prompt[:3]} good", "rejected": "bad"} for prompt in ("ab", "cd", "ef")]
    rows += [{"prompt": "", "chosen": "x", "rejected": "y"}, {"prompt": "z" * 30, "chosen": "x", "rejected": "y"}]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    held = {"prompt": "held", "chosen": "v", "rejected": "w"}
    (tmp_path / "e.jsonl").write_text(json.dumps(held) + "\n")
    settings = NormalisationConfig(num_samples=6, policy=str(byte_model), max_new_tokens=3)
    files = {"preferences": str(tmp_path / "p.jsonl"), "evaluation": str(tmp_path / "e.jsonl")}
    config = make_config("readable", normalisation=settings, **files)
    task, _ = load_task(config)
    texts = [task.reader.tokenizer.decode(row.ids) for row in task.references]
    assert {text[:2] for text in texts} == {"ab", "cd", "ef"}
    assert "cannot read the prompts of 2 of 5 training rows" in caplog.text
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[3:]))
    with pytest.raises(InputError, match=r"normalisation\.policy=.*cannot read any training prompt"):
        load_task(config)


def test_another_reference_policy_in_the_same_folder_is_noticed(make_config, tmp_path):
    settings = NormalisationConfig(num_samples=6, policy=str(tmp_path / "policy"), max_new_tokens=3)
    config = make_config("replaced", normalisation=settings)
    found = []
    for seed in (0, 0, 1):
        write_byte_model(tmp_path / "policy", num_layers=1, model_size=16, num_heads=2, context=32, seed=seed)
        found.append(reward_model.fingerprints(*load_task(replace(config, head_std=0.0))))
    assert found[0] == found[1]
    assert {name for name in found[0] if found[0][name] != found[2][name]} == {"references"}


def test_new_head_is_normalised_before_training_and_one_that_exists_is_kept(make_config, finished):
    config, folder = finished
    task, params = load_task(config)
    assert np.std(task.scores(params, task.references)) == pytest.approx(1.0, abs=1e-4)
    again = make_config("again", model=str(folder.model_folder))
    _, kept = load_task(again)
    _, saved = from_pretrained(folder.model_folder, "reward")
    jax.tree.map(np.testing.assert_array_equal, kept, saved)
    _, drawn = load_task(replace(again, new_head=True, head_std=0.0))
    np.testing.assert_array_equal(drawn["score"]["kernel"], 0.0)


@pytest.mark.parametrize("num_samples", [0, 20])
def test_texts_are_scored_as_long_as_training_saw_them(make_config, num_samples):
    normalisation = NormalisationConfig(num_samples=num_samples)
    config = make_config(f"short{num_samples}", max_tokens=12, normalisation=normalisation, num_updates=1)
    folder = train_reward_model(config)
    learned = load_reward(folder.model_folder)
    assert learned.reader.max_tokens == 12
    assert learned(["a b c d e a b c"], ["good d"]) == learned(["d e a b c"], ["good d"])
    assert load_reward(folder.model_folder, max_tokens=20).reader.max_tokens == 20


def test_no_normalisation_leaves_a_scale_of_one(make_config):
    off = NormalisationConfig(num_samples=0)
    folder = train_reward_model(make_config("raw", normalisation=off, num_updates=1))
    scale = read_scale(folder.model_folder)
    assert (scale.gain, scale.bias, scale.offset) == (1.0, 0.0, 0.0)


def test_given_evaluation_file_is_used_whole(make_config, tmp_path):
    rows = [{"prompt": f"held {index}", "chosen": "good", "rejected": "bad"} for index in range(7)]
    (tmp_path / "e.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task, _ = load_task(make_config("given", evaluation=str(tmp_path / "e.jsonl")))
    assert (len(task.training.rows), len(task.held.rows)) == (60, 7)


def test_a_reward_is_learned_from_rows_that_all_have_one_prompt(make_config, tmp_path):
    rows = [{"prompt": "Review: ", "completion": f"{index} good", "label": index % 2} for index in range(20)]
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = make_config("one_prompt", objective="binary", preferences=str(tmp_path / "labels.jsonl"))
    task, _ = load_task(config)
    assert (len(task.training.rows), len(task.held.rows), task.held.num_prompts) == (16, 4, 4)


def test_labels_of_token_ids_are_read_by_the_models_tokenizer_or_the_one_named(
    make_config, byte_model, encoder, tmp_path
):
    encode = data.load_tokenizer(byte_model, vocab_size=None).encode
    row = {"query": encode("a?"), "sample0": encode("no"), "sample1": encode("yes"), "best": 1}
    (tmp_path / "labels.json").write_text(json.dumps([row, {**row, "query": encode("b?")}]))
    for name, objective, answers in (("ids", "best_of_k", ("no", "yes")), ("pairs", "pairwise", ("yes", "no"))):
        changes = {"objective": objective, "preferences": str(tmp_path / "labels.json"), "evaluation_fraction": 0.5}
        for model, labels_tokenizer in ((byte_model, None), (encoder, str(byte_model))):
            task, _ = load_task(make_config(name, model=str(model), labels_tokenizer=labels_tokenizer, **changes))
            rows = task.training.rows + task.held.rows
            assert {row.prompt for row in rows} == {"a?", "b?"}
            assert {row.completions for row in rows} == {answers}
        with pytest.raises(InputError, match=r"labels\.json: holds token ids .*--labels-tokenizer"):
            load_task(make_config(name, model=str(encoder), **changes))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("batch_size", 0),
        ("num_epochs", 0.0),
        ("evaluation_fraction", 1.0),
        ("head_std", -1.0),
        ("seed", -1),
        ("num_accumulated", 0),
    ],
)
def test_unfit_settings_are_refused(make_config, field, value):
    with pytest.raises(InputError, match=f"{field}="):
        RewardModelRunConfig(model="m", preferences="p", out="o", **{field: value})


def test_a_tokenizer_of_binary_labels_is_refused(make_config):
    with pytest.raises(InputError, match=r"labels_tokenizer='gpt2': .*leave --labels-tokenizer out"):
        make_config("thumbs", objective="binary", labels_tokenizer="gpt2")


def test_command_refuses_a_file_of_another_form_and_writes_nothing(make_config, tmp_path, capfd):
    config = make_config("other")
    wrong = config.preferences.replace("pairwise", "binary")
    options = [f"--model={config.model}", f"--preferences={wrong}", f"--out={tmp_path / 'run'}"]
    assert run(["reward-model", *options]) == 2
    assert "chosen" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


def test_command_trains_and_prints_the_comparison(make_config, tmp_path, capfd):
    config = make_config("command")
    options = [f"--model={config.model}", f"--preferences={config.preferences}", f"--out={tmp_path / 'run'}"]
    assert run(["reward-model", *options, "--num-updates=1", "--batch-size=8", "--normalisation.num-samples=4"]) == 0
    out = capfd.readouterr().out
    assert "bag of words" in out
    assert "--reward model:" in out


def test_a_pad_token_outside_the_embedding_gives_way_to_one_that_torch_reads(make_config, byte_model, tmp_path):
    folder = shutil.copytree(byte_model, tmp_path / "padded")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    task, _ = load_task(make_config("padded", model=str(folder)))
    assert task.model.config.hf_config()["pad_token_id"] == task.reader.tokenizer.pad_token_id == 256
