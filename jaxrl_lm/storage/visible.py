"""Spell out invisible and control characters in untrusted text."""

import unicodedata

_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def visible_text(text: str) -> str:
    """Spell out such characters, including lone surrogates, as in `[U+001B]`; newlines and tabs are kept."""
    return "".join(character if is_visible(character) else spell_out(character) for character in text)


def is_visible(character: str) -> bool:
    """Whether a character is safe to show: not a control, format, line separator or surrogate character."""
    return character in "\n\t" or unicodedata.category(character) not in _HIDDEN


def spell_out(character: str) -> str:
    """A character as its code point, as in `[U+001B]`."""
    return f"[U+{ord(character):04X}]"
