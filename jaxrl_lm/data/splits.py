"""Hold out data from training."""

from collections.abc import Hashable, Sequence
from typing import TypeVar

from jaxrl_lm.core.host_streams import Stream, host_generator
from jaxrl_lm.errors import InputError

_Item = TypeVar("_Item")


def hold_out(
    items: Sequence[_Item], groups: Sequence[Hashable], *, fraction: float, seed: int
) -> tuple[list[_Item], list[_Item]]:
    """Split items into training and held-out ones; all items of a group are on the same side.

    Args:
        items: items of any type.
        groups: group of each item, such as its prompt.
        fraction: share of the groups to hold out, in [0, 1); at least one group unless it is 0.
        seed: random seed of the choice.

    Returns:
        Training items and held-out items, each in their original order.

    Raises:
        InputError: all items are in one group, so none can be held out.
    """
    names = list(dict.fromkeys(groups))
    if not fraction:
        return list(items), []
    if len(names) < 2:
        raise InputError(
            f"evaluation_fraction={fraction}: all rows have the same prompt, so none can be held out; give a file with "
            "--evaluation, or hold out 0"
        )
    num_held = min(len(names) - 1, max(1, round(fraction * len(names))))
    held = {names[index] for index in host_generator(Stream.HELD_OUT, seed).permutation(len(names))[:num_held]}
    pairs = list(zip(items, groups, strict=True))
    return [item for item, group in pairs if group not in held], [item for item, group in pairs if group in held]
