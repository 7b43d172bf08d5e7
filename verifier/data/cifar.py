"""CIFAR-10 in its python and its binary version, in a folder or in the publisher's archive, which is never unpacked to disk.

The python version is pickled, and a pickle may run anything. Here it is read by an unpickler that knows four names only, and puts inert
values in their place: a file that names anything else is refused, and no code but this file's runs.

Ref: "The CIFAR-10 dataset", Krizhevsky, section "Dataset layout".
"""
from __future__ import annotations

import io
import pickle
import tarfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from verifier.data.arrays import Arrays
from verifier.errors import VerifierError

PYTHON_FILES = (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch")
BINARY_FILES = tuple(f"{name}.bin" for name in PYTHON_FILES)
PYTHON_ARCHIVE, BINARY_ARCHIVE = "cifar-10-python.tar.gz", "cifar-10-binary.tar.gz"
_SIDE = (3, 32, 32)
_PIXELS = 3 * 32 * 32
_LARGEST_FILE = 2**28  # bytes; the publisher's batches have 31 million
Batch = tuple[np.ndarray, np.ndarray]


def read_python(paths: Sequence[Path]) -> Arrays:
    """The six files of `PYTHON_FILES`."""
    return _joined([_python_batch(_bytes(path), str(path)) for path in paths])


def read_binary(paths: Sequence[Path]) -> Arrays:
    """The six files of `BINARY_FILES`."""
    return _joined([_binary_batch(_bytes(path), str(path)) for path in paths])


def read_python_archive(paths: Sequence[Path]) -> Arrays:
    """The publisher's archive of the python version."""
    return _archive(paths[0], PYTHON_FILES, _python_batch)


def read_binary_archive(paths: Sequence[Path]) -> Arrays:
    """The publisher's archive of the binary version."""
    return _archive(paths[0], BINARY_FILES, _binary_batch)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise VerifierError(f"{path} cannot be read ({error.strerror}): check the file.") from None


def _archive(path: Path, names: Sequence[str], parse: Callable[[bytes, str], Batch]) -> Arrays:
    found: dict[str, Batch] = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                name = member.name.rsplit("/", 1)[-1]
                if name in names and member.isfile() and member.size <= _LARGEST_FILE:
                    found[name] = parse(archive.extractfile(member).read(), f"{path}: {name}")
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise VerifierError(f"{path} is cut or damaged ({error}): fetch the archive again.") from None
    except OSError as error:
        raise VerifierError(f"{path} cannot be read ({error.strerror or error}): check the file, or fetch it again.") from None
    missing = [name for name in names if name not in found]
    if missing:
        raise VerifierError(f"{path} lacks {', '.join(missing)}: is it the publisher's archive?")
    return _joined([found[name] for name in names])


def _joined(batches: Sequence[Batch]) -> Arrays:
    """The last batch is the test's."""
    x, y = (np.concatenate(parts) for parts in zip(*batches[:-1]))
    return Arrays(x, y, *batches[-1])


def _binary_batch(data: bytes, where: str) -> Batch:
    if not data or len(data) % (1 + _PIXELS):
        raise VerifierError(f"{where} has {len(data)} bytes: expected a multiple of {1 + _PIXELS}, a label and {_PIXELS} pixels an image.")
    rows = np.frombuffer(data, np.uint8).reshape(-1, 1 + _PIXELS)
    return rows[:, 1:].reshape(-1, *_SIDE), rows[:, 0]


def _python_batch(data: bytes, where: str) -> Batch:
    try:
        content = _Unpickler(io.BytesIO(data), encoding="bytes").load()
        named = {key.decode() if isinstance(key, bytes) else key: value for key, value in content.items()}
        x, labels = named["data"].bytes_of_matrix(), np.array([int(label) for label in named["labels"]], np.int64)
    except VerifierError as error:
        raise VerifierError(f"{where} {error}") from None
    except _BROKEN as error:
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        raise VerifierError(f"{where} is not a batch of CIFAR-10's python version ({said}): fetch the file again.") from None
    if x.shape[1] != _PIXELS or len(x) != len(labels):
        raise VerifierError(f"{where} has pixels {x.shape} and {len(labels)} labels: expected (N, {_PIXELS}) and N.")
    return x.reshape(-1, *_SIDE), labels


_BROKEN = (
    pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError, ImportError, OverflowError, MemoryError,
    RecursionError,
)  # fmt: skip
"""What the unpickler raises on bytes that are cut or are something else."""


@dataclass(slots=True)
class _Dtype:
    """Stands for numpy.dtype(code, ...); its state, the byte order, means nothing for bytes."""

    code: Any = None
    align: Any = None
    copy: Any = None

    def __setstate__(self, state: Any) -> None:
        pass


@dataclass(slots=True)
class _Array:
    """Stands for a numpy array: keeps the state it is given, as plain values."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def bytes_of_matrix(self) -> np.ndarray:
        """The array, where it is a matrix of bytes in C order."""
        _version, shape, dtype, is_fortran, data = self.state
        code = dtype.code.decode() if isinstance(dtype.code, bytes) else dtype.code
        if code != "u1" or is_fortran or len(shape) != 2 or not isinstance(data, bytes):
            raise ValueError(f"its array is not a matrix of bytes but {code} of shape {shape}")
        return np.frombuffer(data, np.uint8).reshape(shape)


@dataclass(slots=True)
class _ArrayType:
    """Stands for the class numpy.ndarray, which a pickled array names."""


def _empty_array(_kind: Any, _shape: Any, _code: Any) -> _Array:
    return _Array()


def _encoded(text: Any, _encoding: Any) -> bytes:
    """How Python 3 writes bytes into pickles of protocol 2."""
    return text.encode("latin-1")


_KNOWN = {
    ("numpy.core.multiarray", "_reconstruct"): _empty_array,
    ("numpy._core.multiarray", "_reconstruct"): _empty_array,  # written by numpy 2
    ("numpy", "ndarray"): _ArrayType,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encoded,
}


class _Unpickler(pickle.Unpickler):
    """Knows the names of an array of bytes and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise VerifierError(f"is refused: it names {module}.{name}, which no batch of CIFAR-10 does, and could run anything.")
        return _KNOWN[module, name]
