"""Hyperparameters swept over: a grid of values, every point of which is trained with every seed in one program."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, is_dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_lm.errors import InputError
from jaxrl_lm.types import PyTree

_EXAMPLE = "such as learning_rate=1e-3,3e-4"


@dataclass(frozen=True)
class Sweep:
    """The values of each swept hyperparameter.

    Attributes:
        values: of each name; nothing is swept where there is none.
    """

    values: dict[str, tuple[float, ...]]

    @property
    def points(self) -> list[dict[str, float]]:
        """Every combination of values; one without values where nothing is swept."""
        return [dict(zip(self.values, point, strict=True)) for point in itertools.product(*self.values.values())]

    @property
    def labels(self) -> list[str]:
        """What a point's metrics carry behind their names, such as " learning_rate=0.001"; different for all points."""
        return ["".join(f" {name}={_shortest(value)}" for name, value in point.items()) for point in self.points]

    def column(self, name: str) -> np.ndarray:
        """The value of one hyperparameter at every point, float32 `[V]`."""
        return np.array([point[name] for point in self.points], np.float32)


def read_sweep(sweep: tuple[str, ...]) -> Sweep:
    """The grid that settings ask for.

    Args:
        sweep: NAME=V1,V2,... each.

    Raises:
        InputError: one has another form, is not a finite number, or is given twice.
    """
    values: dict[str, tuple[float, ...]] = {}
    for text in sweep:
        name, _, listed = text.partition("=")
        name = name.rpartition(".")[2].replace("-", "_")
        if name in values:
            raise InputError(f"sweep={text!r}: {name} is given twice; give all its values at once, {_EXAMPLE}")
        values[name] = _read_values(text, listed)
    return Sweep(values)


def _shortest(value: float) -> float:
    """The number of fewest digits that is the same in float32, in which values are traced."""
    return float(str(np.float32(value)))


def _read_values(text: str, listed: str) -> tuple[float, ...]:
    try:
        values = tuple(float(value) for value in listed.split(","))
    except ValueError:
        raise InputError(f"sweep={text!r} must be NAME=V1,V2,..., {_EXAMPLE}") from None
    seen: set[np.float32] = set()
    for value in values:
        with np.errstate(over="ignore"):
            rounded = np.float32(value)
        if not np.isfinite(rounded):
            raise InputError(f"sweep={text!r}: {value} is not a finite float32; remove it")
        if rounded in seen:
            raise InputError(f"sweep={text!r}: {value} is given twice (in float32); remove one")
        seen.add(rounded)
    return values


def check_sweep(sweep: Sweep, config: Any) -> None:
    """Check that each value could be given as a setting of its own.

    Args:
        sweep: the grid.
        config: a settings class; the swept names are its fields, or fields of the settings in it.

    Raises:
        InputError: one could not.
    """
    owners = [config, *(value for value in vars(config).values() if is_dataclass(value))]
    for owner, (name, values) in itertools.product(owners, sweep.values.items()):
        for value in values:
            at_point(owner, {name: value})


def at_point(settings: Any, point: Mapping[str, float]) -> Any:
    """Settings with the values of a point, as far as their names are numbers among these settings.

    Raises:
        InputError: a value could not be given as a setting of its own.
    """
    numbers = {name: value for name, value in point.items() if isinstance(getattr(settings, name, None), float)}
    return replace(settings, **numbers)


def set_hyperparams(learners: PyTree, sweep: Sweep, num_seeds: int) -> PyTree:
    """Learners `[V * S]`, point by point, with the values of their points.

    Raises:
        InputError: a name is not a traced hyperparameter of the algorithm.
    """
    known = set(_hyperparam_names(learners))
    for name in sweep.values:
        if name not in known:
            raise InputError(f"sweep: {name} cannot be swept; choose from: {', '.join(sorted(known)) or 'nothing'}")

    def put(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        name = _hyperparam_name(path)
        if name not in sweep.values:
            return leaf
        return jnp.repeat(jnp.asarray(sweep.column(name)), num_seeds).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(put, learners)


def _hyperparam_names(learners: PyTree) -> Iterator[str]:
    for path, _ in jax.tree_util.tree_leaves_with_path(learners):
        name = _hyperparam_name(path)
        if name:
            yield name


def _hyperparam_name(path: tuple[Any, ...]) -> str:
    """Name of a leaf in `hyperparams`, else nothing."""
    *_, owner, last = ["", "", *(getattr(entry, "name", "") for entry in path)]
    return last if owner == "hyperparams" else ""
