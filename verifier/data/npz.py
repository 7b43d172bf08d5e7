"""Any .npz file of labelled images: x_train, y_train, x_test, y_test, or x and y alone, which are then test images."""
from __future__ import annotations

import zlib
from pathlib import Path
from zipfile import BadZipFile, ZipFile

import numpy as np

from verifier.data.arrays import Arrays
from verifier.errors import ShapeError, VerifierError

TRAIN_NAMES = (("x_train", "y_train"),)
TEST_NAMES = (("x_test", "y_test"), ("x", "y"), ("images", "labels"), ("arr_0", "arr_1"))
_CHANNELS = (1, 3, 4)


def read(path: Path) -> Arrays:
    """The images of a file, by channel first; bytes are scaled by 1/255, other numbers must lie in [0, 1].

    Images may be `(N, H, W)`, `(N, C, H, W)`, `(N, H, W, C)` with 1, 3 or 4 channels, or flat `(N, D)`, which become `(N, 1, 1, D)`.

    Raises:
        VerifierError: the file cannot be read, has none of the pairs of arrays, or they are no images in [0, 1] with labels.
    """
    arrays = _members(path)
    parts = [_pair(arrays, names, path) for names in (TRAIN_NAMES, TEST_NAMES)]
    present = [part for part in parts if part is not None]
    if not present:
        have = ", ".join(arrays) or "(none)"
        raise VerifierError(f"{path} has the arrays {have}: expected x and y, or x_train, y_train, x_test and y_test.")
    x, _ = present[0]
    if any(part[0].shape[1:] != x.shape[1:] or part[0].dtype != x.dtype for part in present):
        raise ShapeError(f"{path}: x_train and x_test differ in shape or type: expected images of one kind.")
    nothing = (x[:0], np.empty(0, np.int64))
    train, test = (nothing if part is None else part for part in parts)
    return Arrays(*train, *test, scale=255.0 if x.dtype == np.uint8 else 1.0)


def _members(path: Path) -> dict[str, np.ndarray]:
    known = {name for pair in (*TRAIN_NAMES, *TEST_NAMES) for name in pair}
    try:
        with ZipFile(path):  # np.load takes other files too, and refuses each in another way
            pass
        with np.load(path, allow_pickle=False) as file:
            return {name.lower(): file[name] for name in file.files if name.lower() in known}
    except OSError as error:
        raise VerifierError(f"{path} cannot be read ({error.strerror or error}): check the path.") from None
    except (BadZipFile, ValueError, EOFError, RuntimeError, NotImplementedError, zlib.error) as error:
        raise VerifierError(f"{path} is not an .npz file of plain arrays ({error}): write it with numpy.savez.") from None


def _pair(arrays: dict[str, np.ndarray], names: tuple[tuple[str, str], ...], path: Path) -> tuple[np.ndarray, np.ndarray] | None:
    for x, y in names:
        if x in arrays and y in arrays:
            return _images(arrays[x], f"{path}: {x}"), _labels(arrays[y], len(arrays[x]), f"{path}: {y}")
    return None


def _images(x: np.ndarray, where: str) -> np.ndarray:
    if x.ndim not in (2, 3, 4) or x.size == 0:
        raise ShapeError(f"{where} has the shape {x.shape}: expected (N, H, W), (N, C, H, W), (N, H, W, C) or (N, D), N at least 1.")
    if x.dtype.kind not in "iuf":
        raise VerifierError(f"{where} has numbers of type {x.dtype}: expected bytes, or numbers in [0, 1].")
    if x.dtype != np.uint8:
        low, high = float(x.min()), float(x.max())
        if not (low >= 0 and high <= 1):
            raise VerifierError(f"{where} goes from {low:g} to {high:g}: expected bytes, or numbers in [0, 1].")
        x = x.astype(np.float32)
    if x.ndim == 4:
        return np.ascontiguousarray(x.transpose(0, 3, 1, 2)) if x.shape[3] in _CHANNELS and x.shape[1] not in _CHANNELS else x
    return x[:, None] if x.ndim == 3 else x[:, None, None]


def _labels(y: np.ndarray, count: int, where: str) -> np.ndarray:
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.shape != (count,):
        raise ShapeError(f"{where} has the shape {y.shape} for {count} images: expected one label an image.")
    if y.dtype.kind not in "iu" or (y.dtype.kind == "i" and y.min() < 0):
        raise VerifierError(f"{where} has labels of type {y.dtype}, from {y.min()}: expected integers from 0.")
    return y.astype(np.int64)
