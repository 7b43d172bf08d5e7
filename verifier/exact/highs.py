"""Leaves by linear programming: HiGHS decides what splitting leaves open, so that branch and bound is complete for ReLUs."""
from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from verifier.bab.driver import LeafAnswer
from verifier.exact.dual import Leaf, evaluated, leaf_of, solved
from verifier.reduced.problem import ReducedProblem

TOLERANCE = 1e-6
"""Ten times the feasibility tolerance of HiGHS, which sees numbers of size one."""


def leaf_answer(problem: ReducedProblem, polytope: int, split: Tensor) -> LeafAnswer:
    """A bound of max over the polytope's rows on the leaf, with unsplit neurons in their triangle; infinite where the leaf is empty.

    Args:
        split: `(U,)` in {0, +1, -1}.

    Returns:
        what multipliers prove, and those where that closes the leaf; otherwise the point that attains the minimum and the unsplit neuron whose
        triangle is loosest there. A problem with other neurons than ReLUs, or with numbers that are not finite, stays open.
    """
    leaf = leaf_of(problem, polytope, split)
    if leaf is None:
        return LeafAnswer(-np.inf)
    found = solved(leaf)
    proof, margin = evaluated(leaf, found), problem.margin[problem.polytope == polytope].double().cpu().numpy()
    lower = proof.bound + float(proof.weight @ margin)
    if proof.bound > 0:
        return LeafAnswer(lower, proof=(proof.weight, proof.nu))
    if found.x is None:
        return LeafAnswer(lower, neuron=_widest(leaf))
    point = torch.as_tensor(found.x, dtype=problem.b.dtype, device=problem.b.device).clamp(-1, 1)
    return LeafAnswer(lower, point, _loosest(leaf, found.x, found.h))


def _straddles(leaf: Leaf) -> np.ndarray:
    return (leaf.lower < 0) & (leaf.upper > 0)


def _widest(leaf: Leaf) -> int | None:
    """The unsplit neuron with the largest share of its interval on its shorter side of zero, None where all are split: what to split when HiGHS ran

    out of time.
    """
    width = np.where(leaf.upper > leaf.lower, leaf.upper - leaf.lower, 1.0)
    side = np.where(_straddles(leaf), np.minimum(-leaf.lower, leaf.upper) / width, 0.0)
    return int(side.argmax()) if len(side) and side.max() > 0 else None


def _loosest(leaf: Leaf, x: np.ndarray, h: np.ndarray) -> int | None:
    """The unsplit neuron with the largest |relu(z) - h|, the widest where all are exact, None where all are split."""
    if not len(h):
        return None
    gap = np.where(_straddles(leaf), np.abs(np.maximum(leaf.A @ x + leaf.W @ h + leaf.b, 0) - h) / leaf.size, 0.0)
    return int(gap.argmax()) if gap.max() > TOLERANCE else _widest(leaf)
