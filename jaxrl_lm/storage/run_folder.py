"""The folder of a run: its paths, its configuration, and JSON-lines files that survive a kill."""

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from jaxrl_lm import guarded
from jaxrl_lm.errors import InputError

_STAGED = re.compile(r"\.(?P<name>.+)\.\d+\.tmp")  # of `write_atomically`
LARGEST = 1e300  # of a measured value: an axis with a larger one cannot be drawn


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run. Its properties are paths, whether or not they exist yet.

    Attributes:
        path: the folder itself, `runs/NAME`.
    """

    path: Path

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def samples_file(self) -> Path:
        return self.path / "samples.jsonl"

    @property
    def seeds_file(self) -> Path:
        return self.path / "seeds.jsonl"

    @property
    def report_file(self) -> Path:
        return self.path / "report.html"

    @property
    def tensorboard_folder(self) -> Path:
        return self.path / "tensorboard"

    @property
    def checkpoints_folder(self) -> Path:
        return self.path / "checkpoints"

    @property
    def plots_folder(self) -> Path:
        return self.path / "plots"

    @property
    def profile_folder(self) -> Path:
        return self.path / "profile"

    @property
    def model_folder(self) -> Path:
        return self.path / "model"

    @property
    def ended_file(self) -> Path:
        """Marks a completed run."""
        return self.path / "ended"

    def newest_checkpoint(self) -> Path | None:
        """The last complete checkpoint; one being written has another name."""
        folder = self.checkpoints_folder
        found = [entry for entry in folder.iterdir() if entry.name.isdigit()] if folder.is_dir() else []
        return max(found, key=lambda entry: int(entry.name), default=None)

    @classmethod
    def create(cls, path: Path, config: dict[str, Any]) -> "RunFolder":
        """Create the folder of a new run and write its `config.yaml`.

        Args:
            path: a folder that is empty or does not exist; an unfinished config.yaml that a kill left is removed.
            config: plain values (str, int, float, bool, None, list, dict), arbitrarily nested.

        Raises:
            InputError: if the path is a file, is not empty, or cannot be created.
        """
        text = _config_text(config)
        try:
            path.mkdir(parents=True, exist_ok=True)
            entries = list(path.iterdir())
        except OSError as error:
            raise InputError(f"out {str(path)!r} cannot be created ({error}): choose another --out") from None
        folder = cls(path)
        unfinished = [entry for entry in entries if is_staged(entry, folder.config_file.name)]
        if len(entries) > len(unfinished):
            raise InputError(f"out {str(path)!r} is not empty: choose another --out, or --resume to continue that run")
        for entry in unfinished:
            entry.unlink()
        write_atomically(folder.config_file, text)
        return folder

    @classmethod
    def open(
        cls,
        path: Path,
        config: dict[str, Any],
        *,
        ignore: frozenset[str] = frozenset(),
        defaults: Mapping[str, Any] | None = None,
    ) -> "RunFolder":
        """Open the folder of a run to continue it; `config.yaml` is updated to the given configuration.

        Args:
            path: the folder made by `create`.
            config: the configuration to continue with.
            ignore: fields that may differ, dotted if nested (`"ppo.num_updates"`); a parent exempts all its fields.
            defaults: values of fields that the folder's `config.yaml` lacks because they are newer than the run.

        Raises:
            InputError: if there is no run, its `config.yaml` is unreadable, or another field differs.
        """
        folder = cls(path)
        if folder.check_settings(config, ignore=ignore, defaults=defaults):
            write_atomically(folder.config_file, _config_text(config))
        return folder

    def check_settings(
        self,
        config: dict[str, Any],
        *,
        ignore: frozenset[str] = frozenset(),
        defaults: Mapping[str, Any] | None = None,
    ) -> bool:
        """Refuse settings that differ from the run's; arguments and errors as for `open`.

        Returns:
            Whether any field differs.
        """
        saved, given = flatten_config(self.read_config()), flatten_config(_as_read(config))
        newer = {name: value for name, value in flatten_config(_as_read(defaults or {})).items() if name in given}
        differing = _differences(newer | saved, given)
        changed = {name: values for name, values in differing.items() if not _is_exempt(name, ignore)}
        if changed:
            lines = "".join(
                f"\n  {name:.100}: {old:.500} in the run, {new:.500} now" for name, (old, new) in changed.items()
            )
            raise InputError(
                f"resume {str(self.path)!r}: the run was started with other values:{lines}\n"
                "use the run's values, or choose another --out to start a new run"
            )
        return saved.keys() != given.keys() or bool(differing)

    @classmethod
    def open_or_create(
        cls,
        path: Path,
        config: dict[str, Any],
        *,
        ignore: frozenset[str] = frozenset(),
        defaults: Mapping[str, Any] | None = None,
    ) -> "RunFolder":
        """Open the folder with this configuration, or create it if missing.

        Raises:
            InputError: as for `open` and `create`.
        """
        is_there = cls(path).config_file.exists()
        return cls.open(path, config, ignore=ignore, defaults=defaults) if is_there else cls.create(path, config)

    def read_config(self) -> dict[str, Any]:
        """Read `config.yaml`.

        Raises:
            InputError: if it is missing, unreadable, or not a mapping.
        """
        remedy = "give the folder of a run, or start one without --resume"
        if not os.path.exists(self.config_file):  # unlike Path.exists, it accepts names of any length
            raise InputError(f"{str(self.path)!r} is not a run folder (no config.yaml): {remedy}")
        config = guarded.read_yaml(self.config_file, remedy=remedy)
        if not isinstance(config, dict):
            raise InputError(f"{str(self.config_file)!r} is a {type(config).__name__}, not a mapping: {remedy}")
        return config


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file atomically: a reader sees the old content or the new, even after a kill.

    Args:
        path: the file; its folder must exist.
        content: text (written as UTF-8) or bytes.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def is_staged(path: Path, name: str | None = None) -> bool:
    """Whether a file is one that `write_atomically` had not renamed yet: to `name`, or to any name if None."""
    found = _STAGED.fullmatch(path.name)
    return found is not None and name in (None, found["name"])


def append_jsonl(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Append records, one JSON object per line; floats that are not finite become null.

    A last line cut short by a kill is dropped first.

    Args:
        path: the file, created if missing; its folder must exist.
        records: objects of plain values.
    """
    lines = [json.dumps(_finite(record), allow_nan=False) + "\n" for record in records]
    with path.open("ab+") as file:
        _mend_last_line(file)
        file.write("".join(lines).encode("ascii"))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read a JSON-lines file; a last line cut short by a kill is dropped.

    Args:
        path: the file; a missing file has no records.

    Returns:
        The records; record `i` is on line `i + 1`.

    Raises:
        InputError: if a line, other than a cut last one, is not a JSON object.
    """
    if not path.exists():
        return []
    *lines, tail = path.read_bytes().split(b"\n")
    records = [_parse_line(path, number, line) for number, line in enumerate(lines, start=1)]
    if tail:
        record = _parse_object(tail)
        records += [] if record is None else [record]
    return records


def truncate_jsonl(path: Path, step: int) -> None:
    """Drop the records from a step on, for a run that resumes there.

    Args:
        path: the file; it may be missing.
        step: the first step to drop; records with a lower `step` are kept.

    Raises:
        InputError: if a line is not a JSON object or its `step` is not a whole number.
    """
    if not path.exists():
        return
    records = read_jsonl(path)
    for number, record in enumerate(records, start=1):
        check_step(path, number, record)
    kept = [json.dumps(record) + "\n" for record in records if record["step"] < step]
    write_atomically(path, "".join(kept))


def check_step(path: Path, number: int, record: Mapping[str, Any]) -> int:
    """Return the `step` of a record; path and line number are for errors.

    Raises:
        InputError: if it is not a whole number of up to 63 bits.
    """
    return whole_number(path, number, "step", record.get("step"))


def whole_number(path: Path, number: int, name: str, value: Any) -> int:
    """Return a count from a record; path and line number are for errors.

    Raises:
        InputError: if it is not a whole number of up to 63 bits.
    """
    if type(value) is not int or not -(2**63) <= value < 2**63:
        raise line_error(path, number, f"{name} is {value!r:.60}, not a whole number")
    return value


def finite_number(path: Path, number: int, name: str, value: Any) -> float:
    """Return a measured value from a record; null, written for a value that was not finite, is NaN.

    Raises:
        InputError: if it is neither null nor a number within 1e300 of 0: axes with larger ones cannot be drawn.
    """
    if value is None:
        return math.nan
    if isinstance(value, int | float) and not isinstance(value, bool) and -LARGEST <= value <= LARGEST:
        return float(value)
    raise line_error(path, number, f"{name} is {value!r:.60}, not a number between -1e300 and 1e300")


def line_error(path: Path, number: int, problem: str) -> InputError:
    """Return the error of a line in a JSON-lines file, numbered from 1."""
    return InputError(f"{str(path)!r} line {number}: {problem}: correct or delete the line")


def _parse_line(path: Path, number: int, line: bytes) -> dict[str, Any]:
    record = _parse_object(line)
    if record is None:
        raise line_error(path, number, f"{line[:60]!r} is not a JSON object")
    return record


def _parse_object(line: bytes) -> dict[str, Any] | None:
    try:
        record = guarded.parse_json(line.decode(), "line", remedy="")
    except (UnicodeDecodeError, InputError):
        return None
    return record if isinstance(record, dict) else None


def _mend_last_line(file: BinaryIO) -> None:
    if not file.seek(0, os.SEEK_END):
        return
    file.seek(-1, os.SEEK_END)
    if file.read() == b"\n":
        return
    file.seek(0)
    content = file.read()
    tail = content[content.rfind(b"\n") + 1 :]
    if _parse_object(tail) is None:
        file.truncate(len(content) - len(tail))
    else:
        file.write(b"\n")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _config_text(config: dict[str, Any]) -> str:
    return guarded.dump_yaml(config)


def flatten_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten a nested configuration to dotted names: `{"ppo": {"clip": 1}}` -> `ppo.clip`."""
    fields: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            fields |= {f"{name}.{inner}": item for inner, item in flatten_config(value).items()}
        else:
            fields[str(name)] = value
    return fields


def _as_read(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration as it comes back from its file: tuples as lists, say."""
    return guarded.parse_yaml(_config_text(dict(config)), "config", remedy="")


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    pairs = {name: (_shown(old, name), _shown(new, name)) for name in {**old, **new}}
    # 1 equals 1.0 by value; NaN equals itself only as text; a missing field equals nothing.
    return {
        name: pair
        for name, pair in pairs.items()
        if pair[0] != pair[1] and not (name in old and name in new and old[name] == new[name])
    }


def _shown(fields: Mapping[str, Any], name: str) -> str:
    return repr(fields[name]) if name in fields else "not set"


def _is_exempt(name: str, ignore: frozenset[str]) -> bool:
    return any(name == field or name.startswith(f"{field}.") for field in ignore)
