"""The checker's reduced problem is the network, and its rule bounds every row for any multipliers: by evaluation, rationals, sampling."""
from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from tests import checker_problems as c
from tests import reductions as r
from tests.cases import CASES
from tests.cases import Case as Row
from tests.unit.test_reduced_build import random_graph
from verifier.bab.driver import row_bounds
from verifier.certificate.arithmetic import FLOAT32, Exact, Rounded, Runtime
from verifier.certificate.bound import Block, Multipliers, Problem, Rows, bound, eliminate, proved, recipe
from verifier.certificate.boxes import box_bounds, combined_bounds
from verifier.certificate.reduce import reduce
from verifier.certificate.smooth import smooth_minimum
from verifier.errors import UnsupportedError
from verifier.graph.execute import execute
from verifier.graph.ir import Graph, Node
from verifier.reduced.bound import Effort
from verifier.reduced.build import build
from verifier.reduced.problem import stack
from verifier.spec.spec import Case, Polytope

every_row = pytest.mark.parametrize("row", CASES, ids=lambda row: row.name)
PIECEWISE = [row for row in CASES if all(node.op not in ("Sigmoid", "Tanh") for node in row.graph.nodes)]
ROUNDING = 1e-9
"""Of the plain evaluation that the test compares with, relative to the row's terms: a million roundings."""


