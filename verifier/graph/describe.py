"""What a graph consists of, as rows of plain numbers: the data behind `verifier info`."""
from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from verifier.graph.ir import Graph, Node

ACTIVATIONS = frozenset({"Relu", "LeakyRelu", "Clip", "Sigmoid", "Tanh", "MaxPool", "Mul"})


@dataclass(frozen=True, slots=True)
class Row:
    """One node: `parameters` counts the values of its constants, `zeros` those that are 0, `activations` a nonlinear node's outputs."""

    name: str
    op: str
    shape: tuple[int, ...]
    parameters: int
    zeros: int
    activations: int

    @property
    def sparsity(self) -> float:
        """The fraction of parameters that are 0; 0 where there are none."""
        return self.zeros / self.parameters if self.parameters else 0.0


def describe(graph: Graph) -> list[Row]:
    """One row a node, in the graph's order."""
    return [_row(node) for node in graph.nodes]


def total(rows: list[Row]) -> Row:
    """The sums over all rows, as a row `total` with the shape of the last one."""
    sums = (sum(getattr(row, key) for row in rows) for key in ("parameters", "zeros", "activations"))
    return Row("total", "", rows[-1].shape if rows else (), *sums)


def _row(node: Node) -> Row:
    floating = [array for array in map(_array, node.constants.values()) if array.dtype.kind == "f"]
    return Row(
        node.name,
        node.op,
        node.shape,
        sum(array.size for array in floating),
        sum(array.size - int(np.count_nonzero(array)) for array in floating),
        math.prod(node.shape) if node.op in ACTIVATIONS else 0,
    )


def _array(value) -> np.ndarray:
    return value if isinstance(value, np.ndarray) else value.detach().cpu().numpy()
