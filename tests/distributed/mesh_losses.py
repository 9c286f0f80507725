"""Two updates of learners on one device and on meshes of eight virtual ones; prints what differs as JSON.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.distributed.mesh_losses NAME...
"""

import json
import sys
from functools import cache
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from jaxrl_lm import distributed
from jaxrl_lm.distributed import MeshConfig
from jaxrl_lm.distributed.sharding import shardings_of, state_shardings
from jaxrl_lm.models import logical_axes, stack_layers
from tests.contracts import learners
from tests.models import tiny

MESHES = {
    "data": MeshConfig(data=8, fsdp=1),
    "fsdp": MeshConfig(fsdp=8),
    "fsdp and tensor": MeshConfig(fsdp=4, tensor=2),
    "all": MeshConfig(data=2, fsdp=2, tensor=2),
}
IS_SCANNED = {"fsdp and tensor", "all"}
MICRO_BATCHES = {"all": 4}  # of a minibatch of 8; one device takes it at once
HEADS = {"ppo": "value", "reward-model": "reward"}


@cache
def language_model(head: Any, *, is_scanned: bool = False) -> tuple[Any, Any]:
    """A Llama that every mesh divides."""
    sizes = {"num_key_value_heads": 2, "vocab_size": 104, "num_hidden_layers": 2}
    model, params = tiny.random_model("llama", head=head, **sizes)
    if not is_scanned:
        return model, params
    return model.clone(is_scanned=True), stack_layers(params, model.family.layers)


def two_updates(
    name: str, mesh_config: MeshConfig | None, *, is_scanned: bool, micro_batch_size: int | None = None
) -> tuple[Any, list[dict[str, float]]]:
    """Parameters after two updates, and the metrics of both."""
    learners.language_model = lambda head, lora=None: language_model(head, is_scanned=is_scanned)
    model, params = learners.language_model(HEADS.get(name))
    is_online = name in learners.ONLINE
    changes = {"micro_batch_size": micro_batch_size} if is_online else {}
    case = (learners.online_case if is_online else learners.supervised_case)(name, **changes)
    mesh = None if mesh_config is None else distributed.make_mesh(mesh_config)
    with distributed.use_mesh(mesh):
        state = case.start()
        if mesh is not None:
            axes = shardings_of(logical_axes(model), mesh)
            state = jax.device_put(state, state_shardings(state, params, axes, mesh))
        update, found = distributed.jit_update(case.update), []
        for number in range(2):
            args = case.args(number)
            if is_online:
                reference, generation, scores, key = args
                axes = {part: leaves for part, leaves in logical_axes(model).items() if part in reference}
                reference = distributed.place_params(reference, axes)
                args = (reference, *distributed.place_batch((generation, scores)), key)
            else:
                args = distributed.place_batch(args, num_leading=1)
            state, metrics = update(state, *args)
            found.append({name: float(value) for name, value in metrics.items()})
    return state, found


def compare(name: str) -> dict[str, Any]:
    """For each mesh: devices that hold a part of the parameters, and the largest differences from one device."""
    learners.BATCH = 16
    expected_state, expected = two_updates(name, None, is_scanned=False)
    expected_params = dict.fromkeys((False,), expected_state)
    expected_params[True], _ = two_updates(name, None, is_scanned=True)
    report = {}
    # All shapes for PPO; two that have all axes between them for the others.
    shapes = MESHES if name == "ppo" else {each: MESHES[each] for each in ("fsdp", "all")}
    for mesh_name, config in shapes.items():
        how = {"is_scanned": mesh_name in IS_SCANNED, "micro_batch_size": MICRO_BATCHES.get(mesh_name)}
        state, found = two_updates(name, config, **how)
        leaves = zip(
            jax.tree.leaves(case_params(state)),
            jax.tree.leaves(case_params(expected_params[mesh_name in IS_SCANNED])),
            strict=True,
        )
        flat = flatten_dict(case_params(state))
        weights = [leaf for path, leaf in flat.items() if path[-1] in ("weight", "embedding")]
        report[mesh_name] = {
            "parts": min(leaf.size // leaf.addressable_shards[0].data.size for leaf in weights),
            "params": max(float(np.max(np.abs(np.asarray(a) - np.asarray(b)))) for a, b in leaves),
            "metrics": {
                key: [each[key] for each in found] + [each[key] for each in expected]
                for key in expected[0]
                if not all(
                    np.isclose(a[key], b[key], rtol=2e-4, atol=2e-5) for a, b in zip(found, expected, strict=True)
                )
            },
        }
    return report


def case_params(state: Any) -> Any:
    """The parameters in a learner's state."""
    return state.ppo.params if hasattr(state, "ppo") else state.params


if __name__ == "__main__":
    print(json.dumps({name: compare(name) for name in sys.argv[1:]}))
