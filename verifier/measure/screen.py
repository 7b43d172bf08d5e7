"""Proofs of many easy properties of one network at once, by bounds of whole batches, each dearer than the one before:

    intervals -> CROWN over interval bounds -> CROWN with a row for every unstable neuron -> what is left is the solver's

All in double precision. The engines are sound in real arithmetic; `rounding_room` is what their roundings can come to, and a bound counts as
positive only above it. A bound is tried on a few properties first, and goes on only while it proves more than its time would prove elsewhere.
"""
from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

import verifier.ops  # noqa: F401  (registers the rules)
from verifier.bab.budget import Deadline
from verifier.bounds.crown import IbpOnly, IbpThenCrown, crown
from verifier.bounds.engine import BoundRequest, BoundResult, NormBall
from verifier.bounds.ibp import ibp
from verifier.box import Box
from verifier.errors import VerifierError
from verifier.graph.ir import Graph, Node
from verifier.ops.rule import AffineOp, ElementwiseOp, SignedAffineOp, rule_for
from verifier.spec.spec import Case

PROBE = 4
"""Properties that a bound is tried on before it is given a whole batch."""
PLAIN = 8
"""Roundings at a node beside its sums: centre and radius, a slope and its offset, the addition of a bias, the choice of a plane."""


@dataclass(frozen=True, slots=True)
class CrownUntil:
    """`IbpThenCrown` up to the deadline; layers after it keep their intervals."""

    deadline: Deadline
    rows: IbpThenCrown = field(default_factory=IbpThenCrown)

    def wanted(self, exact: bool, unstable: Tensor) -> Tensor:
        return torch.zeros_like(unstable) if self.deadline.expired() else self.rows.wanted(exact, unstable)

    def combine(self, interval: Box, lower: Tensor, upper: Tensor) -> Box:
        return self.rows.combine(interval, lower, upper)


Bound = Callable[[BoundRequest, Deadline], BoundResult]
BOUNDS: dict[str, Bound] = {
    "IBP": lambda request, deadline: ibp(request),
    "CROWN-IBP": lambda request, deadline: crown(request, IbpOnly()),
    "CROWN": lambda request, deadline: crown(request, CrownUntil(deadline)),
}


@dataclass(slots=True)
class Effect:
    """What a bound did so far."""

    tried: int = 0
    proved: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Screened:
    """`engine[k]`: what proved property k, empty where nothing did; `lower (N,)` the bound > 0 that did, NaN where none; `seconds (N,)` each
    one's share of the time.
    """

    engine: list[str]
    lower: np.ndarray
    seconds: np.ndarray


class Screen:
    """One network's cheap proofs, and what they were worth; `solver_s` is what a property costs that they leave open, once it is known."""

    def __init__(self, graph: Graph, device: torch.device | str = "cpu") -> None:
        self.graph = graph.to(device, torch.float64)
        self.effect = {name: Effect() for name in BOUNDS}
        self.solver_s: float | None = None

    def prove(self, cases: Sequence[Case], limit_s: float) -> Screened:
        """Which cases are safe by one of the bounds; `limit_s` is the time of each case.

        The cases have equally many polytopes, of one row over the outputs each, as those of `robustness` have.
        """
        engine, bound, seconds = [""] * len(cases), np.full(len(cases), np.nan), np.zeros(len(cases))
        for name in BOUNDS:
            waiting = [k for k, proved in enumerate(engine) if not proved]
            while waiting and self._pays(name):
                size = len(waiting) if self.effect[name].tried >= PROBE else PROBE
                part, waiting = waiting[:size], waiting[size:]
                begin = time.monotonic()
                lower = self._lower(name, [cases[k] for k in part], Deadline.after(0.5 * limit_s * len(part)))
                took = time.monotonic() - begin
                self._record(name, len(part), int((lower > 0).sum()), took)
                seconds[part] += took / len(part)
                for k, value in zip(part, lower.tolist()):
                    if value > 0:
                        engine[k], bound[k] = name, value
        return Screened(engine, bound, seconds)

    def _pays(self, name: str) -> bool:
        """Whether the time spent so far is less than what the solver would have taken for what was proved."""
        effect = self.effect[name]
        if effect.tried < PROBE:
            return True
        return effect.proved > 0 and (self.solver_s is None or effect.seconds < effect.proved * self.solver_s)

    def _record(self, name: str, tried: int, proved: int, seconds: float) -> None:
        effect = self.effect[name]
        effect.tried, effect.proved, effect.seconds = effect.tried + tried, effect.proved + proved, effect.seconds + seconds

    def _lower(self, name: str, cases: Sequence[Case], deadline: Deadline) -> np.ndarray:
        """`lowest_margins`, NaN where there is none."""
        with torch.no_grad():
            try:
                return lowest_margins(self.graph, cases, lambda request: BOUNDS[name](request, deadline)).cpu().numpy()
            except VerifierError:  # numbers that overflow, an operation without a rule, no memory: the solver meets them too, and says so
                return np.full(len(cases), np.nan)


