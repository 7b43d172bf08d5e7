"""How many neurons of each layer are unstable over a region: what decides how hard a network is to verify."""
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from verifier.bounds.engine import BoundResult
    from verifier.graph.ir import Graph


@dataclass(frozen=True, slots=True)
class LayerStability:
    """One activation over each of B regions. neurons = unstable + active + inactive, where the counts are `(B,)`.

    Active: affine with a nonzero slope over the whole box. Inactive: constant. Unstable: neither.
    """

    name: str
    op: str
    neurons: int
    unstable: Tensor
    active: Tensor
    inactive: Tensor


def stability(graph: Graph, result: BoundResult) -> tuple[LayerStability, ...]:
    """The state of every elementwise activation's neurons, given a result's bounds of what it reads, in the graph's order.

    Activations that the output does not depend on have no bounds and no row.
    """
    from verifier.box import Box
    from verifier.ops import ElementwiseOp, rule_for

    layers = []
    for node in graph.nodes[1:]:
        rule = rule_for(node)
        if not isinstance(rule, ElementwiseOp) or node.inputs[0] not in result.intermediate:
            continue
        given = result.intermediate[node.inputs[0]]
        box = Box(given.lower.detach().flatten(1), given.upper.detach().flatten(1))
        unstable = rule.unstable(node, box)[0]
        flat = (rule.relax(node, box).lower_slope == 0) & ~unstable
        inactive, total = flat.sum(1), box.lower.shape[1]
        layers.append(LayerStability(node.name, node.op, total, unstable.sum(1), total - unstable.sum(1) - inactive, inactive))
    return tuple(layers)
