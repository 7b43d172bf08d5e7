"""Branch and bound: cover, bookkeeping, memory, and verdicts against the truth by MILP."""
from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch

from tests import mlp as nets
from tests import reductions as r
from tests.mlp import Mlp, near_truth, random_mlp, smallest_margin
from verifier.bab import driver, input_split
from verifier.bab.budget import Deadline, Progress
from verifier.bab.domains import pack_alpha, pack_beta, unpack_alpha
from verifier.bab.driver import LeafAnswer, Oracle, Search, advance, start
from verifier.bab.input_split import InputSplitConfig, advance_boxes, input_search
from verifier.bab.log import Log
from verifier.bab.neurons import split_block, split_neurons
from verifier.bab.work import load, unload
from verifier.config import BabConfig
from verifier.exact.highs import leaf_answer
from verifier.reduced.bound import Effort
from verifier.reduced.build import build
from verifier.reduced.problem import RELU, Block, ReducedProblem, stack
from verifier.spec.spec import Case, Polytope

LONG = Deadline.after(1e9)
ROOM = 5e-5  # what leaf programs give away for the tolerance of HiGHS, at numbers of size ten
SMALL = BabConfig(batch=32, steps=3, candidates=3)
KINDS = [(RELU,), (RELU, RELU, RELU), ("tanh", RELU), ("square",), (RELU, "sigmoid", "square")]


@pytest.mark.parametrize("kinds", KINDS, ids=" ".join)
@pytest.mark.parametrize("seed", range(6))
def test_children_cover_their_parent(kinds: tuple[str, ...], seed: int) -> None:
    r.check_children_cover(r.random_problem(seed, kinds), seed)


@pytest.mark.parametrize("seed", range(4))
def test_domains_survive_the_frontier(seed: int) -> None:
    """Loaded into a stack of problems of different sizes and unloaded again, domains are what they were."""
    problems = [r.random_problem(seed + k, (RELU, "tanh"), inputs=2 + k) for k in range(3)]
    together = stack(problems)
    batches = [replace(r.open_domains(problem, seed + k, 2 + k), id=10 * k + torch.arange(2 + k)) for k, problem in enumerate(problems)]
    work = load(together, batches)
    assert work.count == (2, 3, 4)
    for p, batch in enumerate(batches):
        back = unload(together, work, p, torch.arange(len(batch)))
        assert all(torch.equal(a, b) for a, b in zip(back.arrays(), batch.arrays()))


def test_packed_multipliers_stay_in_range() -> None:
    """Whatever rounding does, alpha stays in [0, 1] and beta finite and non-negative."""
    alpha = torch.cat([torch.rand(1000, dtype=torch.float64), torch.tensor([0.0, 1.0, 1e-12, 1 - 1e-12])])
    back = unpack_alpha(pack_alpha(alpha), torch.float32)
    assert (back >= 0).all() and (back <= 1).all() and (back - alpha).abs().max() <= 0.5 / 255 + 1e-6
    beta = pack_beta(torch.tensor([0.0, 1e-9, 1.0, 1e5, 1e30]))
    assert torch.isfinite(beta).all() and (beta >= 0).all() and beta[2] == 1


# --- verdicts against the truth ----------------------------------------------------------------------------------------------------


@dataclass
class Gate:
    """Confirms what plain numpy confirms, to 1e-9; remembers."""

    mlp: Mlp
    cases: list[Case]
    found: dict[int, np.ndarray] = field(default_factory=dict)
    offered: int = 0

    def __call__(self, key: int, polytope: int, x: torch.Tensor) -> bool:
        self.offered += len(x)
        case, x = self.cases[key], x.numpy()
        assert ((x >= case.lower - 1e-9) & (x <= case.upper + 1e-9)).all()
        hits = nets.margin(case.polytopes[polytope], x, self.mlp(x)) <= 1e-9
        if hits.any():
            self.found[key] = x[hits][0]
        return bool(hits.any())


def by_relu_splits(problem: ReducedProblem, oracle: Oracle, key: int = 0) -> Search:
    search = Search(key, problem)
    start(search, Effort(4))
    advance([search], SMALL, oracle, Deadline.after(30))
    return search


