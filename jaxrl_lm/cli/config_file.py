"""`--config FILE.yaml`: options from a file; those on the command line take precedence."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxrl_lm import guarded
from jaxrl_lm.errors import InputError

_FLAG = "--config"


def expand_config_file(args: list[str]) -> list[str]:
    """Replace `--config FILE` by the options in the file.

    A run folder's config.yaml can be used.

    Raises:
        InputError: the file is missing or not a mapping of names to values.
    """
    kept, file = [], None
    arguments = iter(args)
    for argument in arguments:
        if argument == _FLAG:
            file = next(arguments, "")
        elif argument.startswith(f"{_FLAG}="):
            file = argument.removeprefix(f"{_FLAG}=")
        else:
            kept.append(argument)
    if file is None:
        return kept
    given = {argument.split("=")[0].replace("_", "-").replace("--no-", "--") for argument in kept}
    options = [
        option
        for names, value in _leaves(_read(file))
        if f"--{_dotted(names)}" not in given
        for option in _option(names, value)
    ]
    return [*options, *kept]


def _read(file: str) -> Mapping[str, Any]:
    content = guarded.read_yaml(Path(file), remedy=f"give a YAML file of options with {_FLAG}")
    if not isinstance(content, Mapping):
        raise InputError(f"{_FLAG} {file!r} must be a mapping of option names to values")
    return content


def _leaves(content: Mapping[str, Any], names: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*names, str(name)))
        else:
            yield (*names, str(name)), value


def _dotted(names: tuple[str, ...]) -> str:
    return ".".join(names).replace("_", "-")


def _option(names: tuple[str, ...], value: Any) -> list[str]:
    dotted = _dotted(names)
    if isinstance(value, bool):
        *groups, last = dotted.split(".")
        return ["--" + ".".join([*groups, last if value else f"no-{last}"])]
    if isinstance(value, list):
        return [f"--{dotted}", *map(str, value)]
    return [f"--{dotted}", str(value)]
