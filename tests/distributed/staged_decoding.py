"""One of two processes that decode a batch in stages on a mesh; process 0 writes the completions.

python -m tests.distributed.staged_decoding PORT PROCESS OUT
"""

import sys

import jax
import numpy as np

from jaxrl_lm import distributed
from jaxrl_lm.distributed import HostsConfig, MeshConfig, hosts
from jaxrl_lm.models import logical_axes
from jaxrl_lm.rollouts import SamplingConfig, decoding, generate
from tests.models import tiny

CONFIG = SamplingConfig(max_new_tokens=12, stop_tokens=tuple(range(0, tiny.VOCAB_SIZE, 6)), pad_token=tiny.PAD_TOKEN)


def completions(mesh: MeshConfig | None) -> tuple[dict[str, np.ndarray], int]:
    """Completions of 4 prompts, 4 of each, and how often the batch became smaller."""
    model, params = tiny.random_model("llama", vocab_size=104, num_key_value_heads=2)
    ids = np.random.default_rng(0).integers(0, tiny.PAD_TOKEN, (4, 5))
    shrink, passed = decoding._shrink, []
    decoding._shrink = lambda *args: passed.append(1) or shrink(*args)
    with distributed.use_mesh(None if mesh is None else distributed.make_mesh(mesh)):
        if mesh is not None:
            params = distributed.place_params(params, logical_axes(model))
        found = generate(model, params, ids, np.ones_like(ids), jax.random.key(1), CONFIG, per_prompt=4)
        on_host = distributed.on_host(found)
    decoding._shrink = shrink
    names = ("sequences", "response_mask", "log_probs")
    return {name: np.asarray(getattr(on_host, name)) for name in names}, len(passed)


def main(port: str, process: str, out: str) -> None:
    """Decode and write."""
    hosts.start(HostsConfig(coordinator=f"127.0.0.1:{port}", num_processes=2, process_id=int(process)))
    found, num_passed = completions(MeshConfig(data=4, fsdp=2))
    if distributed.is_main():
        np.savez(out, **found, num_passed=num_passed)


if __name__ == "__main__":
    main(*sys.argv[1:])
