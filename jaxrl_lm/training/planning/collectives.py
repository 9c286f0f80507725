"""Bytes that devices send to each other, read from a compiled program's text, times the trips of its loops."""

import re
from collections.abc import Iterator, Mapping
from math import prod

_KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?(?P<name>[\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?[\w.\-]+ = (?P<shape>.*?) (?P<kind>[a-z][\w\-]*)\((?P<rest>.*)$")
_SHAPE = re.compile(r"\b(?P<dtype>[a-z]+\d*\w*)\[(?P<sizes>[\d,]*)\]")
_CALLED = re.compile(r"\b(?:body|condition|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_KNOWN_TRIPS = re.compile(r'"known_trip_count":\{"n":"?(\d+)')
_CONDITION = re.compile(r"\bcondition=%?([\w.\-]+)")
_GROUPS = re.compile(r"replica_groups=(?:\{\{(?P<first>[\d,]+)\}|\[\d+,(?P<size>\d+)\]<=)")
_LIMIT = re.compile(r"\bs32\[\]\S* constant\((\d+)\)")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f64": 8, "s64": 8, "u64": 8}


def collective_bytes(text: str) -> dict[str, float]:
    """Bytes that one device receives, by the kind of the collective; a reduction counts its operand.

    A loop counts as often as the number that its condition compares with: the most that a `while_loop` can make.

    Args:
        text: of a compiled program, `compiled.as_text()`.
    """
    computations = dict(_computations(text))
    entry = next(name for name, (is_entry, _) in computations.items() if is_entry)
    totals: dict[str, float] = {}

    def visit(name: str, times: float) -> None:
        for line in computations.get(name, (False, []))[1]:
            match = _INSTRUCTION.match(line)
            if match is None:
                continue
            kind = match["kind"].removesuffix("-start")
            if kind in _KINDS:
                totals[kind] = totals.get(kind, 0.0) + times * _received(match["kind"], match["shape"], line)
            trips = _trips(line, computations) if kind == "while" else 1.0
            for called in _called(line):
                visit(called, times * trips)

    visit(entry, 1.0)
    return totals


def _trips(line: str, computations: Mapping[str, tuple[bool, list[str]]]) -> float:
    """How often the body of a loop runs at most."""
    known = _KNOWN_TRIPS.search(line)
    if known:
        return float(known[1])
    waiting, limits = _CONDITION.findall(line), [1]
    while waiting:
        for inner in computations.get(waiting.pop(), (False, []))[1]:
            limits += map(int, _LIMIT.findall(inner))
            waiting += _called(inner)
    return float(max(limits))


def _computations(text: str) -> Iterator[tuple[str, tuple[bool, list[str]]]]:
    name, is_entry, lines = "", False, list[str]()
    for line in text.splitlines():
        match = _COMPUTATION.match(line)
        if match:
            name, is_entry, lines = match["name"], line.startswith("ENTRY"), []
        elif line.startswith("}") and name:
            yield name, (is_entry, lines)
            name = ""
        elif name:
            lines.append(line)


def _called(line: str) -> list[str]:
    branches = [name.strip(" %") for group in _BRANCHES.findall(line) for name in group.split(",")]
    return _CALLED.findall(line) + branches


def _received(kind: str, shape: str, line: str) -> float:
    """Bytes of a collective's results, or of a reduction's operands; several arrays can share one collective.

    The shape of an all-gather or a permutation that is only started has operands, then results, then numbers.
    """
    sizes = [
        prod(int(each) for each in match["sizes"].split(",") if each) * _BYTES.get(match["dtype"], 4)
        for match in _SHAPE.finditer(shape)
        if match["sizes"] or match["dtype"] != "u32"
    ]
    if kind in ("all-gather-start", "collective-permute-start"):
        sizes = sizes[len(sizes) // 2 :]
    return float(sum(sizes)) * (_group_size(line) if kind == "reduce-scatter" else 1)


def _group_size(line: str) -> int:
    """Devices of a group, listed as {{0,1},{2,3}} or as [groups,devices]<=[...]."""
    match = _GROUPS.search(line)
    if match is None:
        return 1
    return int(match["size"]) if match["size"] else len(match["first"].split(","))
