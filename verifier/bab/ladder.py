"""The ladder of effort for problems that the root does not prove: cheap rungs first, each measured, the next one chosen by what it gained.

For every open problem:
    few free inputs:  input splits and ReLU splits are tried for a moment each; the one that closes more of its tree goes on;
    otherwise:        ReLU splits for a moment; if the closed share of the tree says that this ends in time, they go on; else the neurons' bounds are
                      tightened (alpha on every row, then branch and bound on the late neurons), and ReLU splits start again on the smaller problem.
"""
from __future__ import annotations

import time
from dataclasses import dataclass

from verifier.bab.budget import Deadline, Listener, Progress, silent
from verifier.bab.driver import Oracle, Search, advance, start
from verifier.bab.input_split import InputSplitConfig, advance_boxes, input_search
from verifier.bab.neurons import split_neurons
from verifier.config import BabConfig
from verifier.reduced.bound import Effort
from verifier.reduced.problem import ReducedProblem
from verifier.reduced.tighten import tighten

FEW_INPUTS = 20
ROOT = Effort(20)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a problem: proved, falsified (the gate has the counterexample) or neither, with the worst open bound."""

    proved: bool
    falsified: bool
    lower: float | None
    domains: int
    engine: str
    stuck: bool = False


def solve_problem(key: int, problem: ReducedProblem, config: BabConfig, oracle: Oracle, deadline: Deadline, listener: Listener = silent) -> Outcome:
    """Climbs the ladder for one problem."""
    search = Search(key, problem)
    start(search, ROOT)
    if search.decided:
        return _outcome(search, "alpha-CROWN")
    if problem.n <= FEW_INPUTS:
        return _few_inputs(search, config, oracle, deadline, listener)
    return _many_inputs(search, config, oracle, deadline, listener)


def _outcome(search: Search, engine: str, domains: int = 0) -> Outcome:
    return Outcome(search.proved, search.falsified, search.lower_bound(), domains + search.domains, engine, search.stuck)


def _few_inputs(search: Search, config: BabConfig, oracle: Oracle, deadline: Deadline, listener: Listener) -> Outcome:
    """Input splits against ReLU splits: short turns of growing length, until one wins or is clearly ahead."""
    boxes = input_search(search.key, search.problem)
    turn = 0.5
    while not deadline.expired():
        advance_boxes(boxes, InputSplitConfig(), oracle, deadline.sooner(turn), listener)
        if boxes.decided and not boxes.stuck:
            return Outcome(boxes.proved, boxes.falsified, boxes.lowest, boxes.domains + search.domains, "input splits")
        before = search.volume
        advance([search], config, oracle, deadline.sooner(turn), listener)
        if search.decided and not search.stuck:
            return _outcome(search, "beta-CROWN", boxes.domains)
        ahead = _share(search) - before
        turn *= 2
        if boxes.stuck and search.stuck:
            break
        if turn > 4 and not boxes.stuck and boxes.volume > 2 * ahead:
            turn = deadline.left_s()
    return Outcome(False, False, boxes.lowest, boxes.domains + search.domains, "input splits", boxes.stuck and search.stuck)


def _share(search: Search) -> float:
    """The closed share of the tree, 0 to 1."""
    open_volume = float((0.5 ** search.frontier.open.depth.double()).sum()) if len(search.frontier) else 0.0
    return search.volume / max(search.volume + open_volume, 1e-30)


def _many_inputs(search: Search, config: BabConfig, oracle: Oracle, deadline: Deadline, listener: Listener) -> Outcome:
    """ReLU splits, between rungs that improve the problem itself."""
    domains, begin = 0, time.monotonic()
    rungs = [
        lambda p: tighten(p, Effort(10), deadline),
        lambda p: split_neurons(p, config, 2.0, deadline),
        lambda p: split_neurons(p, config, 5.0, deadline),
    ]
    probe = 1.0
    for rung in rungs:
        advance([search], config, oracle, deadline.sooner(probe), listener)
        if search.decided or deadline.expired():
            return _outcome(search, "beta-CROWN", domains)
        share = _share(search)
        if share > 0 and probe * (1 - share) / share < 0.5 * deadline.left_s():
            break
        listener(Progress("neuron bounds", time.monotonic() - begin, search.lower_bound(), len(search.frontier), search.closed))
        better = rung(search.problem)
        domains += search.domains
        search = Search(search.key, better)
        start(search, ROOT)
        probe *= 2
        if search.decided:
            return _outcome(search, "neuron splits", domains)
    advance([search], config, oracle, deadline, listener)
    return _outcome(search, "beta-CROWN", domains)