def by_input_splits(problem: ReducedProblem, oracle: Oracle) -> input_split.InputSearch:
    search = input_search(0, problem)
    advance_boxes(search, InputSplitConfig(batch=64), oracle, Deadline.after(30))
    return search


def by_neuron_splits(problem: ReducedProblem, oracle: Oracle) -> Search:
    return by_relu_splits(split_neurons(problem, SMALL, 0.05, LONG, Log(problem)), oracle)


def assert_true(mlp: Mlp, case: Case, safe: bool, solve) -> None:
    """The search ends with the truth, its counterexample is one, and the root is open (there was something to do)."""
    gate = Gate(mlp, [case])
    search = solve(mlp.problem(case), Oracle(gate, leaf_answer))
    assert (search.proved, search.falsified, search.stuck) == (safe, not safe, False)
    assert (0 in gate.found) == (not safe)


SOLVERS = {"relu": by_relu_splits, "inputs": by_input_splits, "neurons": by_neuron_splits}


@pytest.mark.parametrize("solve", SOLVERS.values(), ids=SOLVERS.keys())
@pytest.mark.parametrize("gap", [0.05, -0.05, 1e-3, -1e-3])
def test_verdicts_are_true(solve, gap: float) -> None:
    """26 networks a gap (8 where neurons are split): safe ones are proved, unsafe ones falsified, whether by much or by little."""
    for seed in range(8 if solve is by_neuron_splits else 26):
        mlp = random_mlp(seed, (3, 6, 5, 2) if seed % 2 else (2, 4, 4, 3, 2))
        assert_true(mlp, near_truth(mlp, seed, gap), gap > 0, solve)


@pytest.mark.parametrize("solve", [by_relu_splits, by_neuron_splits], ids=["relu", "neurons"])
@pytest.mark.parametrize("gap", [0.02, -0.02])
def test_verdicts_of_conjunctions_are_true(solve, gap: float) -> None:
    """Polytopes of two rows: one row alone may never be positive everywhere."""
    for seed in range(8 if solve is by_neuron_splits else 20):
        mlp = random_mlp(100 + seed, (3, 5, 4, 2))
        assert_true(mlp, near_truth(mlp, seed, gap, rows=2), gap > 0, solve)


@pytest.mark.parametrize("gap", [0.02, -0.02])
def test_conjunctions_by_input_splits(gap: float) -> None:
    for seed in range(20):
        mlp = random_mlp(100 + seed, (3, 5, 4, 2))
        assert_true(mlp, near_truth(mlp, seed, gap, rows=2), gap > 0, by_input_splits)


def at_the_truth(mlp: Mlp, case: Case, gap: float) -> Case:
    """The case whose first polytope is reached by exactly `-gap > 0`, at a point that the LP of its activation pattern polishes."""
    problem, polytope = mlp.problem(case), case.polytopes[0]
    _, x = smallest_margin(mlp, case.lower, case.upper, polytope)
    scaled = torch.from_numpy((x[problem.inputs.free] - problem.inputs.center.numpy()) / problem.inputs.radius.numpy()).clamp(-1, 1)
    z, _ = problem.evaluate(scaled.unsqueeze(0))
    best = leaf_answer(problem, 0, torch.where(z[0] >= 0, 1, -1).to(torch.int8)).x
    best = scaled if best is None else best  # a proved leaf shows no point
    x = problem.inputs.full(best.unsqueeze(0)).numpy().clip(case.lower, case.upper)
    moved = replace(case, polytopes=(nets.shifted(polytope, float(nets.margin(polytope, x, mlp(x))[0]) - gap),))
    assert nets.margin(moved.polytopes[0], x, mlp(x))[0] <= 0
    return moved


