"""Graph -> Graph: the same function with fewer nodes. Every pass is pure, exact in real arithmetic, and computes in float64.

The parts. A *rule* looks at a chain of nodes, each read by the next one alone, and returns the nodes that replace it, or a sentence
that says why it refuses. `rewrite` applies one rule everywhere; `simplify` applies all of them until nothing changes, which happens because
every replacement has fewer nodes.

Precondition of all: a graph as `graph/ir.py` describes it (what is known before any input is a constant of a node, never a node).
Postcondition of all: the same input, the same output name, and **a node that bears the name of a node of the given graph has that node's
value**; what stands for something new has a new name.

Constants may be numpy arrays or torch tensors; tensors keep their gradient link, and rules look at their shapes alone, never at values.
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from verifier.graph.ir import Graph, Node

Outcome = tuple[Node, ...] | str
Rule = Callable[..., Outcome]

_PASS_THROUGH = ("Reshape", "Transpose")


def simplify(graph: Graph) -> Graph:
    """The graph after all passes, to a fixed point: none of the rules below has anything left to do."""
    graph = drop_terms(graph)
    while True:
        before = graph
        graph = drop_identities(drop_dead(graph))
        for length, rule in RULES:
            graph = rewrite(graph, length, rule)
        if graph is before:
            return graph


def drop_terms(graph: Graph) -> Graph:
    """Without the constants `terms`, which tell how a file computes an offset, not what it is."""
    if not any("terms" in node.constants for node in graph.nodes):
        return graph
    bare = ({key: value for key, value in node.constants.items() if key != "terms"} for node in graph.nodes)
    return replace(graph, nodes=tuple(replace(node, constants=constants) for node, constants in zip(graph.nodes, bare)))


def drop_dead(graph: Graph) -> Graph:
    """Without the nodes that the output does not depend on; the input stays.

    Post: every node but the input is read, or is the output.
    """
    live = {graph.output, graph.input.name}
    for node in reversed(graph.nodes):
        if node.name in live:
            live.update(node.inputs)
    kept = tuple(node for node in graph.nodes if node.name in live)
    return graph if len(kept) == len(graph.nodes) else replace(graph, nodes=kept)


def drop_identities(graph: Graph) -> Graph:
    """Without the nodes whose value is their input's; the output keeps its node, so that its name stays.

    Post: `is_identity` holds for no node but perhaps the output.
    """
    same: dict[str, str] = {}
    kept = []
    shapes = {node.name: node.shape for node in graph.nodes}
    for node in graph.nodes:
        node = replace(node, inputs=tuple(same.get(name, name) for name in node.inputs)) if same else node
        if node.name != graph.output and is_identity(node, shapes):
            same[node.name] = node.inputs[0]
        else:
            kept.append(node)
    return replace(graph, nodes=tuple(kept)) if same else graph


def is_identity(node: Node, shapes: dict[str, tuple[int, ...]]) -> bool:
    """Whether f(x) = x, shape included; `shapes` are those of the inputs."""
    if len(node.inputs) != 1 or shapes[node.inputs[0]] != node.shape:
        return False
    a = node.attributes
    if node.op == "Scale":
        return is_value(node.constants["scale"], 1) and is_value(node.constants["offset"], 0)
    if node.op == "Transpose":
        return a["perm"] == tuple(range(len(node.shape)))
    if node.op == "Slice":
        return all(step == 1 for step in a["steps"])
    if node.op == "Pad":
        return not any(a["pads"])
    if node.op == "Clip":
        return a["lower"] == -np.inf and a["upper"] == np.inf
    return node.op in ("Reshape", "Expand", "Concat") or (node.op in ("ReduceSum", "ReduceMean") and not a["axes"])


def rewrite(graph: Graph, length: int, rule: Rule) -> Graph:
    """The graph with `rule` applied to every chain of `length` nodes, in one sweep from the input to the output.

    A chain is a run of nodes, each but the first with one input, each but the last read by the next alone (the output counts as read), none
    of them the Input. Post: the given graph itself where the rule refuses everywhere.
    """
    readers = Counter(name for node in graph.nodes for name in node.inputs)
    readers[graph.output] += 1
    current: dict[str, Node] = {}
    changed = False
    for node in graph.nodes:
        chain = _chain(node, length, current, readers)
        outcome = rule(*chain) if chain else "no chain"
        if isinstance(outcome, str):
            current[node.name] = node
            continue
        changed = True
        for old in chain[:-1]:
            del current[old.name]
        for new in outcome:
            current[new.name] = new
            readers[new.name] = max(readers[new.name], 1)
    return replace(graph, nodes=tuple(current.values())) if changed else graph


def _chain(last: Node, length: int, current: dict[str, Node], readers: Counter[str]) -> tuple[Node, ...]:
    """The `length` nodes that end in `last`, empty where there is no such chain."""
    chain = [last]
    while len(chain) < length:
        first = chain[0]
        if len(first.inputs) != 1 or readers[first.inputs[0]] != 1 or current[first.inputs[0]].op == "Input":
            return ()
        chain.insert(0, current[first.inputs[0]])
    return tuple(chain) if last.op != "Input" else ()


def scale_after_scale(first: Node, second: Node) -> Outcome:
    """(x a + b) c + d = x (a c) + (b c + d)."""
    if (first.op, second.op) != ("Scale", "Scale"):
        return "not two Scales"
    a, b, c, d = (wide(n.constants[k]) for n in (first, second) for k in ("scale", "offset"))
    return (replace(second, inputs=first.inputs, constants={"scale": a * c, "offset": b * c + d}),)


def reshape_after_reshape(first: Node, second: Node) -> Outcome:
    """Reshape(Reshape(x)) = Reshape(x)."""
    if (first.op, second.op) != ("Reshape", "Reshape"):
        return "not two Reshapes"
    return (replace(second, inputs=first.inputs),)


def transpose_after_transpose(first: Node, second: Node) -> Outcome:
    """Transpose_q(Transpose_p(x)) = Transpose_r(x) with r[i] = p[q[i]]."""
    if (first.op, second.op) != ("Transpose", "Transpose"):
        return "not two Transposes"
    p, q = first.attributes["perm"], second.attributes["perm"]
    return (replace(second, inputs=first.inputs, attributes={"perm": tuple(p[i] for i in q)}),)


def linear_after_linear(first: Node, second: Node) -> Outcome:
    """V (W x + b) + c = (V W) x + (V b + c), where V W is no larger than V and W together."""
    if (first.op, second.op) != ("Linear", "Linear"):
        return "not two Linears"
    w, b, v, c = (n.constants[k] for n in (first, second) for k in ("weight", "bias"))
    separate, together = w.shape[0] * w.shape[1] + v.shape[0] * v.shape[1], v.shape[0] * w.shape[1]
    if together > separate:
        return f"{second.name!r} after {first.name!r} would have {together} weights instead of {separate}"
    w, b, v, c = wide(w), wide(b), wide(v), wide(c)
    return (replace(second, inputs=first.inputs, constants={"weight": v @ w, "bias": v @ b + c}),)


def scale_after_linear(first: Node, second: Node) -> Outcome:
    """(W x + b) s + o = (diag(s) W) x + (b s + o), for s and o that depend on the last axis alone."""
    if (first.op, second.op) != ("Linear", "Scale"):
        return "not a Scale after a Linear"
    axis = len(second.shape) - 1
    s, o = (along(second.constants[key], second.shape, axis) for key in ("scale", "offset"))
    if s is None or o is None:
        return f"{second.name!r} scales rows of {first.name!r} differently"
    return (replace(second, op="Linear", inputs=first.inputs, constants=_scaled_rows(first, s, o), attributes={}),)


def scale_after_conv(first: Node, second: Node) -> Outcome:
    """The same for Conv and ConvTranspose, for s and o that depend on the channel alone."""
    if first.op not in ("Conv", "ConvTranspose") or second.op != "Scale":
        return "not a Scale after a convolution"
    s, o = (along(second.constants[key], second.shape, 1) for key in ("scale", "offset"))
    if s is None or o is None:
        return f"{second.name!r} scales the positions of {first.name!r} differently"
    if first.op == "Conv":
        constants = _scaled_rows(first, s, o)
    else:
        w, group = first.constants["weight"], first.attributes.get("group", 1)
        b = wide(first.constants["bias"])
        rows = s.reshape(group, 1, w.shape[1], *(1,) * (w.ndim - 2))
        scaled = w if is_value(s, 1) else (wide(w).reshape(group, -1, *w.shape[1:]) * rows).reshape(w.shape)
        constants = {"weight": scaled, "bias": b * s + o}
    return (replace(second, op=first.op, inputs=first.inputs, constants=constants, attributes=first.attributes),)


def _scaled_rows(node: Node, s: Any, o: Any) -> dict[str, Any]:
    """Weight and bias of a Linear or Conv with its output channels times s plus o; the weight untouched where s is 1."""
    w, b = node.constants["weight"], wide(node.constants["bias"])
    rows = s.reshape(-1, *(1,) * (w.ndim - 1))
    return {"weight": w if is_value(s, 1) else wide(w) * rows, "bias": b * s + o}


def linear_after_scale(first: Node, second: Node) -> Outcome:
    """W (x s + o) + b = (W diag(s)) x + (W o + b), for s and o that depend on the last axis alone."""
    if (first.op, second.op) != ("Scale", "Linear"):
        return "not a Linear after a Scale"
    axis = len(first.shape) - 1
    s, o = (along(first.constants[key], first.shape, axis) for key in ("scale", "offset"))
    if s is None or o is None:
        return f"{first.name!r} scales the rows that {second.name!r} reads differently"
    w, b = wide(second.constants["weight"]), wide(second.constants["bias"])
    return (replace(second, inputs=first.inputs, constants={"weight": w * s, "bias": w @ o + b}),)


def conv_after_scale(first: Node, second: Node) -> Outcome:
    """Conv(x s + o) = Conv'(x) with the weights of input channel c times s_c, and the sum of W o added to the bias.

    Only for s and o that depend on the channel alone, and an o that meets no pads: the pads are zeros of x s + o, not of x.
    """
    if first.op != "Scale" or second.op != "Conv":
        return "not a Conv after a Scale"
    s, o = (along(first.constants[key], first.shape, 1) for key in ("scale", "offset"))
    if s is None or o is None:
        return f"{first.name!r} scales the positions that {second.name!r} reads differently"
    if any(second.attributes["pads"]) and not is_value(o, 0):
        return f"{second.name!r} pads with zeros what {first.name!r} has shifted"
    w, b, group = wide(second.constants["weight"]), wide(second.constants["bias"]), second.attributes.get("group", 1)
    per_group = (group, 1, w.shape[1], *(1,) * (w.ndim - 2))
    grouped = w.reshape(group, -1, *w.shape[1:])
    shift = (grouped * o.reshape(per_group)).reshape(w.shape[0], -1).sum(1)
    weight = (grouped * s.reshape(per_group)).reshape(w.shape)
    return (replace(second, inputs=first.inputs, constants={"weight": weight, "bias": b + shift}),)


def conv_after_pad(first: Node, second: Node) -> Outcome:
    """Conv(Pad(x)) = Conv'(x) with more pads, for pads of zeros on spatial axes."""
    if first.op != "Pad" or second.op != "Conv":
        return "not a Conv after a Pad"
    pads, n = first.attributes["pads"], len(first.shape)
    if first.attributes["value"] != 0 or any((*pads[:2], *pads[n:n + 2])) or min(pads) < 0:
        return f"{first.name!r} pads with {first.attributes['value']} by {pads}, not with zeros on spatial axes alone"
    own = second.attributes["pads"]
    joint = tuple(p + q for p, q in zip(own, (*pads[2:n], *pads[n + 2:])))
    return (replace(second, inputs=first.inputs, attributes={**second.attributes, "pads": joint}),)


