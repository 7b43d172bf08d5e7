"""What an operation is to the engines: an affine map, or an activation with relaxation planes.

An operation is added in one place, a class registered here. Engines look rules up by `node.op`; an unknown op is an error that names the node.
Values carry the batch in front: `(B, *node.shape)`. A rule is local mathematics: it knows no engine and stores nothing.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from torch import Tensor

from verifier.errors import UnsupportedError

if TYPE_CHECKING:
    from verifier.box import Box
    from verifier.form import Relaxation
    from verifier.graph.ir import Node


class Rule:
    """Semantics of one operation."""

    def forward(self, node: Node, *inputs: Tensor) -> Tensor:
        """The value `(B, *node.shape)` from the inputs' values `(B, *input.shape)`."""
        raise NotImplementedError


class AffineOp(Rule):
    """f(x, ...) = L(x, ...) + shift, with L linear jointly in all inputs."""

    def linear(self, node: Node, *inputs: Tensor) -> Tensor:
        """L alone: what columns of an affine form are pushed through (any leading batch size)."""
        raise NotImplementedError

    def adjoint(self, node: Node, coeff: Tensor, input_shapes: tuple[tuple[int, ...], ...]) -> tuple[Tensor, ...]:
        """L transposed: `coeff (R, *node.shape)` to one `(R, *input_shape)` for each input. By default the vector-Jacobian product of `linear`."""
        raise NotImplementedError

    def interval(self, node: Node, *boxes: Box) -> Box:
        """Interval image, `Box` of `(B, *node.shape)`. Sound: exact for each output alone."""
        raise NotImplementedError


class ElementwiseOp(Rule):
    """y = f(x) coordinate by coordinate, f monotone or with known turning points.

    `kind` names the neuron's type in the reduced problem.
    """

    kind: str = ""

    def interval(self, node: Node, box: Box) -> Box:
        raise NotImplementedError

    def relax(self, node: Node, box: Box, alpha: Tensor | None = None) -> Relaxation:
        """Planes lower_slope * x + lower_offset <= f(x) <= upper_slope * x + upper_offset over the box.

        `alpha` in [0, 1], broadcastable to the box, moves the free plane(s); None is the adaptive start.
        """
        raise NotImplementedError


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


def registered_ops() -> tuple[str, ...]:
    return tuple(sorted(_RULES))
