"""How a run can end before its last update."""


class RunFailedError(RuntimeError):
    """A run cannot continue as it is; the message says why and what is saved."""


class TrainingDivergedError(RunFailedError):
    """A loss is not finite any more."""


class DiskFullError(RunFailedError):
    """A file of the run could not be written for lack of space."""


class Interrupted(Exception):
    """A run stopped on a signal; its state is saved.

    Attributes:
        signal_number: the signal that stopped it.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number
