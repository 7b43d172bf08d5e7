"""The networks that CertPrune trains, prunes and certifies, by name: x -> f((x - mean) / std), images in [0, 1].

The normalisation is the first module of every network, so that a radius eps is in pixel units and the exported file takes plain images.
`width` multiplies every count of convolution channels (of hidden neurons in an mlp) and 1.0 is the published network. Built only from
convolutions, linear layers, batch norms, ReLUs, pooling, flattening and `+`: what the verifier reads and an ONNX file holds exactly.

| name | network | Ref |
|---|---|---|
| paper7 | five convolutions with BatchNorm, FC 100, FC | Li et al., arXiv:2206.07311 |
| oval-base, oval-wide, oval-deep | two or four convolutions, FC 100, FC | VNN-COMP 2021, oval21 |
| cnn7 | five 3x3 convolutions, each with BatchNorm (the linear layers have none), FC 512, FC | Shi et al., arXiv:2103.17268 |
| mlp | `hidden` neurons a layer | |
| resnet | stem, `blocks` (2 or 4) residual blocks with BatchNorm, FC 100, FC | VNN-COMP 2021, cifar10_resnet |
| vgg16 | thirteen 3x3 convolutions with BatchNorm, three linear layers | Sehwag et al. (HYDRA), arXiv:2002.10509 |
| wrn-28-4 | WideResNet of depth 28 and widening 4, pre-activation | Sehwag et al. (HYDRA), arXiv:2002.10509 |
"""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from verifier import VerifierError

Shape = tuple[int, int, int]
# Of one convolution: output channels before `width`, kernel size, stride; padding is 1.
Layers = tuple[tuple[int, int, int], ...]

