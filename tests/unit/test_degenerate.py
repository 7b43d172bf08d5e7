"""Problems in which something is missing: neurons, free inputs, rows, weights. Alone, and many of them in one frontier."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests import mlp as nets
from tests.mlp import Mlp, random_mlp
from tests.small_certificates import case_records, check_case
from verifier.bab.budget import Deadline
from verifier.bab.driver import Oracle, Search, advance, start
from verifier.bab.input_split import InputSplitConfig, advance_boxes, input_search
from verifier.bab.ladder import Climb, Outcome, go_on, open_root, outcome_of, outcome_of_boxes, solve_problem
from verifier.bab.log import Log
from verifier.bab.neurons import split_neurons
from verifier.certificate.case import Failure
from verifier.certificate.emit import reopen
from verifier.config import BabConfig
from verifier.exact.highs import leaf_answer
from verifier.graph.ir import Graph, Node
from verifier.reduced.bound import Effort
from verifier.reduced.build import build
from verifier.reduced.restrict import restrict
from verifier.reduced.tighten import tighten
from verifier.spec.spec import Case, Polytope

SMALL = BabConfig(batch=16, steps=2)
LONG = Deadline.after(1e9)

LINEAR = Mlp(((np.array([[1.0, -2.0, 0.5], [0.5, 1.0, -1.0]]), np.array([0.1, -0.2])),))
NEURONS = random_mlp(3, (3, 4, 3, 2))
PRUNED = Mlp(((np.zeros((4, 3)), np.array([1.0, -1.0, 0.5, 0.0])), (np.zeros((2, 4)), np.array([0.3, -0.3]))))
ONE_CLASS = Mlp(((np.array([[1.0, -1.0, 0.0]]), np.zeros(1)), (np.array([[1.0]]), np.zeros(1))))
MLPS = {"linear": LINEAR, "neurons": NEURONS, "pruned": PRUNED, "one class": ONE_CLASS}
BOXES = {
    "wide": (-np.ones(3), np.ones(3)), "one point": (np.array([0.25, 0.5, -0.25]),) * 2,
    "one free input": (np.array([0.25, 0.5, -1.0]), np.array([0.25, 0.5, 1.0])), "thin": (np.full(3, 0.25), np.full(3, 0.25 + 1e-3)),
}


def questions(mlp: Mlp, box: str) -> list[tuple[Case, bool]]:
    """Cases and whether they are safe: a row missed and one reached, two rows that only together are missed, nothing unsafe at all."""
    lower, upper = BOXES[box]
    n_out, random = len(mlp.layers[-1][1]), np.random.default_rng(0)
    found = [(Case(lower, upper, ()), True)]
    rows = random.normal(size=(1, n_out))
    for output in (rows, np.concatenate([rows, -rows])):
        polytope = Polytope(output, np.zeros(len(output)))
        smallest, _ = nets.smallest_margin(mlp, lower, upper, polytope)
        for gap in (0.05, -0.05):
            moved = nets.shifted(polytope, smallest - gap)
            found += [(Case(lower, upper, (moved,)), gap > 0), (Case(lower, upper, (moved, nets.shifted(moved, -1.0))), gap > 0)]
    return found


def oracle_of(mlp: Mlp, cases: Sequence[Case]) -> Oracle:
    def offer(key: int, polytope: int, x: torch.Tensor) -> bool:
        x = x.double().numpy().clip(cases[key].lower, cases[key].upper)
        return bool((nets.margin(cases[key].polytopes[polytope], x, mlp(x)) <= 0).any())

    return Oracle(offer, leaf_answer)


def assert_accepted(graph: Graph, case: Case, outcome: Outcome) -> None:
    problem = build(graph.to("cpu", torch.float64), case)
    if case.polytopes:
        assert check_case(graph, case_records(graph, case, problem, outcome.by)) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("name", MLPS)
def test_many_problems_in_one_frontier(name: str, box: str, dtype: torch.dtype) -> None:
    """All questions of one network in one call of `advance`, roots never closed beforehand: each gets the truth, and its proof is accepted."""
    mlp, graph = MLPS[name], MLPS[name].graph()
    asked = questions(mlp, box)
    cases = [case for case, _ in asked]
    searches = [Search(k, build(graph.to("cpu", dtype), case)) for k, case in enumerate(cases)]
    for search in searches:
        start(search, Effort(1))
    assert sum(len(search.frontier) > 0 for search in searches) >= 3
    advance(searches, SMALL, oracle_of(mlp, cases), Deadline.after(60))
    assert [search.proved for search in searches] == [safe for _, safe in asked]
    assert all(search.decided and not search.stuck for search in searches)
    for search, (case, safe) in zip(searches, asked):
        if safe:
            assert_accepted(graph, case, outcome_of(search, "relu"))


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("name", MLPS)
def test_the_ladder_and_its_rungs(name: str, box: str) -> None:
    """Every rung by itself returns, and the ladder tells the truth."""
    mlp, graph = MLPS[name], MLPS[name].graph()
    for case, safe in questions(mlp, box):
        oracle = oracle_of(mlp, [case])
        problem = build(graph.to("cpu", torch.float64), case)
        assert tighten(problem, Effort(1), LONG).unstable <= problem.unstable
        assert split_neurons(problem, SMALL, 0.01, LONG, Log(problem)).unstable <= problem.unstable
        part = restrict(problem, -torch.ones(problem.n).double(), torch.zeros(problem.n).double())
        assert part.n == problem.n and part.unstable <= problem.unstable
        boxes = input_search(0, problem)
        advance_boxes(boxes, InputSplitConfig(batch=8), oracle, Deadline.after(5))
        assert not (boxes.proved and not safe) and not (boxes.falsified and safe)
        if boxes.proved:
            assert_accepted(graph, case, outcome_of_boxes(boxes))
        search = Search(0, problem)
        open_root(search, Deadline.after(5))
        outcome = outcome_of(search, "") if search.decided else solve_problem(search, Climb(SMALL, oracle, Deadline.after(60)))
        assert (outcome.proved, outcome.falsified) == (safe, not safe)


def test_neurons_in_some_of_the_problems() -> None:
    """One network, regions with many, few and no unstable neurons, and one without free inputs, side by side."""
    lower = np.array([0.25, 0.5, -0.25])
    cases, safe = [], []
    for width in (0.0, 1e-6, 1e-3, 0.1, 0.5, 1.0):
        for gap in (0.02, -0.02):
            row = Polytope(np.array([[1.0, -1.0]]), np.zeros(1))
            smallest, _ = nets.smallest_margin(NEURONS, lower, lower + width, row)
            cases.append(Case(lower, lower + width, (nets.shifted(row, smallest - gap),)))
            safe.append(gap > 0)
    searches = [Search(k, NEURONS.problem(case)) for k, case in enumerate(cases)]
    assert {search.problem.unstable == 0 for search in searches} == {True, False}
    for search in searches:
        start(search, Effort(0))
        if search.decided:  # whatever the root proves is searched all the same
            search.reopen(0, 0, 0.0)
    advance(searches, SMALL, oracle_of(NEURONS, cases), Deadline.after(60))
    assert [search.proved for search in searches] == safe


def test_refused_roots_are_reopened() -> None:
    """A refused leaf without neurons or inputs ends in another proof, or stuck: never in an error; of neurons' trees never without the margin."""
    for mlp in (LINEAR, PRUNED, NEURONS):
        for box in BOXES:
            case = next(case for case, safe in questions(mlp, box) if safe and case.polytopes)
            search = Search(0, mlp.problem(case))
            start(search, Effort(1))
            oracle = oracle_of(mlp, [case])
            advance([search], SMALL, oracle, Deadline.after(5))
            boxes = input_search(0, mlp.problem(case))
            advance_boxes(boxes, InputSplitConfig(), oracle, Deadline.after(5))
            for by, lacked, again in ((search, 0.001, True), (search, 1.0, False), (boxes, 0.001, True), (boxes, 1.0, True)):
                if by.proved:
                    reopen(by, [Failure(0, 0, 0, 0, -lacked, errors=lacked)])
                    outcome = go_on(by, Climb(SMALL, oracle, Deadline.after(1)))
                    assert not outcome.falsified and (again or not outcome.proved)


@pytest.mark.parametrize("op", ["Tanh", "Sigmoid"])
def test_smooth_neurons_of_a_fixed_input(op: str) -> None:
    """Neurons whose interval is one point."""
    weight = {"weight": np.array([[1.0, -1.0]]), "bias": np.zeros(1)}
    nodes = (Node("x", "Input", (), (1, 2)), Node("z", "Linear", ("x",), (1, 1), weight), Node("y", op, ("z",), (1, 1)))
    graph, point = Graph(nodes, "y"), np.array([0.5, 0.25])
    value = float({"Tanh": np.tanh, "Sigmoid": lambda z: 1 / (1 + np.exp(-z))}[op](0.25))
    cases = [Case(point, point, (Polytope(np.ones((1, 1)), np.array([value + gap])),)) for gap in (-0.01, 0.01)]
    searches = [Search(k, build(graph.to("cpu", torch.float64), case)) for k, case in enumerate(cases)]
    for search in searches:
        start(search, Effort(1))
    advance(searches, SMALL, Oracle(lambda key, *rest: key == 1, leaf_answer), Deadline.after(5))
    assert [(search.proved, search.falsified) for search in searches] == [(True, False), (False, True)]
    assert replace(searches[0].problem, split=searches[0].problem.split).n == 0
