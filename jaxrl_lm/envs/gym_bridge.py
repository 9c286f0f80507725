"""Our environments with gymnasium's interfaces, for agents outside JAX: NumPy arrays in and out."""

from functools import partial
from operator import itemgetter
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.vector.utils import batch_space
from gymnax.environments import spaces

from jaxrl_lm.envs.registry import ENVS, make, option_names
from jaxrl_lm.envs.stepping import MaskedObservation, reset_batch, step_batch
from jaxrl_lm.errors import InputError
from jaxrl_lm.types import PyTree


class JaxVectorEnv(gymnasium.vector.VectorEnv[Any, np.ndarray, np.ndarray]):
    """A batch of environments stepped by one compiled program.

    Environments that ended are reset in the same step (gymnasium's `AutoresetMode.SAME_STEP`): the returned
    observations are the first of the new episodes, and `infos["final_obs"]` (objects, None where an episode continues),
    with its mask `infos["_final_obs"]`, holds the last observations of the old ones.

    A `MaskedObservation` becomes a dictionary with `observation` and `action_mask` (int8).
    """

    def __init__(self, env: Any, params: Any, num_envs: int, seed: int) -> None:
        """Compile nothing yet; the first `reset` and `step` do.

        Args:
            env: any environment that `make` returns, or a wrapper of one.
            params: its parameters.
            num_envs: B.
            seed: of a `reset` without one.

        Raises:
            InputError: for fewer than one environment, or spaces other than Discrete and Box.
        """
        if num_envs < 1:
            raise InputError(f"num_envs={num_envs} must be at least 1")
        self.metadata = {"autoreset_mode": gymnasium.vector.AutoresetMode.SAME_STEP, "render_modes": []}
        self.num_envs = num_envs
        self.single_observation_space = _observation_space(env, params)
        self.single_action_space = _gymnasium_space(env.action_space(params))
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.env_params = params
        self._reset = jax.jit(partial(reset_batch, env), static_argnums=1)
        self._step = jax.jit(partial(step_batch, env))
        self._states: PyTree = None
        super().reset(seed=seed)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin new episodes everywhere.

        Args:
            seed: of these episodes and of all that follow; None continues with the generator as it is.
            options: none are known.

        Raises:
            InputError: for any option.
        """
        _refuse(options)
        super().reset(seed=seed)
        self._key, key = jax.random.split(_new_key(self.np_random))
        observations, self._states = self._reset(key, self.num_envs, self.env_params)
        self._num_steps = 0
        return _to_numpy(observations, self.observation_space), {}

    def step(self, actions: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Take an action in each environment.

        Returns:
            Observations, rewards (float32), terminations, truncations, and infos with what ended.

        Raises:
            InputError: for actions of another shape than the action space's, or a step before the first `reset`.
        """
        if self._states is None:
            raise InputError("step came before reset; call reset first")
        acted = np.asarray(actions)
        if acted.shape != self.action_space.shape:
            raise InputError(f"actions have the shape {acted.shape}, but must have {self.action_space.shape}")
        key = jax.random.fold_in(self._key, self._num_steps)
        self._num_steps += 1
        result = self._step(key, self._states, _to_jax(acted, self.single_action_space), self.env_params)
        self._states = result.states
        terminated, truncated = np.array(result.terminated), np.array(result.truncated)
        infos = self._infos(terminated | truncated, result.final_observations)
        observations = _to_numpy(result.observations, self.observation_space)
        return observations, np.array(result.rewards), terminated, truncated, infos

    def _infos(self, is_done: np.ndarray, final_observations: PyTree) -> dict[str, Any]:
        """What gymnasium's SyncVectorEnv puts there: nothing while no episode has ended."""
        if not is_done.any():
            return {}
        final = np.full(self.num_envs, None, dtype=object)
        batched = _to_numpy(final_observations, self.observation_space)
        for index in np.flatnonzero(is_done):
            final[index] = jax.tree.map(itemgetter(index), batched)
        return {"final_obs": final, "_final_obs": is_done, "final_info": {}, "_final_info": is_done.copy()}


