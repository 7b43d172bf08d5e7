"""Search for counterexamples by projected gradient descent, batched over cases, polytopes and restarts.

The parts: a *target* is one polytope of one case; a *point* is one attempt at one target; the violation of a point is the largest
(output @ y + input @ x - offset) over the target's rows, and a point with no positive violation is a candidate. Each round is

    starts  ->  descent (signed gradient steps with momentum, decaying, projected)  ->  candidates

and the rounds rise in cost: samples of the region alone; descent from the best sample of each case, then from the best of each target; then
every restart, by turns from a random point (PGD of Madry et al., arXiv:1706.06083) and output-diversified (Tashiro et al., arXiv:2003.06878).
Where a gradient is zero, that of the network with leaky ReLUs stands for it. Candidates are claims: only `attack/confirm.py` makes
counterexamples of them.
"""
from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from verifier.attack.region import center_of, descent_step, project, region_of, sample, working_type
from verifier.bab.budget import Deadline
from verifier.config import AttackConfig
from verifier.graph.execute import execute
from verifier.graph.ir import Graph
from verifier.spec.spec import Case

ELEMENTS_CPU, ELEMENTS_GPU = 4_000_000, 200_000_000  # numbers in one pass: about a tenth of a second of work
MAX_POINTS_A_PASS = 4096
FEW_INPUTS, MAX_SAMPLES, MAX_VIOLATIONS, KEPT = 64, 32_768, 20_000_000, 64
CHEAP_STEPS, KEPT_STEPS, ODI_STEPS = 15, 60, 4
FIRST_RATE, KEPT_RATES, LAST_RATE, MOMENTUM = 0.5, (0.1, 0.03), 0.005, 0.7
LEAK = 0.1
SOLID = 1e-4  # a margin, relative to the size of a row's terms, that survives the rounding of another runtime
ROUNDING = 2.0**-24  # margins that differ by less, relative to the same, are not told apart


@dataclass(frozen=True, slots=True)
class Candidate:
    """x `(n_in,)` in the region of case `case`, of the type that was searched in; seen in polytope `polytope` with this margin (nan: not so)."""

    case: int
    polytope: int
    x: np.ndarray
    margin: float = float("nan")


