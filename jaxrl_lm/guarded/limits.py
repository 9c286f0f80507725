"""Limits on files. All sizes are after decompression."""

MAX_DEPTH = 100
"""Nested lists and objects in JSON and YAML. Python's own recursion limit allows about 300."""

MAX_LINE_BYTES = 2**25
"""One line of JSON lines, a table or plain text: 32 MiB."""

MAX_CSV_CELL_CHARACTERS = 2**24
"""One table cell, which may span lines."""

MAX_FILE_BYTES = 2**30
"""A file that is read at once, such as a `.json` list: 1 GiB. JSON lines, tables and plain text are read line by line
and may have any size."""

MAX_YAML_CHARACTERS = 2**16
"""A YAML file: 64 Ki. PyYAML may read as few as 20,000 per second."""

MAX_YAML_VALUES = 100_000
"""Values in a YAML file after expanding aliases."""

MAX_YAML_DIGITS = 100
"""Digits of an integer in a YAML file."""

MAX_TEMPLATE_SECONDS = 5.0
"""Time limit of a chat template per conversation. Typical templates take about a millisecond."""
