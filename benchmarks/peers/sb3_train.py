"""Stable-Baselines3's PPO with its default settings: ENV with NUM_ENVS environments x NUM_STEPS, one update per turn.

    python sb3_train.py ENV NUM_ENVS NUM_STEPS

Runs in its own interpreter, in alternation (see turns.py).
"""

import importlib.metadata
import sys
import time

import turns
from stable_baselines3 import PPO  # pyright: ignore[reportMissingImports]
from stable_baselines3.common.env_util import make_vec_env  # pyright: ignore[reportMissingImports]


def main(env: str, num_envs: int, num_steps: int) -> None:
    model = PPO("MlpPolicy", make_vec_env(env, num_envs), n_steps=num_steps, device="cpu", seed=0)
    while turns.wait_for_turn():
        start = time.perf_counter()
        model.learn(num_envs * num_steps, reset_num_timesteps=False)
        turns.report(start)
    turns.finish({name: importlib.metadata.version(name) for name in ("stable-baselines3", "torch", "gymnasium")})


if __name__ == "__main__":
    env_id, envs, steps = sys.argv[1:]
    main(env_id, int(envs), int(steps))
