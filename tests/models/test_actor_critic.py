"""The memory of a policy against its equations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments import spaces

from jaxrl_lm.models.actor_critic import ActorCritic, memory_width
from jaxrl_lm.models.trunks import TrunkConfig, make_trunk

SIZE = 3


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-x))


def test_an_lstm_follows_its_equations_and_forgets_at_the_start_of_an_episode():
    """c' = f c + i g, h' = o tanh(c'), gates sigmoid (g: tanh) of W x + U h + b.

    Reference: Hochreiter and Schmidhuber, 1997; Gers et al., 2000.
    """
    trunk = make_trunk(TrunkConfig(hidden_sizes=(4,)), spaces.Box(-1.0, 1.0, (2,)))
    model = ActorCritic(trunk=trunk, num_actions=2, memory_size=SIZE, memory_kind="lstm")
    rng = np.random.default_rng(0)
    observations = jnp.asarray(rng.normal(size=(2, 5, 2)), jnp.float32)
    is_first = np.zeros((2, 5), bool)
    is_first[1, 3] = True
    memory = jnp.asarray(rng.normal(size=(2, memory_width("lstm", SIZE))), jnp.float32)
    params = model.init(jax.random.key(0), observations, method="init_all")["params"]
    features = np.asarray(model.bind({"params": params}).policy_trunk(observations))
    outputs, values, last = model.apply(
        {"params": params}, observations, jnp.asarray(is_first), memory, method="unroll"
    )
    weights = jax.tree.map(np.asarray, params["cell"])
    c, h = np.split(np.asarray(memory), 2, axis=-1)
    for t in range(5):
        begins = is_first[:, t, None]
        c, h = np.where(begins, 0, c), np.where(begins, 0, h)
        gates = {
            name: features[:, t] @ weights[f"i{name}"]["kernel"]
            + h @ weights[f"h{name}"]["kernel"]
            + weights[f"h{name}"]["bias"]
            for name in "ifgo"
        }
        c = sigmoid(gates["f"]) * c + sigmoid(gates["i"]) * np.tanh(gates["g"])
        h = sigmoid(gates["o"]) * np.tanh(c)
        policy = h @ np.asarray(params["policy_head"]["kernel"]) + np.asarray(params["policy_head"]["bias"])
        value = h @ np.asarray(params["value_head"]["kernel"]) + np.asarray(params["value_head"]["bias"])
        np.testing.assert_allclose(outputs[:, t], policy, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(values[:, t], value[:, 0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(last, np.concatenate([c, h], -1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("memory_kind", ["gru", "lstm"])
def test_recurrent_weights_start_orthogonal_without_a_qr_decomposition(memory_kind):
    """Batched by `vmap`, QR decompositions can deadlock on CPUs (jaxlib 0.10): five seeds of 256 units did."""
    trunk = make_trunk(TrunkConfig(hidden_sizes=(SIZE,)), spaces.Box(-1, 1, (SIZE,)))
    model = ActorCritic(trunk=trunk, num_actions=2, memory_size=SIZE, memory_kind=memory_kind)

    def init(key):
        return model.init(key, jnp.ones((1, SIZE)), method="init_all")["params"]["cell"]

    assert "householder" not in str(jax.make_jaxpr(init)(jax.random.key(0)))
    for name, layer in jax.jit(init)(jax.random.key(0)).items():
        if name.startswith("h"):
            np.testing.assert_allclose(layer["kernel"].T @ layer["kernel"], np.eye(SIZE), atol=1e-5)
