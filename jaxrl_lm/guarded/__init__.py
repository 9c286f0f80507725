"""Readers for files that may be damaged, huge or hostile.

Whatever the content, a reader returns a value or raises `InputError`, in bounded time and memory. All modules read
JSON, YAML and text through here.
"""

from jaxrl_lm.guarded.documents import dump_yaml, parse_json, parse_yaml, read_json, read_object, read_yaml
from jaxrl_lm.guarded.foreign import foreign_errors, held_stderr, time_limit
from jaxrl_lm.guarded.limits import MAX_CSV_CELL_CHARACTERS, MAX_DEPTH, MAX_FILE_BYTES, MAX_LINE_BYTES
from jaxrl_lm.guarded.text import decode, encoding_of, open_utf8, read_bytes, read_text, read_whole, try_lines
from jaxrl_lm.guarded.user_code import import_file

__all__ = [
    "MAX_CSV_CELL_CHARACTERS",
    "MAX_DEPTH",
    "MAX_FILE_BYTES",
    "MAX_LINE_BYTES",
    "decode",
    "dump_yaml",
    "encoding_of",
    "foreign_errors",
    "held_stderr",
    "import_file",
    "open_utf8",
    "parse_json",
    "parse_yaml",
    "read_bytes",
    "read_json",
    "read_object",
    "read_text",
    "read_whole",
    "read_yaml",
    "time_limit",
    "try_lines",
]
