"""Proofs of leaves from duals: found for the leaves that linear programs close, true on every point, and wrong ones are refused."""
from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from tests import reductions as r
from tests.mlp import near_truth, random_mlp
from tests.tolerances import EXACT, SOLVER
from verifier.exact import dual
from verifier.exact.dual import LeafProof, bound_of, leaf_proof
from verifier.reduced.problem import RELU, ReducedProblem

GAP = 0.05


def by_the_page(problem: ReducedProblem, split: torch.Tensor, weight: np.ndarray, nu: np.ndarray) -> float:
    """The bound of docs/certificate.md as it is written there, a loop for each sum, the minimum over z on a grid with both ends and 0."""
    A, W, b, A_o, W_o, b_o, margin = (
        t.numpy() for t in (problem.A, problem.W, problem.b, problem.A_o, problem.W_o, problem.b_o, problem.margin))
    total = 0.0
    for k, factor in enumerate(weight):
        total += factor * (b_o[k] - margin[k])
    for i in range(problem.n):
        total -= abs(sum(weight[k] * A_o[k, i] for k in range(len(weight))) + sum(nu[j] * A[j, i] for j in range(len(nu))))
    for j in range(problem.unstable):
        low, high = float(problem.lower[j]), float(problem.upper[j])
        low, high = (max(low, 0.0) if split[j] > 0 else low), (min(high, 0.0) if split[j] < 0 else high)
        c = sum(weight[k] * W_o[k, j] for k in range(len(weight))) + sum(nu[i] * W[i, j] for i in range(len(nu)))
        grid = np.append(np.linspace(low, high, 101), [0.0] if low <= 0 <= high else [])
        total += nu[j] * b[j] + min(c * max(z, 0.0) - nu[j] * z for z in grid)
    return total


def check_proof(problem: ReducedProblem, split: torch.Tensor, proof: LeafProof) -> None:
    """The bound is the page's, positive, and below the weighted rows at every point of the leaf."""
    slack = EXACT * (1 + r.sizes(problem) * (proof.weight.sum() + np.abs(proof.nu).sum()))
    assert proof.bound > 0 and (proof.weight >= 0).all()
    assert proof.bound == pytest.approx(by_the_page(problem, split, proof.weight, proof.nu), abs=slack)
    z, m = problem.evaluate(r.scaled_points(400, problem.n))
    member = ((split * z) >= 0).all(1)
    value = (m - problem.margin)[member].numpy() @ proof.weight
    assert not member.any() or value.min() >= proof.bound - slack


def conjunction(seed: int, sizes: tuple[int, ...] = (2, 4, 3, 2), gap: float = GAP) -> ReducedProblem:
    """A network and one polytope of two rows that it avoids by `gap` (or meets, where that is negative)."""
    mlp = random_mlp(seed, sizes)
    return mlp.problem(near_truth(mlp, seed, gap, rows=2))


@pytest.mark.parametrize("seed", range(4))
def test_every_leaf_of_a_safe_problem_has_a_proof(seed: int) -> None:
    """All 2^U sign patterns, most of them empty: each is proved, by duals or by a ray."""
    problem = conjunction(seed)
    z, _ = problem.evaluate(r.scaled_points(400, problem.n))
    empty = 0
    for signs in product((1, -1), repeat=problem.unstable):
        split = torch.tensor(signs, dtype=torch.int8)
        proof = leaf_proof(problem, 0, split)
        assert proof is not None
        check_proof(problem, split, proof)
        empty += not bool(((split * z) >= 0).all(1).any())
    assert problem.unstable < 3 or empty >= 1


@pytest.mark.parametrize("seed", range(4))
def test_the_leaf_of_a_counterexample_has_none(seed: int) -> None:
    problem = conjunction(seed, gap=-GAP)
    refused = [s for s in product((1, -1), repeat=problem.unstable) if leaf_proof(problem, 0, torch.tensor(s, dtype=torch.int8)) is None]
    z, m = problem.evaluate(r.scaled_points(4000, problem.n))
    met = {tuple(s) for s in torch.where(z >= 0, 1, -1)[(m <= 0).all(1)].tolist()}
    assert refused and met <= set(refused)


@pytest.mark.parametrize("seed", range(8))
def test_duals_reach_the_program(seed: int) -> None:
    """On domains with free neurons the proof's bound is the optimum of another program over the same triangles, where that is positive."""
    reached = 0
    problem = r.random_problem(seed, (RELU, RELU, RELU), rows=1, largest=5)
    drawn = r.draw_domains(problem, seed)
    for k in range(drawn.rows.bo.shape[1]):
        best, split = r.lp_minimum(drawn, k), drawn.domains.split[0, k]
        if not np.isfinite(best):
            assert leaf_proof(problem, 0, split).bound > 0
            continue
        raised = replace(problem, b_o=problem.b_o - best + 1.0)
        proof = leaf_proof(raised, 0, split)
        check_proof(raised, split, proof)
        assert proof.bound == pytest.approx(1.0, abs=SOLVER * (1 + abs(best)))
        assert leaf_proof(replace(problem, b_o=problem.b_o - best - 1e-3), 0, split) is None
        reached += 1
    assert reached >= 1


