"""Files that a command writes: none is one of its inputs, and none is ever there in part.

A file that lies at an output's name is replaced only in one step, by the whole of the new one: until then the old one is untouched.
"""
from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from itertools import product
from pathlib import Path

from verifier.errors import VerifierError


class OutputError(VerifierError):
    """Something cannot be written, or must not be."""


def keep_apart(inputs: Mapping[str, Path | str | None], outputs: Mapping[str, Path | str | None]) -> None:
    """Refuses an output that is an input, or another output, under whatever name: another spelling, a link, a hard link. Writes nothing.

    Args:
        inputs: what the command reads, under the words that name it in the sentence: {"the model": path}. None is left out.
        outputs: what it is to write, by its option: {"--results-file": path}.

    Raises:
        OutputError: two of them are one file.
    """
    given = [(what, Path(path)) for what, path in inputs.items() if path is not None]
    wanted = [(what, Path(path)) for what, path in outputs.items() if path is not None]
    for (option, out), (what, path) in product(wanted, given):
        if _same(out, path):
            raise OutputError(f"{option} {out} is {what}, which would be overwritten: give it another name.")
    for k, (option, out) in enumerate(wanted):
        for other, path in wanted[:k]:
            if _same(out, path) and not _is_special(out) and standard_stream(out) is None:
                raise OutputError(f"{option} and {other} are one file, {out}: give them two names.")


def check_writable(path: Path) -> None:
    """That `replace_file` will be able to write there, as far as it can be known without touching what lies there.

    Raises:
        OutputError: it will not.
    """
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if _is_special(path) or standard_stream(path):
            return
        target = Path(os.path.realpath(path))
        if target.exists():
            os.close(os.open(target, os.O_WRONLY))
        else:
            tempfile.TemporaryFile(dir=target.parent).close()
    except (OSError, ValueError) as error:
        raise _unwritable(path, error) from None


def replace_file(path: Path, data: bytes) -> None:
    """The file holds `data`, or, where that fails, what it held before. Links are followed, permission bits kept; a pipe or device is written to.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        stream = standard_stream(path)
        if stream is not None:
            write_all(stream, data)
        elif _is_special(path):
            with open(path, "wb", buffering=0) as file:
                write_all(file.fileno(), data)
        else:
            _replace(Path(os.path.realpath(path)), data)
    except (OSError, ValueError) as error:
        raise _unwritable(path, error) from None


def _replace(target: Path, data: bytes) -> None:
    try:
        number, name = tempfile.mkstemp(prefix=f".{target.name[:100]}.", suffix=".part", dir=target.parent)
    except PermissionError:  # a file that may be written in a folder that may not
        with open(target, "r+b") as file:
            file.write(data)
            file.truncate()
        return
    try:
        with open(number, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(number, _mode(target))
            os.fsync(number)
        os.replace(name, target)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(name)  # what another file's name was not given to


def _mode(target: Path) -> int:
    """The permission bits of the file there, or those of a new one."""
    try:
        return stat.S_IMODE(target.stat().st_mode)
    except FileNotFoundError:
        mask = os.umask(0)
        os.umask(mask)
        return 0o666 & ~mask


def write_all(number: int, data: bytes) -> None:
    """The data, whole, to an open file."""
    view = memoryview(data)
    while view:
        view = view[os.write(number, view):]


def standard_stream(path: Path) -> int | None:
    """1 or 2 where the path is what stdout or stderr writes to: a new file under that name would take what was written before away."""
    for number in (1, 2):
        with suppress(OSError, ValueError):
            if os.path.samestat(os.fstat(number), os.stat(path)):
                return number
    return None


def _same(one: Path, other: Path) -> bool:
    with suppress(OSError, ValueError):
        if os.path.samefile(one, other):
            return True
    with suppress(OSError, ValueError):
        return os.path.realpath(one) == os.path.realpath(other)
    return False


def _is_special(path: Path) -> bool:
    """A pipe, a terminal or a device: written to, not replaced."""
    with suppress(OSError, ValueError):
        mode = path.stat().st_mode
        return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
    return False


def _unwritable(path: Path, error: OSError | ValueError) -> OutputError:
    return OutputError(f"Cannot write {path}: {getattr(error, 'strerror', None) or error}.")
