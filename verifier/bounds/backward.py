"""The backward pass: rows of one node's value become rows of the network's input, through the planes of every nonlinear node between.

Coefficients are accumulated per node, in reverse topological order, so a value that several nodes read is passed once. At a nonlinear node
a positive coefficient takes the lower plane and a negative one the upper plane; an affine node goes backward by its adjoint and leaves its
shift in the bias. At the input the minimum over the box (and the ball) is closed form.

Ref: Zhang et al., arXiv:1811.00866 (CROWN); Xu et al., arXiv:2002.12920, for general graphs.
"""
from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from verifier.bounds.engine import Region
from verifier.bounds.network import Network
from verifier.bounds.rows import Frame, Rows, add_rows, densify, dot, mask_outside
from verifier.bounds.windows import minimum_through_first_conv, window_adjoint
from verifier.box import flat
from verifier.form import BilinearRelaxation, Relaxation, SelectionRelaxation
from verifier.graph.ir import Node
from verifier.ops import AffineOp
from verifier.ops.affine import sum_to_shape

AnyRelaxation = Relaxation | BilinearRelaxation | SelectionRelaxation


class Planes(Protocol):
    """How a pass gets through a nonlinear node."""

    def step(self, node: Node, rows: Rows) -> tuple[tuple[Rows, ...], Tensor]:
        """Rows of the node's inputs, and what the planes' offsets add to each row's bias, `(G, S)`."""
        ...


@dataclass(frozen=True, slots=True)
class Steps:
    """Planes of an elementwise function as a pass uses them: the lower plane, and what the upper plane has more.

    Fields broadcast to coefficients `(G, S, *shape)`. `lower_offset` is None where it is zero throughout.
    """

    lower_slope: Tensor
    slope_gap: Tensor
    offset_gap: Tensor
    lower_offset: Tensor | None

    @staticmethod
    def of(planes: Relaxation) -> Steps:
        return Steps(
            planes.lower_slope, planes.upper_slope - planes.lower_slope, planes.upper_offset - planes.lower_offset, planes.lower_offset
        )


@dataclass(frozen=True, slots=True)
class FixedPlanes:
    """The same planes for all rows: relaxations over the whole batch, `(B, *shape)`, by node name.

    `stacked` keeps what `Steps` needs of a node in one tensor `(B, 3 or 4, *shape)`, made when a pass first meets the node.
    """

    network: Network
    relaxations: dict[str, AnyRelaxation]
    stacked: dict[str, Tensor] = field(default_factory=dict)

    def step(self, node: Node, rows: Rows) -> tuple[tuple[Rows, ...], Tensor]:
        relaxation = self.relaxations[node.name]
        if isinstance(relaxation, Relaxation):
            if node.name not in self.stacked:
                self.stacked[node.name] = _stack(Steps.of(relaxation))
            fields = rows.frame.gather(self.stacked[node.name]).unbind(2)
            return elementwise_step(rows, Steps(*fields[:3], fields[3] if len(fields) > 3 else None))
        rows = densify(rows, node.shape)
        gathered = type(relaxation)(*(rows.frame.gather(getattr(relaxation, name)) for name in relaxation.__dataclass_fields__))
        return joint_step(rows, gathered, self.network.input_shapes(node))


def _stack(steps: Steps) -> Tensor:
    fields = [steps.lower_slope, steps.slope_gap, steps.offset_gap]
    if steps.lower_offset is not None and bool((steps.lower_offset != 0).any()):
        fields.append(steps.lower_offset)
    return torch.stack(fields, 1)


def elementwise_step(rows: Rows, steps: Steps) -> tuple[tuple[Rows, ...], Tensor]:
    """c (lower plane) + c- (upper plane - lower plane), c- = min(c, 0), from planes already gathered, zero outside a window.

    So written, a coefficient that meets slope zero becomes zero exactly: optimisers stand on the kink that real arithmetic has there.
    """
    negative = rows.coeff.clamp(max=0)
    coeff = (rows.coeff * steps.lower_slope).addcmul_(negative, steps.slope_gap)
    bias = dot(negative, steps.offset_gap)
    if steps.lower_offset is not None:
        bias = bias + dot(rows.coeff, steps.lower_offset)
    return (replace(rows, coeff=coeff, masked=True),), bias


