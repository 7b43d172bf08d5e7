"""Bounds of real networks against another tool's (`../shared/reference_bounds`, auto_LiRPA 0.7.1, float32); skipped without the folder."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import SHARED
from tests.tolerances import REFERENCE_RELATIVE
from verifier.bounds.alpha import alpha_crown
from verifier.bounds.crown import PureCrown, crown
from verifier.bounds.engine import BoundRequest, BoundResult
from verifier.bounds.ibp import ibp
from verifier.box import Box
from verifier.graph.onnx_load import load_onnx

FOLDER = SHARED / "reference_bounds"
FILES = sorted(FOLDER.glob("*.npz")) or [pytest.param(None, marks=pytest.mark.skip(reason=f"no reference bounds at {FOLDER}"))]
# The other tool's planes of sigmoid neurons differ from ours, so only widths compare.
SMOOTH = {"eran_5", "eran_6", "eran_7", "eran_8"}
# Some seconds each with all hidden layers optimised; the rest is quick.
SLOW_ALPHA = {"sri_resnet_a_1", "marabou-cifar10_1", "marabou-cifar10_2", "cifar10_resnet_2", "cifar10_resnet_3", "cifar10_resnet_4",
              "eran_5", "eran_6", "eran_7", "eran_8", "oval21_4", "oval21_5", "oval21_6"}
every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem if path else "absent")


def request_of(data: np.lib.npyio.NpzFile) -> BoundRequest:
    graph = load_onnx(SHARED / "vnncomp" / str(data["onnx"]))
    lower, upper = (torch.tensor(data[f"input_{side}"]).reshape(1, *graph.input_shape) for side in ("lower", "upper"))
    return BoundRequest(graph, Box(lower, upper))


def gap(result: BoundResult, data: np.lib.npyio.NpzFile, method: str) -> float:
    """The largest difference from the reference, relative to its largest bound."""
    pairs = [(getattr(result, side).numpy(), data[f"{method}_{side}"]) for side in ("lower", "upper")]
    size = max(np.abs(theirs).max() for _, theirs in pairs)
    return max(np.abs(ours - theirs.reshape(ours.shape)).max() for ours, theirs in pairs) / max(size, 1e-6)


def width(lower: np.ndarray, upper: np.ndarray) -> float:
    return float((upper - lower).astype(np.float64).mean())


@every_file
def test_intervals_are_the_references(path: Path) -> None:
    data = np.load(path)
    assert gap(ibp(request_of(data)), data, "ibp") < REFERENCE_RELATIVE


@every_file
def test_crown_is_the_references_on_relu_networks(path: Path) -> None:
    """Neurons that intervals leave unstable bounded by CROWN, not intersected with intervals, as there; pre-activations too."""
    data = np.load(path)
    result = crown(request_of(data), PureCrown())
    if path.stem in SMOOTH:
        assert width(result.lower.numpy(), result.upper.numpy()) < 1.05 * width(data["crown_lower"], data["crown_upper"])
        return
    assert gap(result, data, "crown") < REFERENCE_RELATIVE
    for k, box in enumerate(result.intermediate.values()):
        ours = unstable(box.lower.numpy(), box.upper.numpy())
        theirs = unstable(data[f"crown_preact_{k}_lower"], data[f"crown_preact_{k}_upper"])
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).max(initial=0.0) < REFERENCE_RELATIVE * np.abs(theirs).max(initial=1.0)


def unstable(lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """The bounds of neurons whose sign is open, each side sorted: the reference has intervals for others, and other axes."""
    free = (lower < 0) & (upper > 0)
    return np.stack([np.sort(lower[free]), np.sort(upper[free])])


@every_file
def test_intersecting_with_intervals_only_helps(path: Path) -> None:
    data = np.load(path)
    result = crown(request_of(data))
    assert width(result.lower.numpy(), result.upper.numpy()) <= 1.02 * width(data["crown_lower"], data["crown_upper"])


@pytest.mark.parametrize("path", [
    pytest.param(path, marks=pytest.mark.slow) if path.stem in SLOW_ALPHA else path for path in FILES if isinstance(path, Path)
] or FILES, ids=lambda path: path.stem if path else "absent")
def test_alpha_crown_is_as_tight_after_twenty_iterations(path: Path) -> None:
    data = np.load(path)
    result = alpha_crown(request_of(data))
    ours, theirs = width(result.lower.numpy(), result.upper.numpy()), width(data["alpha_crown_lower"], data["alpha_crown_upper"])
    rounding = 4 * float(np.finfo(np.float32).eps * np.abs(data["alpha_crown_lower"]).max())
    assert ours <= (1 + REFERENCE_RELATIVE) * theirs + rounding


def test_a_shifted_reference_is_noticed() -> None:
    """The comparison can fail: a bound that is off by a thousandth of the largest is too far."""
    if not FOLDER.is_dir():
        pytest.skip(f"no reference bounds at {FOLDER}")
    data = dict(np.load(FOLDER / "oval21_1.npz"))
    result = ibp(request_of(data))
    data["ibp_lower"] = data["ibp_lower"] + 1e-3 * np.abs(data["ibp_lower"]).max()
    assert gap(result, data, "ibp") > REFERENCE_RELATIVE
