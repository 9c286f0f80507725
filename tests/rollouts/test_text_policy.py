"""Playing with a cache and reading whole windows give the same log-probabilities and values."""

from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_lm.algorithms.text_ppo import _penalized
from jaxrl_lm.envs import make
from jaxrl_lm.errors import InputError
from jaxrl_lm.rollouts.text_games import _by_token, _by_turn, _Played, collect_turns, make_evaluate, start_games
from jaxrl_lm.rollouts.text_policy import ContextConfig, TextPolicy, Turn, TurnObservations, _pad_left, _positions
from tests.models import tiny

NUM_GAMES, NUM_TURNS, DISCOUNT, TRACE_DECAY = 4, 6, 0.9, 0.8
CONTEXTS = [(1, 0), (3, 0), (4, 2), (2, 1), (6, 0)]


@cache
def world(max_steps: int = 4):
    """A maze whose walls alone are told, with short episodes."""
    return make("TextMaze-v0", observed="partially", layout="umaze", max_steps=max_steps)


@cache
def model_of(family: str):
    """A tiny random model of 257 tokens with a value head that is not zero."""
    model, params = tiny.random_model(
        family, head="value", vocab_size=300, max_position_embeddings=512, n_positions=512
    )
    kernel = params["value_head"]["kernel"]
    head = {**params["value_head"], "kernel": jax.random.normal(jax.random.key(7), kernel.shape)}
    return model, {**params, "value_head": head}


def play(family: str, context: tuple[int, int], unit: str = "token", *, seed: int = 0, rounds: int = 2):
    """The policy, and the trajectory of the last of some rollouts."""
    env, env_params = world()
    model, params = model_of(family)
    policy = TextPolicy(
        model=model,
        context=ContextConfig(turns=context[0], kept=context[1], temperature=0.7),
        observation_size=env.observation_space().shape[0],
        answer_size=env.action_space().shape[0],
        stops=tuple(range(0, 257, 4)),  # so that random answers have several lengths
    )
    state = start_games(env, policy, jax.random.key(seed), NUM_GAMES, env_params)

    @jax.jit
    def collect(params, state, key):
        return collect_turns(
            env,
            policy,
            params,
            env_params,
            state,
            key,
            num_turns=NUM_TURNS,
            unit=unit,
            discount=DISCOUNT,
            trace_decay=TRACE_DECAY,
        )

    trajectory = None
    for number in range(rounds):
        state, trajectory = collect(params, state, jax.random.key(10 + number))
    return policy, params, trajectory, state


@pytest.mark.parametrize(
    ("family", "context", "unit"),
    [*(("llama", context, "token") for context in CONTEXTS), ("gpt2", (4, 2), "turn"), ("gpt2", (1, 0), "token")],
)
def test_evaluate_gives_what_playing_gave(family: str, context: tuple[int, int], unit: str) -> None:
    policy, params, trajectory, _ = play(family, context, unit)
    found = jax.jit(make_evaluate(policy, unit))(params, trajectory.observations, trajectory.actions)
    mask = np.asarray(trajectory.mask) > 0
    assert mask.any()
    for name in ("log_probs", "values"):
        ours, theirs = np.asarray(getattr(found, name))[mask], np.asarray(getattr(trajectory, name))[mask]
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=2e-5, err_msg=name)
    assert np.ptp(np.asarray(trajectory.values)[mask]) > 0.1


@pytest.mark.parametrize("context", [(4, 2), (6, 0)])
def test_what_is_remembered_matters_and_what_is_forgotten_does_not(context: tuple[int, int]) -> None:
    policy, params, trajectory, _ = play("llama", context)
    evaluate = jax.jit(policy.evaluate)
    answers = trajectory.actions.reshape(NUM_GAMES, NUM_TURNS, -1)
    observations = trajectory.observations
    before = evaluate(params, observations, answers).log_probs
    changed = observations.tokens.at[:, 2, 0].set(65)
    after = evaluate(params, replace(observations, tokens=changed), answers).log_probs
    is_same = np.all(np.asarray((before == after) | (answers < 0)), axis=(0, 2))
    is_seen = np.zeros(NUM_TURNS, bool)
    windows = range(0, NUM_TURNS, context[0] - context[1])
    for first in windows:  # new turns of a window read its kept ones
        new = range(first, first + context[0] - context[1])
        if first - context[1] <= 2 <= new[-1]:
            is_seen[[turn for turn in new if turn >= 2]] = True
    assert not is_same[2]
    assert np.all(is_same[~is_seen])


