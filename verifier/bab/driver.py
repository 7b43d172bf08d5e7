"""Branch and bound over many problems in one frontier: tensors and protocols only, no network.

A Search is one problem's state: open domains, what is proved, what was tried. `advance` runs rounds on a list of searches until they are decided or
the deadline comes: take the worst domains of some problems, split each (branching.py), bound the children (reduced/bound.py), close what is
proved, and offer the corners of the bounds as counterexamples. A problem leaves when its last domain is proved or a counterexample is confirmed.
"""
from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from verifier.bab.branching import choose
from verifier.bab.budget import Deadline, Listener, Progress, silent
from verifier.bab.domains import DomainBatch, pack_alpha, pack_beta
from verifier.bab.frontier import Frontier
from verifier.bab.log import Log
from verifier.bab.work import Work, as_packed, children, load, spec_rows, split_point, unload
from verifier.config import BabConfig
from verifier.reduced.bound import Effort, Multipliers, optimise
from verifier.reduced.planes import Domains, start_alpha
from verifier.reduced.problem import ReducedProblem, Stack, stack, stackable
from verifier.reduced.products import with_fast_inputs

Offer = Callable[[int, int, Tensor], bool]
"""offer(problem key, polytope, full inputs (K, n_full)) -> whether one was confirmed as a counterexample."""

Leaf = Callable[[ReducedProblem, int, Tensor], "LeafAnswer"]

@dataclass(frozen=True, slots=True)
class LeafAnswer:
    """What an exact solver says of a leaf. It is closed by a `proof`, weights `(R,)` of the polytope's rows and multipliers nu `(U,)`, which

    show the bound `lower` (infinite: the leaf is empty). Otherwise `x (n,)` is the scaled input where the polytope is least, and `neuron` the unsplit
    one whose relaxation is loosest there, None where it is exact.
    """

    lower: float
    x: Tensor | None = None
    neuron: int | None = None
    proof: tuple[np.ndarray, np.ndarray] | None = None


PATIENCE_SHARE, PATIENCE_S, PATIENCE_LEFT = 0.25, 0.5, 0.3
"""Of the time that a problem has taken, and at least so many seconds: what its larger margin may take once the smaller one is reached everywhere; of

the time that is left, what it may take at most."""


@dataclass(frozen=True, slots=True)
class Least:
    """What will do: rows above `margin (S,)` are proved in a weaker sense than those above the problem's own margin.

    `begin_s`, `end_s`: when work began, and when it has to end, on the monotonic clock.
    """

    margin: Tensor
    begin_s: float
    end_s: float

    def patience_s(self, now_s: float) -> float:
        return min(max(PATIENCE_S, PATIENCE_SHARE * (now_s - self.begin_s)), PATIENCE_LEFT * (self.end_s - now_s))


