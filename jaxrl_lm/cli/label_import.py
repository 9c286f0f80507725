"""Label files for `jaxrl-lm label import`: data sets, and the output of `label export --all-verdicts`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from jaxrl_lm import data, feedback
from jaxrl_lm.data import Text, fields, forms
from jaxrl_lm.data.forms import Decode
from jaxrl_lm.errors import InputError
from jaxrl_lm.feedback import MODES, Item, LabelledItem, Mode


def read_labelled(source: str, mode: Mode, *, annotator: str | None, tokenizer: Any) -> list[LabelledItem]:
    """Read items with their verdicts and annotators.

    Args:
        source: a file; a row with `verdict` and `completions` comes from `label export --all-verdicts` and contains its
            mode, any other row is in the format of `mode`.
        mode: how the items of a data set were labelled.
        annotator: the annotator's name; None for each row's `annotator`.
        tokenizer: as for `data.read_best_of_k`.

    Raises:
        InputError: the source or a row is invalid.
    """

    if annotator is not None:
        feedback.checked_name(annotator)
    decode = data.make_decoder(source, tokenizer)

    def parse(row: dict[str, Any], where: str) -> list[LabelledItem]:
        name = row.get("annotator") if annotator is None else annotator
        if not isinstance(name, str) or not name.strip():
            raise InputError(f"{where}: the row has no annotator; give one with --annotator NAME")
        with _named(where):
            feedback.checked_name(name)
            if row.get("verdict") is not None and row.get("completions") is not None:
                return [_verdict(row, name, where)]
            labelled = _LABELLED[mode](row, where, decode)
            # A row with several items, such as a ranking, has no time or order per item.
            is_one = len(labelled) == 1
            seconds = _optional_number(row, "seconds", where) if is_one else None
            order = _shown_order(row, mode, where) if is_one else None
            return [
                LabelledItem(item=item, verdict=verdict, annotator=name, seconds=seconds, shown_order=order)
                for item, verdict in labelled
            ]

    return data.read_records(source, parse)


def _verdict(row: dict[str, Any], name: str, where: str) -> LabelledItem:
    mode, completions = fields.required(row, "mode", where), row["completions"]
    if mode not in MODES:
        raise InputError(f"{where}: mode={mode!r} must be one of {', '.join(MODES)}")
    if not isinstance(completions, list):
        raise InputError(f"{where}: completions={completions!r:.60} must be a list of completions")
    texts = {str(place): completion for place, completion in enumerate(completions)}
    checked = tuple(fields.nonblank_field(texts, place, f"{where}, completions") for place in texts)
    return LabelledItem(
        item=_item(mode, fields.text_field(row, "prompt", where), checked),
        verdict=str(row["verdict"]),
        annotator=name,
        seconds=_optional_number(row, "seconds", where),
        shown_order=_places(row, where),
        created_at=_optional_number(row, "created_at", where),
    )


def _shown_order(row: dict[str, Any], mode: Mode, where: str) -> tuple[int, ...] | None:
    """The order in which a row's completions were shown, as `label export` writes it."""
    if mode == "best-of-4":
        return _places(row, where)
    is_first = row.get("is_chosen_shown_first")
    if mode == "thumbs" or is_first in (None, ""):
        return None
    if not isinstance(is_first, bool):
        raise InputError(f"{where}: is_chosen_shown_first={is_first!r:.60} must be true or false, or omitted")
    return (0, 1) if is_first else (1, 0)


def _places(row: dict[str, Any], where: str) -> tuple[int, ...] | None:
    order = row.get("shown_order")
    if order is None:
        return None
    if not (isinstance(order, list) and all(type(place) is int for place in order)):
        raise InputError(f"{where}: shown_order={order!r:.60} must be a list of indices; omit it if unknown")
    return tuple(order)


@contextmanager
def _named(where: str) -> Iterator[None]:
    """Prefix errors with the row's location where missing."""
    try:
        yield
    except InputError as error:
        text = str(error)
        raise InputError(text if text.startswith(where) else f"{where}: {text}") from error


def _optional_number(row: dict[str, Any], name: str, where: str) -> float | None:
    return None if row.get(name) in (None, "") else fields.number_field(row, name, where)


def _item(mode: Mode, prompt: Text, completions: tuple[Text, ...]) -> Item:
    return Item(mode=mode, prompt=prompt, completions=completions, template=data.template_columns(prompt))


def _labelled_pairs(row: dict[str, Any], where: str, decode: Decode | None) -> list[tuple[Item, str]]:
    pairs = forms.to_preferences(row, where, decode)
    return [(_item("pairwise", pair.prompt, (pair.chosen, pair.rejected)), "0") for pair in pairs]


def _labelled_thumbs(row: dict[str, Any], where: str, _: Decode | None) -> list[tuple[Item, str]]:
    answer = forms.to_unpaired_preference(row, where)
    return [(_item("thumbs", answer.prompt, (answer.completion,)), "up" if answer.label else "down")]


def _labelled_fours(row: dict[str, Any], where: str, decode: Decode | None) -> list[tuple[Item, str]]:
    four = forms.to_best_of_k(row, where, decode)
    return [(_item("best-of-4", four.prompt, four.completions), str(four.best))]


_LABELLED: dict[Mode, Callable[[dict[str, Any], str, Decode | None], list[tuple[Item, str]]]] = {
    "pairwise": _labelled_pairs,
    "thumbs": _labelled_thumbs,
    "best-of-4": _labelled_fours,
}