def test_the_margin_is_taken_off() -> None:
    problem = r.random_problem(1, (RELU,), rows=1)
    none = torch.zeros(problem.unstable, dtype=torch.int8)
    best = r.lp_minimum(r.draw_domains(problem, 1), 0)
    safe = replace(problem, b_o=problem.b_o - best + 0.1)
    assert leaf_proof(safe, 0, none).bound == pytest.approx(0.1, abs=1e-5)
    assert leaf_proof(replace(safe, margin=torch.full_like(safe.margin, 0.2)), 0, none) is None
    assert leaf_proof(replace(safe, margin=torch.full_like(safe.margin, 0.05)), 0, none).bound == pytest.approx(0.05, abs=1e-5)


def test_an_empty_leaf_is_proved_against_any_row() -> None:
    """z and -z both above 0.5, which x cannot do; the ray outweighs a row of -1000."""
    one = torch.ones(1, 1, dtype=torch.float64)
    problem = r.random_problem(0, (RELU,), inputs=1, rows=1, largest=1)
    problem = replace(
        problem, A=torch.cat([one, -one]), W=torch.zeros(2, 2).double(), b=torch.full((2,), -0.5).double(),
        lower=torch.full((2,), -1.5).double(), upper=torch.full((2,), 0.5).double(), A_o=0 * one, W_o=torch.zeros(1, 2).double(),
        b_o=torch.full((1,), -1000.0).double(), blocks=(r.blocks_of([2], [RELU], torch.zeros(2, 2))[0],), split=torch.zeros(2, dtype=torch.int8),
        neuron=torch.zeros(2, 2, dtype=torch.int64),
    )
    both = torch.tensor([1, 1], dtype=torch.int8)
    proof = leaf_proof(problem, 0, both)
    check_proof(problem, both, proof)
    assert proof.bound > 1 and np.abs(proof.nu).max() > 1000
    assert leaf_proof(problem, 0, torch.tensor([1, -1], dtype=torch.int8)) is None


def test_an_interval_that_a_split_empties_needs_no_program() -> None:
    problem = r.random_problem(1, (RELU,), rows=1)
    split = torch.zeros(problem.unstable, dtype=torch.int8)
    split[0] = 1
    proof = leaf_proof(replace(problem, upper=torch.cat([torch.tensor([-0.1]).double(), problem.upper[1:]])), 0, split)
    assert proof.bound == np.inf and not proof.nu.any()


def test_wrong_signs_prove_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sabotage: duals of the other sign lose (nearly) every proof that needs them, and none of what they return is false."""
    leaves = [(p, torch.tensor(s, dtype=torch.int8)) for p in map(conjunction, range(3)) for s in product((1, -1), repeat=p.unstable)]
    needs = [(p, s) for p, s in leaves if not bound_of(p, 0, s, np.full(2, 0.5), np.zeros(p.unstable)) > 0]
    program, ray = dual._program, dual._ray
    monkeypatch.setattr(dual, "_program", lambda leaf: None if (found := program(leaf)) is None else replace(found, nu=-found.nu))
    monkeypatch.setattr(dual, "_ray", lambda leaf: replace(found := ray(leaf), nu=-found.nu))
    proofs = [(p, s, leaf_proof(p, 0, s)) for p, s in needs]
    assert len(needs) >= 20 and sum(proof is not None for *_, proof in proofs) <= len(needs) // 4
    for p, s, proof in proofs:
        if proof is not None:
            check_proof(p, s, proof)


@pytest.mark.parametrize("kinds", [("tanh",), (RELU, "square")], ids=" ".join)
def test_other_neurons_are_refused(kinds: tuple[str, ...]) -> None:
    problem = r.random_problem(0, kinds, rows=1)
    safe = replace(problem, b_o=problem.b_o + 1e3)
    assert leaf_proof(safe, 0, torch.zeros(problem.unstable, dtype=torch.int8)) is None


def test_numbers_that_are_not_finite_are_refused() -> None:
    problem = r.random_problem(0, (RELU,), rows=1)
    safe = replace(problem, b_o=problem.b_o + 1e3, b=torch.full_like(problem.b, torch.inf))
    assert leaf_proof(safe, 0, torch.zeros(problem.unstable, dtype=torch.int8)) is None


def test_without_neurons_the_rows_alone_decide() -> None:
    mlp = random_mlp(0, (2, 3))
    for gap in (0.1, -0.1):
        problem = mlp.problem(near_truth(mlp, 0, gap, rows=2))
        proof = leaf_proof(problem, 0, torch.zeros(0, dtype=torch.int8))
        assert problem.unstable == 0 and (proof is not None) == (gap > 0)
