"""Box: batched intervals, the only set that bounds are stated over."""
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.errors import ShapeError, VerifierError


def flat(values: Tensor, batch: int) -> Tensor:
    """The axes after the first `batch` as one; of size 1 where there are none, for a scalar."""
    return values.reshape(*values.shape[:batch], -1)


@dataclass(frozen=True, slots=True)
class Box:
    """{x : lower <= x <= upper}, one a problem: `lower, upper: (B, *shape)`.

    Raises:
        ShapeError: the two shapes differ.
        VerifierError: a bound is NaN, or a lower bound exceeds its upper bound.
    """

    lower: Tensor
    upper: Tensor

    def __post_init__(self) -> None:
        if self.lower.shape != self.upper.shape:
            raise ShapeError(f"Box has lower {tuple(self.lower.shape)} but upper {tuple(self.upper.shape)}: give both one shape.")
        with torch.no_grad():
            if not bool((self.lower <= self.upper).all()):
                raise VerifierError("Box has a NaN bound or a lower bound above its upper bound.")

    @property
    def center(self) -> Tensor:
        return (self.lower + self.upper) / 2

    @property
    def radius(self) -> Tensor:
        return (self.upper - self.lower) / 2

    def intersect(self, other: Box) -> Box:
        """The common part; where rounding makes two valid boxes miss each other by an ulp, the touching point."""
        lower = torch.maximum(self.lower, other.lower)
        return Box(lower, torch.maximum(lower, torch.minimum(self.upper, other.upper)))
