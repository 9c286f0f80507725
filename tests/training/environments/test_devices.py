"""Training spread over devices gives the numbers of one device; eight virtual ones, in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

PROGRAM = """
import json, sys
from pathlib import Path
import jax
from jaxrl_lm.algorithms.ppo import PPOConfig
from jaxrl_lm.models.trunks import TrunkConfig
from jaxrl_lm.rollouts.agent_policy import PolicyConfig
from jaxrl_lm.storage import RunFolder
from jaxrl_lm.training.environments.task import load_task
from jaxrl_lm.training.environments.train import make_chunk
from jaxrl_lm.training.environments.algorithms import TrainDQNConfig, TrainPPOConfig

out = Path(sys.argv[1])
results = {}
for num_devices in (1, 8):
    config = TrainPPOConfig(
        out=str(out / str(num_devices)), env="CartPole-v1", total_steps=1024, chunk_updates=2, num_envs=32, num_steps=8,
        num_seeds=2, num_devices=num_devices, eval_episodes=8,
        policy=PolicyConfig(trunk=TrunkConfig(hidden_sizes=(8,))),
        ppo=PPOConfig(learning_rate=1e-2, num_epochs=2, num_minibatches=2, minibatch_unit="steps"),
    )
    task, state = load_task(config)
    spread = len(state.learners.rollout.acting.observations.sharding.device_set)
    state, numbers = make_chunk(task, RunFolder.create(out / str(num_devices), {}))(state, 0)
    state, numbers = make_chunk(task, RunFolder(out / str(num_devices)))(state, 1)
    results[num_devices] = {"devices": spread, **{k: v for k, v in numbers.items() if not k.startswith("time/")}}
dqn = TrainDQNConfig(
    out="", env="CartPole-v1", num_envs=16, steps_per_update=4, num_devices=8, learning_starts=64, batch_size=16,
    buffer_size=256, is_prioritized=True, trunk=TrunkConfig(hidden_sizes=(8,)),
)
replay = load_task(dqn)[1].learners.replay
results["replay"] = [list(leaf.sharding.spec) for leaf in (replay.steps.observations, replay.tree[-1])]
print(json.dumps(results))
"""


def test_eight_devices_give_the_numbers_of_one(tmp_path: Path) -> None:
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    one, eight, replay = json.loads(done.stdout.splitlines()[-1]).values()
    # 16 slots of 16 environments: spread over these, not over those; the sum tree is on every device.
    assert replay == [[None, None, "data"], []]
    assert (one.pop("devices"), eight.pop("devices")) == (1, 8)
    assert one.keys() == eight.keys()
    for name, value in one.items():
        np.testing.assert_allclose(eight[name], value, rtol=1e-3, atol=1e-5, err_msg=name)
