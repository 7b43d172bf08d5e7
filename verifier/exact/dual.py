"""Leaves as linear programs: HiGHS's answer, and the multipliers by which it proves something, in the form that a certificate holds.

A leaf is min over x in [-1, 1]^n, z_j in I_j of the rows r = w h + a x + b, with h = relu(z) and z = A x + W h + b_z. For any numbers nu, one a
neuron, the equalities may be added to the row (`bound_of`). What is left then falls apart into one minimum for each neuron, and the best nu reach
what the program over the neurons' triangles reaches: they are the equalities' duals. Where the leaf is empty that program has no duals, but the
program of the smallest violation has, and a multiple of them outweighs any row. A wrong dual is only a worse bound: each proof is evaluated before
it counts.

HiGHS has absolute tolerances, so it sees numbers of size one: z_j and h_j over s_j = max |I_j|, each equality over s_j, each row over its terms.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from verifier.reduced.problem import RELU, ReducedProblem

TIME_LIMIT_S = 2.0


@dataclass(frozen=True, slots=True)
class LeafProof:
    """`weight (R,) >= 0` of a polytope's rows, of sum one, and `nu (U,)` of the neurons; `bound`: what they prove of the rows less their margin."""

    weight: np.ndarray
    nu: np.ndarray
    bound: float


@dataclass(frozen=True, slots=True)
class Leaf:
    """The numbers of the module's head for one polytope, in float64; `lower, upper (U,)` are I; `b_o` is less the rows' margin.

    `size (U,)` are the s_j, `row_size (R,)` the rows' terms.
    """

    A: np.ndarray
    W: np.ndarray
    b: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    A_o: np.ndarray
    W_o: np.ndarray
    b_o: np.ndarray
    size: np.ndarray
    row_size: np.ndarray

    @property
    def is_empty(self) -> bool:
        return bool((self.lower > self.upper).any())


@dataclass(frozen=True, slots=True)
class Solved:
    """What HiGHS says of a leaf: multipliers `weight (R,)`, `nu (U,)`, and the point `x (n,)`, `h (U,)` that it found, None where it found none."""

    weight: np.ndarray
    nu: np.ndarray
    x: np.ndarray | None = None
    h: np.ndarray | None = None


def leaf_of(problem: ReducedProblem, polytope: int, split: Tensor) -> Leaf | None:
    """One polytope on the leaf of `split (U,)`; None where not all neurons are ReLUs or a number is not finite."""
    if any(block.kind != RELU and block.size for block in problem.blocks):
        return None
    double = lambda t: t.double().cpu().numpy()  # noqa: E731
    rows, sign = problem.polytope == polytope, double(split)
    lower, upper = double(problem.lower), double(problem.upper)
    lower, upper = np.where(sign > 0, np.maximum(lower, 0), lower), np.where(sign < 0, np.minimum(upper, 0), upper)
    A, W, b = (double(t) for t in (problem.A, problem.W, problem.b))
    A_o, W_o, b_o = (double(t[rows]) for t in (problem.A_o, problem.W_o, problem.b_o.double() - problem.margin.double()))
    size = _usable(np.maximum(abs(lower), abs(upper)))
    row_size = _usable(abs(b_o) + abs(A_o).sum(1) + abs(W_o) @ size)
    is_finite = all(np.isfinite(part).all() for part in (A, W, b, lower, upper, A_o, W_o, b_o))
    return Leaf(A, W, b, lower, upper, A_o, W_o, b_o, size, row_size) if is_finite else None


def _usable(size: np.ndarray) -> np.ndarray:
    """A power of two near each size, so that scaling rounds nothing; 1 for 0."""
    return np.exp2(np.rint(np.log2(np.where((size > 0) & np.isfinite(size), size, 1.0))))


def leaf_proof(problem: ReducedProblem, polytope: int, split: Tensor) -> LeafProof | None:
    """Multipliers under which the polytope's rows are above their margin on a leaf, or under which the leaf is empty.

    Args:
        problem: neurons of any kind; only ReLUs are treated.
        polytope: which of the problem's polytopes.
        split: `(U,)` in {0, +1, -1}.

    Returns:
        None where no proof was found: other neurons than ReLUs, numbers that are not finite, a bound that is not positive, no time.

    Sound: `bound` is `bound_of` the multipliers in float64, whose own rounding a checker still takes off.
    """
    leaf = leaf_of(problem, polytope, split)
    proof = None if leaf is None else evaluated(leaf, solved(leaf))
    return proof if proof is not None and proof.bound > 0 else None


def bound_of(problem: ReducedProblem, polytope: int, split: Tensor, weight: np.ndarray, nu: np.ndarray) -> float:
    """weight (b - margin) + nu b_z - |a + nu A|_1 + sum_j min over z in I_j of (c_j relu(z) - nu_j z), c = w + nu W.

    Here w, a and b are the rows weighted by `weight (R,) >= 0`; `nu (U,)` is any vector. Infinite where some I_j is empty.
    """
    return _bound(leaf_of(problem, polytope, split), weight, nu)


def _bound(leaf: Leaf, weight: np.ndarray, nu: np.ndarray) -> float:
    if leaf.is_empty:
        return np.inf
    c, a = weight @ leaf.W_o + nu @ leaf.W, weight @ leaf.A_o + nu @ leaf.A
    # The minimum of a function of two pieces is at an end of I or at its bend, which I clips to an end where it does not hold it.
    candidates = [leaf.lower, leaf.upper, np.clip(0.0, leaf.lower, leaf.upper)]
    smallest = np.min([c * np.maximum(z, 0) - nu * z for z in candidates], axis=0)
    return float(weight @ leaf.b_o + nu @ leaf.b - np.abs(a).sum() + smallest.sum())


