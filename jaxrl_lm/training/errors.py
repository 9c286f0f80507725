"""How a run can end before its last update."""


class RunFailedError(RuntimeError):
    """A run cannot go on as it is; the message says why and what is saved."""


class TrainingDivergedError(RunFailedError):
    """A loss is not finite any more."""


class DiskFullError(RunFailedError):
    """A file of the run could not be written for lack of space."""


class Interrupted(Exception):
    """A run stopped because it was told to; its state is saved.

    Attributes:
        signal_number: what told it.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number
