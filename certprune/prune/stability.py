"""How stable each ReLU's neuron is over the eps box, in units that BatchNorm's scale cannot cheat."""
from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from certprune.train.net import Batch
from certprune.train.regularizers import ENGINES, pre_activations


@dataclass(frozen=True, slots=True)
class Range:
    """Bounds of neurons as centre and radius, both `(B, *shape)`, in units of the BatchNorm scale gamma (of 1, where there is none)."""

    centre: Tensor
    radius: Tensor

    def instability(self) -> Tensor:
        """-tanh(1 + l u / gamma^2) with l u / gamma^2 = centre^2 - radius^2: from -1 (stable) up to 1 (unstable)."""
        return -(1 + self.centre.square() - self.radius.square()).tanh()


def ranges(batch: Batch, engine: str) -> dict[str, Range]:
    """The bounds of each value that a ReLU reads, by its name; gamma is held constant.

    The mean of their `instability` is the regulariser `NormalizedReluStability`.

    Ref: Li et al., arXiv:2206.07311, section 4.
    """
    norms = {value: batch.net.norms[name] for value, name in batch.net.norm_of_value.items()}
    found = {}
    for name, box in pre_activations(ENGINES[engine](batch)):
        lower, upper = box.lower.squeeze(1), box.upper.squeeze(1)
        centre, radius = (lower + upper) / 2, (upper - lower) / 2
        if name in norms and norms[name].affine:
            scale = norms[name].weight.detach().abs().clamp(min=1e-6).reshape(-1, *[1] * (lower.ndim - 2))
            centre, radius = centre / scale, radius / scale
        found[name] = Range(centre, radius)
    return found