def test_an_episode_does_not_see_the_one_before() -> None:
    policy, params, trajectory, _ = play("llama", (6, 0))
    evaluate = jax.jit(policy.evaluate)
    answers = trajectory.actions.reshape(NUM_GAMES, NUM_TURNS, -1)
    observations = trajectory.observations
    before = evaluate(params, observations, answers)
    changed = replace(observations, tokens=observations.tokens.at[:, 0, 0].set(65))
    after = evaluate(params, changed, answers)
    is_first = np.asarray(observations.is_first)
    assert is_first[:, 1:].any()
    for game, turn in zip(*np.nonzero(is_first[:, 1:]), strict=True):
        is_token = np.asarray(answers[game]) >= 0
        is_token[: turn + 1] = False
        np.testing.assert_array_equal(before.log_probs[game][is_token], after.log_probs[game][is_token])


def test_the_discount_of_a_token_is_that_of_its_turn_at_its_end() -> None:
    _, _, tokens, _ = play("gpt2", (1, 0), "token")
    _, _, turns, _ = play("gpt2", (1, 0), "turn")
    shape = (NUM_GAMES, NUM_TURNS, -1)
    mask = np.asarray(tokens.mask).reshape(shape)
    lengths = mask.sum(axis=-1).astype(int)
    assert lengths.min() >= 1
    names = ("discounts", "traces", "rewards", "next_values")
    found = {name: np.asarray(getattr(tokens, name)).reshape(shape) for name in (*names, "values")}
    for game in range(NUM_GAMES):
        for turn in range(NUM_TURNS):
            last = lengths[game, turn] - 1
            of_turn = {name: each[game, turn] for name, each in found.items()}
            np.testing.assert_array_equal(of_turn["discounts"][:last], 1.0)
            np.testing.assert_array_equal(of_turn["traces"][:last], np.float32(TRACE_DECAY))
            np.testing.assert_array_equal(of_turn["rewards"][:last], 0.0)
            np.testing.assert_array_equal(of_turn["next_values"][:last], of_turn["values"][1 : last + 1])
            for name in names:
                assert of_turn[name][last] == np.asarray(getattr(turns, name))[game, turn], name
    np.testing.assert_allclose(
        np.asarray(tokens.log_probs).reshape(shape).sum(axis=-1), np.asarray(turns.log_probs), rtol=1e-6
    )


def test_greedy_play_does_not_depend_on_keys_or_neighbours() -> None:
    env, env_params = world()
    policy, params, _, state = play("llama", (4, 2))
    observations = state.acting.observations
    whole = policy.act(params, observations, state.is_first, state.window, None)
    one = jax.tree.map(lambda leaf: leaf[1:2], (observations, state.is_first, state.window))
    alone = policy.act(params, *one, None)
    np.testing.assert_array_equal(whole.tokens[1], alone.tokens[0])
    del env, env_params


def test_observations_are_moved_to_the_right() -> None:
    tokens = jnp.array([[5, 6, -1, -1], [1, 2, 3, 4], [-1, -1, -1, -1]])
    assert _pad_left(tokens).tolist() == [[-1, -1, 5, 6], [1, 2, 3, 4], [-1, -1, -1, -1]]


def test_positions_count_tokens_of_a_segment_only() -> None:
    segments = jnp.array([[0, 1, 1, 0, 1, 2, 0, 2, 0], [0, 0, 3, 3, 0, 0, 4, 4, 4]])
    assert _positions(segments).tolist() == [[0, 0, 1, 0, 2, 0, 0, 1, 0], [0, 0, 0, 1, 0, 0, 0, 1, 2]]


