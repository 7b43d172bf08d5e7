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
    if prefers_convolution(coeff, weight, dilations, group):
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
    if prefers_convolution(coeff, weight, dilations, group):
        reach = tuple((o - 1) * s + k for o, s, k in zip(coeff.shape[2:], strides, weight.shape[2:], strict=True))
        return _transpose_by_convolution(coeff, weight, strides, (0,) * rank, reach)
    return _CONV_TRANSPOSE[rank](coeff, weight, None, strides, 0, 0, group, dilations)


def prefers_convolution(coeff: Tensor, weight: Tensor, dilations: tuple[int, ...], group: int) -> bool:
    """On CPUs a plain convolution is two to five times faster than torch's transposed one (measured with oneDNN, few channels, stride 2)."""
    return coeff.device.type == "cpu" and weight.ndim == 4 and group == 1 and set(dilations) == {1}


def phases(coeff: Tensor, weight: Tensor, strides: tuple[int, ...], crop: tuple[int, int] = (0, 0)) -> Tensor:
    """The full transposed convolution of `(N, C_out, h, w)` by one plain convolution, its output coordinates sorted by remainder.

    y[s q + a] = sum over m of x[q - m] w[a + s m], K = ceil(k / s) taps for each remainder a modulo the stride s; the s t remainders of both axes
    are channels: `(N, C s t, h + K - 1, ...)`, in `pixel_shuffle`'s order. `crop` leaves out so many coordinates at both ends (stride 1 only).
    """
    out, into, (height, width) = weight.shape[0], weight.shape[1], weight.shape[2:]
    s, t = strides
    rows, columns = -(-height // s), -(-width // t)
    weight = F.pad(weight, (0, columns * t - width, 0, rows * s - height)).reshape(out, into, rows, s, columns, t)
    weight = weight.flip(2, 4).permute(1, 3, 5, 0, 2, 4).reshape(into * s * t, out, rows, columns)
    return F.conv2d(coeff, weight, None, 1, (rows - 1 - crop[0], columns - 1 - crop[1]))


def _transpose_by_convolution(
    coeff: Tensor, weight: Tensor, strides: tuple[int, ...], before: tuple[int, ...], spatial: tuple[int, ...]
) -> Tensor:
    """The transposed convolution by `phases`, put in place, with `before` values cropped in front and the size made `spatial`."""
    crop = (0, 0)
    if tuple(strides) == (1, 1):
        # Cropping within the convolution crops both ends alike: only as much as neither end needs.
        ends = zip(before, weight.shape[2:], coeff.shape[2:], spatial, strict=True)
        crop = tuple(max(0, min(p, k - 1, o + k - 1 - n - p)) for p, k, o, n in ends)
    value = interleave(phases(coeff, weight, strides, crop), *strides)
    for axis, (first, cropped, size) in enumerate(zip(before, crop, spatial, strict=True)):
        value = value.narrow(axis + 2, first - cropped, min(size, value.shape[axis + 2] - first + cropped))
    return pad_spatial(value, (0, 0), tuple(size - value.shape[axis + 2] for axis, size in enumerate(spatial)))


def interleave(value: Tensor, s: int, t: int) -> Tensor:
    """`(N, C s t, p, q)` to `(N, C, p s, q t)`: pixel_shuffle, for two factors."""
    if s == t == 1:
        return value
    if s == t:
        return F.pixel_shuffle(value, s)
    count, channels, p, q = value.shape
    return value.reshape(count, channels // (s * t), s, t, p, q).permute(0, 1, 4, 2, 5, 3).reshape(count, -1, p * s, q * t)


def sort_phases(value: Tensor, s: int, t: int) -> Tensor:
    """The inverse of `interleave`: `(N, C, p s, q t)` to `(N, C s t, p, q)`."""
    count, channels, height, width = value.shape
    return value.reshape(count, channels, height // s, s, width // t, t).permute(0, 1, 3, 5, 2, 4).reshape(count, -1, height // s, width // t)


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
