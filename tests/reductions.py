"""Reduced problems for tests, and the checks that tests and sabotage rows share: each asserts one law of reduced problems.

Random problems are drawn directly, without a network: they depend on no builder. Their bounds are plain intervals.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor

from tests import cases
from tests.tolerances import EXACT, SOLVER
from verifier.bab import work
from verifier.bab.domains import DomainBatch, pack_alpha, pack_beta
from verifier.graph.execute import execute, execute_all
from verifier.graph.ir import Graph
from verifier.reduced import bound, boxes, planes, tighten
from verifier.reduced.problem import RELU, InputMap, ReducedProblem, Stack, activation, blocks_of, stack
from verifier.spec.spec import Ball, Case, Polytope

DOUBLE = torch.float64


def specification(n_in: int, n_out: int, seed: int = 0) -> tuple[Polytope, ...]:
    """One row; two rows; one row that also reads inputs."""
    random = np.random.default_rng(seed)
    return (
        Polytope(random.normal(size=(1, n_out)), np.array([-0.3])),
        Polytope(random.normal(size=(2, n_out)), np.array([0.25, -0.5])),
        Polytope(random.normal(size=(1, n_out)), np.zeros(1), random.normal(size=(1, n_in))),
    )


def case_of(row: cases.Case, problem: int, norm: int | None = None, share: float = 1.0) -> Case:
    """One box of a row of the table as a case; with `norm`, in the ball around its centre whose radius is `share` of the longest half side."""
    lower, upper = (t[problem].flatten().numpy() for t in (row.box.lower, row.box.upper))
    n_out = int(np.prod(row.graph.output_shape))
    ball = None if norm is None else Ball((lower + upper) / 2, share * float((upper - lower).max() / 2), norm)
    return Case(lower, upper, specification(len(lower), n_out), ball)


def scaled_points(count: int, n: int, seed: int = 0) -> Tensor:
    """Points of [-1, 1]^n: uniform ones, corners and the centre."""
    random = torch.Generator().manual_seed(seed)
    share = 2 * torch.rand(count, n, generator=random, dtype=DOUBLE) - 1
    corners = torch.rand(count, n, generator=random, dtype=DOUBLE).round() * 2 - 1
    return torch.cat([share, corners, torch.zeros(1, n, dtype=DOUBLE)])


def rows_of_network(graph: Graph, case: Case, x: Tensor) -> Tensor:
    """output @ y + input @ x - offset of every row of every polytope at full inputs `x (K, n_in)`, `(K, S)`, by running the graph."""
    y = execute(graph, x.view(-1, *graph.input_shape)).flatten(1)
    values = []
    for polytope in case.polytopes:
        value = y @ torch.from_numpy(polytope.output).T - torch.from_numpy(polytope.offset)
        values.append(value if polytope.input is None else value + x @ torch.from_numpy(polytope.input).T)
    return torch.cat(values, 1)


def sizes(problem: ReducedProblem) -> float:
    """The largest number that the problem's rows sum up: what rounding is relative to."""
    reach = torch.cat([problem.lower.abs(), problem.upper.abs(), torch.ones(1, dtype=problem.b.dtype)]).max()
    parts = (problem.A, problem.W * reach, problem.b, problem.A_o, problem.W_o * reach, problem.b_o)
    return 1.0 + max((float(part.abs().sum(-1).max() if part.dim() == 2 else part.abs().max()) for part in parts if part.numel()), default=0.0)


def inside(case: Case, x: Tensor) -> Tensor:
    """Which scaled-back points lie in the ball, `(K,)`."""
    if case.ball is None:
        return torch.ones(len(x), dtype=torch.bool)
    return (x - torch.from_numpy(case.ball.center)).norm(p=case.ball.norm, dim=1) <= case.ball.radius


