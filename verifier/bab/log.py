"""What branch and bound did, kept for a certificate: trees of splits and the multipliers that closed their leaves. Tensors only.

A `Tree` holds numbered regions: roots, and for every region that was split by what, at which point, into which two. A `Log` is that of one search
over the neurons, with the domains (multipliers included) that were closed; its `lemmas` are what was shown before of the neurons themselves. A
`BoxLog` is that of a search over the input. Both can reopen a leaf: the search goes on from there, and the leaf becomes an inner region.
"""
from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from verifier.bab.domains import DomainBatch
from verifier.reduced.problem import InputMap, ReducedProblem

LEAF = -1
STEP_SHARE = 0.9
"""A reduced problem of fewer than this share of its neurons is worth being made anew by whoever checks the proof."""


class Tree:
    """Numbered regions. Arrays are appended to in pieces: (parents, what, point, number of the first child of the first parent)."""

    def __init__(self) -> None:
        self.count = 0
        self._pieces: list[tuple[np.ndarray, np.ndarray, np.ndarray, int]] = []

    def roots(self, count: int) -> int:
        """The number of the first of `count` new roots."""
        self.count += count
        return self.count - count

    def split(self, parent: Tensor, what: Tensor, point: Tensor) -> int:
        """Splits regions `parent (M,)`, each by its own `what` at its `point`; its children are first + 2 i and first + 2 i + 1."""
        first = self.roots(2 * len(parent))
        self._pieces.append((parent.cpu().numpy(), what.cpu().numpy(), point.double().cpu().numpy(), first))
        return first

    def nbytes(self) -> int:
        return 24 * self.count

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """By region: what it was split by (LEAF where it was not), the point, and the first child."""
        what, point, child = np.full(self.count, LEAF), np.zeros(self.count), np.zeros(self.count, int)
        for parents, by, at, first in self._pieces:
            what[parents], point[parents], child[parents] = by, at, first + 2 * np.arange(len(parents))
        return what, point, child

    def parents(self) -> tuple[np.ndarray, np.ndarray]:
        """By region: its parent (LEAF for a root), and whether it is the second child."""
        parent, second = np.full(self.count, LEAF), np.zeros(self.count, bool)
        for parents, *_, first in self._pieces:
            parent[first:first + 2 * len(parents)] = parents.repeat(2)
            second[first + 1:first + 2 * len(parents):2] = True
        return parent, second


@dataclass(frozen=True, slots=True)
class Walk:
    """A tree in pre-order: `what (t,)`, LEAF for leaves, `point (t,)`; the leaves' regions `leaf (L,)` and their paths: `depth (L,)` many splits

    each, `path (sum of depths,)` what they were split by, root first.
    """

    what: np.ndarray
    point: np.ndarray
    leaf: np.ndarray
    depth: np.ndarray
    path: np.ndarray


def walk(tree: Tree, roots: list[int], ends: np.ndarray | None = None) -> Walk:
    """The trees of these roots, one after the other; regions where `ends (count,)` holds are taken for leaves."""
    by, at, children = tree.arrays()
    split_by, split_at, child = (by if ends is None else np.where(ends, LEAF, by)).tolist(), at.tolist(), children.tolist()
    what, point, leaf, depth, path = [], [], [], [], []
    for root in roots:
        stack: list[tuple[int, tuple]] = [(root, ())]
        while stack:
            region, above = stack.pop()
            what.append(split_by[region])
            point.append(split_at[region] if split_by[region] != LEAF else 0.0)
            if split_by[region] == LEAF:
                leaf.append(region)
                own = []
                while above:
                    above, by = above
                    own.append(by)
                depth.append(len(own))
                path += own[::-1]
            else:
                inner = (above, split_by[region])
                stack += [(child[region] + 1, inner), (child[region], inner)]
    return Walk(np.array(what, int), np.array(point, float), np.array(leaf, int), np.array(depth, int), np.array(path, int))


