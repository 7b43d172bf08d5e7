"""From logs to records: every rung's proof is accepted, what is recorded is what was bounded, and refused leaves are searched again."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests import cases as table
from tests import reductions as r
from tests.mlp import near_truth, random_mlp
from tests.small_certificates import case_records, check_case
from verifier.bab.budget import Deadline
from verifier.bab.domains import DomainBatch
from verifier.bab.driver import Oracle, Search, advance, log_split, start
from verifier.bab.input_split import InputSearch, InputSplitConfig, advance_boxes, input_search
from verifier.bab.ladder import Climb, Outcome, go_on, outcome_of, outcome_of_boxes
from verifier.bab.log import Lemma, Log, Tree, walk
from verifier.bab.neurons import split_neurons, tightened_lemma
from verifier.bab.work import as_packed, children, load, unload
from verifier.certificate.case import Failure
from verifier.certificate.emit import reopen
from verifier.certificate.schema import Record
from verifier.config import BabConfig
from verifier.exact.highs import leaf_answer
from verifier.graph.execute import execute
from verifier.graph.ir import Graph
from verifier.reduced.bound import Effort, Multipliers
from verifier.reduced.build import build
from verifier.reduced.problem import RELU, ReducedProblem, stack
from verifier.reduced.tighten import tighten
from verifier.spec.spec import Case, Polytope

SMALL = BabConfig(batch=16)
ORACLE = Oracle(lambda *offered: False, leaf_answer)


def climb(seconds: float = 10.0) -> Climb:
    return Climb(SMALL, ORACLE, Deadline.after(seconds))


def rooted(problem: ReducedProblem, log: Log | None = None) -> Search:
    search = Search(0, problem, log=log or Log(problem))
    start(search, Effort(2))
    return search


def by_relu_splits(problem: ReducedProblem) -> Outcome:
    search = rooted(problem)
    advance([search], SMALL, ORACLE, Deadline.after(10))
    return outcome_of(search, "relu")


def by_neuron_splits(problem: ReducedProblem) -> Outcome:
    log = Log(problem)
    better = split_neurons(problem, SMALL, 0.02, Deadline.after(10), log)
    search = rooted(better, log.after(better))
    advance([search], SMALL, ORACLE, Deadline.after(10))
    return outcome_of(search, "neurons")


def by_tightening(problem: ReducedProblem) -> Outcome:
    log = Log(problem)
    better = tighten(problem, Effort(3, packed=as_packed), Deadline.after(10), note=lambda *block: log.add(tightened_lemma(*block)))
    search = rooted(better, log.after(better))
    advance([search], SMALL, ORACLE, Deadline.after(10))
    return outcome_of(search, "tightened")


def by_input_splits(problem: ReducedProblem) -> Outcome:
    search = input_search(0, problem)
    advance_boxes(search, InputSplitConfig(batch=32, shrink_above=6), ORACLE, Deadline.after(10))
    return outcome_of_boxes(search)


RUNGS: dict[str, Callable[[ReducedProblem], Outcome]] = {
    "relu": by_relu_splits, "neurons": by_neuron_splits, "tightened": by_tightening, "inputs": by_input_splits,
}


def nearly_false(graph: Graph, case: Case, share: float = 0.05) -> Case:
    """The case with its polytopes moved to within this share of the rows' range of sampled values; with many inputs to where the root proves them."""
    double, few = graph.to("cpu", torch.float64), len(case.lower) <= 4
    search = rooted(build(double, case))
    random = torch.Generator().manual_seed(0)
    part = torch.rand(4000, len(case.lower), generator=random, dtype=torch.float64)
    box = [torch.from_numpy(side) for side in (case.lower, case.upper)]
    x = box[0] + torch.cat([part, part.round()]) * (box[1] - box[0])
    y = execute(double, x.view(-1, *graph.input_shape)).flatten(1).numpy()
    moved = []
    for k, polytope in enumerate(case.polytopes):
        value = y @ polytope.output.T - polytope.offset + (0 if polytope.input is None else x.numpy() @ polytope.input.T)
        floor, width = float(search.floor[search.problem.polytope == k].max()), float(np.ptp(value)) + 1e-3
        moved.append(Polytope(polytope.output, polytope.offset + (float(value.max(1).min()) if few else floor) - share * width, polytope.input))
    return replace(case, polytopes=tuple(moved))


