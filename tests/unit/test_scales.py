"""Inputs, layers and outputs multiplied with powers of two: no number of the search may depend on it, so every verdict is the same."""
from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from tests import mlp as nets
from tests.mlp import Mlp, near_truth, random_mlp
from verifier.bab.budget import Deadline
from verifier.bab.driver import Oracle, Search, advance, start
from verifier.bab.input_split import InputSplitConfig, advance_boxes, input_search
from verifier.bab.ladder import Climb, open_root, solve_problem
from verifier.config import BabConfig
from verifier.exact.highs import leaf_answer
from verifier.reduced.bound import Effort
from verifier.reduced.build import build
from verifier.reduced.problem import ReducedProblem
from verifier.spec.spec import Case, Polytope

SMALL = BabConfig(batch=32, steps=3)
TINY, HUGE = 2.0**-120, 2.0**100  # 1e-36 and 1e30
SCALES = {  # of the input, of each of the two hidden layers, of the output
    "inputs tiny": (TINY, 1, 1, 1), "inputs huge": (HUGE, 1, 1, 1), "layer 1 tiny": (1, TINY, 1, 1), "layer 1 huge": (1, HUGE, 1, 1),
    "layer 2 tiny": (1, 1, TINY, 1), "layer 2 huge": (1, 1, HUGE, 1), "outputs tiny": (1, 1, 1, TINY), "outputs huge": (1, 1, 1, HUGE),
}
BOTH = {  # what float64 holds, though float32 does not hold all products
    "all tiny": (TINY, TINY, TINY, TINY), "all huge": (HUGE, HUGE, HUGE, HUGE), "up and down": (TINY, HUGE, TINY, HUGE),
    "down and up": (HUGE, TINY, HUGE, TINY), "tiny outputs of huge layers": (1, HUGE, HUGE, TINY),
}


def scaled(mlp: Mlp, case: Case, scale: tuple[float, ...]) -> tuple[Mlp, Case]:
    """The same question in other units."""
    a, *hidden, o = scale
    layers, before = [], a
    for (weight, bias), own in zip(mlp.layers, (*hidden, o)):
        layers.append((weight * (own / before), bias * own))
        before = own
    polytopes = tuple(Polytope(p.output, p.offset * o, None if p.input is None else p.input * (o / a)) for p in case.polytopes)
    return Mlp(tuple(layers)), Case(case.lower * a, case.upper * a, polytopes)


def oracle_of(mlp: Mlp, case: Case) -> Oracle:
    """Confirms what plain numpy confirms."""

    def offer(key: int, polytope: int, x: torch.Tensor) -> bool:
        x = x.double().numpy().clip(case.lower, case.upper)
        return bool((nets.margin(case.polytopes[polytope], x, mlp(x)) <= 0).any())

    return Oracle(offer, leaf_answer)


def by_relu_splits(problem: ReducedProblem, oracle: Oracle) -> tuple[bool, bool, int]:
    search = Search(0, problem)
    start(search, Effort(4))
    advance([search], SMALL, oracle, Deadline.after(20))
    return search.proved, search.falsified, search.domains


def by_input_splits(problem: ReducedProblem, oracle: Oracle) -> tuple[bool, bool, int]:
    search = input_search(0, problem)
    advance_boxes(search, InputSplitConfig(batch=64), oracle, Deadline.after(20))
    return search.proved, search.falsified, search.domains


def by_the_ladder(problem: ReducedProblem, oracle: Oracle) -> tuple[bool, bool, int]:
    """Its rungs have their own seconds, so that the number of domains tells nothing."""
    search, deadline = Search(0, problem), Deadline.after(20)
    open_root(search, deadline)
    outcome = solve_problem(search, Climb(SMALL, oracle, deadline))
    return search.proved or outcome.proved, outcome.falsified, 0


Solve = Callable[[ReducedProblem, Oracle], "tuple[bool, bool, int]"]


def check_scale(scale: tuple[float, ...], dtype: torch.dtype, solve: Solve, seeds: range) -> None:
    """Proved, falsified and the number of domains, with the scale and without, a twentieth on either side of the truth."""
    for seed in seeds:
        mlp = random_mlp(seed, (3, 6, 5, 2))
        for gap in (0.05, -0.05):
            case = near_truth(mlp, seed, gap, rows=1 + seed % 2)
            found = []
            for own in ((1.0, 1.0, 1.0, 1.0), scale):
                network, question = scaled(mlp, case, own)
                problem = build(network.graph().to("cpu", dtype), question)
                found.append(solve(problem, oracle_of(network, question)))
            assert found[0] == found[1]
            assert found[0][:2] == (gap > 0, gap < 0)


@pytest.mark.parametrize("solve", [by_relu_splits, by_input_splits], ids=["relu", "inputs"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES.keys())
def test_a_scale_changes_nothing(scale: tuple[float, ...], dtype: torch.dtype, solve: Solve) -> None:
    check_scale(scale, dtype, solve, range(4))


@pytest.mark.parametrize("solve", [by_relu_splits, by_input_splits], ids=["relu", "inputs"])
@pytest.mark.parametrize("scale", BOTH.values(), ids=BOTH.keys())
def test_scales_together_change_nothing(scale: tuple[float, ...], solve: Solve) -> None:
    check_scale(scale, torch.float64, solve, range(3))


@pytest.mark.parametrize("scale", [SCALES["layer 1 tiny"], SCALES["outputs tiny"], SCALES["outputs huge"], BOTH["all tiny"]])
def test_the_ladder_decides_at_every_scale(scale: tuple[float, ...]) -> None:
    check_scale(scale, torch.float64, by_the_ladder, range(2))


def test_rows_of_different_scales_are_combined() -> None:
    """Two rows that only together are positive, x + 1/2 and 1/2 - x, the second in other units."""
    mlp, domains = Mlp(((np.array([[1.0], [-1.0]]), np.zeros(2)), (np.eye(2), np.zeros(2)))), set()
    for unit in (1.0, TINY, HUGE):
        rows = Polytope(np.array([[1.0, -1.0], [-unit, unit]]), np.array([-0.5, -0.5 * unit]))
        case = Case(np.array([-2.0]), np.array([2.0]), (rows,))
        search = input_search(0, mlp.problem(case))
        advance_boxes(search, InputSplitConfig(), oracle_of(mlp, case), Deadline.after(10))
        assert search.proved
        domains.add(search.domains)
    assert len(domains) == 1
