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
    closed: list[DomainBatch] = field(default_factory=list)
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

    def open_roots(self, batch: DomainBatch) -> DomainBatch:
        """One domain for each polytope, named; each counts as closed until it is split."""
        first = self.tree.roots(len(batch))
        named = replace(batch, id=torch.arange(first, first + len(batch), device=batch.row.device))
        self.root.update(zip(self.problem.polytope[batch.row].tolist(), range(first, first + len(batch))))
        self.close(named)
        return named

    def split(self, parent: Tensor, neuron: Tensor, point: Tensor) -> Tensor:
        """The children's numbers `(2 M,)`: z >= point first, then z <= point, parent after parent."""
        first = self.tree.split(parent, neuron, point)
        return torch.arange(first, first + 2 * len(parent), device=parent.device)

    def close(self, batch: DomainBatch) -> None:
        if len(batch):
            self.closed.append(batch)
            self.size += batch.nbytes()

    def close_by_program(self, leaf: DomainBatch, proof: tuple[np.ndarray, np.ndarray] | None) -> None:
        """One domain that a linear program proved; without multipliers from there it counts as closed with its own."""
        self.close(replace(leaf, lower=torch.full_like(leaf.lower, torch.inf)))
        if proof is not None:
            self.programs[int(leaf.id[0])] = proof

    def nbytes(self) -> int:
        return self.size + self.tree.nbytes()

    def enough(self) -> np.ndarray:
        """The regions whose own bound is at least what their children prove, `(count,)`, in a log where every domain was closed."""
        own, (what, _, child) = np.full(self.tree.count, -np.inf), self.tree.arrays()
        for batch in self.closed:
            own[batch.id.cpu().numpy()] = batch.lower.double().cpu().numpy()
        ends, best = np.zeros(self.tree.count, bool), own.tolist()
        for region in np.flatnonzero(what != LEAF)[::-1].tolist():  # children come after their parents
            below = min(best[child[region]], best[child[region] + 1])
            ends[region], best[region] = best[region] >= below, max(best[region], below)
        return ends

    def domains(self, regions: np.ndarray) -> DomainBatch:
        """The domains as they were closed, the latest time, in this order."""
        piece, place = np.zeros(self.tree.count, int), np.zeros(self.tree.count, int)
        for k, batch in enumerate(self.closed):
            ids = batch.id.cpu().numpy()
            piece[ids], place[ids] = k, np.arange(len(ids))
        order = np.argsort(piece[regions], kind="stable")
        cuts = np.flatnonzero(np.diff(piece[regions][order])) + 1
        device = self.problem.b.device
        parts = [self.closed[piece[own[0]]].take(torch.as_tensor(place[own], device=device)) for own in np.split(regions[order], cuts)]
        back = np.empty(len(order), int)
        back[order] = np.arange(len(order))
        return joined(parts).take(torch.as_tensor(back, device=device))

    def reopen(self, polytope: int, region: int, margin: float) -> DomainBatch:
        """The leaf at `region`, and the polytope's leaves that were closed with no more than `margin`, as open domains."""
        batch = self.domains(walk(self.tree, [self.root[polytope]]).leaf)
        batch = batch.take(((batch.lower <= margin) | (batch.id == region)).nonzero().squeeze(-1))
        for name in batch.id.tolist():
            self.programs.pop(name, None)
        return replace(batch, lower=batch.lower.clamp(max=0.0))


def joined(parts: list[DomainBatch]) -> DomainBatch:
    """All domains of the parts, one part after the other."""
    return DomainBatch(*(None if several[0] is None else torch.cat(several) for several in zip(*(part.arrays() for part in parts))))


@dataclass(slots=True)
class BoxLog:
    """A search over the input: its tree, in which regions are split by an input of the network at a point in the network's units, float64.

    `closed`: (regions `(N,)`, the least of their polytopes' bounds `(N,)`, weights of the rows `(N, S)`). `raised`: the margin that bounds are less.
    """

    tree: Tree = field(default_factory=Tree)
    closed: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)
    raised: float = 0.0

    def close(self, regions: Tensor, lower: Tensor, weight: Tensor) -> None:
        if len(regions):
            self.closed.append((regions, lower + self.raised, weight))

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
        what, point, child = self.tree.arrays()
        parent = np.full(self.tree.count, LEAF)
        inner = np.flatnonzero(what != LEAF)
        parent[child[inner]] = parent[child[inner] + 1] = inner
        position = {int(place): k for k, place in enumerate(inputs.free.tolist())}
        center, radius = inputs.center.double().cpu().numpy(), inputs.radius.double().cpu().numpy()
        lower, upper = -np.ones((len(regions), len(radius))), np.ones((len(regions), len(radius)))
        for k, region in enumerate(regions.tolist()):
            while (above := parent[region]) != LEAF:
                axis = position[int(what[above])]
                at = (point[above] - center[what[above]]) / radius[axis]
                if region == child[above]:
                    upper[k, axis] = min(upper[k, axis], at)
                else:
                    lower[k, axis] = max(lower[k, axis], at)
                region = above
        to = lambda ends: torch.as_tensor(ends, dtype=inputs.radius.dtype, device=inputs.radius.device)  # noqa: E731
        return to(lower), to(upper)
