"""What a training run learns: the weights themselves (under a fixed mask), or something that the weights are a function of."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from certprune.prune.mask import apply


class Learned(Protocol):
    """`parameters()` go to the optimiser; `tensors()` stand in the place of the model's during a step; `settle()` follows each step."""

    def parameters(self) -> list[Tensor]: ...

    def tensors(self) -> dict[str, Tensor]: ...

    def settle(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Weights:
    """All parameters of a model; removed weights are set back to zero after each step."""

    model: nn.Module
    mask: Mapping[str, Tensor]

    def parameters(self) -> list[Tensor]:
        return [p for p in self.model.parameters() if p.requires_grad]

    def tensors(self) -> dict[str, Tensor]:
        return {}

    def settle(self) -> None:
        apply(self.model, self.mask)
