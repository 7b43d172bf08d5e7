"""Branch and bound on the input box, for problems with few free inputs: every layer becomes tighter on every half.

Boxes of one problem are bounded in batches (reduced/boxes.py); where many neurons have become stable on a box, the problem is restricted to it
(reduced/restrict.py) and goes on smaller. The linear bounds of a polytope's rows are combined into one (cut.py), and the input that moves the rows
most, with and without cancellation, is halved. The minimising corner and the centre of every open box are offered as counterexamples.
"""
from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from verifier.bab.budget import Deadline, Listener, Progress, silent
from verifier.bab.cut import Cut, cut
from verifier.bab.driver import Oracle
from verifier.bab.log import BoxLog, walk
from verifier.reduced.boxes import BoxBounds, box_bounds
from verifier.reduced.problem import ReducedProblem
from verifier.reduced.restrict import restrict

THINNEST = 1e-6
"""A box is never split below this share of the region's width: it is left open, never called proved."""
WORTHWHILE, SPARED = 0.2, 0.02
"""Shares of a box's half width: a side that is cut off is a box of its own to whoever checks the proof; it must be worth that, and easily proved."""


@dataclass(frozen=True, slots=True)
class Boxes:
    """N boxes `lower, upper (N, n)` of one problem; `share (N,)` of the region that each stands for; `id (N,)` names them in the log.

    `more (N, S)`: what the rows' bounds must exceed beyond their margin, where a checker refused what these boxes are parts of.
    """

    problem: ReducedProblem
    lower: Tensor
    upper: Tensor
    share: Tensor
    id: Tensor
    more: Tensor

    def __len__(self) -> int:
        return len(self.lower)

    def take(self, index: Tensor | slice) -> Boxes:
        return Boxes(self.problem, self.lower[index], self.upper[index], self.share[index], self.id[index], self.more[index])

    def nbytes(self) -> int:
        return sum(t.nbytes for t in (self.lower, self.upper, self.share, self.id))


@dataclass(slots=True)
class InputSearch:
    """Open boxes of one `problem`: `parts`, the last one worked on first, each of this problem or of one restricted to a box.

    `volume`: the share of the region that is closed; `stuck`: a box that is too thin to be split; `full`: the memory is used; `log`: what happened.
    """

    key: int
    problem: ReducedProblem
    parts: list[Boxes] = field(default_factory=list)
    domains: int = 0
    closed: int = 0
    volume: float = 0.0
    falsified: bool = False
    stuck: bool = False
    full: bool = False
    lowest: float | None = None
    log: BoxLog = field(default_factory=BoxLog)

    @property
    def decided(self) -> bool:
        return self.falsified or self.stuck or self.full or not self.parts

    @property
    def proved(self) -> bool:
        return not self.falsified and not self.stuck and not self.full and not self.parts

    def open_boxes(self) -> int:
        return sum(len(part) for part in self.parts)

    def nbytes(self) -> int:
        """What the open boxes, the problems that are restricted to some of them, and the log take."""
        problems = {id(part.problem): part.problem.A.nbytes + part.problem.W.nbytes for part in self.parts if part.problem is not self.problem}
        return sum(part.nbytes() for part in self.parts) + sum(problems.values()) + self.log.nbytes()

    def reopen(self, lacking: Sequence[tuple[int, int, float]]) -> None:
        """A checker refuses leaves, in pre-order: (leaf, polytope, the margin that it needs).

        Their halves are open. The margin is theirs alone, and half as large on their own halves: what is lacked on a box, parts may not lack.
        """
        if self.problem.n == 0 or not all(math.isfinite(margin) for *_, margin in lacking):
            self.stuck = True
            return
        leaves, index = walk(self.log.tree, [0]).leaf, sorted({leaf for leaf, *_ in lacking})
        boxes = self._boxes(leaves[index])
        for leaf, polytope, margin in lacking:
            boxes.more[index.index(leaf), self.problem.polytope == polytope] = 2 * margin
        self.parts.append(_halve(self, boxes, (boxes.upper - boxes.lower).argmax(1)))

    def _boxes(self, regions: np.ndarray) -> Boxes:
        lower, upper = self.log.boxes(regions, self.problem.inputs)
        share = torch.zeros(len(regions), dtype=torch.float64, device=lower.device)
        more = lower.new_zeros(len(regions), len(self.problem.polytope))
        return Boxes(self.problem, lower, upper, share, torch.as_tensor(regions, device=lower.device), more)


