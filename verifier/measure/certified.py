"""Certified accuracy: of a set of labelled images, which keep their label on a whole ball, proved, and which do not.

    images.npz -> (x, y) -> classified wrongly: falsified without work
                         -> classified rightly: one robustness property an image, many in one batch of problems
"""
from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from verifier.bab.budget import Listener, silent
from verifier.config import Config
from verifier.errors import ShapeError, VerifierError
from verifier.graph.ir import Graph
from verifier.verdict import Reason, Status, Verdict

IMAGE_NAMES = ("x", "images", "x_test", "arr_0")
LABEL_NAMES = ("y", "labels", "y_test", "arr_1")
CHUNK = 32  # images handed to the solver together: enough to fill a batch, few enough that rows appear soon


@dataclass(frozen=True, slots=True)
class Perturbation:
    """{x' : ||x' - x||_norm <= eps, clip}, in the images' own units; the network sees (x' - mean) / std."""

    eps: float
    norm: str = "linf"
    clip: tuple[float, float] | None = None
    mean: np.ndarray | float = 0.0
    std: np.ndarray | float = 1.0


@dataclass(frozen=True, slots=True)
class ImageRow:
    """One image's outcome. `predicted` is the label of the image itself, unperturbed."""

    index: int
    label: int
    predicted: int
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Summary:
    """Counts of images; certified + falsified + undecided = images, and misclassified images are among the falsified."""

    images: int
    correct: int
    certified: int
    falsified: int
    undecided: int
    seconds: float

    @staticmethod
    def of(rows: Sequence[ImageRow]) -> Summary:
        count = {status: sum(row.verdict.status is status for row in rows) for status in Status}
        correct = sum(row.predicted == row.label for row in rows)
        seconds = sum(row.verdict.seconds for row in rows)
        return Summary(len(rows), correct, count[Status.VERIFIED], count[Status.FALSIFIED], count[Status.UNKNOWN], seconds)

    def as_dict(self) -> dict[str, float]:
        return {
            "images": self.images,
            "clean_accuracy": self.correct / max(self.images, 1),
            "certified_accuracy": self.certified / max(self.images, 1),
            "certified": self.certified,
            "falsified": self.falsified,
            "undecided": self.undecided,
            "seconds": round(self.seconds, 3),
        }

    def sentence(self) -> str:
        shares = self.as_dict()
        return (
            f"{self.images} images: clean accuracy {shares['clean_accuracy']:.1%}, certified accuracy {shares['certified_accuracy']:.1%} "
            f"({self.certified} certified, {self.falsified} falsified, {self.undecided} undecided), {self.seconds:.1f} s."
        )


def load_images(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Images `(N, *shape)` as float64 and labels `(N,)` as int64 of an .npz file; 8-bit images are divided by 255.

    Raises:
        VerifierError: the file cannot be read, lacks one of the arrays, or they do not fit together.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name.lower(): file[name] for name in file.files}
    except OSError as error:
        raise VerifierError(f"Cannot read the images {path}: {error.strerror or error}.") from None
    except (BadZipFile, ValueError, AttributeError, EOFError) as error:  # numpy's ways to say that this is no .npz of plain arrays
        raise VerifierError(f"{path} is not an .npz file of plain arrays: {error}.") from None
    images, labels = _pick(arrays, IMAGE_NAMES, path), _pick(arrays, LABEL_NAMES, path)
    if labels.ndim != 1 or images.ndim < 2 or len(images) != len(labels):
        raise ShapeError(f"{path}: images {images.shape} and labels {labels.shape} do not fit: expected (N, ...) and (N,).")
    if labels.dtype.kind not in "iu" or images.dtype.kind not in "iuf":
        raise VerifierError(f"{path}: images are {images.dtype} and labels {labels.dtype}: expected numbers and integers.")
    pixels = images.astype(np.float64) / (255.0 if images.dtype == np.uint8 else 1.0)
    if not np.isfinite(pixels).all():
        raise VerifierError(f"{path}: an image has a pixel that is NaN or infinite.")
    return pixels, labels.astype(np.int64)


def _pick(arrays: dict[str, np.ndarray], names: Sequence[str], path: str | Path) -> np.ndarray:
    for name in names:
        if name in arrays:
            return arrays[name]
    raise VerifierError(f"{path} has the arrays {', '.join(arrays) or '(none)'}: expected one called {' or '.join(names)}.")


def number(text: str, what: str) -> float:
    """The value of "0.1" or "2/255"."""
    try:
        return float(Fraction(text.strip()))
    except (ValueError, ZeroDivisionError):
        raise VerifierError(f"{what} is {text!r}: give a number or a fraction such as 2/255.") from None