def check_exact(graph: Graph, case: Case, problem: ReducedProblem, count: int = 40) -> None:
    """On points of the problem's region its rows are the network's, and its neurons lie in their bounds."""
    x = scaled_points(count, problem.n)
    if problem.ball is not None:
        x = x * torch.linspace(0, 1, len(x), dtype=DOUBLE).unsqueeze(1)
    x = x[inside(case, problem.inputs.full(x))]
    assert len(x)
    full = problem.inputs.full(x)
    z, m = problem.evaluate(x)
    slack = EXACT * sizes(problem)
    assert (m - rows_of_network(graph, case, full)).abs().max() <= slack
    assert (z >= problem.lower - slack).all() and (z <= problem.upper + slack).all()
    check_shape(problem)


def check_neurons(graph: Graph, problem: ReducedProblem, count: int = 20) -> None:
    """`neuron` names the pre-activation that z is, where the activation itself became a neuron."""
    x = scaled_points(count, problem.n)
    z, _ = problem.evaluate(x)
    value = execute_all(graph, problem.inputs.full(x).view(-1, *graph.input_shape))
    for k, (index, flat) in enumerate(problem.neuron.tolist()):
        node = graph.nodes[index]
        if node.op in ("Relu", "Sigmoid", "Tanh"):
            assert (z[:, k] - value[node.inputs[0]].flatten(1)[:, flat]).abs().max() <= EXACT * sizes(problem)


def check_shape(problem: ReducedProblem) -> None:
    """W is strictly block-lower-triangular with the reach that the blocks say; blocks are consecutive; no stable ReLU is left."""
    position = 0
    for block in problem.blocks:
        assert block.start == position and block.reach <= block.start
        rows = problem.W[block.start:block.end]
        assert not rows[:, block.start:].any() and not rows[:, :block.reach].any()
        if block.kind == RELU:
            free = problem.split[block.start:block.end] == 0
            assert not (free & (problem.lower[block.start:block.end] >= 0)).any()
            assert not (free & (problem.upper[block.start:block.end] <= 0)).any()
        position = block.end
    assert position == problem.unstable == len(problem.neuron) == len(problem.split)


def random_problem(seed: int, kinds: Sequence[str] = (RELU, RELU), inputs: int = 3, rows: int = 2, largest: int = 4) -> ReducedProblem:
    """A problem in float64 of one block of 1 to `largest` neurons for each kind, bounded by intervals; every row is its own polytope."""
    random = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=random, dtype=DOUBLE)  # noqa: E731
    counts = [int(torch.randint(1, largest + 1, (1,), generator=random)) for _ in kinds]
    total = sum(counts)
    A, W, b = draw(total, inputs), draw(total, total) / 2, draw(total) / 2
    starts = np.repeat(np.cumsum([0, *counts[:-1]]), counts)
    W = W * (torch.arange(total)[None, :] < torch.from_numpy(starts)[:, None])
    blocks = blocks_of(counts, list(kinds), W)
    lower, upper = torch.zeros(total, dtype=DOUBLE), torch.zeros(total, dtype=DOUBLE)
    low, high = torch.zeros(total, dtype=DOUBLE), torch.zeros(total, dtype=DOUBLE)
    for block in blocks:
        at, positive, negative = slice(block.start, block.end), W.clamp(min=0), W.clamp(max=0)
        reach = A[at].abs().sum(1)
        # Every ReLU straddles zero, as in a reduced problem.
        b[at] = b[at] - (positive[at] @ (low + high) + negative[at] @ (low + high)) / 2
        lower[at] = b[at] + positive[at] @ low + negative[at] @ high - reach
        upper[at] = b[at] + positive[at] @ high + negative[at] @ low + reach
        if block.kind == RELU:
            shift = (0.9 * lower[at]).clamp(min=0) * 2 + (0.9 * upper[at]).clamp(max=0) * 2
            b[at], lower[at], upper[at] = b[at] - shift, lower[at] - shift, upper[at] - shift
        ends = torch.stack([activation(block.kind, lower[at]), activation(block.kind, upper[at])])
        turn = (lower[at] < 0) & (upper[at] > 0)
        low[at] = torch.where(turn & (block.kind == "square"), 0.0, ends.amin(0))
        high[at] = ends.amax(0)
    index = torch.arange(rows)
    region = InputMap(draw(inputs), draw(inputs).abs() + 0.1, torch.arange(inputs))
    return ReducedProblem(
        A=A, W=W, b=b, A_o=draw(rows, inputs), W_o=draw(rows, total), b_o=draw(rows), lower=lower, upper=upper, blocks=blocks,
        polytope=index, margin=torch.zeros(rows, dtype=DOUBLE), neuron=torch.stack([torch.arange(total)] * 2, 1),
        split=torch.zeros(total, dtype=torch.int8), inputs=region,
    )