@dataclass(frozen=True, slots=True)
class Lemma:
    """Bounds of one block's neurons: row `row[t]` of `log.problem` is sign * z of the neuron named `neuron[t]`; `row, sign (T,)`, `neuron (T, 2)`.
    Every domain of its trees was closed, with its own bound: the part of a tree that proves no more than its root is left out.
    """

    log: Log
    row: Tensor
    neuron: Tensor
    sign: Tensor


@dataclass(frozen=True, slots=True)
class _Closed:
    """Domains as a log keeps them, without what their tree tells: a third of what they take in a frontier.

    `row, lower, id (N,)`, `alpha (N, U)`, and `beta (N, D)` at the neurons that are split, in their order; D is the most that one domain has.
    """

    row: Tensor
    lower: Tensor
    id: Tensor
    alpha: Tensor
    beta: Tensor

    @staticmethod
    def of(batch: DomainBatch) -> _Closed:
        split = batch.split != 0
        count = split.sum(1, keepdim=True)
        beta = batch.beta.new_zeros(len(batch), int(count.max()) if split.numel() else 0)
        beta[torch.arange(beta.shape[1], device=beta.device) < count] = batch.beta[split]
        return _Closed(batch.row, batch.lower, batch.id, batch.alpha, beta)

    def nbytes(self) -> int:
        return sum(t.nbytes for t in (self.row, self.lower, self.id, self.alpha, self.beta))


