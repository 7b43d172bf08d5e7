"""Small data sets in their publishers' own formats, written for a test."""
from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np

IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
CIFAR = (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch")


def grey(count: int, seed: int, side: int = 28) -> tuple[np.ndarray, np.ndarray]:
    """Images `(N, side, side)` and labels `(N,)`, bytes."""
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (count, side, side), np.uint8), random.integers(0, 10, count, np.uint8)


def idx_bytes(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_idx(folder: Path, train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], ending: str = ".gz") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in zip(IDX, (*train, *test)):
        data = idx_bytes(array)
        (folder / f"{name}{ending}").write_bytes(gzip.compress(data) if ending == ".gz" else data)
    return folder


def colour(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images `(N, 3, 32, 32)` and labels `(N,)`, bytes."""
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (count, 3, 32, 32), np.uint8), random.integers(0, 10, count, np.uint8)


def cifar_binary(x: np.ndarray, y: np.ndarray) -> bytes:
    return np.concatenate([y[:, None], x.reshape(len(x), -1)], axis=1).tobytes()


def cifar_python(x: np.ndarray, y: np.ndarray) -> bytes:
    """The pickle that Python 2 and its NumPy wrote of {'data': (N, 3072) bytes, 'labels': [...]}, opcode by opcode."""
    rows = x.reshape(len(x), -1)

    def text(value: str) -> bytes:
        return b"U" + bytes([len(value)]) + value.encode()

    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text("b") + b"\x87R"
    dtype = b"cnumpy\ndtype\n" + text("u1") + b"K\x00K\x01\x87R(K\x03" + text("|") + b"NNN" + b"J\xff\xff\xff\xff" * 2 + b"K\x00tb"
    shape = b"".join(b"J" + struct.pack("<i", side) for side in rows.shape) + b"\x86"
    state = b"(K\x01" + shape + dtype + b"\x89T" + struct.pack("<i", rows.size) + rows.tobytes() + b"tb"
    labels = b"](" + b"".join(b"K" + bytes([label]) for label in y.tolist()) + b"e"
    return b"\x80\x02}(" + text("data") + empty + state + text("labels") + labels + b"u."
