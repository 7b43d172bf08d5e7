"""Proofs of many easy properties of one network at once, each by bounds that the checker computes, the second dearer than the first:

    CROWN-IBP   intervals, then one pass backwards, all properties together (certificate/many.py)
    CROWN       a row for every unstable neuron: torch proposes which properties that may prove, and the checker's root bounds decide, one a core
    what is left is the solver's

What a proposal rounds does not matter: nothing is proved by it. A bound is tried on a few properties first, and goes on only while it proves more
than its time would prove elsewhere.
"""
from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

import verifier.certificate.case as checker
import verifier.ops  # noqa: F401  (registers the rules)
from verifier.bab.budget import Deadline
from verifier.bounds.crown import IbpThenCrown, crown
from verifier.bounds.engine import BoundRequest, BoundResult, NormBall
from verifier.box import Box
from verifier.certificate.arithmetic import ROUNDED, RUNTIMES
from verifier.certificate.bound import bound
from verifier.certificate.emit import Table, case_record
from verifier.certificate.gate import network_of
from verifier.certificate.many import bounds_of_many
from verifier.certificate.schema import Record
from verifier.certificate.threads import spread
from verifier.errors import UnsupportedError, VerifierError
from verifier.graph.ir import Graph
from verifier.graph.validate import BESIDE_POINTS, compare_in_region
from verifier.solve import claims_of
from verifier.spec.spec import Case

PROBE = 4
"""Properties that a bound is tried on before it is given a whole batch."""
TOGETHER = 16
"""Properties bounded in one pass of the checker, on one of two cores."""


@dataclass(frozen=True, slots=True)
class CrownUntil:
    """`IbpThenCrown` up to the deadline; layers after it keep their intervals."""

    deadline: Deadline
    rows: IbpThenCrown = field(default_factory=IbpThenCrown)

    def wanted(self, exact: bool, unstable: Tensor) -> Tensor:
        return torch.zeros_like(unstable) if self.deadline.expired() else self.rows.wanted(exact, unstable)

    def combine(self, interval: Box, lower: Tensor, upper: Tensor) -> Box:
        return self.rows.combine(interval, lower, upper)


BOUNDS = ("CROWN-IBP", "CROWN")


@dataclass(slots=True)
class Effect:
    """What a bound did so far."""

    tried: int = 0
    proved: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Screened:
    """`engine[k]`: what proved property k, empty where nothing did; `lower (N,)` the checker's bound > 0 that did, NaN where none; `seconds (N,)`
    each one's share of the time.
    """

    engine: list[str]
    lower: np.ndarray
    seconds: np.ndarray


class Screen:
    """One network's cheap proofs, and what they were worth; `solver_s` is what a property costs that they leave open, once it is known.

    They are about the network's own arithmetic, where `wanted` (as in `Config.arithmetic`) does not ask for the reals.
    """

    def __init__(self, graph: Graph, device: torch.device | str = "cpu", wanted: str = "auto") -> None:
        self.graph, self.checked = graph.to(device, torch.float64), network_of(graph)
        self.arithmetic = claims_of(self.checked, wanted)[0]
        self.effect = {name: Effect() for name in BOUNDS}
        self.solver_s: float | None = None
        self.compared = False

    def prove(self, cases: Sequence[Case], limit_s: float) -> Screened:
        """Which cases are safe by one of the bounds; `limit_s` is the time of each case.

        The cases have equally many polytopes, of one row over the outputs each, as those of `robustness` have.
        """
        engine, bound, seconds = [""] * len(cases), np.full(len(cases), np.nan), np.zeros(len(cases))
        if self.graph.source and not self.compared:
            compare_in_region(self.graph, self.graph.source, [(case.lower, case.upper) for case in cases], most=BESIDE_POINTS)
            self.compared = True
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
        """What the checker proves the least margin of each case to exceed, NaN where nothing."""
        if name == "CROWN-IBP":
            return np.concatenate(spread(self._together, [cases[k:k + TOGETHER] for k in range(0, len(cases), TOGETHER)]))
        lower, hopeful = np.full(len(cases), np.nan), np.flatnonzero(self._proposed(cases, deadline) > 0)
        lower[hopeful] = spread(lambda k: np.nan if deadline.expired() else self._alone(cases[k]), hopeful.tolist())
        return lower

    def _together(self, cases: Sequence[Case]) -> np.ndarray:
        records = [bare_record(self.checked, case).arrays for case in cases]
        box = tuple(np.stack([record[side] for record in records]) for side in ("lower", "upper"))
        try:
            return bounds_of_many(self.checked, box, margin_rows(cases), ROUNDED, RUNTIMES[self.arithmetic]).min(1)
        except (UnsupportedError, MemoryError):  # the solver meets them too, and says so
            return np.full(len(cases), np.nan)

    def _alone(self, case: Case) -> float:
        """By the checker's root bounds of a CASE without trees."""
        try:
            checked = checker.Case(self.checked, bare_record(self.checked, case), RUNTIMES[self.arithmetic], ROUNDED, 0)
        except (UnsupportedError, MemoryError):
            return np.nan
        if checked.failures():
            return np.nan
        problem = checked.problem
        return float(bound(problem, problem.rows, problem.lower, problem.upper).min())

    def _proposed(self, cases: Sequence[Case], deadline: Deadline) -> np.ndarray:
        """`lowest_margins`, NaN where there is none."""
        with torch.no_grad():
            try:
                return lowest_margins(self.graph, cases, lambda request: crown(request, CrownUntil(deadline))).cpu().numpy()
            except VerifierError:  # numbers that overflow, an operation without a rule, no memory: the solver meets them too, and says so
                return np.full(len(cases), np.nan)


