"""Leaves by linear programming: HiGHS decides what splitting leaves open, so that branch and bound is complete for ReLUs."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from verifier.bab.driver import LeafAnswer
from verifier.reduced.problem import RELU, ReducedProblem

TOLERANCE = 1e-6
"""Ten times the feasibility tolerance of HiGHS."""
TIME_LIMIT_S = 1.0


@dataclass(frozen=True, slots=True)
class _Leaf:
    """A problem's numbers in float64, one polytope's rows of it, and a leaf's signs `(U,)`. `size (U,)`: the absolute terms of each row z."""

    A: np.ndarray
    W: np.ndarray
    b: np.ndarray
    noise: np.ndarray
    size: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    A_o: np.ndarray
    W_o: np.ndarray
    b_o: np.ndarray
    sign: np.ndarray


def leaf_answer(problem: ReducedProblem, polytope: int, split: Tensor) -> LeafAnswer:
    """min over the leaf of max over the polytope's rows, with unsplit neurons in their triangle; infinite where the leaf is empty.

    Args:
        split: `(U,)` in {0, +1, -1}.

    Returns:
        the bound, and where it leaves the leaf open the point that attains it and the unsplit neuron whose triangle is loosest there. A problem with
        other neurons than ReLUs, or with numbers that are not finite, stays open.

    Sound: the bound comes from a program whose every constraint is relaxed by the neurons' noise and by ten times HiGHS's own tolerance, relative to
    its terms, and is lowered by as much; what HiGHS does not solve to optimality in time counts as open. The point comes from the program as it is.
    """
    leaf = _leaf(problem, polytope, split)
    if any(block.kind != RELU for block in problem.blocks) or not all(np.isfinite(part).all() for part in _arrays(leaf)):
        return LeafAnswer(-np.inf)
    relaxed = _solve(leaf, leaf.noise + TOLERANCE * leaf.size)
    if relaxed.status == 2:
        return LeafAnswer(np.inf)
    terms = np.abs(leaf.b_o) + np.abs(leaf.A_o).sum(1) + np.abs(leaf.W_o) @ problem.activation_size().double().cpu().numpy()
    lower = float(relaxed.fun) - TOLERANCE * float(terms.max()) if relaxed.status == 0 else -np.inf
    if lower > float(problem.slack.max()):
        return LeafAnswer(lower)
    exact = _solve(leaf, np.zeros_like(leaf.b))
    if exact.status != 0:
        return LeafAnswer(lower, neuron=_widest(leaf))
    n = leaf.A.shape[1]
    point = torch.as_tensor(exact.x[:n], dtype=problem.b.dtype, device=problem.b.device).clamp(-1, 1)
    return LeafAnswer(lower, point, _loosest(leaf, exact.x[:n], exact.x[n:-1]))


def _leaf(problem: ReducedProblem, polytope: int, split: Tensor) -> _Leaf:
    double = lambda t: t.double().cpu().numpy()  # noqa: E731
    rows = problem.polytope == polytope
    # A triangle needs l <= 0 <= u: wider bounds of a stable neuron are bounds too.
    lower, upper = problem.lower.clamp(max=0), problem.upper.clamp(min=0)
    own = (problem.A, problem.W, problem.b, problem.noise, problem.row_size(), lower, upper)
    return _Leaf(*map(double, own), *(double(t[rows]) for t in (problem.A_o, problem.W_o, problem.b_o)), sign=split.cpu().numpy())


def _arrays(leaf: _Leaf) -> tuple[np.ndarray, ...]:
    return leaf.A, leaf.W, leaf.b, leaf.noise, leaf.size, leaf.lower, leaf.upper, leaf.A_o, leaf.W_o, leaf.b_o


def _solve(leaf: _Leaf, room: np.ndarray):
    """HiGHS's answer to: minimise t subject to, with z = A x + W h + b up to `room (U,)`,

        rows of the polytope <= t,  -1 <= x <= 1,
        split +: h = z >= 0;  split -: h = 0, z <= 0;  free: h >= 0, h >= z, h <= u (z - l)/(u - l)

    The variables are x (n), h (U), t.
    """
    from scipy.optimize import linprog

    n, u = leaf.A.shape[1], len(leaf.b)
    slope = leaf.upper / np.maximum(leaf.upper - leaf.lower, 1e-30)
    on, off, free = leaf.sign > 0, leaf.sign < 0, leaf.sign == 0
    z = np.hstack([leaf.A, leaf.W, np.zeros((u, 1))])
    h = np.hstack([np.zeros((u, n)), np.eye(u), np.zeros((u, 1))])
    below, above = room - leaf.b, room + leaf.b
    less = np.vstack([
        np.hstack([leaf.A_o, leaf.W_o, -np.ones((len(leaf.b_o), 1))]),
        -z[on], (h - z)[on], (z - h)[on], z[off], (z - h)[free], (h - slope[:, None] * z)[free],
    ])
    limit = np.concatenate([-leaf.b_o, above[on], above[on], below[on], below[off], below[free], (slope * (above - leaf.lower))[free]])
    top = np.where(off, 0.0, leaf.upper + room)
    bounds = [(-1.0, 1.0)] * n + [(0.0, float(value)) for value in top] + [(None, None)]
    cost = np.zeros(n + u + 1)
    cost[-1] = 1.0
    return linprog(cost, less, limit, None, None, bounds, method="highs", options={"time_limit": TIME_LIMIT_S})


def _widest(leaf: _Leaf) -> int | None:
    """The unsplit neuron with the most on its shorter side of zero, None where all are split: what to split when HiGHS ran out of time."""
    side = np.where(leaf.sign == 0, np.minimum(-leaf.lower, leaf.upper), 0.0)
    return int(side.argmax()) if len(side) and side.max() > 0 else None


def _loosest(leaf: _Leaf, x: np.ndarray, h: np.ndarray) -> int | None:
    """The unsplit neuron with the largest |relu(z) - h|, the widest where all are exact, None where all are split."""
    if not len(h):
        return None
    gap = np.where(leaf.sign == 0, np.abs(np.maximum(leaf.A @ x + leaf.W @ h + leaf.b, 0) - h), 0.0)
    return int(gap.argmax()) if gap.max() > TOLERANCE else _widest(leaf)
