"""Leaves by linear programming: what splitting every neuron leaves open is decided by HiGHS: branch and bound is complete for ReLUs."""
from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from verifier.bab.driver import LeafAnswer
from verifier.reduced.problem import RELU, ReducedProblem

TOLERANCE = 1e-6
"""Ten times the feasibility tolerance of HiGHS."""
TIME_LIMIT_S = 1.0


def leaf_answer(problem: ReducedProblem, polytope: int, split: Tensor) -> LeafAnswer:
    """min over the leaf of max over the polytope's rows, with unsplit neurons in their triangle; infinite where the leaf is empty.

        minimise t  subject to  rows of the polytope <= t,  -1 <= x <= 1,  z = A x + W h + b,
        split +: h = z >= 0;  split -: h = 0, z <= 0;  free: h >= 0, h >= z, h <= u (z - l)/(u - l)

    Args:
        split: `(U,)` in {0, +1, -1}.

    Raises:
        NotImplementedError: the problem has neurons that are not ReLUs.

    Sound: up to HiGHS's feasibility tolerance of 1e-7; an LP that HiGHS does not solve to optimality, or that is not finite, counts as open.
    """
    if any(block.kind != RELU for block in problem.blocks):
        return LeafAnswer(-np.inf)
    from scipy.optimize import linprog

    A, W, b, noise, size = (t.double().cpu().numpy() for t in (problem.A, problem.W, problem.b, problem.noise, problem.row_size()))
    # A triangle needs l <= 0 <= u: wider bounds of a stable neuron are bounds too.
    lower, upper = problem.lower.clamp(max=0).double().cpu().numpy(), problem.upper.clamp(min=0).double().cpu().numpy()
    sign = split.cpu().numpy()
    rows = (problem.polytope == polytope).cpu().numpy()
    A_o, W_o, b_o = (t.double().cpu().numpy()[rows] for t in (problem.A_o, problem.W_o, problem.b_o))
    if not all(np.isfinite(part).all() for part in (A, W, b, noise, size, lower, upper, A_o, W_o, b_o)):
        return LeafAnswer(-np.inf)
    n, u, room = A.shape[1], len(b), noise + TOLERANCE * size
    slope = upper / np.maximum(upper - lower, 1e-30)
    on, off, free = sign > 0, sign < 0, sign == 0
    # variables: x (n), h (u), t; z is substituted, and may lie `room` beside its row
    z = np.hstack([A, W, np.zeros((u, 1))])
    h = np.hstack([np.zeros((u, n)), np.eye(u), np.zeros((u, 1))])
    less = np.vstack([
        np.hstack([A_o, W_o, -np.ones((len(b_o), 1))]), -z[on], z[off], (h - z)[on], (z - h)[on], (z - h)[free], (h - slope[:, None] * z)[free],
    ])
    limit = np.concatenate([
        -b_o, (b + room)[on], (room - b)[off], (b + room)[on], (room - b)[on], (room - b)[free], (slope * (b - lower + room))[free],
    ])
    bounds = [(-1.0, 1.0)] * n + [(0.0, 0.0 if o else float(up + r)) for o, up, r in zip(off, upper, room)] + [(None, None)]
    cost = np.zeros(n + u + 1)
    cost[-1] = 1.0
    answer = linprog(cost, less, limit, None, None, bounds, method="highs", options={"time_limit": TIME_LIMIT_S})
    if answer.status == 2:
        return LeafAnswer(np.inf)
    if answer.status != 0:
        return LeafAnswer(-np.inf)
    values = z @ answer.x + b
    gap = np.where(free, np.abs(np.maximum(values, 0) - answer.x[n:n + u]), 0.0)
    loosest = int(gap.argmax()) if u and gap.max() > 1e-6 else None
    terms = np.abs(b_o) + np.abs(A_o).sum(1) + np.abs(W_o) @ problem.activation_size().double().cpu().numpy()
    x = torch.as_tensor(answer.x[:n], dtype=problem.b.dtype, device=problem.b.device).clamp(-1, 1)
    return LeafAnswer(float(answer.fun) - TOLERANCE * float(terms.max()), x, loosest)
