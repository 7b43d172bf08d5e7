"""SVHN's cropped digits: two MATLAB files with X (32, 32, 3, N) and y (N, 1), the digit 0 labelled 10.

Ref: "The Street View House Numbers (SVHN) Dataset", Netzer et al., section "Format 2".
"""
from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from verifier.data.arrays import Arrays
from verifier.errors import VerifierError

FILES = ("train_32x32.mat", "test_32x32.mat")


def read(paths: Sequence[Path]) -> Arrays:
    """The two files in the order of `FILES`."""
    return Arrays(*_part(paths[0]), *_part(paths[1]))


def _part(path: Path) -> tuple[np.ndarray, np.ndarray]:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        content = loadmat(path, variable_names=("X", "y"))
    except FileNotFoundError:
        raise VerifierError(f"{path} is not there: check the path.") from None
    except (MatReadError, OSError, EOFError, ValueError, TypeError, KeyError, NotImplementedError, struct.error, zlib.error) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise VerifierError(f"{path} is not a MATLAB file that can be read ({said}): fetch the file again.") from None
    if "X" not in content or "y" not in content:
        raise VerifierError(f"{path} lacks the variable X or y: is it the format of cropped digits?")
    pixels, labels = content["X"], content["y"].reshape(-1)
    if pixels.dtype != np.uint8 or pixels.shape[:3] != (32, 32, 3) or pixels.ndim != 4 or labels.dtype.kind not in "iuf":
        raise VerifierError(f"{path} has X {pixels.dtype} of shape {pixels.shape}: expected bytes of shape (32, 32, 3, N).")
    if pixels.shape[3] != len(labels):
        raise VerifierError(f"{path} has {pixels.shape[3]} images and {len(labels)} labels: fetch the file again.")
    labels = labels.astype(np.int64)
    return np.ascontiguousarray(pixels.transpose(3, 2, 0, 1)), np.where(labels == 10, 0, labels)
