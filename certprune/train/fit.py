"""The training loop: one for every objective, every regulariser, and everything that can be learned (weights, or scores of weights).

A run is a sequence of epochs, and an epoch depends on nothing but the state before it, the settings and (seed, epoch): so a run that was cut
after any epoch and resumed from its `Checkpoint` ends with the same numbers.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import verifier
from certprune.train.initialise import Initialise
from certprune.train.net import Batch, Net
from certprune.train.objectives.objective import Objective
from certprune.train.regularizers import Regularizer
from certprune.train.tensors import substituted
from certprune.train.weights import Learned


@dataclass(frozen=True, slots=True)
class FitConfig:
    """eps is 0 for `warmup` epochs, rises for `ramp` epochs, smoothly, and stays; the learning rate falls by a cosine to `final_lr` times itself.

    `optimizer`: adam or sgd (momentum 0.9, Nesterov). `shift`: random shifts by so many pixels; `flip`: random mirror images. `initialise`: the
    weights that a dense network starts from.
    """

    epochs: int
    eps: float
    objective: Objective
    regularizers: tuple[Regularizer, ...] = ()
    batch: int = 128
    lr: float = 1e-3
    final_lr: float = 0.01
    optimizer: str = "adam"
    weight_decay: float = 0.0
    clip: float = 10.0
    warmup: float = 0.0
    ramp: float = 0.0
    shift: int = 0
    flip: bool = False
    seed: int = 0
    initialise: Initialise = Initialise.DEFAULT


@dataclass(frozen=True, slots=True)
class Epoch:
    """What one epoch came to: means over its batches; accuracy is at the points of the latest forward pass, in training."""

    number: int
    loss: float
    accuracy: float
    seconds: float
    eps: float


@dataclass(slots=True)
class Checkpoint:
    """Everything that the next epoch depends on, as tensors and plain values."""

    epochs: list[Epoch] = field(default_factory=list)
    model: dict[str, Tensor] = field(default_factory=dict)
    learned: list[Tensor] = field(default_factory=list)
    optimizer: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Progress:
    """Told after each batch."""

    epoch: int
    epochs: int
    batch: int
    batches: int
    loss: float


Listener = Callable[[Progress], None]
OPTIMIZERS = {
    "adam": lambda parameters, c: torch.optim.Adam(parameters, c.lr, weight_decay=c.weight_decay),
    "sgd": lambda parameters, c: torch.optim.SGD(parameters, c.lr, momentum=0.9, nesterov=True, weight_decay=c.weight_decay),
}


def radius(config: FitConfig, epoch: float) -> tuple[float, float]:
    """eps and the share of the ramp that is behind at a moment counted in epochs: a quarter of the ramp quadratic, then linear, as smooth as that.

    Ref: the smoothed schedule of Zhang et al., arXiv:1906.06316, appendix.
    """
    if config.ramp == 0:
        share = float(epoch >= config.warmup)
    else:
        share = min(max((epoch - config.warmup) / config.ramp, 0.0), 1.0)
    knee = 0.25
    slope = 1 / (1 - knee / 2)
    eased = slope * (share * share / (2 * knee) if share < knee else share - knee / 2)
    return config.eps * (share if config.ramp == 0 else eased), share


def learning_rate(config: FitConfig, epoch: float) -> float:
    """Cosine from `lr` to `final_lr * lr`; it does not fall before the ramp of eps has ended."""
    start = min(config.warmup + config.ramp, config.epochs)
    share = 0.0 if epoch < start or start >= config.epochs else (epoch - start) / (config.epochs - start)
    return config.lr * (config.final_lr + (1 - config.final_lr) * (1 + math.cos(math.pi * share)) / 2)


@dataclass(frozen=True, slots=True)
class Task:
    """A training run: the model and its device follow from `net`, `x (N, *shape)` 8-bit or in [0, 1], `y (N,)`."""

    net: Net
    learned: Learned
    x: Tensor
    y: Tensor
    config: FitConfig


def fit(task: Task, checkpoint: Checkpoint | None = None, listener: Listener = lambda _: None) -> Iterator[Checkpoint]:
    """Trains in place; yields the state after each epoch that is left.

    Raises:
        VerifierError: the loss is not finite: nothing of that step is kept.
    """
    config, model = task.config, task.net.model
    optimizer = OPTIMIZERS[config.optimizer](task.learned.parameters(), config)
    state = checkpoint or Checkpoint()
    if state.epochs:
        _restore(task, optimizer, state)
    model.train()
    for number in range(len(state.epochs), config.epochs):
        epoch = _epoch(task, optimizer, number, listener)
        state = Checkpoint(
            [*state.epochs, epoch], {k: v.detach().clone() for k, v in model.state_dict().items()},
            [p.detach().clone() for p in task.learned.parameters()], deepcopy(optimizer.state_dict()),
        )
        yield state
    model.eval()


def _restore(task: Task, optimizer: torch.optim.Optimizer, state: Checkpoint) -> None:
    task.net.model.load_state_dict(state.model)
    with torch.no_grad():
        for parameter, value in zip(task.learned.parameters(), state.learned, strict=True):
            parameter.copy_(value)
    optimizer.load_state_dict(deepcopy(state.optimizer))  # it keeps the tensors that it is given, and changes them


def _epoch(task: Task, optimizer: torch.optim.Optimizer, number: int, listener: Listener) -> Epoch:
    import time

    config, started = task.config, time.monotonic()
    generator = torch.Generator().manual_seed(config.seed * 100_003 + number)
    order = torch.randperm(len(task.x), generator=generator)
    batches = order.split(config.batch)
    if len(batches) > 1 and len(batches[-1]) < 2:
        batches = batches[:-1]  # BatchNorm knows no variance of one image
    losses, right = 0.0, 0
    device = next(task.net.model.parameters()).device
    for k, index in enumerate(batches):
        moment = number + k / len(batches)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, moment)
        x, y = augment(pixels(task.x[index]), config, generator).to(device), task.y[index].to(device)
        eps, share = radius(config, moment)
        batch = Batch(task.net, x, y, eps, config.eps, share, generator)
        loss = _step(task, optimizer, batch)
        losses += loss
        with torch.no_grad():
            right += int((batch.latest.argmax(1) == y).sum())
        listener(Progress(number, config.epochs, k + 1, len(batches), losses / (k + 1)))
    count = sum(len(index) for index in batches)
    return Epoch(number, losses / len(batches), right / count, time.monotonic() - started, radius(config, number + 1)[0])


def _step(task: Task, optimizer: torch.optim.Optimizer, batch: Batch) -> float:
    """One step of the optimiser; the loss."""
    config = task.config
    with substituted(task.net.model, task.learned.tensors()):
        loss = _loss(config, batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
    norm = nn.utils.clip_grad_norm_(task.learned.parameters(), config.clip)
    if not math.isfinite(float(loss.detach())) or not math.isfinite(float(norm)):
        seen = f"The loss became {float(loss.detach())} with a gradient of norm {float(norm)}"
        raise verifier.VerifierError(f"{seen}: lower lr (it is {config.lr:g}) or eps.")
    optimizer.step()
    task.learned.settle()
    return float(loss.detach())


def _loss(config: FitConfig, batch: Batch) -> Tensor:
    """The objective and the regularisers' terms.

    Raises:
        VerifierError: as the bound engines; where weights that have grown beyond float32 are the cause, it says so.
    """
    try:
        loss = config.objective(batch)
        for regularizer in config.regularizers:
            loss = loss + regularizer(batch)
        return loss
    except verifier.VerifierError:
        values = (*batch.net.model.parameters(), *batch.statistics().values())
        if all(bool(value.isfinite().all()) for value in values):
            raise
        raise verifier.VerifierError(f"The loss became nan: lower lr (it is {config.lr:g}) or eps.") from None


def pixels(x: Tensor) -> Tensor:
    """8-bit images as float32 in [0, 1]; others as they are."""
    return x.float() / 255 if x.dtype == torch.uint8 else x


def augment(x: Tensor, config: FitConfig, generator: torch.Generator) -> Tensor:
    """Mirrored (half of the images) and shifted by up to `shift` pixels with zeros moving in, `(B, C, H, W)`."""
    if config.flip:
        mirrored = torch.rand(len(x), generator=generator) < 0.5
        x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
    if config.shift:
        s, (h, w) = config.shift, x.shape[2:]
        padded = nn.functional.pad(x, (s, s, s, s))
        at = torch.randint(0, 2 * s + 1, (2, len(x)), generator=generator)
        rows, columns = at[0][:, None] + torch.arange(h), at[1][:, None] + torch.arange(w)
        x = padded[torch.arange(len(x))[:, None, None, None], torch.arange(x.shape[1])[None, :, None, None], rows[:, None, :, None],
                   columns[:, None, None, :]]
    return x
