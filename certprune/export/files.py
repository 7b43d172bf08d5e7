"""A file at once or not at all."""
from __future__ import annotations

import os
from pathlib import Path

import verifier


def write_bytes(path: str | Path, data: bytes) -> None:
    """The bytes under `path`, its folders made where they are missing; an older file stays until the new one is complete.

    Raises:
        VerifierError: the disk is full, or the place cannot be written.
    """
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        _remove(beside)
        kept = "the older file is kept" if path.is_file() else "nothing was written"
        raise verifier.VerifierError(f"{path} cannot be written ({error.strerror or error}): {kept}; make room or choose another place.") from None


def _remove(path: Path) -> None:
    """What is left of a file, where anything is; the error that stopped its writing is the one to report."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return