class JaxEnv(gymnasium.Env[Any, Any]):
    """One environment; after an episode's end it must be reset, as everywhere in gymnasium."""

    def __init__(self, env: Any, params: Any) -> None:
        """Compile nothing yet; the first `reset` and `step` do.

        Args:
            env: any environment that `make` returns, or a wrapper of one.
            params: its parameters.

        Raises:
            InputError: for spaces other than Discrete and Box.
        """
        self.metadata = {"render_modes": []}
        self.observation_space = _observation_space(env, params)
        self.action_space = _gymnasium_space(env.action_space(params))
        self.env_params = params
        self._reset = jax.jit(env.reset_env)
        self._step = jax.jit(partial(_step_without_reset, env))
        self._state: PyTree = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode; see `JaxVectorEnv.reset`."""
        _refuse(options)
        super().reset(seed=seed)
        observation, self._state = self._reset(_new_key(self.np_random), self.env_params)
        return _to_numpy(observation, self.observation_space), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take an action.

        Raises:
            InputError: for a step before the first `reset`.
        """
        if self._state is None:
            raise InputError("step came before reset; call reset first")
        observation, self._state, reward, terminated, truncated = self._step(
            _new_key(self.np_random), self._state, _to_jax(np.asarray(action), self.action_space), self.env_params
        )
        shown = _to_numpy(observation, self.observation_space)
        return shown, float(reward), bool(terminated), bool(truncated), {}


def make_vec(env_id: str, num_envs: int, seed: int = 0, **options: Any) -> JaxVectorEnv:
    """`num_envs` environments behind gymnasium's vector interface.

    Args:
        env_id: one of `list_ids()`.
        num_envs: B.
        seed: of the episodes, and of the levels where the environment draws any.
        options: of the environment.

    Raises:
        InputError: as `make` does, or for fewer than one environment.
    """
    if "seed" in option_names(env_id):
        options = {**options, "seed": seed}
    env, params = make(env_id, **options)
    return JaxVectorEnv(env, params, num_envs, seed)


def make_single(env_id: str, **options: Any) -> JaxEnv:
    """One environment behind gymnasium's interface; arguments and errors as of `make`."""
    return JaxEnv(*make(env_id, **options))


def register_with_gymnasium() -> None:
    """Make `gymnasium.make` and `gymnasium.make_vec` know our environments; a second call changes nothing.

    jaxrl_lm.envs.gym_bridge.register_with_gymnasium()
    envs = gymnasium.make_vec("Maze-v0", num_envs=1024, size=9)
    """
    for env_id in ENVS:
        if env_id not in gymnasium.registry:
            gymnasium.register(
                env_id,
                entry_point=f"{__name__}:make_single",
                vector_entry_point=f"{__name__}:make_vec",
                kwargs={"env_id": env_id},
            )


def _step_without_reset(env: Any, key: jax.Array, state: PyTree, action: jax.Array, params: PyTree) -> tuple[Any, ...]:
    observation, state, reward, terminated, _ = env.step_env(key, state, action, params)
    return observation, state, reward, terminated, env.is_truncated(state, params)


def _refuse(options: dict[str, Any] | None) -> None:
    if options:
        raise InputError(f"reset takes no options, but got {sorted(options)}; make the environment with them instead")


def _new_key(generator: np.random.Generator) -> jax.Array:
    return jax.random.key(int(generator.integers(2**31)))


def _to_jax(actions: np.ndarray, space: gymnasium.Space[Any]) -> jax.Array:
    # gymnasium's Discrete is int64, which JAX does not take by default.
    return jnp.asarray(actions, jnp.int32 if isinstance(space, gymnasium.spaces.Discrete) else space.dtype)


def _observation_space(env: Any, params: PyTree) -> gymnasium.Space[Any]:
    space = _gymnasium_space(env.observation_space(params))
    shown = jax.eval_shape(env.reset_env, jax.random.key(0), params)[0]
    if not isinstance(shown, MaskedObservation):
        return space
    mask = gymnasium.spaces.MultiBinary(shown.action_mask.shape[-1])
    return gymnasium.spaces.Dict({"observation": space, "action_mask": mask})


def _gymnasium_space(space: spaces.Space) -> gymnasium.Space[Any]:
    if isinstance(space, spaces.Discrete):
        return gymnasium.spaces.Discrete(int(space.n))
    if isinstance(space, spaces.Box):
        dtype = np.dtype(space.dtype)
        low, high = (np.broadcast_to(np.asarray(bound), space.shape).astype(dtype) for bound in (space.low, space.high))
        return gymnasium.spaces.Box(low, high, dtype=dtype.type)
    raise InputError(f"the bridge supports Discrete and Box spaces, not {space}; use this environment from JAX")


def _to_numpy(observations: PyTree, space: gymnasium.Space[Any]) -> Any:
    """Copies (JAX's arrays cannot be written) of the space's own type."""
    if isinstance(space, gymnasium.spaces.Dict):
        return {name: _to_numpy(getattr(observations, name), child) for name, child in space.spaces.items()}
    copied = np.array(observations, dtype=space.dtype)
    return copied[()] if isinstance(space, gymnasium.spaces.Discrete) else copied
