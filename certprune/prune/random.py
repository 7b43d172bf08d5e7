"""Chance decides: the baseline of every method."""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from certprune.prune.mask import Scores, weights_of
from certprune.prune.scorer import Context


@dataclass(frozen=True, slots=True)
class Random:
    """score(w) uniform in [0, 1), from the context's generator."""

    name: ClassVar[str] = "random"
    granularity: ClassVar[Literal["weight"]] = "weight"

    def __call__(self, context: Context) -> Scores:
        weights = weights_of(context.net.model, context.mask)
        return {name: torch.rand(w.shape, generator=context.generator).to(w.device) for name, w in weights.items()}
