"""stdout and stderr as a command needs them: both are there, a failure to write is one sentence, and no text can write to the terminal's controls."""
from __future__ import annotations

import io
import os
import sys
from contextlib import suppress

from verifier.outputs import OutputError


def plain(text: str) -> str:
    """The text on one line, with what cannot be printed (control characters, line ends, lone surrogates) as Python writes it in a string."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in text)


def tell(sentence: str) -> None:
    """One sentence for a person; nobody hears it where stderr is closed or full."""
    if sys.stderr is not None:
        with suppress(OSError, ValueError):
            print(plain(sentence), file=sys.stderr, flush=True)


def draw(text: str) -> None:
    """Text for a terminal on stderr, its controls included."""
    with suppress(OSError, ValueError):
        sys.stderr.write(text)
        sys.stderr.flush()


class Stdout(io.TextIOWrapper):
    """stdout whose failures are an OutputError, once: what is written afterwards is dropped, so that the end of the process is silent."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except (OSError, ValueError) as error:
            raise self._failed(error) from None

    def flush(self) -> None:
        try:
            super().flush()
        except (OSError, ValueError) as error:
            raise self._failed(error) from None

    def _failed(self, error: OSError | ValueError) -> OutputError:
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
        return OutputError(f"Cannot write to stdout: {getattr(error, 'strerror', None) or error}.")


def prepare() -> None:
    """Makes the three standard streams usable: one that was closed at the start reads nothing, and a write to it fails (stdout) or vanishes (stderr).

    Otherwise the next file that is opened would get the number of the closed one, and what a library says there would go into that file.
    """
    for number, mode in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, mode)  # takes the lowest number that is free, which is this one
    buffer = open(1, "wb", closefd=False) if sys.stdout is None else sys.stdout.detach()  # noqa: SIM115
    sys.stdout = Stdout(buffer, encoding="utf-8", errors="backslashreplace", line_buffering=buffer.isatty())
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
