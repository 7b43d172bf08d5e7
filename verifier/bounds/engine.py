"""What every bound engine is asked, and what it answers.

The parts: an engine takes a `BoundRequest` (network, input region, rows over the outputs) and returns a `BoundResult`. The published
algorithms are combinations of where the bounds of intermediate values come from and how one row is carried back to the input:

| engine | intermediate bounds | rows |
|---|---|---|
| `ibp` | intervals, forwards | through the affine tail of the network |
| `crown` with `IbpOnly` (CROWN-IBP) | intervals | backwards, adaptive planes |
| `crown` (default `IbpThenCrown`) | intervals, then rows of the neurons they leave unstable | backwards, adaptive planes |
| `crown` with `PureCrown` | the same rows, not intersected with the intervals | backwards, adaptive planes |
| `alpha_crown` | as `crown`, then optimised | backwards, planes optimised for each row |
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Protocol

from torch import Tensor

from verifier.box import Box
from verifier.errors import ShapeError, VerifierError
from verifier.graph.ir import Graph


@dataclass(frozen=True, slots=True)
class NormBall:
    """{x : ||x - center||_norm <= radius}, norm in {1, 2}: intersected with the box. `center: (B, *input_shape)`, `radius: (B,)`."""

    center: Tensor
    radius: Tensor
    norm: int

    def __post_init__(self) -> None:
        if self.norm not in (1, 2):
            raise VerifierError(f"A ball's norm is {self.norm!r}: give 1 or 2 (the box itself is the maximum norm).")


@dataclass(frozen=True, slots=True)
class Region:
    """Where inputs lie: the box, and where there is one, the ball."""

    box: Box
    ball: NormBall | None = None


@dataclass(frozen=True, slots=True)
class BoundRequest:
    """Bound rows @ y + constants over y = graph(x), x in the box (and in the ball, if there is one).

    `box: (B, *graph.input_shape)`. `rows: (B, S, n_out)` over the flattened output (None: the outputs themselves, S = n_out) and
    `constants: (B, S)` (None: zero). `intermediate` holds bounds that are already known: engines use them as they are, by the name of the
    node whose value they bound. `upper_too` asks for the upper bounds of the rows as well.
    """

    graph: Graph
    box: Box
    rows: Tensor | None = None
    constants: Tensor | None = None
    intermediate: Mapping[str, Box] = field(default_factory=dict)
    ball: NormBall | None = None
    upper_too: bool = True

    def __post_init__(self) -> None:
        seen, wanted = tuple(self.box.lower.shape[1:]), tuple(self.graph.input_shape)
        if seen != wanted:
            raise ShapeError(f"The box has shape (B, {', '.join(map(str, seen))}) but the network's input is {wanted}: reshape the box.")
        batch, outputs = self.box.lower.shape[0], prod(self.graph.output_shape)
        if self.rows is not None and (self.rows.ndim != 3 or self.rows.shape[0] != batch or self.rows.shape[2] != outputs):
            raise ShapeError(f"Rows have shape {tuple(self.rows.shape)}, expected ({batch}, S, {outputs}): batch, rows, flattened outputs.")
        if self.constants is not None:
            count = outputs if self.rows is None else self.rows.shape[1]
            if tuple(self.constants.shape) != (batch, count):
                raise ShapeError(f"Constants have shape {tuple(self.constants.shape)}, expected ({batch}, {count}): one for each row.")


@dataclass(frozen=True, slots=True)
class BoundResult:
    """lower <= rows @ y + constants <= upper, each `(B, S)`; `upper` is None where it was not asked.

    `intermediate` bounds the value of every node that a nonlinear operation reads.
    """

    lower: Tensor
    upper: Tensor | None
    intermediate: dict[str, Box]


class BoundEngine(Protocol):
    """Any function from requests to sound results."""

    def __call__(self, request: BoundRequest) -> BoundResult: ...
