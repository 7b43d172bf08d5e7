"""The reference semantics of a graph: a plain batched forward pass."""
from __future__ import annotations

from collections import Counter

import numpy as np
from torch import Tensor

import verifier.ops  # noqa: F401  (registers the rules)
from verifier.errors import ShapeError
from verifier.graph.ir import Graph
from verifier.ops.rule import rule_for


def execute(graph: Graph, x: Tensor) -> Tensor:
    """y = f(x), the network's outputs. A value is forgotten after its last reader.

    Args:
        graph: its network; constants still in numpy are moved to x's device and dtype first.
        x: inputs `(B, *graph.input_shape)`.

    Returns:
        `(B, *graph.output_shape)`.

    Raises:
        ShapeError: x has another shape.
    """
    graph = _ready(graph, x)
    readers = Counter(name for node in graph.nodes for name in node.inputs)
    readers[graph.output] += 1
    values = {graph.input.name: x}
    for node in graph.nodes[1:]:
        values[node.name] = rule_for(node).forward(node, *(values[name] for name in node.inputs))
        for name in (*node.inputs, node.name):
            readers[name] -= name != node.name
            if readers[name] == 0:
                values.pop(name, None)
    return values[graph.output]


def execute_all(graph: Graph, x: Tensor) -> dict[str, Tensor]:
    """Every node's value `(B, *node.shape)` by name, the input's included; arguments as for `execute`."""
    graph = _ready(graph, x)
    values = {graph.input.name: x}
    for node in graph.nodes[1:]:
        values[node.name] = rule_for(node).forward(node, *(values[name] for name in node.inputs))
    return values


def _ready(graph: Graph, x: Tensor) -> Graph:
    """The graph with torch constants; x's shape is checked."""
    if tuple(x.shape[1:]) != graph.input_shape:
        raise ShapeError(f"The network takes inputs (B, {', '.join(map(str, graph.input_shape))}), but this one is {tuple(x.shape)}.")
    if any(isinstance(value, np.ndarray) for node in graph.nodes for value in node.constants.values()):
        return graph.to(x.device, x.dtype)
    return graph