def scale_back_through(producer: Node, mover: Node, scale: Node) -> Outcome:
    """Scale(Move(P(x))) = Move(P'(x)), Move a Reshape or Transpose, where P' = Scale' after P is one node."""
    if mover.op not in _PASS_THROUGH or scale.op != "Scale":
        return "not a Scale after a Reshape or Transpose"
    constants = {key: _back(scale.constants[key], mover, producer.shape) for key in ("scale", "offset")}
    moved = Node(f"{scale.name}/unmoved", "Scale", (producer.name,), producer.shape, constants)
    merged = next((o for o in (rule(producer, moved) for rule in _SCALE_AFTER) if not isinstance(o, str)), None)
    if merged is None:
        return f"{producer.op} {producer.name!r} cannot take up {scale.name!r}"
    return (*merged, replace(mover, name=scale.name, inputs=(moved.name,)))


def scale_forth_through(scale: Node, mover: Node, consumer: Node) -> Outcome:
    """C(Move(Scale(x))) = C'(Move(x)), Move a Reshape or Transpose, where C' = C after Scale' is one node."""
    if mover.op not in _PASS_THROUGH or scale.op != "Scale":
        return "not a Reshape or Transpose after a Scale"
    constants = {key: _forth(scale.constants[key], mover, scale.shape) for key in ("scale", "offset")}
    moved = replace(mover, name=f"{mover.name}/unscaled", inputs=scale.inputs)
    after = Node(mover.name, "Scale", (moved.name,), mover.shape, constants)
    merged = next((o for o in (rule(after, consumer) for rule in _AFTER_SCALE) if not isinstance(o, str)), None)
    if merged is None:
        return f"{consumer.op} {consumer.name!r} cannot take up {scale.name!r}"
    return (moved, *merged)


