"""The proof rule: a lower bound of rows over a reduced problem from any multipliers, and the recipe that finds good ones.

    r  >=  b + nu b_z - |nu| noise - max |a + nu A| + sum_j min over z in I_j of (c_j s(z) - nu_j z),      c = w + nu W,

for every nu, because z - (A x + W h + b_z + d) = 0 may be added with any factor (docs/certificate.md). `proved` is all that is trusted; what `recipe`
returns is not. Letters: K rows, U neurons, n inputs; leading axes broadcast, so that N boxes of K rows each are `(N, K, ...)`.
"""
from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from math import prod
from typing import NamedTuple

import numpy as np

from verifier.certificate.arithmetic import Arithmetic, Exact
from verifier.certificate.smooth import sigmoid, slopes, smooth_minimum
from verifier.certificate.threads import spread

RELU = "relu"
HUGE = 2.0**400
"""Multipliers and coefficients beyond this prove nothing: no product of what is below it overflows."""
CHUNK = 2**18
"""Numbers in one array of multipliers: small enough to stay in a processor's cache."""


class Block(NamedTuple):
    """Neurons start..end of one activation and their kind."""

    start: int
    end: int
    kind: str


@dataclass(frozen=True, slots=True)
class Rows:
    """K functions r = w h + a x + b + d, |d| <= slack: `w (K, U)`, `a (K, n)`, `b, slack (K,)`."""

    w: np.ndarray
    a: np.ndarray
    b: np.ndarray
    slack: np.ndarray

    def take(self, index: np.ndarray | slice) -> Rows:
        return Rows(self.w[index], self.a[index], self.b[index], self.slack[index])

    def signed(self, sign: np.ndarray) -> Rows:
        """Each row times its sign, +1 or -1."""
        return Rows(self.w * sign[:, None], self.a * sign[:, None], self.b * sign, self.slack)


@dataclass(frozen=True, slots=True)
class Ball:
    """{x : the l1 or l2 norm (`norm` 1 or 2) of (x_j - center_j) / reach_j, over the first inputs, is at most 1}; `center, reach (k,)`."""

    center: np.ndarray
    reach: np.ndarray
    norm: int

    def least(self, a: np.ndarray, arithmetic: Arithmetic) -> np.ndarray:
        """A lower bound of a x over the ball, `a (..., k)`: a center less the dual norm of a reach."""
        size = abs(a) * self.reach
        dual = arithmetic.norm(size) if self.norm == 2 else size.max(-1, initial=0)
        return a @ self.center - arithmetic.up(dual) - arithmetic.up(arithmetic.room(len(self.center) + 8, abs(a) @ abs(self.center)))


