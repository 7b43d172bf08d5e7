"""Branch and bound on the input box, for problems with few free inputs: every layer becomes tighter on every half.

Boxes of one problem are bounded in batches (reduced/boxes.py); where many neurons have become stable on a box, the problem is restricted to it
(reduced/restrict.py) and goes on smaller. What the linear bounds of a polytope's rows exclude is cut off the box (cut.py), and the input that
moves the rows most, with and without cancellation, is halved. The minimising corner and the centre of every open box are offered as counterexamples.
"""
from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from verifier.bab.budget import Deadline, Listener, Progress, silent
from verifier.bab.cut import cut
from verifier.bab.driver import Oracle
from verifier.reduced.boxes import BoxBounds, box_bounds
from verifier.reduced.problem import ReducedProblem
from verifier.reduced.restrict import restrict

THINNEST = 1e-6
"""A box is never split below this share of the region's width: it is left open, never called proved."""


@dataclass(slots=True)
class InputSearch:
    """Open boxes of one problem: `parts` holds (problem, lower (N, n), upper (N, n), share), the last one worked on first.

    `share` is the part of the region that a box of it covers; `volume` what is closed.
    """

    key: int
    parts: list[tuple[ReducedProblem, Tensor, Tensor, Tensor]] = field(default_factory=list)
    domains: int = 0
    closed: int = 0
    volume: float = 0.0
    falsified: bool = False
    stuck: bool = False
    lowest: float | None = None

    @property
    def decided(self) -> bool:
        return self.falsified or self.stuck or not self.parts

    @property
    def proved(self) -> bool:
        return not self.falsified and not self.stuck and not self.parts

    def open_boxes(self) -> int:
        return sum(len(part[1]) for part in self.parts)


def input_search(key: int, problem: ReducedProblem) -> InputSearch:
    one = torch.ones(1, problem.n, dtype=problem.A.dtype, device=problem.A.device)
    return InputSearch(key, [(problem, -one, one, torch.ones(1, dtype=torch.float64, device=one.device))])


@dataclass(frozen=True, slots=True)
class InputSplitConfig:
    """`batch` boxes a round within `memory_bytes`; a problem of more than `shrink_above` neurons is restricted to each box."""

    batch: int = 512
    memory_bytes: int = 2**28
    shrink_above: int = 400


