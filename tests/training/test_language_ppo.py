"""PPO on a language model, end to end on a tiny byte-level model."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_lm.algorithms import KLConfig, PPOConfig
from jaxrl_lm.errors import InputError
from jaxrl_lm.models import from_pretrained
from jaxrl_lm.rewards.scores import RESERVED, TRAINER_GROUPS
from jaxrl_lm.rollouts import AnswerConfig
from jaxrl_lm.storage import RunFolder, read_jsonl, read_metrics
from jaxrl_lm.training.errors import Interrupted, TrainingDivergedError
from jaxrl_lm.training.online.config import PPORunConfig
from jaxrl_lm.training.online.train import Loaded, load, make_update, train_online
from tests.byte_model import write_byte_model
from tests.measured import numbers
from tests.training import rewards_for_tests
from tests.training.conftest import END_OF_TEXT_ID, SECOND_STOP

MakeConfig = Callable[..., PPORunConfig]
REWARDS = "tests.training.rewards_for_tests"


@pytest.fixture(autouse=True)
def _reset_call_count() -> None:
    rewards_for_tests.CALLS["count"] = 0


class FirstUpdates(NamedTuple):
    """A task, the state after two updates, their metrics, and how often learning was traced."""

    loaded: Loaded
    reference: Any
    state: Any
    coefficients: list[float]
    metrics: list[dict[str, float]]
    num_traces: int


@pytest.fixture(scope="module")
def straight_config(make_config_in: Callable[..., PPORunConfig], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The settings of the run that most tests look at."""
    return make_config_in(tmp_path_factory.mktemp("straight"), reward=f"{REWARDS}:vowels")


@pytest.fixture(scope="module")
def straight(straight_config: PPORunConfig) -> RunFolder:
    """A finished run, for the tests that only look."""
    return train_online(straight_config)


