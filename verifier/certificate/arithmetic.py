"""The two arithmetics of a checker: float64 with every rounding accounted for, and rationals, which round nothing.

The accounting rests on one fact: a sum of k products computed with unit roundoff u, in any order, with or without fused multiply-add, is off by
at most gamma_k times the sum of the products' absolute values, gamma_k = k u / (1 - k u). Ref: Higham, Accuracy and Stability of Numerical
Algorithms, chapter 3.
"""
from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from verifier.errors import UnsupportedError

LARGEST = 2.0**100
"""Values of a network beyond this are refused, so that a coefficient that underflows, times any value, is nothing beside TINY."""
TINY = 2.0**-800
"""More than what all underflows of one result come to in float64: 2^40 terms of 2^-1074 times the square of LARGEST."""
LONGEST = 2**20
"""Most products in one sum."""


def gamma(k: int, u: float) -> float:
    """k u / (1 - k u), rounded up.

    Raises:
        UnsupportedError: the sum is so long that the bound on its rounding means little.
    """
    if k * u > 2.0**-4:
        raise UnsupportedError(f"A sum of {k:,} products is too long for arithmetic with unit roundoff {u:.3g}: its rounding is not bounded.")
    return k * u / (1 - k * u) * (1 + 2.0**-40)


@dataclass(frozen=True, slots=True)
class Rounded:
    """float64, round to nearest."""

    dtype: Any = np.float64

    def array(self, values: Any) -> np.ndarray:
        return np.asarray(values, np.float64)

    def room(self, k: int, terms: Any) -> Any:
        """What sums of k products are off by at most, for `terms` >= the sums of their absolute values."""
        return gamma(k, 2.0**-53) * terms + TINY

    def up(self, value: Any) -> Any:
        """No less than the exact result of which `value` >= 0 is the computed one, for sums of up to LONGEST terms >= 0."""
        return value * (1 + 2.0**-30) + TINY


@dataclass(frozen=True, slots=True)
class Exact:
    """Rationals: slow, and the oracle of `Rounded`."""

    dtype: Any = object

    def array(self, values: Any) -> np.ndarray:
        given = np.asarray(values)
        exact = np.empty(given.shape, object)
        exact.reshape(-1)[:] = [Fraction(v) if isinstance(v, (int, Fraction)) else Fraction(float(v)) for v in given.reshape(-1).tolist()]
        return exact

    def room(self, k: int, terms: Any) -> Any:
        return 0 * terms

    def up(self, value: Any) -> Any:
        return value


Arithmetic = Rounded | Exact
FLOAT64 = Rounded()


@dataclass(frozen=True, slots=True)
class Runtime:
    """A runtime that computes each node in binary floating point with unit roundoff `u`; `least` is its smallest normal number.

    `transcendental` bounds the absolute error of its sigmoid and tanh. EXTRA roundings a sum cover fused and folded constants.
    """

    u: float = 2.0**-24
    least: float = 2.0**-126
    transcendental: float = 2.0**-20

    def room(self, k: int, terms: np.ndarray, arithmetic: Arithmetic) -> np.ndarray:
        """|computed - exact| of sums of k products whose absolute values sum to `terms`."""
        relative, absolute = arithmetic.array([gamma(k + EXTRA, self.u), (k + EXTRA) * self.least])
        return arithmetic.up(relative * terms + absolute)


EXTRA = 8
FLOAT32 = Runtime()
RUNTIMES = {"real": None, "float32": FLOAT32}
"""What a certificate may be about."""
