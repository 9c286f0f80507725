"""The report of a run: one self-contained HTML file with numbers, plots and samples."""

import base64
import html
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxrl_lm.storage.compute import compute_section
from jaxrl_lm.storage.metrics import Curve, read_metrics
from jaxrl_lm.storage.plots import STEPS, write_plots
from jaxrl_lm.storage.run_folder import (
    RunFolder,
    check_step,
    finite_number,
    flatten_config,
    line_error,
    read_jsonl,
    write_atomically,
)
from jaxrl_lm.storage.sections import Section, Strip, read_sections
from jaxrl_lm.storage.seeds import write_seed_plots
from jaxrl_lm.storage.visible import is_visible, spell_out

_MAX_PROMPTS = 100
# Metrics that training should increase; the best of a loss, for example, means nothing.
_RAISED = re.compile(
    r"reward/(?!.*std)|(eval|eval_\w+|episode)/(return|discounted_return|solved|oracle_share)\b|evaluation/accuracy"
)
_PHASES = ("before", "during", "after")
# Values that are not finite are null; values that do not apply are omitted.
_SAMPLE_FIELDS = {
    "phase": str,
    "index": int,
    "prompt": str,
    "completion": str,
}
_SAMPLE_NUMBERS = ("reward", "kl")
_CONTENT_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1c2024; --faint: #5f6b76; --line: #dde2e7;
  --card: #f6f8fa; --mark: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171a; --ink: #e6e9ec; --faint: #9aa5b0;
  --line: #30363d; --card: #1c2126; --mark: #56b4e9; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 2rem 1.25rem 4rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { margin: 0 0 .25rem; font-size: 1.8rem; line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 2.5rem 0 .75rem; padding-bottom: .3rem; border-bottom: 1px solid var(--line);
  font-size: 1.2rem; }