def bare_record(graph: Graph, case: Case) -> Record:
    """The case without a table of neurons, since no tree will speak of them."""
    return case_record(case, Table.of(graph, torch.zeros(0, 2)), math.prod(graph.output_shape), graph.input_type)


def margin_rows(cases: Sequence[Case]) -> tuple[np.ndarray, np.ndarray]:
    """output `(N, S, n_out)` and offset `(N, S)` of all cases.

    Raises:
        VerifierError: a polytope has several rows or one that reads inputs, or cases have different numbers of polytopes.
    """
    counts = {len(case.polytopes) for case in cases}
    if len(counts) != 1 or 0 in counts or any(len(p.offset) != 1 or p.input is not None for case in cases for p in case.polytopes):
        raise VerifierError("Bounds of many cases take polytopes of one row over the outputs, equally many in each case: use verify_many.")
    return tuple(np.stack([np.concatenate([getattr(p, part) for p in case.polytopes]) for case in cases]) for part in ("output", "offset"))


def lowest_margins(graph: Graph, cases: Sequence[Case], bound: Callable[[BoundRequest], BoundResult]) -> Tensor:
    """min over a case's polytopes of a lower bound of output @ y - offset over its region, as float64 computes it, `(N,)`, maybe NaN.

    Args:
        graph: with float64 constants.
        cases: as for `Screen.prove`.
        bound: sound in real arithmetic.
    """
    lower = bound(margin_request(graph, cases)).lower
    return torch.where(lower.isfinite(), lower, torch.nan).amin(1)


def margin_request(graph: Graph, cases: Sequence[Case]) -> BoundRequest:
    """All cases as one batch of rows `output @ y - offset`; refuses what `margin_rows` does."""
    output, offset = margin_rows(cases)
    like = next((t for node in graph.nodes for t in node.constants.values() if t.is_floating_point()), torch.zeros(0, dtype=torch.float64))
    tensor = lambda arrays: torch.as_tensor(np.stack(arrays), dtype=torch.float64, device=like.device)  # noqa: E731
    shaped = lambda arrays: tensor(arrays).reshape(-1, *graph.input_shape)  # noqa: E731
    rows, offsets = tensor(output), tensor(offset)
    ball = None
    if cases[0].ball is not None:
        radius = tensor([np.float64(case.ball.radius) for case in cases])
        ball = NormBall(shaped([case.ball.center for case in cases]), radius, cases[0].ball.norm)
    box = Box(shaped([case.lower for case in cases]), shaped([case.upper for case in cases]))
    return BoundRequest(graph, box, rows, -offsets, ball=ball, upper_too=False)
