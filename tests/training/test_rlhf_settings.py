"""Settings of a chain: what is refused before the first stage."""

import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest

from jaxrl_lm.errors import InputError
from jaxrl_lm.training.rlhf import train as rlhf
from jaxrl_lm.training.rlhf.config import LabelingConfig, PPOStage, RLHFConfig
from tests.training.tiny_chain import tiny_chain


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RLHFConfig:
    return tiny_chain(tmp_path_factory.mktemp("rlhf"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds": 0}, "rounds=0"),
        ({"labels": LabelingConfig()}, "labels.gold: the simulated annotator needs"),
        ({"labels": LabelingConfig(annotator="file", file="x.jsonl")}, "labels.file='x.jsonl' would be used 2 times"),
        ({"stop_after": "sft", "sft_data": None}, "stop_after=sft: without sft_data"),
        ({"reward": "vowels"}, "rounds=2: reward='vowels' is the same in all"),
        ({"reward": "vowels", "rounds": 1, "stop_after": "labels"}, "stop_after=labels: reward='vowels'"),
        (
            {"reward": "vowels", "rounds": 1, "labels": LabelingConfig(annotator="page")},
            "labels.annotator=page: reward='vowels' replaces the labels",
        ),
        ({"ppo": PPOStage(watch=("gold=vowels",))}, "ppo.watch: the name gold is taken"),
    ],
)
def test_settings_that_do_not_fit_each_other_are_refused(config, changes, message):
    with pytest.raises(InputError, match=message):
        replace(config, **changes)


def test_a_stage_has_no_setting_that_the_chain_gives_it():
    given = {
        "sft": {"model", "data", "out", "resume"},
        "reward_model": {"preferences", "out", "resume", "objective"},
        "ppo": {"model", "prompts", "prompt_column", "reward", "out", "resume"},
    }
    for stage, names in given.items():
        [kind] = [field.default_factory for field in fields(RLHFConfig) if field.name == stage]
        assert names.isdisjoint(field.name for field in fields(kind))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"annotator": "file"}, "labels.file=None with labels.annotator=file: name the file"),
        ({"file": "x"}, "labels.file='x' with labels.annotator=simulated"),
        ({"noise": -1.0}, "labels.noise=-1.0"),
    ],
)
def test_labels_need_an_annotator(changes, message):
    with pytest.raises(InputError, match=message):
        replace(LabelingConfig(gold="vowels"), **changes)


@pytest.mark.parametrize("option", ["labels.gold", "ppo.watch"])
def test_a_misspelt_reward_is_refused_before_the_first_stage(config, tmp_path, option):
    changes = {
        "labels.gold": {"labels": replace(config.labels, gold="vowles")},
        "ppo.watch": {"ppo": replace(config.ppo, watch=("other=vowles",))},
    }
    with pytest.raises(InputError, match=f"{option}.*'vowles' is not a built-in"):
        rlhf.run_rlhf(replace(config, out=str(tmp_path / "chain"), **changes[option]), lambda *_: [])
    assert not (tmp_path / "chain").exists()


@pytest.mark.parametrize("stage", ["sft", "reward_model", "ppo"])
def test_an_observer_that_cannot_work_is_refused_before_the_first_stage(config, tmp_path, monkeypatch, stage):
    monkeypatch.setitem(sys.modules, "wandb", None)
    changed = replace(getattr(config, stage), wandb_project="p")
    with pytest.raises(InputError, match=rf"^{stage}\.wandb_project is 'p', but wandb is not installed"):
        rlhf.run_rlhf(replace(config, out=str(tmp_path / "chain"), **{stage: changed}), lambda *_: [])
    assert not (tmp_path / "chain").exists()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a/sft/model", "b/sft/model"),
        ("model:a/sft/model", "model:b/sft/model"),
        ("a/base", "a/base"),  # not in the chain: a hub id, say
        ("ab/sft/model", "ab/sft/model"),
        ("vowels", "vowels"),
    ],
)
def test_only_a_chains_own_files_move_with_it(tmp_path, monkeypatch, value, expected):
    monkeypatch.chdir(tmp_path)
    Path("b/sft/model").mkdir(parents=True)
    assert rlhf._moved(value, Path("a"), Path("b")) == expected