@dataclass(slots=True)
class Log:
    """A search over the neurons of `problem`: its tree, the domains that were closed, and the multipliers that linear programs gave.

    `lemmas`: what was shown before; names of neurons `(U, 2)` among them say that the problem was made anew, of these.
    `root`: by polytope, the number of its root. `programs`: by region, (weight (R,), nu (U,)).
    """

    problem: ReducedProblem
    lemmas: list[Lemma | Tensor] = field(default_factory=list)
    tree: Tree = field(default_factory=Tree)
    root: dict[int, int] = field(default_factory=dict)
    closed: list[_Closed] = field(default_factory=list)
    programs: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    size: int = 0

    def after(self, problem: ReducedProblem) -> Log:
        """The log of a new search over the problem that the lemmas so far have made of this one."""
        if problem.unstable < STEP_SHARE * self.problem.unstable:
            self.lemmas.append(problem.neuron)
        return Log(problem, self.lemmas)

    def add(self, lemma: Lemma) -> None:
        if len(lemma.row):
            self.lemmas.append(lemma)

    def open_roots(self, row: Tensor) -> Tensor:
        """The numbers `(N,)` of new roots, one for each polytope, which the rows `row (N,)` stand for."""
        first = self.tree.roots(len(row))
        self.root.update(zip(self.problem.polytope[row].tolist(), range(first, first + len(row))))
        return torch.arange(first, first + len(row), device=row.device)

    def split(self, parent: Tensor, neuron: Tensor, point: Tensor) -> Tensor:
        """The children's numbers `(2 M,)`: z >= point first, then z <= point, parent after parent."""
        first = self.tree.split(parent, neuron, point)
        return torch.arange(first, first + 2 * len(parent), device=parent.device)

    def close(self, batch: DomainBatch) -> None:
        """Domains count as closed, with their own bounds, until they are split."""
        if len(batch):
            self.closed.append(_Closed.of(batch))
            self.size += self.closed[-1].nbytes()

    def close_by_program(self, leaf: DomainBatch, lower: float, proof: tuple[np.ndarray, np.ndarray]) -> None:
        """One domain that a linear program proved to be above `lower`, and its multipliers from there."""
        self.close(replace(leaf, lower=torch.full_like(leaf.lower, lower)))
        self.programs[int(leaf.id[0])] = proof
        self.size += sum(part.nbytes for part in proof)

    def nbytes(self) -> int:
        return self.size + self.tree.nbytes() + sum(lemma.log.nbytes() for lemma in self.lemmas if isinstance(lemma, Lemma))

    def lower(self) -> np.ndarray:
        """The bound of every region, `(count,)`, as it was closed the latest time."""
        own = np.full(self.tree.count, -np.inf)
        for part in self.closed:
            own[part.id.cpu().numpy()] = part.lower.double().cpu().numpy()
        return own

    def enough(self) -> np.ndarray:
        """The regions whose own bound is at least what their children prove, `(count,)`, in a log where every domain was closed."""
        what, _, child = self.tree.arrays()
        ends, best = np.zeros(self.tree.count, bool), self.lower().tolist()
        for region in np.flatnonzero(what != LEAF)[::-1].tolist():  # children come after their parents
            below = min(best[child[region]], best[child[region] + 1])
            ends[region], best[region] = best[region] >= below, max(best[region], below)
        return ends

    def domains(self, regions: np.ndarray) -> DomainBatch:
        """The domains as they were closed, the latest time, in this order."""
        piece, place = np.zeros(self.tree.count, int), np.zeros(self.tree.count, int)
        for k, part in enumerate(self.closed):
            ids = part.id.cpu().numpy()
            piece[ids], place[ids] = k, np.arange(len(ids))
        split, depth, *cuts = self._splits(regions)
        count, (like, *_) = len(regions), self.closed
        row, lower, alpha = like.row.new_empty(count), like.lower.new_empty(count), like.alpha.new_empty(split.shape)
        beta, is_split, order = like.beta.new_zeros(split.shape), split != 0, np.argsort(piece[regions], kind="stable")
        for own in np.split(order, np.flatnonzero(np.diff(piece[regions][order])) + 1):
            part, at = self.closed[piece[regions[own[0]]]], torch.as_tensor(place[regions[own]], device=split.device)
            own = torch.as_tensor(own, device=split.device)
            row[own], lower[own], alpha[own] = part.row[at], part.lower[at], part.alpha[at]
            mask, packed = is_split[own], part.beta[at]
            beta[own] = beta[own].masked_scatter(mask, packed[torch.arange(packed.shape[1], device=at.device) < mask.sum(1, keepdim=True)])
        ids = torch.as_tensor(regions, device=split.device)
        return DomainBatch(row, lower, depth, split, alpha, beta, ids, *cuts)

    def _splits(self, regions: np.ndarray) -> tuple[Tensor, ...]:
        """What the tree says of regions: `split (N, U)`, `depth (N,)`, and where not all neurons are ReLUs the intervals' ends `(N, U)`."""
        (what, point, _), (parent, second), problem = self.tree.arrays(), self.tree.parents(), self.problem
        split, depth = np.zeros((len(regions), problem.unstable), np.int8), np.zeros(len(regions), np.int16)
        lower, upper = (None, None) if problem.is_relu else (t.cpu().numpy()[None].repeat(len(regions), 0) for t in (problem.lower, problem.upper))
        at, own = regions.copy(), np.arange(len(regions))
        while len(own := own[parent[at[own]] != LEAF]):
            above = parent[at[own]]
            neuron, below = what[above], second[at[own]]
            unknown = split[own, neuron] == 0  # the latest split of a neuron says which end is a cut
            split[own[unknown], neuron[unknown]] = np.where(below[unknown], -1, 1)
            if lower is not None:
                lower[own, neuron] = np.where(below, lower[own, neuron], np.maximum(lower[own, neuron], point[above]))
                upper[own, neuron] = np.where(below, np.minimum(upper[own, neuron], point[above]), upper[own, neuron])
            depth[own] += 1
            at[own] = above
        split, depth, *cuts = (torch.as_tensor(t, device=problem.b.device) for t in (split, depth, lower, upper) if t is not None)
        return torch.where(split == 0, problem.split, split), depth, *cuts

    def reopen(self, polytope: int, leaf: int, margin: float) -> DomainBatch:
        """The polytope's `leaf`, in pre-order, and its leaves that were closed with no more than `margin`, as open domains."""
        leaves = walk(self.tree, [self.root[polytope]]).leaf
        again = self.lower()[leaves] <= margin
        again[leaf] = True
        batch = self.domains(leaves[again])
        self._forget(batch)
        return replace(batch, lower=batch.lower.clamp(max=0.0))

    def within(self, margin: Tensor) -> DomainBatch:
        """The leaves that were closed with no more than their row's `margin (S,)`, as open domains."""
        leaves = walk(self.tree, list(self.root.values())).leaf
        batch = self.domains(leaves[np.isfinite(self.lower()[leaves])])
        batch = batch.take((batch.lower <= margin[batch.row]).nonzero().squeeze(-1))
        self._forget(batch)
        return batch

    def _forget(self, batch: DomainBatch) -> None:
        for name in batch.id.tolist():
            self.programs.pop(name, None)


