"""Checkpoints of a training state: saved whole or not at all, restored bit for bit or with an error."""

import json
import logging
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from jaxrl_lm import guarded
from jaxrl_lm.errors import InputError
from jaxrl_lm.types import PyTree

_SECONDS_OF_OTHERS = 0.2


class Checkpoints:
    """The last few checkpoints of a run, a folder each, named by its step; a context manager.

    A checkpoint holds the arrays of the state and a description in JSON: shape, dtype and checksum of every
    leaf, and the caller's meta. It is written under a temporary name and renamed when complete.
    """

    def __init__(self, folder: Path, *, keep: int = 2) -> None:
        """Open the folder, made if missing.

        Args:
            folder: the folder of all checkpoints.
            keep: how many of the newest checkpoints stay when one more is saved, at least 1.

        Raises:
            InputError: if `keep` is below 1.
        """
        if keep < 1:
            raise InputError(f"keep is {keep}: keep at least 1 checkpoint")
        self._folder, self._keep = folder.absolute(), keep
        # Saved before `save` returns: the caller donates the state to the next update.
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager(self._folder, options=options, item_names=("arrays", "description"))

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Release what the manager holds; saved checkpoints stay."""
        self._manager.close()

    def latest_step(self) -> int | None:
        """Return the step of the newest checkpoint, or None if there is none."""
        return self._manager.latest_step()

    def delete_old(self) -> None:
        """Delete checkpoints beyond the newest `keep`, as `save` does; a kill may have left one, or a part of it."""
        for step in sorted(self._manager.all_steps())[: -self._keep]:
            self._manager.delete(step)

    def save(self, step: int, state: PyTree, meta: dict[str, Any]) -> None:
        """Write a checkpoint; older ones beyond `keep` go once it is complete.

        Args:
            step: later than that of every checkpoint in the folder.
            state: pytree of JAX arrays, typed PRNG keys among them.
            meta: plain values that JSON can hold.

        Raises:
            InputError: if a checkpoint of this step or of a later one exists.
            TypeError: if a leaf of the state is no JAX array, or JSON cannot hold `meta`.
        """
        latest = self.latest_step()
        if latest is not None and step <= latest:
            raise InputError(
                f"step {step}: {str(self._folder)!r} holds a checkpoint of step {latest}: "
                "resume from that one, or delete the folders of the later steps"
            )
        leaves = _named_leaves(state)
        arrays = {name: _key_free(leaf) for name, leaf in leaves.items()}
        description = _describe(leaves, arrays, json.loads(json.dumps(meta)))
        # Orbax refuses arrays without elements; the description says all there is to know of them.
        stored = {name: array for name, array in arrays.items() if array.size}
        args = ocp.args.Composite(arrays=ocp.args.PyTreeSave(stored), description=ocp.args.JsonSave(description))
        with _errors_raised_alone():
            self._manager.save(step, args=args, force=True)  # when to save is for the caller to say

    def restore(self, template: PyTree, step: int | None = None) -> tuple[int, PyTree, dict[str, Any]]:
        """Read a checkpoint back, bit for bit.

        Args:
            template: pytree like the saved state, of arrays or `jax.ShapeDtypeStruct`; gives the structure,
                and the sharding of every array where the template's array is committed to one.
            step: which checkpoint; the newest if None.

        Returns:
            The step, the state and the meta.

        Raises:
            InputError: if there is no such checkpoint, it is damaged, or its state differs from the template.
            TypeError: if a leaf of the template is neither a JAX array nor a `jax.ShapeDtypeStruct`.
        """
        found = self._find(step)
        description = self._read_description(found)
        leaves = _named_leaves(template)
        self._check_leaves(found, description["leaves"], leaves)
        arrays = self._read_arrays(found, description["leaves"], leaves)
        impls = {name: saved["key_impl"] for name, saved in description["leaves"].items()}
        restored = [_like(leaf, arrays[name], impls[name]) for name, leaf in leaves.items()]
        return found, jax.tree.unflatten(jax.tree.structure(template), restored), description["meta"]

    def _find(self, step: int | None) -> int:
        steps = sorted(self._manager.all_steps())
        if not steps:
            raise InputError(f"{str(self._folder)!r} holds no checkpoint: start the run without --resume")
        if step is not None and step not in steps:
            raise InputError(f"step {step}: {str(self._folder)!r} holds the steps {steps}: choose one of them")
        return steps[-1] if step is None else step

    def _read_description(self, step: int) -> dict[str, Any]:
        args = ocp.args.Composite(description=ocp.args.JsonRestore())
        description = self._read(step, args)["description"]
        try:
            is_whole = description["checksum"] == _json_checksum(description["leaves"], description["meta"])
        except (KeyError, TypeError, ValueError, RecursionError):
            is_whole = False
        if not is_whole:
            raise self._damaged(step, "its description is not as it was saved")
        return description

    def _read_arrays(
        self, step: int, described: Mapping[str, Any], leaves: Mapping[str, Any]
    ) -> dict[str, jax.Array | np.ndarray]:
        shapes = {name: jax.eval_shape(_key_free, leaf) for name, leaf in leaves.items()}
        stored = {name: shape for name, shape in shapes.items() if shape.size}
        restore_args = {name: _restore_args(leaves[name], shape) for name, shape in stored.items()}
        args = ocp.args.PyTreeRestore(item=dict.fromkeys(stored, 0), restore_args=restore_args)
        arrays = self._read(step, ocp.args.Composite(arrays=args))["arrays"]
        for name, array in arrays.items():
            if described[name]["checksum"] not in (None, _checksum(array)):
                raise self._damaged(step, f"{name} is not as it was saved")
        return arrays | {name: np.zeros(s.shape, s.dtype) for name, s in shapes.items() if not s.size}

    def _read(self, step: int, args: ocp.args.Composite) -> Any:
        remedy = "delete that folder to go on from the checkpoint before it"
        what = f"checkpoint {str(self._folder / str(step))!r} is damaged"
        with guarded.foreign_errors(what, remedy), _errors_raised_alone():
            return self._manager.restore(step, args=args)

    def _damaged(self, step: int, reason: str) -> InputError:
        return InputError(
            f"checkpoint {str(self._folder / str(step))!r} is damaged ({reason}): "
            "delete that folder to go on from the checkpoint before it"
        )

    def _check_leaves(self, step: int, described: Mapping[str, Any], leaves: Mapping[str, Any]) -> None:
        where = f"checkpoint {str(self._folder / str(step))!r}"
        remedy = "give the configuration that the checkpoint was saved with, or start without --resume"
        saved = {name: _shown(leaf["shape"], leaf["dtype"]) for name, leaf in described.items()}
        wanted = {name: _shown(leaf.shape, leaf.dtype) for name, leaf in leaves.items()}
        for name in saved | wanted:
            old, new = saved.get(name, "missing"), wanted.get(name, "missing")
            if old != new:
                raise InputError(f"{where}: {name} is {old} there, {new} in this run: {remedy}")


@contextmanager
def _errors_raised_alone() -> Iterator[None]:
    """Raise the first error of orbax's threads alone; they log all of theirs, on a full disk in hundreds of lines.

    Of several reads or writes the first to fail closes orbax's event loop; the others then print tracebacks as well.
    """
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with guarded.held_stderr():
            try:
                yield
            except Exception:
                time.sleep(_SECONDS_OF_OTHERS)
                raise
    finally:
        log.setLevel(level)


def _named_leaves(tree: PyTree) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = {f"state{jax.tree_util.keystr(path)}": leaf for path, leaf in leaves}
    for name, leaf in named.items():
        if not isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
            raise TypeError(f"{name} is {type(leaf).__name__}, no JAX array: wrap it in jnp.asarray")
    return named


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _key_free(leaf: jax.Array) -> jax.Array:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _describe(leaves: Mapping[str, jax.Array], arrays: Mapping[str, jax.Array], meta: dict[str, Any]) -> dict[str, Any]:
    described = {
        name: {
            "shape": list(leaf.shape),
            "dtype": str(leaf.dtype),
            "key_impl": str(jax.random.key_impl(leaf)) if _is_key(leaf) else None,
            "checksum": _checksum(arrays[name]),
        }
        for name, leaf in leaves.items()
    }
    return {"leaves": described, "meta": meta, "checksum": _json_checksum(described, meta)}


def _checksum(array: jax.Array | np.ndarray) -> int | None:
    # An array spread over several hosts cannot be read on one of them.
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return None
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def _json_checksum(leaves: Any, meta: Any) -> int:
    return zlib.crc32(json.dumps([leaves, meta], sort_keys=True).encode("ascii"))


def _shown(shape: Iterable[int], dtype: object) -> str:
    return f"{dtype}{list(shape)}"


def _committed_sharding(leaf: Any) -> jax.sharding.Sharding | None:
    # An array free to move must stay so: committed to one device it could not meet sharded ones in a jit.
    if isinstance(leaf, jax.Array) and not leaf.committed:
        return None
    return leaf.sharding


def _restore_args(leaf: Any, array: jax.ShapeDtypeStruct) -> ocp.RestoreArgs:
    sharding = _committed_sharding(leaf)
    if sharding is None or _is_key(leaf):
        return ocp.RestoreArgs(restore_type=np.ndarray)
    return ocp.ArrayRestoreArgs(sharding=sharding, global_shape=array.shape, dtype=array.dtype)


def _like(leaf: Any, array: jax.Array | np.ndarray, key_impl: str | None) -> jax.Array:
    restored = jnp.asarray(array)
    if key_impl is not None:
        restored = jax.random.wrap_key_data(restored, impl=key_impl)
    elif leaf.weak_type and not leaf.shape:
        # Weakly typed, as Python scalars are; a strong one could promote what it meets to its own dtype.
        restored = jnp.asarray(array.item())
    sharding = _committed_sharding(leaf)
    return restored if sharding is None else jax.device_put(restored, sharding)