def proof_of(graph: Graph, case: Case, solve: Callable[[ReducedProblem], Outcome]) -> tuple[ReducedProblem, Outcome, list[Record]]:
    problem = build(graph.to("cpu", torch.float64), case)
    outcome = solve(problem)
    assert outcome.proved and outcome.by is not None
    return problem, outcome, case_records(graph, case, problem, outcome.by)


ROWS = {row.name.split(",")[0]: row for row in reversed(table.CASES) if "wide" not in row.name and "1e" not in row.name}


PAIRS = [  # one rung a network in the quick suite
    pytest.param(name, rung, marks=() if (i + j) % len(RUNGS) == 0 else pytest.mark.slow)
    for i, name in enumerate(ROWS) for j, rung in enumerate(RUNGS)
]


@pytest.mark.parametrize(("name", "rung"), PAIRS)
def test_proofs_of_every_kind_of_network_are_accepted(name: str, rung: str) -> None:
    graph = ROWS[name].graph
    case = nearly_false(graph, r.case_of(ROWS[name], 0))
    _, _, records = proof_of(graph, case, RUNGS[rung])
    assert check_case(graph, records) == []


def split_mlp(seed: int, rows: int = 1, gap: float = 0.02) -> tuple[Graph, Case]:
    mlp = random_mlp(seed, (3, 8, 7, 2))
    return mlp.graph(), near_truth(mlp, seed, gap, rows)


def rule(problem: ReducedProblem, row: tuple[np.ndarray, np.ndarray, float], alpha: np.ndarray, signed: np.ndarray) -> float:
    """The proof rule of docs/certificate.md on the prover's own numbers, for one row (w, a, b) of a ReLU problem: `signed (U,)` is sign * beta."""
    A, W, b, lower, upper = (t.double().numpy() for t in (problem.A, problem.W, problem.b, problem.lower, problem.upper))
    w, a, total = row
    sign, nu, c = np.sign(signed), np.zeros(len(b)), w.copy()
    low, high = np.where(sign > 0, np.maximum(lower, 0), lower), np.where(sign < 0, np.minimum(upper, 0), upper)
    for j in reversed(range(len(b))):
        chord = upper[j] / (upper[j] - lower[j])
        slope = 1.0 if low[j] >= 0 else 0.0 if high[j] <= 0 else alpha[j] if c[j] > 0 else chord
        nu[j] = c[j] * slope - signed[j]
        c += nu[j] * W[j]
        ends = [c_j * max(z, 0.0) - nu[j] * z for c_j in [c[j]] for z in (low[j], high[j], *([0.0] if low[j] < 0 < high[j] else []))]
        total += nu[j] * b[j] + min(ends)
    return total - float(np.abs(a + nu @ A).sum())


def test_what_is_recorded_is_what_was_bounded() -> None:
    """Each leaf's alpha and beta give, by the rule written out above, at least the bound by which branch and bound closed it."""
    compared = 0
    for seed in range(6):
        graph, case = split_mlp(seed)
        problem, outcome, records = proof_of(graph, case, by_relu_splits)
        log, leaves = outcome.by.log, [record for record in records if record.kind == "LEAF" and "alpha" in record.arrays]
        regions = walk(log.tree, [log.root[0]]).leaf
        if any("nu" in record.arrays for record in records):
            continue
        alpha = np.concatenate([record.arrays["alpha"] for record in leaves]) / 255
        domains = log.domains(regions)
        signed = (domains.split.double() * domains.beta.double()).numpy()
        signed = np.where(domains.split.numpy() != 0, np.where(signed == 0, domains.split.numpy() * 1e-300, signed), 0)
        row = problem.W_o[0].numpy(), problem.A_o[0].numpy(), float(problem.b_o[0])
        for k, closed_at in enumerate(domains.lower.tolist()):
            found = rule(problem, row, alpha[k], signed[k])
            assert found >= closed_at - 1e-9 > 0
            compared += 1
    assert compared > 12


def test_betas_follow_the_paths() -> None:
    """As many numbers as the leaves have splits, in the order of the tree; another order is refused by the checker or proves less."""
    graph, case = split_mlp(1)
    _, outcome, records = proof_of(graph, case, by_relu_splits)
    tree = next(record for record in records if record.kind == "TREE")
    leaf = [record for record in records if record.kind == "LEAF"]
    nodes = tree.arrays["tree"]
    assert len(nodes) == 2 * (nodes < 0).sum() - 1 > 3
    assert sum(len(record.arrays["beta"]) for record in leaf) == sum(walk(outcome.by.log.tree, [0]).depth)
    turned = [replace(leaf, arrays=leaf.arrays | {"beta": leaf.arrays["beta"][::-1]}) if leaf.kind == "LEAF" else leaf for leaf in records]
    assert check_case(graph, records) == [] and check_case(graph, turned)


