"""Laws of bounds over reduced problems: any multipliers give a bound, better ones never a wrong one, and every fast path equals its slow one."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from tests import reductions as r
from tests.tolerances import EXACT, SOLVER
from verifier.bab import cut as cutting
from verifier.reduced import planes, products
from verifier.reduced.bound import Effort, Multipliers, Rows, _Ascent, optimise
from verifier.reduced.boxes import box_bounds
from verifier.reduced.planes import Domains
from verifier.reduced.problem import RELU, ReducedProblem, ScaledBall, activation, stack, stackable

RELUS = (RELU, RELU, RELU)
MIXED = (RELU, "tanh", "square", RELU, "sigmoid")
seeds = st.integers(0, 2**32 - 1)
kinds = st.sampled_from([(RELU,), (RELU, RELU), RELUS, ("sigmoid",), ("tanh", "tanh"), ("square", RELU), MIXED])
few = settings(max_examples=40)
fewer = settings(max_examples=15)


@given(seeds, kinds)
@settings(max_examples=80)
def test_any_multipliers_give_a_bound(seed: int, names: tuple[str, ...]) -> None:
    """Random slopes, multipliers and splits: no sampled point of a domain is below its bound."""
    drawn = r.draw_domains(r.random_problem(seed, names), seed)
    lower = r.bound_at(drawn, drawn.multipliers.alpha, drawn.multipliers.beta).lower
    assert r.check_bound_below_points(drawn, lower) >= 400  # the first domain is the whole region
    assert torch.isfinite(lower).all()


@given(seeds, st.integers(1, 3))
@few
def test_bound_lp_truth(seed: int, depth: int) -> None:
    """Bound <= LP over the same planes <= every point of the domain."""
    problem = r.random_problem(seed, RELUS[:depth])
    drawn = r.draw_domains(problem, seed)
    r.check_bound_below_lp(drawn, r.bound_at(drawn, drawn.multipliers.alpha, drawn.multipliers.beta).lower)
    z, value = r.row_values(drawn, r.scaled_points(300, problem.n))
    member = r.in_domains(drawn, z)
    for k in range(len(member)):
        if member[k].any():
            lowest = float(value[k][member[k]].min())
            assert r.lp_minimum(drawn, k) <= lowest + SOLVER * (1 + abs(lowest))


@given(seeds, kinds)
@few
def test_optimised_bounds(seed: int, names: tuple[str, ...]) -> None:
    r.check_optimised(r.draw_domains(r.random_problem(seed, names), seed))


@pytest.mark.parametrize("seed", range(4))
def test_many_steps_come_close_to_the_lp(seed: int) -> None:
    """One layer, no splits: the best slopes attain the LP (strong duality)."""
    drawn = r.draw_domains(r.random_problem(seed, (RELU,)), seed, 1)
    best, _, _ = optimise(drawn.stack, drawn.rows, drawn.domains, drawn.multipliers, Effort(300, decay=0.98), torch.full((1, 1), torch.inf))
    assert float(best[0, 0]) == pytest.approx(r.lp_minimum(drawn, 0), abs=2e-3)


@given(seeds)
@fewer
def test_steps_end_where_the_target_is_reached(seed: int) -> None:
    """Rows above their target stop; the others get what they would get alone."""
    drawn = r.draw_domains(r.random_problem(seed, RELUS), seed, 8)
    start = r.bound_at(drawn, drawn.multipliers.alpha, drawn.multipliers.beta).lower
    never, some = torch.full_like(start, torch.inf), torch.full_like(start, torch.inf)
    some[:, ::2] = -torch.inf
    full = optimise(drawn.stack, drawn.rows, drawn.domains, drawn.multipliers, Effort(6), never)[0]
    part = optimise(drawn.stack, drawn.rows, drawn.domains, drawn.multipliers, Effort(6), some)[0]
    assert torch.allclose(part[:, 1::2], full[:, 1::2], rtol=0, atol=1e-9)
    assert (part[:, ::2] >= start[:, ::2]).all()


@given(seeds)
@few
def test_the_gradient_is_that_of_the_bound(seed: int) -> None:
    """The ascent's own derivative in every slope and multiplier against central differences.

    A domain whose bound has a kink nearby (the one-sided differences disagree) is left out; ReLU bounds are piecewise smooth in both.
    """
    names = (RELU, RELU) if seed % 2 else (RELU, "tanh", "square", RELU)
    drawn = r.draw_domains(r.random_problem(seed, names), seed, 3)
    alpha, beta = 0.1 + 0.8 * drawn.multipliers.alpha, drawn.multipliers.beta
    ascent = _Ascent(drawn.stack, drawn.rows, drawn.domains, Multipliers(alpha, beta), Effort(1))
    ascent.step(*ascent.bound(Multipliers(alpha, beta)), 0)
    # After one step Adam's mean is a tenth of the gradient, in the ascent's own units.
    gradient = ascent.m / 0.1 * torch.stack([ascent.reach.expand_as(alpha), ascent.reach / ascent.unit])
    step, base = 1e-6, r.bound_at(drawn, alpha, beta).lower
    compared = 0
    for which in (0, 1):
        for j in range(alpha.shape[-1]):
            shift = torch.zeros_like(alpha)
            shift[..., j] = step
            ends = [r.bound_at(drawn, alpha + s * shift * (which == 0), beta + s * shift * (which == 1)).lower for s in (1, -1)]
            right, left = (ends[0] - base) / step, (base - ends[1]) / step
            smooth = (right - left).abs() <= 1e-4 * (1 + right.abs())
            compared += int(smooth.sum())
            found = (right + left) / 2
            assert ((gradient[which][..., j] - found).abs() <= 2e-4 * (1 + found.abs()))[smooth].all()
    assert compared >= alpha.numel()


def placed(problem: ReducedProblem, seed: int, count: int) -> tuple[Rows, Domains, Multipliers]:
    drawn = r.draw_domains(problem, seed, count)
    return drawn.rows, drawn.domains, drawn.multipliers


@given(seeds, st.sampled_from([(RELU, RELU), RELUS, (RELU, "tanh", "square")]))
@few
def test_a_stack_equals_its_singles(seed: int, names: tuple[str, ...]) -> None:
    """Problems of different sizes side by side, padded: each gets the bounds that it gets alone, and improves them soundly.

    Steps are not compared: their length depends on the padded size, the bound of given multipliers does not.
    """
    sizes = [(3, 2), (1, 3), (4, 1)]
    problems = [r.random_problem(seed + k, names, inputs, rows) for k, (inputs, rows) in enumerate(sizes)]
    assert stackable(problems[0], problems[1])
    together, count = stack(problems), 5
    parts = [placed(problem, seed + k, count) for k, problem in enumerate(problems)]

    def wide(tensors: list[torch.Tensor], fill: float = 0.0) -> torch.Tensor:
        result = torch.full((len(problems), count, together.b.shape[1]), fill, dtype=tensors[0].dtype)
        for p, tensor in enumerate(tensors):
            result[p][:, together.index[p]] = tensor[0]
        return result

    inputs = together.A.shape[2]
    padded = [torch.nn.functional.pad(rows.ao[0], (0, inputs - rows.ao.shape[-1])) for rows, _, _ in parts]
    rows = Rows(wide([p[0].wo for p in parts]), torch.stack(padded), torch.cat([p[0].bo for p in parts]))
    cuts = () if together.is_relu else (wide([p[1].lower for p in parts], -1.0), wide([p[1].upper for p in parts], 1.0))
    domains = Domains(wide([p[1].split for p in parts]), *cuts)
    start = Multipliers(wide([p[2].alpha for p in parts]), wide([p[2].beta for p in parts]))
    never = torch.full_like(rows.bo, torch.inf)
    best, _, corner = optimise(together, rows, domains, start, Effort(0), never)
    better, multipliers, _ = optimise(together, rows, domains, start, Effort(4), never)
    assert (better >= best).all()
    for p, problem in enumerate(problems):
        alone, _, own = optimise(stack([problem]), *parts[p], Effort(0), never[:1])
        assert torch.allclose(best[p], alone[0], rtol=1e-9, atol=1e-9)
        assert torch.equal(corner[p][:, :problem.n], own[0])
        drawn = r.Drawn(stack([problem]), *parts[p])
        r.check_bound_below_points(drawn, better[p:p + 1])
        at = Multipliers(*(t[p:p + 1][..., together.index[p]] for t in (multipliers.alpha, multipliers.beta)))
        assert torch.allclose(r.bound_at(drawn, at.alpha, at.beta).lower[0], better[p], rtol=1e-9, atol=1e-9)


def sparse_problem(seed: int) -> ReducedProblem:
    """In float32, with a first block whose rows of A are nearly empty, as of an early convolution."""
    problem = r.random_problem(seed, RELUS, inputs=40, largest=30)
    random = torch.Generator().manual_seed(seed)
    thin = problem.blocks[0].end
    A = problem.A * (torch.rand(problem.A.shape, generator=random) < 0.05)
    A[thin:] = problem.A[thin:]
    fields = ("W", "b", "A_o", "W_o", "b_o", "lower", "upper", "margin")
    return replace(problem, A=A.float(), **{name: getattr(problem, name).float() for name in fields})


@pytest.mark.parametrize("faster", [0.0, 1e9], ids=["rough", "exact"])
@pytest.mark.parametrize("seed", range(5))
def test_fast_products_equal_dense_ones(seed: int, faster: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sparse products are the dense ones; rough ones have two digits and touch no bound that is kept."""
    monkeypatch.setattr(products, "SMALLEST", 0)
    monkeypatch.setattr(products, "FASTER", faster)
    plain = stack([sparse_problem(seed)])
    fast = products.with_fast_inputs(plain)
    assert fast.fast.count == plain.blocks[0].end and (fast.fast.rough is None) == (faster > 1)
    random = torch.Generator().manual_seed(seed)
    nu, x = torch.randn(1, 6, plain.b.shape[1], generator=random), 2 * torch.rand(1, 6, plain.A.shape[2], generator=random) - 1
    exact, back = nu @ plain.A, x @ plain.A.mT
    size, size_back = nu.abs() @ plain.A.abs() + 1e-3, x.abs() @ plain.A.mT.abs() + 1e-3
    assert ((products.to_inputs(fast, nu) - exact).abs() <= 1e-5 * size).all()
    two_digits = 1e-2 if faster < 1 else 1e-5
    assert ((products.to_inputs_roughly(fast, nu) - exact).abs() <= two_digits * size).all()
    assert ((products.from_inputs_roughly(fast, x) - back).abs() <= two_digits * size_back).all()
    rows = Rows(plain.W_o, plain.A_o, plain.b_o)
    domains, start = Domains(torch.zeros(1, 2, plain.b.shape[1], dtype=torch.int8)), Multipliers(*torch.zeros(2, 1, 2, plain.b.shape[1]))
    never = torch.full_like(rows.bo, torch.inf)
    first = [optimise(s, rows, domains, start, Effort(0), never)[0] for s in (plain, fast)]
    assert torch.allclose(*first, rtol=1e-4, atol=1e-4)
    best, multipliers, _ = optimise(fast, rows, domains, start, Effort(5), never)
    again = optimise(plain, rows, domains, multipliers, Effort(0), never)[0]
    assert torch.allclose(best, again, rtol=1e-4, atol=1e-4) and (best >= first[1]).all()