@pytest.mark.parametrize("solve", SOLVERS.values(), ids=SOLVERS.keys())
@pytest.mark.parametrize("gap", [-1e-7, -1e-9])
def test_nothing_within_a_billionth_of_the_truth_is_proved(solve, gap: float) -> None:
    """Unsafe by a billionth, every candidate refused: rounding and the tolerances of the LP must not close the gap."""
    for seed in range(8):
        mlp = random_mlp(seed, (3, 6, 5, 2) if seed % 2 else (2, 4, 4, 3, 2))
        case = at_the_truth(mlp, near_truth(mlp, seed, 0.0, rows=1 + seed % 2), gap)
        assert not solve(mlp.problem(case), Oracle(refuse, leaf_answer)).proved


@pytest.mark.parametrize("gap", [0.0, -1e-6])
def test_nothing_that_float32_rounding_hides_is_proved(gap: float) -> None:
    """The same over 24 inputs in single precision, at sizes where a float32 is right to 1e-7."""
    for seed in range(8):
        mlp = random_mlp(seed, (24, 6, 6, 2))
        random = np.random.default_rng(seed)
        lower = random.normal(size=24) / 2
        case = at_the_truth(mlp, Case(lower, lower + 0.2, (Polytope(random.normal(size=(1, 2)), np.zeros(1)),)), gap)
        problem = build(mlp.graph().to("cpu", torch.float32), case)
        assert problem.A.dtype == torch.float32
        assert not by_relu_splits(problem, Oracle(refuse, leaf_answer)).proved


def test_the_work_is_real() -> None:
    """Most of these networks are not decided at the root: branch and bound is what decides them."""
    open_roots = 0
    for seed in range(20):
        mlp = random_mlp(seed)
        search = Search(0, mlp.problem(near_truth(mlp, seed, 1e-3)))
        start(search, Effort(4))
        open_roots += not search.decided
    assert open_roots >= 12


@pytest.mark.parametrize("gap", [0.02, -0.02])
def test_a_conjunction_whose_best_row_has_no_neurons(gap: float) -> None:
    """The row that stands for the polytope depends on no neuron, so no split improves it: other rows' neurons must be split all the same."""
    for seed in range(6):
        mlp = random_mlp(200 + seed, (3, 6, 5, 1))
        lower, upper = -np.ones(3), np.ones(3)
        rows = Polytope(np.array([[0.0], [1.0]]), np.array([0.2, 0.0]), np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))
        high = float(np.max(mlp(np.random.default_rng(seed).uniform(lower, upper, (200, 3)))))
        rows = replace(rows, offset=np.array([0.2, high - 1]))
        smallest, _ = smallest_margin(mlp, lower, upper, rows)
        assert_true(mlp, Case(lower, upper, (nets.shifted(rows, smallest - gap),)), gap > 0, by_relu_splits)


def test_several_polytopes_are_all_proved_or_one_is_reached() -> None:
    """A search over three polytopes: proved only if all are unreachable."""
    for seed in range(10):
        mlp = random_mlp(seed)
        safe, other = near_truth(mlp, seed, 0.02), near_truth(mlp, seed, -0.02)
        polytopes = (safe.polytopes[0], nets.shifted(safe.polytopes[0], -0.01))
        assert_true(mlp, Case(safe.lower, safe.upper, polytopes), True, by_relu_splits)
        assert_true(mlp, Case(safe.lower, safe.upper, (*polytopes, other.polytopes[0])), False, by_relu_splits)


@pytest.mark.parametrize("seed", range(8))
def test_bounds_of_neurons_by_splitting_hold_and_help(seed: int) -> None:
    """Branch and bound on one block: valid on points, no looser than before, and the exact minimum where it ends."""
    mlp = random_mlp(seed, (3, 6, 5, 2))
    problem = mlp.problem(near_truth(mlp, seed, 0.02))
    k = next(k for k, block in enumerate(problem.blocks) if block.start and block.size)
    better, block = split_block(problem, k, SMALL, Deadline.after(10), Log(problem)), problem.blocks[k]
    at = slice(block.start, block.end)
    r.check_block_bounds(problem, k, (better.lower[at], better.upper[at]))
    assert (better.lower >= problem.lower).all() and (better.upper <= problem.upper).all()
    none = split_block(problem, k, SMALL, Deadline.after(-1), Log(problem))
    assert (none.lower[at] >= problem.lower[at]).all()
    r.check_block_bounds(problem, k, (none.lower[at], none.upper[at]))


