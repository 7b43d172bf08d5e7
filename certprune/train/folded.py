"""BatchNorm inside the layer before it, differentiably: what bounds in training see."""
from __future__ import annotations

from collections import Counter
from dataclasses import replace

import verifier


def folded(graph: verifier.Graph) -> verifier.Graph:
    """The same function with every Scale of channels inside the convolution or linear layer before it; values keep their names.

    A BatchNorm's scale and offset then cost a bound nothing, where they would be a pass over the coefficients of every row. Gradients flow to
    all constants, unlike through `verifier.simplify`, which rounds them in double precision.
    """
    readers = Counter(name for node in graph.nodes for name in node.inputs) + Counter([graph.output])
    nodes: dict[str, verifier.Node] = {}
    for node in graph.nodes:
        before = nodes.get(node.inputs[0]) if node.op == "Scale" else None
        channels = before.constants["bias"].numel() if before is not None and before.op in ("Conv", "Linear") else 0
        if channels and readers[before.name] == 1 and node.constants["scale"].numel() == node.constants["offset"].numel() == channels:
            del nodes[before.name]
            weight, scale = before.constants["weight"], node.constants["scale"].reshape(-1)
            constants = {
                "weight": weight * scale.reshape(-1, *[1] * (weight.ndim - 1)),
                "bias": before.constants["bias"] * scale + node.constants["offset"].reshape(-1),
            }
            node = replace(before, name=node.name, constants=constants)
        nodes[node.name] = node
    return replace(graph, nodes=tuple(nodes.values()))
