"""The whole chain: every stage leaves its folder, what has ended is not run again, and labels are the annotator's."""

import datetime
import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import yaml

from jaxrl_lm import data, storage
from jaxrl_lm.data import Preference
from jaxrl_lm.errors import InputError
from jaxrl_lm.rewards import REWARDS
from jaxrl_lm.storage import run_folder
from jaxrl_lm.training.errors import DiskFullError, Interrupted
from jaxrl_lm.training.reward_model.labels import read_labels
from jaxrl_lm.training.rlhf import train as rlhf
from jaxrl_lm.training.rlhf.config import LabelingConfig, RLHFConfig
from tests.training.tiny_chain import tiny_chain


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RLHFConfig:
    return tiny_chain(tmp_path_factory.mktemp("rlhf"))


@pytest.fixture(scope="module")
def result(config: RLHFConfig) -> rlhf.ChainResult:
    return rlhf.run_rlhf(config, rlhf.simulated_annotator(REWARDS["vowels"], noise=0.0, seed=config.seed))


def test_every_stage_leaves_its_folder_and_all_policies_are_compared(result, config):
    out = Path(config.out)
    for stage in ("sft", "round-1/reward-model", "round-1/ppo", "round-2/reward-model", "round-2/ppo"):
        assert (out / stage / "model" / "config.json").is_file()
    results = json.loads((out / "results.json").read_text())
    assert list(results) == ["base", "SFT", "PPO round 1", "PPO round 2"]
    assert results["SFT"]["kl"]["mean"] == pytest.approx(0.0, abs=1e-5), "the fine-tuned model is the reference"
    assert all(row.keys() == {"gold", "proxy", "kl"} for row in results.values())
    watched = storage.read_metrics(storage.RunFolder(out / "round-1" / "ppo"))["watched/gold"]
    assert len(watched.values) == config.ppo.num_updates
    page = (out / "report.html").read_text()
    assert "Completions side by side" in page
    assert page.count('class="strip"') == 3 * 4, "reward, KL and advantage of each compared completion"


def test_labels_prefer_what_gold_scores_higher_and_add_up_over_rounds(result, config):
    rooms = [Path(config.out) / f"round-{number}" for number in (1, 2)]
    labels = [data.read_preferences(room / "labels.jsonl") for room in rooms]
    for label in labels[0] + labels[1]:
        better, worse = REWARDS["vowels"](prompts=[label.prompt] * 2, completions=[label.chosen, label.rejected])
        assert better >= worse
    assert data.read_preferences(rooms[1] / "preferences.jsonl") == labels[0] + labels[1]


def test_strips_hold_the_answer_and_its_score(result):
    policy = result.policies[-1]
    for strip, answer, score, kl in zip(
        policy.strips, policy.completions, policy.scores["proxy"], policy.kl, strict=True
    ):
        assert len(strip.tokens) == len(strip.rewards) == len(strip.kl) == len(strip.advantages)
        assert sum(strip.kl) == pytest.approx(kl, abs=1e-4)
        # An answer of 6 tokens ended by its length, and is paid -1; beta = 0.15 by default.
        paid = -1.0 if len(strip.tokens) == 6 else score
        assert sum(strip.rewards) == pytest.approx(paid - 0.15 * kl, abs=1e-4)
        assert len(answer) <= len("".join(strip.tokens)), "bytes that are no text alone are shown as such"


def test_a_chain_that_has_ended_is_not_run_again(result, config):
    stages = list(Path(config.out).rglob("metrics.jsonl"))
    before = {path: path.stat().st_mtime_ns for path in stages}

    def fails(*_):
        raise AssertionError("nothing is to be labelled again")

    again = rlhf.run_rlhf(config, fails)
    assert before == {path: path.stat().st_mtime_ns for path in stages}
    assert again.policies[-1].completions == result.policies[-1].completions


