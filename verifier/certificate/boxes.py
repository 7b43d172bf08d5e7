"""Many sub-boxes of one problem: every neuron bounded anew on each, block by block, then the rows. Letters: N boxes, P polytopes.

A subtree's boxes are bounded on the problem that is left over their hull. What fails is bounded alone, on the problem that is left there, then halved
a few times: sub-boxes that cover a box prove it, whoever chose them, so neither the hulls nor the points nor the weights need trust.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from verifier.certificate.bound import CHUNK, DEFAULT, RELU, Problem, Rows, activation, bound, center_and_radius, eliminate, recipe

TOGETHER = 64
"""Most boxes that are bounded with one problem."""
HALVINGS = 64
"""Most halvings of one box of a certificate that is not proved as it is."""
PIECES = 8
"""Parts of a subtree that are narrowed at once."""
PATIENCE = 4
"""Boxes of a subtree that so many halvings did not prove, after which its others are not halved."""


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
    """N leaves of a tree in pre-order: their boxes `lower, upper (N, n)`, the rows' `weight (N, S)` where they are given, their `number (N,)`.

    `common (N,)`: how many cuts a leaf shares with the one before.
    """

    lower: np.ndarray
    upper: np.ndarray
    number: np.ndarray
    common: np.ndarray
    weight: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.lower)

    def take(self, index: slice | np.ndarray) -> Boxes:
        weight = None if self.weight is None else self.weight[index]
        return Boxes(self.lower[index], self.upper[index], self.number[index], self.common[index], weight)

    def sides(self) -> tuple[Boxes, Boxes]:
        """Both sides of the first cut that not all leaves share."""
        at = int(self.common[1:].argmin()) + 1
        return self.take(slice(None, at)), self.take(slice(at, None))

    def subtrees(self, most: int) -> Iterator[Boxes]:
        """The leaves in pieces of at most `most`, each on one side of every cut between them."""
        waiting = [self]
        while waiting:
            part = waiting.pop()
            if len(part) <= most:
                yield part
            else:
                waiting += part.sides()[::-1]

    def hull(self) -> tuple[np.ndarray, np.ndarray]:
        return self.lower.min(0), self.upper.max(0)


Polytopes = tuple[tuple[int, slice], ...]
"""Numbers of polytopes, and their rows."""
Lacking = tuple[int, int, float]
"""A leaf's number, a polytope that is not proved there, its bound."""


@dataclass(frozen=True, slots=True)
class _Open:
    """One box of the problem that is left on it, the polytopes that are not excluded and their bounds; `is_new`: no hull is smaller than this box."""

    problem: Problem
    box: Boxes
    polytopes: Polytopes
    bounds: np.ndarray
    is_new: bool

    def _worst(self) -> tuple[Rows, np.ndarray]:
        """The rows of the polytope that lacks most, and their multipliers."""
        rows = self.problem.rows.take(self.polytopes[int(self.bounds.argmin())][1])
        return rows, recipe(self.problem, rows, self.problem.lower, self.problem.upper, DEFAULT, len(self.problem.b))

    def is_by_errors(self) -> bool:
        """Whether a bound lacks less than twice what it loses to errors: less is lost on a network reduced again over less."""
        rows, nu = self._worst()
        symbols = abs(rows.a + nu @ self.problem.A)[:, len(self.problem.free):].sum(1)
        return bool(-self.bounds.min() < 2 * (rows.slack + abs(nu) @ self.problem.noise + symbols).max())

    def halves(self) -> Boxes | None:
        """The halves of the box along the input that moves the rows most, with and without cancellation; None where floats are too coarse."""
        (rows, nu), problem = self._worst(), self.problem
        moved = (abs(rows.a + nu @ problem.A) + abs(rows.a) + abs(nu) @ abs(problem.A)).sum(0)[:len(problem.free)]
        both = self.box.take(np.zeros(2, int))
        gain = moved * (both.upper - both.lower)[0, :len(moved)]
        if not len(gain):
            return None
        axis = int(gain.argmax())
        middle = (both.lower[0, axis] + both.upper[0, axis]) / 2
        if not both.lower[0, axis] < middle < both.upper[0, axis]:
            return None
        both.upper[0, axis] = both.lower[1, axis] = middle
        return both


