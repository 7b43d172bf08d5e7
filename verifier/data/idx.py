"""IDX, the format of MNIST and its successors: two zero bytes, a type, a number of dimensions, big-endian sizes, the numbers.

Ref: "The MNIST database of handwritten digits", LeCun, Cortes, Burges, section "File formats".
"""
from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from verifier.data.arrays import Arrays
from verifier.errors import VerifierError

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_UNSIGNED_BYTE = 8


def read(paths: Sequence[Path]) -> Arrays:
    """The four files in the order of `FILES`, gzipped or not."""
    (x, y), (x_test, y_test) = ((_array(images, 3)[:, None], _array(labels, 1)) for images, labels in (paths[:2], paths[2:]))
    return Arrays(x, y, x_test, y_test)


def _array(path: Path, ndim: int) -> np.ndarray:
    """The bytes of one file, in the shape that it says."""
    try:
        with open(path, "rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else open(path, "rb") as file:
            return _parse(file, ndim, path)
    except (EOFError, zlib.error) as error:
        raise VerifierError(f"{path} is cut or damaged ({error}): fetch the file again.") from None
    except OSError as error:  # a wrong checksum of gzip too
        raise VerifierError(f"{path} cannot be read ({error.strerror or error}): check the file, or fetch it again.") from None


def _parse(file: BinaryIO, ndim: int, path: Path) -> np.ndarray:
    head = file.read(4)
    if head != bytes([0, 0, _UNSIGNED_BYTE, ndim]):
        expected = f"00 00 08 {ndim:02x}, the mark of an IDX file of bytes with {ndim} dimensions"
        raise VerifierError(f"{path} begins with {head.hex(' ') or 'nothing'}: expected {expected}.")
    sizes = file.read(4 * ndim)
    if len(sizes) < 4 * ndim:
        raise VerifierError(f"{path} ends within its sizes: fetch the file again.")
    shape = struct.unpack(f">{ndim}I", sizes)
    wanted = math.prod(shape)
    data = file.read(wanted + 1)  # not the whole file: a small gzip file can hold terabytes of zeros
    if len(data) != wanted:
        seen = f"{len(data)} bytes of numbers" if len(data) < wanted else "more"
        raise VerifierError(f"{path} says {' x '.join(map(str, shape))} = {wanted} bytes but has {seen}: fetch the file again.")
    return np.frombuffer(data, np.uint8).reshape(shape)
