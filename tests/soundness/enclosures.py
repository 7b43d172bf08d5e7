"""Bounds of the least value of a row over a box for networks of any kind: intervals in float64 on boxes that are halved where the least may lie.

The enclosure is off by no more than rounding of float64 in networks of a few neurons: 1e-12 of the values, which its users leave room for.
"""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tests.soundness.exact_truth import Net
from tests.soundness.orders import evaluated, in_float64

MOST = 40_000


def least(net: Net, lower: Sequence[float], upper: Sequence[float], row: Sequence[float], gap: float = 1e-3) -> tuple[float, float, np.ndarray]:
    """(at most, at least, where the latter is reached): an enclosure of min row @ y, no wider than `gap` of the row's range if that can be had."""
    low, high = np.array([lower], float), np.array([upper], float)
    row_ = np.asarray([float(c) for c in row])
    best, where, scale = np.inf, low[0], 0.0
    for _ in range(60):
        middle = (low + high) / 2
        values = in_float64(net, np.concatenate([middle, low, high]))[-1] @ row_
        scale = max(scale, float(np.ptp(values)))
        if values.min() < best:
            best, where = float(values.min()), np.concatenate([middle, low, high])[values.argmin()]
        below = _below(net, low, high, row_)
        keep = below < best - 1e-12 * abs(best)
        floor = min(best, float(below.min()))
        if not keep.any() or best - floor <= gap * scale or 2 * keep.sum() > MOST:
            return floor, best, where
        low, high = low[keep], high[keep]
        axis = (high - low).argmax(1)
        cut = ((low + high) / 2)[np.arange(len(low)), axis]
        left, right = high.copy(), low.copy()
        left[np.arange(len(low)), axis], right[np.arange(len(low)), axis] = cut, cut
        low, high = np.concatenate([low, right]), np.concatenate([left, high])
    return floor, best, where


def _below(net: Net, low: np.ndarray, high: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Lower bounds of row @ y on each box."""
    values = [(low, high)]
    for step in net.steps:
        (a, b), *others = [values[s] for s in step.sources]
        if step.kind == "affine":
            values.append(_affine(np.asarray(step.matrix, float), np.asarray(step.bias, float), a, b))
        elif step.kind == "concat":
            values.append((np.concatenate([a, *(o[0] for o in others)], 1), np.concatenate([b, *(o[1] for o in others)], 1)))
        elif step.kind == "mul":
            values.append(_product(a, b, *others[0], square=step.sources[0] == step.sources[1]))
        elif step.kind == "abs":
            values.append((np.maximum(np.maximum(a, -b), 0), np.maximum(abs(a), abs(b))))
        else:
            values.append(tuple(evaluated(step, [side, *(o[k] for o in others)], lambda step, z: z) for k, side in enumerate((a, b))))
    below, _ = _affine(row[None], np.zeros(1), *values[-1])
    return below[:, 0]


def _affine(matrix: np.ndarray, bias: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    middle, reach = (a + b) / 2 @ matrix.T + bias, (b - a) / 2 @ abs(matrix).T
    return middle - reach, middle + reach


def _product(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray, square: bool) -> tuple[np.ndarray, np.ndarray]:
    if square:
        return np.where((a < 0) & (b > 0), 0, np.minimum(a * a, b * b)), np.maximum(a * a, b * b)
    corners = np.stack([a * c, a * d, b * c, b * d])
    return corners.min(0), corners.max(0)
