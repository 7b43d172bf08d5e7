"""Laws of bounds, because they are theorems: every engine, every small graph, every kind of box."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from tests.cases import CASES, GRAPHS, KINDS, RELU_GRAPHS, Case, boxes
from tests.oracles import crown_minimum, explicit, points, solver_minimum, values
from tests.tolerances import EXACT, SOLVER
from verifier.bounds.alpha import AlphaConfig, alpha_crown
from verifier.bounds.crown import IbpOnly, PureCrown, crown
from verifier.bounds.engine import BoundEngine, BoundRequest, BoundResult, NormBall
from verifier.bounds.ibp import ibp
from verifier.box import Box

ENGINES: dict[str, BoundEngine] = {
    "ibp": ibp,
    "crown": crown,
    "pure crown": partial(crown, intermediate=PureCrown()),
    "crown-ibp": partial(crown, intermediate=IbpOnly()),
}
alpha = partial(alpha_crown, config=AlphaConfig(iterations=3))
every_engine = pytest.mark.parametrize("engine", [*ENGINES.values(), alpha], ids=[*ENGINES, "alpha-crown"])


def cases(graphs: Iterable[str] = GRAPHS, slow: Iterable[str] = (), kinds: Iterable[str] = KINDS) -> pytest.MarkDecorator:
    """The rows of the table for these graphs and kinds of boxes; `slow` graphs run on `different widths` alone unless slow tests are asked for."""
    rows = []
    for case in CASES:
        graph, kind = case.name.split(", ")
        if graph in graphs and kind in kinds:
            rows.append(pytest.param(case, id=case.name, marks=pytest.mark.slow if graph in slow and kind != "different widths" else ()))
    return pytest.mark.parametrize("case", rows)


CONVOLUTIONAL = ("convolutional", "residual_convolutional", "transposed")
relu_case = cases(RELU_GRAPHS, kinds=[kind for kind in KINDS if "1e" not in kind])


def request_of(case: Case) -> BoundRequest:
    """Three rows over two outputs, one of them a difference, with constants."""
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, -1.0]], dtype=torch.float64).expand(case.box.lower.shape[0], 3, 2)
    constants = torch.tensor([0.0, 0.5, -0.25], dtype=torch.float64).expand(case.box.lower.shape[0], 3)
    return BoundRequest(case.graph, case.box, rows, constants)


def slack_of(result: BoundResult) -> torch.Tensor:
    """What rounding may take from each bound, relative to the sizes that were summed."""
    sizes = [box.lower.abs().amax().maximum(box.upper.abs().amax()) for box in result.intermediate.values()]
    return EXACT * (1 + result.lower.abs() + result.upper.abs() + sum(sizes, torch.zeros((), dtype=torch.float64)))


def assert_sound(engine: BoundEngine, case: Case) -> None:
    """No point of the box beats a bound of the rows, nor of the outputs."""
    request = request_of(case)
    reached = values(case.graph, points(case.box, 200))
    for asked in (request, replace(request, rows=None, constants=None)):
        result = engine(asked)
        seen = reached if asked.rows is None else reached @ asked.rows.transpose(1, 2) + asked.constants.unsqueeze(1)
        slack = slack_of(result)
        assert (result.lower - slack <= seen.amin(1)).all()
        assert (seen.amax(1) <= result.upper + slack).all()


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES.keys())
@cases()
def test_no_point_beats_a_bound(engine: BoundEngine, case: Case) -> None:
    assert_sound(engine, case)


@cases(slow=CONVOLUTIONAL)
def test_no_point_beats_an_optimised_bound(case: Case) -> None:
    assert_sound(alpha, case)


@every_engine
@pytest.mark.parametrize("case", [c for c in CASES if c.name.endswith("point")], ids=lambda case: case.name)
def test_a_point_box_gives_the_value(engine: BoundEngine, case: Case) -> None:
    if "partly" in case.name:
        case = Case(case.name, case.graph, Box(case.box.upper, case.box.upper))
    result = engine(BoundRequest(case.graph, case.box))
    value = values(case.graph, case.box.lower.unsqueeze(1))[:, 0]
    # S-shaped planes are shifted outward by a documented margin of 16 ulp a neuron.
    assert torch.allclose(result.lower, value, rtol=0, atol=EXACT)
    assert torch.allclose(result.upper, value, rtol=0, atol=EXACT)


@relu_case
def test_pure_crown_is_the_papers_substitution(case: Case) -> None:
    request = request_of(case)
    result = crown(request, PureCrown())
    for problem in range(case.box.lower.shape[0]):
        planes = explicit(case.graph, case.box, result.intermediate, problem)
        naive = [crown_minimum(planes, row) for row in request.rows[problem].numpy()]
        np.testing.assert_allclose((result.lower - request.constants)[problem], naive, rtol=EXACT, atol=EXACT)


@cases(RELU_GRAPHS, slow=CONVOLUTIONAL, kinds=("different widths", "off centre", "one-sided", "partly point"))
def test_crown_alpha_lp_and_truth_are_ordered(case: Case) -> None:
    """With a result's own intermediate bounds: bound <= LP <= MILP <= every point."""
    request = request_of(case)
    reached = values(case.graph, points(case.box, 200))
    for result in (crown(request), alpha_crown(request, AlphaConfig(iterations=5))):
        planes = explicit(case.graph, case.box, result.intermediate, 0)
        for k, row in enumerate(request.rows[0].numpy()):
            bound = float(result.lower[0, k] - request.constants[0, k])
            relaxed, true = solver_minimum(planes, row, False), solver_minimum(planes, row, True)
            scale = SOLVER * (1 + abs(true))
            assert bound <= relaxed + scale
            assert relaxed <= true + scale
            assert true <= float((reached[0] @ request.rows[0, k]).min()) + scale