def test_a_chain_that_was_moved_continues_and_options_that_are_newer_than_it_take_their_defaults(
    result, config, tmp_path
):
    moved = replace(config, out=str(tmp_path / "elsewhere" / "moved"))
    shutil.copytree(config.out, moved.out)
    shutil.rmtree(Path(moved.out) / "round-2" / "ppo")
    file = Path(moved.out) / "config.yaml"
    older = yaml.safe_load(file.read_text())
    del older["chat"]
    file.write_text(yaml.safe_dump(older))
    stages = list(Path(moved.out).rglob("metrics.jsonl"))
    before = {path: path.stat().st_mtime_ns for path in stages}
    again = rlhf.run_rlhf(moved, no_annotator())
    assert {path: path.stat().st_mtime_ns for path in stages} == before, "no stage is trained again"
    assert again.policies[-1].completions == result.policies[-1].completions
    for stage in ("sft", "round-1/reward-model", "round-1/ppo", "round-2/ppo"):
        text = (Path(moved.out) / stage / "config.yaml").read_text()
        assert moved.out in text
        assert config.out not in text


def test_another_configuration_is_refused(result, config):
    with pytest.raises(InputError, match="sft_data"):
        rlhf.run_rlhf(replace(config, sft_data="others.jsonl"), no_annotator())
    # A stage that has begun knows its settings.
    with pytest.raises(InputError, match="num_updates: 2 in the run, 3 now"):
        rlhf.run_rlhf(replace(config, sft=replace(config.sft, num_updates=3)), no_annotator())


def test_prompts_that_changed_are_refused(result, config):
    file, before = Path(config.prompts), Path(config.prompts).read_text()
    file.write_text(before + "ij\n")
    try:
        with pytest.raises(InputError, match="prompts changed since the chain was started"):
            rlhf.run_rlhf(config, no_annotator())
    finally:
        file.write_text(before)


def test_a_files_labels_are_looked_for_before_fine_tuning(config, tmp_path):
    missing = str(tmp_path / "lables.jsonl")
    labels = LabelingConfig(annotator="file", file=missing)
    chain = replace(config, out=str(tmp_path / "chain"), rounds=1, labels=labels)
    with pytest.raises(InputError, match="lables"):
        rlhf.run_rlhf(chain, rlhf.file_annotator(missing))
    assert not (tmp_path / "chain").exists()


def test_a_policy_that_says_one_thing_only_has_nothing_to_label(config, tmp_path, monkeypatch):
    monkeypatch.setattr(rlhf, "answer_prompts", lambda policy, prompts, settings: ["same"] * len(prompts))
    chain = replace(config, out=str(tmp_path / "chain"), sft_data=None, rounds=1)
    with pytest.raises(InputError, match="round 1: all 12 pairs have equal or empty completions"):
        rlhf.run_rlhf(chain, no_annotator())


