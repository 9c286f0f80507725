"""Environments from files of their own, and options of environments that are not ours."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_lm.envs import make, reset_batch, step_batch
from jaxrl_lm.envs.custom import file_of
from jaxrl_lm.errors import InputError

FILE = str(Path(__file__).with_name("own_environments.py"))


def test_a_class_or_a_function_of_a_file_makes_an_environment():
    env, params = make(f"{FILE}:Corridor", length=4, bonus=2)
    assert (env.length, params.bonus, params.max_steps_in_episode) == (4, 2.0, 10)
    env, params = make(f"{FILE}:make_corridor", max_steps_in_episode=7)
    assert (env.length, params.max_steps_in_episode) == (5, 7)
    _, states = reset_batch(env, jax.random.key(0), 3, params)
    result = step_batch(env, jax.random.key(1), states, jnp.ones(3, int), params)
    np.testing.assert_allclose(result.observations, np.full((3, 1), 0.2), rtol=1e-6)


def test_a_path_may_be_relative_and_other_ids_are_no_files(monkeypatch):
    monkeypatch.chdir(Path(FILE).parent)
    assert make("own_environments.py:Corridor")[0].length == 3
    assert file_of("CartPole-v1") is file_of("model:x") is file_of("a.py") is None


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("FiveValues", ["step returns 5 values", "gymnax 1's step returns six values", "final_observation"]),
        ("OtherShape", ["shape (2,)", "observation_space says shape (1,)"]),
        ("OtherState", ["state", "int32()", "float32()"]),
        ("Raises", ["reset raised RuntimeError: no map of the corridor"]),
        ("NOT_CALLABLE", ["has no class or function 'NOT_CALLABLE'", "Corridor"]),
        ("Missing", ["has no class or function 'Missing'", "make_corridor"]),
        ("returns_none", ["cannot be made"]),
    ],
)
def test_what_does_not_fit_is_said_with_the_file_and_without_a_traceback(name, words):
    with pytest.raises(InputError) as caught:
        make(f"{FILE}:{name}")
    for word in [FILE, *words]:
        assert word in str(caught.value)


def test_a_file_that_is_missing_or_cannot_be_imported_is_named(tmp_path):
    with pytest.raises(InputError, match=r"there is no file .*nowhere\.py"):
        make(f"{tmp_path}/nowhere.py:Env")
    (tmp_path / "broken.py").write_text("import nothing_of_this_name")
    with pytest.raises(InputError, match=r"importing .*broken\.py raised ModuleNotFoundError"):
        make(f"{tmp_path}/broken.py:Env")


@pytest.mark.parametrize(
    ("env_id", "options", "field", "value"),
    [
        ("CartPole-v1", {"max_steps_in_episode": 100, "gravity": 5}, "gravity", 5.0),
        ("MemoryChain-bsuite", {"memory_length": 12, "num_bits": 2}, "memory_length", 12),
        ("FrozenLake-misc", {"max_steps_in_episode": 9}, "max_steps_in_episode", 9),
        ("Asterix-MinAtar", {"ramping": False}, "ramping", False),
        ("Acrobot-v1", {"available_torque": [-2, 0, 2]}, "available_torque", [-2, 0, 2]),
    ],
)
def test_fields_of_gymnax_parameters_are_options(env_id, options, field, value):
    _, params = make(env_id, **options)
    np.testing.assert_array_equal(getattr(params, field), value)
    assert type(getattr(params, field)) is type(getattr(make(env_id)[1], field))


@pytest.mark.parametrize(
    ("env_id", "options", "words"),
    [
        ("CartPole-v1", {"gravty": 1}, ["no option 'gravty'", "max_steps_in_episode", "gravity"]),
        ("FourRooms-misc", {"visual": True}, ["no option 'visual'", "use_visual_obs", "fail_prob"]),
        ("CartPole-v1", {"max_steps_in_episode": 2.5}, ["max_steps_in_episode=2.5 must be a whole number"]),
        ("CartPole-v1", {"max_steps_in_episode": 0}, ["max_steps_in_episode=0 must be at least 1"]),
        ("CartPole-v1", {"gravity": "high"}, ["gravity='high' must be a number"]),
        ("CartPole-v1", {"gravity": float("nan")}, ["gravity=nan must be a number"]),
        ("Asterix-MinAtar", {"ramping": 3}, ["ramping=3 must be true or false"]),
        ("Acrobot-v1", {"available_torque": [1, 2]}, ["available_torque=[1, 2] must be numbers of shape (3,)"]),
        ("MetaMaze-misc", {"maze_size": 8}, ["maze_size", "AssertionError"]),
        ("DeepSea-bsuite", {"size": 0}, ["DeepSea-bsuite", "division by zero"]),
        ("Catch-bsuite", {"rows": 2.5}, ["Catch-bsuite", "2.5"]),
        ("Catch-bsuite", {"rows": -1}, ["Catch-bsuite", "nonnegative"]),
    ],
)
def test_wrong_options_of_gymnax_environments_are_refused_without_a_traceback(env_id, options, words):
    with pytest.raises(InputError) as caught:
        make(env_id, **options)
    for word in words:
        assert word in str(caught.value)


def test_a_constructor_that_raises_is_an_error_of_the_users(monkeypatch):
    from gymnax.utils import load_mnist

    def fail():
        raise OSError("no connection")

    monkeypatch.setattr(load_mnist, "load_mnist", fail)
    with pytest.raises(InputError, match="MNISTBandit-bsuite' cannot be made: OSError: no connection"):
        make("MNISTBandit-bsuite")