def evaluated(leaf: Leaf, found: Solved) -> LeafProof:
    """What the multipliers prove; nothing, the bound being minus infinity, where they are no numbers."""
    total = found.weight.sum()
    if not (np.isfinite(total) and total > 0 and np.isfinite(found.nu).all()):
        return LeafProof(found.weight, found.nu, -np.inf)
    weight, nu = found.weight / total, found.nu / total
    return LeafProof(weight, nu, _bound(leaf, weight, nu))


def solved(leaf: Leaf) -> Solved:
    """The program's answer, that of the smallest violation where the leaf is empty, and where HiGHS has none the rows' even sum."""
    rows, neurons = leaf.W_o.shape
    if leaf.is_empty:
        return Solved(np.full(rows, 1 / rows), np.zeros(neurons))
    return _program(leaf) or _ray(leaf)


def _program(leaf: Leaf) -> Solved | None:
    """minimise t, rows <= t, over the leaf. None where it is empty or HiGHS has no answer."""
    from scipy.sparse import csr_matrix, hstack, vstack

    equal, value, less, limit, low, high = _constraints(leaf)
    (rows, neurons), n, unit = leaf.W_o.shape, leaf.A.shape[1], leaf.row_size[:, None]
    own = hstack([csr_matrix(leaf.A_o / unit), csr_matrix((rows, neurons)), csr_matrix(leaf.W_o * leaf.size / unit), -np.ones((rows, 1))])
    cost = np.zeros(own.shape[1])
    cost[-1] = 1.0
    found = _solve(
        cost, vstack([own, hstack([less, csr_matrix((less.shape[0], 1))])]), np.concatenate([-leaf.b_o / leaf.row_size, limit]),
        hstack([equal, csr_matrix((neurons, 1))]), value, np.append(low, -np.inf), np.append(high, np.inf),
    )
    if found.status != 0:
        return None
    weight, nu = np.maximum(-found.ineqlin.marginals[:rows], 0) / leaf.row_size, found.eqlin.marginals[:neurons] / leaf.size
    return Solved(weight, nu, found.x[:n], found.x[n + neurons:n + 2 * neurons] * leaf.size)


def _ray(leaf: Leaf) -> Solved:
    """minimise |e|_1 with z = A x + W h + b + s e over the leaf; multipliers so large that they outweigh the rows if the leaf is empty.

    `_bound` is concave and grows in proportion to (weight, nu): _bound(weight, k nu) >= _bound(weight, 0) + k _bound(0, nu).
    """
    from scipy.sparse import csr_matrix, eye, hstack

    equal, value, less, limit, low, high = _constraints(leaf)
    (rows, neurons), n = leaf.W_o.shape, leaf.A.shape[1]
    even, none = np.full(rows, 1 / rows), np.zeros(neurons)
    cost = np.concatenate([np.zeros(len(low)), np.ones(2 * neurons)])
    found = _solve(
        cost, hstack([less, csr_matrix((less.shape[0], 2 * neurons))]), limit, hstack([equal, eye(neurons), -eye(neurons)]), value,
        np.append(low, np.zeros(2 * neurons)), np.append(high, np.full(2 * neurons, np.inf)),
    )
    if found.status != 0:
        return Solved(even, none)
    nu, x, h = found.eqlin.marginals[:neurons] / leaf.size, found.x[:n], found.x[n + neurons:n + 2 * neurons] * leaf.size
    violation = _bound(leaf, 0 * even, nu)
    if violation > 0:
        nu = nu * ((even @ leaf.row_size + 2 * abs(_bound(leaf, even, none))) / violation)
    return Solved(even, nu if violation > 0 else none, x, h)


def _constraints(leaf: Leaf) -> tuple:
    """z - A x - W h = b and the triangles, over the variables x (n), z/s (U), h/s (U): `equal @ v = value`, `less @ v <= limit`, and ends of v.

    Over I: h >= 0, h >= z, h <= relu(l) + (relu(u) - relu(l)) (z - l)/(u - l); where I does not straddle zero that is h = relu(z).
    """
    from scipy.sparse import csr_matrix, diags, eye, hstack, vstack

    n, neurons, unit = leaf.A.shape[1], len(leaf.b), leaf.size[:, None]
    one, lower, upper = eye(neurons), leaf.lower / leaf.size, leaf.upper / leaf.size
    equal = hstack([csr_matrix(-leaf.A / unit), one, csr_matrix(-leaf.W * leaf.size / unit)])
    low, high = np.maximum(lower, 0), np.maximum(upper, 0)
    slope = (high - low) / np.where(upper > lower, upper - lower, 1.0)
    aside = csr_matrix((neurons, n))
    less = vstack([hstack([aside, one, -one]), hstack([aside, diags(-slope, shape=(neurons, neurons)), one])])
    limit = np.concatenate([np.zeros(neurons), low - slope * lower])
    return equal, leaf.b / leaf.size, less, limit, np.concatenate([-np.ones(n), lower, low]), np.concatenate([np.ones(n), upper, high])


def _solve(cost, less, limit, equal, value, low, high):
    from scipy.optimize import linprog

    options = {"time_limit": TIME_LIMIT_S}
    return linprog(cost, less.tocsr(), limit, equal.tocsr(), value, np.stack([low, high], 1), method="highs", options=options)
