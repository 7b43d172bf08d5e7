"""nn.Module -> Graph in float64 with every BatchNorm folded, and which parameter each of its weights comes from.

This graph is the *masked* form: the shapes of the network as it was trained, zeros where it is pruned (a folded batch norm multiplies whole
rows, so a zero stays one). The other forms are made from it. Folding in float64 and rounding once, when the file is written, keeps the file
within rounding of the module.
"""
from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

import verifier

WEIGHTED = ("Conv", "ConvTranspose", "Linear")


@dataclass(frozen=True, slots=True)
class Network:
    """A graph with float64 numpy constants; `weights` maps the name of a node to the parameter that its weight was folded from.

    Nodes with a weight bear the name of their module, as `named_modules` gives it: "4", "7.body.0".
    """

    graph: verifier.Graph
    weights: Mapping[str, str]


def fold(model: nn.Module, input_shape: tuple[int, ...]) -> Network:
    """The module in eval mode as a graph; the module itself is not touched.

    Args:
        model: what `verifier.load_torch` reads.
        input_shape: of one sample, without the batch.

    Raises:
        UnsupportedError: an operation that the verifier does not know, one weight used twice, or two layers that become one.
    """
    twin = copy.deepcopy(model).cpu().double().eval().requires_grad_(False)
    raw = verifier.load_torch(twin, input_shape)
    simple = verifier.simplify(_numpy(raw))
    parameters = {id(parameter): name for name, parameter in twin.named_parameters()}
    weights: dict[str, str] = {}
    for node in raw.nodes:
        name = parameters.get(id(node.constants["weight"])) if node.op in WEIGHTED else None
        if name is None:
            continue
        holder = _holder(node, raw, simple)
        if holder is None or holder in weights or name in weights.values():
            raise verifier.UnsupportedError(
                f"The weight {name!r} has no place of its own in the exported network: is its layer used twice, or followed by another linear "
                "layer without an activation between them?")
        weights[holder] = name
    modules = {holder: name.rpartition(".")[0] or "layer" for holder, name in weights.items()}
    return Network(_renamed(simple, modules), {modules[holder]: name for holder, name in weights.items()})


def _numpy(graph: verifier.Graph) -> verifier.Graph:
    """The constants as arrays of their own."""
    nodes = tuple(replace(node, constants={key: np.array(value.numpy()) for key, value in node.constants.items()}) for node in graph.nodes)
    return replace(graph, nodes=nodes)


def _holder(node: verifier.Node, raw: verifier.Graph, simple: verifier.Graph) -> str | None:
    """The node of the simplified graph that took up `node`: itself, or the first behind it, each read once, that has its operation."""
    kept = {other.name: other for other in simple.nodes}
    shape, op = tuple(node.constants["weight"].shape), node.op
    while True:
        found = kept.get(node.name)
        if found is not None:
            return found.name if found.op == op and found.constants["weight"].shape == shape else None
        readers = [other for other in raw.nodes if node.name in other.inputs]
        if len(readers) != 1:
            return None
        node = readers[0]


def _renamed(graph: verifier.Graph, names: Mapping[str, str]) -> verifier.Graph:
    nodes = tuple(
        replace(node, name=names.get(node.name, node.name), inputs=tuple(names.get(name, name) for name in node.inputs)) for node in graph.nodes
    )
    return replace(graph, nodes=nodes, output=names.get(graph.output, graph.output))
