"""Checkpoints of a training state: saved atomically, restored bit for bit or with an error."""

import json
import logging
import math
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from jaxrl_lm import guarded
from jaxrl_lm.errors import InputError
from jaxrl_lm.types import PyTree

WhichCheckpoint = Literal["newest", "best"] | int
"""The newest checkpoint, the one with the highest score, or that of a step."""

_SECONDS_OF_OTHERS = 0.2


class Score(NamedTuple):
    """Result of an evaluation; it is compared with those of the same comparison, and a later comparison starts again.

    Attributes:
        value: higher is better.
        comparison: number of the comparison; higher for scores that are not comparable with those before.
    """

    value: float
    comparison: int = 0


class _Best(NamedTuple):
    """The checkpoint with the highest score so far."""

    step: int
    score: float
    comparison: int = 0


class Checkpoints:
    """The newest checkpoints of a run and the best one, one folder per step; a context manager.

    A checkpoint contains the state's arrays and a JSON description: shape, dtype and checksum of every leaf, the
    caller's meta, and the step and score of the best checkpoint up to then. So a run that is resumed from a checkpoint
    knows its best one. A checkpoint is written under a temporary name and renamed when complete.
    """

    def __init__(self, folder: Path, *, keep: int = 2) -> None:
        """Open the folder, created if missing.

        Args:
            folder: the folder of all checkpoints.
            keep: how many of the newest checkpoints to keep, at least 1; the best one is kept as well.

        Raises:
            InputError: if `keep` is below 1, or the metadata of a checkpoint is damaged.
        """
        if keep < 1:
            raise InputError(f"keep is {keep}: keep at least 1 checkpoint")
        self._folder, self._keep = folder.absolute(), keep
        self._best: _Best | None = None
        # Saving is synchronous, because the caller donates the state to the next update.
        options = ocp.CheckpointManagerOptions(create=True, enable_async_checkpointing=False)
        try:
            self._manager = ocp.CheckpointManager(self._folder, options=options, item_names=("arrays", "description"))
        except ValueError as error:  # Orbax reads the metadata of every checkpoint here
            raise InputError(
                f"a checkpoint in {str(self._folder)!r} has damaged metadata ({str(error)[:200]}): find the damaged "
                "_CHECKPOINT_METADATA and delete the folder that it is in"
            ) from error

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the manager's resources."""
        self._manager.close()

    def latest_step(self) -> int | None:
        """Return the step of the newest checkpoint, or None if there is none."""
        return self._manager.latest_step()

    def delete_old(self) -> None:
        """Delete what `save` deletes, after a `restore`: a kill may have left an old checkpoint, or a part of it."""
        for step in sorted(self._manager.all_steps())[: -self._keep]:
            if self._best is None or step != self._best.step:
                self._manager.delete(step)

    def is_best(self, score: Score | None) -> bool:
        """Whether a score is higher than those of all checkpoints before; one that is missing or not finite is not."""
        if score is None or not math.isfinite(score.value):
            return False
        best = self._best
        return best is None or (score.comparison, score.value) > (best.comparison, best.score)

    def save(self, step: int, state: PyTree, meta: dict[str, Any], *, score: Score | None = None) -> None:
        """Write a checkpoint, then delete older ones except for the newest `keep` and the best.

        Args:
            step: must exceed the step of every existing checkpoint.
            state: pytree of JAX arrays, including typed PRNG keys.
            meta: JSON-serialisable values.
            score: result of an evaluation of this state; the checkpoint with the highest one is the best.

        Raises:
            InputError: if a checkpoint of this or a later step exists.
            TypeError: if a leaf of the state is not a JAX array, or `meta` is not JSON-serialisable.
        """
        latest = self.latest_step()
        if latest is not None and step <= latest:
            raise InputError(
                f"step {step}: {str(self._folder)!r} already has a checkpoint of step {latest}: "
                "resume from it, or delete the folders of later steps"
            )
        leaves = _named_leaves(state)
        arrays = {name: _key_free(leaf) for name, leaf in leaves.items()}
        best = _Best(step, *score) if score is not None and self.is_best(score) else self._best
        description = _describe(leaves, arrays, json.loads(json.dumps(meta)), best)
        # Orbax refuses empty arrays; the description suffices to restore them.
        stored = {name: array for name, array in arrays.items() if array.size}
        args = ocp.args.Composite(arrays=ocp.args.PyTreeSave(stored), description=ocp.args.JsonSave(description))
        with _errors_raised_alone():
            self._manager.save(step, args=args, force=True)  # the caller decides when to save
            self._best = best
            self.delete_old()

    def restore(self, template: PyTree, step: WhichCheckpoint = "newest") -> tuple[int, PyTree, dict[str, Any]]:
        """Read a checkpoint back, bit for bit; what is saved next is compared with the best one up to it.

        Args:
            template: pytree of arrays or `jax.ShapeDtypeStruct` with the structure of the saved state; committed arrays
                also give the sharding.
            step: which checkpoint to restore.

        Returns:
            The step, the state and the meta.

        Raises:
            InputError: if the checkpoint is missing, damaged, or differs from the template.
            TypeError: if a leaf of the template is neither a JAX array nor a `jax.ShapeDtypeStruct`.
        """
        found = self._find(step)
        description = self._read_description(found)
        leaves = _named_leaves(template)
        self._check_leaves(found, description["leaves"], leaves)
        arrays = self._read_arrays(found, description["leaves"], leaves)
        self._best = self._best_left(description)
        impls = {name: saved["key_impl"] for name, saved in description["leaves"].items()}
        restored = [_like(leaf, arrays[name], impls[name]) for name, leaf in leaves.items()]
        return found, jax.tree.unflatten(jax.tree.structure(template), restored), description["meta"]

    def _find(self, step: WhichCheckpoint) -> int:
        steps = sorted(self._manager.all_steps())
        if not steps:
            raise InputError(f"{str(self._folder)!r} has no checkpoint: start the run without --resume")
        if step == "newest":
            return steps[-1]
        if step == "best":
            best = self._best_left(self._read_description(steps[-1]))
            if best is None:
                raise InputError(
                    f"{str(self._folder)!r} has no best checkpoint: nothing was evaluated up to its newest one, "
                    f"{steps[-1]}, or the best was deleted; continue the run to its next evaluation, or use the newest"
                )
            step = best.step
        if step not in steps:
            raise InputError(
                f"checkpoint={step!r}: {str(self._folder)!r} has checkpoints {', '.join(map(str, steps))}; "
                "choose one of these numbers, newest or best"
            )
        return steps[steps.index(step)]  # such as 3 for 3.0

    def _best_left(self, description: Mapping[str, Any]) -> _Best | None:
        """The best checkpoint up to one, unless its folder is gone: deleted by the user, as damaged ones are."""
        best = _best_of(description)
        return best if best is not None and best.step in self._manager.all_steps() else None

    def _read_description(self, step: int) -> dict[str, Any]:
        args = ocp.args.Composite(description=ocp.args.JsonRestore())
        description = self._read(step, args)["description"]
        try:
            parts = description["leaves"], description["meta"], _best_of(description)
            is_whole = description["checksum"] == _json_checksum(*parts)
        except (KeyError, TypeError, ValueError, RecursionError):
            is_whole = False
        if not is_whole:
            raise self._damaged(step, "its description has changed since it was saved")
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
                raise self._damaged(step, f"{name} has changed since it was saved")
        return arrays | {name: np.zeros(s.shape, s.dtype) for name, s in shapes.items() if not s.size}

    def _read(self, step: int, args: ocp.args.Composite) -> Any:
        remedy = "delete that folder to continue from the previous checkpoint"
        what = f"checkpoint {str(self._folder / str(step))!r} is damaged"
        with guarded.foreign_errors(what, remedy), _errors_raised_alone():
            return self._manager.restore(step, args=args)

    def _damaged(self, step: int, reason: str) -> InputError:
        return InputError(
            f"checkpoint {str(self._folder / str(step))!r} is damaged ({reason}): "
            "delete that folder to continue from the previous checkpoint"
        )

    def _check_leaves(self, step: int, described: Mapping[str, Any], leaves: Mapping[str, Any]) -> None:
        where = f"checkpoint {str(self._folder / str(step))!r}"
        remedy = "use the configuration of the checkpoint, or start without --resume"
        saved = {name: _shown(leaf["shape"], leaf["dtype"]) for name, leaf in described.items()}
        wanted = {name: _shown(leaf.shape, leaf.dtype) for name, leaf in leaves.items()}
        for name in saved | wanted:
            old, new = saved.get(name, "missing"), wanted.get(name, "missing")
            if old != new:
                raise InputError(f"{where}: {name} is {old} in the checkpoint, {new} in this run: {remedy}")


