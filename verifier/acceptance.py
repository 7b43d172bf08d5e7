"""From a search that has proved a case to a proof that the checker accepts: refused leaves go back to the search, with a margin.

A proof is about the arithmetic that the network computes in, where that can be had: it covers the reals too. Where the checker refuses that one and
accepts the proof over the reals, the case is proved, and the search may go on for the stronger proof for a share of the time that the case has taken.
"""
from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from verifier.bab.driver import Search
from verifier.bab.input_split import InputSearch
from verifier.bab.ladder import Climb, Outcome, go_on
from verifier.certificate.case import Failure
from verifier.certificate.emit import Table, proof_records, reopen
from verifier.certificate.gate import REAL, CaseGate
from verifier.errors import OutOfTime, UnsupportedError
from verifier.reduced.problem import ReducedProblem
from verifier.verdict import Reason

DEMANDED, SAMPLED = 1.1, 256
"""The share of errors over the region by which bounds are to exceed zero, and the points that may show it to be out of reach."""
FEW_SHARE, MOMENT_S = 0.02, 1.0
"""Boxes of a proof, as a share, that are few; seconds to search them again."""
STRONGER_SHARE, STRONGER_S = 0.5, 0.5
"""Of the time that a case has taken, and at least so many seconds: what a stronger proof may take that the checker has refused once."""


@dataclass(frozen=True, slots=True)
class Acceptance:
    """`arithmetic`: what the accepted proof is about, empty where none was accepted; `lacks`: why there is no stronger one, or none at all.

    `outcome`: the search's, which may have found a counterexample on the way; `late`: the time ended it.
    """

    outcome: Outcome
    arithmetic: str
    lacks: str
    late: bool = False

    def refusal(self) -> tuple[Reason, str]:
        """Why a case that a search has proved is not VERIFIED."""
        if self.late:
            return Reason.TIMEOUT, f"A proof was found, but the time was over before the checker had accepted one. {self.lacks}".strip()
        return Reason.REFUSED, f"A proof was found, but the checker does not accept it: {self.lacks or 'the search found no other in time.'}"


def demand(search: Search, gate: CaseGate, table: Table, claim: str, times_s: tuple[float, float], seed: int) -> None:
    """Asks the search for bounds above what errors take in the arithmetic of `claim`; marks it weak where some sampled point is below that.

    That is what the checker's bound over the whole region is below the search's own, by the same multipliers; and no less than its errors there.

    Args:
        search: its root is open.
        gate: the checker at the search's case.
        table: the neurons that the gate's CASE lists.
        claim: not the reals.
        times_s: when the work on the case began and when it has to end, on the monotonic clock.
        seed: of the sample.
    """
    try:
        lost, roots = gate.prepared(claim).lost(), gate.tried(proof_records(table, search), claim).failures()
    except UnsupportedError:  # the proof will meet it again, and say so
        return
    problem = search.problem
    least = torch.as_tensor(DEMANDED * lost, dtype=problem.margin.dtype, device=problem.margin.device)
    if not bool(torch.isfinite(least).all() and (sampled := _sampled(problem, seed)).gt(least).all()):
        search.weak = True
        return
    margin, own = least.clone(), search.log.lower()
    for failure in roots:
        taken = DEMANDED * (float(own[search.log.root[failure.polytope]]) - failure.bound)
        which = (problem.polytope == failure.polytope) & (sampled > taken)
        margin[which] = margin[which].clamp(min=taken)
    search.demand(margin, *times_s)