def test_what_has_no_fast_products_stays_as_it_is() -> None:
    """Small stacks, stacks of several problems, and double precision."""
    small = stack([sparse_problem(0)])
    assert products.with_fast_inputs(small) is small
    several = stack([sparse_problem(0), sparse_problem(1)])
    assert products.with_fast_inputs(several) is several


def test_balls_and_other_sequences_stand_alone() -> None:
    one, two = r.random_problem(0, (RELU, RELU)), r.random_problem(1, (RELU, "tanh"))
    ball = ScaledBall(torch.zeros(3), torch.ones(3), 1.0, 2)
    assert stackable(one, r.random_problem(2, (RELU, RELU)))
    assert not stackable(one, two) and not stackable(one, replace(one, ball=ball))


@given(seeds, kinds)
@few
def test_bounds_over_boxes(seed: int, names: tuple[str, ...]) -> None:
    r.check_boxes(r.random_problem(seed, names), seed)


def test_boxes_of_no_width_give_the_value() -> None:
    problem = r.random_problem(5, RELUS)
    x = r.scaled_points(10, problem.n)
    z, m = problem.evaluate(x)
    found = box_bounds(problem, x, x)
    slack = 1e-12 * r.sizes(problem)
    assert (found.lower - m).abs().max() <= slack
    assert (found.z_lower <= z + slack).all() and (found.z_upper >= z - slack).all()
    assert (found.z_upper - found.z_lower).max() <= 100 * slack


