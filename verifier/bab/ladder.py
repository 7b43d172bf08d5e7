"""The ladder of effort for a problem that the root does not prove: cheap rungs first, each measured, the next one chosen by what it gained.

    1. input splits, where there are few free inputs: they go on while they close a visible share of the region;
    2. ReLU splits for a moment: what is easy ends here;
    3. tighten every neuron by alpha, and start again on the smaller problem;
    4. branch and bound for the neurons, repeated with twice the time for as long as the root gains by it;
    5. ReLU splits to the end (input splits, where ReLU splits had their share of the time in vain).
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from verifier.bab.budget import Deadline, Listener, Progress, silent
from verifier.bab.driver import Oracle, Search, advance, start
from verifier.bab.input_split import InputSearch, InputSplitConfig, advance_boxes, input_search
from verifier.bab.neurons import split_neurons, tightened_lemma
from verifier.bab.work import as_packed
from verifier.config import BabConfig
from verifier.reduced.bound import Effort
from verifier.reduced.problem import ReducedProblem
from verifier.reduced.tighten import tighten

FEW_INPUTS = 20
"""Free inputs up to which splitting the input is tried."""
MANY_NEURONS = 1500
"""Unstable neurons from which a single box takes seconds: the first turn of input splits is a share of the time then."""
FIRST_TURN_S, PROBE_S, FIRST_NEURON_S = 1.0, 0.5, 0.5
VISIBLE = 0.05
"""Share of the region whose closing in the first turn says that input splits will end."""
WORTHWHILE = 0.1
"""Share of what the root lacks that a round of neuron splits must gain to be followed by another."""
NEURON_SHARE = 0.5
ROOT = Effort(20)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a problem: proved, falsified (the gate has the counterexample) or neither, with the worst open bound.

    `splits`: how often ReLU splits took each neuron, named as in `ReducedProblem.neuron`. `by`: the search that proved it, with its log.
    """

    proved: bool
    falsified: bool
    lower: float | None
    domains: int
    engine: str
    stuck: bool = False
    full: bool = False
    splits: Mapping[tuple[int, int], int] = field(default_factory=dict)
    by: Search | InputSearch | None = None


@dataclass(frozen=True, slots=True)
class Climb:
    """What every rung needs."""

    config: BabConfig
    oracle: Oracle
    deadline: Deadline
    listener: Listener = silent


def open_root(search: Search, deadline: Deadline) -> None:
    """Rung 0: every row bounded by alpha-CROWN over the whole region."""
    start(search, replace(ROOT, until_s=deadline.at_s))


def outcome_of(search: Search, engine: str, domains: int = 0) -> Outcome:
    lower, count, splits = search.lower_bound(), domains + search.domains, dict(search.splits)
    by = search if search.proved else None
    return Outcome(search.proved, search.falsified, lower, count, engine, search.stuck, search.full, splits, by)


def solve_problem(search: Search, climb: Climb) -> Outcome:
    """Climbs the ladder for one problem whose root is open."""
    return _few_inputs(search, climb) if search.problem.n <= FEW_INPUTS else _relu_splits(search, climb)


def go_on(by: Search | InputSearch, climb: Climb) -> Outcome:
    """Ends a search that has open domains again; one over the neurons that cannot do it soon climbs the ladder instead."""
    if isinstance(by, InputSearch):
        _split_inputs(by, climb, climb.deadline.left_s())
        return outcome_of_boxes(by)
    advance([by], climb.config, climb.oracle, climb.deadline.sooner(climb.deadline.left_s() / 3), climb.listener)
    return outcome_of(by, "beta-CROWN") if by.decided and not by.stuck else solve_problem(by, climb)


