"""The graph as the engines walk it: only what the output depends on, constants on the box's device, shapes and rules at hand."""
from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from verifier.box import Box
from verifier.errors import UnsupportedError
from verifier.graph.ir import Graph, Node
from verifier.ops import AffineOp, ElementwiseOp, NonlinearOp, Rule, rule_for

_ONE_TO_ONE = ("Reshape", "Transpose", "Scale", "Slice", "Pad")
_MIXING = ("Linear", "LeftMatMul", "Conv", "ConvTranspose", "AveragePool", "ReduceSum", "ReduceMean")


@dataclass(frozen=True, slots=True)
class Network:
    """`nodes` in topological order, the Input first; `rules` and `shapes` by node name."""

    nodes: tuple[Node, ...]
    output: Node
    by_name: dict[str, Node]
    rules: dict[str, Rule]
    shapes: dict[str, tuple[int, ...]]

    def input_shapes(self, node: Node) -> tuple[tuple[int, ...], ...]:
        return tuple(self.shapes[name] for name in node.inputs)

    def interval_is_exact(self, name: str) -> bool:
        """Whether interval arithmetic gives this value's exact range over a box of inputs.

        It does where the input's coordinates reach the value through at most one operation that adds several of them up: they are
        independent.
        """
        mixed = 0
        while True:
            node = self.by_name[name]
            if node.op == "Input":
                return True
            mixed += node.op in _MIXING
            if mixed > 1 or node.op not in _ONE_TO_ONE + _MIXING:
                return False
            name = node.inputs[0]

    def decided_by_sign(self, name: str) -> bool:
        """Whether every nonlinear operation that reads this value is affine on either side of zero."""
        rules = [self.rules[node.name] for node in self.nodes[1:] if name in node.inputs]
        return all(isinstance(rule, ElementwiseOp) and rule.decided_by_sign for rule in rules if isinstance(rule, NonlinearOp))

    def ends_in(self, node: Node) -> bool:
        """Whether this node alone reads the input, and nothing else."""
        start = self.nodes[0].name
        return node.inputs == (start,) and sum(start in other.inputs for other in self.nodes) == 1

    def shift(self, node: Node, like: Tensor) -> Tensor | None:
        """What an affine node adds, `(1, *node.shape)`; None where it adds nothing."""
        rule = self.rules[node.name]
        assert isinstance(rule, AffineOp)
        shift = rule.shift(node, like, self.input_shapes(node))
        return None if shift is None else shift.expand(1, *node.shape)

    def boxes_of(self, node: Node, boxes: dict[str, Box]) -> tuple[Box, ...]:
        return tuple(boxes[name] for name in node.inputs)


def prepare(graph: Graph, like: Tensor) -> Network:
    """The part of the graph that its output depends on, with constants of `like`'s device and type.

    Raises:
        UnsupportedError: naming every node whose operation has no rule that an engine can use.
    """
    needed, nodes = {graph.output}, []
    for node in reversed(graph.nodes):
        if node.name in needed or node.op == "Input":
            needed.update(node.inputs)
            nodes.append(node)
    kept = replace(graph, nodes=tuple(reversed(nodes))).to(like.device, like.dtype)
    rules, missing = {}, []
    for node in kept.nodes[1:]:
        try:
            rule = rule_for(node)
        except UnsupportedError as error:
            missing.append(str(error))
            continue
        if isinstance(rule, (AffineOp, NonlinearOp)):
            rules[node.name] = rule
        else:
            missing.append(f"Node {node.name!r} has operation {node.op!r}, whose rule is neither affine nor has planes.")
    if missing:
        raise UnsupportedError(" ".join(missing))
    by_name = {node.name: node for node in kept.nodes}
    return Network(kept.nodes, by_name[kept.output], by_name, rules, {node.name: tuple(node.shape) for node in kept.nodes})


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch could not get memory, on the GPU or (where it only says so in words) on the CPU."""
    words = str(error)
    return isinstance(error, torch.cuda.OutOfMemoryError) or "can't allocate memory" in words or "out of memory" in words