def _sampled(problem: ReducedProblem, seed: int) -> Tensor:
    """For each row the least that its polytope's largest row has at the centre and corners of the region, `(S,)`: no bound is above it."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(SAMPLED, problem.n, generator=generator).sub_(0.5).sign_().to(problem.A)
    points[0] = 0
    _, m = problem.evaluate(points)
    least = torch.full_like(problem.b_o, torch.inf)
    for polytope in problem.polytope.unique().tolist():
        own = problem.polytope == polytope
        least[own] = m[:, own].amax(1).min()
    return least


def accept(outcome: Outcome, gate: CaseGate, table: Table, claims: Sequence[str], climb: Climb, begin_s: float) -> Acceptance:
    """Has the checker accept the proof of a case.

    Args:
        outcome: proved, with the search that did it.
        gate: the checker at this case.
        table: the neurons that the gate's CASE lists.
        claims: the arithmetics that will do, the strongest first.
        climb: what the search needs to go on.
        begin_s: when the work on the case began, on the monotonic clock.
    """
    return _Round(gate, table, tuple(claims), climb, begin_s).run(outcome)


def _are_few(by: Search | InputSearch, failures: list[Failure]) -> bool:
    """Whether a proof by boxes was refused for nothing but errors, on a few of its boxes."""
    places = sum(len(failure.places()) for failure in failures)
    return isinstance(by, InputSearch) and places <= FEW_SHARE * by.closed and all(failure.by_errors for failure in failures)


class _Round:
    def __init__(self, gate: CaseGate, table: Table, claims: tuple[str, ...], climb: Climb, begin_s: float) -> None:
        self.gate, self.table, self.claims, self.climb, self.begin_s = gate, table, claims, climb, begin_s
        self.lacks: dict[str, str] = {}

    def run(self, outcome: Outcome) -> Acceptance:
        late = False
        try:
            while outcome.by is not None:
                refused = self.tried(outcome.by)
                if self.gate.arithmetic or not refused:
                    break
                outcome = self.again(outcome.by, refused, self.climb)
            if self.gate.arithmetic and refused:
                self.stronger(outcome.by, refused)
        except OutOfTime:
            late = True
        held = self.gate.arithmetic
        first = next((self.lacks[claim] for claim in self.claims if claim in self.lacks and claim != held), "")
        return Acceptance(replace(outcome, by=None), held, "" if held == self.claims[0] else first, late and not held)

    def tried(self, by: Search | InputSearch) -> list[Failure]:
        """Tries the claims one after the other; what was refused of the strongest that the checker can follow, nothing where that is accepted.

        A few boxes that lack no more than their own errors are searched again before a weaker claim is tried: that takes moments, and a check of the
        whole proof takes longer.
        """
        refused: list[Failure] = []
        for claim in self.claims:
            if claim != REAL and isinstance(by, Search) and by.weak:
                self.lacks[claim] = "its rounding errors are more than bounds exceeded zero by in the time that was worth while."
                continue
            try:
                failures = self.gate.failures(proof_records(self.table, by), claim)
            except UnsupportedError as error:
                self.lacks[claim] = str(error)
                continue
            if failures and claim != self.claims[-1] and _are_few(by, failures):
                outcome = self.again(by, failures, replace(self.climb, deadline=self.climb.deadline.sooner(MOMENT_S)))
                failures = self.gate.failures(proof_records(self.table, by), claim) if outcome.by is not None else failures
            if not failures:
                break
            self.lacks[claim] = failures[0].sentence()
            refused = refused or failures
        return refused

    def again(self, by: Search | InputSearch, refused: list[Failure], climb: Climb) -> Outcome:
        reopen(by, refused)
        return go_on(by, climb)

    def stronger(self, by: Search | InputSearch, refused: list[Failure]) -> None:
        """The proof over the reals is accepted: a stronger one, if a little more time brings it.

        Not where more is lacking than errors over the whole region come to: no margin of that kind would do.
        """
        strongest = next(claim for claim in self.claims if claim in self.lacks)
        if max(-failure.bound for failure in refused) > self.gate.prepared(strongest).lost().max(initial=0.0):
            return
        seconds = max(STRONGER_S, STRONGER_SHARE * (time.monotonic() - self.begin_s))
        climb = replace(self.climb, deadline=self.climb.deadline.sooner(seconds))
        while refused and not climb.deadline.expired():
            outcome = self.again(by, refused, climb)
            if outcome.by is None:
                return
            by = outcome.by
            refused = self.gate.failures(proof_records(self.table, by), strongest)
