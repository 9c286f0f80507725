"""Text files in any Unicode encoding, with lines of bounded length."""

import codecs
import io
from collections.abc import Iterator
from pathlib import Path

from jaxrl_lm.errors import InputError
from jaxrl_lm.guarded.limits import MAX_FILE_BYTES, MAX_LINE_BYTES

_CHUNK_BYTES = 2**16
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # starts with the mark of utf-16-le
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# Share of zero bytes in UTF-16 or UTF-32 text: a half or three quarters for English, almost none in UTF-8.
_MIN_ZERO_SHARE = 0.2


def encoding_of(head: bytes) -> str:
    """Detect a file's Unicode encoding by its byte-order mark or the position of zero bytes.

    Excel and PowerShell write UTF-16, with and without a mark.

    Args:
        head: the beginning of the file, a few thousand bytes.

    Returns:
        The encoding; `utf-8` by default.
    """
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name
    if head.count(0) < max(1, _MIN_ZERO_SHARE * len(head)):
        return "utf-8"
    zeros = [head[place::4].count(0) for place in range(4)]
    even, odd = zeros[0] + zeros[2], zeros[1] + zeros[3]
    if min(zeros[2], zeros[3]) > 4 * zeros[0]:
        guess = "utf-32-le"
    elif min(zeros[0], zeros[1]) > 4 * zeros[3]:
        guess = "utf-32-be"
    elif max(even, odd) > 4 * min(even, odd):
        guess = "utf-16-le" if odd > even else "utf-16-be"
    else:
        return "utf-8"
    try:
        codecs.getincrementaldecoder(guess)().decode(head)
    except UnicodeDecodeError:
        return "utf-8"
    return guess


def decode(content: bytes, source: str) -> str:
    """Decode a file in any Unicode encoding, without its byte-order mark.

    Raises:
        InputError: it is in another encoding.
    """
    encoding = encoding_of(content[:_CHUNK_BYTES])
    try:
        return content.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{source}, line {line}: {_not_unicode(content, encoding, error)}") from error


def read_bytes(path: Path, *, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """The content of a file.

    Raises:
        InputError: it cannot be read, or is larger than `max_bytes`.
    """
    try:
        with path.open("rb") as file:
            return read_whole(file, str(path), max_bytes=max_bytes)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise InputError(f"{path}: cannot be read ({error}); check the file") from error


def read_whole(file: io.BufferedIOBase, source: str, *, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """The rest of an open file.

    Raises:
        InputError: it is larger than `max_bytes`.
    """
    content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise InputError(f"{source}: holds more than {max_bytes:,} bytes, the size limit of such a file")
    return content


def read_text(path: Path, *, max_bytes: int = MAX_FILE_BYTES) -> str:
    """The text of a file in any Unicode encoding.

    Raises:
        InputError: it cannot be read, is larger than `max_bytes`, or is in another encoding.
    """
    return decode(read_bytes(path, max_bytes=max_bytes), str(path))


def open_utf8(file: io.BufferedIOBase, source: str) -> io.BufferedIOBase:
    """Recode a file from any Unicode encoding to UTF-8 without a byte-order mark.

    Args:
        file: open at its beginning, with `peek`; it need not be seekable.
        source: its name, for errors.

    Returns:
        A file to read instead. Reading raises `InputError` where the bytes do not fit the encoding; UTF-8 passes
        through unchecked.
    """
    head = file.peek(_CHUNK_BYTES)  # pyright: ignore[reportAttributeAccessIssue]
    encoding = encoding_of(head)
    mark = next((mark for mark, name in _MARKS if name == encoding and head.startswith(mark)), b"")
    file.read(len(mark))
    if encoding == "utf-8":
        return file
    return io.BufferedReader(_Recoded(file, encoding, source), _CHUNK_BYTES)


def try_lines(file: io.BufferedIOBase, source: str) -> Iterator[tuple[int, str | InputError]]:
    """Numbered lines of a UTF-8 file with their line ends, or the error of each bad line.

    Only a line feed ends a line, as in JSON and CSV.

    Raises:
        InputError: a line is longer than `MAX_LINE_BYTES`.
    """
    line = 0
    while raw := file.readline(MAX_LINE_BYTES + 1):
        line += 1
        if len(raw) > MAX_LINE_BYTES:
            raise InputError(
                f"{source}, line {line}: longer than {MAX_LINE_BYTES:,} bytes, the limit per line; split it, or check "
                "that this is a text file"
            )
        try:
            yield line, raw.decode()
        except UnicodeDecodeError as error:
            yield line, InputError(f"{source}, line {line}: {_not_unicode(raw, 'utf-8', error)}")


class _Recoded(io.RawIOBase):
    """A file in another encoding, as UTF-8."""

    def __init__(self, file: io.BufferedIOBase, encoding: str, source: str) -> None:
        self._file, self._source = file, source
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._encoding = encoding
        self._pending = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        while not self._pending:
            chunk = self._file.read(_CHUNK_BYTES)
            try:
                self._pending = self._decoder.decode(chunk, final=not chunk).encode()
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{self._source}: starts as {self._encoding.upper()}, but is not valid ({error.reason}); "
                    "save it as UTF-8"
                ) from error
            if not chunk:
                break
        size = min(len(buffer), len(self._pending))
        buffer[:size] = self._pending[:size]
        self._pending = self._pending[size:]
        return size


def _not_unicode(raw: bytes, encoding: str, error: UnicodeDecodeError) -> str:
    """The message for undecodable bytes: the likely encoding, and how to convert it."""
    name = encoding.upper()
    if encoding != "utf-8":
        return f"starts as {name}, but is not valid ({error.reason}); save it as UTF-8"
    # Both have the same Western European letters; only Windows-1252 has typographic quotes and dashes.
    likely = "WINDOWS-1252" if any(0x80 <= byte < 0xA0 for byte in raw) else "ISO-8859-1"
    return (
        f"not {name} ({error.reason}); it may be {likely}: save it as UTF-8, for example with "
        f"`iconv -f {likely} -t UTF-8 FILE > NEW`"
    )