@pytest.mark.usefixtures("as_users_call")
def test_contexts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match=r"context\.kept=2 must be below context\.turns=2"):
        ContextConfig(turns=2, kept=2)
    model, _ = model_of("gpt2")
    with pytest.raises(InputError, match=r"context\.turns=100 of up to 60 tokens exceed the model's context of 512"):
        TextPolicy(model=model, context=ContextConfig(turns=100), observation_size=50, answer_size=10, stops=(10,))


def test_turns_that_end_are_cut_or_go_on_by_hand() -> None:
    """Game 0 terminates in its first turn, game 1 is cut there, game 2 goes on."""
    ended, cut = jnp.array([[True, False], [False, False], [False, False]]), jnp.array([[False], [True], [False]])
    values = jnp.array([[[1.0, 1.5], [2.0, 2.5]], [[3.0, 3.5], [4.0, 4.5]], [[5.0, 5.5], [6.0, 6.5]]])
    tokens = jnp.array([[[7, 8], [7, -1]], [[7, 8], [7, 8]], [[7, -1], [7, 8]]])
    played = _Played(
        observations=jnp.zeros((3, 2, 1), jnp.int32),
        is_first=jnp.zeros((3, 2), bool),
        turn=Turn(tokens=tokens, log_probs=jnp.where(tokens >= 0, -0.5, 0.0), values=values, window=None),
        rewards=jnp.arange(6.0).reshape(3, 2),
        terminated=ended,
        is_done=ended | jnp.pad(cut, ((0, 0), (0, 1))),
        final_values=jnp.array([[0.0, 0.0], [9.0, 0.0], [0.0, 0.0]]),
    )
    last = jnp.array([10.0, 20.0, 30.0])
    seen = TurnObservations(tokens=played.observations)
    turns = _by_turn(seen, played, last, 0.9, 0.8)
    np.testing.assert_allclose(turns.discounts, [[0.0, 0.9], [0.9, 0.9], [0.9, 0.9]])
    np.testing.assert_allclose(turns.traces, [[0.0, 0.8], [0.0, 0.8], [0.8, 0.8]])
    np.testing.assert_allclose(turns.next_values[0, 1:], [10.0])
    np.testing.assert_allclose(turns.next_values[1:], [[9.0, 20.0], [6.0, 30.0]])
    np.testing.assert_allclose(turns.log_probs, [[-1.0, -0.5], [-1.0, -1.0], [-0.5, -1.0]])
    steps = _by_token(seen, played, last, 0.9, 0.8)
    np.testing.assert_allclose(steps.discounts[0, :3], [1.0, 0.0, 0.9])
    np.testing.assert_allclose(steps.next_values[1], [3.5, 9.0, 4.5, 20.0])
    np.testing.assert_allclose(steps.next_values[2, jnp.array([0, 2, 3])], [6.0, 6.5, 30.0])
    np.testing.assert_allclose(steps.rewards, [[0, 0, 1, 0], [0, 2, 0, 3], [4, 0, 0, 5]])
    np.testing.assert_allclose(steps.mask, [[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 1, 1]])


@pytest.mark.usefixtures("as_users_call")  # stand-ins have other types
@pytest.mark.parametrize("unit", ["token", "turn"])
def test_the_kl_penalty_is_taken_from_the_reward_of_its_step(unit: str) -> None:
    policy, params, trajectory, _ = play("gpt2", (1, 0), unit)
    reference = jax.tree.map(lambda leaf: 0.9 * leaf, params)
    config = SimpleNamespace(num_envs=NUM_GAMES, num_steps=NUM_TURNS, unit=unit)
    state = SimpleNamespace(reference=reference, hyperparams=SimpleNamespace(kl_coefficient=0.3))
    found, metrics = _penalized(SimpleNamespace(policy=policy, config=config), state, trajectory)
    theirs = make_evaluate(policy, unit)(reference, trajectory.observations, trajectory.actions).log_probs
    divergence = np.where(np.asarray(trajectory.mask) > 0, np.asarray(trajectory.log_probs - theirs), 0.0)
    np.testing.assert_allclose(found.rewards, trajectory.rewards - 0.3 * divergence, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(metrics["kl/turn"], divergence.sum() / (NUM_GAMES * NUM_TURNS), rtol=1e-4)
    assert np.abs(divergence).max() > 0.1
