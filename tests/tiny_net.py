"""A tiny network with BatchNorm in float64, and training's losses of it written out with dense matrices. Calls no code of certprune's training."""
from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, cross_entropy

SHAPE = (1, 4, 4)
CLASSES = 3
Affine = list[tuple[Tensor, Tensor]]


def tiny_net(seed: int = 0) -> nn.Sequential:
    """Two convolutions with BatchNorm (scales of both signs), one linear layer; in training mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(1, 2, 3, padding=1, bias=False), nn.BatchNorm2d(2), nn.ReLU(),
            nn.Conv2d(2, 3, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(3), nn.ReLU(),
            nn.Flatten(), nn.Linear(12, CLASSES),
        ).double()
        for norm in (model[1], model[4]):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.3)
            nn.init.uniform_(norm.running_var, 0.5, 2.0)
            norm.weight.data[0] *= -1
    return model.train()


def tiny_images(seed: int = 0, count: int = 6) -> tuple[Tensor, Tensor]:
    """Images in [0, 1], some of whose eps boxes are cut there, and labels."""
    generator = torch.Generator().manual_seed(seed)
    x = (1.4 * torch.rand(count, *SHAPE, generator=generator, dtype=torch.float64) - 0.2).clamp(0, 1)
    return x, torch.randint(0, CLASSES, (count,), generator=generator)


def layers_of(model: nn.Sequential, x: Tensor) -> Affine:
    """The three affine layers `(W, b)` that the network has where BatchNorm uses the statistics of the batch x, with their gradients."""
    found, value, shape = [], x.flatten(1), SHAPE
    for conv, norm in ((model[0], model[1]), (model[3], model[4])):
        size = shape[0] * shape[1] * shape[2]
        columns = conv2d(torch.eye(size, dtype=x.dtype).reshape(size, *shape), conv.weight, stride=conv.stride, padding=conv.padding)
        shape = tuple(columns.shape[1:])
        weight = columns.flatten(1).T
        channels = (value @ weight.T).reshape(len(x), shape[0], -1)
        mean = channels.mean((0, 2))
        scale = norm.weight / (((channels - mean[:, None]) ** 2).mean((0, 2)) + norm.eps).sqrt()
        pixels = shape[1] * shape[2]
        found.append((weight * scale.repeat_interleave(pixels)[:, None], (norm.bias - mean * scale).repeat_interleave(pixels)))
        value = (value @ found[-1][0].T + found[-1][1]).clamp(min=0)
    return [*found, (model[7].weight, model[7].bias)]


def forward(layers: Affine, x: Tensor) -> Tensor:
    value = x.flatten(1)
    for weight, bias in layers[:-1]:
        value = (value @ weight.T + bias).clamp(min=0)
    return value @ layers[-1][0].T + layers[-1][1]


def intervals(layers: Affine, lower: Tensor, upper: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Interval bounds of the pre-activations of each hidden layer."""
    lower, upper, found = lower.flatten(1), upper.flatten(1), []
    for weight, bias in layers[:-1]:
        plus, minus = weight.clamp(min=0), weight.clamp(max=0)
        lower, upper = lower @ plus.T + upper @ minus.T + bias, upper @ plus.T + lower @ minus.T + bias
        found.append((lower, upper))
        lower, upper = lower.clamp(min=0), upper.clamp(min=0)
    return found


def margin_rows(layers: Affine, y: Tensor) -> tuple[Tensor, Tensor]:
    """y_label - y_j as rows over the last hidden layer: `(B, C, n)` and `(B, C)`."""
    weight, bias = layers[-1]
    return weight[y][:, None] - weight[None], bias[y][:, None] - bias[None]


def ibp_margins(layers: Affine, lower: Tensor, upper: Tensor, y: Tensor) -> Tensor:
    low, high = (bound.clamp(min=0)[:, None] for bound in intervals(layers, lower, upper)[-1])
    rows, offset = margin_rows(layers, y)
    return (rows.clamp(min=0) * low + rows.clamp(max=0) * high).sum(2) + offset


def crown_ibp_margins(layers: Affine, lower: Tensor, upper: Tensor, y: Tensor) -> Tensor:
    """Margins backwards with adaptive slopes over interval bounds; where intervals are better, those."""
    rows, offset = margin_rows(layers, y)
    for (weight, bias), (low, high) in zip(layers[-2::-1], intervals(layers, lower, upper)[::-1]):
        unstable = (low < 0) & (high > 0)
        chord = torch.where(unstable, high / torch.where(unstable, high - low, 1.0), (low >= 0).double())
        below = torch.where(unstable, (high >= -low).double(), chord)
        offset = offset + (rows.clamp(max=0) * torch.where(unstable, -chord * low, 0.0)[:, None]).sum(2)
        rows = rows.clamp(min=0) * below[:, None] + rows.clamp(max=0) * chord[:, None]
        rows, offset = rows @ weight, offset + rows @ bias
    center, radius = ((upper + lower) / 2).flatten(1)[:, None], ((upper - lower) / 2).flatten(1)[:, None]
    bound = (rows * center).sum(2) - (rows.abs() * radius).sum(2) + offset
    return torch.maximum(bound, ibp_margins(layers, lower, upper, y))


def ascent(loss: Callable[[Tensor], Tensor], start: Tensor, step: Tensor | float, lower: Tensor, upper: Tensor, steps: int) -> Tensor:
    """Signed gradient steps, each followed by the projection onto the box."""
    x = start
    for _ in range(steps):
        x = x.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(loss(x), x)
        x = torch.min(torch.max(x.detach() + step * gradient.sign(), lower), upper)
    return x


def softmax_loss(layers: Affine, x: Tensor, y: Tensor) -> Tensor:
    """The sum of cross entropies."""
    return cross_entropy(forward(layers, x), y, reduction="sum")