@dataclass(frozen=True)  # without slots: `sizes` is computed once
class Problem:
    """z = A x + W h + b + d, |d| <= noise, h = s(z), lower <= z <= upper, x in [-1, 1]^n, in blocks; `rows` are the specification.

    Where there is a `ball`, the first inputs lie in it too.

    `name (U,)`: the neurons' positions in the certificate's table, -1 where they have none. `free`: which network inputs x scales, by
    `center + radius x`, the last symbols of x being rounding errors where a runtime's arithmetic is meant. `region`: the box of all network inputs.
    """

    arithmetic: Arithmetic
    A: np.ndarray
    W: np.ndarray
    b: np.ndarray
    noise: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    blocks: tuple[Block, ...]
    name: np.ndarray
    rows: Rows
    free: np.ndarray
    center: np.ndarray
    radius: np.ndarray
    region: tuple[np.ndarray, np.ndarray]
    ball: Ball | None = None

    def least(self, a: np.ndarray, inputs: tuple[np.ndarray, np.ndarray] | None = None) -> np.ndarray:
        """min of a x `(..., K)` over the inputs: over [-1, 1]^n, or a box within it given as centre and radius `(..., n)`, and over the ball."""
        total = _over_box(a, inputs)
        if self.ball is None:
            return total
        own = a[..., :len(self.ball.center)]
        part = None if inputs is None else tuple(side[..., :own.shape[-1]] for side in inputs)
        return total + np.fmax(self.ball.least(own, self.arithmetic) - _over_box(own, part), 0)  # NaN, where numbers overflow, is no gain

    def appended(self, rows: Rows, lower: np.ndarray, upper: np.ndarray, kind: str, name: np.ndarray) -> Problem:
        """With one more block of neurons, z given by `rows`."""
        if not len(name):
            return self
        u, end = len(self.b), len(self.b) + len(name)
        W = np.zeros((end, end), self.W.dtype)
        W[:u, :u], W[u:, :u] = self.W, rows.w
        new = {"b": rows.b, "noise": rows.slack, "lower": lower, "upper": upper, "name": name}
        joined = {key: np.concatenate([getattr(self, key), value]) for key, value in new.items()}
        A = np.concatenate([widened(self.A, rows.a.shape[1]), rows.a])
        return replace(self, A=A, W=W, blocks=(*self.blocks, Block(u, end, kind)), **joined)._knowing(self)

    def neurons(self, index: np.ndarray, sign: np.ndarray) -> Rows:
        """sign * z of the neurons `index (K,)`."""
        return Rows(self.W[index], self.A[index], self.b[index], self.noise[index]).signed(self.arithmetic.array(sign))

    def weighted(self, weight: np.ndarray) -> Rows:
        """Sums of the specification's rows with `weight (K, S)` >= 0, their rounding in the slack."""
        rows, weight = self.rows, self.arithmetic.array(weight)
        terms = abs(rows.w) @ self.sizes[0] + abs(rows.a).sum(1) + abs(rows.b) + rows.slack
        slack = self.arithmetic.up(weight @ rows.slack + self.arithmetic.room(weight.shape[1] + 8, weight @ terms))
        return Rows(weight @ rows.w, weight @ rows.a, weight @ rows.b, slack)

    @cached_property
    def sizes(self) -> tuple[np.ndarray, np.ndarray]:
        """max |h| `(U,)`, and for z the sum of its absolute terms with max |z|, `(U,)`: what roundings are relative to."""
        return self._measured(0, (self.b[:0], self.b[:0]))

    @cached_property
    def reads(self) -> tuple[int, ...]:
        """How many inputs each block reads: later ones are errors that were no symbols yet."""
        return self._read(0)

    def _measured(self, first: int, known: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        h, size = known
        for start, end, kind in self.blocks[first:]:
            own = slice(start, end)
            most = np.maximum(abs(self.lower[own]), abs(self.upper[own]))
            size = np.concatenate([size, abs(self.A[own]).sum(1) + abs(self.W[own, :start]) @ h + abs(self.b[own]) + most])
            h = np.concatenate([h, {RELU: most, "square": most * most}.get(kind, 1 + most)])
        return h, size

    def _read(self, first: int) -> tuple[int, ...]:
        last = [np.nonzero((self.A[start:end] != 0).any(0))[0] for start, end, _ in self.blocks[first:]]
        return tuple(int(found[-1]) + 1 if len(found) else 0 for found in last)

    def _knowing(self, part: Problem) -> Problem:
        """This problem, of which `part` is the first blocks, with what is worked out of it already."""
        count = len(part.blocks)
        self.__dict__.update(sizes=self._measured(count, part.sizes), reads=part.reads + self._read(count))
        return self


class Multipliers(NamedTuple):
    """What a certificate gives for K rows, `(K, U)` each: alpha in [0, 1]; sign * beta of the splits; nu where `given (U,)`."""

    alpha: np.ndarray | None = None
    beta: np.ndarray | None = None
    nu: np.ndarray | None = None
    given: np.ndarray | None = None


DEFAULT = Multipliers()


def widened(A: np.ndarray, count: int) -> np.ndarray:
    """With zeros for inputs that are new."""
    return np.concatenate([A, np.zeros((len(A), count - A.shape[1]), A.dtype)], 1) if count > A.shape[1] else A


def _over_box(a: np.ndarray, inputs: tuple[np.ndarray, np.ndarray] | None) -> np.ndarray:
    if inputs is None:
        return -abs(a).sum(-1)
    center, radius = inputs
    return (a @ center[..., None])[..., 0] - (abs(a) @ radius[..., None])[..., 0]


def center_and_radius(arithmetic: Arithmetic, lower: np.ndarray, upper: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centre and radius: an interval that contains [lower, upper]."""
    center = (lower + upper) / 2
    return center, arithmetic.up(np.maximum(upper - center, center - lower))


def activation(kind: str, lower: np.ndarray, upper: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The range of s over [lower, upper], rounded outward."""
    if kind == RELU:
        zero = Fraction(0) if lower.dtype == object else 0.0  # half of an int is a float
        return np.maximum(lower, zero), np.maximum(upper, zero)
    if kind == "square":
        ends, inside = (lower * lower, upper * upper), (lower < 0) & (upper > 0)
        outward = 0 if ends[0].dtype == object else 2.0**-50
        return np.where(inside, 0, np.minimum(*ends)) * (1 - outward), np.maximum(*ends) * (1 + outward)
    s = np.tanh if kind == "tanh" else sigmoid
    return s(lower) - 2.0**-48, s(upper) + 2.0**-48


def minimum(kind: str, c: np.ndarray, nu: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """min over lower <= z <= upper of c s(z) - nu z, up to a few roundings of its terms."""
    if kind in ("sigmoid", "tanh"):
        return smooth_minimum(kind, c, nu, lower, upper)
    ends = (np.maximum(lower, 0), np.maximum(upper, 0)) if kind == RELU else (lower * lower, upper * upper)
    least = np.minimum(c * ends[0] - nu * lower, c * ends[1] - nu * upper)
    if kind == RELU:
        return np.where((lower < 0) & (upper > 0), np.minimum(least, 0), least)
    convex = c > 0
    double = np.where(convex, 2 * c, 1)
    turn = nu / double
    return np.where(convex & (lower < turn) & (turn < upper), -nu * turn / 2, least)


def proved(
    problem: Problem, rows: Rows, lower: np.ndarray, upper: np.ndarray, nu: np.ndarray, inputs: tuple[np.ndarray, np.ndarray] | None = None,
    c: np.ndarray | None = None,
) -> np.ndarray:
    """The rule: lower bounds `(..., K)` of the rows where lower <= z <= upper, for any `nu (..., K, U)`; infinite where an interval is empty.

    The inputs lie in [-1, 1]^n or in a box within it, given as `inputs`: centre and radius `(..., n)`. `c` is w + nu W where that is known.
    """
    arithmetic, stop = problem.arithmetic, nu.shape[-1]
    known, a = c is not None, np.broadcast_to(rows.a, (*nu.shape[:-1], rows.a.shape[-1])).copy()
    c = c if known else np.broadcast_to(rows.w[..., :stop], nu.shape).copy()
    total = rows.b + nu @ problem.b[:stop] - abs(nu) @ problem.noise[:stop]
    for (start, end, _), reads in zip(problem.blocks, problem.reads):
        if end <= stop and nu[..., start:end].any():
            a[..., :reads] += times(nu[..., start:end], problem.A[start:end, :reads])
            if not known:
                c[..., :start] += times(nu[..., start:end], problem.W[start:end, :start])
    for start, end, kind in problem.blocks:
        at = (..., slice(start, end))
        if end <= stop and (nu[at].any() or c[at].any()):
            total = total + minimum(kind, c[at], nu[at], lower[at], upper[at]).sum(-1)
    total = total + problem.least(a, inputs)
    h, size = (part[:stop] for part in problem.sizes)
    terms = abs(rows.b) + abs(rows.a).sum(-1) + abs(rows.w[..., :stop]) @ h + abs(nu) @ (size + problem.noise[:stop]) + rows.slack
    total = total - rows.slack - arithmetic.room(8 * (stop + a.shape[-1] + 16), terms)
    sane = (abs(total) < HUGE) & (abs(c) < HUGE).all(-1) & (abs(nu) < HUGE).all(-1)  # NaN is not
    return np.where((lower[..., :stop] > upper[..., :stop]).any(-1), np.inf, np.where(sane, total, -np.inf))


def recipe(problem: Problem, rows: Rows, lower: np.ndarray, upper: np.ndarray, given: Multipliers, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """nu `(..., K, stop)` by CROWN's backward pass with the given multipliers, which need not be right, and c = w + nu W in float64."""
    lower, upper, w, W = (np.asarray(part[..., :stop], np.float64) for part in (lower, upper, rows.w, problem.W))
    c = np.broadcast_to(w, np.broadcast_shapes(w.shape, lower.shape)).copy()
    nu = np.zeros_like(c)
    pick = lambda part, at: None if part is None else part[..., at]  # noqa: E731
    for start, end, kind in reversed(problem.blocks):
        at = slice(start, end)
        if end > stop or (given.nu is None and given.beta is None and not c[..., at].any()):
            continue  # nothing depends on the block
        if given.nu is None or not given.given[at].all():
            below, above = slopes(kind, lower[..., at], upper[..., at], pick(given.alpha, at))
            nu[..., at] = c[..., at] * np.where(c[..., at] > 0, below, above)
        if given.beta is not None:
            nu[..., at] -= given.beta[..., at]
        if given.nu is not None:
            nu[..., at] = np.where(given.given[at], given.nu[..., at], nu[..., at])
        c[..., :start] += times(nu[..., at], W[at, :start])
    return nu, c


def times(rows: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """rows @ matrix for `rows (..., K, j)`, as one product of two matrices."""
    return (rows.reshape(prod(rows.shape[:-1]), rows.shape[-1]) @ matrix).reshape(*rows.shape[:-1], matrix.shape[1])


def bound(
    problem: Problem, rows: Rows, lower: np.ndarray, upper: np.ndarray, given: Multipliers = DEFAULT, stop: int | None = None,
    inputs: tuple[np.ndarray, np.ndarray] | None = None,
) -> np.ndarray:
    """`proved` with the recipe's multipliers, over the neurons before `stop`."""
    stop = len(problem.b) if stop is None else stop
    nu, c = recipe(problem, rows, lower, upper, given, stop)
    if isinstance(problem.arithmetic, Exact):
        nu, c = problem.arithmetic.array(nu), None
    return proved(problem, rows, lower[..., :stop], upper[..., :stop], nu, inputs, c)


def bound_both_sides(problem: Problem, rows: Rows, index: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> None:
    """Improves `lower` and `upper` at `index`, in place, by the default multipliers; the upper one where the lower one leaves the sign open."""
    size = max(1, CHUNK // max(1, len(problem.b)))

    def chunk(start: int) -> None:
        own, part = index[start:start + size], rows.take(slice(start, start + size))
        lower[own] = np.maximum(lower[own], bound(problem, part, problem.lower, problem.upper))
        left = ~(lower[own] >= 0)
        if left.any():
            minus = part.take(left).signed(problem.arithmetic.array(-np.ones(int(left.sum()))))
            upper[own[left]] = np.minimum(upper[own[left]], -bound(problem, minus, problem.lower, problem.upper))

    spread(chunk, range(0, len(index), size))


def eliminate(problem: Problem, kept: frozenset[int]) -> Problem:
    """The same rows without the ReLUs whose sign is known, but for those at the table's positions `kept`.

    relu(z) = z where lower >= 0: z's row is substituted, last neuron first; relu(z) = 0 where upper <= 0.
    """
    arithmetic, (h, size) = problem.arithmetic, problem.sizes
    relu = np.concatenate([np.zeros(0, bool), *(np.full(end - start, kind == RELU) for start, end, kind in problem.blocks)])
    relu &= ~np.isin(problem.name, list(kept))
    active, inactive = relu & (problem.lower >= 0), relu & (problem.upper <= 0) & ~(problem.lower >= 0)
    keep = ~(active | inactive)
    if keep.all():
        return problem
    W, A, b, noise, rows = problem.W[keep], problem.A[keep], problem.b[keep], problem.noise[keep], problem.rows
    rows = Rows(rows.w.copy(), rows.a.copy(), rows.b.copy(), rows.slack.copy())
    z_terms, row_terms = size[keep], abs(rows.w) @ h + abs(rows.a).sum(1) + abs(rows.b)
    for start, end, _ in reversed(problem.blocks):
        gone = np.nonzero(active[start:end])[0] + start
        if not len(gone):
            continue
        later = slice(int(keep[:end].sum()), None)  # the rows of neurons that read these
        for into, rest, constant, error, terms in (
            (W[later], A[later], b[later], noise[later], z_terms[later]), (rows.w, rows.a, rows.b, rows.slack, row_terms)
        ):
            column = into[:, gone]
            terms += abs(column) @ size[gone]
            own = abs(column) @ problem.noise[gone] + arithmetic.room(4 * len(keep) + 64, terms)
            error[:] = arithmetic.up(error + own)
            into[:, :start] += column @ problem.W[gone, :start]
            rest += column @ problem.A[gone]
            constant += column @ problem.b[gone]
    blocks, start = [], 0
    for block in problem.blocks:
        count = int(keep[block.start:block.end].sum())
        blocks.append(Block(start, start + count, block.kind))
        start += count
    return replace(
        problem, A=A, W=W[:, keep], b=b, noise=noise, lower=problem.lower[keep], upper=problem.upper[keep],
        blocks=tuple(block for block in blocks if block.end > block.start), name=problem.name[keep], rows=replace(rows, w=rows.w[:, keep]),
    )
