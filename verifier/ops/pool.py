"""Average and maximum pooling in one to three spatial dimensions, exactly as ONNX counts windows.

The number of windows is `node.shape`'s; the value is padded (or cropped) until exactly those windows fit. That settles ceil_mode and
asymmetric pads in one place. An average divides by the number of values in its window that count: those of the input, with
count_include_pad also those of the pads, never those beyond the pads that ceil_mode lets a last window reach.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from verifier.box import Box
from verifier.form import SelectionRelaxation
from verifier.graph.ir import Node
from verifier.ops.conv import pad_spatial, spatial_attributes
from verifier.ops.rule import Alpha, NonlinearOp, register
from verifier.ops.shape import NonNegativeOp

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def window_pads(node: Node, spatial: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Pads in front and behind (negative: crop) after which exactly node.shape's windows fit `spatial`."""
    _, strides, dilations, before, _ = spatial_attributes(node)
    kernel = node.attributes["kernel_shape"]
    reach = ((o - 1) * s + (k - 1) * d + 1 for o, s, k, d in zip(node.shape[2:], strides, kernel, dilations, strict=True))
    return before, tuple(r - n - p for r, n, p in zip(reach, spatial, before, strict=True))


def window_sums(value: Tensor, node: Node) -> Tensor:
    """Sum over each window of an already padded `(N, C, *spatial)`: a convolution with ones, channel by channel."""
    rank, strides, dilations, _, _ = spatial_attributes(node)
    ones = value.new_ones(1, 1, *node.attributes["kernel_shape"])
    sums = _CONV[rank](value.reshape(-1, 1, *value.shape[2:]), ones, None, strides, 0, dilations)
    return sums.reshape(*value.shape[:2], *sums.shape[2:])


def window_counts(node: Node, spatial: tuple[int, ...], like: Tensor) -> Tensor:
    """How many values each window averages over, `(*node.shape[2:],)`."""
    rank, _, _, first, last = spatial_attributes(node)
    before, after = window_pads(node, spatial)
    if node.attributes.get("count_include_pad"):
        spatial = tuple(n + p + q for n, p, q in zip(spatial, first, last, strict=True))
        before, after = (0,) * rank, tuple(a - q for a, q in zip(after, last, strict=True))
    ones = pad_spatial(like.new_ones(1, 1, *spatial), before, after)
    return window_sums(ones, node)[0, 0].clamp(min=1.0)


@register("AveragePool")
class AveragePool(NonNegativeOp):
    """Mean of each window of (1, C, *spatial)."""

    def linear(self, node: Node, *inputs: Tensor) -> Tensor:
        value = inputs[0].flatten(0, 1)
        sums = window_sums(pad_spatial(value, *window_pads(node, tuple(value.shape[2:]))), node)
        return (sums / window_counts(node, tuple(value.shape[2:]), value)).reshape(inputs[0].shape[0], *node.shape)

    def adjoint(self, node: Node, coeff: Tensor, input_shapes: tuple[tuple[int, ...], ...]) -> tuple[Tensor, ...]:
        shape = input_shapes[0]
        rank, strides, dilations, _, _ = spatial_attributes(node)
        before, after = window_pads(node, shape[2:])
        shares = (coeff / window_counts(node, shape[2:], coeff)).reshape(-1, 1, *node.shape[2:])
        ones = coeff.new_ones(1, 1, *node.attributes["kernel_shape"])
        full = _CONV_TRANSPOSE[rank](shares, ones, None, strides, 0, 0, 1, dilations)
        value = pad_spatial(full, tuple(-p for p in before), tuple(-q for q in after))
        return (value.reshape(coeff.shape[0], *shape),)


