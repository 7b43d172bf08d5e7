"""What a user can do wrong, and what a machine can lack: every error is one sentence that says what was seen, where, and what to do."""


class VerifierError(Exception):
    """Base of all errors that the command line prints as one sentence (exit code 2)."""


class ModelError(VerifierError):
    """The network file cannot be read, or does not mean what it says."""


class UnsupportedError(ModelError):
    """The network uses operations that no rule covers; the message lists all of them."""


class SpecError(VerifierError):
    """The property cannot be read; the message names file, line and column."""


class ShapeError(VerifierError):
    """Two shapes that must agree do not; the message shows both."""


class OutOfMemory(VerifierError):
    """The smallest possible piece of the work does not fit the memory budget."""


class OutOfTime(VerifierError):
    """The deadline came before the work had a result to show."""
