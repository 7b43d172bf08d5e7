"""Sigmoid and tanh for the proof rule: minima of c s(z) - nu z over intervals, and slopes for the recipe.

tanh(z) = 2 sigmoid(2 z) - 1, so the sigmoid is enough. It is convex left of zero and concave right of it.
"""
from __future__ import annotations

import numpy as np


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * np.tanh(0.5 * z)


def smooth_minimum(kind: str, c: np.ndarray, nu: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """A lower bound of min over lower <= z <= upper of c s(z) - nu z, exact but for a few roundings of c and nu max |z|.

    The interval is cut at 0 and where s' = nu / c: on each piece the function is convex or concave. Concave: the smaller end. Convex: the larger of
    the two tangents' bounds, f(end) less what its slope can take off; at a stationary point that is f itself.
    """
    if kind == "tanh":
        return smooth_minimum("sigmoid", 2 * c, nu / 2, 2 * lower, 2 * upper) - c
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = nu / c
        root = np.sqrt(np.clip(1 - 4 * ratio, 0, 1))
        turn = np.where((ratio > 0) & (ratio < 0.25), np.log1p(root) - np.log1p(-root), 0.0)
    turn = np.where(np.isfinite(turn), turn, 0.0)
    lower, upper = np.broadcast_to(lower, c.shape), np.broadcast_to(upper, c.shape)
    points = [lower, *(np.clip(inner, lower, upper) for inner in (-turn, np.zeros_like(turn), turn)), upper]
    value = [c * sigmoid(z) - nu * z for z in points]
    slope = [c * sigmoid(z) * sigmoid(-z) - nu for z in points]
    least = np.minimum(value[0], value[-1])
    for k in range(4):
        a, b = points[k], points[k + 1]
        tangents = np.maximum(value[k] - np.maximum(-slope[k], 0) * (b - a), value[k + 1] - np.maximum(slope[k + 1], 0) * (b - a))
        convex = (c > 0) == (b <= 0)
        least = np.minimum(least, np.where(convex & (b > a), tangents, np.minimum(value[k], value[k + 1])))
    return least


def slopes(kind: str, lower: np.ndarray, upper: np.ndarray, alpha: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Slopes of planes below and above s on [lower, upper], for the recipe: `alpha` is that below an unstable ReLU, None the adaptive one."""
    if kind == "relu":
        free = (lower < 0) & (upper > 0)
        chosen = (upper >= -lower) * 1.0 if alpha is None else alpha
        above = np.where(free, upper / np.where(free, upper - lower, 1), lower >= 0)
        return np.where(free, chosen, lower >= 0), above
    if kind == "square":
        return lower + upper, lower + upper
    if kind == "tanh":
        below, above = slopes("sigmoid", 2 * lower, 2 * upper, None)
        return 4 * below, 4 * above
    return _below(lower, upper), _below(-upper, -lower)


def _below(lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """The chord's slope where the chord is below the sigmoid; the sigmoid's at the middle where it is convex; else that at the middle of the points

    whose tangents are below it, from the lower end to where the tangent meets the upper end.
    """
    derivative = lambda z: sigmoid(z) * sigmoid(-z)  # noqa: E731
    wide = upper - lower > 1e-6
    chord = np.where(wide, (sigmoid(upper) - sigmoid(lower)) / np.where(wide, upper - lower, 1), derivative(lower))
    left, right = lower.copy(), np.minimum(upper, 0)
    for _ in range(25):
        middle = (left + right) / 2
        beyond = sigmoid(middle) + derivative(middle) * (upper - middle) > sigmoid(upper)
        left, right = np.where(beyond, left, middle), np.where(beyond, middle, right)
    tangent = derivative((lower + left) / 2)
    return np.where(upper <= 0, derivative((lower + upper) / 2), np.where(derivative(lower) >= chord, chord, tangent))
