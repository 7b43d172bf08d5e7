"""Spec: what is unsafe, as cases of an input region times polytopes over inputs and outputs. Plain numpy, float64.

Every set here is closed: what a proof covers. What a counterexample must satisfy besides (strict comparisons, the decimals of the text) stands
in `within`, `fixed`, `asserts` and `strict`; docs/properties.md says what a literal means.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Polytope:
    """{(x, y) : output @ y + input @ x <= offset, all R rows}; x and y flattened in C order.

    `output: (R, n_out)`, `offset: (R,)`, `input: (R, n_in)` or None where no row mentions an input. R >= 1.
    `strict: (R,)` bool, the rows that are written with `<`; None where none is.
    """

    output: np.ndarray
    offset: np.ndarray
    input: np.ndarray | None = None
    strict: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class Ball:
    """{x : ||x - center||_p <= radius} with `norm` p in {1, 2}: intersected with the case's box. `center: (n_in,)`.

    `slack`: what the rounding of `center` and `radius` may take off the ball that is meant.
    """

    center: np.ndarray
    radius: float
    norm: int
    slack: float = 0.0

    @property
    def covering(self) -> float:
        """The radius that a proof must cover."""
        return float(np.nextafter(self.radius + self.slack, np.inf)) if self.slack else self.radius


@dataclass(frozen=True, slots=True)
class Case:
    """Unsafe iff an x with lower <= x <= upper (and in the ball, if there is one) reaches one of the polytopes. `lower, upper: (n_in,)`.

    `within`: the least and the largest float64 that satisfy each input's bounds as they are written, `(n_in,)` each, crossed where there is none;
    None: lower and upper themselves. `fixed`: the inputs whose two bounds are one real number, and that number, exactly; None: those with lower =
    upper. `asserts`: the formulas of the text (`verifier.spec.vnnlib1`) that a counterexample must satisfy; None where there is no text.
    """

    lower: np.ndarray
    upper: np.ndarray
    polytopes: tuple[Polytope, ...]
    ball: Ball | None = None
    within: tuple[np.ndarray, np.ndarray] | None = None
    fixed: Mapping[int, str | Fraction] | None = None
    asserts: tuple[Any, ...] | None = None

    def fixed_values(self) -> dict[int, Fraction]:
        """The exact value of every fixed input."""
        if self.fixed is None:
            return {int(i): Fraction(float(self.lower[i])) for i in np.flatnonzero(self.lower == self.upper)}
        return {i: Fraction(value) for i, value in self.fixed.items()}

    def received(self, dtype: np.dtype | type = np.float32) -> tuple[np.ndarray, np.ndarray]:
        """The box that a proof must cover, `(lower, upper)` in float64: the real region, and the numbers that a runtime receives for it.

        An end is moved outwards by an ulp, for its decimals may be no float64 (a zero stays), and the ends of a fixed input further to the numbers of
        the input type `dtype` that are nearest to both. Rounding is monotone, so these hold the number nearest to the fixed value.
        """
        lower = np.where(self.lower == 0, self.lower, np.nextafter(self.lower, -np.inf))
        upper = np.where(self.upper == 0, self.upper, np.nextafter(self.upper, np.inf))
        fixed = self.lower == self.upper
        with np.errstate(over="ignore"):
            low, high = lower.astype(dtype).astype(np.float64), upper.astype(dtype).astype(np.float64)
        return np.where(fixed & np.isfinite(low), np.minimum(lower, low), lower), np.where(fixed & np.isfinite(high), np.maximum(upper, high), upper)


@dataclass(frozen=True, slots=True)
class Spec:
    """Unsafe iff one of the cases is; no cases (an empty input set, say) is safe, and `note` says why. `path`: the file that states it, or empty."""

    cases: tuple[Case, ...]
    n_in: int
    n_out: int
    source: str = ""
    note: str = ""
    path: str = ""
