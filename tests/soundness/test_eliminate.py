"""What substituting stable ReLUs rounds is within what `eliminate` says: against the same substitution in fractions."""
from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from verifier.certificate import bound
from verifier.certificate.arithmetic import Arithmetic, Exact, Rounded
from verifier.certificate.bound import Block, Problem, Rows


def stacked(arithmetic: Arithmetic, W: np.ndarray, b: np.ndarray, constant: float, reach: np.ndarray) -> Problem:
    """One neuron a block, all active but the first: z = A x + W h + b with one input, and the row constant + h_last, without noise."""
    u = len(b)
    make = arithmetic.array
    A = np.zeros((u, 1))
    A[0] = 1.0
    row = np.eye(u)[-1:]
    rows = Rows(make(row), make(np.zeros((1, 1))), make(np.array([constant])), make(np.zeros(1)))
    lower = np.zeros(u)
    lower[0] = -reach[0]
    blocks = tuple(Block(k, k + 1, "relu") for k in range(u))
    nothing = make(np.zeros(0))
    numbers = (make(part) for part in (A, W, b, np.zeros(u), lower, reach))
    return Problem(arithmetic, *numbers, blocks, np.arange(u), rows, np.zeros(1, int), nothing, nothing, (nothing, nothing))


def uncovered(W: np.ndarray, b: np.ndarray, constant: float, reach: np.ndarray) -> float:
    """By how much the rounded row may lie above the exact one beyond its slack, relative to 2^-53."""
    rounded, exact = (bound.eliminate(stacked(a, W, b, constant, reach), frozenset()) for a in (Rounded(), Exact()))
    assert len(rounded.b) == len(exact.b) == 1
    off = [Exact().array(x) - y for x, y in zip((rounded.rows.w, rounded.rows.a, rounded.rows.b), (exact.rows.w, exact.rows.a, exact.rows.b))]
    size = abs(off[0]).sum() * reach[0] + abs(off[1]).sum() + abs(off[2]).sum()
    return float(size - Exact().array(rounded.rows.slack)[0]) * 2.0**53


def chain(length: int) -> tuple[np.ndarray, np.ndarray, float, np.ndarray]:
    """z_k = h_k-1 - 2^-53: substituted one by one into 1 + 2^-20 + h_last, no step changes the constant, though all together they do."""
    b = np.full(length, -(2.0**-53))
    return np.eye(length, k=-1), b, 1 + 2.0**-20, np.full(length, 2.0**-40)


def drawn(seed: int, u: int = 12) -> tuple[np.ndarray, np.ndarray, float, np.ndarray]:
    random = np.random.default_rng(seed)
    W = np.tril(random.normal(size=(u, u)) * 2.0 ** random.integers(-30, 4, (u, u)), -1)
    b = random.normal(size=u) * 2.0 ** random.integers(-50, 1, u)
    reach = np.ones(u)
    for k in range(u):
        reach[k] = abs(W[k]) @ reach + abs(b[k]) + 1
    return W, b, float(random.normal()), reach


def chain_uncovered(length: int) -> float:
    """`uncovered` of a chain, whose exact row is 1 + 2^-20 - (length - 1) 2^-53 + relu(z_0)."""
    made = bound.eliminate(stacked(Rounded(), *chain(length)), frozenset())
    assert made.rows.w.tolist() == [[1.0]] and made.rows.a.tolist() == [[0.0]]
    off = Fraction(float(made.rows.b[0])) - (1 + Fraction(2) ** -20 - (length - 1) * Fraction(2) ** -53)
    return float(abs(off) - Fraction(float(made.rows.slack[0]))) * 2.0**53


@pytest.mark.parametrize("length", [3, 30, 300])
def test_a_chain_of_tiny_steps_is_covered(length: int) -> None:
    assert chain_uncovered(length) <= 0


@pytest.mark.parametrize("seed", range(20))
def test_random_substitutions_are_covered(seed: int) -> None:
    assert uncovered(*drawn(seed)) <= 0


def test_an_eliminate_that_counts_nothing_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = bound.eliminate

    def careless(problem: Problem, kept: frozenset[int]) -> Problem:
        made = right(problem, kept)
        return replace(made, rows=replace(made.rows, slack=problem.rows.slack))

    monkeypatch.setattr(bound, "eliminate", careless)
    assert chain_uncovered(300) > 100
    assert any(uncovered(*drawn(seed)) > 0 for seed in range(20))
