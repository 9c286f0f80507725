"""Encodings and lines: every Unicode encoding gives the same text; others are named; lines are bounded."""

import gzip
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrl_lm import guarded
from jaxrl_lm.errors import InputError
from jaxrl_lm.guarded import text as guarded_text

TEXT = 'prompt,x\nWhat is “naïve”?\u2028迷路 🐭,1\n"a\rb",2\n' * 50
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"]


def lines_of(content, *, buffer_size=2**16):
    file = guarded.open_utf8(io.BufferedReader(io.BytesIO(content), buffer_size), "f")
    return [text for _, text in guarded.try_lines(file, "f")]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("buffer_size", [64, 2**16])
def test_every_unicode_encoding_gives_the_same_text(encoding, buffer_size):
    content = TEXT.encode(encoding)
    assert guarded.decode(content, "f") == TEXT
    assert "".join(lines_of(content, buffer_size=buffer_size)) == TEXT
    assert len(lines_of(content)) == TEXT.count("\n")


@given(text=st.text(st.characters(max_codepoint=0x24F, exclude_characters="\0"), min_size=4, max_size=60))
def test_latin_text_of_a_known_encoding_is_recognised_by_its_mark(text):
    for encoding in ("utf-8-sig", "utf-16", "utf-32"):
        assert "".join(lines_of(text.encode(encoding))) == text


@pytest.mark.parametrize(
    ("content", "encoding"),
    [
        (b"hello\nsecond\n", "utf-8"),
        (b"", "utf-8"),
        (b"a\0b\0", "utf-16-le"),
        (b"\0a\0b", "utf-16-be"),
        (b"a\0\0\0b\0\0\0", "utf-32-le"),
        (b"\0\0\0a\0\0\0b", "utf-32-be"),
        (b"a line of text with one zero byte\0 in it\n", "utf-8"),
        (b"\0\0\0\0\0\0\0\0", "utf-8"),
        (b"prompt,x\r\n\0,\0\r\n", "utf-8"),
        (b"\xd8a\0\xd8b\0\xd8c\0", "utf-8"),  # zeros in every third place
        (b"a\0" * 9 + b"\0\xdc", "utf-8"),  # half of a surrogate pair: not UTF-16
    ],
)
def test_encoding_is_guessed_from_where_the_zero_bytes_are(content, encoding):
    assert guarded.encoding_of(content) == encoding


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("naïve".encode("latin-1"), ["line 1", "not UTF-8", "ISO-8859-1", "iconv -f ISO-8859-1 -t UTF-8"]),
        ("a\n“naïve”".encode("cp1252"), ["line 2", "not UTF-8", "WINDOWS-1252", "save it as UTF-8"]),
    ],
)
def test_other_encodings_are_named_with_the_way_to_convert_them(content, words):
    with pytest.raises(InputError) as caught:
        guarded.decode(content, "f")
    (said,) = [line for line in lines_of(content) if isinstance(line, InputError)]
    for word in words:
        assert word in str(caught.value)
        assert word in str(said)


def test_utf_16_that_breaks_off_is_refused():
    with pytest.raises(InputError, match="starts as UTF-16-LE, but is not valid"):
        lines_of(TEXT.encode("utf-16")[:-1])
    with pytest.raises(InputError, match="starts as UTF-16-LE"):
        guarded.decode(TEXT.encode("utf-16")[:-1], "f")


def test_an_endless_line_ends_at_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(guarded_text, "MAX_LINE_BYTES", 1000)
    assert lines_of(b"x" * 999 + b"\n" + b"y") == ["x" * 999 + "\n", "y"]
    with gzip.open(io.BytesIO(gzip.compress(b"a\n" + b"x" * 10_000_000))) as file:
        with pytest.raises(InputError, match="f, line 2: longer than 1,000 bytes"):
            list(guarded.try_lines(file, "f"))
        assert file.tell() < 10_000  # and no more is decompressed


def test_files_that_are_read_whole_are_bounded(tmp_path):
    (tmp_path / "f").write_bytes(b"123")
    assert guarded.read_bytes(tmp_path / "f", max_bytes=3) == b"123"
    with pytest.raises(InputError, match="more than 2 bytes"):
        guarded.read_bytes(tmp_path / "f", max_bytes=2)
    for path in (tmp_path, tmp_path / "absent", tmp_path / ("x" * 5000), tmp_path / "a\0b"):
        with pytest.raises(InputError, match="cannot be read"):
            guarded.read_bytes(path)
