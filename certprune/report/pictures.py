"""Pictures inside the page: an image, its counterexample and their difference, each a PNG written into its own address."""
from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.image import imsave

from certprune.rows import ImageResult
from verifier import VerifierError


@dataclass(frozen=True, slots=True)
class Images:
    """x `(N, C, H, W)` in [0, 1], the images of one split in the order of `ImageResult.index`; `classes`: a name for each label."""

    x: np.ndarray
    classes: tuple[str, ...]
    split: str = "test"

    def __post_init__(self) -> None:
        if self.x.ndim != 4:
            raise VerifierError(f"The images of the report have shape {self.x.shape}: give (N, C, H, W).")


@dataclass(frozen=True, slots=True)
class Triple:
    """Three addresses of pictures, and the largest change of a pixel."""

    original: str
    counterexample: str
    difference: str
    largest: float


def triple(result: ImageResult, images: Images, where: str) -> Triple:
    """x, x' and x' - x; of the difference white is no change, red brighter, blue darker, full colour the largest change (RGB: grey is none).

    Raises:
        VerifierError: the image is not there, or the counterexample has another number of pixels.
    """
    shape = images.x.shape[1:]
    if result.index >= len(images.x):
        raise VerifierError(f"{where}: image {result.index} is not among the {len(images.x)} images given: are they of another split?")
    if len(result.counterexample) != int(np.prod(shape)):
        raise VerifierError(f"{where}: the counterexample of image {result.index} has {len(result.counterexample)} pixels, an image {shape}.")
    x = np.asarray(images.x[result.index], dtype=np.float64)
    found = np.asarray(result.counterexample, dtype=np.float64).reshape(shape)
    largest = float(np.abs(found - x).max())
    return Triple(_address(_pixels(x)), _address(_pixels(found)), _address(_signed((found - x) / max(largest, 1e-12))), largest)


def _pixels(x: np.ndarray) -> np.ndarray:
    """`(C, H, W)` -> `(H, W, 3)` bytes: three channels are colours, any other number is averaged to grey."""
    rgb = x if len(x) == 3 else np.repeat(x.mean(axis=0, keepdims=True), 3, axis=0)
    return np.rint(255 * np.clip(rgb, 0.0, 1.0)).astype(np.uint8).transpose(1, 2, 0)


def _signed(d: np.ndarray) -> np.ndarray:
    """A difference in [-1, 1] as colours: its own channels around grey, or blue - white - red where there is one channel."""
    if len(d) == 3:
        return _pixels((1 + d) / 2)
    d = d.mean(axis=0)
    return _pixels(np.stack([1 + np.minimum(d, 0), 1 - np.abs(d), 1 - np.maximum(d, 0)]))


def _address(pixels: np.ndarray) -> str:
    file = io.BytesIO()
    imsave(file, pixels, format="png", metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def class_name(label: int, classes: Sequence[str]) -> str:
    return classes[label] if label < len(classes) else str(label)