def test_many_problems_together_get_what_each_gets_alone() -> None:
    """Nine properties of one network in one call, safe and unsafe mixed, with their own frontiers and verdicts."""
    mlp = random_mlp(3, (3, 8, 6, 2))
    gaps = [0.02, -0.02, 0.005, -0.005, 0.1, -0.1, 0.001, 0.01, -0.001]
    cases = [near_truth(mlp, seed, gap) for seed, gap in enumerate(gaps)]
    gate = Gate(mlp, cases)
    searches = [Search(k, mlp.problem(case)) for k, case in enumerate(cases)]
    for search in searches:
        start(search, Effort(4))
    advance(searches, SMALL, Oracle(gate, leaf_answer), Deadline.after(60))
    assert [search.proved for search in searches] == [gap > 0 for gap in gaps]
    assert sorted(gate.found) == [k for k, gap in enumerate(gaps) if gap < 0]
    for k, search in enumerate(searches):
        alone = by_relu_splits(mlp.problem(cases[k]), Oracle(gate, leaf_answer), k)
        assert (alone.proved, alone.falsified) == (search.proved, search.falsified)


# --- the driver against a script ---------------------------------------------------------------------------------------------------


def open_problem() -> ReducedProblem:
    """limit - sum_j |<a_j, x>| over 16 inputs: safe by 1e-3 (the maximum of a convex function is at a corner), and far from proved for long."""
    random = torch.Generator().manual_seed(0)
    half = torch.randn(30, 16, generator=random, dtype=torch.float64)
    corners = 2.0 * (torch.arange(2**16).unsqueeze(1) >> torch.arange(16) & 1).double() - 1
    limit = (corners @ half.T).abs().sum(1).max() + 1e-3
    A, reach = torch.cat([half, -half]), half.abs().sum(1).repeat(2)
    blank = r.random_problem(0, (RELU,), inputs=16, rows=1)
    return replace(
        blank, A=A, W=torch.zeros(60, 60).double(), b=torch.zeros(60).double(), lower=-reach, upper=reach, blocks=(Block(0, 60, RELU),),
        A_o=torch.zeros(1, 16).double(), W_o=-torch.ones(1, 60).double(), b_o=limit.view(1), split=torch.zeros(60, dtype=torch.int8),
        neuron=torch.zeros(60, 2, dtype=torch.int64),
    )


def refuse(key: int, polytope: int, x: torch.Tensor) -> bool:
    return False


def undecided(problem: ReducedProblem, polytope: int, split: torch.Tensor) -> LeafAnswer:
    return LeafAnswer(-float("inf"))