def test_many_steps_of_alpha_reach_the_lp_of_a_shallow_network() -> None:
    """One hidden layer: the best alpha attains the LP exactly (strong duality), so the optimiser must come close."""
    case = next(c for c in CASES if c.name == "dense, different widths")
    first = case.graph.nodes[:3]
    graph = replace(case.graph, nodes=(*first, replace(case.graph.nodes[-1], inputs=(first[-1].name,), constants=_square(first[-1].shape[-1]))))
    request = BoundRequest(graph, case.box, torch.ones(3, 1, 2, dtype=torch.float64))
    result = alpha_crown(request, AlphaConfig(iterations=200))
    for problem in range(3):
        best = solver_minimum(explicit(graph, case.box, result.intermediate, problem), np.ones(2), False)
        assert result.lower[problem, 0] == pytest.approx(best, abs=1e-4)


def _square(size: int) -> dict[str, np.ndarray]:
    return {"weight": np.random.default_rng(11).normal(size=(2, size)), "bias": np.zeros(2)}


@every_engine
@cases(slow=CONVOLUTIONAL, kinds=("different widths", "partly point"))
def test_a_batch_equals_its_singles(engine: BoundEngine, case: Case) -> None:
    together = engine(request_of(case))
    for problem in range(case.box.lower.shape[0]):
        alone = Box(case.box.lower[problem : problem + 1], case.box.upper[problem : problem + 1])
        single = engine(request_of(replace(case, box=alone)))
        slack = slack_of(together)[problem]
        assert ((together.lower[problem] - single.lower[0]).abs() <= slack).all()
        assert ((together.upper[problem] - single.upper[0]).abs() <= slack).all()


@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS.keys())
def test_a_smaller_box_is_never_looser_for_intervals(graph) -> None:
    for _, box in boxes(graph.input_shape):
        inner = Box(box.lower + 0.2 * box.radius, box.upper - 0.3 * box.radius)
        wide, narrow = ibp(BoundRequest(graph, box)), ibp(BoundRequest(graph, inner))
        slack = slack_of(wide)
        assert (narrow.lower >= wide.lower - slack).all()
        assert (narrow.upper <= wide.upper + slack).all()


