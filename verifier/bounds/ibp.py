"""Interval bound propagation: every node's box from its inputs' boxes.

Rows are not bounded over the output's box but over the boxes where the network's affine tail begins: the rows go backward through the tail
first, so that what cancels in rows @ weight is not counted twice.

Ref: Gowal et al., arXiv:1810.12715.
"""
from __future__ import annotations

import torch
from torch import Tensor

from verifier.bounds.backward import affine_step, minimum_over_region
from verifier.bounds.engine import BoundRequest, BoundResult, Region
from verifier.bounds.network import Network, prepare
from verifier.bounds.rows import Frame, Rows, add_rows
from verifier.box import Box, flat
from verifier.ops import AffineOp, NonlinearOp


def ibp(request: BoundRequest) -> BoundResult:
    """Interval bounds of the rows. Differentiable in the graph's constants and in the box.

    Sound: in real arithmetic, each node's interval is exact for each coordinate alone, given its inputs' boxes.
    """
    network = prepare(request.graph, request.box.lower)
    boxes = interval_boxes(network, request)
    read = {name for node in network.nodes if isinstance(network.rules.get(node.name), NonlinearOp) for name in node.inputs}
    lower, upper = output_bounds(network, request, boxes)
    return BoundResult(lower, upper, {name: boxes[name] for name in boxes if name in read})


def interval_boxes(network: Network, request: BoundRequest) -> dict[str, Box]:
    """The box of every node; bounds that the request gives are taken as they are."""
    boxes = {network.nodes[0].name: request.box}
    for node in network.nodes[1:]:
        given = request.intermediate.get(node.name)
        boxes[node.name] = network.rules[node.name].interval(node, *network.boxes_of(node, boxes)) if given is None else given
    return boxes


def output_bounds(network: Network, request: BoundRequest, boxes: dict[str, Box]) -> tuple[Tensor, Tensor | None]:
    """Interval bounds of the request's rows from the boxes of the nodes, with the request's constants."""
    output = boxes[network.output.name]
    if request.rows is None:
        lower, upper = flat(output.lower, 1), flat(output.upper, 1)
        if request.constants is not None:
            lower, upper = lower + request.constants, upper + request.constants
        return lower, upper if request.upper_too else None
    rows = signed_rows(request)
    return split_sides(tail_bounds(network, Rows(rows.reshape(*rows.shape[:2], *network.output.shape), Frame()), boxes), request)


def signed_rows(request: BoundRequest) -> Tensor:
    """The rows, then the negated rows where upper bounds are asked: `(B, S or 2 S, n_out)`."""
    rows = request.rows
    if rows is None:
        size = request.box.lower.new_ones(request.graph.output_shape).numel()
        rows = torch.eye(size, dtype=request.box.lower.dtype, device=request.box.lower.device).expand(request.box.lower.shape[0], size,
        size)
    return torch.cat([rows, -rows], 1) if request.upper_too else rows


def split_sides(bounds: Tensor, request: BoundRequest) -> tuple[Tensor, Tensor | None]:
    """Lower bounds of rows and negated rows as lower and upper bounds of the rows, constants added."""
    count = bounds.shape[1] // 2 if request.upper_too else bounds.shape[1]
    lower, upper = bounds[:, :count], -bounds[:, count:] if request.upper_too else None
    if request.constants is None:
        return lower, upper
    return lower + request.constants, None if upper is None else upper + request.constants


def tail_bounds(network: Network, rows: Rows, boxes: dict[str, Box]) -> Tensor:
    """Lower bounds of rows of the output, back through affine nodes only, then the minimum over the boxes reached: `(B, S)`."""
    pending, bias = {network.output.name: rows}, rows.coeff.new_zeros(rows.coeff.shape[:2])
    for node in reversed(network.nodes):
        current = pending.pop(node.name, None)
        if current is None:
            continue
        if not isinstance(network.rules.get(node.name), AffineOp):
            bias = bias + minimum_over_region(current, Region(boxes[node.name]))
            continue
        parts, added = affine_step(network, node, current)
        bias = bias + added
        for name, part in zip(node.inputs, parts, strict=True):
            pending[name] = add_rows(pending[name], part, network.shapes[name]) if name in pending else part
    return bias
