"""Many sub-boxes of one problem: every neuron bounded anew on each, block by block, then the rows. Letters: N boxes, P polytopes.

A subtree's boxes are bounded on the problem that is left over their hull. What fails is halved, and what is left of a group goes on
as a group of its own: sub-boxes that cover a box prove it, whoever chose them, so neither the hulls nor the points nor the weights need trust.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from verifier.certificate.bound import CHUNK, DEFAULT, RELU, Multipliers, Problem, Rows, activation, bound, center_and_radius, eliminate, recipe

TOGETHER = 256
"""Most boxes that are bounded with one problem."""
PIECES = 8
"""Parts of a subtree that are narrowed at once."""
DEEPEST = 12
"""Halvings that one box of a certificate may need."""
MOST_OPEN, MOST_LACKING = 512, 64
"""Parts of a group that may be open at once before it is given up; boxes of a certificate that are not proved, after which no more are halved."""
SPARED, HALVED = 64, 32
"""Parts, in all and for each box, that halving may make of the boxes that are begun with: a proof that needs many more is to be found by a search."""
AGAIN = 3
"""Halvings after which the network may be reduced again."""


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


def combined_bounds(problem: Problem, weight: np.ndarray, box: tuple[np.ndarray, np.ndarray], neurons: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """The bounds `(N,)` of the rows' sums with `weight (N, S)` >= 0, each over its box of `box`, `(N, n)`, its neurons in `(N, U)` intervals."""
    rows = problem.weighted(weight)
    own = Rows(rows.w[:, None], rows.a[:, None], rows.b[:, None], rows.slack[:, None])
    low, high = (side[:, None] for side in neurons)
    return bound(problem, own, low, high, inputs=center_and_radius(problem.arithmetic, *box))[:, 0]


def narrowed_problem(problem: Problem, lower: np.ndarray, upper: np.ndarray) -> Problem:
    """The problem over one sub-box `(n,)`: its neurons' bounds there, without those that they settle."""
    low, high, _ = box_bounds(problem, lower[None], upper[None])
    return _settled(problem, low[0], high[0])


def _settled(problem: Problem, low: np.ndarray, high: np.ndarray) -> Problem:
    empty = low > high
    low, high = (np.where(empty, whole, part) for whole, part in ((problem.lower, low), (problem.upper, high)))
    return eliminate(replace(problem, lower=low, upper=high), frozenset())