@pytest.mark.parametrize("norm", [1, 2])
@pytest.mark.parametrize("name", ["dense", "convolutional", "sigmoid", "products"])
def test_points_of_a_ball_beat_no_bound_and_a_small_ball_helps(name: str, norm: int) -> None:
    graph = GRAPHS[name]
    _, box = next(boxes(graph.input_shape))
    ball = NormBall(box.center, torch.full((3,), 0.1, dtype=torch.float64), norm)
    request = BoundRequest(graph, box, ball=ball)
    x = points(box, 200)
    away = (x - ball.center.unsqueeze(1)).flatten(2)
    size = away.norm(p=norm, dim=-1, keepdim=True)
    inside = ball.center.unsqueeze(1) + (away * (0.1 / size.clamp(min=0.1))).reshape(x.shape)
    reached = values(graph, inside)
    for engine in (crown, partial(alpha_crown, config=AlphaConfig(iterations=3))):
        result = engine(request)
        assert (result.lower - EXACT <= reached.amin(1)).all()
        assert (reached.amax(1) <= result.upper + EXACT).all()
        plain = engine(replace(request, ball=None))
        assert (result.upper - result.lower).mean() < (plain.upper - plain.lower).mean()


@pytest.mark.parametrize("name", ["dense", "residual", "convolutional", "residual_convolutional"])
def test_bounds_are_differentiable_in_the_weights(name: str) -> None:
    """The gradient of a summed bound in every constant of the graph, against central differences along a random direction."""
    graph = GRAPHS[name].to("cpu", torch.float64)
    _, box = next(boxes(graph.input_shape))
    random = torch.Generator().manual_seed(3)
    leaves = {(n.name, k): v.clone().requires_grad_() for n in graph.nodes for k, v in n.constants.items()}
    directions = {key: torch.randn(v.shape, generator=random, dtype=torch.float64) for key, v in leaves.items()}

    def loss(engine: BoundEngine, shift: float) -> torch.Tensor:
        nodes = [replace(n, constants={k: leaves[n.name, k] + shift * directions[n.name, k] for k in n.constants}) for n in graph.nodes]
        result = engine(BoundRequest(replace(graph, nodes=tuple(nodes)), box))
        return (result.upper - 2 * result.lower).sum()

    for engine in (ibp, crown, partial(crown, intermediate=IbpOnly())):
        gradients = torch.autograd.grad(loss(engine, 0.0), list(leaves.values()))
        along = sum((g * d).sum() for g, d in zip(gradients, directions.values(), strict=True))
        with torch.no_grad():
            difference = (loss(engine, 1e-6) - loss(engine, -1e-6)) / 2e-6
        assert float(along) == pytest.approx(float(difference), rel=1e-4)


@pytest.mark.parametrize("name", GRAPHS)
def test_small_chunks_of_rows_give_the_same_bounds(name: str) -> None:
    """Memory for about one row, and for about five: the same bounds as all rows together."""
    _, box = next(boxes(GRAPHS[name].input_shape))
    request = BoundRequest(GRAPHS[name], Box(box.lower[:2], box.upper[:2]))
    whole = crown(request)
    for memory_bytes in (1, 50_000):
        cut = crown(request, memory_bytes=memory_bytes)
        assert torch.allclose(cut.lower, whole.lower, rtol=EXACT, atol=EXACT)
        assert torch.allclose(cut.upper, whole.upper, rtol=EXACT, atol=EXACT)


def test_given_intermediate_bounds_are_used_as_they_are() -> None:
    case = next(c for c in CASES if c.name == "dense, different widths")
    free = crown(BoundRequest(case.graph, case.box))
    name = case.graph.nodes[2].inputs[0]
    tight = Box(free.intermediate[name].lower / 2, free.intermediate[name].upper / 2)
    given = crown(BoundRequest(case.graph, case.box, intermediate={name: tight}))
    assert given.intermediate[name] is tight
    assert (given.lower > free.lower).any()
