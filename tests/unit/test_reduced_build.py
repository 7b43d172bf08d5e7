"""The reduced problem is the network: rows, neurons and bounds, after building and after every operation that makes it smaller."""
from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch

from tests import reductions as r
from tests.cases import CASES, GRAPHS, Builder, boxes
from tests.cases import Case as Row
from verifier.bab.budget import Deadline
from verifier.bab.log import Log
from verifier.bab.neurons import split_neurons
from verifier.config import BabConfig
from verifier.errors import OutOfMemory, UnsupportedError
from verifier.graph.ir import Graph, Node
from verifier.reduced.bound import Effort
from verifier.reduced.build import BuildConfig, build, input_map
from verifier.reduced.planes import Domains, fixed_planes, planes_at, start_alpha
from verifier.reduced.problem import ReducedProblem, stack
from verifier.reduced.restrict import restrict
from verifier.reduced.tighten import rows_as_problem, tighten
from verifier.spec.spec import Ball, Case, Polytope

every_row = pytest.mark.parametrize("row", CASES, ids=lambda row: row.name)
LONG = Deadline.after(1e9)


def random_graph(seed: int) -> Graph:
    """A small network of convolutions, a residual link, one pooling and one of every activation, in random order."""
    b = Builder((1, 2, 6, 6), seed)
    activations = [("Relu", {}), ("LeakyRelu", {"slope": 0.15}), ("Clip", {"lower": -0.4, "upper": 0.6}), ("Sigmoid", {}), ("Tanh", {})]
    order = b.random.permutation(len(activations))
    op, attributes = activations[order[0]]
    h = b.same(op, b.conv("x", 3, 3, 1, (1, 1, 1, 1)), **attributes)
    op, attributes = activations[order[1]]
    h = b.add("Add", (b.same(op, b.conv(h, 3, 3, 1, (1, 1, 1, 1)), **attributes), h), (1, 3, 6, 6))
    pool = {"kernel_shape": (2, 2), "strides": (2, 2), "dilations": (1, 1), "pads": (0, 0, 0, 0), "ceil_mode": 0, "count_include_pad": 0}
    h = b.add("MaxPool" if seed % 2 else "AveragePool", (h,), (1, 3, 3, 3), **pool)
    op, attributes = activations[order[2]]
    h = b.same(op, b.linear(b.flat(h), 5), **attributes)
    h = b.add("Mul", (h, b.linear(h, 5)), (1, 5)) if seed % 3 == 0 else h
    return b.graph(b.linear(h, 2))


def double(graph: Graph) -> Graph:
    return graph.to("cpu", torch.float64)


def problems(row: Row, norm: int | None = None) -> list[tuple[Case, ReducedProblem]]:
    cases = [r.case_of(row, k, norm) for k in range(row.box.lower.shape[0])]
    return [(case, build(double(row.graph), case)) for case in cases]


@every_row
def test_built_problems_are_the_network(row: Row) -> None:
    for case, problem in problems(row):
        r.check_exact(double(row.graph), case, problem)
        r.check_neurons(double(row.graph), problem)


@pytest.mark.parametrize("seed", range(12))
def test_random_networks(seed: int) -> None:
    graph = random_graph(seed)
    kind, box = list(boxes(graph.input_shape))[seed % 3]
    for case, problem in problems(Row(kind, graph, box)):
        r.check_exact(double(graph), case, problem)
        r.check_neurons(double(graph), problem)


