"""How stable each ReLU's neuron is over the eps box, in units that BatchNorm's scale cannot cheat."""
from __future__ import annotations

from torch import Tensor

from certprune.train.net import Batch
from certprune.train.regularizers import ENGINES, pre_activations


def instabilities(batch: Batch, engine: str) -> dict[str, Tensor]:
    """-tanh(1 + l u / gamma^2) of each neuron, `(B, *shape)` by the name of the value that a ReLU reads; gamma is held constant.

    From -1 (stable) to tanh of something positive (unstable); neurons without BatchNorm have gamma = 1. The terms whose mean is the
    regulariser `NormalizedReluStability`.

    Ref: Li et al., arXiv:2206.07311, section 4.
    """
    norms = {value: batch.net.norms[name] for value, name in batch.net.norm_of_value.items()}
    found = {}
    for name, box in pre_activations(ENGINES[engine](batch)):
        product = (box.lower * box.upper).squeeze(1)
        if name in norms and norms[name].affine:
            scale = norms[name].weight.detach().square().clamp(min=1e-12)
            product = product / scale.reshape(-1, *[1] * (product.ndim - 2))
        found[name] = -(1 + product).tanh()
    return found
