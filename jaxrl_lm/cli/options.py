"""Parse the command line and `--config FILE.yaml` into the settings class of a command."""

from dataclasses import MISSING, Field, fields
from typing import Any, Literal, get_args, get_origin

import tyro

from jaxrl_lm.cli.config_file import expand_config_file
from jaxrl_lm.training.settings import ModelRunConfig, RunConfig


def parse_options(name: str, settings: Any, options: list[str]) -> Any:
    """Parse options into an instance of a settings class; exits after printing help or an error of the command line.

    Args:
        name: name of the command.
        settings: its settings class.
        options: options on the command line; what comes after `--` is another command's.

    Raises:
        InputError: the settings class or the configuration file refuses a value.
    """
    end = options.index("--") if "--" in options else len(options)
    own, rest = options[:end], options[end:]
    is_help = "--help" in own or "-h" in own
    describe = getattr(settings, "summary", None)
    return tyro.cli(
        shown_in_help(settings) if is_help else settings,
        args=[*(own if is_help else expand_config_file(own)), *rest],
        prog=f"jaxrl-lm {name}",
        description=describe() if describe else None,
    )


def shown_in_help(settings: Any) -> Any:
    """A settings class as `--help` shows it: required options, options of the command, options of every run.

    A field of one value, such as the name of the algorithm, is not an option; `--config` reads and checks it.
    """
    inherited = {field.name for field in fields(ModelRunConfig)} | {field.name for field in fields(RunConfig)}

    def place(field: Field[Any]) -> int:
        is_required = field.default is MISSING and field.default_factory is MISSING
        return 0 if is_required else 2 if field.name in inherited else 1

    ordered = type(settings.__name__, (settings,), {"__doc__": settings.__doc__, "__module__": settings.__module__})
    ordered.__dataclass_fields__ = {
        field.name: field for field in sorted(fields(settings), key=place) if not _has_one_value(field)
    }  # pyright: ignore[reportAttributeAccessIssue]
    return ordered


def _has_one_value(field: Field[Any]) -> bool:
    return get_origin(field.type) is Literal and len(get_args(field.type)) == 1
