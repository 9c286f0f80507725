"""PPO solves two tiny worlds whose values are known."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_lm.algorithms import PPOConfig, make_ppo
from jaxrl_lm.types import PyTree, Trajectory
from tests.algorithms.fixtures import QUICK, evaluate

CONFIG = PPOConfig(
    learning_rate=0.03,
    num_epochs=4,
    num_minibatches=4,
    value_coefficient=1.0,
    value_loss="huber",
    value_clip_range=1.0,
    max_grad_norm=0.5,
)
BATCH = 64


def learn(rollout: Any, num_states: int, num_updates: int) -> tuple[np.ndarray, np.ndarray]:
    """Action probabilities `[S, A]` and values `[S]` of a table after some updates on fresh rollouts."""
    algorithm = make_ppo(CONFIG, evaluate)

    def train(key: jax.Array) -> PyTree:
        params = {"logits": jnp.zeros((num_states, 2)), "values": jnp.zeros(num_states)}

        def one_update(state: PyTree, key: jax.Array) -> tuple[PyTree, None]:
            rollout_key, update_key = jax.random.split(key)
            return algorithm.update(state, rollout(state.params, rollout_key), update_key)[0], None

        state = algorithm.init(params, key)
        return jax.lax.scan(one_update, state, jax.random.split(key, num_updates))[0].params

    params = jax.jit(train, compiler_options=QUICK)(jax.random.key(3))
    return np.array(jax.nn.softmax(params["logits"])), np.array(params["values"])


PAY = np.array([[0.9, 0.2], [0.1, 0.6]], np.float32)  # chance of a reward of 1, by context and arm


def bandit_rollout(params: PyTree, key: jax.Array) -> Trajectory:
    context_key, action_key, pay_key = jax.random.split(key, 3)
    contexts = jax.random.randint(context_key, (BATCH, 1), 0, 2)
    actions = jax.random.categorical(action_key, params["logits"][contexts])
    evaluation = evaluate(params, contexts, actions)
    zeros, ones = jnp.zeros((BATCH, 1)), jnp.ones((BATCH, 1))
    return Trajectory(
        observations=contexts,
        actions=actions,
        log_probs=evaluation.log_probs,
        values=evaluation.values,
        rewards=jax.random.bernoulli(pay_key, jnp.asarray(PAY)[contexts, actions]).astype(jnp.float32),
        discounts=zeros,
        traces=zeros,
        next_values=zeros,
        mask=ones,
        value_mask=ones,
    )


def test_a_contextual_bandit_is_solved_and_its_pay_known():
    probs, values = learn(bandit_rollout, num_states=2, num_updates=100)
    assert probs[0, 0] > 0.95
    assert probs[1, 1] > 0.95
    np.testing.assert_allclose(values, [0.9, 0.6], atol=0.1)


GAMMA, LAMBDA = 0.9, 0.95
LENGTH = 5  # states 0..4 in a row, left is 0 and right is 1; to the right of the last lies the goal
NUM_STEPS = 5  # the time limit: from the first state, only a straight walk arrives


def chain_rollout(params: PyTree, key: jax.Array) -> Trajectory:
    """Walks from anywhere, of reward 1 at the goal; steps after it are masked."""
    start_key, *step_keys = jax.random.split(key, NUM_STEPS + 1)
    states = [jax.random.randint(start_key, (BATCH,), 0, LENGTH)]
    actions = []
    for step_key in step_keys:
        here = jnp.minimum(states[-1], LENGTH - 1)
        actions.append(jax.random.categorical(step_key, params["logits"][here]))
        moved = jnp.maximum(states[-1] + 2 * actions[-1] - 1, 0)
        states.append(jnp.where(states[-1] == LENGTH, LENGTH, moved))
    visited, taken = jnp.stack(states, axis=1), jnp.stack(actions, axis=1)
    before, after = visited[:, :-1], visited[:, 1:]
    evaluation = evaluate(params, jnp.minimum(before, LENGTH - 1), taken)
    is_alive = (before < LENGTH).astype(jnp.float32)
    is_arrival = (after == LENGTH) & (before < LENGTH)
    discounts = jnp.where(after == LENGTH, 0.0, GAMMA)
    is_last = jnp.arange(NUM_STEPS) == NUM_STEPS - 1
    return Trajectory(
        observations=jnp.minimum(before, LENGTH - 1),
        actions=taken,
        log_probs=evaluation.log_probs,
        values=evaluation.values,
        rewards=is_arrival.astype(jnp.float32),
        discounts=discounts,
        traces=jnp.where(is_last | (after == LENGTH), 0.0, LAMBDA),
        next_values=params["values"][jnp.minimum(after, LENGTH - 1)],
        mask=is_alive,
        value_mask=is_alive,
    )


def test_a_chain_is_walked_straight_and_its_discounted_values_known():
    probs, values = learn(chain_rollout, num_states=LENGTH, num_updates=150)
    assert np.all(probs[:, 1] > 0.95)
    # A time limit is not death: the value of the first state would be less were it taken for one.
    np.testing.assert_allclose(values, GAMMA ** np.arange(LENGTH - 1, -1, -1.0), atol=0.05)
