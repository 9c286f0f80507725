"""Returns and lengths of episodes that are longer than float32 and int32 count."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_lm.rollouts.episodes import init_tracker, take_metrics, track

track_jit = jax.jit(track)
GOES_ON, ENDS = jnp.zeros(2, bool), jnp.ones(2, bool)


def test_returns_and_lengths_by_hand():
    tracker = init_tracker(2)
    for rewards, terminated, truncated in (
        ([1.0, 2.0], [False, True], [False, False]),
        ([3.0, 4.0], [False, False], [True, False]),
        ([5.0, 6.0], [True, False], [True, False]),
    ):
        tracker = track_jit(tracker, jnp.array(rewards), jnp.array(terminated), jnp.array(truncated))
    tracker, metrics = take_metrics(tracker)
    # Ended: 2 (one step), 1 + 3 (two steps), 5 (one step); two of them by termination.
    expected = {"return": 11 / 3, "length": 4 / 3, "terminated": 2 / 3, "count": 3.0}
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[f"episode/{name}"], value, rtol=1e-6)
    assert np.isnan(take_metrics(tracker)[1]["episode/return"])


def test_rewards_of_1_add_up_beyond_2_to_the_24_steps():
    tracker = init_tracker(2)
    returns = tracker.returns._replace(total=jnp.full(2, 2.0**24, jnp.float32))
    tracker = replace(tracker, returns=returns)
    for _ in range(9):
        tracker = track_jit(tracker, jnp.ones(2), GOES_ON, GOES_ON)
    tracker = track_jit(tracker, jnp.ones(2), ENDS, GOES_ON)
    assert float(take_metrics(tracker)[1]["episode/return"]) == 2**24 + 10


def test_rewards_of_a_tenth_add_up_over_a_million_steps():
    """Plain float32 sums give 100,958."""

    def step(tracker, _):
        return track(tracker, jnp.full(2, 0.1), GOES_ON, GOES_ON), None

    tracker = jax.jit(lambda start: jax.lax.scan(step, start, None, length=999_999)[0])(init_tracker(2))
    tracker = track_jit(tracker, jnp.full(2, 0.1), ENDS, GOES_ON)
    np.testing.assert_allclose(take_metrics(tracker)[1]["episode/return"], 1e6 * float(np.float32(0.1)), rtol=1e-6)


def test_lengths_of_long_episodes_that_end_together_do_not_overflow():
    tracker = replace(init_tracker(2), lengths=jnp.full(2, 1_500_000_000, jnp.int32))
    tracker = track_jit(tracker, jnp.zeros(2), ENDS, GOES_ON)
    np.testing.assert_allclose(take_metrics(tracker)[1]["episode/length"], 1_500_000_001, rtol=1e-6)