PAPER7: Layers = ((32, 3, 1), (64, 4, 2), (64, 3, 1), (128, 4, 2), (128, 4, 2))
CNN7: Layers = ((64, 3, 1), (64, 3, 1), (128, 3, 2), (128, 3, 1), (128, 3, 1))
OVAL_BASE: Layers = ((8, 4, 2), (16, 4, 2))
OVAL_WIDE: Layers = ((16, 4, 2), (32, 4, 2))
OVAL_DEEP: Layers = ((8, 4, 2), (8, 3, 1), (8, 3, 1), (8, 4, 2))
# Channels of the 3x3 convolutions between the max poolings.
VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
# For each number of blocks: the stem's channels, then channels and stride of each block.
RESNETS = {2: (8, ((16, 2), (16, 1))), 4: (16, ((32, 2), (32, 1), (32, 2), (32, 1)))}


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Which network: `hidden` is read by `mlp` alone, `blocks` by `resnet` alone."""

    name: str
    width: float = 1.0
    hidden: tuple[int, ...] = (256, 256)
    blocks: int = 2


class Normalize(nn.Module):
    """(x - mean) / std, a number each for every channel."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([float(m) for m in mean]).reshape(-1, 1, 1))
        self.register_buffer("std", torch.tensor([float(s) for s in std]).reshape(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class ResidualBlock(nn.Module):
    """relu(shortcut(x) + bn(conv(relu(bn(conv(x)))))); the shortcut is the identity, or a strided 1x1 convolution where shapes change."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_conv_bn_relu(channels, out, 3, stride), *_conv_bn(out, out, 3, 1))
        self.shortcut = nn.Identity() if (channels, stride) == (out, 1) else nn.Sequential(*_conv_bn(channels, out, 1, stride))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.body(x) + self.shortcut(x))


class PreActivationBlock(nn.Module):
    """With a = relu(bn(x)): conv(relu(bn(conv(a)))) + x, or + conv1x1(a) where the number of channels or the size changes."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.norm = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())
        self.body = nn.Sequential(*_conv_bn_relu(channels, out, 3, stride), nn.Conv2d(out, out, 3, 1, 1, bias=False))
        self.is_identity = (channels, stride) == (out, 1)
        self.shortcut = nn.Identity() if self.is_identity else nn.Conv2d(channels, out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        a = self.norm(x)
        return self.body(a) + self.shortcut(x if self.is_identity else a)


def build_model(spec: ModelSpec, input_shape: Shape, n_classes: int, mean: Sequence[float], std: Sequence[float]) -> nn.Module:
    """The network `spec`, weights drawn from torch's generator as it stands.

    Args:
        spec: the network's name and size.
        input_shape: `(C, H, W)` of one image, H and W at least 8.
        n_classes: the number of outputs.
        mean: one number for each channel, subtracted from the image.
        std: one positive number for each channel, by which it is then divided.

    Raises:
        VerifierError: no such name, or sizes that no network has.
    """
    _check(spec, input_shape, n_classes, mean, std)
    layers = _FAMILIES[spec.name](spec, input_shape, n_classes)
    return nn.Sequential(Normalize(mean, std), *layers)


def _check(spec: ModelSpec, input_shape: Shape, n_classes: int, mean: Sequence[float], std: Sequence[float]) -> None:
    if spec.name not in _FAMILIES:
        raise VerifierError(f"There is no network {spec.name!r}: choose one of {', '.join(_FAMILIES)}.")
    if not (math.isfinite(spec.width) and spec.width > 0):
        raise VerifierError(f"The width of {spec.name} is {spec.width}: it must be a positive number.")
    if len(input_shape) != 3 or input_shape[0] < 1 or min(input_shape[1:]) < 8:
        raise VerifierError(f"{spec.name} takes images (channels, height, width) of at least 8x8, not {tuple(input_shape)}.")
    if n_classes < 2:
        raise VerifierError(f"{spec.name} is asked for {n_classes} class(es): a classifier has at least two.")
    if not len(mean) == len(std) == input_shape[0] or not all(s > 0 for s in std):
        raise VerifierError(f"The mean {tuple(mean)} and deviation {tuple(std)} need {input_shape[0]} number(s) each, deviations positive.")


def _sequential(layers: Layers, batch_norm: bool, dense: int) -> Callable[[ModelSpec, Shape, int], list[nn.Module]]:
    """A builder of convolutions, each followed by a ReLU, then FC `dense` and the last linear layer."""

    def build(spec: ModelSpec, input_shape: Shape, n_classes: int) -> list[nn.Module]:
        found: list[nn.Module] = []
        channels = input_shape[0]
        for size, kernel, stride in layers:
            out = _wide(size, spec)
            found += _conv_bn_relu(channels, out, kernel, stride) if batch_norm else [nn.Conv2d(channels, out, kernel, stride, 1), nn.ReLU()]
            channels = out
        return [*found, *_dense(found, input_shape, (dense,), n_classes)]

    return build


def _mlp(spec: ModelSpec, input_shape: Shape, n_classes: int) -> list[nn.Module]:
    return _dense([], input_shape, tuple(_wide(size, spec) for size in spec.hidden), n_classes)


def _resnet(spec: ModelSpec, input_shape: Shape, n_classes: int) -> list[nn.Module]:
    if spec.blocks not in RESNETS:
        raise VerifierError(f"A resnet has 2 or 4 blocks, not {spec.blocks}.")
    stem, blocks = RESNETS[spec.blocks]
    channels = _wide(stem, spec)
    found: list[nn.Module] = _conv_bn_relu(input_shape[0], channels, 3, 2)
    for size, stride in blocks:
        found.append(ResidualBlock(channels, _wide(size, spec), stride))
        channels = _wide(size, spec)
    return [*found, *_dense(found, input_shape, (100,), n_classes)]


def _vgg16(spec: ModelSpec, input_shape: Shape, n_classes: int) -> list[nn.Module]:
    """At 32x32 the published network; where an image has become one pixel, poolings are left out."""
    found: list[nn.Module] = []
    channels, sides = input_shape[0], input_shape[1:]
    for number, group in enumerate(VGG16):
        if number and min(sides) > 1:
            found.append(nn.MaxPool2d(2, 2))
            sides = (sides[0] // 2, sides[1] // 2)
        for size in group:
            found += _conv_bn_relu(channels, _wide(size, spec), 3, 1)
            channels = _wide(size, spec)
    found.append(nn.AdaptiveAvgPool2d(tuple(1 if side % 2 else 2 for side in sides)))
    return [*found, *_dense(found, input_shape, (_wide(256, spec),) * 2, n_classes)]


def _wrn_28_4(spec: ModelSpec, input_shape: Shape, n_classes: int) -> list[nn.Module]:
    """(28 - 4) / 6 = 4 blocks in each of three groups."""
    channels = _wide(16, spec)
    found: list[nn.Module] = [nn.Conv2d(input_shape[0], channels, 3, 1, 1, bias=False)]
    for size, stride in ((64, 1), (128, 2), (256, 2)):
        for number in range(4):
            found.append(PreActivationBlock(channels, _wide(size, spec), 1 if number else stride))
            channels = _wide(size, spec)
    return [*found, nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, n_classes)]


def _wide(size: int, spec: ModelSpec) -> int:
    return max(1, round(size * spec.width))


def _conv_bn(channels: int, out: int, kernel: int, stride: int) -> list[nn.Module]:
    """No bias: the batch norm has one. Padding 1, none for a 1x1 kernel."""
    return [nn.Conv2d(channels, out, kernel, stride, int(kernel > 1), bias=False), nn.BatchNorm2d(out)]


def _conv_bn_relu(channels: int, out: int, kernel: int, stride: int) -> list[nn.Module]:
    return [*_conv_bn(channels, out, kernel, stride), nn.ReLU()]


def _dense(features: list[nn.Module], input_shape: Shape, hidden: tuple[int, ...], n_classes: int) -> list[nn.Module]:
    """Flatten, then linear layers with ReLUs between; the first one's size is read off the features, run once on zeros."""
    with torch.no_grad():
        size = nn.Sequential(*features).eval()(torch.zeros(1, *input_shape)).numel()
    for module in features:
        module.train()
    found: list[nn.Module] = [nn.Flatten()]
    for neurons in hidden:
        found += [nn.Linear(size, neurons), nn.ReLU()]
        size = neurons
    return [*found, nn.Linear(size, n_classes)]


_FAMILIES: dict[str, Callable[[ModelSpec, Shape, int], list[nn.Module]]] = {
    "paper7": _sequential(PAPER7, batch_norm=True, dense=100),
    "oval-base": _sequential(OVAL_BASE, batch_norm=False, dense=100),
    "oval-wide": _sequential(OVAL_WIDE, batch_norm=False, dense=100),
    "oval-deep": _sequential(OVAL_DEEP, batch_norm=False, dense=100),
    "cnn7": _sequential(CNN7, batch_norm=True, dense=512),
    "mlp": _mlp,
    "resnet": _resnet,
    "vgg16": _vgg16,
    "wrn-28-4": _wrn_28_4,
}
MODEL_NAMES = tuple(_FAMILIES)