def select(index: str | None, count: int) -> list[int]:
    """The image numbers that "0:100", "7" or "1,5,9" names, of `count`; all for None."""
    if index is None:
        return list(range(count))
    try:
        if ":" in index:
            chosen = list(range(count))[slice(*(int(part) if part else None for part in index.split(":")))]
        else:
            chosen = [int(part) for part in index.split(",")]
    except (ValueError, TypeError):
        raise VerifierError(f"--index is {index!r}: give a range 0:100, one number, or numbers with commas.") from None
    if not chosen or any(not 0 <= i < count for i in chosen):
        raise VerifierError(f"--index {index!r} names no image or one that is not there: the file has {count}, from 0 to {count - 1}.")
    return chosen


def perturbation(
    eps: str, norm: str, normalisation: tuple[str | None, str | None], clip: tuple[float, float] | None, images: np.ndarray
) -> Perturbation:
    """The perturbation that the command line's words describe, for images `(N, *shape)`; mean and std come back in an image's shape."""
    radius = number(eps, "eps")
    if not 0 <= radius < math.inf:
        raise VerifierError(f"eps is {eps}: give a radius of at least 0.")
    if clip is None and images.size and images.min() >= 0 and images.max() <= 1:
        clip = (0.0, 1.0)
    if clip is not None and not clip[0] < clip[1]:
        raise VerifierError(f"--clip is {clip[0]} {clip[1]}: give the lower end first.")
    mean, std = (_per_channel(text, name, default, images.shape[1:]) for text, name, default in zip(normalisation, ("mean", "std"), (0.0, 1.0)))
    if not (std > 0).all():
        raise VerifierError("--std has a value that is not positive: give standard deviations.")
    return Perturbation(radius, norm, clip, mean, std)


def _per_channel(text: str | None, name: str, default: float, shape: tuple[int, ...]) -> np.ndarray:
    """"0.49,0.48,0.45" in an image's shape: one value, or one a channel, which is the first axis or the last."""
    values = np.array([default] if text is None else [number(part, f"--{name}") for part in text.replace(",", " ").split()])
    if values.size == 1:
        return np.full(shape, values[0])
    if len(shape) >= 2 and values.size == shape[0]:
        return np.broadcast_to(values.reshape(-1, *[1] * (len(shape) - 1)), shape)
    if values.size == shape[-1]:
        return np.broadcast_to(values, shape)
    raise ShapeError(f"--{name} has {values.size} values but images have the shape {shape}: give one value, or one a channel.")


def certify(
    graph: Graph, images: np.ndarray, labels: np.ndarray, around: Perturbation, config: Config, listener: Listener = silent
) -> Iterator[ImageRow]:
    """One row an image, in their order, as they are decided; `config.timeout_s` is for each image.

    Args:
        images: `(N, *shape)` in their own units, before mean and std.
        labels: `(N,)`.

    Raises:
        ShapeError: an image does not have as many numbers as the network has inputs.
        VerifierError: a label is not an output's number.
    """
    from verifier.solve import verify_many
    from verifier.spec.robustness import robustness

    n_in, n_out = math.prod(graph.input_shape), math.prod(graph.output_shape)
    if images[:1].size != n_in and len(images):
        raise ShapeError(f"Images have the shape {images.shape[1:]} ({images[:1].size} numbers) but the network takes {graph.input_shape}.")
    if len(labels) and not (0 <= labels.min() and labels.max() < n_out):
        raise VerifierError(f"Labels go from {labels.min()} to {labels.max()} but the network has {n_out} outputs.")
    norm = {"mean": np.ravel(around.mean), "std": np.ravel(around.std)}
    for start in range(0, len(images), CHUNK):
        x, y = images[start : start + CHUNK].reshape(-1, n_in), labels[start : start + CHUNK]
        predicted = _predict(graph, (x - norm["mean"]) / norm["std"])
        right = [i for i in range(len(x)) if predicted[i] == y[i]]
        specs = [robustness(x[i], int(y[i]), around.eps, n_out, norm=around.norm, clip=around.clip, **norm) for i in right]
        decided = dict(zip(right, verify_many(graph, specs, config, listener)))
        for i in range(len(x)):
            yield ImageRow(start + i, int(y[i]), int(predicted[i]), decided.get(i) or _misclassified(int(predicted[i])))


def _misclassified(predicted: int) -> Verdict:
    return Verdict(Status.FALSIFIED, Reason.REPLAYED, f"The image itself is classified as {predicted}.")


def _predict(graph: Graph, x: np.ndarray) -> np.ndarray:
    """argmax of the network at `x (N, n_in)`: `(N,)`."""
    import torch

    from verifier.graph.execute import execute

    with torch.no_grad():
        value = execute(graph.to("cpu", torch.float32), torch.as_tensor(x, dtype=torch.float32).reshape(-1, *graph.input_shape))
    return value.flatten(1).argmax(1).numpy()
