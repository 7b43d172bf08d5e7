"""The battery of the reduced problem and of branch and bound can fail: each broken piece must turn at least one of its checks red."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from tests import mlp as nets
from tests import reductions as r
from tests.cases import CASES
from tests.mlp import near_truth, random_mlp
from tests.property.test_reduced_bounds import check_cut, check_planes, draw_forms
from tests.unit.test_bab import assert_true, by_input_splits, by_neuron_splits, by_relu_splits
from verifier.bab import cut as cutting
from verifier.bab import driver, input_split, neurons, work
from verifier.bab.budget import Deadline
from verifier.exact import highs
from verifier.reduced import bound, boxes, build, eliminate, planes, tighten
from verifier.reduced.bound import Effort
from verifier.reduced.problem import RELU

Patch = pytest.MonkeyPatch


def built(*names: str) -> None:
    """Rows, neurons and bounds of built problems."""
    for row in CASES:
        if row.name in names:
            graph = row.graph.to("cpu", torch.float64)
            for k in range(3):
                case = r.case_of(row, k)
                problem = build.build(graph, case)
                r.check_exact(graph, case, problem)
                r.check_neurons(graph, problem)


def smaller() -> None:
    """Tightened and restricted problems, and bounds over sub-boxes."""
    for seed in range(4):
        problem = r.random_problem(seed, (RELU, RELU, RELU))
        r.check_tightened(problem, eliminate.eliminate(tighten.tighten(problem, Effort(4), Deadline.after(1e9))))
        r.check_boxes(problem, seed)
        for k, _ in enumerate(problem.blocks):
            r.check_block_bounds(problem, k, r.bounds_by_rows(problem, k))


def eliminated() -> None:
    """A stable active and a stable inactive neuron leave without a trace."""
    for seed in range(4):
        problem = r.random_problem(seed, (RELU, RELU))
        b = problem.b.clone()
        b[0] += -problem.lower[0] + 0.1
        b[-1] -= problem.upper[-1] + 50.0
        shift = b - problem.b
        active = replace(problem, b=b, lower=problem.lower + shift, upper=problem.upper + shift)
        wide = problem.W[:, :1].abs() @ torch.ones(1, dtype=torch.float64) * (shift[0].abs() + problem.upper[0])
        lower, upper = active.lower - wide, active.upper + wide
        lower[0], upper[-1] = active.lower[0], -1.0
        r.check_tightened(active, eliminate.eliminate(replace(active, lower=torch.minimum(lower, upper), upper=upper)))


def bounded() -> None:
    """Bounds under random multipliers and splits, optimised or not, against points and LPs."""
    for seed in range(6):
        for kinds in ((RELU, RELU), (RELU, "tanh", "square"), ("sigmoid", RELU)):
            drawn = r.draw_domains(r.random_problem(seed, kinds), seed)
            lower = r.bound_at(drawn, drawn.multipliers.alpha, drawn.multipliers.beta).lower
            r.check_bound_below_points(drawn, lower)
            r.check_optimised(drawn, 4)


def curved() -> None:
    for kind in ("square", "sigmoid", "tanh"):
        check_planes(0, kind, torch.float64)


def cut_off() -> None:
    for seed in range(12):
        check_cut(*draw_forms(seed, 1 + seed % 3, 1 + seed % 4), seed)


def covered() -> None:
    for seed in range(4):
        for kinds in ((RELU, RELU), (RELU, "tanh")):
            r.check_children_cover(r.random_problem(seed, kinds), seed)


def solved(solve: Callable, seeds: int = 6) -> Callable[[], None]:
    """Verdicts against the MILP, a hair on either side of the truth."""

    def check() -> None:
        for seed in range(seeds):
            mlp = random_mlp(seed)
            for gap in (2e-3, -2e-3):
                assert_true(mlp, near_truth(mlp, seed, gap, rows=1 + seed % 2), gap > 0, solve)

    return check


def leaves() -> None:
    """With every neuron split, the LP is the largest row of a point of the leaf at most."""
    for seed in range(4):
        mlp = random_mlp(seed, (2, 4, 3, 2))
        problem = mlp.problem(near_truth(mlp, seed, 0.05, rows=2))
        z, m = problem.evaluate(r.scaled_points(200, problem.n))
        for signs in torch.where(z >= 0, 1, -1).to(torch.int8).unique(dim=0):
            member = ((signs * z) >= 0).all(1)
            assert highs.leaf_answer(problem, 0, signs).lower <= float(m[member].amax(1).min()) + 1e-6


def after(module: object, name: str, change: Callable) -> Callable[[Patch], None]:
    """`module.name` returns `change(what it returned)`."""

    def apply(patch: Patch) -> None:
        right = getattr(module, name)
        patch.setattr(module, name, lambda *args, **kwargs: change(right(*args, **kwargs)))

    return apply


def everywhere(name: str, change: Callable, *modules: object) -> Callable[[Patch], None]:
    """`name` returns `change(what it returned)` in every module that imported it."""

    def apply(patch: Patch) -> None:
        for module in modules:
            after(module, name, change)(patch)

    return apply


def beta_sign(patch: Patch) -> None:
    right = bound.backward

    def wrong(stack, rows, domains, own, beta, *rest):
        return right(stack, rows, domains, own, None if beta is None else -beta, *rest)

    patch.setattr(bound, "backward", wrong)


def no_bias(patch: Patch) -> None:
    """Affine operations lose their constant."""
    right = build._apply

    def wrong(builder, node, index, inputs):
        result = right(builder, node, index, inputs)
        if node.op in ("Linear", "Conv"):
            result, bias = result.clone(), node.constants["bias"]
            result[0] -= bias.view(-1, *(1,) * (result.dim() - 3)) if node.op == "Conv" else bias
        return result

    patch.setattr(build, "_apply", wrong)


def dropped_active(patch: Patch) -> None:
    """Active neurons leave without being substituted, as if they were dead."""
    right = eliminate.eliminate

    def wrong(problem):
        active = (problem.lower >= 0) & (problem.upper > 0)
        return right(replace(problem, W=problem.W * ~active, W_o=problem.W_o * ~active))

    for module in (eliminate, build, tighten, neurons):
        patch.setattr(module, "eliminate", wrong)


def swapped_rows(rows: bound.Rows) -> bound.Rows:
    """-z where +z is meant."""
    turn = lambda t: torch.cat([t[:, t.shape[1] // 2:], t[:, :t.shape[1] // 2]], 1)  # noqa: E731
    return bound.Rows(turn(rows.wo), turn(rows.ao), turn(rows.bo))


def one_sided(kids: work.Work) -> work.Work:
    """The second child repeats the first."""
    first = torch.arange(0, kids.row.shape[1], 2).repeat_interleave(2)
    return replace(kids, domains=kids.domains.take(first), multipliers=kids.multipliers.take(first))


def lost_half(halves: input_split.Boxes) -> input_split.Boxes:
    """Halves of boxes: the second ones are forgotten."""
    return halves.take(slice(len(halves) // 2))


def cut_more(found: cutting.Cut) -> cutting.Cut:
    return replace(found, low=0.99 * found.low + 0.01 * found.high, high=0.99 * found.high + 0.01 * found.low)


def lower_chord(chord: tuple) -> tuple:
    return chord[0], 0.99 * chord[1]


def wrong_spread(found: boxes.BoxBounds) -> boxes.BoxBounds:
    """Forms that are 1 % too high where they are positive."""
    return replace(found, middle=found.middle + 0.01 * found.middle.abs(), lower=found.lower + 0.01 * found.lower.abs())


def steeper(parts: tuple) -> tuple:
    return parts[0], parts[1] + 0.01, parts[2], parts[3] - 0.01


def half_of_the_activations(patch: Patch) -> None:
    """The intervals of activations are half as wide as they are."""
    right = build._Builder.activation_range

    def wrong(builder):
        low, high = right(builder)
        return low + (high - low) / 4, high - (high - low) / 4

    patch.setattr(build._Builder, "activation_range", wrong)


@dataclass(frozen=True)
class Sabotage:
    """What is broken, how, and the check that must see it."""

    name: str
    apply: Callable[[Patch], None]
    check: Callable[[], None]


def dense() -> None:
    built("dense, different widths", "dense, off centre", "residual, different widths")


def convolutional() -> None:
    built("convolutional, different widths")


SABOTAGE = [
    Sabotage("ReLU's upper plane 1 % too low, points and LPs", everywhere("relu_upper", lower_chord, planes, boxes), bounded),
    Sabotage("ReLU's upper plane 1 % too low, sub-boxes", everywhere("relu_upper", lower_chord, planes, boxes), smaller),
    Sabotage("other planes 0.01 too tight", after(planes, "kind_planes", steeper), curved),
    Sabotage("beta with the wrong sign", beta_sign, bounded),
    Sabotage("no bias, dense", no_bias, dense),
    Sabotage("no bias, convolutions", no_bias, convolutional),
    Sabotage("intervals too narrow while building", half_of_the_activations, dense),
    Sabotage("+z and -z exchanged", everywhere("neuron_rows", swapped_rows, tighten, bound), smaller),
    Sabotage("cuts take 1 % too much", everywhere("cut", cut_more, cutting, input_split), cut_off),
    Sabotage("children without their second side", everywhere("children", one_sided, work, driver, neurons), covered),
    Sabotage("active neurons dropped", dropped_active, eliminated),
    Sabotage("bounds over boxes 1 % too high", everywhere("box_bounds", wrong_spread, boxes, input_split), smaller),
]
VERDICTS = [
    Sabotage("children without their second side", everywhere("children", one_sided, work, driver, neurons), solved(by_relu_splits)),
    Sabotage("active neurons dropped", dropped_active, solved(by_neuron_splits)),
    Sabotage("boxes lose a half", everywhere("_halve", lost_half, input_split), solved(by_input_splits)),
    Sabotage("no bias", no_bias, solved(by_relu_splits, 3)),
    Sabotage("+z and -z exchanged", everywhere("neuron_rows", swapped_rows, tighten, bound), solved(by_neuron_splits)),
]


@pytest.mark.parametrize("check", [dense, convolutional, smaller, eliminated, bounded, curved, cut_off, covered, leaves], ids=lambda c: c.__name__)
def test_the_checks_are_green(check: Callable[[], None]) -> None:
    check()
    assert callable(check)


@pytest.mark.parametrize("row", SABOTAGE, ids=lambda row: row.name)
def test_a_sabotaged_law_is_red(row: Sabotage, monkeypatch: Patch) -> None:
    row.apply(monkeypatch)
    with pytest.raises(AssertionError):
        row.check()


@pytest.mark.parametrize("row", VERDICTS, ids=lambda row: row.name)
def test_a_sabotaged_verdict_is_red(row: Sabotage, monkeypatch: Patch) -> None:
    row.apply(monkeypatch)
    with pytest.raises(AssertionError):
        row.check()


def test_a_leaf_without_its_splits_is_red(monkeypatch: Patch) -> None:
    """Signs turned round before the LP: the leaf it solves is another one."""
    right = highs.leaf_answer
    monkeypatch.setattr(highs, "leaf_answer", lambda problem, polytope, split: right(problem, polytope, -split))
    with pytest.raises(AssertionError):
        leaves()


def test_a_wrong_truth_is_red() -> None:
    """A safe network called unsafe, and the other way round: the comparison itself can fail."""
    mlp = random_mlp(0)
    for gap in (0.05, -0.05):
        with pytest.raises(AssertionError):
            assert_true(mlp, near_truth(mlp, 0, gap), gap < 0, by_relu_splits)
    smallest, x = nets.smallest_margin(mlp, -np.ones(3), np.ones(3), near_truth(mlp, 0, 0.05).polytopes[0])
    sampled = np.random.default_rng(0).uniform(-1, 1, (20000, 3))
    margins = nets.margin(near_truth(mlp, 0, 0.05).polytopes[0], sampled, mlp(sampled))
    assert smallest <= margins.min() <= smallest + 0.5
    assert nets.margin(near_truth(mlp, 0, 0.05).polytopes[0], x[None], mlp(x[None]))[0] == pytest.approx(smallest, abs=1e-5)
