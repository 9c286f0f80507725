"""Texts of models, data and people on the terminal: shown as they are, and never obeyed."""

from rich.console import Console
from rich.text import Text

from jaxrl_lm.storage import visible_text


def print_text(text: str, *, console: Console | None = None, style: str = "", soft_wrap: bool = False) -> None:
    """Print a text in which nothing is markup, an emoji's name or a command to the terminal.

    Args:
        text: of a model, of data, of people, or a path.
        console: where to; None for standard output.
        style: rich's, for all of it.
        soft_wrap: leave the breaking of long lines to the terminal, as for what people copy.
    """
    (console or Console()).print(
        visible_text(text), style=style, soft_wrap=soft_wrap, markup=False, emoji=False, highlight=False
    )


def text_cell(text: str) -> Text:
    """The same for a table's cell."""
    return Text(visible_text(text))