@dataclass(slots=True)
class Search:
    """One problem's branch and bound. `key` names it to the caller; `proved (S,)` marks rows whose polytope is done.

    `stuck`: a leaf that no solver decides; `full`: the frontier has used its memory.
    `volume`: the share of the tree that is closed, by 2^-depth of the closed domains, over all open rows.
    `splits`: how often each neuron was split, by its row of `problem.neuron`, a name that outlives the problem's reductions.
    `log`: what happened; that of a new search unless another's goes on.
    `least`: a smaller margin that will do where the larger one costs too much, from `until_s` on, once all open domains exceed it; `weak`: it had to.
    """

    key: int
    problem: ReducedProblem
    frontier: Frontier = field(default_factory=Frontier)
    domains: int = 0
    closed: int = 0
    volume: float = 0.0
    falsified: bool = False
    stuck: bool = False
    full: bool = False
    started: bool = False
    floor: Tensor | None = None
    splits: Counter[tuple[int, int]] = field(default_factory=Counter)
    log: Log = None
    least: Least | None = None
    until_s: float | None = None
    weak: bool = False

    def __post_init__(self) -> None:
        if self.log is None:
            self.log = Log(self.problem)

    @property
    def decided(self) -> bool:
        return self.falsified or self.stuck or self.full or (self.started and len(self.frontier) == 0)

    @property
    def proved(self) -> bool:
        return self.started and not self.falsified and not self.stuck and not self.full and len(self.frontier) == 0

    def lower_bound(self) -> float | None:
        return self.frontier.minimum()

    def demand(self, margin: Tensor, begin_s: float, end_s: float) -> None:
        """Rows must exceed `margin (S,)` from now on, but the one that they had will do after a while; what is closed within it is open again."""
        self.least = Least(self.problem.margin, begin_s, end_s)
        self.problem = replace(self.problem, margin=torch.maximum(self.problem.margin, margin))
        self._open_again(self.log.within(self.problem.margin))

    def content(self, now_s: float) -> None:
        """Closes what is open, where the smaller margin is reached everywhere and the patience for the larger one is at its end."""
        if self.least is None or self.decided:
            return
        own = self.frontier.open
        if not bool((own.lower > self.least.margin[own.row]).all()):
            self.until_s = None
        elif self.until_s is None:
            self.until_s = now_s + self.least.patience_s(now_s)
        elif now_s > self.until_s:
            self.log.close(self.frontier.pop_worst(len(self.frontier)))
            self.relent()

    def relent(self) -> None:
        """The smaller margin has to do."""
        self.problem, self.least, self.weak = replace(self.problem, margin=self.least.margin), None, True

    def reopen(self, polytope: int, leaf: int, lacked: float) -> None:
        """A checker refuses this polytope's `leaf`, in pre-order: bounds must exceed a margin that is larger by one and a half of what it `lacked`

        (and by a roundoff of the rows' size: what lacks nothing but is not positive).

        The leaf is open again, and every one that was closed within the margin.
        """
        if not math.isfinite(lacked):
            self.stuck = True
            return
        self.problem, margin = raised(self.problem, self.problem.polytope == polytope, 1.5 * lacked)
        self._open_again(self.log.reopen(polytope, leaf, margin))

    def _open_again(self, opened: DomainBatch) -> None:
        if len(self.frontier):  # what is open already
            opened = opened.take((~torch.isin(opened.id, self.frontier.open.id)).nonzero().squeeze(-1))
        if len(opened):
            self.frontier.push(opened)


def raised(problem: ReducedProblem, own: Tensor, more: float) -> tuple[ReducedProblem, float]:
    """The problem with the margin of its rows `own (S,)` raised by `more` and a roundoff of their size, and the largest of these margins."""
    margin = problem.margin + more + torch.finfo(problem.margin.dtype).eps * problem.row_size()
    problem = replace(problem, margin=torch.where(own, margin, problem.margin))
    return problem, float(problem.margin[own].max())


@dataclass(frozen=True, slots=True)
class Oracle:
    """What the driver asks of others: `offer` takes candidates, `leaf` decides what splitting cannot."""

    offer: Offer
    leaf: Leaf


def start(search: Search, effort: Effort, rows: Tensor | None = None) -> None:
    """Bounds every row at the root and opens one domain for each polytope that none of its rows proves (the best row stands for it)."""
    problem = search.problem
    single, count = with_fast_inputs(stack([problem])), len(problem.b_o)
    row = torch.arange(count, device=problem.b_o.device).unsqueeze(0)
    bounds = row_bounds(single, row, replace(effort, packed=as_packed))
    best, found = bounds[0][0] - problem.margin, bounds[1]
    search.started, search.domains = True, count
    search.floor = best.clone()
    tops = []
    for polytope in problem.polytope.unique().tolist():
        members = (problem.polytope == polytope).nonzero().squeeze(-1)
        tops.append(members[best[members].argmax()])
    if tops:
        index = torch.stack(tops)
        is_open = ~(best[index] > 0)
        u = problem.unstable
        cuts = (None, None) if single.is_relu else (problem.lower.expand(len(index), u).clone(), problem.upper.expand(len(index), u).clone())
        roots = DomainBatch(
            index, best[index] + problem.margin[index], torch.zeros_like(index, dtype=torch.int16), problem.split.expand(len(index), u).clone(),
            pack_alpha(found.alpha[0, index]), pack_beta(found.beta[0, index]), search.log.open_roots(index), *cuts,
        )
        search.log.close(roots)
        if bool(is_open.any()):
            search.frontier.push(roots.take(is_open.nonzero().squeeze(-1)))