def _back(constant: Any, mover: Node, shape: tuple[int, ...]) -> Any:
    """A constant over the mover's output as one over its input, of `shape`."""
    if constant.ndim == 0:
        return constant
    full = broadcast(constant, mover.shape)
    if mover.op == "Reshape":
        return full.reshape(shape)
    return permuted(full, tuple(int(i) for i in np.argsort(mover.attributes["perm"])))


def _forth(constant: Any, mover: Node, shape: tuple[int, ...]) -> Any:
    """A constant over the mover's input, of `shape`, as one over its output."""
    if constant.ndim == 0:
        return constant
    full = broadcast(constant, shape)
    return full.reshape(mover.shape) if mover.op == "Reshape" else permuted(full, mover.attributes["perm"])


def wide(array: Any) -> Any:
    """A numpy array in float64; a tensor as it is."""
    return array.astype(np.float64) if isinstance(array, np.ndarray) else array


def is_value(array: Any, value: float) -> bool:
    """Whether all values are `value`; never said of a tensor, whose values may change."""
    return isinstance(array, np.ndarray) and bool((array == value).all())


def broadcast(array: Any, shape: tuple[int, ...]) -> Any:
    return np.broadcast_to(array, shape) if isinstance(array, np.ndarray) else array.broadcast_to(shape)


