"""rejax's training iterations, without evaluation: ALGORITHM in ENV, SETTINGS as JSON, NUM_ITERATIONS per turn.

    python rejax_train.py ALGORITHM ENV SETTINGS NUM_ITERATIONS

Runs in its own interpreter (rejax 0.1.3 needs gymnax 0.0.9), in alternation (see turns.py).
"""

import importlib.metadata
import json
import sys
import time

import jax
import rejax  # pyright: ignore[reportMissingImports]
import turns


def main(algorithm: str, env: str, settings: str, num_iterations: int) -> None:
    algo = rejax.get_algo(algorithm).create(env=env, **json.loads(settings))
    state = jax.jit(algo.init_state)(jax.random.key(0))

    @jax.jit
    def run(state: object) -> object:
        return jax.lax.scan(lambda s, _: (algo.train_iteration(s), None), state, None, length=num_iterations)[0]

    while turns.wait_for_turn():
        start = time.perf_counter()
        state = jax.block_until_ready(run(state))
        turns.report(start)
    turns.finish({name: importlib.metadata.version(name) for name in ("rejax", "gymnax", "jax")})


if __name__ == "__main__":
    kind, env_id, options, iterations = sys.argv[1:]
    main(kind, env_id, options, int(iterations))
