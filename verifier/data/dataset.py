"""Labelled images in memory: kept as they were stored, seen as float32 in [0, 1] where they are read.

    Images    (N, C, H, W), one byte a number where the file had bytes; images[i], images[a:b], images[indices] are float32 arrays
    Split     images with their labels
    Dataset   those to train on and those to test on; whatever chooses (a round, an epoch, a setting) gets its own from `selection`, not the test's
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from verifier.errors import ShapeError, VerifierError

PIECE = 2000  # images scaled at once where all are read: 24 MB as float32 for the largest known


@dataclass(frozen=True, slots=True, eq=False)
class Images:
    """x = stored / scale, `(N, C, H, W)`, as float32 in [0, 1].

    A data set of bytes takes a quarter of its memory as floats, so the division is done at each access: `images[:]` is all of it.
    """

    stored: np.ndarray
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.stored.ndim != 4:
            raise ShapeError(f"Images have the shape {self.stored.shape}: expected (N, C, H, W).")

    def __len__(self) -> int:
        return len(self.stored)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape

    def __getitem__(self, index: Any) -> np.ndarray:
        """float32 images at `index`, anything that indexes an array; correctly rounded quotients of the stored numbers."""
        return np.divide(self.stored[index], np.float32(self.scale), dtype=np.float32)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        values = self[:]
        return values if dtype is None else values.astype(dtype)

    def of(self, indices: Sequence[int] | np.ndarray | slice) -> Images:
        """The images at `indices`, still as stored."""
        return Images(self.stored[indices], self.scale)


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Images `x (N, C, H, W)` and labels `y (N,)` int64."""

    x: Images
    y: np.ndarray

    def __post_init__(self) -> None:
        if self.y.shape != (len(self.x),):
            raise ShapeError(f"{len(self.x)} images have labels of shape {self.y.shape}: expected one label an image.")

    def __len__(self) -> int:
        return len(self.y)

    def of(self, indices: Sequence[int] | np.ndarray | slice) -> Split:
        return Split(self.x.of(indices), self.y[indices])


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Training and test images in their official order; either may be empty where a file has only the other.

    `classes[k]` is the name of label k.
    """

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]

    @property
    def x_train(self) -> Images:
        return self.train.x

    @property
    def y_train(self) -> np.ndarray:
        return self.train.y

    @property
    def x_test(self) -> Images:
        return self.test.x

    @property
    def y_test(self) -> np.ndarray:
        return self.test.y

    @property
    def image_shape(self) -> tuple[int, ...]:
        """`(C, H, W)`."""
        return self.train.x.shape[1:]

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """mean_c = E x_c and std_c = (E x_c^2 - mean_c^2)^(1/2) over all pixels of the training images, `(C,)` each, in float64.

        Every call reads all training images.
        """
        self._needs_training_images()
        total = np.zeros((2, self.image_shape[0]))
        for start in range(0, len(self.train), PIECE):
            x = self.x_train[start : start + PIECE].astype(np.float64)
            total += [x.sum(axis=(0, 2, 3)), np.square(x).sum(axis=(0, 2, 3))]
        mean, square = total / (len(self.train) * self.image_shape[1] * self.image_shape[2])
        return mean, np.sqrt(np.maximum(square - mean**2, 0.0))

    @property
    def mean(self) -> np.ndarray:
        return self.moments()[0]

    @property
    def std(self) -> np.ndarray:
        return self.moments()[1]

    def selection(self, count: int, seed: int) -> tuple[Split, Split]:
        """(what is left to train on, `count` images to choose by): the training images parted at random; equal seeds, equal parts.

        Both keep the official order among themselves.

        Raises:
            VerifierError: there are not more than `count` training images, or count is negative.
        """
        self._needs_training_images()
        if not 0 <= count < len(self.train):
            raise VerifierError(f"{count} images to choose by were asked of {self.name}, which has {len(self.train)} training images: ask for less.")
        order = np.random.default_rng(seed).permutation(len(self.train))
        return self.train.of(np.sort(order[count:])), self.train.of(np.sort(order[:count]))

    def _needs_training_images(self) -> None:
        if not len(self.train):
            raise VerifierError(f"{self.name} has no training images: give a file with the arrays x_train and y_train.")