def test_leaves_of_linear_programs_carry_their_multipliers() -> None:
    """Conjunctions end in programs: their leaves have nu and weights, and are accepted beside the others."""
    programs = 0
    for seed in range(2):
        graph, case = split_mlp(100 + seed, rows=2)
        _, outcome, records = proof_of(graph, case, by_relu_splits)
        assert check_case(graph, records) == []
        programs += sum(len(record.arrays["nu"]) for record in records if "nu" in record.arrays)
        assert len(outcome.by.log.programs) <= programs
    assert programs > 0


def test_a_refused_leaf_is_proved_again_with_a_margin() -> None:
    graph, case = split_mlp(2)
    problem, outcome, _ = proof_of(graph, case, by_relu_splits)
    by = outcome.by
    leaves = walk(by.log.tree, [by.log.root[0]]).leaf.tolist()
    reopen(by, [Failure(0, 0, 0, next(k for k, leaf in enumerate(leaves) if leaf not in by.log.programs), -0.004)])
    assert not by.decided and len(by.frontier) >= 1
    again = go_on(by, climb())
    assert again.proved
    after = walk(by.log.tree, [by.log.root[0]]).leaf
    assert len(after) >= len(leaves) and float(by.log.domains(after).lower.min()) > 0.006
    assert check_case(graph, case_records(graph, case, problem, by)) == []


def boxes_of(graph: Graph, case: Case) -> tuple[ReducedProblem, InputSearch, Record]:
    problem, outcome, records = proof_of(graph, case, by_input_splits)
    return problem, outcome.by, records[-1]


def test_a_refused_box_is_proved_again_with_a_margin() -> None:
    graph, case = split_mlp(2, rows=2)
    problem, by, record = boxes_of(graph, case)
    assert len(record.arrays["tree"]) > 5
    reopen(by, [Failure(0, 0, 0, 2, -0.004), Failure(0, 0, 0, 0, -0.001)])
    assert not by.decided
    assert go_on(by, climb()).proved
    later = case_records(graph, case, problem, by)
    assert len(later[-1].arrays["tree"]) > len(record.arrays["tree"]) and check_case(graph, later) == []


def test_what_no_margin_can_mend_ends_the_search() -> None:
    graph, case = split_mlp(2)
    for solve in (by_relu_splits, by_input_splits):
        _, outcome, _ = proof_of(graph, case, solve)
        reopen(outcome.by, [Failure(0, 0, 0, 0, -np.inf)])
        assert outcome.by.stuck and not outcome.by.proved


def test_boxes_cover_the_region() -> None:
    """The leaves' boxes, from the record alone, have the region's volume; both sides of a split share its point."""
    graph, case = split_mlp(2, rows=2)
    _, _, record = boxes_of(graph, case)
    tree, point = (record.arrays[name].tolist() for name in ("tree", "point"))
    assert tree.count(-1) > 3
    volume, stack = 0.0, [(case.lower.copy(), case.upper.copy())]
    for axis, at in zip(tree, point):
        lower, upper = stack.pop()
        if axis < 0:
            volume += float(np.prod(upper - lower))
            continue
        assert lower[axis] <= at <= upper[axis]
        left, right = upper.copy(), lower.copy()
        left[axis] = right[axis] = at
        stack += [(right, upper), (lower, left)]
    assert not stack and volume == pytest.approx(float(np.prod(case.upper - case.lower)), rel=1e-9)


def test_walks_are_in_pre_order() -> None:
    tree = Tree()
    tree.roots(2)
    first = tree.split(torch.tensor([1]), torch.tensor([7]), torch.tensor([0.5]))
    tree.split(torch.tensor([first + 1]), torch.tensor([3]), torch.tensor([0.0]))
    walked = walk(tree, [1, 0])
    assert walked.what.tolist() == [7, -1, 3, -1, -1, -1] and walked.point.tolist() == [0.5, 0, 0, 0, 0, 0]
    assert walked.leaf.tolist() == [2, 4, 5, 0] and walked.depth.tolist() == [1, 2, 2, 0] and walked.path.tolist() == [7, 7, 3, 7, 3]