@dataclass(frozen=True, slots=True)
class _Targets:
    """T polytopes, padded to R rows by repeating their first row and scaled to rows of about unit size.

    `case, polytope: (T,)`, `output: (T, R, n_out)`, `offset: (T, R)`, `input: (T, R, n_in)` or None.
    """

    case: Tensor
    polytope: Tensor
    output: Tensor
    offset: Tensor
    input: Tensor | None

    def violations(self, target: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """output @ y + input @ x - offset of every row, `(G, K, R)`, at K points `x: (G, K, n_in)`, `y: (G, K, n_out)` a target `(G,)`."""
        rows = torch.einsum("gro,gko->gkr", self.output[target], y) - self.offset[target].unsqueeze(1)
        if self.input is not None:
            rows = rows + torch.einsum("gri,gki->gkr", self.input[target], x)
        return torch.where(torch.isnan(rows), torch.inf, rows)


class _Search:
    """The network, the targets, and what this call has found so far."""

    def __init__(self, graph: Graph, cases: Sequence[Case], deadline: Deadline, device: torch.device | str, dtype: torch.dtype) -> None:
        self.graph = graph.to(device, working_type(dtype))
        self.leaky = _leaky_twin(self.graph)
        self.region = region_of(cases, device, dtype)
        self.targets = _targets_of(cases, device, working_type(dtype))
        self.deadline = deadline
        elements = sum(int(np.prod(node.shape)) for node in graph.nodes)
        budget = ELEMENTS_CPU if torch.device(device).type == "cpu" else ELEMENTS_GPU
        self.points_a_pass = max(1, min(MAX_POINTS_A_PASS, budget // max(elements, 1)))
        self.best = np.full(len(self.targets.case), -np.inf)
        self.size = self.targets.offset.abs().amax(1)
        self.done = np.zeros(len(cases), dtype=bool)

    def outputs(self, x: Tensor, graph: Graph | None = None) -> Tensor:
        """`(P, n_in)` to `(P, n_out)`, by the network or another graph of its shape."""
        return execute(graph or self.graph, x.reshape(len(x), *self.graph.input_shape)).reshape(len(x), -1)

    def harvest(self, target: Tensor, x: Tensor, worst: Tensor) -> Iterator[Candidate]:
        """Candidates among points with largest violation `worst: (P,)`, where clearly better than the last one told for their target.

        A case with a solid candidate is done; one whose margin is within rounding is searched further.
        """
        hits = torch.nonzero(worst <= 0).flatten()
        hits = hits[torch.argsort(worst[hits])].cpu().numpy()
        _, first = np.unique(target.cpu().numpy()[hits], return_index=True)
        for p in hits[np.sort(first)].tolist():
            t, margin = int(target[p]), max(-float(worst[p]), 0.0)
            case = int(self.targets.case[t])
            if margin > 2 * self.best[t] and not self.done[case]:
                self.best[t] = max(margin, ROUNDING * float(self.size[t]))
                self.done[case] = margin > SOLID * float(self.size[t])
                yield Candidate(case, int(self.targets.polytope[t]), x[p].detach().cpu().numpy(), margin)

    def measure(self, target: Tensor, y: Tensor) -> None:
        """Raises `size (T,)`, the size of a target's rows and terms, to what it is at `y (G, K, n_out)`."""
        terms = torch.einsum("gro,gko->gkr", self.targets.output[target].abs(), y.abs()).amax((1, 2))
        self.size[target] = torch.maximum(self.size[target], terms.nan_to_num(0.0, 0.0, 0.0))

    def still_open(self, target: Tensor) -> Tensor:
        """Which of the targets `(P,)` belong to a case without a solid candidate."""
        return ~torch.as_tensor(self.done, device=target.device)[self.targets.case[target]]

    def finished(self) -> bool:
        return self.deadline.expired() or bool(self.done.all())


def pgd(
    graph: Graph,
    cases: Sequence[Case],
    config: AttackConfig,
    seed: int,
    deadline: Deadline,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Iterator[Candidate]:
    """Candidates as they are found; a case with a solid candidate is not searched further. Stop iterating when you need no more.

    Args:
        graph: the network, n_in numbers to n_out.
        cases: one problem each.
        config: `restarts` points a target and `steps` a point in the last round.
        seed: of the starts; on one machine equal seeds give equal searches, up to the deadline.
        deadline: asked before every pass through the network.
        dtype: of the network's input: candidates are such numbers; a double network is searched in double.
    """
    if not any(case.polytopes for case in cases):
        return
    search = _Search(graph, cases, deadline, device, dtype)
    generator = torch.Generator().manual_seed(seed)
    starts, violation = yield from _sampled_starts(search, generator)
    order = torch.argsort(violation)
    kept = starts.shape[1]
    nearest = _nearest_of_each_case(search, order)
    for target, number in _pairs(search, nearest, 1 if len(nearest) < len(order) else 0):
        yield from _descend(search, target, _kept_starts(target, number, starts), CHEAP_STEPS)
    for target, number in _pairs(search, order, kept):
        yield from _descend(search, target, _kept_starts(target, number, starts), CHEAP_STEPS if kept == 1 else KEPT_STEPS)
    for target, number in _pairs(search, order, config.restarts):
        yield from _descend(search, target, _random_starts(search, target, number, starts, generator), config.steps)


def polish(
    graph: Graph,
    cases: Sequence[Case],
    starts: Sequence[Candidate],
    steps: int,
    deadline: Deadline,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Iterator[Candidate]:
    """Candidates found by `steps` descent steps from each start: what branch and bound's corner points are good for.

    Args:
        starts: points of a case and the polytope each should reach; points outside of the region are projected onto it.
        steps: 0 evaluates the starts alone.
    """
    if not starts or not cases:
        return
    search = _Search(graph, cases, deadline, device, dtype)
    first = np.cumsum([0] + [len(case.polytopes) for case in cases])
    target = torch.tensor([int(first[start.case]) + start.polytope for start in starts], device=device)
    x = torch.as_tensor(np.stack([start.x for start in starts]), device=device, dtype=working_type(dtype))
    for chosen in torch.arange(len(starts), device=device).split(search.points_a_pass):
        chosen = chosen[search.still_open(target[chosen])]
        if search.finished():
            return
        if len(chosen):
            inside = project(search.region, search.targets.case[target[chosen]], x[chosen])
            yield from _descend(search, target[chosen], _Start(inside, torch.full_like(inside[:, 0], KEPT_RATES[0])), steps)


def _nearest_of_each_case(search: _Search, order: Tensor) -> Tensor:
    """The first target of each case in an order of targets: of an image's ten classes mostly one is reached at all."""
    case = search.targets.case[order].cpu().numpy()
    return order[torch.as_tensor(np.sort(np.unique(case, return_index=True)[1]), device=order.device)]


def _pairs(search: _Search, order: Tensor, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The pairs (target, number < count) in pieces of one pass, number by number through the open targets in their order, until the end."""
    for piece in torch.arange(len(order) * count, device=order.device).split(search.points_a_pass):
        target, number = order[piece % len(order)], torch.div(piece, len(order), rounding_mode="floor")
        keep = search.still_open(target)
        if search.finished():
            return
        if bool(keep.any()):
            yield target[keep], number[keep]


def _leaky_twin(graph: Graph) -> Graph:
    """The network with LeakyRelu for Relu: its gradient leads off a plateau where all ReLUs of a layer are dead."""
    nodes = (replace(n, op="LeakyRelu", attributes={"slope": LEAK}) if n.op == "Relu" else n for n in graph.nodes)
    return replace(graph, nodes=tuple(nodes))


def _targets_of(cases: Sequence[Case], device: torch.device | str, dtype: torch.dtype) -> _Targets:
    polytopes = [polytope for case in cases for polytope in case.polytopes]
    rows = max(len(polytope.offset) for polytope in polytopes)
    # Row r of a shorter polytope is its first row again: the maximum over the rows does not see it.
    picks = [[r if r < len(polytope.offset) else 0 for r in range(rows)] for polytope in polytopes]
    output = np.stack([polytope.output[pick] for polytope, pick in zip(polytopes, picks, strict=True)])
    offset = np.stack([polytope.offset[pick] for polytope, pick in zip(polytopes, picks, strict=True)])
    inputs = None
    if any(polytope.input is not None for polytope in polytopes):
        n_in = len(cases[0].lower)
        dense = [np.zeros((len(polytope.offset), n_in)) if polytope.input is None else polytope.input for polytope in polytopes]
        inputs = np.stack([matrix[pick] for matrix, pick in zip(dense, picks, strict=True)])
    size = np.abs(output).sum(axis=2) + (0 if inputs is None else np.abs(inputs).sum(axis=2))
    size = np.where(size > 0, size, 1.0)

    def tensor(values: np.ndarray) -> Tensor:
        return torch.as_tensor(values, device=device, dtype=dtype)

    return _Targets(
        case=torch.tensor([c for c, case in enumerate(cases) for _ in case.polytopes], device=device),
        polytope=torch.tensor([p for case in cases for p in range(len(case.polytopes))], device=device),
        output=tensor(output / size[:, :, None]),
        offset=tensor(offset / size),
        input=None if inputs is None else tensor(inputs / size[:, :, None]),
    )


def _sampled_starts(search: _Search, generator: torch.Generator) -> Generator[Candidate, None, tuple[Tensor, Tensor]]:
    """The best K samples for each target `(T, K, n_in)`, best first, and the best one's violation `(T,)`; yields those that are candidates.

    The samples of a case (its centre, random points, random corners) serve all of its polytopes, at the price of a few forward passes.
    """
    targets, region = search.targets, search.region
    cases, n_in = region.lower.shape
    kept, a_case, passes = _sampling_plan(search)
    starts = center_of(region, targets.case).unsqueeze(1).repeat(1, kept, 1)
    violation = torch.full((len(targets.case), kept), torch.inf, device=starts.device, dtype=starts.dtype)
    for chosen in torch.arange(cases, device=starts.device).split(max(1, search.points_a_pass // a_case)):
        mine = torch.nonzero((targets.case >= chosen[0]) & (targets.case <= chosen[-1])).flatten()
        position = targets.case[mine] - chosen[0]
        for number in range(passes):
            if search.finished():
                return starts, violation[:, 0]
            x = sample(region, chosen.repeat_interleave(a_case), generator)
            if number == 0:
                x[::a_case] = center_of(region, chosen)
            with torch.no_grad():
                y = search.outputs(x).view(len(chosen), a_case, -1)[position]
            x = x.view(len(chosen), a_case, -1)[position]
            search.measure(mine, y)
            worst = torch.cat((violation[mine], targets.violations(mine, x, y).amax(2)), dim=1)
            violation[mine], best = worst.topk(kept, dim=1, largest=False)
            starts[mine] = torch.cat((starts[mine], x), dim=1).gather(1, best.unsqueeze(2).expand(-1, -1, n_in))
            yield from search.harvest(mine, starts[mine, 0], violation[mine, 0])
    return starts, violation[:, 0]


def _sampling_plan(search: _Search) -> tuple[int, int, int]:
    """How many samples to keep for each target, to draw for each case in a pass, and how many passes.

    Many where the box has few dimensions, so that samples cover it; a pass is bounded by its time and by the memory of its violations.
    """
    cases, n_in = search.region.lower.shape
    targets, rows, n_out = search.targets.output.shape
    few = n_in <= FEW_INPUTS
    wanted = max(16, MAX_SAMPLES // cases) if few else 16
    a_case = max(1, min(wanted, search.points_a_pass, MAX_VIOLATIONS // (targets * (rows + n_out + n_in))))
    kept = max(1, min(KEPT, a_case, MAX_POINTS_A_PASS // targets)) if few else 1
    return kept, a_case, (max(1, wanted // a_case) if few else 1)


@dataclass(frozen=True, slots=True)
class _Start:
    """Points to descend from: `x (P, n_in)`, and the first step's `rate (P,)` in radii of the region.

    `push (P, n_out)`: the direction of the outputs to climb first; a zero row (or None for all) means none.
    """

    x: Tensor
    rate: Tensor
    push: Tensor | None = None


def _kept_starts(target: Tensor, number: Tensor, starts: Tensor) -> _Start:
    """The kept samples `number (P,)` of the targets: large steps from an only one, small ones from one of many."""
    x = starts[target, number]
    if starts.shape[1] == 1:
        return _Start(x, torch.full_like(x[:, 0], FIRST_RATE))
    return _Start(x, torch.where(number % 2 == 0, KEPT_RATES[0], KEPT_RATES[1]).to(x))


def _random_starts(search: _Search, target: Tensor, number: Tensor, starts: Tensor, generator: torch.Generator) -> _Start:
    """The starts of the pairs `(target, number)`, both `(P,)`: by turns a random point and an output-diversified start.

    An output-diversified start is the target's best sample, pushed along a random direction of the outputs.
    """
    x = sample(search.region, search.targets.case[target], generator)
    push = (torch.rand(len(target), search.targets.output.shape[2], generator=generator) * 2 - 1).to(x)
    diversified = (number % 2 == 1).unsqueeze(1)
    return _Start(torch.where(diversified, starts[target, 0], x), torch.full_like(x[:, 0], FIRST_RATE), push * diversified)


def _descend(search: _Search, target: Tensor, start: _Start, steps: int) -> Iterator[Candidate]:
    """Candidates on the way of `steps` descent steps from the start's points, one a target `(P,)`; points of finished cases leave."""
    x, push, rate, velocity = start.x, start.push, start.rate, torch.zeros_like(start.x)
    for step in range(steps + 1):
        if search.finished() or not len(x):
            return
        done_before = int(search.done.sum())
        worst, gradient = _violation_and_gradient(search, target, x, push if step < ODI_STEPS else None)
        yield from search.harvest(target, x, worst)
        if step == steps:
            return
        velocity = MOMENTUM * velocity + gradient / gradient.abs().mean(1, keepdim=True).clamp_min(torch.finfo(gradient.dtype).tiny)
        case = search.targets.case[target]
        decayed = rate * (LAST_RATE / rate) ** (step / steps)
        x = project(search.region, case, x + descent_step(search.region, case, velocity, decayed))
        if int(search.done.sum()) > done_before:
            keep = search.still_open(target)
            target, x, velocity, rate = target[keep], x[keep], velocity[keep], rate[keep]
            push = push[keep] if push is not None else None


def _violation_and_gradient(search: _Search, target: Tensor, x: Tensor, push: Tensor | None) -> tuple[Tensor, Tensor]:
    """The largest violation of each point `(P,)` and the gradient `(P, n_in)` of its loss.

    The loss of even points is the largest violation, that of odd ones the sum of the positive violations: where a polytope has many rows
    one of the two often leads on where the other is stuck. Points with a non-zero `push` have the loss -<push, y>. Where the gradient is
    zero the leaky twin's stands for it.
    """
    worst, gradient = _loss_gradient(search, search.graph, target, x, push)
    flat = (gradient == 0).all(1)
    if bool(flat.any()):
        gradient[flat] = _loss_gradient(search, search.leaky, target[flat], x[flat], None)[1]
    return worst, gradient


def _loss_gradient(search: _Search, graph: Graph, target: Tensor, x: Tensor, push: Tensor | None) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        y = search.outputs(x, graph)
        rows = search.targets.violations(target, x.unsqueeze(1), y.unsqueeze(1)).squeeze(1)
        worst = rows.amax(1)
        loss = worst
        if rows.shape[1] > 1:
            odd = torch.arange(len(x), device=x.device) % 2 == 1
            loss = torch.where(odd, (rows + SOLID * search.size[target].unsqueeze(1)).clamp_min(0).sum(1), worst)
        if push is not None:
            loss = torch.where((push != 0).any(1), -(push * y).sum(1), loss)
        # A network whose output does not depend on its input has no gradient.
        gradient = torch.autograd.grad(loss.sum(), x, allow_unused=True)[0] if loss.requires_grad else None
    return worst.detach(), torch.zeros_like(x) if gradient is None else gradient.nan_to_num(0.0, 0.0, 0.0)
