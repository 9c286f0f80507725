"""Errors that a user can fix."""


class InputError(ValueError):
    """A file, a field or an option is invalid.

    The message names the field, the value and the remedy; the command line prints it without a traceback and
    exits with code 2.
    """