@dataclass(frozen=True, slots=True)
class Drawn:
    """A stack of one problem with K random domains: what a bound is made from."""

    stack: Stack
    rows: bound.Rows
    domains: planes.Domains
    multipliers: bound.Multipliers


def draw_domains(problem: ReducedProblem, seed: int, count: int = 6) -> Drawn:
    """Random splits, slopes and multipliers; for kinds other than ReLU, cuts of the interval. The first domain is the whole region."""
    random = torch.Generator().manual_seed(seed)
    uniform = lambda *shape: torch.rand(*shape, generator=random, dtype=DOUBLE)  # noqa: E731
    single, u = stack([problem]), problem.unstable
    split = torch.where(uniform(1, count, u) < 0.5, 0, torch.where(uniform(1, count, u) < 0.5, 1, -1)).to(torch.int8)
    split[:, 0] = 0
    lower, upper = problem.lower.expand(1, count, u).clone(), problem.upper.expand(1, count, u).clone()
    point = lower + uniform(1, count, u) * (upper - lower)
    for block in problem.blocks:
        if block.kind == RELU:
            point[..., block.start:block.end] = 0
    lower, upper = torch.where(split > 0, point, lower), torch.where(split < 0, point, upper)
    domains = planes.Domains(split, *((None, None) if single.is_relu else (lower, upper)))
    row = torch.randint(0, len(problem.b_o), (1, count), generator=random)
    multipliers = bound.Multipliers(uniform(1, count, u), uniform(1, count, u) * (split != 0))
    return Drawn(single, work.spec_rows(single, row), domains, multipliers)


def bound_at(drawn: Drawn, alpha: Tensor, beta: Tensor) -> bound.Backward:
    own = planes.planes_at(drawn.stack, drawn.domains, planes.fixed_planes(drawn.stack, drawn.domains), alpha)
    return bound.backward(drawn.stack, drawn.rows, drawn.domains, own, beta)


def in_domains(drawn: Drawn, z: Tensor) -> Tensor:
    """Which points with neuron values `z (M, U)` lie in each domain, `(K, M)`."""
    split, z = drawn.domains.split[0].unsqueeze(1), z.unsqueeze(0)
    if drawn.domains.lower is None:
        return (split * z >= 0).all(-1)
    low, high = drawn.domains.lower[0].unsqueeze(1), drawn.domains.upper[0].unsqueeze(1)
    return ((split == 0) | ((z >= low) & (z <= high))).all(-1)


def row_values(drawn: Drawn, x: Tensor) -> tuple[Tensor, Tensor]:
    """z `(M, U)` and the drawn rows `(K, M)` at scaled inputs."""
    problem = drawn.stack.problems[0]
    z, _ = problem.evaluate(x)
    h = torch.empty_like(z)
    for block in problem.blocks:
        h[:, block.start:block.end] = activation(block.kind, z[:, block.start:block.end])
    return z, drawn.rows.wo[0] @ h.T + drawn.rows.ao[0] @ x.T + drawn.rows.bo[0].unsqueeze(-1)


def check_bound_below_points(drawn: Drawn, lower: Tensor, count: int = 400) -> int:
    """No point of a domain is below the bound `lower (1, K)` of its row. Returns how many points were compared."""
    x = scaled_points(count, drawn.stack.problems[0].n)
    z, value = row_values(drawn, x)
    member = in_domains(drawn, z)
    slack = EXACT * sizes(drawn.stack.problems[0])
    assert (value >= lower[0].unsqueeze(-1) - slack)[member].all()
    return int(member.sum())