def lowest_margins(graph: Graph, cases: Sequence[Case], bound: Callable[[BoundRequest], BoundResult]) -> Tensor:
    """min over a case's polytopes of (a lower bound of output @ y - offset over its region, less the rounding), `(N,)` float64, maybe NaN.

    Args:
        graph: with float64 constants.
        cases: as for `Screen.prove`.
        bound: sound in real arithmetic.

    Sound: a polytope whose row is positive on the whole region is not reached.
    """
    request = margin_request(graph, cases)
    lower = bound(request).lower - rounding_room(request)
    return torch.where(lower.isfinite(), lower, torch.nan).amin(1)


def margin_request(graph: Graph, cases: Sequence[Case]) -> BoundRequest:
    """All cases as one batch of rows `output @ y - offset`.

    Raises:
        VerifierError: a polytope has several rows or one that reads inputs, or cases have different numbers of polytopes.
    """
    counts = {len(case.polytopes) for case in cases}
    if len(counts) != 1 or 0 in counts or any(len(p.offset) != 1 or p.input is not None for case in cases for p in case.polytopes):
        raise VerifierError("Bounds of many cases take polytopes of one row over the outputs, equally many in each case: use verify_many.")
    like = next((t for node in graph.nodes for t in node.constants.values() if t.is_floating_point()), torch.zeros(0, dtype=torch.float64))
    tensor = lambda arrays: torch.as_tensor(np.stack(arrays), dtype=torch.float64, device=like.device)  # noqa: E731
    shaped = lambda arrays: tensor(arrays).reshape(-1, *graph.input_shape)  # noqa: E731
    rows = tensor([np.concatenate([polytope.output for polytope in case.polytopes]) for case in cases])
    offsets = tensor([np.concatenate([polytope.offset for polytope in case.polytopes]) for case in cases])
    ball = None
    if cases[0].ball is not None:
        radius = tensor([np.float64(case.ball.radius) for case in cases])
        ball = NormBall(shaped([case.ball.center for case in cases]), radius, cases[0].ball.norm)
    box = Box(shaped([case.lower for case in cases]), shaped([case.upper for case in cases]))
    return BoundRequest(graph, box, rows, -offsets, ball=ball, upper_too=False)


def rounding_room(request: BoundRequest) -> Tensor:
    """(2^p - 1) gamma_2k (|rows| size + |constants|) >= what all roundings of a bound come to, `(N, S)`, with gamma_n = n u / (1 - n u).

    size = |W| size + |b| from node to node, planes having slopes of at most 1: no pass has larger terms in all. k is the roundings that one term
    meets, the fans along the whole network and one dot product, and gamma_k holds for sums in any order, the worst case and not the likely one;
    twice k covers the roundings of size itself. With p - 1 activations a backward pass has p such sums of terms, its own and one of offsets for
    each activation; and where the box of activation j is wrong by r_j size_j, its planes are by no more: r_p = p gamma + r_1 + ... + r_(p-1).

    Holds for IEEE double arithmetic without underflow and products of matrices that are sums of products. Ref: Higham, Accuracy and Stability of
    Numerical Algorithms, 2nd ed., lemmas 3.1 and 3.3 and section 3.5.
    """
    graph, ball = request.graph, request.ball
    largest = torch.maximum(request.box.lower.abs(), request.box.upper.abs())
    if ball is not None:
        largest = torch.maximum(largest, ball.center.abs() + ball.radius.reshape(-1, *[1] * (largest.ndim - 1)))
    size, passes = {graph.input.name: largest.amax(0, keepdim=True)}, 1
    roundings = max(math.prod(node.shape) for node in graph.nodes)
    for node in graph.nodes[1:]:
        rule, inputs = rule_for(node), [size[name] for name in node.inputs]
        image = rule.interval(node, *(Box(-value, value) for value in inputs))
        roundings += PLAIN + len(inputs)
        if isinstance(rule, AffineOp):
            size[node.name] = image.radius + image.center.abs()
            roundings += _fan(node, rule, inputs)
        else:
            own = torch.maximum(image.lower.abs(), image.upper.abs())
            passes += 1
            size[node.name] = torch.maximum(own, inputs[0]) if isinstance(rule, ElementwiseOp) else 4 * own  # McCormick's planes
    terms = request.rows.abs() @ size[graph.output].flatten() + request.constants.abs()
    return (2.0**passes - 1) * gamma(2 * roundings) * terms


def gamma(count: int) -> float:
    """n u / (1 - n u) for n roundings in double precision, u = 2^-53."""
    relative = count * torch.finfo(torch.float64).eps / 2
    return relative / (1 - relative)


def _fan(node: Node, rule: AffineOp, inputs: Sequence[Tensor]) -> int:
    """The most terms in one sum of a linear map, forward or backward: its non-zero weights counted by pushing ones through."""
    signed = rule.signed if isinstance(rule, SignedAffineOp) else ()
    counting = replace(node, constants={k: (v != 0).to(v.dtype) if k in signed else v for k, v in node.constants.items()})
    forward = rule.linear(counting, *(torch.ones_like(value) for value in inputs))
    backward = rule.adjoint(counting, torch.ones_like(forward), tuple(tuple(value.shape[1:]) for value in inputs))
    sums = [float(part.abs().max()) for part in (forward, *backward) if part.numel()]
    averaged = [math.prod(node.attributes.get("kernel_shape", ())), *(value.numel() / max(forward.numel(), 1) for value in inputs)]  # weights 1 / n
    return math.ceil(max(*sums, *averaged, len(inputs)))
