"""What an operation is to the engines: an affine map, or an activation with relaxation planes.

An operation is added in one place, a class registered here. Engines look rules up by `node.op`; an unknown op is an error that names the
node. Values carry the batch in front: `(B, *node.shape)`. A rule is local mathematics: it knows no engine and stores nothing.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, TypeVar, Union

import torch
from torch import Tensor

from verifier.box import Box
from verifier.errors import UnsupportedError

if TYPE_CHECKING:
    from verifier.form import Relaxation
    from verifier.graph.ir import Node


class Rule:
    """Semantics of one operation."""

    def forward(self, node: Node, *inputs: Tensor) -> Tensor:
        """The value `(B, *node.shape)` from the inputs' values `(B, *input.shape)`."""
        raise NotImplementedError


class AffineOp(Rule):
    """f(x, ...) = L(x, ...) + shift, with L linear jointly in all inputs.

    `forward` is enough: the other methods follow from it. What overrides them is a faster way to the same values.
    """

    def linear(self, node: Node, *inputs: Tensor) -> Tensor:
        """L x = f(x) - f(0): what columns of an affine form are pushed through (any leading batch size)."""
        return self.forward(node, *inputs) - self.forward(node, *(torch.zeros_like(x[:1]) for x in inputs))

    def shift(self, node: Node, like: Tensor, input_shapes: tuple[tuple[int, ...], ...]) -> Tensor | None:
        """f(0), of `like`'s type and broadcastable to `(1, *node.shape)`; None where it is zero."""
        return self.forward(node, *(like.new_zeros(1, *shape) for shape in input_shapes))

    def adjoint(self, node: Node, coeff: Tensor, input_shapes: tuple[tuple[int, ...], ...]) -> tuple[Tensor, ...]:
        """L transposed: `coeff (R, *node.shape)` to one `(R, *input_shape)` for each input. By default the vector-Jacobian product of
        `linear`.
        """
        zeros = tuple(coeff.new_zeros(coeff.shape[0], *shape) for shape in input_shapes)
        return torch.func.vjp(lambda *inputs: self.linear(node, *inputs), *zeros)[1](coeff)

    def interval(self, node: Node, *boxes: Box) -> Box:
        """f(m) -+ |L| r with m, r the centres and radii: the interval image, `Box` of `(B, *node.shape)`.

        By default |L| is read off unit columns pushed through `linear`, one input coordinate a column: right for every rule, slow for
        large ones.

        Sound: exact for each output alone, in real arithmetic.
        """
        center = self.forward(node, *(box.center for box in boxes))
        radius = torch.zeros_like(center)
        for position, box in enumerate(boxes):
            size = box.lower[0].numel()
            unit = torch.eye(size, dtype=center.dtype, device=center.device).reshape(size, *box.lower.shape[1:])
            columns = [unit if k == position else unit.new_zeros(size, *other.lower.shape[1:]) for k, other in enumerate(boxes)]
            magnitude = self.linear(node, *columns).abs().reshape(size, -1)
            radius = radius + (box.radius.reshape(-1, size) @ magnitude).reshape(center.shape)
        return Box(center - radius, center + radius)


class SignedAffineOp(AffineOp):
    """An affine operation whose |L| is the same operation with the constants named in `signed` replaced by their absolute values."""

    signed: ClassVar[tuple[str, ...]] = ()

    def interval(self, node: Node, *boxes: Box) -> Box:
        absolute = replace(node, constants={k: v.abs() if k in self.signed else v for k, v in node.constants.items()})
        center = self.forward(node, *(box.center for box in boxes))
        radius = self.linear(absolute, *(box.radius for box in boxes))
        return Box(center - radius, center + radius)


Alpha = Union[Tensor, "tuple[Tensor, ...]", None]


def lower_upper_alpha(alpha: Alpha) -> tuple[Tensor | None, Tensor | None]:
    """The alpha of the lower and of the upper plane: one tensor serves both, a pair gives each its own."""
    if alpha is None or isinstance(alpha, Tensor):
        return alpha, alpha
    return alpha[0], alpha[-1]


class NonlinearOp(Rule):
    """An operation that engines bound by planes over a box of its inputs."""

    def interval(self, node: Node, *boxes: Box) -> Box:
        """Interval image, `Box` of `(B, *node.shape)`."""
        raise NotImplementedError

    def unstable(self, node: Node, *boxes: Box) -> tuple[Tensor, ...]:
        """Which input coordinates would tighten the planes by better bounds: one boolean `(B, *input.shape)` for each input."""
        raise NotImplementedError

    def start(self, node: Node, *boxes: Box) -> tuple[Tensor, ...]:
        """The alphas that give the adaptive planes: none where no plane is free, one tensor where one is, a pair (lower, upper) for
        both.
        """
        return ()


class ElementwiseOp(NonlinearOp):
    """y = f(x) coordinate by coordinate, f monotone or with known turning points.

    `kind` names the neuron's type in the reduced problem. `decided_by_sign`: f is affine on x <= 0 and on x >= 0, so that a bound that
    settles the sign cannot tighten any plane further. Its methods take boxes of any shape: engines pass gathered coordinates.
    """

    kind: str = ""
    decided_by_sign: bool = False

    def interval(self, node: Node, *boxes: Box) -> Box:
        """[f(l), f(u)], the exact image under a nondecreasing f; other operations override it."""
        return Box(self.forward(node, boxes[0].lower), self.forward(node, boxes[0].upper))

    def unstable(self, node: Node, *boxes: Box) -> tuple[Tensor, ...]:
        """Where f is not affine over the box; by default wherever the box is not a point."""
        return (boxes[0].lower < boxes[0].upper,)

    def relax(self, node: Node, box: Box, alpha: Alpha = None) -> Relaxation:
        """Planes lower_slope * x + lower_offset <= f(x) <= upper_slope * x + upper_offset over the box.

        `alpha` in [0, 1], broadcastable to the box, moves the free plane(s); a pair moves the lower and the upper plane apart; None is the
        adaptive start. The four fields broadcast to the box (and to alpha): a field that does not depend on alpha has the box's shape.
        """
        raise NotImplementedError

    def family(self, node: Node, box: Box) -> Callable[[Alpha], Relaxation]:
        """alpha -> `relax(node, box, alpha)`, for many alphas over one box: what does not depend on alpha may be computed once."""
        return lambda alpha: self.relax(node, box, alpha)


_RULES: dict[str, Rule] = {}
RuleClass = TypeVar("RuleClass", bound=type[Rule])


def register(*ops: str):
    """Class decorator: the rule of these ops. A second rule for one op is an error."""

    def add(cls: RuleClass) -> RuleClass:
        for op in ops:
            if op in _RULES:
                raise ValueError(f"op {op!r} has two rules: {type(_RULES[op]).__name__} and {cls.__name__}")
            _RULES[op] = cls()
        return cls

    return add


def rule_for(node: Node) -> Rule:
    """The rule of a node's op, or an error that names the node."""
    try:
        return _RULES[node.op]
    except KeyError:
        raise UnsupportedError(
            f"Node {node.name!r} has operation {node.op!r}, which no rule covers: add a class with @register({node.op!r}) in verifier/ops."
        ) from None


def elementwise_of_kind(kind: str) -> ElementwiseOp:
    """The rule whose neurons have this `kind`."""
    for candidate in _RULES.values():
        if isinstance(candidate, ElementwiseOp) and candidate.kind == kind:
            return candidate
    raise UnsupportedError(f"No operation has neurons of kind {kind!r}: give the rule in verifier/ops that kind.")


def registered_ops() -> tuple[str, ...]:
    return tuple(sorted(_RULES))