@dataclass(frozen=True, slots=True)
class Boxes:
    """N leaves of a tree in pre-order, or parts of them: boxes `lower, upper (N, n)`, which leaf they are of, `number (N,)`.

    `common (N,)`: how many cuts one shares with the one before; `weight (N, S)`: the rows', where they are given; `open (N, P)`: the polytopes that
    are not excluded yet; `depth (N,)`: how often they were halved.
    """

    lower: np.ndarray
    upper: np.ndarray
    number: np.ndarray
    common: np.ndarray
    open: np.ndarray
    depth: np.ndarray
    weight: np.ndarray | None = None

    @staticmethod
    def leaves(ends: tuple[np.ndarray, np.ndarray], first: int, common: np.ndarray, polytopes: int, weight: np.ndarray | None) -> Boxes:
        """The leaves with these boxes, numbered from `first`."""
        count = len(common)
        return Boxes(*ends, np.arange(first, first + count), common, np.ones((count, polytopes), bool), np.zeros(count, int), weight)

    def __len__(self) -> int:
        return len(self.lower)

    def take(self, index: np.ndarray | slice) -> Boxes:
        """Some of them, in order; neighbours share what all between them shared."""
        index = np.arange(len(self))[index]
        common = np.array([self.common[before + 1:at + 1].min(initial=FAR) for before, at in zip([-1, *index], index)], int)
        weight = None if self.weight is None else self.weight[index]
        return Boxes(self.lower[index], self.upper[index], self.number[index], common, self.open[index], self.depth[index], weight)

    def subtrees(self, most: int) -> Iterator[Boxes]:
        """All of them in pieces of at most `most`, each on one side of every cut between them."""
        waiting = [self]
        while waiting:
            part = waiting.pop()
            if len(part) <= most:
                yield part
            else:
                at = int(part.common[1:].argmin()) + 1
                waiting += [part.take(slice(at, None)), part.take(slice(at))]

    def hull(self) -> tuple[np.ndarray, np.ndarray]:
        return self.lower.min(0), self.upper.max(0)

    def halves(self, axis: np.ndarray) -> Boxes:
        """Both halves of each, one after the other, along `axis (N,)`."""
        each, at = self.take(np.repeat(np.arange(len(self)), 2)), np.arange(0, 2 * len(self), 2)
        middle = (self.lower + self.upper)[at // 2, axis] / 2
        each.upper[at, axis] = each.lower[at + 1, axis] = np.clip(middle, self.lower[at // 2, axis], self.upper[at // 2, axis])
        return replace(each, depth=each.depth + 1)


FAR = 2**60
"""Cuts that halves of one box share."""


class Lacking(NamedTuple):
    """A leaf's number, a polytope that is not proved there, its bound, and what this loses to errors."""

    leaf: int
    polytope: int
    bound: float
    errors: float


@dataclass(frozen=True, slots=True)
class BoxProof:
    """What is to be shown on boxes: that no point is in one of the `polytopes`, which are (number, rows).

    `anew`: a problem and boxes of it -> the network reduced again over their hull, and the boxes there; None where nothing is gained by it.
    `deepest`: halvings that a box may need.
    """

    polytopes: tuple[tuple[int, slice], ...]
    anew: Callable[[Problem, Boxes], tuple[Problem, Boxes]] | None
    tick: Callable[[], None]
    deepest: int

    def unproved(self, problem: Problem, boxes: Boxes) -> list[Lacking]:
        """What is not proved of boxes, which the problem is about."""
        return self._unproved(problem, boxes, -AGAIN, [SPARED + HALVED * len(boxes)])

    def _unproved(self, problem: Problem, boxes: Boxes, reduced_at: int, spare: list[int]) -> list[Lacking]:
        """The problem is of a network that was reduced for boxes that were halved `reduced_at` times; `spare[0]` parts may still be made."""
        self.tick()
        most = _together(problem)
        if len(boxes) > most:
            parts = list(boxes.subtrees(max(most, len(boxes) // PIECES)))
            low, high, _ = box_bounds(problem, *(np.stack(ends) for ends in zip(*(part.hull() for part in parts))))
            return [one for k, part in enumerate(parts) for one in self._unproved(_settled(problem, low[k], high[k]), part, reduced_at, spare)]
        low, high, best = self._bounds(problem, boxes)
        left = np.nonzero((boxes.open & ~(best > 0)).any(1))[0]
        if not len(left):
            return []
        boxes, low, high, best = replace(boxes, open=boxes.open & ~(best > 0)).take(left), low[left], high[left], best[left]
        depth = int(boxes.depth.min())
        moved, errors = self._influence(problem, boxes, low, high, best)
        if self.anew is not None and depth >= reduced_at + AGAIN and np.median(2 * errors + np.where(boxes.open, best, np.inf).min(1)) > 0:
            spare[0] -= len(boxes)
            return self._unproved(*self.anew(problem, boxes), depth, spare)
        gain = moved * (boxes.upper - boxes.lower)[:, :moved.shape[1]]
        spare[0] -= 2 * len(left)
        if spare[0] < 0 or len(left) > MOST_OPEN or depth >= self.deepest or not (gain > 0).any(1).all():
            return [
                Lacking(int(boxes.number[k]), self.polytopes[p][0], float(best[k, p]), float(errors[k])) for k, p in zip(*np.nonzero(boxes.open))
            ]
        return self._unproved(_settled(problem, low.min(0), high.max(0)), boxes.halves(gain.argmax(1)), reduced_at, spare)

    def _best(self, found: np.ndarray) -> np.ndarray:
        """The best of each polytope's rows, `(N, P)` of `(N, S)`."""
        return np.stack([found[:, rows].max(1) for _, rows in self.polytopes], 1)

    def _bounds(self, problem: Problem, boxes: Boxes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The neurons' bounds `(N, U)` and the polytopes' `(N, P)`, by a row of each, with several slopes, or by the given combination."""
        low, high, found = box_bounds(problem, boxes.lower, boxes.upper)
        best = self._best(found)
        for k, (_, rows) in enumerate(self.polytopes if boxes.weight is not None else ()):
            left = np.nonzero(boxes.open[:, k] & ~(best[:, k] > 0))[0] if rows.stop - rows.start > 1 else []
            if len(left):
                weight = np.zeros((len(left), found.shape[1]))
                weight[:, rows] = boxes.weight[left, rows]
                combined = combined_bounds(problem, weight, (boxes.lower[left], boxes.upper[left]), (low[left], high[left]))
                best[left, k] = np.fmax(best[left, k], combined)
        for slope in (0.0, 1.0):
            left = np.nonzero((boxes.open & ~(best > 0)).any(1))[0]
            if len(left):
                given, ends = Multipliers(alpha=np.full(len(problem.b), slope)), (boxes.lower[left], boxes.upper[left])
                inputs = center_and_radius(problem.arithmetic, *ends)
                best[left] = np.fmax(best[left], self._best(bound(problem, problem.rows, low[left, None], high[left, None], given, inputs=inputs)))
        best[(boxes.lower > boxes.upper).any(1)] = np.inf  # no point is in it
        return low, high, best

    def _influence(self, problem: Problem, boxes: Boxes, low: np.ndarray, high: np.ndarray, best: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of the polytope of each box that lacks most: what inputs move its rows `(N, free)`, and the most that their bounds lose to errors `(N,)`.

        Both by the default multipliers, with and without cancellation.
        """
        worst = np.where(boxes.open, best, np.inf).argmin(1)
        weight = np.zeros((len(boxes), len(problem.rows.b)))
        for k, polytope in enumerate(worst):
            weight[k, self.polytopes[polytope][1]] = 1
        rows, free = problem.rows, len(problem.free)
        nu, _ = recipe(problem, rows, low[:, None], high[:, None], DEFAULT, len(problem.b))
        moved = (abs(rows.a + nu @ problem.A) + abs(rows.a) + abs(nu) @ abs(problem.A))[..., :free]
        return (weight[..., None] * moved).sum(1), (weight * lost(problem, nu)).max(1)


def lost(problem: Problem, nu: np.ndarray) -> np.ndarray:
    """What bounds of the specification's rows with multipliers `nu (..., S, U)` lose to errors, `(..., S)`."""
    symbols = abs(problem.rows.a + nu @ problem.A)[..., len(problem.free):]
    return problem.rows.slack + abs(nu) @ problem.noise + symbols.sum(-1)


def _together(problem: Problem) -> int:
    """How many boxes are bounded with one problem: the fewer, the more neurons narrowing it may settle."""
    return TOGETHER if len(problem.b) <= 100 else 16 if len(problem.b) <= 256 else 2