def outline(problem: ReducedProblem) -> ReducedProblem:
    """The problem with zeros, which take no memory, for the numbers that no record of a proof needs: a log outlives many problems."""
    blank = lambda t: t.new_zeros(()).expand(t.shape)  # noqa: E731
    less = replace(problem, A=blank(problem.A), A_o=blank(problem.A_o))
    return replace(less, W=blank(problem.W), W_o=blank(problem.W_o)) if problem.is_relu else less


@dataclass(slots=True)
class BoxLog:
    """A search over the input: its tree, in which regions are split by an input of the network at a point in the network's units, float64.

    `closed`: (regions `(N,)`, the least of their polytopes' bounds `(N,)`, weights of the rows `(N, S)`).
    """

    tree: Tree = field(default_factory=Tree)
    closed: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)
    size: int = 0

    def close(self, regions: Tensor, lower: Tensor, weight: Tensor) -> None:
        if len(regions):
            self.closed.append((regions, lower, weight))
            self.size += regions.nbytes + lower.nbytes + weight.nbytes

    def nbytes(self) -> int:
        return self.size + self.tree.nbytes()

    def split(self, parent: Tensor, axis: Tensor, point: Tensor, inputs: InputMap) -> Tensor:
        """The children's numbers `(2 M,)`, x <= point first, parent after parent, of splits at scaled inputs `axis` at scaled points."""
        place = inputs.free[axis]
        at = inputs.center.double()[place] + inputs.radius.double()[axis] * point.double()
        first = self.tree.split(parent, place, at)
        return torch.arange(first, first + 2 * len(parent), device=parent.device)

    def leaves(self) -> tuple[np.ndarray, np.ndarray]:
        """By region, where it was closed: the bound and the weights."""
        rows = self.closed[0][2].shape[1] if self.closed else 0
        lower, weight = np.full(self.tree.count, -np.inf), np.zeros((self.tree.count, rows), np.float32)
        for regions, bound, own in self.closed:
            at = regions.cpu().numpy()
            lower[at], weight[at] = bound.double().cpu().numpy(), own.cpu().numpy()
        return lower, weight

    def boxes(self, regions: np.ndarray, inputs: InputMap) -> tuple[Tensor, Tensor]:
        """The regions' boxes in scaled inputs, `(N, n)` each."""
        (what, point, _), (parent, second) = self.tree.arrays(), self.tree.parents()
        position = {int(place): k for k, place in enumerate(inputs.free.tolist())}
        center, radius = inputs.center.double().cpu().numpy(), inputs.radius.double().cpu().numpy()
        lower, upper = -np.ones((len(regions), len(radius))), np.ones((len(regions), len(radius)))
        for k, region in enumerate(regions.tolist()):
            while (above := parent[region]) != LEAF:
                axis = position[int(what[above])]
                at = (point[above] - center[what[above]]) / radius[axis]
                if not second[region]:
                    upper[k, axis] = min(upper[k, axis], at)
                else:
                    lower[k, axis] = max(lower[k, axis], at)
                region = above
        to = lambda ends: torch.as_tensor(ends, dtype=inputs.radius.dtype, device=inputs.radius.device)  # noqa: E731
        return to(lower), to(upper)
