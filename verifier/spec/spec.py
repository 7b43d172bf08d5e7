"""Spec: what is unsafe, as cases of an input region times polytopes over inputs and outputs. Plain numpy, float64."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Polytope:
    """{(x, y) : output @ y + input @ x <= offset, all R rows}; x and y flattened in C order.

    `output: (R, n_out)`, `offset: (R,)`, `input: (R, n_in)` or None where no row mentions an input. R >= 1.
    """

    output: np.ndarray
    offset: np.ndarray
    input: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class Ball:
    """{x : ||x - center||_p <= radius} with `norm` p in {1, 2}: intersected with the case's box. `center: (n_in,)`."""

    center: np.ndarray
    radius: float
    norm: int


@dataclass(frozen=True, slots=True)
class Case:
    """Unsafe iff an x with lower <= x <= upper (and in the ball, if there is one) reaches one of the polytopes. `lower, upper: (n_in,)`."""

    lower: np.ndarray
    upper: np.ndarray
    polytopes: tuple[Polytope, ...]
    ball: Ball | None = None


@dataclass(frozen=True, slots=True)
class Spec:
    """Unsafe iff one of the cases is; no cases (an empty input set, say) is safe, and `note` says why. `path`: the file that states it, or empty."""

    cases: tuple[Case, ...]
    n_in: int
    n_out: int
    source: str = ""
    note: str = ""
    path: str = ""