def lp_minimum(drawn: Drawn, k: int) -> float:
    """min of row k over its domain with free ReLUs in their triangles, by HiGHS; infinite where that is empty. ReLU problems only.

    Variables x and h; z = A x + W h + b is substituted.
    """
    problem, split = drawn.stack.problems[0], drawn.domains.split[0, k].numpy()
    A, W, b, low, high = (t.numpy() for t in (problem.A, problem.W, problem.b, problem.lower, problem.upper))
    n, u = A.shape[1], len(b)
    z, h = np.hstack([A, W]), np.hstack([np.zeros((u, n)), np.eye(u)])
    less, limit, same, value = [], [], [], []
    for j in range(u):
        if split[j] > 0:
            same.append(h[j] - z[j]), value.append(b[j]), less.append(-z[j]), limit.append(b[j])
        elif split[j] < 0:
            same.append(h[j]), value.append(0.0), less.append(z[j]), limit.append(-b[j])
        else:
            slope = high[j] / (high[j] - low[j])
            less += [-h[j], z[j] - h[j], h[j] - slope * z[j]]
            limit += [0.0, -b[j], slope * (b[j] - low[j])]
    cost = torch.cat([drawn.rows.ao[0, k], drawn.rows.wo[0, k]]).numpy()
    around = [(-1, 1)] * n + [(None, None)] * u
    equal = (np.array(same), np.array(value)) if same else (None, None)
    found = linprog(cost, np.array(less), np.array(limit), *equal, around, method="highs")
    assert found.status in (0, 2), found.message
    return np.inf if found.status == 2 else float(found.fun + drawn.rows.bo[0, k])


def check_bound_below_lp(drawn: Drawn, lower: Tensor) -> None:
    """Whatever the multipliers, a bound never exceeds the LP over the same planes."""
    for k in range(drawn.rows.bo.shape[1]):
        best = lp_minimum(drawn, k)
        assert float(lower[0, k]) <= best + SOLVER * (1 + abs(best))


def check_optimised(drawn: Drawn, steps: int = 12) -> None:
    """Optimised bounds are bounds, and no worse than their start."""
    start = bound_at(drawn, drawn.multipliers.alpha, drawn.multipliers.beta).lower
    never = torch.full_like(drawn.rows.bo, torch.inf)
    best, multipliers, corner = bound.optimise(drawn.stack, drawn.rows, drawn.domains, drawn.multipliers, bound.Effort(steps), never)
    assert (best >= start - EXACT).all()
    assert torch.allclose(bound_at(drawn, multipliers.alpha, multipliers.beta).lower, best, rtol=0, atol=EXACT * sizes(drawn.stack.problems[0]))
    assert (multipliers.beta >= 0).all() and (multipliers.alpha >= 0).all() and (multipliers.alpha <= 1).all()
    assert (corner.abs() <= 1).all()
    check_bound_below_points(drawn, best)
    if drawn.stack.is_relu:
        check_bound_below_lp(drawn, best)


def check_boxes(problem: ReducedProblem, seed: int, count: int = 5) -> None:
    """Bounds over sub-boxes hold on their points: neurons, rows, and the rows' linear forms."""
    random = torch.Generator().manual_seed(seed)
    ends = 2 * torch.rand(2, count, problem.n, generator=random, dtype=DOUBLE) - 1
    lower, upper = ends.amin(0), ends.amax(0)
    found, slack = boxes.box_bounds(problem, lower, upper), EXACT * sizes(problem)
    for k in range(count):
        x = lower[k] + (scaled_points(60, problem.n, seed) + 1) / 2 * (upper[k] - lower[k])
        z, m = problem.evaluate(x)
        assert (z >= found.z_lower[k] - slack).all() and (z <= found.z_upper[k] + slack).all()
        form = found.middle[k] + (x - (lower[k] + upper[k]) / 2) @ found.a[k].T
        assert (m >= form - slack).all() and (form >= found.lower[k] - slack).all()


