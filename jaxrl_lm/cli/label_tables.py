"""Label statistics as tables in the terminal."""

from rich.console import Console
from rich.table import Table

from jaxrl_lm.cli.console import text_cell
from jaxrl_lm.feedback import LabelStatistics

_NONE = "-"


def print_statistics(statistics: LabelStatistics, *, overlap: int) -> None:
    """Print labels, pace and agreement of annotators.

    Args:
        statistics: statistics of one mode.
        overlap: labels that an item needs to be done.
    """
    console = Console()
    console.print(
        f"{statistics.mode}: {statistics.num_finished(overlap)} of {statistics.num_items} items labelled, "
        f"{statistics.num_labels} labels, {statistics.num_shared} shared items; "
        f"Krippendorff's alpha {_fixed(statistics.alpha, 3)}",
        soft_wrap=True,
    )
    if statistics.people:
        console.print(_people(statistics))
    if statistics.pairs:
        console.print(_pairs(statistics))


def _people(statistics: LabelStatistics) -> Table:
    table = Table("name", "labels", "skips", "ties", "median seconds", "labels per hour", "first shown chosen")
    for person in statistics.people:
        table.add_row(
            text_cell(person.name),
            str(person.num_labels),
            str(person.num_skips),
            str(person.num_ties),
            _fixed(person.median_seconds, 1),
            _fixed(person.labels_per_hour, 0),
            f"{person.num_first_chosen} of {person.num_choices}" if person.num_choices else _NONE,
        )
    return table


def _pairs(statistics: LabelStatistics) -> Table:
    table = Table("annotators", "shared items", "same verdict", "Cohen's kappa")
    for pair in statistics.pairs:
        names = text_cell(" & ".join(pair.names))
        table.add_row(names, str(pair.num_shared), f"{pair.agreement:.0%}", _fixed(pair.kappa, 3))
    return table


def _fixed(value: float | None, digits: int) -> str:
    return _NONE if value is None else f"{value:.{digits}f}"
