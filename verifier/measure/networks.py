"""How large a network file is: numbers that are stored, numbers that are not zero, and operations for one input."""
from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from verifier.graph.ir import Graph, Node


@dataclass(frozen=True, slots=True)
class NetworkSize:
    """`flops`: two for each multiply-add of linear and convolutional layers on one sample; `nonzero_flops` leaves out zero weights.

    Parameters are those of the network as it is run: a normalisation that was folded into its neighbour has none.
    """

    parameters: int
    nonzero_parameters: int
    flops: int
    nonzero_flops: int
    file_bytes: int


def network_size(path: str | Path) -> NetworkSize:
    """The size of an ONNX file's network.

    Raises:
        VerifierError: the file cannot be read, or an operation is not supported.
    """
    from verifier.graph.load import load_onnx

    graph = load_onnx(path)
    constants = [value for node in graph.nodes for value in node.constants.values() if np.asarray(value).dtype.kind == "f"]
    uses = [(node.constants["weight"], positions(graph, node)) for node in graph.nodes if "weight" in node.constants]
    return NetworkSize(
        parameters=sum(value.size for value in constants),
        nonzero_parameters=sum(int(np.count_nonzero(value)) for value in constants),
        flops=sum(2 * weight.size * count for weight, count in uses),
        nonzero_flops=sum(2 * int(np.count_nonzero(weight)) * count for weight, count in uses),
        file_bytes=Path(path).stat().st_size,
    )


def positions(graph: Graph, node: Node) -> int:
    """How often each weight of a Linear, LeftMatMul, Conv or ConvTranspose is multiplied: rows, columns, or places of the kernel (in padding too)."""
    if node.op == "Conv":
        return math.prod(node.shape[2:])
    if node.op == "ConvTranspose":
        return math.prod(graph.node(node.inputs[0]).shape[2:])
    if node.op == "LeftMatMul":
        return math.prod(node.shape) // node.shape[-2]
    return math.prod(node.shape[:-1])