def windows(value: Tensor, node: Node, fill: float) -> Tensor:
    """The K values of each window, `(N, C, *spatial)` to `(N, C, *node.shape[2:], K)`; `fill` stands outside the input."""
    rank, strides, dilations, _, _ = spatial_attributes(node)
    value = pad_spatial(value, *window_pads(node, tuple(value.shape[2:])), fill=fill)
    for axis, (size, stride, dilation) in enumerate(zip(node.attributes["kernel_shape"], strides, dilations, strict=True)):
        value = value.unfold(axis + 2, (size - 1) * dilation + 1, stride)[..., ::dilation]
    return value.flatten(2 + rank)


@register("MaxPool")
class MaxPool(NonlinearOp):
    """Maximum of each window of (1, C, *spatial); what lies outside the input never wins.

    Below: the candidate with the largest lower bound. Above: that candidate too where its lower bound is at least every other one's upper
    bound, else the largest upper bound, a constant.
    """

    def forward(self, node: Node, *inputs: Tensor) -> Tensor:
        value = inputs[0].flatten(0, 1)
        rank, strides, dilations, _, _ = spatial_attributes(node)
        padded = pad_spatial(value, *window_pads(node, tuple(value.shape[2:])), fill=-torch.inf)
        best = _MAX_POOL[rank](padded, tuple(node.attributes["kernel_shape"]), strides, 0, dilations)
        return best.reshape(inputs[0].shape[0], *node.shape)

    def interval(self, node: Node, *boxes: Box) -> Box:
        return Box(self.forward(node, boxes[0].lower), self.forward(node, boxes[0].upper))

    def unstable(self, node: Node, *boxes: Box) -> tuple[Tensor, ...]:
        """The coordinates of undecided windows that could still win."""
        lower, upper = (windows(bound.flatten(0, 1), node, -torch.inf) for bound in (boxes[0].lower, boxes[0].upper))
        contending = (upper > lower.amax(-1, keepdim=True)) & (lower < upper)
        undecided = ~self._decided(lower, upper)[1].unsqueeze(-1)
        shape = boxes[0].lower.shape
        index = self._coordinates(node, shape[1:], boxes[0].lower.device).expand(shape[0], -1)
        hits = torch.zeros(shape[0], shape[1:].numel() + 1, device=boxes[0].lower.device)
        hits.scatter_add_(1, index, (contending & undecided).reshape(shape[0], -1).to(hits.dtype))
        return ((hits[:, :-1] > 0).reshape(shape),)

    def relax(self, node: Node, box: Box, alpha: Alpha = None) -> SelectionRelaxation:
        """`box` is `(B, *input.shape)`: a window's planes need its neighbours. alpha moves nothing here."""
        lower, upper = (windows(bound.flatten(0, 1), node, -torch.inf) for bound in (box.lower, box.upper))
        winner, exact = self._decided(lower, upper)
        shape = (box.lower.shape[0], *node.shape)
        index = self._coordinates(node, box.lower.shape[1:], box.lower.device).reshape(1, *node.shape, -1)
        chosen = index.expand(*shape, -1).gather(-1, winner.reshape(*shape, 1)).squeeze(-1)
        most = torch.where(exact, 0.0, upper.amax(-1)).to(box.lower.dtype)
        return SelectionRelaxation(chosen, exact.reshape(shape), most.reshape(shape))

    @staticmethod
    def _decided(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Each window's candidate with the largest lower bound, and whether no other can exceed it."""
        best, winner = lower.max(-1, keepdim=True)
        rivals = upper.scatter(-1, winner, -torch.inf).amax(-1, keepdim=True)
        return winner.squeeze(-1), (best >= rivals).squeeze(-1)

    @staticmethod
    def _coordinates(node: Node, shape: torch.Size, device: torch.device) -> Tensor:
        """The flattened input coordinate of every value of every window, `(1, outputs * K)`; one past the last where there is none."""
        size = shape.numel()
        numbers = torch.arange(size, dtype=torch.float64, device=device).reshape(shape)
        return windows(numbers, node, float(size)).reshape(1, -1).to(torch.int64)
