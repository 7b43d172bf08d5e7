"""Terms that make the first epochs of interval training stable: they fade out as eps reaches its final value.

Ref: Shi et al., arXiv:2103.17268, section 4.3: lambda (1 - eps / eps_final) (L_tightness + L_relu), tolerance tau = 0.5.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from certprune.models import Normalize
from certprune.ranges import Weight
from certprune.train.net import Batch
from certprune.train.regularizers import pre_activations

TOLERANCE = 0.5
SMALLEST = 1e-12


@dataclass(frozen=True, slots=True)
class BoundTightness:
    """weight * (1 - eps/eps_final) * mean over layers i of relu(1 - (E r_0 / E r_i) / tau).

    r_i are the radii of a layer's pre-activations, r_0 those of the normalised image: a pixel's radius divided by the normalisation's std.
    """

    weight: Weight = 0.5
    name: ClassVar[str] = "tightness"

    def __call__(self, batch: Batch) -> Tensor:
        if batch.eps in (0, batch.final_eps):
            return batch.x.new_zeros(())
        scale = next((module.std for module in batch.net.model.modules() if isinstance(module, Normalize)), 1.0)
        at_input = (batch.box().radius / scale).mean()
        terms = [(1 - at_input / box.radius.mean().clamp(min=SMALLEST) / TOLERANCE).relu() for _, box in pre_activations(batch.ibp())]
        return fading(batch, self.weight) * mean(terms, batch)


@dataclass(frozen=True, slots=True)
class ReluBalance:
    """weight * (1 - eps/eps_final) * mean over layers of relu(1 - a/tau) + relu(1 - b/tau), balanced layers having a = b = 1.

    With c the centres of the pre-activations' bounds, a is the smaller of the sums of |c| over active and over inactive neurons divided by the
    larger, and b the same of (c - mean c)^2. A layer without active (or inactive) neurons has a = b = 0.
    """

    weight: Weight = 0.5
    name: ClassVar[str] = "relu-balance"

    def __call__(self, batch: Batch) -> Tensor:
        if batch.eps == batch.final_eps:
            return batch.x.new_zeros(())
        terms = []
        for _, box in pre_activations(batch.ibp()):
            center = box.center
            active, inactive = box.lower > 0, box.upper < 0
            spread = (center - center.mean()).square()
            terms += [
                (1 - ratio((value * active).sum(), (value * inactive).sum()) / TOLERANCE).relu() for value in (center.abs(), spread)
            ]
        return fading(batch, self.weight) * 2 * mean(terms, batch)


def fading(batch: Batch, weight: float) -> float:
    """The weight of now."""
    return weight * (1 - batch.eps / batch.final_eps)


def ratio(a: Tensor, b: Tensor) -> Tensor:
    """min(a / b, b / a) for a, b >= 0; 0 where either is 0."""
    return a.minimum(b) / a.maximum(b).clamp(min=SMALLEST)


def mean(terms: list[Tensor], batch: Batch) -> Tensor:
    """The mean of scalars, 0 of none."""
    return sum(terms, batch.x.new_zeros(())) / max(len(terms), 1)
