"""Several processes with one program: which one writes, and what they tell each other.

Every process runs the same code on the same inputs, and its devices hold a part of each global array (JAX's
multi-controller form). Only process 0 writes to the run folder; the others write to temporary folders of their own.
"""

import atexit
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxrl_lm.distributed.config import HostsConfig
from jaxrl_lm.distributed.roll_call import call_roll
from jaxrl_lm.errors import InputError
from jaxrl_lm.types import PyTree

Result = TypeVar("Result")


def start(config: HostsConfig) -> None:
    """Connect this process with the others, before it uses a device; where JAX is connected already, do nothing.

    The command line calls this before it imports what uses devices, a trainer for those who call it from Python.

    Raises:
        InputError: a process is missing, or nothing tells where the others are.
    """
    if config.coordinator is None or jax.distributed.is_initialized():
        return
    if config.coordinator == "auto":
        try:
            jax.distributed.initialize(initialization_timeout=config.timeout)
        except (RuntimeError, ValueError) as error:
            raise InputError(
                f"hosts.coordinator='auto': JAX cannot tell which processes there are ({error}); give HOST:PORT of "
                "process 0, --hosts.num-processes and --hosts.process-id"
            ) from error
        return
    num_processes, process_id = config.num_processes, config.process_id
    assert num_processes is not None
    assert process_id is not None
    call_roll(config.coordinator, num_processes, process_id, float(config.timeout))
    jax.distributed.initialize(config.coordinator, num_processes, process_id, initialization_timeout=config.timeout)


def is_main() -> bool:
    """Whether this is process 0, the one that writes."""
    return jax.process_index() == 0


def output_folder(path: Path) -> Path:
    """Where this process writes the output of a run: the given folder for process 0, a temporary one for others."""
    return path if is_main() else _scratch(path.name)


@cache
def _scratch(name: str) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="jaxrl_lm-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder / (name or "run")


def on_host(tree: PyTree) -> PyTree:
    """Arrays as NumPy arrays with all their entries, on every process."""
    if jax.process_count() == 1:
        return jax.device_get(tree)

    def fetch(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
            return np.asarray(leaf)
        return multihost_utils.process_allgather(leaf, tiled=True)

    return jax.tree.map(fetch, tree)


def share(value: Any) -> Any:
    """Process 0's value, which JSON can hold, on all processes."""
    return all_values(value)[0]


def all_values(value: Any) -> list[Any]:
    """The values of all processes, which JSON can hold, by process."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.array([len(text)], np.int32)).reshape(-1)
    padded = np.zeros(lengths.max(), np.uint8)
    padded[: len(text)] = text
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(bytes(row[:length]).decode()) for row, length in zip(rows, lengths, strict=True)]


def rows_of_process(num_rows: int) -> slice:
    """The rows of a batch that this process works on outside of the devices, such as for reward functions.

    Numbers of rows differ by one at most; a process may have none.
    """
    start, end = (num_rows * (jax.process_index() + more) // jax.process_count() for more in (0, 1))
    return slice(start, end)


def together(function: Callable[[], Result]) -> Result:
    """What a function returns; an `InputError` of one process is raised on all, which would otherwise wait for it."""
    if jax.process_count() == 1:
        return function()
    result, problem = None, None
    try:
        result = function()
    except InputError as error:
        problem = str(error)
    problems = [each for each in all_values(problem) if each is not None]
    if problems:
        raise InputError(problems[0])
    return cast(Result, result)


def on_main(function: Callable[[], Result]) -> Result:
    """What a function returns on process 0, where alone it is called; its value must be one that JSON can hold."""
    return share(together(lambda: function() if is_main() else None))


def check_same(values: Mapping[str, Any]) -> None:
    """Refuse to go on where processes differ.

    Args:
        values: by name, each of which JSON can hold.

    Raises:
        InputError: names the first that differs, with the values of two processes.
    """
    for name, value in values.items():
        found = all_values(value)
        for number, other in enumerate(found):
            if other != found[0]:
                raise InputError(
                    f"{name} differs between processes: {found[0]!r:.200} in process 0, {other!r:.200} in process "
                    f"{number}; start all with the same command and versions"
                )


def mean_over_processes(metrics: Mapping[str, float], *, weight: int) -> dict[str, float]:
    """Weighted means of metrics over the processes that have them; `weight` is that of this process."""
    found: dict[str, list[tuple[float, int]]] = {}
    for each, of_process in all_values([dict(metrics), weight]):
        for name, value in each.items():
            found.setdefault(name, []).append((value, of_process))
    return {
        name: sum(value * share for value, share in pairs) / sum(share for _, share in pairs)
        for name, pairs in found.items()
    }