.faint { color: var(--faint); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { padding: .35rem .8rem .35rem 0; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; overflow-wrap: anywhere; }
th { color: var(--faint); font-weight: 600; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
table.prose { table-layout: fixed; min-width: 40rem; }
.prose td { white-space: pre-line; }
td.name { font-family: ui-monospace, monospace; }
img { display: block; max-width: min(100%, 60rem); height: auto; margin: 0 auto 1rem; padding: .5rem;
  background: #fff; border: 1px solid var(--line); border-radius: 6px; }
article { margin: 0 0 1.25rem; border: 1px solid var(--line); border-radius: 6px; overflow: hidden; }
.prompt { padding: .75rem 1rem; background: var(--card); border-bottom: 1px solid var(--line); }
.pair { display: grid; grid-template-columns: 1fr 1fr; }
.pair > div { min-width: 0; padding: .75rem 1rem; }
.pair > div + div { border-left: 1px solid var(--line); }
.label { margin-bottom: .3rem; color: var(--faint); font-size: .8rem; }
.label b { color: var(--mark); }
.text { white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; }
.strip { margin: 0 0 .75rem; }
.control { color: var(--mark); font-size: .85em; }
@media (max-width: 40rem) { .pair { grid-template-columns: 1fr; }
  .pair > div + div { border-left: 0; border-top: 1px solid var(--line); } }
@media print { article, img { break-inside: avoid; } }
"""


def write_report(folder: RunFolder, *, title: str) -> Path:
    """Draw the plots and write `report.html`; empty sections are omitted.

    Args:
        folder: a run with `config.yaml`, and optionally metrics and samples.
        title: the heading.

    Returns:
        The path of the report.

    Raises:
        InputError: if a file of the run is damaged.
    """
    curves = read_metrics(folder)
    compute = compute_section(folder, curves)
    written = [*read_sections(folder), *([] if compute is None else [compute])]
    sections = [
        _plots_section([*write_seed_plots(folder), *write_plots(folder)]),
        *(_trainers_section(folder, section) for section in written),
        _metrics_section(curves),
        _samples_section(_read_samples(folder)),
        _config_section(folder.read_config()),
    ]
    state = _progress(curves)
    page = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_CONTENT_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f'<h1>{_visible(title)}</h1>\n<p class="faint">{_visible(folder.path.absolute().name)}'
        f"{state}</p>\n{''.join(sections)}</body>\n</html>\n"
    )
    write_atomically(folder.report_file, page)
    return folder.report_file


def _progress(curves: Mapping[str, Curve]) -> str:
    """The run's progress, in environment steps where available, otherwise in updates."""
    if STEPS in curves:
        return f", {int(curves[STEPS].values[-1]):,} environment steps per seed"
    last = max((int(curve.steps.max()) for curve in curves.values()), default=None)
    return "" if last is None else f", {last:,} updates"


def _trainers_section(folder: RunFolder, section: Section) -> str:
    note = f'<p class="faint">{_visible(section.note)}</p>\n' if section.note else ""
    picture = ""
    if section.picture is not None:
        encoded = base64.b64encode((folder.path / section.picture).read_bytes()).decode("ascii")
        picture = f'<img alt="{_escape(section.title)}" src="data:image/png;base64,{encoded}">\n'
    rows = [[_visible(cell) for cell in row] for row in section.rows]
    table = _table([_visible(head) for head in section.heads], rows, is_prose=section.is_prose) if rows else ""
    strips = "".join(_strip(strip) for strip in section.strips)
    return f"<h2>{_visible(section.title)}</h2>\n{note}{picture}{table}{strips}"


def _strip(strip: Strip) -> str:
    """A text with pieces coloured by their values, which show on hover."""
    largest = max((abs(value) for value in strip.values if math.isfinite(value)), default=0.0) or 1.0
    pieces = "".join(
        f'<span title="{_number(value)}" style="background:rgba({_color(value, largest)})">{_visible(piece)}</span>'
        for piece, value in zip(strip.pieces, strip.values, strict=True)
    )
    return (
        f'<div class="strip"><div class="label">{_visible(strip.label)}, up to {largest:.3g}</div>'
        f'<div class="text">{pieces}</div></div>\n'
    )


def _color(value: float, largest: float) -> str:
    """Red, green, blue and opacity."""
    opacity = 0.75 * min(1.0, abs(value) / largest) if math.isfinite(value) else 0.0
    return f"{'213,94,0' if value > 0 else '0,114,178'},{opacity:.2f}"


def _metrics_section(curves: Mapping[str, Curve]) -> str:
    if not curves:
        return ""
    rows = []
    for name, curve in curves.items():
        first, last = _ends(curve)
        rows.append([_visible(name), _number(first), _number(last), _best(name, curve, curves.get(STEPS))])
    note = "First and last are means over the first and last tenth of the records."
    table = _table(["metric", "first", "last", f"best (at {'update' if STEPS not in curves else 'step'})"], rows)
    return f'<h2>Metrics</h2>\n<p class="faint">{note}</p>\n{table}'


def _ends(curve: Curve) -> tuple[float, float]:
    count = max(1, len(curve.values) // 10)
    return _mean(curve.values[:count]), _mean(curve.values[-count:])


def _mean(values: Any) -> float:
    numbers = [value for value in values if not math.isnan(value)]
    return sum(numbers) / len(numbers) if numbers else math.nan


def _best(name: str, curve: Curve, steps: Curve | None) -> str:
    """The highest value and its step, for metrics that training should increase."""
    if not _RAISED.match(name) or np.isnan(curve.values).all():
        return "-"
    index = int(np.nanargmax(curve.values))
    at = curve.steps[index] if steps is None else np.interp(curve.steps[index], steps.steps, steps.values)
    return f"{_number(float(curve.values[index]))} ({int(at):,})"


def _plots_section(paths: Iterable[Path]) -> str:
    images = "".join(
        f'<img alt="curves of {_escape(path.stem)}" '
        f'src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode("ascii")}">\n'
        for path in paths
    )
    return f"<h2>Curves</h2>\n{images}" if images else ""


def _config_section(config: dict[str, Any]) -> str:
    rows = [[_visible(name), _visible(str(value))] for name, value in flatten_config(config).items()]
    return f"<h2>Configuration</h2>\n{_table(['field', 'value'], rows)}" if rows else ""


def _table(heads: list[str], rows: list[list[str]], *, is_prose: bool = False) -> str:
    if is_prose:
        head = "".join(f"<th>{name}</th>" for name in heads)
        body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>\n" for row in rows)
        return f'<div class="wide"><table class="prose">\n<tr>{head}</tr>\n{body}</table></div>\n'
    numeric = ' class="number"' if len(heads) > 2 else ""
    head = f"<th>{heads[0]}</th>" + "".join(f"<th{numeric}>{name}</th>" for name in heads[1:])
    body = "".join(
        f'<tr><td class="name">{row[0]}</td>{"".join(f"<td{numeric}>{cell}</td>" for cell in row[1:])}</tr>\n'
        for row in rows
    )
    return f'<div class="wide"><table>\n<tr>{head}</tr>\n{body}</table></div>\n'


def _read_samples(folder: RunFolder) -> list[dict[str, Any]]:
    samples = read_jsonl(folder.samples_file)
    for number, sample in enumerate(samples, start=1):
        check_step(folder.samples_file, number, sample)
        for field, kinds in _SAMPLE_FIELDS.items():
            if not isinstance(sample.get(field), kinds):
                raise line_error(folder.samples_file, number, f"{field} is {sample.get(field)!r:.60}")
        for field in _SAMPLE_NUMBERS:
            finite_number(folder.samples_file, number, field, sample.get(field))
        if sample["phase"] not in _PHASES:
            problem = f"phase is {sample['phase']!r:.60}, not one of {', '.join(_PHASES)}"
            raise line_error(folder.samples_file, number, problem)
    return samples


def _samples_section(samples: list[dict[str, Any]]) -> str:
    pairs = _pairs(samples)
    if not pairs:
        return ""
    shown = list(pairs.items())[:_MAX_PROMPTS]
    notes = [_reward_summary(list(pairs.values()))]
    if len(shown) < len(pairs):
        notes.append(f"Showing the first {len(shown)} of {len(pairs)} prompts.")
    articles = "".join(_article(prompt, before, after) for (_, prompt), (before, after) in shown)
    return f'<h2>Samples</h2>\n<p class="faint">{" ".join(notes)}</p>\n{articles}'


def _pairs(samples: Iterable[dict[str, Any]]) -> dict[tuple[int, str], tuple[Any, Any]]:
    """Pair each prompt's sample from before training with the one from after, or the latest."""
    found: dict[tuple[int, str], tuple[Any, Any]] = {}
    for sample in sorted(samples, key=lambda sample: (_PHASES.index(sample["phase"]), sample["step"])):
        key = (sample["index"], sample["prompt"])
        before, after = found.get(key, (None, None))
        found[key] = (sample, after) if sample["phase"] == "before" else (before, sample)
    return dict(sorted(found.items()))


def _reward_summary(pairs: list[tuple[Any, Any]]) -> str:
    whole = [pair for pair in pairs if pair[0] is not None and pair[1] is not None]
    if not whole:
        return f"{len(pairs)} prompts."
    if not all("reward" in sample for pair in whole for sample in pair):
        return f"{len(whole)} prompts."
    means = [_mean([_float(pair[side]["reward"]) for pair in whole]) for side in (0, 1)]
    return f"Mean reward over {len(whole)} prompts: {_number(means[0])} before, {_number(means[1])} after."


def _article(prompt: str, before: dict[str, Any] | None, after: dict[str, Any] | None) -> str:
    return (
        f'<article>\n<div class="prompt"><div class="label">prompt</div>{_text(prompt)}</div>\n'
        f'<div class="pair">{_side(before, "before")}{_side(after, "after")}</div>\n</article>\n'
    )


def _side(sample: dict[str, Any] | None, heading: str) -> str:
    if sample is None:
        return f'<div><div class="label">{heading}: no sample</div></div>'
    name = f"update {sample['step']}" if sample["phase"] == "during" else heading
    numbers = [f"reward <b>{_number(_float(sample['reward']))}</b>"] if "reward" in sample else []
    numbers += [f"KL {_number(_float(sample['kl']))}"] if "kl" in sample else []
    label = f"{name}: {', '.join(numbers)}" if numbers else name
    return f'<div><div class="label">{label}</div>{_text(sample["completion"])}</div>'


def _text(text: str) -> str:
    return f'<div class="text" dir="auto">{_visible(text)}</div>'


def _visible(text: str) -> str:
    """Escape text for HTML; invisible and layout characters are spelled out."""
    return "".join(_visible_character(character) for character in text)


def _visible_character(character: str) -> str:
    if is_visible(character):
        return html.escape(character)
    return f'<span class="control">{spell_out(character)}</span>'


def _escape(text: str) -> str:
    """Escape text for titles and attributes, which cannot contain elements."""
    return html.escape("".join(character if character.isprintable() else " " for character in text))


def _float(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _number(value: float) -> str:
    return "not finite" if math.isnan(value) else f"{value:.4g}"