forms = st.tuples(seeds, st.integers(1, 4), st.integers(1, 4))


def draw_forms(seed: int, rows: int, inputs: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random rows over boxes: some reach zero, some exclude it, some do not depend on an input."""
    random = torch.Generator().manual_seed(seed)
    a = torch.randn(6, rows, inputs, generator=random, dtype=torch.float64)
    a = a * (torch.rand(a.shape, generator=random) < 0.8)
    return torch.randn(6, rows, generator=random, dtype=torch.float64), a, torch.rand(6, inputs, generator=random, dtype=torch.float64)


def check_cut(middle: torch.Tensor, a: torch.Tensor, radius: torch.Tensor, seed: int) -> None:
    """No point of the polytope is cut off; `best` is below the largest row of every point, and positive where a single row is."""
    found = cutting.cut(middle, a, radius)
    d = r.scaled_points(500, a.shape[-1], seed).unsqueeze(1) * radius  # (M, N, n)
    rows = middle + torch.einsum("mnd,nrd->mnr", d, a)
    member = (rows <= 0).all(-1)
    room = EXACT * radius
    kept = ((d >= found.low - room) & (d <= found.high + room)).all(-1)
    assert kept[member].all()
    assert (rows.amax(-1) >= found.best - EXACT).all()
    single = (middle - (a.abs() @ radius.unsqueeze(-1)).squeeze(-1)).amax(1)
    assert (found.best > 0)[single > EXACT].all()
    assert (found.best <= 0)[member.any(0)].all()
    # along each row the limit is exact: the corner that the row likes most, with one coordinate at its limit, lies on the row
    assert (found.low >= -radius - room).all() and (found.high <= radius + room).all()


@given(forms)
@settings(max_examples=80)
@example((0, 1, 1))
def test_cuts_remove_no_point_of_the_polytope(drawn: tuple[int, int, int]) -> None:
    seed, rows, inputs = drawn
    check_cut(*draw_forms(seed, rows, inputs), seed)


@given(forms)
@fewer
def test_the_best_combination_is_below_the_largest_of_the_lp(drawn: tuple[int, int, int]) -> None:
    """max over weights of the minimum over the box = min over the box of the largest row (minimax), by HiGHS."""
    middle, a, radius = draw_forms(*drawn)
    best = cutting.cut(middle, a, radius).best
    for k in range(len(a)):
        inputs = a.shape[-1]
        less = np.hstack([a[k].numpy(), -np.ones((a.shape[1], 1))])
        cost = np.append(np.zeros(inputs), 1.0)
        around = [*((-v, v) for v in radius[k].tolist()), (None, None)]
        found = linprog(cost, less, -middle[k].numpy(), bounds=around, method="highs")
        assert float(best[k]) <= found.fun + SOLVER * (1 + abs(found.fun))


@given(seeds, st.sampled_from(["square", "sigmoid", "tanh"]), st.sampled_from([torch.float64, torch.float32]))
@settings(max_examples=60)
def test_planes_of_every_kind(seed: int, kind: str, dtype: torch.dtype) -> None:
    check_planes(seed, kind, dtype)


def check_planes(seed: int, kind: str, dtype: torch.dtype) -> None:
    """Lower plane <= s(z) <= upper plane on the whole interval, for intervals of every size and any alpha, squares up to the type's rounding."""
    random = torch.Generator().manual_seed(seed)
    center = 4 * torch.randn(200, generator=random, dtype=torch.float64)
    width = 10 ** (4 * torch.rand(200, generator=random, dtype=torch.float64) - 3)
    lower, upper = (center - width).to(dtype), (center + width).to(dtype)
    own = planes.kind_planes(kind, lower, upper, torch.rand(200, generator=random).to(dtype))
    low, low_off, up, up_off = (plane.double() for plane in own)
    z = lower.double() + torch.linspace(0, 1, 101, dtype=torch.float64).unsqueeze(1) * (upper.double() - lower.double())
    value, slack = activation(kind, z), (4 * torch.finfo(dtype).eps if kind == "square" else 1e-15) * (1 + z.abs().amax() ** 2)
    assert (low * z + low_off <= value + slack).all()
    assert (value <= up * z + up_off + slack).all()


@given(seeds)
@fewer
def test_relu_bounds_at_full_splits_are_exact(seed: int) -> None:
    """All neurons split by a point's own signs: the optimised bound reaches the LP, which has no relaxation left."""
    problem = r.random_problem(seed, (RELU, RELU), inputs=2, largest=3)
    drawn = r.draw_domains(problem, seed, 1)
    z, _ = problem.evaluate(r.scaled_points(1, problem.n, seed)[:1])
    split = torch.where(z >= 0, 1, -1).to(torch.int8).unsqueeze(0)
    own = r.Drawn(drawn.stack, drawn.rows, Domains(split), drawn.multipliers)
    truth = r.lp_minimum(own, 0)
    best, _, _ = optimise(own.stack, own.rows, own.domains, own.multipliers, Effort(0), torch.full((1, 1), torch.inf))
    better, _, _ = optimise(own.stack, own.rows, own.domains, own.multipliers, Effort(100, decay=0.97), torch.full((1, 1), torch.inf))
    assert float(best) <= float(better) <= truth + SOLVER * (1 + abs(truth))
    _, value = r.row_values(own, r.scaled_points(400, problem.n))
    member = r.in_domains(own, problem.evaluate(r.scaled_points(400, problem.n))[0])[0]
    assert not member.any() or truth <= float(value[0][member].min()) + SOLVER


def test_nan_is_never_a_bound() -> None:
    """A NaN anywhere in the numbers leaves a bound that no comparison calls proved."""
    problem = r.random_problem(3, RELUS)
    for name in ("A", "W", "b", "A_o", "W_o", "b_o"):
        part = getattr(problem, name).clone()
        part[(-1,) if part.dim() == 1 else (-1, 0)] = torch.nan
        drawn = r.draw_domains(replace(problem, **{name: part}), 3, 2)
        rows = Rows(drawn.stack.W_o, drawn.stack.A_o, drawn.stack.b_o)
        best, _, _ = optimise(drawn.stack, rows, drawn.domains, drawn.multipliers, Effort(3), torch.zeros_like(rows.bo))
        assert not (best[:, -1] > -torch.inf).any(), name