def test_a_scripted_engine_drives_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds that a script dictates: a domain is proved when three of its neurons are split. The driver needs nothing else of the engine."""
    seen = []

    def scripted(shared, rows, domains, begin, effort, target):
        depth = (domains.split != 0).sum(-1)
        seen.append(int(depth.max()))
        return torch.where(depth >= 3, target + 1.0, target - 1.0), begin, torch.zeros_like(rows.ao)

    monkeypatch.setattr(driver, "optimise", scripted)
    problem = replace(r.random_problem(0, (RELU, RELU), rows=1, largest=8), margin=torch.full((1,), 1e-3, dtype=torch.float64))
    problem = replace(problem, b_o=problem.b_o + 1e3)  # no corner of a bound looks like a counterexample
    assert problem.unstable >= 4
    search, told = Search(7, problem), []
    start(search, Effort(0))
    assert len(search.frontier) == 1 and not search.decided
    advance([search], SMALL, Oracle(refuse, undecided), LONG, told.append)
    assert search.proved and not search.stuck
    assert max(seen) == 3 and search.closed == 8 and search.volume == pytest.approx(1.0)
    assert search.domains == 1 + 2 + 4 + 8
    assert [type(p) for p in told] == [Progress] * len(told) and told[-1].open_domains == 0 and told[-1].closed_domains == 8


def test_leaves_are_decided_by_the_oracle() -> None:
    """Without neurons to split the leaf decides: a positive bound proves, a confirmed point falsifies, neither leaves the search stuck."""
    mlp = random_mlp(0, (2, 3))
    center = float(mlp(np.zeros((1, 2)))[0, 0])
    case = Case(-np.ones(2), np.ones(2), (Polytope(np.array([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]]), np.array([center, -center])),))
    problem = mlp.problem(case)
    assert problem.unstable == 0
    asked = []

    def leaf(answer: LeafAnswer):
        def own(p: ReducedProblem, polytope: int, split: torch.Tensor) -> LeafAnswer:
            asked.append((polytope, tuple(split.shape)))
            return answer

        return own

    x = torch.tensor([0.25, -0.5], dtype=torch.float64)
    proof = np.full(2, 0.5), np.zeros(0)
    script = [(LeafAnswer(1.0, proof=proof), refuse, "proved"), (LeafAnswer(1.0), refuse, "stuck"), (LeafAnswer(-1.0), refuse, "stuck"),
              (LeafAnswer(-1.0, x), refuse, "stuck"), (LeafAnswer(-1.0, x), lambda *a: True, "falsified"), (LeafAnswer(0.0), refuse, "stuck")]
    for answer, offer, outcome in script:
        search = Search(0, problem)
        start(search, Effort(0))
        advance([search], SMALL, Oracle(offer, leaf(answer)), Deadline.after(5))
        assert {name for name in ("proved", "stuck", "falsified") if getattr(search, name)} == {outcome}
    assert asked == [(0, (0,))] * len(script)


@pytest.mark.parametrize("seed", range(10))
def test_leaf_programs_are_exact(seed: int) -> None:
    """With every neuron split the LP is the truth on its region; free neurons give a lower bound; empty leaves are infinite."""
    mlp = random_mlp(seed, (2, 4, 3, 2))
    problem = mlp.problem(near_truth(mlp, seed, 0.05, rows=2))
    z, m = problem.evaluate(r.scaled_points(400, problem.n, seed))
    worst = m.amax(1)
    for signs in torch.where(z >= 0, 1, -1).to(torch.int8).unique(dim=0):
        member = ((signs * z) >= 0).all(1)
        answer = leaf_answer(problem, 0, signs)
        assert answer.lower <= float(worst[member].min()) + 1e-6
        if answer.x is None:  # proved, and nothing to show
            assert answer.lower > 0
            continue
        z_at, m_at = problem.evaluate(answer.x.unsqueeze(0))
        assert float(m_at.max()) == pytest.approx(answer.lower, abs=ROOM) and ((signs * z_at) >= -1e-6).all()
    free = leaf_answer(problem, 0, torch.zeros(problem.unstable, dtype=torch.int8))
    smallest, _ = smallest_margin(mlp, *((c.numpy()) for c in exact_box(problem)), near_truth(mlp, seed, 0.05, rows=2).polytopes[0])
    assert free.lower <= smallest + 1e-5  # integers of a MILP are integers to within 1e-6, times the sizes of the big-M rows


def exact_box(problem: ReducedProblem) -> tuple[torch.Tensor, torch.Tensor]:
    center, radius = problem.inputs.center, problem.inputs.radius
    return center - radius, center + radius


def test_leaves_with_bounds_of_one_sign_or_nan_prove_nothing_false() -> None:
    """A stable neuron that was not eliminated keeps a triangle; numbers that are not finite, and other kinds, leave the leaf open."""
    problem = replace(
        r.random_problem(0, (RELU,), rows=1, largest=1), A=torch.eye(1, 3).double(), b=torch.tensor([3.0]).double(),
        lower=torch.tensor([2.0]).double(), upper=torch.tensor([4.0]).double(), W_o=torch.ones(1, 1).double(), A_o=torch.zeros(1, 3).double(),
        b_o=torch.tensor([-2.5]).double(),
    )
    split = torch.zeros(1, dtype=torch.int8)
    assert leaf_answer(problem, 0, split).lower == pytest.approx(-0.5, abs=ROOM)
    off = replace(problem, A=-problem.A, b=-problem.b, lower=-problem.upper, upper=-problem.lower)
    assert leaf_answer(off, 0, split).lower == pytest.approx(-2.5, abs=ROOM)
    assert leaf_answer(replace(problem, b=problem.b * torch.nan), 0, split).lower == -np.inf
    assert leaf_answer(r.random_problem(0, ("tanh",)), 0, torch.zeros(4, dtype=torch.int8)).lower == -np.inf


def test_the_deadline_is_respected_by_relu_splits() -> None:
    """The search stops within a second of the deadline, keeps what is open, and goes on from there."""
    search = Search(0, open_problem())
    start(search, Effort(2))
    begin = time.monotonic()
    advance([search], BabConfig(), Oracle(refuse, undecided), Deadline.after(0.5))
    assert time.monotonic() - begin < 1.5
    assert not search.decided and len(search.frontier) and search.lower_bound() <= 0
    before = search.domains
    advance([search], BabConfig(), Oracle(refuse, undecided), Deadline.after(0.2))
    assert search.domains > before


def test_the_deadline_is_respected_by_input_splits() -> None:
    search = input_search(0, open_problem())
    begin = time.monotonic()
    advance_boxes(search, InputSplitConfig(), Oracle(refuse, undecided), Deadline.after(0.5))
    assert time.monotonic() - begin < 1.5
    assert not search.decided and search.open_boxes() and search.lowest <= 0
    before = search.domains
    advance_boxes(search, InputSplitConfig(), Oracle(refuse, undecided), Deadline.after(0.2))
    assert search.domains > before


def test_a_deadline_in_the_past_does_nothing() -> None:
    search = Search(0, open_problem())
    start(search, Effort(0))
    domains = search.domains
    advance([search], SMALL, Oracle(refuse, undecided), Deadline.after(-1))
    assert search.domains == domains and not search.decided


def test_too_many_open_domains_stop_the_search_and_prove_nothing() -> None:
    search = Search(0, open_problem())
    start(search, Effort(0))
    advance([search], replace(SMALL, frontier_bytes=2**20), Oracle(refuse, undecided), Deadline.after(30))
    assert search.full and search.decided and not search.proved and search.frontier.nbytes() + search.log.nbytes() > 2**20


def test_too_many_boxes_stop_the_search_and_prove_nothing() -> None:
    search = input_search(0, open_problem())
    advance_boxes(search, InputSplitConfig(frontier_bytes=2**16), Oracle(refuse, undecided), Deadline.after(30))
    assert search.full and search.decided and not search.proved and search.nbytes() > 2**16


def test_thin_boxes_are_never_proved() -> None:
    """A property that is violated at one point only: splitting the input is stuck there and says so, splitting neurons ends at the point."""
    mlp = Mlp(((np.array([[1.0], [-1.0]]), np.zeros(2)), (np.array([[1.0, 1.0]]), np.zeros(1))))  # |x|
    case = Case(np.array([-1.0]), np.array([0.7]), (Polytope(np.ones((1, 1)), np.zeros(1)),))
    search = by_input_splits(mlp.problem(case), Oracle(refuse, undecided))
    assert search.stuck and not search.proved
    assert by_relu_splits(mlp.problem(case), Oracle(Gate(mlp, [case]), leaf_answer)).falsified


def test_a_region_of_one_point_is_decided_or_stuck() -> None:
    """No free input: proved, confirmed, or (where the gate refuses) stuck; never an error."""
    mlp = random_mlp(0, (2, 3, 1))
    x = np.array([0.5, -0.25])
    y = float(mlp(x[None])[0, 0])
    for offset, outcome in ((y - 1e-3, "proved"), (y + 1e-3, "falsified")):
        case = Case(x, x, (Polytope(np.ones((1, 1)), np.array([offset])),))
        for solve in (by_input_splits, by_relu_splits):
            search = solve(mlp.problem(case), Oracle(Gate(mlp, [case]), leaf_answer))
            assert {name for name in ("proved", "stuck", "falsified") if getattr(search, name)} == {outcome}
            refused = solve(mlp.problem(case), Oracle(refuse, leaf_answer))
            assert (refused.proved, refused.stuck) == (outcome == "proved", outcome != "proved")