def _few_inputs(search: Search, climb: Climb) -> Outcome:
    """Input splits first; ReLU splits for the longer, the smaller the share of the region that those closed in a second."""
    least = search.problem if search.least is None else replace(search.problem, margin=search.least.margin)  # a box's errors are smaller
    boxes = input_search(search.key, least)
    _split_inputs(boxes, climb, FIRST_TURN_S if search.problem.unstable <= MANY_NEURONS else 0.3 * climb.deadline.left_s())
    at_end = boxes.stuck or boxes.full
    if not boxes.decided or at_end:
        share = 1.0 if at_end else 0.7 if boxes.volume == 0 else 0.3 if boxes.volume < VISIBLE else 0.0
        if share:
            outcome = _relu_splits(search, replace(climb, deadline=climb.deadline.sooner(share * climb.deadline.left_s())))
            if outcome.proved or outcome.falsified or at_end:
                return replace(outcome, domains=outcome.domains + boxes.domains)
        _split_inputs(boxes, climb, climb.deadline.left_s())
    return outcome_of_boxes(boxes, search.domains, dict(search.splits))


def outcome_of_boxes(boxes: InputSearch, domains: int = 0, splits: Mapping[tuple[int, int], int] = MappingProxyType({})) -> Outcome:
    by, count = boxes if boxes.proved else None, boxes.domains + domains
    return Outcome(boxes.proved, boxes.falsified, boxes.lowest, count, "input splits", boxes.stuck, boxes.full, splits, by)


def _split_inputs(boxes: InputSearch, climb: Climb, seconds: float) -> None:
    advance_boxes(boxes, InputSplitConfig(frontier_bytes=climb.config.frontier_bytes), climb.oracle, climb.deadline.sooner(seconds), climb.listener)


def _relu_splits(search: Search, climb: Climb) -> Outcome:
    """Rungs 2 to 5."""
    domains, engine = 0, "beta-CROWN"
    for rung in (_tightened, _neurons_split):
        advance([search], climb.config, climb.oracle, climb.deadline.sooner(PROBE_S), climb.listener)
        if search.until_s is not None:  # the smaller margin is reached: no rung could add more than the larger one
            advance([search], climb.config, climb.oracle, climb.deadline, climb.listener)
        if search.decided or climb.deadline.expired():
            return outcome_of(search, engine, domains)
        domains += search.domains
        climb.listener(Progress("bounds of neurons", 0.0, search.lower_bound(), len(search.frontier), search.closed))
        search, engine = rung(search, climb)
        if search.decided:
            return outcome_of(search, engine, domains)
    advance([search], climb.config, climb.oracle, climb.deadline, climb.listener)
    return outcome_of(search, "beta-CROWN", domains)


def _restart(search: Search, problem: ReducedProblem, climb: Climb) -> Search:
    again = Search(search.key, problem, splits=search.splits, log=search.log.after(problem), least=search.least)
    start(again, replace(ROOT, until_s=climb.deadline.at_s))
    return again


def _tightened(search: Search, climb: Climb) -> tuple[Search, str]:
    note = lambda *found: search.log.add(tightened_lemma(*found))  # noqa: E731
    tightened = tighten(search.problem, Effort(10, packed=as_packed), climb.deadline, note=note)
    return _restart(search, tightened, climb), "tightened alpha-CROWN"


def _neurons_split(search: Search, climb: Climb) -> tuple[Search, str]:
    """Neuron splits while they pay, a moment of ReLU splits after each: every round has twice the time of the one before.

    The next round starts only if it can end within `NEURON_SHARE` of the time that was left: the rest belongs to ReLU splits.
    """
    seconds, gain, last, budget = FIRST_NEURON_S, 1.0, 0.0, climb.deadline.sooner(NEURON_SHARE * climb.deadline.left_s())
    while gain > WORTHWHILE and not search.decided and 2 * last < budget.left_s():
        before, begin = _missing(search), climb.deadline.left_s()
        search = _restart(search, split_neurons(search.problem, climb.config, seconds, climb.deadline, search.log), climb)
        gain = 1 - _missing(search) / before if before > 0 else 1.0
        if gain > WORTHWHILE and not search.decided:
            advance([search], climb.config, climb.oracle, climb.deadline.sooner(seconds), climb.listener)
        if search.until_s is not None:
            break
        seconds, last = 2 * seconds, begin - climb.deadline.left_s()
    return search, "neuron splits"


def _missing(search: Search) -> float:
    """What the root lacks to prove every row, summed."""
    return float((-search.floor).clamp(min=0).sum())