def joint_step(
    rows: Rows, planes: BilinearRelaxation | SelectionRelaxation, input_shapes: tuple[tuple[int, ...], ...]
) -> tuple[tuple[Rows, ...], Tensor]:
    """The same for planes over several inputs, or over several coordinates of one; whole rows only."""
    positive = rows.coeff.clamp(min=0)
    negative = rows.coeff - positive
    if isinstance(planes, SelectionRelaxation):
        weight = flat(positive + negative * planes.exact, 2)
        index = flat(planes.index, 2).expand(weight.shape)
        zeros = weight.new_zeros(*weight.shape[:2], _size(input_shapes[0]))
        coeff = zeros.scatter_add(-1, index, weight).reshape(*weight.shape[:2], *input_shapes[0])
        return (replace(rows, coeff=coeff),), dot(negative, planes.upper_offset)
    sides = ((planes.lower_left, planes.upper_left), (planes.lower_right, planes.upper_right))
    coeffs = (
        sum_to_shape((positive * lower + negative * upper).flatten(0, 1), shape).reshape(*positive.shape[:2], *shape)
        for (lower, upper), shape in zip(sides, input_shapes, strict=True)
    )
    return tuple(replace(rows, coeff=c) for c in coeffs), dot(positive, planes.lower_offset) + dot(negative, planes.upper_offset)


def lower_bounds(network: Network, target: str, rows: Rows, planes: Planes, region: Region) -> Tensor:
    """min over the region of <rows, value of target>, bounded from below through the planes: `(G, S)`.

    Sound: in real arithmetic, whenever each relaxation holds over the values that the region reaches.
    """
    pending, bias = {target: rows}, rows.coeff.new_zeros(rows.coeff.shape[:2])
    order = [node.name for node in network.nodes]
    for node in reversed(network.nodes[1 : order.index(target) + 1]):
        current = pending.pop(node.name, None)
        if current is None:
            continue
        if isinstance(network.rules[node.name], AffineOp):
            if network.ends_in(node):
                found = minimum_through_first_conv(node, current, region)
                if found is not None:
                    return bias + found + _shift(network, node, current)
            parts, added = affine_step(network, node, current)
        else:
            parts, added = planes.step(node, current)
        bias = bias + added
        for name, part in zip(node.inputs, parts, strict=True):
            part = thin(part, network.shapes[name])
            pending[name] = add_rows(pending[name], part, network.shapes[name]) if name in pending else part
    last = pending.get(network.nodes[0].name)
    return bias if last is None else bias + minimum_over_region(last, region)


def thin(rows: Rows, shape: tuple[int, ...]) -> Rows:
    """Whole rows where a window would hold most of the value anyway."""
    return densify(rows, shape) if rows.window is not None and rows.window.covers_most(shape[2:]) else rows


def affine_step(network: Network, node: Node, rows: Rows) -> tuple[tuple[Rows, ...], Tensor | float]:
    """Through an affine node by its adjoint; and its shift's share of the bias."""
    added, shapes = _shift(network, node, rows), network.input_shapes(node)
    if rows.window is not None:
        parts = window_adjoint(node, rows, shapes)
        if parts is not None:
            return parts, added
        rows = densify(rows, node.shape)
    rule = network.rules[node.name]
    assert isinstance(rule, AffineOp)
    lead = rows.coeff.shape[:2]
    coeffs = rule.adjoint(node, rows.coeff.flatten(0, 1), shapes)
    return tuple(replace(rows, coeff=c.reshape(*lead, *c.shape[1:])) for c in coeffs), added


def _shift(network: Network, node: Node, rows: Rows) -> Tensor | float:
    """<rows, what the node adds>, `(G, S)`; zero where it adds nothing."""
    shift = network.shift(node, rows.coeff)
    return 0.0 if shift is None else dot(rows.coeff, rows.frame.gather(shift))


def minimum_over_region(rows: Rows, region: Region) -> Tensor:
    """min of <c, x> over the box: <c, m> - <|c|, r>; with a ball the larger of that and the ball's own minimum, `(G, S)`.

    Over {x : ||x - x0||_p <= rho} it is <c, x0> - rho ||c||_q with 1/p + 1/q = 1. Either is a lower bound over the intersection.
    """
    frame = rows.frame
    center, radius = frame.gather(region.box.center), frame.gather(region.box.radius)
    bound = dot(rows.coeff, center) - dot(rows.coeff.abs(), radius)
    if region.ball is None:
        return bound
    coeff = flat(mask_outside(rows, tuple(region.box.lower.shape[1:])).coeff, 2)
    dual = coeff.norm(dim=-1) if region.ball.norm == 2 else coeff.abs().amax(-1)
    reach = Frame(frame.problem, None, frame.single).gather(region.ball.radius).reshape(-1, 1)
    return torch.maximum(bound, dot(coeff, flat(frame.gather(region.ball.center), 2)) - reach * dual)


def _size(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
