"""Untrusted text on the terminal: printed literally, without markup or control sequences."""

from rich.console import Console
from rich.text import Text

from jaxrl_lm.storage import visible_text


def result_console() -> Console:
    """Standard output for the results of a run, which of several processes only the first prints."""
    from jaxrl_lm.distributed import is_main  # here, since it imports JAX

    return Console(quiet=not is_main())


def print_text(text: str, *, console: Console | None = None, style: str = "", soft_wrap: bool = False) -> None:
    """Print a text literally: no markup, emoji names or terminal control sequences.

    Args:
        text: untrusted text, such as a completion or a path.
        console: rich console; None for standard output.
        style: rich style of the whole text.
        soft_wrap: let the terminal wrap long lines, for text to be copied.
    """
    (console or Console()).print(
        visible_text(text), style=style, soft_wrap=soft_wrap, markup=False, emoji=False, highlight=False
    )


def text_cell(text: str) -> Text:
    """The same for a table cell."""
    return Text(visible_text(text))
