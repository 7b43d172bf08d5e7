"""Small trained networks and contexts that the tests of pruning share."""
from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from certprune.prune.mask import Layers, full
from certprune.prune.scorer import Context
from certprune.train.fit import FitConfig, Task, fit
from certprune.train.net import Net
from certprune.train.objectives.natural import Natural
from certprune.train.weights import Weights


def small_convnet(seed: int = 0) -> nn.Sequential:
    """Three convolutions (two with BatchNorm, one with a bias), a hidden linear layer and the last."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 12, 3, 2, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Conv2d(12, 10, 3, 1, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(90, 16), nn.ReLU(), nn.Linear(16, 4),
    )


def small_mlp(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 24), nn.ReLU(), nn.Linear(24, 20), nn.ReLU(), nn.Linear(20, 4))


def quadrants(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy 6x6 images whose brightest quadrant is the label; `(N, 1, 6, 6)` in [0, 1] and `(N,)`."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 4, (count,), generator=generator)
    x = 0.5 * torch.rand(count, 1, 6, 6, generator=generator)
    for k in range(count):
        row, column = divmod(int(y[k]), 2)
        x[k, 0, 3 * row:3 * row + 3, 3 * column:3 * column + 3] += 0.4
    return x, y


def context_of(model: nn.Module, layers: Layers = Layers.ALL, epochs: int = 3, count: int = 192) -> Context:
    """The model trained for a moment, and what a scorer is asked of it."""
    net = Net(model, (1, 6, 6))
    x, y = quadrants(count)
    config = FitConfig(epochs, 0.05, Natural(), batch=32, lr=3e-3, ramp=1)
    mask = full(model, layers)
    for _ in fit(Task(net, Weights(model, mask), x, y, config)):
        pass
    model.eval()
    return Context(net, mask, x, y, replace(config, epochs=1), 0.5, torch.Generator().manual_seed(0))


def states_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())
