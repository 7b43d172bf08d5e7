"""Weights from which interval bounds neither explode nor vanish.

Ref: Shi et al., arXiv:2103.17268, section 4.1 ("IBP initialization").
"""
from __future__ import annotations

import math
from enum import Enum

import torch
from torch import nn


class Initialise(str, Enum):
    """What an untrained network's weights are: torch's own, or those of `initialise_for_ibp`."""

    DEFAULT = "default"
    IBP = "ibp"


@torch.no_grad()
def initialise_for_ibp(model: nn.Module, generator: torch.Generator) -> None:
    """w ~ N(0, 2 pi / fan_in^2) in place, in every convolution and linear layer but the last; biases and BatchNorm stay as they are.

    An affine layer turns the mean radius r of its n inputs into n E|w| r = n * sqrt(2/pi) * std * r, and a ReLU halves it: with
    std = sqrt(2 pi) / n the product is r again. The last layer has no ReLU behind it.
    """
    weighted = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    for module in weighted[:-1]:
        fan_in = module.weight[0].numel()
        drawn = torch.randn(module.weight.shape, generator=generator, dtype=torch.float64) * (math.sqrt(2 * math.pi) / fan_in)
        module.weight.copy_(drawn)
