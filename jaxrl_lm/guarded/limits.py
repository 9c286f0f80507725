"""Limits of what is read from files. All sizes are those after decompression."""

MAX_DEPTH = 100
"""Lists and objects inside one another, in JSON and YAML. Python's own recursion limit allows about 300 of them."""

MAX_LINE_BYTES = 2**25
"""Of one line of JSON lines, a table or plain text: 32 MiB."""

MAX_CSV_CELL_CHARACTERS = 2**24
"""Of one cell of a table, which may span lines."""

MAX_FILE_BYTES = 2**30
"""Of a file that is read whole, such as a `.json` list: 1 GiB. JSON lines, tables and plain text are read line by line
and may be of any size."""

MAX_YAML_CHARACTERS = 2**16
"""Of a YAML file: 64 Ki. PyYAML reads as few as 20,000 a second."""

MAX_YAML_VALUES = 100_000
"""Values of a YAML file once its aliases are expanded."""

MAX_YAML_DIGITS = 100
"""Of a whole number in a YAML file."""

MAX_TEMPLATE_SECONDS = 5.0
"""Time that a chat template may take for one conversation. Ordinary ones take about a millisecond."""
