"""JSON and YAML with limits on nesting, size and aliases."""

import json
import re
from itertools import chain, islice
from pathlib import Path
from typing import Any, ClassVar

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

from jaxrl_lm.errors import InputError
from jaxrl_lm.guarded.limits import MAX_DEPTH, MAX_FILE_BYTES, MAX_YAML_CHARACTERS, MAX_YAML_DIGITS, MAX_YAML_VALUES
from jaxrl_lm.guarded.text import read_text

_INT_TAG, _FLOAT_TAG = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"


def parse_json(text: str, source: str, *, remedy: str, first_line: int = 1) -> Any:
    """The value of a JSON text.

    Args:
        text: JSON.
        source: its origin, for errors.
        remedy: what to do if it is not valid JSON.
        first_line: line number of the text's first line in the source.

    Raises:
        InputError: it is not JSON, a number has thousands of digits, or nesting exceeds `MAX_DEPTH`.
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise InputError(
            f"{source}, line {line}: not valid JSON ({error.msg}, character {error.colno}); {remedy}"
        ) from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"{source}, line {first_line}: unreadable JSON ({error}); {remedy}") from error
    if text.count("[") + text.count("{") > MAX_DEPTH:
        _check_nesting(value, f"{source}, line {first_line}: unreadable JSON", remedy)
    return value


def read_json(path: Path, *, remedy: str, max_bytes: int = MAX_FILE_BYTES) -> Any:
    """The value of a JSON file; arguments as `parse_json`.

    Raises:
        InputError: as for `parse_json`; or the file cannot be read or is larger than `max_bytes`.
    """
    return parse_json(read_text(path, max_bytes=max_bytes), str(path), remedy=remedy)


def read_object(path: Path, *, remedy: str, max_bytes: int = MAX_FILE_BYTES) -> dict[str, Any]:
    """The object of a JSON file; arguments as `parse_json`.

    Raises:
        InputError: as for `read_json`; or the value is not an object.
    """
    value = read_json(path, remedy=remedy, max_bytes=max_bytes)
    if not isinstance(value, dict):
        raise InputError(f"{path}: holds {_kind(value)}, not a JSON object; {remedy}")
    return value


def parse_yaml(text: str, source: str, *, remedy: str) -> Any:
    """The value of a YAML text, as YAML 1.2 reads plain numbers.

    Unlike in PyYAML, `1e-3` is a number, and `1:30` and `2026-01-31` are text (PyYAML: text, 90 and a date). Every
    value is a mapping, a list, text, a number, true, false or null.

    Args:
        text: YAML.
        source: its origin, for errors.
        remedy: what to do if it is not valid YAML.

    Raises:
        InputError: it is not YAML, contains another kind of value or a cycle, or exceeds a limit on size or nesting.
    """
    what = f"{source}: unreadable YAML"
    if len(text) > MAX_YAML_CHARACTERS:
        raise InputError(f"{what} (longer than {MAX_YAML_CHARACTERS:,} characters, the limit); {remedy}")
    try:
        value = yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, TypeError, IndexError, RecursionError, MemoryError) as error:
        raise InputError(f"{what} ({' '.join(str(error).split())}); {remedy}") from error
    _check_nesting(value, what, remedy, max_values=MAX_YAML_VALUES, kinds=_YAML_KINDS)
    return value


def read_yaml(path: Path, *, remedy: str) -> Any:
    """The value of a YAML file; arguments as `parse_yaml`.

    Raises:
        InputError: as for `parse_yaml`; or the file cannot be read.
    """
    return parse_yaml(read_text(path, max_bytes=4 * MAX_YAML_CHARACTERS), str(path), remedy=remedy)


def dump_yaml(value: Any) -> str:
    """Plain values as YAML that both `parse_yaml` and PyYAML read back unchanged."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _check_nesting(
    value: Any, what: str, remedy: str, *, max_values: int | None = None, kinds: tuple[type, ...] = (object,)
) -> None:
    """Refuse a value that is nested too deeply, or contains too many values or one of another kind.

    Aliases count each time they are used, so cycles and exponential expansion are refused.
    """
    level, num_values = [value], 1
    for _ in range(MAX_DEPTH + 1):
        for item in level:
            if not isinstance(item, kinds):
                raise InputError(f"{what} (it holds {_kind(item)}); {remedy}")
        holders = (item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list))
        most = None if max_values is None else max_values - num_values + 1
        level = list(islice(chain.from_iterable(holders), most))
        num_values += len(level)
        if max_values is not None and num_values > max_values:
            raise InputError(f"{what} (more than {max_values:,} values, aliases expanded); {remedy}")
        if not level:
            return
    raise InputError(f"{what} (nested deeper than {MAX_DEPTH} levels, or cyclic); {remedy}")


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)


_YAML_KINDS = (dict, list, str, int, float, type(None))


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with YAML 1.2 numbers and bounded depth, without dates and merge keys."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] in ("bool", "null")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ComposerError(None, None, f"nested deeper than {MAX_DEPTH} levels")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(set(keys)) < len(keys):
            twice = next(key for place, key in enumerate(keys) if key in keys[:place])
            raise ConstructorError(None, None, f"{twice!r:.60} is given twice", node.start_mark)
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper, which also quotes text that our loader would read as a number."""


def _text(dumper: yaml.SafeDumper, text: str) -> Any:
    # In other styles PyYAML writes these characters unescaped and reads them back as line breaks.
    style = '"' if any(end in text for end in "\x85\u2028\u2029") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


def _int(loader: yaml.SafeLoader, node: Any) -> int:
    text = loader.construct_scalar(node)
    if len(text) > MAX_YAML_DIGITS:
        raise ConstructorError(None, None, f"a number of {len(text)} digits", node.start_mark)
    digits = text.replace("_", "")
    return int(digits, 0) if digits.lstrip("+-")[:2].lower() in ("0x", "0o", "0b") else int(digits)


_INT = re.compile(r"[-+]?(?:[0-9][0-9_]*|0x[0-9a-fA-F]+|0o[0-7]+|0b[01]+)$")
_FLOAT = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$|[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$"
)
_Loader.add_constructor(_INT_TAG, _int)
_Dumper.add_representer(str, _text)
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(_INT_TAG, _INT, list("-+0123456789"))
    _class.add_implicit_resolver(_FLOAT_TAG, _FLOAT, list("-+.0123456789"))