def points(problem: Problem, count: int = 30, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    n = problem.A.shape[1]
    return np.concatenate([random.uniform(-1, 1, (count, n)), random.choice([-1.0, 1.0], (count, n))])


def check_is_network(graph: Graph, case: Case, problem: Problem) -> None:
    x = points(problem)
    full = c.full_inputs(problem, case, x)
    y = execute(graph, torch.tensor(full).reshape(-1, *graph.input_shape)).reshape(len(x), -1).numpy()
    s = c.statement_of(case)
    expected = y @ s.output.T + full @ s.input.T - s.offset
    z, rows = c.values(problem, x)
    terms = 1 + np.abs(problem.rows.b) + np.abs(problem.rows.a).sum(1) + np.abs(problem.rows.w) @ problem.sizes[0]
    assert (np.abs(rows - expected) <= problem.rows.slack + ROUNDING * terms).all()
    room = problem.noise + ROUNDING * (1 + np.abs(z).max(initial=0))
    assert ((z >= problem.lower - room) & (z <= problem.upper + room)).all()


@every_row
def test_the_problem_is_the_network(row: Row) -> None:
    for number in range(min(2, len(row.box.lower))):
        problem, case = c.problem_of_row(row, number)
        check_is_network(row.graph, case, problem)
        check_is_network(row.graph, case, eliminate(problem, frozenset()))


@pytest.mark.parametrize("seed", range(6))
def test_random_networks_of_every_operation(seed: int) -> None:
    graph = random_graph(seed)
    n_in, n_out = int(np.prod(graph.input_shape)), int(np.prod(graph.output_shape))
    random = np.random.default_rng(seed)
    center = random.normal(size=n_in)
    case = Case(center - 0.1, center + 0.1, r.specification(n_in, n_out))
    check_is_network(graph, case, c.problem_of(graph, case))


@every_row
def test_no_multipliers_prove_too_much(row: Row) -> None:
    """Any nu, however wild, bounds the rows from below, over the region and over parts of it that splits leave."""
    problem, _ = c.problem_of_row(row, 0)
    random, count = np.random.default_rng(1), len(problem.rows.b)
    x = points(problem, 200)
    z, rows = c.values(problem, x)
    good = recipe(problem, problem.rows, problem.lower, problem.upper, Multipliers(), len(problem.b))[0]
    for wild in (good, good * 1.01, good + random.normal(size=good.shape), random.normal(size=good.shape) * 10, 0 * good):
        lower = proved(problem, problem.rows, problem.lower, problem.upper, wild)
        assert (lower <= rows.min(0) + ROUNDING * (1 + np.abs(rows).max())).all()
        cut = random.integers(0, max(1, len(problem.b)), count)
        low = np.repeat(problem.lower[None], count, 0)
        if len(problem.b):
            low[np.arange(count), cut] = (problem.lower + problem.upper)[cut] / 2
        inside = (z[:, None] >= low[None]).all(-1)
        lower = proved(problem, problem.rows, low, problem.upper, wild)
        seen = np.where(inside, rows, np.inf).min(0)
        assert (lower <= seen + ROUNDING * (1 + np.abs(rows).max()))[np.isfinite(seen)].all()


def slow_in_rationals(row: Row) -> Any:
    big = any(name in row.name for name in ("convolutional", "pooled"))
    return pytest.param(row, id=row.name, marks=pytest.mark.slow) if big else pytest.param(row, id=row.name)


@pytest.mark.parametrize("row", [slow_in_rationals(row) for row in PIECEWISE])
def test_rounded_bounds_stay_below_exact_ones(row: Row) -> None:
    """With the same nu, over the same intervals; and they are close."""
    case = r.case_of(row, 0)
    rounded, exact = c.problem_of(row.graph, case), c.problem_of(row.graph, case, Exact())
    if len(rounded.b) != len(exact.b):
        pytest.skip("rounding made another neuron unstable")
    nu = recipe(rounded, rounded.rows, rounded.lower, rounded.upper, Multipliers(), len(rounded.b))[0]
    own = proved(rounded, rounded.rows, rounded.lower, rounded.upper, nu)
    wide = replace(exact, lower=Exact().array(rounded.lower), upper=Exact().array(rounded.upper))
    true = proved(wide, wide.rows, wide.lower, wide.upper, Exact().array(nu)).astype(float)
    assert (own <= true).all()
    size = np.abs(rounded.rows.b) + np.abs(rounded.rows.a).sum(1) + np.abs(rounded.rows.w) @ rounded.sizes[0] + np.abs(nu) @ rounded.sizes[1]
    assert (true - own <= 1e-9 * (1 + size)).all()


@every_row
def test_boxes_bound_what_happens_in_them(row: Row) -> None:
    problem, _ = c.problem_of_row(row, 0)
    random, n = np.random.default_rng(2), problem.A.shape[1]
    ends = np.sort(random.uniform(-1, 1, (2, 5, n)), 0)
    low, high, least = box_bounds(problem, ends[0], ends[1])
    for k in range(5):
        x = ends[0, k] + random.uniform(0, 1, (100, n)) * (ends[1, k] - ends[0, k])
        z, rows = c.values(problem, x)
        room = ROUNDING * (1 + np.abs(rows).max(initial=0) + np.abs(z).max(initial=0))
        assert ((z >= low[k] - room) & (z <= high[k] + room)).all()
        assert (rows >= least[k] - room).all()
        weight = random.uniform(0, 1, len(problem.rows.b))
        together = combined_bounds(problem, weight[None], (ends[0, k:k + 1], ends[1, k:k + 1]), (low[k:k + 1], high[k:k + 1]))[0]
        assert together <= (rows @ weight).min() + room * weight.sum()


def test_the_root_rule_is_crown() -> None:
    """The default recipe gives what the prover's CROWN gives on the same problem: no looser than its bound by more than rounding."""
    for row in [row for row in CASES if "dense" in row.name or "residual" in row.name][:12]:
        case = r.case_of(row, 0)
        theirs = build(row.graph.to("cpu", torch.float64), case)
        index = torch.arange(len(theirs.b_o)).unsqueeze(0)
        prover = row_bounds(stack([theirs]), index, Effort(0))[0][0].numpy()
        problem = c.problem_of(row.graph, case)
        own = bound(problem, problem.rows, problem.lower, problem.upper)
        assert (own >= prover - 1e-7 * (1 + np.abs(prover))).all(), row.name


@pytest.mark.parametrize("kind", ["sigmoid", "tanh"])
def test_minima_of_smooth_terms(kind: str) -> None:
    """Below a dense grid, and above it less what the grid can miss."""
    random = np.random.default_rng(3)
    coefficient, nu = random.normal(size=(2, 500)) * np.exp(random.normal(size=(2, 500)))
    ends = np.sort(random.normal(size=(2, 500)) * 4, 0)
    found = smooth_minimum(kind, coefficient, nu, *ends)
    z = np.linspace(*ends, 2001)
    grid = (coefficient * c.ACTIVATIONS[kind](z) - nu * z).min(0)
    step = (ends[1] - ends[0]) / 2000
    assert (found <= grid + 1e-12).all()
    assert (found >= grid - (np.abs(coefficient) + np.abs(nu)) * step**2 - 1e-12).all()


def test_ten_thousand_roundings_of_one_constant_are_counted() -> None:
    """Substituting many neurons, each of which moves the constant by less than it can hold, stays within the slack."""
    count = 400
    W, arithmetic = np.diag(np.ones(count - 1), -1), Rounded()
    rows = Rows(np.eye(count)[-1:], np.zeros((1, 1)), np.ones(1), np.zeros(1))
    b = np.full(count, -2.0**-54)
    b[0] = 2.0**-30
    problem = Problem(
        arithmetic, np.zeros((count, 1)), W, b, np.zeros(count), np.full(count, 0.0), np.full(count, 1.0),
        tuple(Block(k, k + 1, "relu") for k in range(count)), np.full(count, -1), rows, np.zeros(1, int), np.zeros(1), np.ones(1),
        (-np.ones(1), np.ones(1)),
    )
    reduced = eliminate(problem, frozenset())
    true = Fraction(1) + sum(map(Fraction, b.tolist()))
    assert len(reduced.b) == 0
    assert Fraction(float(reduced.rows.b[0])) - Fraction(float(reduced.rows.slack[0])) <= true
    assert Fraction(float(reduced.rows.b[0])) != true


@pytest.mark.parametrize("runtime", [None, FLOAT32])
def test_inputs_too_large_to_account_for_are_refused(runtime: Runtime | None) -> None:
    cut = {"axes": (1,), "starts": (0,), "ends": (1,), "steps": (1,)}
    graph = Graph((Node("x", "Input", (), (1, 2)), Node("y", "Slice", ("x",), (1, 1), {}, cut)), "y")
    for largest, refused in ((2.0**99, False), (2.0**101, True)):
        case = Case(np.array([0.0, -largest]), np.array([1.0, largest / 2]), (Polytope(np.ones((1, 1)), np.zeros(1)),))
        if refused:
            with pytest.raises(UnsupportedError, match="Node 'x': its values may exceed"):
                reduce(graph, c.statement_of(case), Rounded(), runtime)
        else:
            assert len(reduce(graph, c.statement_of(case), Rounded(), runtime).rows.b) == 1
