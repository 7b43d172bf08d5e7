"""One case of a certificate at work: the problem as far as lemmas have narrowed it, the polytopes that are open, what failed."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from verifier.certificate import boxes as boxes_at_work
from verifier.certificate.arithmetic import Arithmetic, Rounded, Runtime
from verifier.certificate.bound import CHUNK, DEFAULT, Multipliers, Problem, Rows, bound, eliminate, recipe
from verifier.certificate.boxes import TOGETHER, Boxes, BoxProof, Lacking, lost
from verifier.certificate.reduce import Statement, reduce
from verifier.certificate.schema import CertificateError, Record
from verifier.certificate.threads import spread
from verifier.certificate.trees import LEAF, Path, narrowed, shared, splits, walk
from verifier.graph.ir import Graph

Tick = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Failure:
    """What is not proved: a polytope of a case, and where: the tree (its number among the case's) and its leaf; None for a polytope without one.

    `errors`: what the bound loses to rounding errors where that is known, those of the runtime that is meant and the checker's own; `more`: the
    other leaves of a tree of boxes that lack it, and their bounds.
    """

    case: int
    polytope: int
    tree: int | None
    leaf: int | None
    bound: float
    errors: float = 0.0
    more: tuple[tuple[int, float], ...] = ()

    def places(self) -> list[tuple[int, float]]:
        """The leaves of a tree of boxes that are known to lack it, and a margin that a search may need there: none but for errors."""
        mends = lambda bound: min(-bound, 2 * self.errors) if np.isfinite(bound) else np.inf  # noqa: E731
        return [(leaf, mends(bound)) for leaf, bound in [(self.leaf or 0, self.bound), *self.more]]

    @property
    def by_errors(self) -> bool:
        """Whether the bound would be positive if nothing were rounded."""
        return self.bound + self.errors > 0

    def sentence(self) -> str:
        where = "no tree proves it, and the root bound" if self.tree is None else f"leaf {self.leaf} of tree {self.tree}: the bound"
        return f"Case {self.case}, polytope {self.polytope} is not proved: {where} is {self.bound:.3g}, not positive."


def _ball(record: Record, n_in: int) -> tuple[np.ndarray, float, int] | None:
    """The ball that the inputs of a CASE lie in, as (centre, radius, norm)."""
    if "center" not in record.arrays:
        return None
    center, radius, norm = record.array("center", "f8", (n_in,)), float(record.array("radius", "f8", (1,))[0]), record.field("norm", int)
    if radius < 0 or norm not in (1, 2):
        raise CertificateError(f"{record.place} has a ball of radius {radius:g} in the l{norm} norm: l1 and l2 are known, and no radius below 0.")
    return center, radius, norm


class Case:
    """Reads a CASE record, then (`run`) what follows it."""

    def __init__(self, graph: Graph, record: Record, runtime: Runtime | None, arithmetic: Arithmetic, number: int) -> None:
        n_in, n_out = int(np.prod(graph.input_shape)), int(np.prod(graph.output_shape))
        self.record, self.number, self.arithmetic, self.leaves, self.trees = record, number, arithmetic, 0, 0
        counts = record.items("rows", int)
        self.ends = np.cumsum([0, *counts]).tolist()
        lower, upper = (record.array(name, "f8", (n_in,)) for name in ("lower", "upper"))
        if not (lower <= upper).all() or 0 in counts:
            raise CertificateError(f"{record.place} has a box whose lower ends exceed its upper ones, or a polytope without rows.")
        output, offset = record.array("output", "f8", (self.ends[-1], n_out)), record.array("offset", "f8", (self.ends[-1],))
        given = record.array("input", "f8", (self.ends[-1], n_in)) if "input" in record.arrays else np.zeros((self.ends[-1], n_in))
        nodes, table = record.items("nodes", str), record.array("neuron", "i4", (None, 2))
        if len(table) and not (table.min() >= 0 and table[:, 0].max() < len(nodes)):
            raise CertificateError(f"{record.place} names neurons of nodes that it does not list.")
        names = {(nodes[node], neuron): k for k, (node, neuron) in enumerate(table.tolist())}
        self.neurons, self.kept = len(table), frozenset(record.array("kept", "u4", (None,)).tolist())
        self.statement = Statement(lower, upper, output, given, offset, names, self.kept, _ball(record, n_in))
        self.graph, self.runtime = graph, runtime
        self.known: set[tuple] = set()  # boxes, by the cuts that make them, on which the polytopes were seen to be closed
        self.problem = reduce(graph, self.statement, arithmetic, self.runtime)
        self.open: dict[int, Failure] = {}
        found = bound(self.problem, self.problem.rows, self.problem.lower, self.problem.upper)
        for k, rows in enumerate(self._polytopes()):
            if not (found[rows] > 0).any():
                self.open[k] = Failure(number, k, None, None, float(found[rows].max()))

    def _polytopes(self) -> list[slice]:
        return [slice(a, b) for a, b in zip(self.ends, self.ends[1:])]

    def states(self) -> tuple[np.ndarray, np.ndarray, list[tuple[np.ndarray, np.ndarray, np.ndarray]]]:
        """What is proved unless something failed: the box, and each polytope's (output, offset, input)."""
        s = self.statement
        return s.lower, s.upper, [(s.output[rows], s.offset[rows], s.input[rows]) for rows in self._polytopes()]

    def lost(self) -> np.ndarray:
        """What each row's bound over the case's box loses to errors, `(S,)`: the margin that a search's bounds need, where it is closed there."""
        problem = self.problem
        nu, _ = recipe(problem, problem.rows, problem.lower, problem.upper, DEFAULT, len(problem.b))
        return lost(problem, nu).astype(float)

    def failures(self) -> list[Failure]:
        return list(self.open.values())

    def run(self, records: Iterator[Record], tick: Tick) -> Record | None:
        """Goes through the case's records; returns the first that is not of this case, None at the end."""
        for record in records:
            tick()
            if record.kind == "TREE":
                self._tree(record, records, tick)
            elif record.kind == "BOXS":
                self._boxes(record, tick)
            elif record.kind == "STEP":
                kept = record.array("kept", "u4", (None,)).tolist() if record.arrays else self.kept
                self.problem = eliminate(self.problem, frozenset(kept))
            else:
                return record
        return None

    def _tree(self, record: Record, records: Iterator[Record], tick: Tick) -> None:
        """A lemma. Neurons: the minimum over each tree's leaves bounds sign * z. Polytopes: closed where all leaves are positive."""
        about = record.field("target", str)
        if about not in ("neurons", "polytopes"):
            raise CertificateError(f"{record.place} is about {about!r}: neurons and polytopes are known.")
        target = record.array("target", "i4", (None, 2 if about == "neurons" else 1))
        limit = self.neurons if about == "neurons" else len(self.ends) - 1
        signs = target[:, 1] if about == "neurons" else np.ones(len(target))
        if len(target) and not (target[:, 0].min() >= 0 and target[:, 0].max() < limit and (abs(signs) == 1).all()):
            raise CertificateError(f"{record.place} has a target that there is not.")
        position = np.full(self.neurons, -1)
        position[self.problem.name[self.problem.name >= 0]] = np.nonzero(self.problem.name >= 0)[0]
        work = _Leaves(self, record, about, target, position)
        leaves, worst = walk(record, len(target), self.neurons, 1), [np.inf] * len(target)
        numbers = [0] * len(target)
        failed: dict[int, Failure] = {}
        while part := list(islice(leaves, 1)):
            leaf = next(records, None)
            if leaf is None or leaf.kind != "LEAF":
                raise CertificateError(f"{record.place} has leaves without multipliers: LEAF records are missing.")
            tick()
            part += islice(leaves, max(0, work.count(leaf) - 1))
            for (tree, _, _), value in zip(part, work.bounds(leaf, part)):
                value = value if value == value else -np.inf
                worst[tree] = min(worst[tree], value)
                if not value > 0 and tree not in failed:
                    failed[tree] = Failure(self.number, int(target[tree, 0]), self.trees + tree, numbers[tree], float(value))
                numbers[tree] += 1
            self.leaves += len(part)
        self.trees += len(target)
        if about == "neurons":
            self._narrow(position[target[:, 0]], target[:, 1], worst)
        for tree, (polytope,) in enumerate(target.tolist() if about == "polytopes" else ()):
            if tree in failed and polytope in self.open:
                self.open[polytope] = failed[tree]
            else:
                self.open.pop(polytope, None)

    def _narrow(self, index: np.ndarray, sign: np.ndarray, least: list) -> None:
        """sign * z >= least for the neurons at `index`, -1 being one that is not in the problem."""
        lower, upper = self.problem.lower.copy(), self.problem.upper.copy()
        for k, s, value in zip(index.tolist(), sign.tolist(), least):
            if k >= 0 and s > 0:
                lower[k] = max(lower[k], value)
            elif k >= 0:
                upper[k] = min(upper[k], -value)
        self.problem = replace(self.problem, lower=lower, upper=upper)

    def _boxes(self, record: Record, tick: Tick) -> None:
        """Input splits: every polytope is closed on every leaf's box, by one of its rows or by the weighted sum."""
        n_in, inputs = len(self.statement.lower), np.full(len(self.statement.lower), -1)
        inputs[self.problem.free] = np.arange(len(self.problem.free))
        weight = record.array("weight", "f4 f8", (None, self.ends[-1])) if "weight" in record.arrays else None
        if weight is not None and ((weight < 0).any() or len(weight) != (record.array("tree", "i4", (None,)) == LEAF).sum()):
            raise CertificateError(f"{record.place} has a negative weight, or not one of each leaf.")
        n = self.problem.A.shape[1]
        whole = self.arithmetic.array(-np.ones(n)), self.arithmetic.array(np.ones(n))
        polytopes = tuple((k, rows) for k, rows in enumerate(self._polytopes()) if k in self.open)
        about = tuple(self.open)
        anew = self._anew if self.runtime and isinstance(self.arithmetic, Rounded) else None
        failed: dict[int, dict[int, Lacking]] = {}
        leaves, begin = walk(record, 1, n_in, -1), 0
        while part := [splits(path) for _, _, path in islice(leaves, 16 * TOGETHER)]:
            tick()
            if not polytopes:
                continue  # the tree is read, and proves nothing more
            scaled = [[(int(inputs[i]), sign, self._scaled(int(inputs[i]), point, record)) for i, sign, point in path] for path in part]
            lower, upper = narrowed(*whole, scaled)
            own = None if weight is None else weight[begin:begin + len(part)]
            names = [(about, *path) for path in part]
            fresh = [k for k, name in enumerate(names) if name not in self.known]
            boxes = Boxes.leaves((lower, upper), begin, shared(part), len(polytopes), own).take(np.array(fresh, int))
            deepest = boxes_at_work.DEEPEST if max(map(len, failed.values()), default=0) < boxes_at_work.MOST_LACKING else 0
            proof = BoxProof(polytopes, anew, tick, deepest)
            left = set()
            with np.errstate(all="ignore"):  # what overflows becomes NaN or infinite, and proves nothing
                found = proof.unproved(self.problem, boxes) if fresh else []
            for lacking in found:
                failed.setdefault(lacking.polytope, {}).setdefault(lacking.leaf, lacking)
                left.add(lacking.leaf - begin)
            self.known.update(names[k] for k in fresh if k not in left)
            begin += len(part)
        self.leaves += begin
        self.open = {polytope: self._failure(list(failed[polytope].values())) for polytope in self.open if polytope in failed}
        self.trees += 1

    def _failure(self, lacking: list[Lacking]) -> Failure:
        first, *more = lacking
        others = tuple((other.leaf, other.bound) for other in more)
        return Failure(self.number, first.polytope, self.trees, first.leaf, first.bound, first.errors, others)

    def _scaled(self, k: int, point: float, record: Record) -> float:
        """The point on the problem's own scale of input k; any number would do, as both sides share it."""
        if k < 0:
            raise CertificateError(f"{record.place} splits an input that is fixed.")
        return (self.arithmetic.number(point) - self.problem.center[k]) / self.problem.radius[k]

    def _anew(self, problem: Problem, boxes: Boxes) -> tuple[Problem, Boxes]:
        """The network reduced again over the hull of some boxes of a problem, where a runtime's errors are smaller, and the boxes there.

        An input that the problem took for a constant has no end in the boxes; should it be a symbol again, they leave it free.
        """
        free, n = problem.free, len(problem.free)
        room = 2.0**-50 * (abs(problem.center) + problem.radius)
        low, high = (problem.center + problem.radius * side[:, :n] + sign * room for side, sign in ((boxes.lower, -1), (boxes.upper, 1)))
        lower, upper = (end.copy() for end in problem.region)
        lower[free], upper[free] = np.maximum(lower[free], low.min(0)), np.minimum(upper[free], high.max(0))
        again = reduce(self.graph, replace(self.statement, lower=lower, upper=upper, kept=frozenset()), self.arithmetic, self.runtime)
        _, place, own = np.intersect1d(free, again.free, return_indices=True)
        scaled = []
        for ends, sign in ((low, -1), (high, 1)):
            side = np.full((len(boxes), again.A.shape[1]), float(sign))
            side[:, own] = np.clip((ends[:, place] - again.center[own]) / again.radius[own] + sign * 2.0**-45, -1, 1)
            scaled.append(side)
        return again, replace(boxes, lower=scaled[0], upper=scaled[1])


class _Leaves:
    """Bounds of leaves from the multipliers of LEAF records."""

    def __init__(self, case: Case, record: Record, about: str, target: np.ndarray, position: np.ndarray) -> None:
        self.case, self.about, self.target, self.position, self.place = case, about, target, position, record.place
        columns = record.array("columns", "u4", (None,))
        if len(columns) and columns.max() >= case.neurons:
            raise CertificateError(f"{record.place} has multipliers for neurons that the CASE does not list.")
        self.columns = position[columns]
        first = [self._start(k) for k in position[target[:, 0]].tolist() if k >= 0] if about == "neurons" else [len(case.problem.b)]
        self.stop = max(first, default=0)

    def _start(self, neuron: int) -> int:
        return next(block.start for block in self.case.problem.blocks if block.start <= neuron < block.end)

    def count(self, leaf: Record) -> int:
        """How many leaves the record has vectors for."""
        array = leaf.arrays.get("alpha", leaf.arrays.get("nu"))
        if array is None or array.ndim != 2 or not len(array):
            raise CertificateError(f"{leaf.place} has neither 'alpha' nor 'nu' of a leaf.")
        return len(array)

    def bounds(self, leaf: Record, part: list[tuple[int, int, Path]]) -> list:
        """The bound of each leaf of `part`, which are (tree, depth, path); infinite where the leaf is empty or its neuron is not in the problem."""
        count, wide = self.count(leaf), len(self.columns)
        if count != len(part):
            raise CertificateError(f"{leaf.place} has {count} vectors, but its TREE has {len(part)} leaves left.")
        offsets = np.cumsum([0, *(depth for _, depth, _ in part)])
        alpha = leaf.array("alpha", "u1", (count, wide)) if "alpha" in leaf.arrays else None
        nu = leaf.array("nu", "f4 f8", (count, wide)) if alpha is None else None
        beta = leaf.array("beta", "f4", (offsets[-1],)) if alpha is not None else np.zeros(0)
        weight = leaf.array("weight", "f4 f8", (count, None)) if "weight" in leaf.arrays else np.ones((count, 1))
        if (beta < 0).any() or (weight < 0).any():
            raise CertificateError(f"{leaf.place} has a negative beta or weight.")
        size, number = min(1024, max(1, CHUNK // max(1, self.stop))), self.case.arithmetic.number

        def chunk(start: int) -> list:
            at = slice(start, min(start + size, count))
            own = [[(int(self.position[e]), sign, number(point)) for e, sign, point in splits(path)] for _, _, path in part[at]]
            if any(k < 0 for path in own for k, _, _ in path):
                raise CertificateError(f"{self.place} splits a neuron that is not in the problem: CASE does not name it as kept.")
            signed = np.zeros((at.stop - start, len(self.case.problem.b)))
            for row, path in enumerate(own if alpha is not None else ()):
                for (k, sign, _), b in zip(path, beta[offsets[start + row]:offsets[start + row + 1]]):
                    signed[row, k] += sign * float(b)
            multipliers = (None if alpha is None else alpha[at], None if nu is None else nu[at], signed)
            return self._chunk([tree for tree, _, _ in part[at]], own, multipliers, weight[at])

        return [value for values in spread(chunk, range(0, count, size)) for value in values]

    def _chunk(self, trees: list[int], paths: list, multipliers: tuple, weight: np.ndarray) -> list:
        problem = self.case.problem
        there = np.nonzero(self.columns >= 0)[0]
        alpha, nu, beta = multipliers
        low, high = narrowed(problem.lower, problem.upper, paths)
        if alpha is not None:
            slopes = np.repeat(((problem.upper >= -problem.lower) * 1.0)[None], len(paths), 0)
            slopes[:, self.columns[there]] = alpha[:, there] / 255
            given = Multipliers(alpha=slopes, beta=beta)
        else:
            full, known = np.zeros((len(paths), len(problem.b))), np.zeros(len(problem.b), bool)
            full[:, self.columns[there]], known[self.columns[there]] = nu[:, there], True
            given = Multipliers(nu=full, given=known)
        if self.about == "neurons":
            index = self.position[self.target[trees, 0]]
            if not len(problem.b):
                return [np.inf] * len(trees)
            rows = problem.neurons(np.maximum(index, 0), self.target[trees, 1])
            found = bound(problem, rows, low, high, given, self.stop)
            return np.where(index < 0, np.inf, found).tolist()
        found = bound(problem, self._weighted(trees, weight), low, high, given, self.stop)
        return found.tolist()

    def _weighted(self, trees: list[int], weight: np.ndarray) -> Rows:
        """The weighted sum of each tree's polytope's rows."""
        full = np.zeros((len(trees), self.case.ends[-1]))
        for k, tree in enumerate(trees):
            rows = self.case._polytopes()[int(self.target[tree, 0])]
            if weight.shape[1] < rows.stop - rows.start:
                raise CertificateError(f"{self.place} has fewer weights than a polytope's {rows.stop - rows.start} rows.")
            full[k, rows] = weight[k, :rows.stop - rows.start]
        return self.case.problem.weighted(full)