def row_bounds(single: Stack, row: Tensor, effort: Effort) -> tuple[Tensor, Multipliers, Tensor]:
    """Optimised bounds of specification rows `row (1, K)` over the whole problem."""
    problem, k = single.problems[0], row.shape[1]
    domains = Domains(problem.split.expand(1, k, -1), *(None if single.is_relu else t.expand(1, k, -1) for t in (single.lower, single.upper)))
    rows = spec_rows(single, row)
    begin = Multipliers(start_alpha(single).unsqueeze(1).expand(1, k, -1), torch.zeros_like(rows.wo))
    return optimise(single, rows, domains, begin, effort, problem.margin[row])


def advance(
    searches: list[Search], config: BabConfig, oracle: Oracle, deadline: Deadline, listener: Listener = silent,
    spent: dict[int, float] | None = None,
) -> None:
    """Rounds until every search is decided or the deadline is reached; what is open then stays in the frontiers.

    `spent`: by a search's key, seconds, to which what it takes is added, a round's in equal parts.
    """
    begin, size, cache = time.monotonic(), config.batch, {}
    while not deadline.expired():
        active = [s for s in searches if not s.decided]
        if not active:
            return
        group = _group(active, size)
        tick = time.monotonic()
        key = tuple(id(s.problem) for s in group)
        if key not in cache:
            cache.clear()
            cache[key] = with_fast_inputs(stack([s.problem for s in group]))
        _round(group, cache[key], config, size, oracle, deadline)
        took = time.monotonic() - tick
        if spent is not None:
            spent.update({s.key: spent.get(s.key, 0.0) + took / len(group) for s in group})
        size = max(8, size // 2) if took > 0.8 else min(config.batch, 2 * size) if took < 0.3 else size
        lowest = [b for b in (s.lower_bound() for s in active) if b is not None]
        left, closed = sum(len(s.frontier) for s in active), sum(s.closed for s in searches)
        listener(Progress("branch and bound", time.monotonic() - begin, min(lowest, default=None), left, closed))
        for search in active:
            search.content(time.monotonic())
            search.full |= search.frontier.nbytes() + search.log.nbytes() > config.frontier_bytes


def _group(active: list[Search], size: int) -> list[Search]:
    """The searches of one round: as many stackable ones as fill a batch, the smallest frontiers first."""
    order = sorted(active, key=lambda s: len(s.frontier))
    group, total = [order[0]], len(order[0].frontier)
    for search in order[1:]:
        if total >= size:
            break
        if stackable(order[0].problem, search.problem) and len(search.frontier) * (len(group) + 1) <= 2 * size:
            group.append(search)
            total += len(search.frontier)
    return group


def _round(group: list[Search], shared: Stack, config: BabConfig, size: int, oracle: Oracle, deadline: Deadline) -> None:
    each = max(1, size // len(group))
    work = load(shared, [s.frontier.pop_worst(each) for s in group])
    neuron, useful = torch.zeros_like(work.row), torch.zeros_like(work.row, dtype=torch.bool)
    if shared.real.any():
        neuron, useful = choose(shared, work, config.candidates)
    for p, search in enumerate(group):
        _leaves(search, shared, work, p, (neuron, useful), oracle, deadline)
    if not bool(useful.any()):
        return
    kids = replace(children(shared, work, neuron), id=log_split(group, shared, work, neuron, useful))
    best, multipliers, corner = bound_children(shared, kids, config)
    better = torch.maximum(best, kids.lower)
    kids = replace(kids, lower=better, multipliers=multipliers)
    for p, search in enumerate(group):
        split = neuron[p, :work.count[p]][useful[p, :work.count[p]]]
        search.splits.update(map(tuple, search.problem.neuron[torch.searchsorted(shared.index[p], split)].tolist()))
        _settle(search, shared, kids, p, useful[p], corner[p], oracle)


def bound_children(shared: Stack, kids: Work, config: BabConfig) -> tuple[Tensor, Multipliers, Tensor]:
    return optimise(shared, kids.rows, kids.domains, kids.multipliers, Effort(config.steps, packed=as_packed), kids.target)


def log_split(group: list[Search], shared: Stack, work: Work, neuron: Tensor, useful: Tensor) -> Tensor:
    """The names of the children `(P, 2K)`, once their searches' logs know them."""
    names = torch.zeros_like(work.id).repeat_interleave(2, 1)
    point = split_point(shared, work, neuron)
    for p, search in enumerate(group):
        at = useful[p, :work.count[p]].nonzero().squeeze(-1)
        own = torch.searchsorted(shared.index[p], neuron[p, at])
        both = torch.stack([2 * at, 2 * at + 1], 1).flatten()
        names[p, both] = search.log.split(work.id[p, at], own, point[p, at])
    return names


def _settle(search: Search, shared: Stack, kids: Work, p: int, useful: Tensor, corner: Tensor, oracle: Oracle) -> None:
    """Closes proved children of problem p, offers corners, keeps the rest open."""
    count = kids.count[p]
    real = useful.repeat_interleave(2)[:count]
    done = kids.lower[p, :count] > kids.target[p, :count]
    search.domains += int(real.sum())
    closed = done & real
    search.closed += int(closed.sum())
    search.volume += float((0.5 ** kids.depth[p, :count][closed].to(kids.lower.dtype)).sum())
    search.log.close(unload(shared, kids, p, closed.nonzero().squeeze(-1)))
    keep = (~done & real).nonzero().squeeze(-1)
    if len(keep) == 0:
        return
    _offer(search, corner[keep][:, :search.problem.n], kids.row[p, keep], oracle)
    if not search.falsified:
        search.frontier.push(unload(shared, kids, p, keep))


def _offer(search: Search, x: Tensor, row: Tensor, oracle: Oracle) -> None:
    """Corners that satisfy every row of their polytope go to the gate."""
    problem = search.problem
    _, m = problem.evaluate(x)
    polytope = problem.polytope[row]
    outside = (problem.polytope.unsqueeze(0) == polytope.unsqueeze(1)) & (m > problem.margin)
    hits = (~outside.any(1)).nonzero().squeeze(-1)
    for which in polytope[hits].unique().tolist():
        own = hits[polytope[hits] == which][:8]
        if oracle.offer(search.key, which, problem.inputs.full(x[own])):
            search.falsified = True
            return


def _leaves(search: Search, shared: Stack, work: Work, p: int, choice: tuple[Tensor, Tensor], oracle: Oracle, deadline: Deadline) -> None:
    """Domains where no split would improve the bound: an exact solver decides them, or names the neuron to split (into `choice`, in place)."""
    problem, (neuron, useful) = search.problem, choice
    for k in (~useful[p, :work.count[p]]).nonzero().squeeze(-1).tolist():
        if deadline.expired():
            search.frontier.push(unload(shared, work, p, torch.tensor([k], device=work.row.device)))
            continue
        polytope = int(problem.polytope[work.row[p, k]])
        split = work.domains.split[p, k][shared.index[p]]
        answer = oracle.leaf(problem, polytope, split)
        if answer.proof is not None:
            search.closed += 1
            search.volume += 0.5 ** int(work.depth[p, k])
            leaf = unload(shared, work, p, torch.tensor([k], device=work.row.device))
            search.log.close_by_program(leaf, answer.lower, answer.proof)
        elif answer.x is not None and oracle.offer(search.key, polytope, problem.inputs.full(answer.x.unsqueeze(0))):
            search.falsified = True
            return
        elif answer.neuron is not None:
            neuron[p, k], useful[p, k] = shared.index[p][answer.neuron], True
        elif search.least is not None:  # nothing is left to be split, and the larger margin is not met
            search.relent()
            search.frontier.push(unload(shared, work, p, torch.tensor([k], device=work.row.device)))
        else:
            search.stuck = True
