"""Convolutions in one to three spatial dimensions, and their transposes.

ONNX pads need not be symmetric. Where they are, torch pads inside the convolution; where they are not, the value is padded (or cropped)
outside. The transpose of a convolution with pads (p, q) is the full transposed convolution with p cropped in front; the tail that no window
reached is filled with zeros.
"""
from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from verifier.graph.ir import Node
from verifier.ops.rule import SignedAffineOp, register

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def spatial_attributes(node: Node) -> tuple[int, tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Number of spatial axes, strides, dilations, pads in front, pads behind (absent attributes are ONNX's defaults)."""
    rank = len(node.shape) - 2
    strides = tuple(node.attributes.get("strides") or (1,) * rank)
    dilations = tuple(node.attributes.get("dilations") or (1,) * rank)
    pads = tuple(node.attributes.get("pads") or (0,) * (2 * rank))
    return rank, strides, dilations, pads[:rank], pads[rank:]


def pad_spatial(value: Tensor, before: tuple[int, ...], after: tuple[int, ...], fill: float = 0.0) -> Tensor:
    """Pads the last axes by `before` and `after` (negative: crops); the value itself where nothing is to be done."""
    if not any(before) and not any(after):
        return value
    order = [amount for pair in reversed(list(zip(before, after, strict=True))) for amount in pair]
    return F.pad(value, order, value=fill)


def convolve(value: Tensor, node: Node, bias: Tensor | None) -> Tensor:
    """Convolution of `(N, C, *spatial)` as node.attributes say; `(N, C_out, *node.shape[2:])`."""
    rank, strides, dilations, before, after = spatial_attributes(node)
    if before != after:
        value, before = pad_spatial(value, before, after), (0,) * rank
    return _CONV[rank](value, node.constants["weight"], bias, strides, before, dilations, node.attributes.get("group", 1))


def transpose_convolve(coeff: Tensor, node: Node, spatial: tuple[int, ...]) -> Tensor:
    """The adjoint of `convolve`: `(N, C_out, *out)` to `(N, C, *spatial)`, dilations and strides as in the node's attributes."""
    rank, strides, dilations, before, _ = spatial_attributes(node)
    weight, group = node.constants["weight"], node.attributes.get("group", 1)
    if _prefers_convolution(coeff, weight, dilations, group):
        return _transpose_by_convolution(coeff, weight, strides, before, spatial)
    reach = [(o - 1) * s + (k - 1) * d + 1 for o, s, k, d in zip(coeff.shape[2:], strides, weight.shape[2:], dilations, strict=True)]
    missing = tuple(n + 2 * p - r for n, p, r in zip(spatial, before, reach, strict=True))
    if all(0 <= m < max(s, d) for m, s, d in zip(missing, strides, dilations, strict=True)):
        return _CONV_TRANSPOSE[rank](coeff, weight, None, strides, before, missing, group, dilations)
    full = _CONV_TRANSPOSE[rank](coeff, weight, None, strides, 0, 0, group, dilations)
    return pad_spatial(full, tuple(-p for p in before), tuple(n + p - r for n, p, r in zip(spatial, before, reach, strict=True)))


def full_transpose(coeff: Tensor, node: Node) -> Tensor:
    """The adjoint of `convolve` without pads: every value that a window of coefficients reaches, `(N, C, *reach)`."""
    rank, strides, dilations, _, _ = spatial_attributes(node)
    weight, group = node.constants["weight"], node.attributes.get("group", 1)
    if _prefers_convolution(coeff, weight, dilations, group):
        reach = tuple((o - 1) * s + k for o, s, k in zip(coeff.shape[2:], strides, weight.shape[2:], strict=True))
        return _transpose_by_convolution(coeff, weight, strides, (0,) * rank, reach)
    return _CONV_TRANSPOSE[rank](coeff, weight, None, strides, 0, 0, group, dilations)


def _prefers_convolution(coeff: Tensor, weight: Tensor, dilations: tuple[int, ...], group: int) -> bool:
    """On CPUs a plain convolution is two to five times faster than torch's transposed one (measured with oneDNN, few channels, stride
    2).
    """
    return coeff.device.type == "cpu" and weight.ndim == 4 and group == 1 and set(dilations) == {1}


def _transpose_by_convolution(
    coeff: Tensor, weight: Tensor, strides: tuple[int, ...], before: tuple[int, ...], spatial: tuple[int, ...]
) -> Tensor:
    """The transposed convolution, one plain convolution for each remainder a of the output coordinate modulo the stride s, all in one call.

    y[s q + a] = sum over m of x[q - m] w[a + s m]: K = ceil(k / s) taps for each a. The s^2 remainders are s^2 times as many channels,
    which `pixel_shuffle` puts in their places; then `before` values are cropped in front and the size is made `spatial`.
    """
    out, into, kernel = weight.shape[0], weight.shape[1], weight.shape[2:]
    if tuple(strides) == (1, 1):
        # Cropping within the convolution crops both ends alike: only as much as neither end needs.
        crop = [max(0, min(p, k - 1, o + k - 1 - n - p)) for p, k, o, n in zip(before, kernel, coeff.shape[2:], spatial, strict=True)]
        pads = tuple(k - 1 - c for k, c in zip(kernel, crop, strict=True))
        value = F.conv2d(coeff, weight.flip(2, 3).transpose(0, 1), None, 1, pads)
        before = tuple(p - c for p, c in zip(before, crop, strict=True))
    else:
        (s, t), taps = strides, [-(-k // step) for k, step in zip(kernel, strides, strict=True)]
        weight = F.pad(weight, (0, taps[1] * t - kernel[1], 0, taps[0] * s - kernel[0])).reshape(out, into, taps[0], s, taps[1], t)
        phases = weight.flip(2, 4).permute(1, 3, 5, 0, 2, 4).reshape(into * s * t, out, *taps)
        value = F.conv2d(coeff, phases, None, 1, (taps[0] - 1, taps[1] - 1))
        value = F.pixel_shuffle(value, s) if s == t else _interleave(value, s, t)
    for axis, (first, size) in enumerate(zip(before, spatial, strict=True)):
        value = value.narrow(axis + 2, first, min(size, value.shape[axis + 2] - first))
    return pad_spatial(value, (0, 0), tuple(size - value.shape[axis + 2] for axis, size in enumerate(spatial)))


def _interleave(value: Tensor, s: int, t: int) -> Tensor:
    """`(N, C s t, p, q)` to `(N, C, p s, q t)`: pixel_shuffle for two different factors."""
    count, channels, p, q = value.shape
    return value.reshape(count, channels // (s * t), s, t, p, q).permute(0, 1, 4, 2, 5, 3).reshape(count, -1, p * s, q * t)


def channel_bias(node: Node) -> Tensor | None:
    """The bias `(C_out, 1, ...)`, which broadcasts over the spatial axes; None where the node has none."""
    bias = node.constants.get("bias")
    return None if bias is None else bias.reshape(-1, *(1,) * (len(node.shape) - 2))


@register("Conv")
class Conv(SignedAffineOp):
    """Cross-correlation of (1, C, *spatial) with weight (C_out, C / group, *kernel), plus bias (C_out,)."""

    signed = ("weight",)

    def forward(self, node: Node, *inputs: Tensor) -> Tensor:
        batch = inputs[0].shape[0]
        return convolve(inputs[0].flatten(0, 1), node, node.constants.get("bias")).reshape(batch, *node.shape)

    def linear(self, node: Node, *inputs: Tensor) -> Tensor:
        batch = inputs[0].shape[0]
        return convolve(inputs[0].flatten(0, 1), node, None).reshape(batch, *node.shape)

    def shift(self, node: Node, like: Tensor, input_shapes: tuple[tuple[int, ...], ...]) -> Tensor | None:
        return channel_bias(node)

    def adjoint(self, node: Node, coeff: Tensor, input_shapes: tuple[tuple[int, ...], ...]) -> tuple[Tensor, ...]:
        shape = input_shapes[0]
        return (transpose_convolve(coeff.flatten(0, 1), node, shape[2:]).reshape(coeff.shape[0], *shape),)


@register("ConvTranspose")
class ConvTranspose(SignedAffineOp):
    """Transposed convolution of (1, C, *spatial) with weight (C, C_out / group, *kernel), plus bias (C_out,)."""

    signed = ("weight",)

    def forward(self, node: Node, *inputs: Tensor) -> Tensor:
        value, bias = self.linear(node, *inputs), channel_bias(node)
        return value if bias is None else value + bias

    def linear(self, node: Node, *inputs: Tensor) -> Tensor:
        value = transpose_convolve(inputs[0].flatten(0, 1), node, node.shape[2:])
        return value.reshape(inputs[0].shape[0], *node.shape)

    def shift(self, node: Node, like: Tensor, input_shapes: tuple[tuple[int, ...], ...]) -> Tensor | None:
        return channel_bias(node)

    def adjoint(self, node: Node, coeff: Tensor, input_shapes: tuple[tuple[int, ...], ...]) -> tuple[Tensor, ...]:
        shape = input_shapes[0]
        value = convolve(coeff.flatten(0, 1), node, None)
        inner = tuple(slice(0, size) for size in shape[2:])
        return (value[(slice(None), slice(None), *inner)].reshape(coeff.shape[0], *shape),)
