"""Characters of texts from elsewhere that show nothing, or steer a terminal or a page, spelled out."""

import unicodedata

_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def visible_text(text: str) -> str:
    """The text with each such character, lone surrogates among them, as in `[U+001B]`; newlines and tabs stay."""
    return "".join(character if is_visible(character) else spell_out(character) for character in text)


def is_visible(character: str) -> bool:
    """Whether a character may be shown as it is: no control or format character, separator of lines or surrogate."""
    return character in "\n\t" or unicodedata.category(character) not in _HIDDEN


def spell_out(character: str) -> str:
    """A character by its code, as in `[U+001B]`."""
    return f"[U+{ord(character):04X}]"
