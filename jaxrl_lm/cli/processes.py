"""What the processes of `jaxrl-lm launch` run, and how they end; light, because every worker imports it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    """What every worker runs.

    Attributes:
        command: the command line, without jaxrl-lm.
        folder: the working directory.
        environment: variables to set.
    """

    command: tuple[str, ...]
    folder: str
    environment: dict[str, str]


@dataclass(frozen=True)
class End:
    """How the command of one worker ended.

    Attributes:
        process: number of the process.
        host: where it ran.
        code: its exit code; minus the number of the signal that ended it.
        message: what it said about its end, if it did so in the form of `jaxrl-lm: MESSAGE`.
        tail: the last lines of its output.
    """

    process: int
    host: str
    code: int
    message: str | None = None
    tail: str = ""
