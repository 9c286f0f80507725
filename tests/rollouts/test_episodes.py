"""Returns and lengths of episodes that are longer than float32 and int32 count."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_lm.rollouts.episodes import init_tracker, take_metrics, track

track_jit = jax.jit(track)
GOES_ON, ENDS = jnp.zeros(2, bool), jnp.ones(2, bool)


STEPS = (
    ([1.0, 2.0], [False, True], [False, False]),
    ([3.0, 4.0], [False, False], [True, False]),
    ([5.0, 6.0], [True, False], [True, False]),
)


def test_returns_and_lengths_by_hand():
    tracker = init_tracker(2)
    for rewards, terminated, truncated in STEPS:
        tracker = track_jit(tracker, jnp.array(rewards), jnp.array(terminated), jnp.array(truncated))
    tracker, metrics = take_metrics(tracker)
    # Ended: 2 (one step), 1 + 3 (two steps), 5 (one step); two of them by termination.
    expected = {"return": 11 / 3, "length": 4 / 3, "terminated": 2 / 3, "count": 3.0}
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[f"episode/{name}"], value, rtol=1e-6)
    assert np.isnan(take_metrics(tracker)[1]["episode/return"])


def test_an_episode_is_counted_whole_wherever_metrics_are_taken():
    for cuts in range(8):
        tracker, total, count = init_tracker(2), 0.0, 0.0
        for number, (rewards, terminated, truncated) in enumerate((*STEPS, ([7.0, 8.0], [True, True], [False, False]))):
            tracker = track_jit(tracker, jnp.array(rewards), jnp.array(terminated), jnp.array(truncated))
            if number == 3 or cuts >> number & 1:
                tracker, metrics = take_metrics(tracker)
                total += float(jnp.nan_to_num(metrics["episode/return"]) * metrics["episode/count"])
                count += float(metrics["episode/count"])
        # Ended besides those above: 7, and 4 + 6 + 8 of the second environment.
        np.testing.assert_allclose((total, count), (11 + 7 + 18, 5), rtol=1e-6)


def test_rewards_of_1_add_up_beyond_2_to_the_24_steps():
    tracker = init_tracker(2)
    returns = tracker.returns._replace(total=jnp.full(2, 2.0**24, jnp.float32))
    tracker = replace(tracker, returns=returns)
    for _ in range(9):
        tracker = track_jit(tracker, jnp.ones(2), GOES_ON, GOES_ON)
        tracker, _ = take_metrics(tracker)
    tracker = track_jit(tracker, jnp.ones(2), ENDS, GOES_ON)
    assert float(take_metrics(tracker)[1]["episode/return"]) == 2**24 + 10


def test_rewards_of_a_tenth_add_up_over_ten_million_steps():
    """10,000 updates of 1,000 steps: as exact as one update's sum. Plain float32 sums give 1,087,937."""

    def step(tracker, _):
        return track(tracker, jnp.full(1, 0.1), GOES_ON[:1], GOES_ON[:1]), None

    def update(tracker, _):
        return take_metrics(jax.lax.scan(step, tracker, None, length=1000)[0])[0], None

    tracker = jax.jit(lambda start: jax.lax.scan(update, start, None, length=10_000)[0])(init_tracker(1))
    tracker = track(tracker, jnp.zeros(1), ENDS[:1], GOES_ON[:1])
    np.testing.assert_allclose(take_metrics(tracker)[1]["episode/return"], 1e6, rtol=2e-5)


def test_lengths_of_long_episodes_that_end_together_do_not_overflow():
    tracker = replace(init_tracker(2), lengths=jnp.full(2, 1_500_000_000, jnp.int32))
    tracker = track_jit(tracker, jnp.zeros(2), ENDS, GOES_ON)
    np.testing.assert_allclose(take_metrics(tracker)[1]["episode/length"], 1_500_000_001, rtol=1e-6)