@every_row
def test_every_operation_on_a_problem_keeps_the_function(row: Row) -> None:
    """Tightening, branch and bound on neurons, and both on a quarter of the box: the same rows, valid bounds, no stable ReLU left."""
    graph = double(row.graph)
    case, problem = problems(row)[1]
    better = tighten(problem, Effort(3), LONG)
    r.check_tightened(problem, better)
    r.check_exact(graph, case, better)
    split = split_neurons(problem, BabConfig(batch=8, steps=2), 0.02, LONG, Log(problem))
    r.check_tightened(problem, split)
    lower, upper = torch.full((problem.n,), -0.5, dtype=torch.float64), torch.linspace(-0.4, 0.5, problem.n, dtype=torch.float64)
    part = restrict(better, lower, upper)
    r.check_exact(graph, case, part)
    assert part.unstable <= better.unstable
    x = r.scaled_points(30, problem.n)
    there = (lower + upper) / 2 + x * (upper - lower) / 2
    assert (part.evaluate(x)[1] - better.evaluate(there)[1]).abs().max() <= 1e-9 * r.sizes(problem)
    assert torch.allclose(part.inputs.full(x), better.inputs.full(there), rtol=1e-12)


@every_row
def test_rows_of_a_block_as_a_problem(row: Row) -> None:
    """m is (z, -z) of the block, as a function of the inputs."""
    _, problem = problems(row)[0]
    for block in problem.blocks:
        own = rows_as_problem(problem, block)
        x = r.scaled_points(20, problem.n)
        z = problem.evaluate(x)[0][:, block.start:block.end]
        earlier, m = own.evaluate(x)
        assert torch.allclose(earlier, problem.evaluate(x)[0][:, :block.start], rtol=0, atol=1e-9 * r.sizes(problem))
        assert torch.allclose(m, torch.cat([z, -z], 1), rtol=0, atol=1e-9 * r.sizes(problem))
        assert len(own.polytope.unique()) == 2 * block.size == len(own.margin)
        r.check_shape(own)


@pytest.mark.parametrize("name", GRAPHS)
def test_float32_problems_agree_with_the_network(name: str) -> None:
    """A float32 problem's rows differ from the network in float64 by no more than float32 can tell of its numbers."""
    graph = GRAPHS[name]
    for kind, box in itertools.islice(boxes(graph.input_shape), 3):
        case = r.case_of(Row(kind, graph, box), 0)
        problem = build(graph.to("cpu", torch.float32), case)
        x = r.scaled_points(30, problem.n).to(problem.A.dtype)
        exact = r.rows_of_network(double(graph), case, problem.inputs.full(x).double())
        assert (problem.evaluate(x)[1] - exact).abs().max() <= 1e-4 * r.sizes(problem)


def float64_of(values: torch.Tensor) -> list[Fraction]:
    return [Fraction(float(value)) for value in values]