def test_lemmas_prove_what_the_prover_uses() -> None:
    """The part of a tree that proves no more than its root is left out; what is left has the bound of the problem that goes on."""
    graph, case = split_mlp(3, gap=0.3)
    problem = build(graph.to("cpu", torch.float64), case)
    log = Log(problem)
    better = split_neurons(problem, SMALL, 0.05, Deadline.after(10), log)
    lemma = next(lemma for lemma in log.lemmas if isinstance(lemma, Lemma))
    ends, names = lemma.log.enough(), {tuple(name): k for k, name in enumerate(better.neuron.tolist())}
    assert len(lemma.row) > 3
    seen = 0
    for row, name, sign in zip(lemma.row.tolist(), lemma.neuron.tolist(), lemma.sign.tolist()):
        leaves = walk(lemma.log.tree, [lemma.log.root[row]], ends).leaf
        bound = float(lemma.log.domains(leaves).lower.min())
        if tuple(name) in names:
            k = names[tuple(name)]
            used = float(better.lower[k] if sign > 0 else -better.upper[k])
            assert used == pytest.approx(min(bound, 0.0), abs=1e-6)
            seen += 1
    assert seen


@pytest.mark.parametrize("kinds", [(RELU, RELU), (RELU, "tanh", "square")], ids=" ".join)
def test_a_log_tells_domains_as_they_were_closed(kinds: tuple[str, ...]) -> None:
    """Closed domains come back from what is kept of them and from the tree, neurons that are split repeatedly and cut ends included."""
    problem = r.random_problem(3, kinds, largest=6)
    search, seen = Search(0, replace(problem, b_o=problem.b_o - 1e3)), {}
    close = search.log.close

    def watched(batch: DomainBatch) -> None:
        seen.update({int(batch.id[k]): batch.take(torch.tensor([k])) for k in range(len(batch))})
        close(batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Log, "close", lambda log, batch: watched(batch))
        start(search, Effort(2))
        shared, first = stack([problem]), problem.blocks[-1].start
        for _ in range(6):
            work = load(shared, [search.frontier.pop_worst(5)])
            unsplit = (work.domains.split[0] == 0).to(torch.uint8).argmax(1).unsqueeze(0)
            neuron = unsplit if problem.is_relu else first + work.depth.long() % 2 * (problem.unstable - 1 - first)
            kids = children(shared, work, neuron)
            alpha, beta = (torch.rand_like(kids.multipliers.alpha) for _ in range(2))
            names = log_split([search], shared, work, neuron, torch.ones_like(neuron, dtype=torch.bool))
            kids = replace(kids, id=names, multipliers=Multipliers(alpha, beta * (kids.domains.split != 0)))
            own = unload(shared, kids, 0, torch.arange(kids.row.shape[1]))
            search.log.close(own)
            search.frontier.push(own)
    regions = np.array(sorted(seen, key=lambda k: k * 7 % 13))
    back = search.log.domains(regions)
    right = [seen[k] for k in regions.tolist()]
    assert len(right) > 40 and int(back.depth.max()) >= 3
    for name in ("row", "lower", "depth", "split", "alpha", "beta", "id", "cut_lower", "cut_upper"):
        own = getattr(back, name)
        assert own is None if getattr(right[0], name) is None else torch.equal(own, torch.cat([getattr(one, name) for one in right]))


def test_neurons_are_numbered_over_the_activations_of_a_node() -> None:
    """Some neuron of the last activation of an operation is there, none beyond it, and none twice."""
    latest = {"Clip": [], "MaxPool": [], "Mul": [], "Relu": []}
    for row in (row for row in table.CASES if row.name.split(",")[0] in ("clip", "pooled", "products", "dense") and "point" not in row.name):
        problem = build(row.graph.to("cpu", torch.float64), r.case_of(row, 0))
        neurons = [tuple(neuron) for neuron in problem.neuron.tolist()]
        assert len(set(neurons)) == len(neurons)
        for node, number in neurons:
            own = row.graph.nodes[node]
            latest.setdefault(own.op, []).append(number // int(np.prod(own.shape)))
    assert {op: max(numbers) for op, numbers in latest.items() if op != "Sigmoid"} == {"Clip": 1, "MaxPool": 7, "Mul": 1, "Relu": 0}