@dataclass(frozen=True, slots=True)
class BoxProof:
    """What is to be shown on boxes: that no point is in one of the `polytopes`, which are (number, rows).

    `anew`: a problem and boxes of it -> the network reduced again over their hull, and the boxes there; None where nothing is gained by it.
    """

    polytopes: Polytopes
    anew: Callable[[Problem, Boxes], tuple[Problem, Boxes]] | None
    tick: Callable[[], None]

    def unproved(self, problem: Problem, boxes: Boxes) -> list[Lacking]:
        """What is not proved of boxes, of each the first."""
        self.tick()
        if len(boxes) > _together(problem):
            parts = list(boxes.subtrees(max(_together(problem), len(boxes) // PIECES)))
            low, high, _ = box_bounds(problem, *(np.stack(ends) for ends in zip(*(part.hull() for part in parts))))
            return [one for k, part in enumerate(parts) for one in self.unproved(_settled(problem, low[k], high[k]), part)]
        failed: list[Lacking] = []
        for part in self._open(problem, boxes, self.polytopes):
            failed += self._halved(part, HALVINGS if len(failed) < PATIENCE else 0)
        return failed

    def _open(self, problem: Problem, boxes: Boxes, polytopes: Polytopes, is_new: bool = False) -> list[_Open]:
        """The boxes where not all `polytopes` are excluded, by a row of each or by the given combination.

        Where errors may be to blame for several, they are bounded on the network reduced again over their hull.
        """
        low, high, found = box_bounds(problem, boxes.lower, boxes.upper)
        best = np.stack([found[:, rows].max(1) for _, rows in polytopes], 1)
        for k, (_, rows) in enumerate(polytopes if boxes.weight is not None else ()):
            left = np.nonzero(~(best[:, k] > 0))[0] if rows.stop - rows.start > 1 else []
            if len(left):
                weight = np.zeros((len(left), found.shape[1]))
                weight[:, rows] = boxes.weight[left, rows]
                combined = combined_bounds(problem, weight, (boxes.lower[left], boxes.upper[left]), (low[left], high[left]))
                best[left, k] = np.fmax(best[left, k], combined)
        failed = np.nonzero(~(best > 0).all(1))[0]

        def opened(k: int) -> _Open:
            left = np.nonzero(~(best[k] > 0))[0]
            own = tuple(polytopes[p] for p in left)
            return _Open(_settled(problem, low[k], high[k]), boxes.take(slice(k, k + 1)), own, best[k, left], is_new and len(boxes) == 1)

        if len(failed) > 1 and self.anew is not None and not is_new and opened(failed[best[failed].min(1).argmax()]).is_by_errors():
            return self._open(*self.anew(problem, boxes.take(failed)), polytopes, True)
        return [opened(k) for k in failed]

    def _halved(self, first: _Open, spare: int) -> list[Lacking]:
        """What is not proved of an open box by up to `spare` halvings of it and its parts: nothing, or what was the first to be left."""
        waiting = [first]
        while waiting:
            self.tick()
            one = waiting.pop()
            if self.anew is not None and not one.is_new and one.is_by_errors():
                waiting += self._open(*self.anew(one.problem, one.box), one.polytopes, True)
                continue
            halves = one.halves() if spare > 0 else None
            if halves is None:
                return [(int(one.box.number[0]), number, float(value)) for (number, _), value in zip(one.polytopes, one.bounds)]
            spare -= 1
            waiting += self._open(one.problem, halves, one.polytopes)
        return []


def _together(problem: Problem) -> int:
    """How many boxes are bounded with one problem: the fewer, the more neurons narrowing it may settle."""
    return TOGETHER if len(problem.b) <= 64 else 16 if len(problem.b) <= 256 else 2