def test_tools_reach_the_reward_model_when_a_chain_resumes_between_pairs_and_labels(config, tmp_path, monkeypatch):
    tokenizer = data.load_tokenizer(Path(config.model), vocab_size=None)
    tokenizer.chat_template = "{{ tools }}{{ mood }}{% for m in messages %}{{ m.role }}: {{ m.content }};{% endfor %}"
    columns = {"tools": [{"name": "clock"}], "chat_template_kwargs": {"mood": "calm"}}
    # JSON has no dates, and these columns never go through it.
    row = {"prompt": [{"role": "user", "content": "Time?"}], "asked": datetime.date(2020, 1, 2), **columns}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "prompts.parquet")
    prompts = data.read_prompts(str(tmp_path / "prompts.parquet"))
    monkeypatch.setattr(rlhf, "answer_prompts", lambda policy, prompts, settings: ["a", "e"] * (len(prompts) // 2))
    chain = replace(config, out=str(tmp_path / "chain"), labels=LabelingConfig(gold="vowels", num_pairs=1))

    def annotate(pairs, folder, number):
        assert [pair.prompt.columns for pair in pairs] == [{"asked": row["asked"], **columns}]
        return [rlhf.preference_of(pair, is_first=True) for pair in pairs]

    def interrupted(*_):
        raise Interrupted("stopped", 2)

    with pytest.raises(Interrupted):
        rlhf._label(chain, config.model, prompts, interrupted, tmp_path, 1)
    monkeypatch.delattr(rlhf, "answer_prompts")
    labels = rlhf._label(chain, config.model, prompts, annotate, tmp_path, 1)
    data.write_jsonl(tmp_path / "preferences.jsonl", labels)
    (labelled,) = read_labels(str(tmp_path / "preferences.jsonl"), "pairwise")
    ids = data.encode_completion(labelled.prompt, labelled.completions[0], tokenizer).ids
    assert tokenizer.decode(ids).startswith("[{'name': 'clock'}]calmuser: Time?;assistant: a;")
    (tmp_path / "pairs.jsonl").write_text('{"index": 1, "completions": ["a", "b"]}\n')
    (tmp_path / "labels.jsonl").unlink()
    with pytest.raises(InputError, match=r"pairs.jsonl: line 1 is not a pair of completions; delete the file"):
        rlhf._label(chain, config.model, prompts, annotate, tmp_path, 1)


def test_a_files_labels_are_read_for_their_round(tmp_path: Path):
    label = Preference(prompt="p", chosen="a", rejected="b")
    data.write_jsonl(tmp_path / "labels-2.jsonl", [label])
    assert rlhf.file_annotator(str(tmp_path / "labels-{round}.jsonl"))([], tmp_path, 2) == [label]


def test_the_seed_of_the_chain_is_that_of_every_stage_without_one_of_its_own(config, tmp_path):
    chain = replace(config, out=str(tmp_path / "chain"), rounds=1, seed=5, ppo=replace(config.ppo, seed=7))
    rlhf.run_rlhf(chain, label_by_vowels())
    seeds = {
        stage: storage.RunFolder(Path(chain.out) / stage).read_config()["seed"]
        for stage in ("sft", "round-1/reward-model", "round-1/ppo")
    }
    assert seeds == {"sft": 5, "round-1/reward-model": 5, "round-1/ppo": 7}


def test_the_report_of_a_chain_is_written_again_from_its_files(result, config):
    folder = storage.RunFolder(Path(config.out))
    folder.report_file.unlink()
    assert storage.write_report(folder, title="again").is_file()


def test_a_chain_that_is_stopped_says_how_to_continue(config, tmp_path):
    def stopped(*_):
        raise Interrupted("--resume continues", 2)

    chain = replace(config, out=str(tmp_path / "chain"), sft_data=None)
    with pytest.raises(Interrupted, match="run the same command to resume") as caught:
        rlhf.run_rlhf(chain, stopped)
    assert caught.value.signal_number == 2


def label_by_vowels() -> rlhf.Annotate:
    return rlhf.simulated_annotator(REWARDS["vowels"], noise=0.0, seed=0)


def test_a_chain_stops_after_a_stage_continues_and_grows(config, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(Path(config.model).parent))
    short = replace(config, model="~/model", out=str(tmp_path / "chain"), sft_data=None, rounds=1)
    room = tmp_path / "chain" / "round-1"
    for stage, following in (("labels", "reward-model"), ("reward_model", "ppo")):
        assert rlhf.run_rlhf(replace(short, stop_after=stage), label_by_vowels()).policies == []
        assert not (room / following).exists()
    assert [policy.name for policy in rlhf.run_rlhf(short, no_annotator()).policies] == ["base", "PPO round 1"]
    port = replace(short.labels, port=1)
    grown = rlhf.run_rlhf(replace(short, labels=port, rounds=2), label_by_vowels())
    assert [policy.name for policy in grown.policies] == ["base", "PPO round 1", "PPO round 2"]
    with pytest.raises(InputError, match="rounds=1: the chain has labels of more rounds"):
        rlhf.run_rlhf(short, label_by_vowels())
    assert storage.RunFolder(tmp_path / "chain").read_config()["rounds"] == 2, "what is refused changes nothing"


def no_annotator() -> rlhf.Annotate:
    def fails(*_):
        raise AssertionError("the labels are there")

    return fails


def test_a_ready_reward_takes_the_place_of_labels_and_reward_model(config, tmp_path):
    labels = LabelingConfig()
    ready = replace(config, out=str(tmp_path), sft_data=None, rounds=1, reward="vowels", labels=labels)
    policies = rlhf.run_rlhf(ready, None).policies
    assert policies[-1].scores.keys() == {"proxy"}
    assert policies[-1].scores["proxy"].tolist() == pytest.approx(
        REWARDS["vowels"](prompts=[], completions=policies[-1].completions)
    )
    assert [entry.name for entry in (tmp_path / "round-1").iterdir()] == ["ppo"]


def test_a_chain_that_was_killed_while_its_folder_was_made_begins(config, tmp_path):
    chain = replace(config, out=str(tmp_path / "chain"), stop_after="labels", rounds=1, sft_data=None)
    (tmp_path / "chain").mkdir()
    (tmp_path / "chain" / ".config.yaml.17.tmp").write_text("half")
    rlhf.run_rlhf(chain, label_by_vowels())
    assert (tmp_path / "chain" / "round-1" / "labels.jsonl").exists()


def test_what_a_kill_left_half_written_is_swept_from_a_chain(config, tmp_path):
    chain = replace(config, out=str(tmp_path / "chain"), stop_after="labels", rounds=1, sft_data=None)
    rlhf.run_rlhf(chain, label_by_vowels())
    leftovers = [tmp_path / "chain" / ".inputs.json.1.tmp", tmp_path / "chain" / "round-1" / ".labels.jsonl.23.tmp"]
    for path in leftovers:
        path.write_text("half")
    rlhf.run_rlhf(chain, no_annotator())
    assert not any(path.exists() for path in leftovers)


@pytest.mark.parametrize("place", ["a stage", "labels", "the folder"])
def test_a_full_disk_says_that_the_same_command_continues(config, tmp_path, monkeypatch, place):
    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    chain = replace(config, out=str(tmp_path / "chain"), rounds=1, sft=replace(config.sft, num_samples=0))
    if place != "a stage":
        chain = replace(chain, stop_after="labels", sft_data=None)
    owner, name = {
        "a stage": (storage.Checkpoints, "save"),
        "labels": (data.writers, "write_atomically"),
        "the folder": (run_folder, "write_atomically"),
    }[place]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fail)
        with pytest.raises(DiskFullError, match="make room, then run the same command to continue") as caught:
            rlhf.run_rlhf(chain, label_by_vowels())
    assert "--resume" not in str(caught.value), "the chain has no such option"
    if place != "a stage":
        assert not rlhf.run_rlhf(chain, label_by_vowels()).policies


KILLS_ONCE = """
import os, pathlib, signal

def kills_once(prompts, completions, trainer_state, **columns):
    flag = pathlib.Path(__file__).with_name("killed")
    if trainer_state.global_step == 1 and not flag.exists():  # not while samples are scored before training
        flag.touch()
        os.kill(os.getpid(), signal.SIGTERM)
    return [0.0] * len(completions)
"""


def test_a_chain_that_is_stopped_inside_ppo_ends_as_if_it_had_not_been(config, tmp_path):
    (tmp_path / "rewards.py").write_text(KILLS_ONCE)
    ppo = replace(config.ppo, num_updates=3, watch=(f"killer={tmp_path / 'rewards.py'}:kills_once",))
    chain = replace(config, sft_data=None, rounds=1, ppo=ppo)
    ends = []
    for name in ("stopped", "whole"):
        one = replace(chain, out=str(tmp_path / name))
        if name == "stopped":
            with pytest.raises(Interrupted, match="run the same command to resume"):
                rlhf.run_rlhf(one, label_by_vowels())
            assert not (tmp_path / name / "round-1" / "ppo" / "model").exists()
        found = rlhf.run_rlhf(one, label_by_vowels()).policies[-1]
        curve = storage.read_metrics(storage.RunFolder(tmp_path / name / "round-1" / "ppo"))["loss/total"]
        ends.append((found.completions, found.kl.tolist(), list(curve.steps), list(curve.values)))
    assert ends[0] == ends[1]
