"""Many sub-boxes of one problem: every neuron bounded anew on each, block by block, then the rows. Letters: N boxes."""
from __future__ import annotations

from dataclasses import replace

import numpy as np

from verifier.certificate.bound import CHUNK, RELU, Problem, activation, bound, center_and_radius, eliminate

TOGETHER = 64
"""Leaves below which a subtree's boxes are bounded with one problem; above it the problem is first made smaller for the subtree."""


def box_bounds(problem: Problem, lower: np.ndarray, upper: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bounds `(N, U)` of the neurons, and `(N, S)` of the rows, over boxes `lower, upper (N, n)` within [-1, 1]^n."""
    arithmetic, boxes = problem.arithmetic, len(lower)
    center, radius = center_and_radius(arithmetic, lower, upper)
    low, high = (np.repeat(side[None], boxes, 0) for side in (problem.lower, problem.upper))
    least, most = low + 0, high + 0
    _, size = problem.sizes
    for start, end, kind in problem.blocks:
        at, before = slice(start, end), slice(0, start)
        A, W = problem.A[at], problem.W[at, before]
        middle = center @ A.T + (least[:, before] + most[:, before]) / 2 @ W.T + problem.b[at]
        reach = radius @ abs(A).T + (most[:, before] - least[:, before]) / 2 @ abs(W).T
        reach = arithmetic.up(reach + problem.noise[at] + arithmetic.room(4 * (start + problem.A.shape[1] + 16), 2 * size[at]))
        low[:, at], high[:, at] = np.maximum(low[:, at], middle - reach), np.minimum(high[:, at], middle + reach)
        index = np.nonzero(~((low[:, at] >= 0) | (high[:, at] <= 0)).all(0))[0] + start if kind == RELU else np.arange(start, end)
        for part in np.array_split(index, max(1, boxes * len(index) * start // CHUNK)) if start and len(index) else ():
            for sign, side in ((1, low), (-1, high)):
                rows = problem.neurons(part, np.full(len(part), sign))
                found = sign * bound(problem, rows, low[:, None], high[:, None], stop=start, inputs=(center, radius))
                side[:, part] = np.maximum(side[:, part], found) if sign > 0 else np.minimum(side[:, part], found)
        least[:, at], most[:, at] = activation(kind, low[:, at], high[:, at])
    return low, high, bound(problem, problem.rows, low[:, None], high[:, None], inputs=(center, radius))


def combined_bound(problem: Problem, weight: np.ndarray, box: tuple[np.ndarray, np.ndarray], neurons: tuple[np.ndarray, np.ndarray]) -> float:
    """The bound of the rows' sum with `weight (S,)` >= 0 over one box `(n,)`, its neurons in `(U,)` intervals."""
    center, radius = center_and_radius(problem.arithmetic, *box)
    rows = problem.weighted(weight[None])
    return bound(problem, rows, neurons[0][None], neurons[1][None], inputs=(center[None], radius[None])).item()


def narrowed_problem(problem: Problem, lower: np.ndarray, upper: np.ndarray, kept: frozenset[int]) -> Problem:
    """The problem over one sub-box `(n,)`: its neurons' bounds there, without those that they settle."""
    low, high, _ = box_bounds(problem, lower[None], upper[None])
    empty = low[0] > high[0]
    bounds = (np.where(empty, whole, part) for whole, part in ((problem.lower, low[0]), (problem.upper, high[0])))
    return eliminate(replace(problem, **dict(zip(("lower", "upper"), bounds))), kept)
