"""The two arithmetics of a checker: float64 with every rounding accounted for, and rationals, which round nothing; and the runtimes' arithmetics.

The accounting rests on one fact: a sum of k products computed with unit roundoff u, in any order, with or without fused multiply-add, is off by
at most gamma_k times the sum of the products' absolute values, gamma_k = k u / (1 - k u). Ref: Higham, Accuracy and Stability of Numerical
Algorithms, chapter 3.
"""
from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import isqrt
from typing import Any

import numpy as np

from verifier.errors import UnsupportedError

LARGEST = 2.0**100
"""Values of a network beyond this are refused, so that a coefficient that underflows, times any value, is nothing beside TINY."""
TINY = 2.0**-800
"""More than what all underflows of one result come to in float64: 2^40 terms of 2^-1074 times the square of LARGEST."""
LONGEST = 2**20
"""Most products in one sum."""


def gamma(k: int | np.ndarray, u: float) -> float | np.ndarray:
    """k u / (1 - k u), rounded up, for one k or several.

    Raises:
        UnsupportedError: the sum is so long that the bound on its rounding means little.
    """
    if (most := int(np.max(k, initial=0))) * u > 2.0**-4:
        raise UnsupportedError(f"A sum of {most:,} products is too long for arithmetic with unit roundoff {u:.3g}: its rounding is not bounded.")
    return k * u / (1 - k * u) * (1 + 2.0**-40)


@dataclass(frozen=True, slots=True)
class Rounded:
    """float64, round to nearest."""

    dtype: Any = np.float64

    def array(self, values: Any) -> np.ndarray:
        return np.asarray(values, np.float64)

    def number(self, value: float) -> Any:
        return value

    def room(self, k: int, terms: Any) -> Any:
        """What sums of k products are off by at most, for `terms` >= the sums of their absolute values."""
        return gamma(k, 2.0**-53) * terms + TINY

    def up(self, value: Any) -> Any:
        """No less than the exact result of which `value` >= 0 is the computed one, for sums of up to LONGEST terms >= 0."""
        return value * (1 + 2.0**-30) + TINY

    def norm(self, values: np.ndarray) -> Any:
        """No less than the l2 norm of `values` >= 0 along the last axis; scaled, so that no square underflows."""
        top = values.max(-1, initial=0.0)
        share = values / np.where(top > 0, top, 1.0)[..., None]
        return self.up(top * np.sqrt((share * share).sum(-1)))


@dataclass(frozen=True, slots=True)
class Exact:
    """Rationals: slow, and the oracle of `Rounded`."""

    dtype: Any = object

    def array(self, values: Any) -> np.ndarray:
        given = np.asarray(values)
        exact = np.empty(given.shape, object)
        exact.reshape(-1)[:] = [Fraction(v) if isinstance(v, (int, Fraction)) else Fraction(float(v)) for v in given.reshape(-1).tolist()]
        return exact

    def number(self, value: float) -> Any:
        return Fraction(value)

    def room(self, k: int, terms: Any) -> Any:
        return 0 * terms

    def up(self, value: Any) -> Any:
        return value

    def norm(self, values: np.ndarray) -> Any:
        squares = (values * values).sum(-1)
        roots = np.empty(np.shape(squares), object)
        roots.reshape(-1)[:] = [_root(Fraction(square)) for square in np.asarray(squares, object).reshape(-1)]
        return roots


def _root(square: Fraction) -> Fraction:
    """No less than the root, by less than 2^-64 of it."""
    if not square:
        return square
    scale = 1 << max(0, 64 + square.denominator.bit_length() - square.numerator.bit_length())
    whole = square.numerator * square.denominator * scale * scale
    return Fraction(isqrt(whole) + 1, square.denominator * scale)


Arithmetic = Rounded | Exact
ROUNDED = Rounded()


@dataclass(frozen=True, slots=True)
class Runtime:
    """A runtime that computes each node in binary floating point with unit roundoff `u`, its normal numbers from `least` to `largest`.

    `transcendental` bounds the absolute error of its sigmoid and tanh. EXTRA roundings a sum cover fused and folded constants.
    """

    u: float = 2.0**-24
    least: float = 2.0**-126
    largest: float = LARGEST
    transcendental: float = 2.0**-20

    def room(self, k: int | np.ndarray, terms: np.ndarray, arithmetic: Arithmetic, reach: Any = 0) -> np.ndarray:
        """|computed - exact| of sums of k products, as many in all or in each, whose absolute values sum to `terms`.

        A factor that a runtime makes itself, as it fuses a scale into weights, may underflow: what it multiplies is at most `reach`.
        """
        relative, absolute = arithmetic.array(gamma(k + EXTRA, self.u)), arithmetic.array((k + EXTRA) * self.least)
        return arithmetic.up(relative * terms + absolute * (1 + reach))


EXTRA = 8
FLOAT32 = Runtime()
FLOAT64 = Runtime(2.0**-53, 2.0**-1022, LARGEST, 2.0**-45)
"""onnxruntime 1.31 on x86, 13 million values of each: its sigmoid is off by at most 2^-52.4, its tanh by 2^-49.9."""
FLOAT16 = Runtime(2.0**-11, 2.0**-14, 65504.0, 2.0**-9)
"""A sigmoid or tanh that is computed in float32 is rounded by 2^-12; eight times that is allowed."""
RUNTIMES = {"real": None, "float32": FLOAT32, "float64": FLOAT64, "float16": FLOAT16}
"""What a certificate may speak of."""