@contextmanager
def _errors_raised_alone() -> Iterator[None]:
    """Silence the tracebacks that each of Orbax's threads logs for an error: hundreds of lines on a full disk.

    Of several reads or writes, the first to fail closes Orbax's event loop; the others then print tracebacks as well.
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
            raise TypeError(f"{name} is {type(leaf).__name__}, not a JAX array: wrap it in jnp.asarray")
    return named


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _key_free(leaf: jax.Array) -> jax.Array:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _describe(
    leaves: Mapping[str, jax.Array], arrays: Mapping[str, jax.Array], meta: dict[str, Any], best: _Best | None
) -> dict[str, Any]:
    described = {
        name: {
            "shape": list(leaf.shape),
            "dtype": str(leaf.dtype),
            "key_impl": str(jax.random.key_impl(leaf)) if _is_key(leaf) else None,
            "checksum": _checksum(arrays[name]),
        }
        for name, leaf in leaves.items()
    }
    description = {"leaves": described, "meta": meta, "checksum": _json_checksum(described, meta, best)}
    return description if best is None else description | {"best": _described(best)}


def _described(best: _Best) -> dict[str, Any]:
    """The first comparison is not written, as before there were others, so that checksums stay what they were."""
    return {name: value for name, value in best._asdict().items() if name != "comparison" or value}


def _best_of(description: Mapping[str, Any]) -> _Best | None:
    return _Best(**description["best"]) if "best" in description else None


def _checksum(array: jax.Array | np.ndarray) -> int | None:
    # An array sharded over several hosts cannot be read on one host.
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return None
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def _json_checksum(leaves: Any, meta: Any, best: _Best | None) -> int:
    parts = [leaves, meta] if best is None else [leaves, meta, list(_described(best).values())]
    return zlib.crc32(json.dumps(parts, sort_keys=True).encode("ascii"))


def _shown(shape: Iterable[int], dtype: object) -> str:
    return f"{dtype}{list(shape)}"


def _committed_sharding(leaf: Any) -> jax.sharding.Sharding | None:
    # Keep uncommitted arrays uncommitted: committed to one device, they could not be mixed with sharded ones in a jit.
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
        # Keep weak types, as of Python scalars; a strong one could promote other operands to its dtype.
        restored = jnp.asarray(array.item())
    sharding = _committed_sharding(leaf)
    return restored if sharding is None else jax.device_put(restored, sharding)
