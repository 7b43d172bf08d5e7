"""Affine operations on cropped rows: the few whose transpose maps windows to windows. All others get whole rows.

The transpose of a convolution with stride s and pads p takes the window [o, o + k) to [o s - p, (o + k - 1) s - p + reach], reach being
that of the kernel: no border is involved, because coefficients outside the value were set to zero before.
"""
from __future__ import annotations

from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor

from verifier.bounds.engine import Region
from verifier.bounds.rows import Frame, Rows, Window, dot, mask_outside
from verifier.graph.ir import Node
from verifier.ops import AffineOp, rule_for
from verifier.ops.conv import full_transpose, pad_spatial, phases, prefers_convolution, sort_phases, spatial_attributes
from verifier.ops.pool import window_counts

_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
WINDOW_OPS = ("Conv", "AveragePool", "Add", "Sub", "Scale")


def window_adjoint(node: Node, rows: Rows, input_shapes: tuple[tuple[int, ...], ...]) -> tuple[Rows, ...] | None:
    """One `Rows` for each input of the node, or None where this operation (or this broadcast) needs whole rows."""
    if any(len(shape) != len(node.shape) for shape in input_shapes):
        return None
    if node.op == "Conv":
        return (_conv(node, rows, input_shapes[0]),)
    if node.op == "AveragePool":
        return (_average(node, rows, input_shapes[0]),)
    if node.op == "Scale":
        scale = node.constants["scale"].expand(1, *node.shape)
        return (replace(rows, coeff=rows.coeff * rows.frame.gather(scale), masked=True),)
    if node.op in ("Add", "Sub") and input_shapes[0] == input_shapes[1] == tuple(node.shape):
        return rows, rows if node.op == "Add" else replace(rows, coeff=-rows.coeff)
    return None


def _conv(node: Node, rows: Rows, shape: tuple[int, ...]) -> Rows:
    rows = mask_outside(rows, node.shape)
    groups, count = rows.coeff.shape[:2]
    coeff = full_transpose(rows.coeff.flatten(0, 2), node)
    return moved(rows.frame, node, coeff.reshape(groups, count, 1, *coeff.shape[1:]), shape)


def _average(node: Node, rows: Rows, shape: tuple[int, ...]) -> Rows:
    rank, strides, dilations, _, _ = spatial_attributes(node)
    rows = mask_outside(rows, node.shape)
    groups, count = rows.coeff.shape[:2]
    shares = (1 / window_counts(node, shape[2:], rows.coeff)).expand(1, *node.shape)
    shared = (rows.coeff * rows.frame.gather(shares)).flatten(0, 3).unsqueeze(1)
    ones = shared.new_ones(1, 1, *node.attributes["kernel_shape"])
    coeff = _CONV_TRANSPOSE[rank](shared, ones, None, strides, 0, 0, 1, dilations)
    return moved(rows.frame, node, coeff.reshape(groups, count, *shape[:2], *coeff.shape[2:]), shape)


def moved(frame: Frame, node: Node, coeff: Tensor, shape: tuple[int, ...]) -> Rows:
    """Coefficients of the input (of `shape`) of a node whose own coefficients lay in `frame`, in the window that they stand for."""
    _, strides, _, before, _ = spatial_attributes(node)
    old = frame.window
    assert old is not None
    window = Window(
        old.position, old.counts,
        tuple(a * s for a, s in zip(old.stride, strides, strict=True)),
        tuple(o * s - p for o, s, p in zip(old.offset, strides, before, strict=True)),
        tuple(coeff.shape[-len(strides):]),
    )
    inside = not any(map(any, window.overhang(shape[2:])))
    return Rows(coeff, replace(frame, window=window), masked=inside)


def minimum_through_first_conv(node: Node, rows: Rows, region: Region) -> Tensor | None:
    """min over the box of <rows, conv(x)> for the convolution that alone reads the input, `(G, S)`; None where another way is as good.

    The coefficients of the input are needed for <|c|, r> alone, in any order: they stay sorted by remainder, and the radius is sorted likewise.
    The linear term is <rows, conv(m)>, on the smaller side of the convolution.
    """
    if node.op != "Conv" or region.ball is not None:
        return None
    _, strides, dilations, before, _ = spatial_attributes(node)
    weight, group = node.constants["weight"], node.attributes.get("group", 1)
    if not prefers_convolution(rows.coeff, weight, dilations, group):
        return None
    rows = mask_outside(rows, node.shape)
    rule = rule_for(node)
    assert isinstance(rule, AffineOp)
    center = rows.frame.gather(rule.linear(node, region.box.center))
    sorted_coeff = phases(rows.coeff.flatten(0, 2), weight, strides)
    full = tuple(size * s for size, s in zip(sorted_coeff.shape[2:], strides, strict=True))
    if rows.window is None:
        radius = rows.frame.gather(region.box.radius)
        first = before
    else:
        radius = moved(rows.frame, node, rows.coeff.new_empty(0, *full), region.box.radius.shape[1:]).frame.gather(region.box.radius)
        first = (0, 0)
    radius = pad_spatial(radius, first, tuple(n - size - p for n, size, p in zip(full, radius.shape[-2:], first, strict=True)))
    radius = sort_phases(radius.reshape(-1, *radius.shape[-3:]), *strides)
    lead = rows.coeff.shape[:2]
    return dot(rows.coeff, center) - dot(sorted_coeff.abs().reshape(*lead, -1), radius.reshape(radius.shape[0], 1, -1))