NARROW = [0.0, 1e-30, 1e-9, 5e-8, 1.2e-7, 2.3e-7, 1e-6, 1e-3, 1.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_input_map_covers_the_exact_box(dtype: torch.dtype) -> None:
    """In exact arithmetic: center - radius <= lower and upper <= center + radius, and a fixed input is the only float32 of its interval."""
    random = np.random.default_rng(0)
    lower = np.concatenate([random.normal(size=200), 1.0 + random.integers(0, 5, 200) * 2.0**-23, [0.1, 1.0, -1.0, 0.0, 16777216.0]])
    lower = np.repeat(lower, len(NARROW))
    upper = lower + np.tile(NARROW, len(lower) // len(NARROW)) * np.maximum(np.abs(lower), 1e-3)
    inputs, _ = input_map(Case(lower, upper, ()), torch.device("cpu"), dtype)
    free = set(inputs.free.tolist())
    low, center, high = ([Fraction(float(v)) for v in values] for values in (lower, inputs.center, upper))
    radius = dict(zip(inputs.free.tolist(), float64_of(inputs.radius)))
    for k in range(len(lower)):
        if k in free:
            assert center[k] - radius[k] <= low[k] and high[k] <= center[k] + radius[k]
        else:
            around = np.nextafter(np.float32(lower[k]), np.float32([-np.inf, np.inf]))
            inside = [*around.tolist(), float(np.float32(lower[k]))]
            inside = [v for v in inside if lower[k] <= v <= upper[k]]
            assert len(set(inside)) <= 1 and all(Fraction(v) == center[k] for v in inside)
            assert abs(center[k] - low[k]) <= abs(Fraction(float(np.spacing(np.float32(lower[k])))))


def test_float32_neighbours_are_two_points() -> None:
    """[1, 1 + 2^-23] holds two float32: both must be covered, or a proof about one would stand for the other."""
    b = Builder((1, 1), 0)
    graph = b.graph(b.add("Linear", ("x",), (1, 1), {"weight": np.array([[2.0**23]]), "bias": np.array([-(2.0**23)])}))
    up, down = (Polytope(np.array([[sign]]), np.array([offset])) for sign, offset in ((1.0, 0.5), (-1.0, -0.5)))
    problem = build(graph.to("cpu", torch.float32), Case(np.array([1.0]), np.array([1.0 + 2.0**-23]), (up, down)))
    lower = problem.b_o - problem.A_o.abs().sum(1)
    assert (lower <= -0.5).all()  # x = 1 gives y = 0, its neighbour y = 1


def test_points_have_no_neurons() -> None:
    """Over a single point everything is constant: U = 0 and n = 0, and the rows are numbers."""
    row = next(row for row in CASES if row.name == "convolutional, point")
    for case, problem in problems(row):
        assert problem.unstable == problem.n == 0
        x = torch.zeros(1, 0, dtype=torch.float64)
        full = torch.from_numpy(case.lower).unsqueeze(0)
        assert torch.allclose(problem.evaluate(x)[1], r.rows_of_network(double(row.graph), case, full))
        assert not stack([problem]).real.any()


def test_affine_networks_have_no_neurons_but_inputs() -> None:
    row = next(row for row in CASES if row.name == "affine_only, off centre")
    for case, problem in problems(row):
        assert problem.unstable == 0 and problem.n == 2
        r.check_exact(double(row.graph), case, problem)
        r.check_tightened(problem, tighten(problem, Effort(2), LONG))
        r.check_exact(double(row.graph), case, restrict(problem, torch.tensor([-0.5, 0.0]).double(), torch.tensor([0.25, 0.5]).double()))


@pytest.mark.parametrize("norm", [1, 2])
@pytest.mark.parametrize("name", ["dense", "residual", "convolutional", "sigmoid", "tanh", "products", "leaky", "pooled"])
def test_bounds_over_balls_hold_and_use_the_ball(name: str, norm: int) -> None:
    """On points of the ball: neuron bounds, and row bounds by a backward pass. The box alone gives weaker rows."""
    graph = double(GRAPHS[name])
    kind, box = next(boxes(graph.input_shape))
    for k in range(3):
        case = r.case_of(Row(kind, graph, box), k, norm, share=0.8)
        problem, around = build(graph, case), build(graph, Case(case.lower, case.upper, case.polytopes))
        r.check_exact(graph, case, problem)
        lower = root_bounds(problem)
        center, radius = torch.from_numpy(case.ball.center), case.ball.radius
        away = torch.randn(400, len(center), generator=torch.Generator().manual_seed(k), dtype=torch.float64)
        full = center + away / away.norm(p=norm, dim=1, keepdim=True) * radius * torch.linspace(0, 1, 400, dtype=torch.float64).unsqueeze(1)
        full = torch.minimum(torch.maximum(full, torch.from_numpy(case.lower)), torch.from_numpy(case.upper))
        assert (r.rows_of_network(graph, case, full) >= lower - 1e-9 * r.sizes(problem)).all()
        assert lower.sum() > root_bounds(around).sum()
        half = torch.full((problem.n,), 0.5, dtype=torch.float64)
        check_restricted_ball(graph, case, restrict(problem, -half, half), full)


def root_bounds(problem: ReducedProblem) -> torch.Tensor:
    """Bounds `(S,)` of the rows at the adaptive start."""
    from verifier.reduced.bound import Rows, backward

    single = stack([problem])
    alpha = start_alpha(single).unsqueeze(1)
    domains = Domains(torch.zeros_like(alpha, dtype=torch.int8), *(() if single.is_relu else (single.lower[:, None], single.upper[:, None])))
    rows = Rows(single.W_o, single.A_o, single.b_o)
    return backward(single, rows, domains, planes_at(single, domains, fixed_planes(single, domains), alpha), None).lower[0]


def check_restricted_ball(graph: Graph, case: Case, part: ReducedProblem, full: torch.Tensor) -> None:
    """On points of the ball in the sub-box, the sub-problem's row bounds hold."""
    scaled = (full[:, part.inputs.free] - part.inputs.center[part.inputs.free]) / part.inputs.radius
    member = (scaled.abs() <= 1).all(1)
    assert (r.rows_of_network(graph, case, full[member]) >= root_bounds(part) - 1e-9 * r.sizes(part)).all()


def test_the_minimum_over_a_ball_is_attained() -> None:
    """Over the ball alone (a wide box) min <a, x> is attained at the point that comes with it."""
    from verifier.reduced.bound import minimum_over_inputs
    from verifier.reduced.problem import ScaledBall

    random = torch.Generator().manual_seed(0)
    for norm in (1, 2):
        radius = torch.rand(5, generator=random, dtype=torch.float64) + 0.5
        ball = ScaledBall(0.1 * torch.randn(5, generator=random, dtype=torch.float64), radius, 0.3, norm)
        a = torch.randn(50, 5, generator=random, dtype=torch.float64)
        value, x = minimum_over_inputs(a, ball)
        assert torch.allclose((a * x).sum(-1), value)
        assert (((x - ball.center) * radius).norm(p=norm, dim=-1) <= 0.3 + 1e-12).all()


@pytest.mark.parametrize("norm", [1, 2])
def test_a_ball_of_one_point(norm: int) -> None:
    """eps = 0: no free input is left, and the bounds are the value."""
    graph = double(GRAPHS["dense"])
    x = np.array([0.2, -0.1, 0.4])
    case = Case(x, x, r.specification(3, 2), Ball(x, 0.0, norm))
    problem = build(graph, case)
    assert problem.n == 0
    assert torch.allclose(root_bounds(problem), r.rows_of_network(graph, case, torch.from_numpy(x)[None])[0])


def test_a_network_without_constants() -> None:
    graph = Graph((Node("x", "Input", (), (1, 2)), Node("y", "Relu", ("x",), (1, 2))), "y")
    case = Case(np.array([-1.0, 0.5]), np.array([1.0, 2.0]), (Polytope(np.eye(2), np.zeros(2)),))
    problem = build(graph, case)
    assert problem.unstable == 1
    _, m = problem.evaluate(torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=problem.A.dtype))
    assert torch.allclose(m, torch.tensor([[1.0, 0.5], [0.0, 2.0]], dtype=m.dtype), atol=1e-6)


def test_what_does_not_fit_is_refused_in_one_sentence() -> None:
    row = next(row for row in CASES if row.name == "convolutional, different widths")
    with pytest.raises(OutOfMemory, match="GiB"):
        build(double(row.graph), r.case_of(row, 0), BuildConfig(memory_bytes=100))
    strange = Graph((*row.graph.nodes, Node("odd", "Erf", (row.graph.output,), row.graph.output_shape)), "odd")
    with pytest.raises(UnsupportedError, match="odd"):
        build(double(strange), r.case_of(row, 0))


def test_building_twice_gives_the_same_and_changes_nothing() -> None:
    row = next(row for row in CASES if row.name == "residual, different widths")
    graph, case = double(row.graph), r.case_of(row, 0)
    before = [t.clone() for node in graph.nodes for t in node.constants.values()]
    one, two = build(graph, case), build(graph, case)
    tighten(one, Effort(3), LONG)
    restrict(one, torch.full((one.n,), -0.5).double(), torch.full((one.n,), 0.5).double())
    for name in ("A", "W", "b", "A_o", "W_o", "b_o", "lower", "upper", "margin", "split"):
        assert torch.equal(getattr(one, name), getattr(two, name)), name
    assert all(torch.equal(a, b) for a, b in zip(before, [t for node in graph.nodes for t in node.constants.values()]))