def advance_boxes(search: InputSearch, config: InputSplitConfig, oracle: Oracle, deadline: Deadline, listener: Listener = silent) -> None:
    """Rounds until the search is decided or the deadline is reached."""
    begin = time.monotonic()
    while search.parts and not search.decided and not deadline.expired():
        problem, lower, upper, share = search.parts.pop()
        if problem.unstable > config.shrink_above and bool((upper - lower < 2).any()):
            _shrink(search, problem, lower, upper, share)
            continue
        widest = max((block.size for block in problem.blocks), default=1)
        fits = max(1, config.memory_bytes // (16 * max(1, 2 * widest, len(problem.b_o)) * max(1, problem.unstable)))
        size = min(config.batch, fits)
        if len(lower) > size:
            search.parts.append((problem, lower[:-size], upper[:-size], share[:-size]))
            lower, upper, share = lower[-size:], upper[-size:], share[-size:]
        _round(search, problem, lower, upper, share, oracle)
        listener(Progress("input splits", time.monotonic() - begin, search.lowest, search.open_boxes(), search.closed))


def _shrink(search: InputSearch, problem: ReducedProblem, lower: Tensor, upper: Tensor, share: Tensor) -> None:
    """Restricts the problem to its last box; the other boxes wait."""
    if len(lower) > 1:
        search.parts.append((problem, lower[:-1], upper[:-1], share[:-1]))
    own = restrict(problem, lower[-1], upper[-1])
    one = torch.ones_like(lower[-1:])
    search.parts.append((own, -one, one, share[-1:]))


def _round(search: InputSearch, problem: ReducedProblem, lower: Tensor, upper: Tensor, share: Tensor, oracle: Oracle) -> None:
    bounds = box_bounds(problem, lower, upper)
    search.domains += len(lower)
    radius = (upper - lower) / 2
    found = [cut(*_rows_of(problem, bounds, polytope), radius) for polytope in problem.polytope.unique().tolist()]
    best = torch.stack([f.best for f in found], 1)
    open_boxes = ~(best > 0).all(1)
    search.closed += int((~open_boxes).sum())
    search.volume += float(share[~open_boxes].sum())
    index = open_boxes.nonzero().squeeze(-1)
    if not len(index):
        return
    search.lowest = float(best[index].min())
    row = torch.stack([f.a for f in found], 1)[index]
    if _offer(search, problem, lower[index], upper[index], row, oracle):
        return
    shut = (best[index] > 0).unsqueeze(-1)
    low = torch.stack([f.low for f in found], 1)[index].masked_fill(shut, torch.inf).amin(1)
    high = torch.stack([f.high for f in found], 1)[index].masked_fill(shut, -torch.inf).amax(1)
    lower, upper = _remainder(lower[index], upper[index], low, high)
    weight = bounds.spread[index].amax(1) + bounds.a[index].abs().amax(1)
    left = ~(lower > upper).any(1)
    search.closed += int((~left).sum())
    search.volume += float(share[index][~left].sum())
    if problem.n == 0 or not bool(torch.isfinite(weight * (upper - lower)).all()):
        search.stuck = True
    elif bool(left.any()):
        lower, upper, share = lower[left], upper[left], share[index][left]
        axis = (weight[left] * (upper - lower)).argmax(1)
        search.parts.append((problem, *_halve(search, lower, upper, share, axis)))


def _remainder(lower: Tensor, upper: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The box less what offsets from its centre outside of [low, high] take off; crossed where nothing is left.

    Sound: ends move inwards only, and by less than [low, high] says, so that rounding loses no point.
    """
    center, room = (lower + upper) / 2, 4 * torch.finfo(lower.dtype).eps * torch.maximum(lower.abs(), upper.abs())
    return torch.maximum(lower, center + low - room), torch.minimum(upper, center + high + room)


def _rows_of(problem: ReducedProblem, bounds: BoxBounds, polytope: int) -> tuple[Tensor, Tensor]:
    """The rows of one polytope as linear functions over each box: `middle (N, R)` less slack, `a (N, R, n)`."""
    members = (problem.polytope == polytope).nonzero().squeeze(-1)
    return bounds.middle[:, members] - problem.slack[members], bounds.a[:, members]


def _halve(search: InputSearch, lower: Tensor, upper: Tensor, share: Tensor, axis: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    at = torch.arange(len(axis), device=axis.device)
    middle = ((lower + upper) / 2)[at, axis]
    if bool(((upper - lower)[at, axis] < THINNEST).any()):
        search.stuck = True
    left, right = upper.clone(), lower.clone()
    left[at, axis] = middle
    right[at, axis] = middle
    return torch.cat([lower, right]), torch.cat([left, upper]), torch.cat([share, share]) / 2


def _offer(search: InputSearch, problem: ReducedProblem, lower: Tensor, upper: Tensor, row: Tensor, oracle: Oracle) -> bool:
    """Centres and minimising corners (of the rows `row (N, polytopes, n)`) that satisfy every row of a polytope go to the gate."""
    corners = [torch.where(row[:, k] > 0, lower, upper) for k in range(min(4, row.shape[1]))]
    x = torch.cat([(lower + upper) / 2, *corners])
    _, m = problem.evaluate(x)
    for polytope in problem.polytope.unique().tolist():
        inside = (m[:, problem.polytope == polytope] <= 0).all(1).nonzero().squeeze(-1)[:8]
        if len(inside) and oracle.offer(search.key, polytope, problem.inputs.full(x[inside])):
            search.falsified = True
            return True
    return False