def open_domains(problem: ReducedProblem, seed: int, count: int = 4) -> DomainBatch:
    """Random domains as the frontier holds them."""
    drawn = draw_domains(problem, seed, count)
    row = torch.randint(0, len(problem.b_o), (count,), generator=torch.Generator().manual_seed(seed))
    cuts = (None, None) if drawn.domains.lower is None else (drawn.domains.lower[0], drawn.domains.upper[0])
    return DomainBatch(
        row, torch.full((count,), -torch.inf, dtype=DOUBLE), torch.zeros(count, dtype=torch.int16), drawn.domains.split[0],
        pack_alpha(drawn.multipliers.alpha[0]), pack_beta(drawn.multipliers.beta[0]), torch.arange(count), *cuts,
    )


def domain_members(problem: ReducedProblem, domains: planes.Domains, x: Tensor) -> Tensor:
    """Which scaled points lie in each of a single problem's domains, `(K, M)`."""
    k = domains.split.shape[1]
    blank = torch.zeros(1, k, dtype=torch.long)
    single = stack([problem])
    return in_domains(Drawn(single, work.spec_rows(single, blank), domains, None), problem.evaluate(x)[0])


def check_children_cover(problem: ReducedProblem, seed: int) -> None:
    """Every point of a domain lies in one of its two children, and every point of a child in its parent; splits only get tighter."""
    single = stack([problem])
    parents = work.load(single, [open_domains(problem, seed)])
    free = parents.domains.split[0] == 0
    if not single.is_relu:
        free = free | torch.tensor([block.kind != RELU for block in problem.blocks for _ in range(block.size)])
    usable = free.any(1)
    neuron = free.to(torch.uint8).argmax(1).unsqueeze(0)
    kids = work.children(single, parents, neuron)
    x = scaled_points(300, problem.n, seed)
    above, below = domain_members(problem, parents.domains, x), domain_members(problem, kids.domains, x)
    left, right = below[::2], below[1::2]
    assert (above <= (left | right))[usable].all()
    assert ((left | right) <= above)[usable].all()
    assert (kids.depth[0] == parents.depth[0].repeat_interleave(2) + 1).all()
    assert (kids.lower[0] == parents.lower[0].repeat_interleave(2)).all()


def check_tightened(problem: ReducedProblem, better: ReducedProblem, count: int = 200) -> None:
    """Two problems over one region agree on their rows, and the neurons that are left have valid bounds."""
    x = scaled_points(count, problem.n)
    (z, m), slack = better.evaluate(x), EXACT * sizes(problem)
    assert (m - problem.evaluate(x)[1]).abs().max() <= slack
    assert (z >= better.lower - slack).all() and (z <= better.upper + slack).all()
    check_shape(better)


def check_block_bounds(problem: ReducedProblem, block: int, bounds: tuple[Tensor, Tensor]) -> None:
    """Given bounds of one block's neurons hold on points."""
    own = problem.blocks[block]
    z = problem.evaluate(scaled_points(300, problem.n))[0][:, own.start:own.end]
    slack = EXACT * sizes(problem)
    assert (z >= bounds[0] - slack).all() and (z <= bounds[1] + slack).all()


def bounds_by_rows(problem: ReducedProblem, block: int, steps: int = 6) -> tuple[Tensor, Tensor]:
    """Bounds of a block's neurons from the rows +z and -z."""
    own = problem.blocks[block]
    found, _ = tighten.bound_rows(problem, tighten.neuron_rows(problem, own), bound.Effort(steps))
    return found[:own.size], -found[own.size:]


def relaxed(problem: ReducedProblem, factor: float) -> ReducedProblem:
    """The same problem with wider bounds."""
    grow = (factor - 1) * (problem.upper - problem.lower)
    return replace(problem, lower=problem.lower - grow, upper=problem.upper + grow)
