"""Cross entropy at the images themselves."""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import cross_entropy

from certprune.train.net import Batch


@dataclass(frozen=True, slots=True)
class Natural:
    name: ClassVar[str] = "natural"

    def __call__(self, batch: Batch) -> Tensor:
        return cross_entropy(batch.clean, batch.y)
