"""Leaves that linear programming closes, proved by multipliers: HiGHS's duals, in the form that a certificate holds.

A leaf is min over x in [-1, 1]^n, z_j in I_j of the rows r = w h + a x + b, with h = relu(z) and z = A x + W h + b_z + d, |d| <= noise. For any
numbers nu, one a neuron, the equalities may be added to the row (`bound_of`). What is left then falls apart into one minimum for each neuron, and
the best nu reach what the program over the neurons' triangles reaches: they are the equalities' duals. Where the leaf is empty that program has no
duals, but the program of the smallest violation has, and a multiple of them outweighs any row. A wrong dual is only a worse bound: each proof is
evaluated before it counts.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from verifier.reduced.problem import ReducedProblem

TIME_LIMIT_S = 5.0


@dataclass(frozen=True, slots=True)
class LeafProof:
    """`weight (R,) >= 0` of a polytope's rows and `nu (U,)` of the neurons; `bound`: what they prove of the weighted rows less their slack."""

    weight: np.ndarray
    nu: np.ndarray
    bound: float


@dataclass(frozen=True, slots=True)
class _Leaf:
    """The numbers of the module's head for one polytope, in float64; `lower, upper (U,)` are I; `b_o` is less the rows' slack."""

    A: np.ndarray
    W: np.ndarray
    b: np.ndarray
    noise: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    A_o: np.ndarray
    W_o: np.ndarray
    b_o: np.ndarray


def leaf_proof(problem: ReducedProblem, polytope: int, split: Tensor) -> LeafProof | None:
    """Multipliers under which the polytope's rows are positive on a leaf, or under which the leaf is empty.

    Args:
        problem: neurons of any kind; only ReLUs are treated.
        polytope: which of the problem's polytopes.
        split: `(U,)` in {0, +1, -1}.

    Returns:
        None where no proof was found: other neurons than ReLUs, numbers that are not finite, a bound that is not positive, no time.

    Sound: `bound` is `bound_of` the multipliers in float64, whose own rounding a checker still takes off.
    """
    leaf = _leaf(problem, polytope, split)
    if not problem.is_relu or not all(np.isfinite(part).all() for part in _arrays(leaf)):
        return None
    rows, neurons = len(leaf.b_o), len(leaf.b)
    if (leaf.lower > leaf.upper).any():
        return LeafProof(np.full(rows, 1 / rows), np.zeros(neurons), np.inf)
    weight, nu = _program(leaf) or _ray(leaf)
    proof = LeafProof(weight, nu, _bound(leaf, weight, nu))
    return proof if proof.bound > 0 else None


def bound_of(problem: ReducedProblem, polytope: int, split: Tensor, weight: np.ndarray, nu: np.ndarray) -> float:
    """weight (b - slack) + nu b_z - |nu| noise - |a + nu A|_1 + sum_j min over z in I_j of (c_j relu(z) - nu_j z), c = w + nu W.

    Here w, a and b are the rows weighted by `weight (R,) >= 0`; `nu (U,)` is any vector. Infinite where some I_j is empty.
    """
    return _bound(_leaf(problem, polytope, split), weight, nu)


def _leaf(problem: ReducedProblem, polytope: int, split: Tensor) -> _Leaf:
    double = lambda t: t.double().cpu().numpy()  # noqa: E731
    rows, sign = problem.polytope == polytope, double(split)
    lower, upper = double(problem.lower), double(problem.upper)
    lower, upper = np.where(sign > 0, np.maximum(lower, 0), lower), np.where(sign < 0, np.minimum(upper, 0), upper)
    own = (double(t) for t in (problem.A, problem.W, problem.b, problem.noise))
    return _Leaf(*own, lower, upper, double(problem.A_o[rows]), double(problem.W_o[rows]), double((problem.b_o - problem.slack)[rows]))


def _arrays(leaf: _Leaf) -> tuple[np.ndarray, ...]:
    return leaf.A, leaf.W, leaf.b, leaf.noise, leaf.lower, leaf.upper, leaf.A_o, leaf.W_o, leaf.b_o


def _bound(leaf: _Leaf, weight: np.ndarray, nu: np.ndarray) -> float:
    if (leaf.lower > leaf.upper).any():
        return np.inf
    c, a = weight @ leaf.W_o + nu @ leaf.W, weight @ leaf.A_o + nu @ leaf.A
    # The minimum of a function of two pieces is at an end of I or at its bend, which I clips to an end where it does not hold it.
    candidates = [leaf.lower, leaf.upper, np.clip(0.0, leaf.lower, leaf.upper)]
    smallest = np.min([c * np.maximum(z, 0) - nu * z for z in candidates], axis=0)
    return float(weight @ leaf.b_o + nu @ leaf.b - np.abs(nu) @ leaf.noise - np.abs(a).sum() + smallest.sum())