@pytest.fixture(scope="module")
def first_updates(make_config_in: Callable[..., PPORunConfig], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Three updates, for the tests that only look."""
    loaded = load(make_config_in(tmp_path_factory.mktemp("updates")))
    reference = jax.tree.map(np.array, loaded.task.reference_params)
    traces, coefficients, metrics = [], [], []
    learn = loaded.learner.update
    counted = loaded.learner._replace(update=lambda *args: traces.append(1) or learn(*args))
    update, state = make_update(replace(loaded, learner=counted)), loaded.init_state()
    for step in range(3):
        state, found = update(state, step)
        metrics.append(found)
        coefficients.append(float(state.kl_coefficient))
    return FirstUpdates(loaded, reference, state, coefficients, metrics, len(traces))


def test_a_run_leaves_the_whole_run_folder(straight: RunFolder) -> None:
    folder = straight
    for member in ("config.yaml", "metrics.jsonl", "samples.jsonl", "report.html", "model/config.json", "plots/kl.png"):
        assert (folder.path / member).is_file(), member
    assert list(folder.tensorboard_folder.iterdir())
    assert [record["step"] for record in read_jsonl(folder.metrics_file)] == [1, 2, 3, 4]
    assert [sample["phase"] for sample in read_jsonl(folder.samples_file)] == ["before"] * 2 + ["after"] * 2
    _, params = from_pretrained(folder.model_folder, head="value")
    assert jnp.any(params["value_head"]["kernel"] != 0), "the value head was not saved"


def test_every_stop_token_of_the_model_ends_answers_and_is_carried_over(
    straight: RunFolder, first_updates: FirstUpdates
) -> None:
    sampling = first_updates.loaded.task.sampling
    assert sampling.stop_tokens == (END_OF_TEXT_ID, SECOND_STOP)
    assert (sampling.temperature, sampling.top_k) == (0.7, 0)  # those of the options: what is learned from is whole
    content = json.loads((straight.model_folder / "generation_config.json").read_text())
    assert content["eos_token_id"] == [END_OF_TEXT_ID, SECOND_STOP]
    assert content["temperature"] == 0.1


def test_log_probs_and_values_of_decoding_serve_as_well_as_those_of_scoring(
    make_config: MakeConfig, straight: RunFolder
) -> None:
    decoded = train_online(make_config(rescore=False, reward=f"{REWARDS}:vowels"))
    curves = {True: read_metrics(straight), False: read_metrics(decoded)}
    assert np.max(curves[False]["ratio/first_max_error"].values) < 1e-4
    assert "ratio/rollout_max_error" not in curves[False]
    for name in ("loss/policy", "loss/value", "value/returns", "kl/answer", "reward/with_penalty"):
        np.testing.assert_allclose(curves[False][name].values, curves[True][name].values, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "fields", [{"value_model": "folder"}, {"answers": AnswerConfig(max_new_tokens=5, score_at="after_end")}]
)
def test_values_that_decoding_lacks_must_be_rescored(make_config: MakeConfig, fields: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="leave rescore on"):
        make_config(rescore=False, **fields)


def test_ratio_is_one_on_the_first_minibatch_of_every_update(straight: RunFolder) -> None:
    curves = read_metrics(straight)
    assert np.max(curves["ratio/first_max_error"].values) < 1e-4
    assert np.max(curves["ratio/rollout_max_error"].values) < 1e-4
    assert np.max(curves["ratio/max_error"].values) > 1e-3, "later minibatches must have moved"


def test_watched_rewards_score_the_same_answers_and_change_nothing(
    make_config: MakeConfig, straight: RunFolder, tmp_path: Path
) -> None:
    vowels = f"{REWARDS}:vowels"
    watched = numbers(train_online(make_config(reward=vowels, watch=(f"same={vowels}",))))
    assert [record.pop("watched/same") for record in watched] == [record["reward/mean"] for record in watched]
    assert watched == numbers(straight)
    with pytest.raises(InputError, match="vowles"):
        train_online(make_config(watch=("same=vowles",), out=str(tmp_path / "none")))
    for watched in (("vowels",), ("=vowels",), ("a=",), ("a/b=vowels",), ("a=vowels", "a=good_manners")):
        with pytest.raises(InputError, match="NAME=REWARD"):
            make_config(watch=watched)


def test_what_watched_rewards_log_is_under_their_names(first_updates: FirstUpdates) -> None:
    def length(completions: list[str], log_metric: Any, log_extra: Any, **columns: Any) -> list[float | None]:
        log_metric("rows", len(completions))
        log_metric("parts/one", 1)
        log_extra("place", range(len(completions)))
        return [2.0, *[None] * (len(completions) - 1)]

    def silent(completions: list[str], **columns: Any) -> list[None]:
        return [None] * len(completions)

    loaded = first_updates.loaded
    task = replace(loaded.task, watched={"gold": length, "none": silent})
    chosen = np.zeros(4, int)
    _, metrics = task.score(chosen, task.answer(loaded.params, chosen, jax.random.key(0)))
    watched = {name: value for name, value in metrics.items() if name.startswith("watched/")}
    assert watched == {"watched/gold": 2.0, "watched/gold/rows": 4.0, "watched/gold/parts/one": 1.0}
    first, second = task.samples(loaded.params, phase="before", step=0)
    assert (first["watched/gold"], first["watched/gold/place"], first["watched/none"]) == (2.0, 0, None)
    assert (second["watched/gold"], second["watched/gold/place"], second["watched/none"]) == (None, 1, None)


def test_names_of_the_trainers_metrics_cannot_be_logged_by_rewards(straight: RunFolder) -> None:
    for name in read_metrics(straight):
        group, _, rest = name.partition("/")
        assert group in TRAINER_GROUPS or rest in RESERVED or not rest, name


def test_kl_starts_at_zero_and_the_reference_stays(first_updates: FirstUpdates) -> None:
    first, second, _ = first_updates.metrics
    assert first["kl/answer"] == pytest.approx(0.0, abs=1e-5)
    assert abs(second["kl/answer"]) > 1e-4
    chex.assert_trees_all_equal(
        first_updates.reference, jax.tree.map(np.array, first_updates.loaded.task.reference_params)
    )


def test_adaptive_kl_coefficient_follows_its_formula(first_updates: FirstUpdates) -> None:
    # KL 0 against a target of 0.5 is the full error of -0.2; 4 episodes of a horizon of 20.
    assert first_updates.metrics[0]["kl/coefficient"] == pytest.approx(0.1)
    assert first_updates.coefficients[0] == pytest.approx(0.1 * (1 - 0.2 * 4 / 20))


def test_one_trace_an_update_function(first_updates: FirstUpdates) -> None:
    assert first_updates.num_traces == 1


def test_learning_rate_falls_linearly_to_zero(straight: RunFolder) -> None:
    np.testing.assert_allclose(read_metrics(straight)["learning_rate"].values, [1e-2, 7.5e-3, 5e-3, 2.5e-3], rtol=1e-5)


def test_samples_of_two_updates_differ_on_the_same_prompt(first_updates: FirstUpdates) -> None:
    loaded, chosen, key = first_updates.loaded, np.zeros(4, int), jax.random.key(0)
    keys = [jax.random.fold_in(key, step) for step in (0, 1)]
    drawn = [np.asarray(loaded.task.answer(loaded.params, chosen, each).sequences) for each in keys]
    assert not np.array_equal(drawn[0], drawn[1])
    assert len({row.tobytes() for row in drawn[0]}) > 1, "rows of a batch must draw independently"


def test_terminated_run_refuses_another_config_and_resumes_bit_for_bit(
    make_config: MakeConfig, straight: RunFolder, tmp_path: Path
) -> None:
    broken = make_config(reward=f"{REWARDS}:terminate_at_third_call", out=str(tmp_path / "broken"))
    with pytest.raises(Interrupted, match="--resume"):
        train_online(broken)
    assert [record["step"] for record in numbers(RunFolder(tmp_path / "broken"))] == [1, 2]
    with pytest.raises(InputError, match=r"seed: 0 in the run, 7 now"):
        train_online(replace(broken, seed=7, resume=True))
    resumed = train_online(replace(broken, resume=True))
    assert numbers(resumed) == numbers(straight)
    chex.assert_trees_all_equal(
        from_pretrained(resumed.model_folder, head="value")[1], from_pretrained(straight.model_folder, head="value")[1]
    )
    assert [s["completion"] for s in read_jsonl(resumed.samples_file)] == [
        s["completion"] for s in read_jsonl(straight.samples_file)
    ]


def test_failing_reward_saves_the_state_before_it(make_config: MakeConfig, straight: RunFolder, tmp_path: Path) -> None:
    # The samples are scored by the first call, the first update by the second, and again by the third.
    config = make_config(reward=f"{REWARDS}:fail_at_second_and_fourth_call")
    for num_done in (0, 1):
        with pytest.raises(InputError, match="scorer is out of order"):
            train_online(replace(config, resume=num_done > 0))
        saved = RunFolder(tmp_path / "run").checkpoints_folder.glob("[0-9]*")
        assert max(int(path.name) for path in saved) == num_done
    assert numbers(train_online(replace(config, resume=True))) == numbers(straight)


def test_divergence_names_the_last_good_checkpoint(make_config: MakeConfig) -> None:
    config = make_config(reward=f"{REWARDS}:huge_at_third_call", save_every=1)
    with pytest.raises(TrainingDivergedError, match=r"update 2: .*last good checkpoint is .*checkpoints/1"):
        train_online(config)


def test_divergence_in_the_first_update_names_the_start(make_config: MakeConfig) -> None:
    with pytest.raises(TrainingDivergedError, match=r"update 1: .*checkpoints/0"):
        train_online(make_config(reward=f"{REWARDS}:huge"))


def test_separate_value_network_learns_with_a_headless_policy_and_a_fixed_kl_coefficient_stays(
    make_config: MakeConfig, byte_model: Path
) -> None:
    config = make_config(value_model=str(byte_model), num_updates=2, kl=KLConfig(coefficient=0.3, target=None))
    loaded = load(config)
    params = loaded.params
    state, _ = make_update(loaded)(loaded.init_state(), 0)
    value = state.ppo.params["value"]
    assert jnp.any(value["score"]["kernel"] != params["value"]["score"]["kernel"])
    assert jnp.any(value["backbone"]["wte"]["embedding"] != params["value"]["backbone"]["wte"]["embedding"])
    assert "value_head" not in state.ppo.params["policy"]
    folder = train_online(config)
    np.testing.assert_allclose(read_metrics(folder)["kl/coefficient"].values, 0.3, rtol=1e-6)
    assert not (folder.model_folder / "value_head.safetensors").exists()
    from_pretrained(folder.path / "value_model", head="reward")


def test_answers_without_a_stop_token_get_the_missing_stop_score(make_config: MakeConfig) -> None:
    answers = AnswerConfig(max_new_tokens=5, missing_stop_score=-1.0, score_at="after_end")
    loaded = load(make_config(answers=answers))
    task = loaded.task
    generation = task.answer(loaded.params, np.zeros(64, int), jax.random.key(3))
    scores, metrics = task.score(np.zeros(64, int), generation)
    tokens = np.asarray(generation.sequences)[:, -5:]
    has_stop = np.isin(tokens, task.sampling.stop_tokens) & np.asarray(generation.response_mask).astype(bool)
    is_stopped = has_stop.any(axis=-1)
    assert np.all(scores[~is_stopped] == -1.0)
    assert metrics["answer/stopped"] == pytest.approx(is_stopped.mean())


@pytest.mark.parametrize("score_at", ["last_token", "after_end"])
def test_sum_of_rewards_is_score_less_penalty(
    make_config: MakeConfig, first_updates: FirstUpdates, score_at: Any
) -> None:
    metrics = first_updates.metrics[1]
    if score_at == "after_end":
        loaded = load(make_config(answers=AnswerConfig(max_new_tokens=5, score_at=score_at)))
        update = make_update(loaded)
        state, _ = update(loaded.init_state(), 0)
        _, metrics = update(state, 1)
    assert abs(metrics["kl/answer"]) > 1e-4
    penalty = metrics["kl/coefficient"] * metrics["kl/answer"]
    assert metrics["reward/with_penalty"] == pytest.approx(metrics["reward/score"] - penalty, abs=1e-5)


def test_bfloat16_activations_and_remat_train(make_config: MakeConfig, first_updates: FirstUpdates) -> None:
    losses = {("float32", "none"): first_updates.metrics[0]["policy/entropy"]}
    for dtype, remat in (("float32", "full"), ("bfloat16", "none")):
        loaded = load(make_config(dtype=dtype, remat=remat))
        state, metrics = make_update(loaded)(loaded.init_state(), 0)
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state.ppo.params))
        losses[dtype, remat] = metrics["policy/entropy"]
    assert losses["float32", "full"] == pytest.approx(losses["float32", "none"], rel=1e-5)
    assert losses["bfloat16", "none"] == pytest.approx(losses["float32", "none"], rel=1e-2)


def test_reward_rises(make_config: MakeConfig) -> None:
    ppo = PPOConfig(learning_rate=1e-2, num_epochs=2, num_minibatches=2, anneal_updates=0)
    kl, answers = KLConfig(coefficient=0.0, target=None), AnswerConfig(max_new_tokens=5)
    config = make_config(num_updates=25, batch_size=32, ppo=ppo, kl=kl, answers=answers)
    rewards = read_metrics(train_online(config))["reward/mean"].values
    assert np.mean(rewards[-5:]) > np.mean(rewards[:5]) + 0.2


def test_config_yaml_holds_every_setting(straight: RunFolder) -> None:
    saved = straight.read_config()
    assert saved["ppo"]["learning_rate"] == 1e-2
    assert saved["answers"]["stop"] == []
    assert "resume" not in saved
    assert json.dumps(saved)


def test_a_run_without_annealing_can_be_made_longer_but_not_shorter_nor_with_other_prompts_or_rewards(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("ab\nabcde\n")
    ppo = PPOConfig(learning_rate=1e-2, num_epochs=2, num_minibatches=2, anneal_updates=0)
    watched = tmp_path / "watched.py"
    watched.write_text("def zero(prompts, completions, **columns):\n    return [0.0] * len(completions)\n")
    config = make_config(num_updates=2, ppo=ppo, prompts=str(prompts), watch=(f"zero={watched}:zero",))
    train_online(config)
    with pytest.raises(InputError, match="num_updates=1: the run has made 2 already"):
        train_online(replace(config, num_updates=1, resume=True))
    longer = replace(config, num_updates=3, resume=True)
    prompts.write_text("cd\nabcde\n")
    with pytest.raises(InputError, match="prompts changed since the run was started"):
        train_online(longer)
    prompts.write_text("ab\nabcde\n")
    written = watched.read_text()
    watched.write_text(written.replace("0.0", "1.0"))
    with pytest.raises(InputError, match="watched reward zero changed since the run was started"):
        train_online(longer)
    watched.write_text(written)
    folder = train_online(longer)
    assert [record["step"] for record in numbers(folder)] == [1, 2, 3]
    assert [sample["step"] for sample in read_jsonl(folder.samples_file)] == [0, 0, 3, 3]


def test_value_model_of_a_smaller_vocabulary_is_refused(make_config: MakeConfig, tmp_path: Path) -> None:
    write_byte_model(tmp_path / "short", num_layers=1, model_size=16, num_heads=2, context=16)
    with pytest.raises(InputError, match="max_positions=16, but the policy has 32"):
        load(make_config(value_model=str(tmp_path / "short")))


def test_an_annealed_run_cannot_be_made_longer(straight: RunFolder, straight_config: PPORunConfig) -> None:
    with pytest.raises(InputError, match="num_updates: 4 in the run, 5 now"):
        train_online(replace(straight_config, num_updates=5, resume=True))
