"""The search: it finds what is there, claims nothing that is not, and keeps to the region, the time and the seed."""
from __future__ import annotations

import csv
import time
from itertools import pairwise

import numpy as np
import pytest
import torch

from verifier.attack import pgd as module
from verifier.attack.confirm import confirm, replay_graph, replay_onnx
from verifier.attack.pgd import Candidate, pgd, polish
from verifier.attack.region import descent_step, project, region_of, sample
from verifier.bab.budget import Deadline
from verifier.config import AttackConfig
from verifier.graph.ir import Graph, Node
from verifier.spec.normal import load_vnnlib
from verifier.spec.spec import Ball, Case, Polytope

LITTLE = AttackConfig(restarts=4, steps=20)


@pytest.fixture(autouse=True)
def one_thread():
    """On cores that others use too, two threads on small tensors take ten times as long as one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def dense(*weights: np.ndarray, biases=None) -> Graph:
    """x -> W_k relu(... relu(W_1 x + b_1)) + b_k as a graph on `(1, n_in)`."""
    nodes = [Node("x", "Input", (), (1, weights[0].shape[1]))]
    for k, weight in enumerate(weights):
        bias = np.zeros(len(weight)) if biases is None else biases[k]
        if k:
            nodes.append(Node(f"r{k}", "Relu", (nodes[-1].name,), nodes[-1].shape))
        constants = {"weight": weight.astype(np.float32), "bias": bias.astype(np.float32)}
        nodes.append(Node(f"l{k}", "Linear", (nodes[-1].name,), (1, len(weight)), constants))
    return Graph(tuple(nodes), nodes[-1].name)


def random_graph(n_in: int, hidden: int, n_out: int, seed: int = 0) -> Graph:
    rng = np.random.default_rng(seed)
    sizes = [n_in, hidden, hidden, n_out]
    return dense(*(rng.normal(size=(b, a)) / np.sqrt(a) for a, b in pairwise(sizes)))


def at_least(j: int, bound: float, n_out: int) -> Polytope:
    """y_j >= bound."""
    return Polytope(-np.eye(n_out)[[j]], np.array([-bound]))


def cube(n: int, *polytopes: Polytope, low: float = -1, high: float = 1, ball: Ball | None = None) -> Case:
    return Case(np.full(n, float(low)), np.full(n, float(high)), polytopes, ball)


def found(graph: Graph, cases: list[Case], seconds: float = 20, seed: int = 0, config: AttackConfig | None = None) -> list[Candidate]:
    return list(pgd(graph, cases, config or AttackConfig(), seed, Deadline.after(seconds)))


def best_by_sampling(graph: Graph, case: Case, j: int) -> float:
    x = np.random.default_rng(1).uniform(case.lower, case.upper, (20_000, len(case.lower))).astype(np.float32)
    return max(float(replay_graph(graph)(row)[j]) for row in x[:2000])


def test_a_corner_that_sampling_does_not_see_is_found() -> None:
    """In 30 dimensions random points stay far below the maximum of y = sum |x_i|, which is 30 at the corners."""
    eye = np.eye(30)
    graph = dense(np.vstack([eye, -eye]), np.ones((1, 60)))
    case = cube(30, at_least(0, 29.99, 1))
    candidates = found(graph, [case])
    assert candidates and confirm(candidates[0].x, case, case.polytopes[0], replay_graph(graph)).margin >= 0


def test_nothing_is_claimed_where_nothing_is() -> None:
    eye = np.eye(3)
    graph = dense(np.vstack([eye, -eye]), np.ones((1, 6)))
    assert found(graph, [cube(3, at_least(0, 3.001, 1))], config=LITTLE) == []


def test_candidates_are_inside_and_violate_as_they_say() -> None:
    graph = random_graph(6, 20, 3)
    cases = [cube(6, at_least(0, 0.3, 3), low=-0.5, high=1), cube(6, at_least(1, 9e9, 3)), cube(6, at_least(2, 0.2, 3), low=0.1, high=0.1)]
    replay = replay_graph(graph)
    for candidate in found(graph, cases, config=LITTLE):
        case = cases[candidate.case]
        assert candidate.x.dtype == np.float32 and (case.lower <= candidate.x).all() and (candidate.x <= case.upper).all()
        y = replay(candidate.x)
        assert (case.polytopes[candidate.polytope].output @ y <= case.polytopes[candidate.polytope].offset + 1e-5).all()
        assert candidate.margin >= 0 and candidate.case == 0


def test_every_case_that_can_is_falsified_in_one_call() -> None:
    """Forty cases, half of them beyond reach: exactly the others are found."""
    graph = random_graph(4, 16, 2)
    reach = best_by_sampling(graph, cube(4), 0)
    cases = [cube(4, at_least(0, reach * 0.9 if k % 2 else 1e3, 2)) for k in range(40)]
    assert {c.case for c in found(graph, cases, config=LITTLE)} == {k for k in range(40) if k % 2}


def test_a_hundred_polytopes_and_only_the_last_is_reachable() -> None:
    graph = random_graph(40, 50, 2)
    far = [at_least(0, 1e3 + k, 2) for k in range(120)]
    case = cube(40, *far, at_least(1, 1.0, 2))
    begin = time.monotonic()
    candidates = found(graph, [case])
    assert [c.polytope for c in candidates][:1] == [120]
    assert time.monotonic() - begin < 10


def test_conjunctions_need_all_rows() -> None:
    """A square of side 4e-4 around the outputs of a hidden point: no sample hits it, descent on all rows together does."""
    graph = random_graph(4, 16, 2, seed=3)
    y = replay_graph(graph)(np.array([0.3, -0.7, 0.2, 0.6], np.float32)).astype(float)
    rows = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    thin = Polytope(rows, rows @ y + 2e-4)
    case = cube(4, thin)
    candidates = found(graph, [case])
    assert candidates and confirm(candidates[0].x, case, thin, replay_graph(graph)) is not None


def test_polytopes_of_different_heights_and_input_rows() -> None:
    """y0 = |x0|: y0 >= 0.5 and x0 + x1 <= -1.4 needs the negative side; the padding must not weaken the taller polytope."""
    graph = dense(np.array([[1.0, 0.0], [-1.0, 0.0]]), np.ones((1, 2)))
    mixed = Polytope(np.array([[-1.0], [0.0]]), np.array([-0.5, -1.4]), np.array([[0.0, 0.0], [1.0, 1.0]]))
    case = cube(2, at_least(0, 2.0, 1), mixed)
    candidates = found(graph, [case])
    assert {c.polytope for c in candidates} == {1}
    assert confirm(candidates[-1].x, case, mixed, replay_graph(graph)) is not None


def test_dead_units_do_not_hide_a_counterexample() -> None:
    """y = relu(sum x - 35) of 40 inputs in [-1, 1] is flat at zero nearly everywhere: only the leaky gradient leads to the corner."""
    graph = dense(np.ones((1, 40)), np.ones((1, 1)), biases=[np.array([-35.0]), np.zeros(1)])
    assert found(graph, [cube(40, at_least(0, 4.0, 1))])


def test_a_constant_network_is_no_error() -> None:
    graph = dense(np.zeros((2, 3)), biases=[np.array([1.0, 2.0])])
    assert found(graph, [cube(3, at_least(0, 1.5, 2))]) == []
    assert found(graph, [cube(3, at_least(1, 1.5, 2))])


@pytest.mark.parametrize(("norm", "reach"), [(2, np.sqrt(12) * 0.5), (1, 0.5)])
def test_balls_bound_the_reach(norm: int, reach: float) -> None:
    """max of sum x over ||x||_p <= 0.5 in 12 dimensions is 0.5 sqrt(12) and 0.5: found just below, not above."""
    graph = dense(np.ones((1, 12)))
    ball = Ball(np.zeros(12), 0.5, norm)
    below, above = (cube(12, at_least(0, reach * factor, 1), low=-0.5, high=0.5, ball=ball) for factor in (0.98, 1.001))
    candidates = found(graph, [below])
    assert candidates and confirm(candidates[0].x, below, below.polytopes[0], replay_graph(graph)) is not None
    assert not any(confirm(c.x, above, above.polytopes[0], replay_graph(graph)) for c in found(graph, [above], config=LITTLE))


@pytest.mark.parametrize("norm", [0, 1, 2])
def test_samples_projections_and_steps_stay_in_the_region(norm: int) -> None:
    ball = Ball(np.full(6, 0.2), 0.4, norm) if norm else None
    region = region_of([cube(6, low=0, high=1, ball=ball)] * 2, "cpu", torch.float64)
    which = torch.tensor([0, 1] * 50)
    x = sample(region, which, torch.Generator().manual_seed(0))
    for _ in range(3):
        assert bool(((x >= 0) & (x <= 1)).all())
        assert not norm or float((x - 0.2).norm(p=norm, dim=1).max()) <= 0.4 + 1e-9
        gradient = torch.randn(100, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        step = descent_step(region, which, gradient, torch.full((100,), 0.5, dtype=torch.float64))
        assert bool(((step * gradient).sum(1) < 0).all())
        x = project(region, which, x + step)


def test_equal_seeds_give_equal_searches_and_calls_do_not_disturb_each_other() -> None:
    graph = random_graph(5, 12, 2)
    cases = [cube(5, at_least(0, best_by_sampling(graph, cube(5), 0) * 0.98, 2))]
    alone = [c.x.tolist() for c in found(graph, cases, seed=7)]
    first, second = pgd(graph, cases, AttackConfig(), 7, Deadline.after(20)), pgd(graph, cases, AttackConfig(), 7, Deadline.after(20))
    both = [(a.x.tolist(), b.x.tolist()) for a, b in zip(first, second)]
    assert alone and [a for a, _ in both] == alone == [b for _, b in both]


def test_the_deadline_holds() -> None:
    graph = random_graph(50, 200, 10)
    case = cube(50, *(at_least(j, 1e6, 10) for j in range(10)))
    config = AttackConfig(restarts=1000, steps=300)
    list(pgd(graph, [case], AttackConfig(1, 1), 0, Deadline.after(1)))
    for seconds in (0.0, 0.3):
        begin = time.monotonic()
        assert found(graph, [case], seconds, config=config) == []
        assert time.monotonic() - begin < seconds + 1.0


def test_effort_ends_by_itself() -> None:
    begin = time.monotonic()
    assert found(random_graph(3, 5, 1), [cube(3, at_least(0, 1e6, 1))], 600, config=AttackConfig(restarts=3, steps=5)) == []
    assert time.monotonic() - begin < 30


def test_no_cases_and_no_polytopes_end_at_once() -> None:
    graph = random_graph(3, 5, 1)
    assert found(graph, []) == [] == found(graph, [cube(3)])
    assert list(polish(graph, [cube(3)], [], 5, Deadline.after(5))) == []


def test_small_passes_change_nothing_that_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = random_graph(4, 16, 2)
    reach = best_by_sampling(graph, cube(4), 0)
    cases = [cube(4, at_least(1, 1e3, 2), at_least(0, reach * (0.9 if k % 2 else 100), 2)) for k in range(6)]
    monkeypatch.setattr(module, "ELEMENTS_CPU", 300)
    monkeypatch.setattr(module, "MAX_SAMPLES", 60)
    assert {(c.case, c.polytope) for c in found(graph, cases, config=LITTLE)} == {(k, 1) for k in (1, 3, 5)}


def test_polish_leads_a_near_miss_into_the_polytope() -> None:
    graph = random_graph(5, 12, 2)
    start = np.full(5, 0.3, np.float32)
    y = float(replay_graph(graph)(start)[0])
    case = cube(5, at_least(1, 1e6, 2), at_least(0, y + 0.02, 2))
    starts = [Candidate(0, 0, start), Candidate(0, 1, start)]
    assert list(polish(graph, [case], starts, 0, Deadline.after(5))) == []
    candidates = list(polish(graph, [case], starts, 20, Deadline.after(5)))
    assert candidates and all(c.polytope == 1 for c in candidates)
    assert np.abs(candidates[0].x - start).max() < 0.5


def test_polish_judges_a_start_that_is_a_candidate_already() -> None:
    graph = dense(np.ones((1, 2)))
    case = cube(2, at_least(0, 1.5, 1))
    (candidate,) = polish(graph, [case], [Candidate(0, 0, np.array([3.0, 0.75], np.float32))], 0, Deadline.after(5))
    assert candidate.x.tolist() == [1.0, 0.75] and candidate.margin == pytest.approx(0.25)


def _sat_rows(shared):
    with (shared / "vnncomp" / "instances.csv").open() as lines:
        return [row for row in csv.DictReader(lines) if row["expected"] == "sat"]


def test_public_sat_instances_are_falsified(shared) -> None:
    """Every public instance with expected verdict sat, confirmed by onnxruntime; half a second each is usual."""
    from verifier.graph.onnx_load import load_onnx

    missed, rows = [], _sat_rows(shared)
    for row in rows:
        path = shared / "vnncomp" / row["onnx"]
        spec = load_vnnlib(shared / "vnncomp" / row["vnnlib"])
        replay = replay_onnx(path)
        candidates = pgd(load_onnx(path), spec.cases, AttackConfig(), 0, Deadline.after(30))
        if not any(confirm(c.x, spec.cases[c.case], spec.cases[c.case].polytopes[c.polytope], replay) for c in candidates):
            missed.append(row["vnnlib"])
    assert len(rows) > 20 and missed == []
