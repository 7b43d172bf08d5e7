"""Training under Gaussian noise, for a classifier that is smoothed afterwards (certprune/smoothing.py).

Ref: Cohen et al., arXiv:1902.02918, section 3.3: cross entropy at x + N(0, sigma^2 I), not cut at [0, 1].
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from certprune.ranges import Weight
from certprune.train.net import Batch


@dataclass(frozen=True, slots=True)
class Gaussian:
    """`sigma`: in pixel units, the same as the certifier's. eps plays no part."""

    sigma: Weight = 0.25
    name: ClassVar[str] = "gaussian"

    def __call__(self, batch: Batch) -> Tensor:
        noise = torch.randn(batch.x.shape, generator=batch.generator, dtype=batch.x.dtype).to(batch.x.device)
        return cross_entropy(batch.logits(batch.x + self.sigma * noise), batch.y)