def permuted(array: Any, perm: tuple[int, ...]) -> Any:
    return array.transpose(perm) if isinstance(array, np.ndarray) else array.permute(perm)


def along(array: Any, shape: tuple[int, ...], axis: int) -> Any:
    """The array, which broadcasts to `shape`, as `(shape[axis],)`, in float64; None where it varies along another axis."""
    array = array.reshape((1,) * (len(shape) - array.ndim) + tuple(array.shape))
    for other in range(len(shape)):
        if other == axis or array.shape[other] == 1:
            continue
        first = array[(slice(None),) * other + (slice(0, 1),)]
        if not isinstance(array, np.ndarray) or not bool((array == first).all()):
            return None
        array = first
    return broadcast(wide(array).reshape(-1), (shape[axis],))


_SCALE_AFTER: tuple[Rule, ...] = (scale_after_linear, scale_after_conv)
_AFTER_SCALE: tuple[Rule, ...] = (linear_after_scale, conv_after_scale)

RULES: tuple[tuple[int, Rule], ...] = (
    (2, reshape_after_reshape),
    (2, transpose_after_transpose),
    (2, scale_after_scale),
    (2, conv_after_pad),
    (2, scale_after_linear),
    (2, scale_after_conv),
    (3, scale_back_through),
    (2, linear_after_scale),
    (2, conv_after_scale),
    (3, scale_forth_through),
    (2, linear_after_linear),
)