def input_search(key: int, problem: ReducedProblem) -> InputSearch:
    """A search of the whole region; it has nothing to do where there are no rows."""
    search, one = InputSearch(key, problem), torch.ones(1, problem.n, dtype=problem.A.dtype, device=problem.A.device)
    name = torch.tensor([search.log.tree.roots(1)], device=one.device)
    if len(problem.b_o):
        share, more = torch.ones(1, dtype=torch.float64, device=one.device), one.new_zeros(1, len(problem.b_o))
        search.parts.append(Boxes(problem, -one, one, share, name, more))
    return search


@dataclass(frozen=True, slots=True)
class InputSplitConfig:
    """`batch` boxes a round within `memory_bytes`; a problem of more than `shrink_above` neurons is restricted to each box; `frontier_bytes` for the

    open boxes and the log.
    """

    batch: int = 512
    memory_bytes: int = 2**28
    shrink_above: int = 400
    frontier_bytes: int = 2 * 2**30


def advance_boxes(search: InputSearch, config: InputSplitConfig, oracle: Oracle, deadline: Deadline, listener: Listener = silent) -> None:
    """Rounds until the search is decided or the deadline is reached."""
    begin = time.monotonic()
    while search.parts and not search.decided and not deadline.expired():
        part = search.parts.pop()
        problem = part.problem
        if problem.unstable > config.shrink_above and bool((part.upper - part.lower < 2).any()):
            _shrink(search, part)
            continue
        widest = max((block.size for block in problem.blocks), default=1)
        fits = max(1, config.memory_bytes // (16 * max(1, 2 * widest, len(problem.b_o)) * max(1, problem.unstable)))
        size = min(config.batch, fits)
        if len(part) > size:
            search.parts.append(part.take(slice(None, -size)))
            part = part.take(slice(-size, None))
        _round(search, part, oracle)
        search.full |= bool(search.parts) and search.nbytes() > config.frontier_bytes
        listener(Progress("input splits", time.monotonic() - begin, search.lowest, search.open_boxes(), search.closed))


def _shrink(search: InputSearch, part: Boxes) -> None:
    """Restricts the problem to its last box; the other boxes wait."""
    if len(part) > 1:
        search.parts.append(part.take(slice(None, -1)))
    last = part.take(slice(-1, None))
    one = torch.ones_like(last.lower)
    search.parts.append(replace(last, problem=restrict(part.problem, last.lower[0], last.upper[0]), lower=-one, upper=one))


def _round(search: InputSearch, part: Boxes, oracle: Oracle) -> None:
    problem, lower, upper = part.problem, part.lower, part.upper
    bounds = box_bounds(problem, lower, upper)
    search.domains += len(lower)
    radius = (upper - lower) / 2
    found = [cut(*_rows_of(part, bounds, polytope), radius) for polytope in problem.polytope.unique().tolist()]
    best = torch.stack([f.best for f in found], 1)
    open_boxes = ~(best > 0).all(1)
    search.closed += int((~open_boxes).sum())
    search.volume += float(part.share[~open_boxes].sum())
    search.log.close(part.id[~open_boxes], best[~open_boxes].amin(1), torch.cat([f.weight for f in found], 1)[~open_boxes])
    index = open_boxes.nonzero().squeeze(-1)
    if not len(index):
        return
    search.lowest = float(best[index].min())
    row = torch.stack([f.a for f in found], 1)[index]
    if _offer(search, problem, lower[index], upper[index], row, oracle):
        return
    size = problem.row_size().clamp(min=torch.finfo(lower.dtype).tiny).unsqueeze(-1)
    weight = (bounds.spread[index] / size).amax(1) + (bounds.a[index].abs() / size).amax(1)
    part, left = _trimmed(search, part.take(index), found, index)
    part, weight = part.take(left), weight[left]
    gain = weight * (part.upper - part.lower)
    if problem.n == 0 or not bool(torch.isfinite(gain).all()):
        search.stuck = True
    elif len(part):
        search.parts.append(_halve(search, part, gain.argmax(1)))


def _trimmed(search: InputSearch, part: Boxes, found: list[Cut], index: Tensor) -> tuple[Boxes, Tensor]:
    """The open boxes less what their rows exclude, side by side, each side a leaf of the tree; and where something is left of them.

    Args:
        found: of every polytope, for all boxes of the round.
        index: which of them these are.
    """
    problem, center, radius = part.problem, (part.lower + part.upper) / 2, (part.upper - part.lower) / 2
    shut = torch.stack([f.best[index] > 0 for f in found], 1).unsqueeze(-1)
    high = torch.stack([f.high[index] for f in found], 1).masked_fill(shut, -torch.inf).amax(1) + SPARED * radius
    low = torch.stack([f.low[index] for f in found], 1).masked_fill(shut, torch.inf).amin(1) - SPARED * radius
    part, left = part.take(torch.arange(len(index), device=index.device)), torch.ones_like(index, dtype=torch.bool)
    for ends, sign, by in ((high, 1, "by_high"), (low, -1, "by_low")):
        worth = sign * ends < (1 - WORTHWHILE) * radius
        for axis in worth.any(0).nonzero().squeeze(-1).tolist():
            point = center[:, axis] + ends[:, axis]
            all_of_it = left & (point >= part.upper[:, axis] if sign < 0 else point <= part.lower[:, axis])
            weight = torch.cat([_weight_of(f, index, getattr(f, by)[index, axis]) for f in found], 1)
            search.log.close(part.id[all_of_it], weight.new_zeros(int(all_of_it.sum())), weight[all_of_it])
            left &= ~all_of_it
            at = (worth[:, axis] & left).nonzero().squeeze(-1)
            if not len(at):
                continue
            below, above = search.log.split(part.id[at], torch.full_like(at, axis), point[at], problem.inputs).view(-1, 2).T
            part.id[at], outside = (below, above) if sign > 0 else (above, below)
            search.log.close(outside, weight.new_zeros(len(at)), weight[at])
            (part.upper if sign > 0 else part.lower)[at, axis] = point[at]
    rest = torch.where(left, ((part.upper - part.lower) / (2 * radius).clamp(min=torch.finfo(radius.dtype).tiny)).prod(1), 0.0)
    search.volume += float((part.share * (1 - rest)).sum())
    search.closed += int((~left).sum())
    return replace(part, share=part.share * rest), left


def _weight_of(found: Cut, index: Tensor, row: Tensor) -> Tensor:
    """Weights `(M, R)` of a polytope's rows: the combination where it is excluded by that, else the row `row (M,)` alone."""
    weight, count = found.weight[index], found.weight.shape[1]
    alone = torch.nn.functional.one_hot(row.clamp(max=count - 1), count).to(weight.dtype)
    return torch.where(((row < count) & ~(found.best[index] > 0)).unsqueeze(1), alone, weight)


def _rows_of(part: Boxes, bounds: BoxBounds, polytope: int) -> tuple[Tensor, Tensor]:
    """The rows of one polytope as linear functions over each box: `middle (N, R)` less their margin, `a (N, R, n)`."""
    members = (part.problem.polytope == polytope).nonzero().squeeze(-1)
    return bounds.middle[:, members] - part.problem.margin[members] - part.more[:, members], bounds.a[:, members]


def _halve(search: InputSearch, part: Boxes, axis: Tensor) -> Boxes:
    lower, upper, share, at = part.lower, part.upper, part.share, torch.arange(len(axis), device=axis.device)
    middle = ((lower + upper) / 2)[at, axis]
    if bool(((upper - lower)[at, axis] < THINNEST).any()):
        search.stuck = True
    left, right = upper.clone(), lower.clone()
    left[at, axis] = middle
    right[at, axis] = middle
    name = search.log.split(part.id, axis, middle, part.problem.inputs).view(-1, 2).T.flatten()
    both = lambda t: torch.cat([t, t]) / 2  # noqa: E731
    return Boxes(part.problem, torch.cat([lower, right]), torch.cat([left, upper]), both(share), name, both(part.more))


def _offer(search: InputSearch, problem: ReducedProblem, lower: Tensor, upper: Tensor, row: Tensor, oracle: Oracle) -> bool:
    """Centres and minimising corners (of the rows `row (N, polytopes, n)`) that satisfy every row of a polytope go to the gate."""
    corners = [torch.where(row[:, k] > 0, lower, upper) for k in range(min(4, row.shape[1]))]
    x = torch.cat([(lower + upper) / 2, *corners])
    _, m = problem.evaluate(x)
    for polytope in problem.polytope.unique().tolist():
        own = problem.polytope == polytope
        inside = (m[:, own] <= problem.margin[own]).all(1).nonzero().squeeze(-1)[:8]
        if len(inside) and oracle.offer(search.key, polytope, problem.inputs.full(x[inside])):
            search.falsified = True
            return True
    return False
