"""Problems of the checker for tests: made from graphs, evaluated at points, and rows of them."""
from __future__ import annotations

import numpy as np

from tests import reductions as r
from tests.cases import Case as Row
from verifier.certificate.arithmetic import Arithmetic, Rounded, Runtime
from verifier.certificate.bound import Problem
from verifier.certificate.reduce import Statement, reduce
from verifier.graph.ir import Graph
from verifier.spec.spec import Case

ACTIVATIONS = {"relu": lambda z: np.maximum(z, 0), "square": np.square, "tanh": np.tanh, "sigmoid": lambda z: 0.5 + 0.5 * np.tanh(z / 2)}


def statement_of(case: Case, kept: frozenset[int] = frozenset(), names: dict[tuple[str, int], int] | None = None) -> Statement:
    """A case of a specification as the checker states it."""
    n_in = len(case.lower)
    inputs = [np.zeros((len(p.offset), n_in)) if p.input is None else p.input for p in case.polytopes]
    output, offset = (np.concatenate([getattr(p, name) for p in case.polytopes]) for name in ("output", "offset"))
    return Statement(case.lower, case.upper, output, np.concatenate(inputs), offset, names or {}, kept)


def problem_of(graph: Graph, case: Case, arithmetic: Arithmetic = Rounded(), runtime: Runtime | None = None) -> Problem:  # noqa: B008
    return reduce(graph, statement_of(case), arithmetic, runtime)


def problem_of_row(row: Row, number: int) -> tuple[Problem, Case]:
    case = r.case_of(row, number)
    return problem_of(row.graph, case), case


def values(problem: Problem, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """z `(K, U)` and the rows `(K, S)` at scaled inputs `x (K, n)`, in float64."""
    A, W, b = (np.asarray(part, float) for part in (problem.A, problem.W, problem.b))
    z, h = np.zeros((len(x), len(b))), np.zeros((len(x), len(b)))
    for start, end, kind in problem.blocks:
        at = slice(start, end)
        z[:, at] = x @ A[at].T + h @ W[at].T + b[at]
        h[:, at] = ACTIVATIONS[kind](z[:, at])
    rows = problem.rows
    return z, x @ np.asarray(rows.a, float).T + h @ np.asarray(rows.w, float).T + np.asarray(rows.b, float)


def full_inputs(problem: Problem, case: Case, x: np.ndarray) -> np.ndarray:
    """Scaled inputs as the network's, `(K, n_in)`."""
    full = np.repeat(((case.lower + case.upper) / 2)[None], len(x), 0)
    full[:, problem.free] = np.asarray(problem.center, float) + x * np.asarray(problem.radius, float)
    return full
