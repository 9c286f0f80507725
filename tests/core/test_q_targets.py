"""Targets of action values against loops, hand-worked numbers and the identities that tie them together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl_lm.core import q_losses, returns

TOLERANCE = {"rtol": 1e-6, "atol": 1e-6}
BATCH, NUM_ACTIONS = 7, 4
NAMES = ("q_learning_targets", "double_q_targets", "sarsa_targets", "expected_sarsa_targets")

# Worked by hand: after reward -1 the values are 2 for the first action and 5 for the second; gamma is 0.5.
REWARD, DISCOUNT, Q_T = jnp.float32(-1.0), jnp.float32(0.5), jnp.array([2.0, 5.0])


def make_steps(seed: int) -> dict[str, np.ndarray]:
    """Random steps, of which the third and fourth end their episodes; values take few numbers, so that they tie."""
    rng = np.random.default_rng(seed)
    q_t, q_t_other, q_tm1 = rng.integers(-3, 3, size=(3, BATCH, NUM_ACTIONS)).astype(np.float32)
    probs_t = rng.dirichlet(np.ones(NUM_ACTIONS), size=BATCH).astype(np.float32)
    discount_t = rng.uniform(0.5, 1.0, BATCH).astype(np.float32)
    discount_t[2:4] = 0.0
    r_t = rng.normal(size=BATCH).astype(np.float32)
    a_tm1, a_t = rng.integers(0, NUM_ACTIONS, size=(2, BATCH)).astype(np.int32)
    return {
        "r_t": r_t,
        "discount_t": discount_t,
        "q_t": q_t,
        "q_t_other": q_t_other,
        "q_tm1": q_tm1,
        "probs_t": probs_t,
        "a_tm1": a_tm1,
        "a_t": a_t,
    }


def targets_of(name: str, steps: dict[str, np.ndarray]) -> np.ndarray:
    x = {key: jnp.asarray(value) for key, value in steps.items()}
    extra = {
        "q_learning_targets": (),
        "double_q_targets": (x["q_t_other"],),
        "sarsa_targets": (x["a_t"],),
        "expected_sarsa_targets": (x["probs_t"],),
    }[name]
    return np.asarray(getattr(q_losses, name)(x["r_t"], x["discount_t"], x["q_t"], *extra))


def loop_targets(name: str, steps: dict[str, np.ndarray]) -> np.ndarray:
    out = np.zeros(BATCH)
    for b in range(BATCH):
        q_t = steps["q_t"][b].astype(np.float64)
        if name == "q_learning_targets":
            v_t = max(q_t)
        elif name == "double_q_targets":
            other = list(steps["q_t_other"][b])
            v_t = q_t[other.index(max(other))]
        elif name == "sarsa_targets":
            v_t = q_t[steps["a_t"][b]]
        else:
            v_t = sum(p * q for p, q in zip(steps["probs_t"][b], q_t, strict=True))
        out[b] = steps["r_t"][b] + steps["discount_t"][b] * v_t
    return out


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(3))
def test_targets_equal_the_loop(name, seed):
    steps = make_steps(seed)
    np.testing.assert_allclose(targets_of(name, steps), loop_targets(name, steps), **TOLERANCE)


def test_q_learning_by_hand():
    assert float(q_losses.q_learning_targets(REWARD, DISCOUNT, Q_T)) == -1.0 + 0.5 * 5.0


def test_double_q_learning_by_hand_values_with_one_what_the_other_selects():
    selector = jnp.array([9.0, -9.0])
    assert float(q_losses.double_q_targets(REWARD, DISCOUNT, Q_T, selector)) == -1.0 + 0.5 * 2.0


def test_sarsa_by_hand():
    assert float(q_losses.sarsa_targets(REWARD, DISCOUNT, Q_T, jnp.int32(0))) == -1.0 + 0.5 * 2.0


def test_expected_sarsa_by_hand():
    probs = q_losses.epsilon_greedy_probs(Q_T, 0.5)
    np.testing.assert_allclose(probs, [0.25, 0.75])
    assert float(q_losses.expected_sarsa_targets(REWARD, DISCOUNT, Q_T, probs)) == -1.0 + 0.5 * (
        0.25 * 2.0 + 0.75 * 5.0
    )


def test_equal_best_actions_share_the_greedy_part_by_hand():
    probs = q_losses.epsilon_greedy_probs(jnp.array([1.0, 3.0, 3.0, 0.0]), 0.2)
    np.testing.assert_allclose(probs, [0.05, 0.45, 0.45, 0.05], **TOLERANCE)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_read_after_the_end_of_an_episode(name):
    steps = make_steps(0)
    ended = steps["discount_t"] == 0
    spoiled = steps | {"q_t": np.where(ended[:, None], np.float32(np.nan), steps["q_t"])}
    np.testing.assert_array_equal(targets_of(name, spoiled), targets_of(name, steps))
    np.testing.assert_array_equal(targets_of(name, spoiled)[ended], steps["r_t"][ended])


@pytest.mark.parametrize("seed", range(3))
def test_all_targets_are_q_learnings_where_the_policy_is_greedy(seed):
    steps = make_steps(seed)
    expected = targets_of("q_learning_targets", steps)
    best = np.argmax(steps["q_t"], axis=-1).astype(np.int32)
    greedy = np.asarray(q_losses.epsilon_greedy_probs(jnp.asarray(steps["q_t"]), 0.0))
    same = steps | {"q_t_other": steps["q_t"], "a_t": best, "probs_t": greedy}
    for name in NAMES:
        np.testing.assert_allclose(targets_of(name, same), expected, **TOLERANCE)


@settings(deadline=None, max_examples=50)
@given(
    q=st.lists(st.integers(-2, 2), min_size=1, max_size=6),
    epsilon=st.integers(0, 1000).map(lambda n: n / 1000),
)
def test_epsilon_greedy_is_a_distribution_that_prefers_the_best(q, epsilon):
    probs = np.asarray(q_losses.epsilon_greedy_probs(jnp.array(q, jnp.float32), epsilon))
    best = np.array(q) == max(q)
    np.testing.assert_allclose(probs.sum(), 1.0, rtol=1e-6)
    np.testing.assert_allclose(probs[~best], epsilon / len(q), rtol=1e-6)
    np.testing.assert_allclose(probs[best], epsilon / len(q) + (1 - epsilon) / best.sum(), rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_targets_are_constants_and_what_they_are_made_of_is_not(name):
    x = {key: jnp.asarray(value) for key, value in make_steps(0).items()}
    extra = {"double": x["q_t_other"], "sarsa_": x["a_t"], "expect": x["probs_t"]}.get(name[:6])
    extra = () if extra is None else (extra,)
    slope = jax.grad(lambda q: jnp.sum(getattr(q_losses, name)(x["r_t"], x["discount_t"], q, *extra)))(x["q_t"])
    np.testing.assert_array_equal(slope, np.zeros_like(slope))
    for values in (q_losses.greedy_values, lambda q: q_losses.expected_values(q, x["probs_t"])):
        assert np.any(np.asarray(jax.grad(lambda q, f=values: jnp.sum(f(q)))(x["q_t"])))


def test_traces_by_hand_decay_and_are_replaced():
    traces, one = jnp.zeros((3, 2)), jnp.int32(1)
    for state, action in ((0, 0), (1, 1), (0, 1), (0, 0)):
        traces = q_losses.replacing_traces(traces, state * one, action * one, jnp.float32(0.5))
    # (0, 0) was 1/8 and is replaced by 1, not raised to 9/8.
    np.testing.assert_array_equal(traces, [[1.0, 0.5], [0.0, 0.25], [0.0, 0.0]])


def test_a_decay_of_0_forgets_all_but_the_last_step():
    traces = jnp.ones((2, 3, 2))
    traces = q_losses.replacing_traces(traces, jnp.array([2, 0]), jnp.array([1, 0]), jnp.array([0.0, 1.0]))
    np.testing.assert_array_equal(traces[0], [[0.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    np.testing.assert_array_equal(traces[1], np.ones((3, 2)))


@pytest.mark.parametrize("trace_decay", [0.0, 0.7, 1.0])
def test_errors_spread_by_traces_sum_to_those_of_lambda_returns(trace_decay):
    """The backward view equals the forward view where the table rests and no entry is visited twice."""
    num_steps, gamma = 5, 0.9
    rng = np.random.default_rng(1)
    q = jnp.asarray(rng.normal(size=(num_steps + 1, 2)), jnp.float32)
    actions, rewards = jnp.asarray(rng.integers(0, 2, num_steps), jnp.int32), jnp.asarray(rng.normal(size=num_steps))
    rewards, discounts = rewards.astype(jnp.float32), jnp.full(num_steps, gamma).at[-1].set(0.0)
    traces, moved = jnp.zeros_like(q), jnp.zeros_like(q)
    for t in range(num_steps):
        traces = q_losses.replacing_traces(traces, jnp.int32(t), actions[t], jnp.float32(gamma * trace_decay))
        target = q_losses.q_learning_targets(rewards[t], discounts[t], q[t + 1])
        moved += (target - q[t, actions[t]]) * traces
    lambdas = jnp.full(num_steps, trace_decay)
    forward = returns.lambda_returns(rewards, jnp.max(q[1:], -1), discounts, lambdas, jnp.ones(num_steps))
    steps = jnp.arange(num_steps)
    np.testing.assert_allclose(moved[steps, actions], forward - q[steps, actions], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["q", "sarsa", "expected_sarsa", "double_q"])
def test_lambda_0_gives_the_one_step_targets_and_lambda_1_the_discounted_sum(method):
    """The table of `q_losses`: `next_values` choose the method, traces how far it looks."""
    x = {key: jnp.asarray(value) for key, value in make_steps(1).items()}
    rewards, discounts, q = x["r_t"], x["discount_t"], x["q_t"]
    next_values, targets = {
        "q": (q_losses.greedy_values(q), q_losses.q_learning_targets(rewards, discounts, q)),
        "sarsa": (
            q_losses.values_of_actions(q, x["a_t"]),
            q_losses.sarsa_targets(rewards, discounts, q, x["a_t"]),
        ),
        "expected_sarsa": (
            q_losses.expected_values(q, x["probs_t"]),
            q_losses.expected_sarsa_targets(rewards, discounts, q, x["probs_t"]),
        ),
        "double_q": (
            q_losses.values_of_actions(q, q_losses.greedy_actions(x["q_t_other"])),
            q_losses.double_q_targets(rewards, discounts, q, x["q_t_other"]),
        ),
    }[method]
    ones = jnp.ones(BATCH)
    one_step = returns.lambda_returns(rewards, next_values, discounts, 0 * ones, ones)
    np.testing.assert_allclose(one_step, targets, **TOLERANCE)
    np.testing.assert_allclose(returns.n_step_returns(rewards, next_values, discounts, 1), targets, **TOLERANCE)
    whole = returns.lambda_returns(rewards, next_values, discounts, ones, ones)
    np.testing.assert_allclose(
        whole, returns.n_step_returns(rewards, next_values, discounts, BATCH), rtol=1e-5, atol=1e-5
    )