def _program(leaf: _Leaf) -> tuple[np.ndarray, np.ndarray] | None:
    """The duals (weight, nu) of: minimise t, rows <= t, over the leaf. None where it is empty or HiGHS has no answer."""
    from scipy.sparse import csr_matrix, hstack, vstack

    equal, less, limit, low, high = _constraints(leaf)
    rows, neurons = leaf.W_o.shape
    own = hstack([csr_matrix(leaf.A_o), csr_matrix((rows, neurons)), csr_matrix(leaf.W_o), csr_matrix((rows, neurons)), -np.ones((rows, 1))])
    cost = np.zeros(own.shape[1])
    cost[-1] = 1.0
    found = _solve(
        cost, vstack([own, hstack([less, csr_matrix((less.shape[0], 1))])]), np.concatenate([-leaf.b_o, limit]),
        hstack([equal, csr_matrix((neurons, 1))]), leaf.b, np.append(low, -np.inf), np.append(high, np.inf),
    )
    if found.status != 0:
        return None
    return np.maximum(-found.ineqlin.marginals[:rows], 0), found.eqlin.marginals[:neurons]


def _ray(leaf: _Leaf) -> tuple[np.ndarray, np.ndarray]:
    """Multipliers from: minimise |e|_1 with z = A x + W h + b + d + e over the leaf, so large that they outweigh the rows if the leaf is empty.

    `_bound` is concave and grows in proportion to (weight, nu): _bound(weight, k nu) >= _bound(weight, 0) + k _bound(0, nu).
    """
    from scipy.sparse import csr_matrix, eye, hstack

    equal, less, limit, low, high = _constraints(leaf)
    rows, neurons = leaf.W_o.shape
    even, none = np.full(rows, 1 / rows), np.zeros(neurons)
    cost = np.concatenate([np.zeros(len(low)), np.ones(2 * neurons)])
    found = _solve(
        cost, hstack([less, csr_matrix((less.shape[0], 2 * neurons))]), limit,
        hstack([equal, eye(neurons), -eye(neurons)]), leaf.b,
        np.append(low, np.zeros(2 * neurons)), np.append(high, np.full(2 * neurons, np.inf)),
    )
    if found.status != 0:
        return even, none
    nu = found.eqlin.marginals[:neurons]
    violation = _bound(leaf, 0 * even, nu)
    if not violation > 0:
        return even, none
    return even, nu * ((1.0 + 2 * abs(_bound(leaf, even, none))) / violation)


def _constraints(leaf: _Leaf) -> tuple:
    """z - A x - W h - d = b and the triangles, over the variables x (n), z (U), h (U), d (U): equalities, `less @ v <= limit`, and ends of v.

    Over I: h >= 0, h >= z, h <= relu(l) + (relu(u) - relu(l)) (z - l)/(u - l); where I does not straddle zero that is h = relu(z).
    """
    from scipy.sparse import csr_matrix, diags, eye, hstack, vstack

    n, neurons = leaf.A.shape[1], len(leaf.b)
    one = eye(neurons)
    equal = hstack([csr_matrix(-leaf.A), one, csr_matrix(-leaf.W), -one])
    ends = np.maximum(leaf.lower, 0), np.maximum(leaf.upper, 0)
    slope = (ends[1] - ends[0]) / np.maximum(leaf.upper - leaf.lower, 1e-30)
    aside, none = csr_matrix((neurons, n)), csr_matrix((neurons, neurons))
    above = hstack([aside, one, -one, none])
    below = hstack([aside, diags(-slope), one, none])
    less, limit = vstack([above, below]), np.concatenate([np.zeros(neurons), ends[0] - slope * leaf.lower])
    low = np.concatenate([-np.ones(n), leaf.lower, ends[0], -leaf.noise])
    high = np.concatenate([np.ones(n), leaf.upper, ends[1], leaf.noise])
    return equal, less, limit, low, high


def _solve(cost, less, limit, equal, value, low, high):
    from scipy.optimize import linprog

    options = {"time_limit": TIME_LIMIT_S}
    return linprog(cost, less.tocsr(), limit, equal.tocsr(), value, np.stack([low, high], 1), method="highs", options=options)
