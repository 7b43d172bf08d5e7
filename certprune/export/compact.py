"""Graph -> Graph: the same function without the channels and neurons that carry nothing.

The parts. A value is *constant* where it does not depend on the input, whatever that is: found for every element at once, by running the
graph with every constant replaced by whether it is zero. Values whose channels must be cut together form a *group*: what ReLU, Scale, pools,
Reshape and residual Adds join; convolutions and linear layers lie between the groups. A channel of a group goes where each of its values is
constant there, or read by nobody who gives it a weight. So a residual Add loses a channel only where all that it joins agree; a branch that
is constant beside one that is not stays as it is.

What a cut constant contributed to the layer behind it is added to that layer's bias. Behind a padded convolution the contribution fades at
the edges, and no bias can hold it: there all constant channels are first merged into one, the *carrier*, whose weights become their weighted
sum, and the carrier stays. A constant that is itself not the same at every position stays where a convolution reads it. Cutting a row may
leave other channels unread, so sweeps are repeated until nothing changes. One channel always stays, for a value cannot be empty.
"""
from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import numpy as np
import torch

import verifier

_KNOWN = ("Input", "Conv", "Linear", "Relu", "Scale", "Add", "Sub", "Reshape", "AveragePool", "MaxPool", "ReduceMean")
# Positions whose constants differ by no more than this share hold the same number: sums of float64 in another order.
SAME = 1e-12


@dataclass(frozen=True, slots=True)
class _Constant:
    """Of one value: `number` is the value wherever `depends` is False; both `(1, n, ...)`."""

    number: np.ndarray
    depends: np.ndarray

    def uniform(self) -> np.ndarray:
        """Which channels are constant, and the same at every position, `(n,)`."""
        flat = self.number.reshape(self.number.shape[1], -1)
        same = np.ptp(flat, axis=1) <= SAME * np.abs(flat).max(1)
        return same & ~self.depends.reshape(len(flat), -1).any(1)


def compact(graph: verifier.Graph) -> verifier.Graph:
    """The same function on fewer channels, to a fixed point; exact in real arithmetic.

    Args:
        graph: simplified, with float64 numpy constants.

    Raises:
        UnsupportedError: an operation that channels are not followed through; the message names all.
    """
    others = sorted({node.op for node in graph.nodes} - set(_KNOWN))
    if others:
        raise verifier.UnsupportedError(f"The network cannot be made compact: channels are not followed through {', '.join(others)}.")
    while True:
        before = [node.shape for node in graph.nodes]
        graph = verifier.simplify(_sweep(graph))
        if [node.shape for node in graph.nodes] == before:
            return graph


def _sweep(graph: verifier.Graph) -> verifier.Graph:
    """The graph without the channels that can go at once."""
    constants = _constants(graph)
    graph = replace(graph, nodes=tuple(_merge_constants(node, constants) for node in graph.nodes))
    kept = _kept(graph, constants)
    if all(keep.all() for keep in kept.values()):
        return graph
    return replace(graph, nodes=tuple(_cut(node, kept, constants) for node in graph.nodes))


def _merge_constants(node: verifier.Node, constants: dict[str, _Constant]) -> verifier.Node:
    """sum_c w_c v_c = (sum_c w_c v_c / v_k) v_k for the constant channels c of a padded convolution's input, k the largest of them."""
    if not _fades(node) or node.attributes.get("group", 1) != 1:
        return node
    source = constants[node.inputs[0]]
    number = np.where(source.uniform(), source.number.reshape(source.number.shape[1], -1)[:, 0], 0.0)
    carrier = int(np.abs(number).argmax())
    if number[carrier] == 0:
        return node
    weight = node.constants["weight"].copy()
    merged = np.tensordot(number / number[carrier], weight, (0, 1))
    weight[:, number != 0] = 0.0
    weight[:, carrier] = merged
    return replace(node, constants={**node.constants, "weight": weight})


def _fades(node: verifier.Node) -> bool:
    """Whether a constant channel may contribute differently to different positions, because some windows hold pads."""
    return node.op == "Conv" and any(node.attributes["pads"]) and prod(node.shape[2:]) > 1


def _constants(graph: verifier.Graph) -> dict[str, _Constant]:
    """Which elements of each value are constant, and what they are there.

    An element depends on the input if a chain of nonzero weights leads to it: with 1 at every input, 1 for every nonzero weight and no
    offsets, every value is at least zero, so that nothing cancels, and positive exactly there.
    """
    touched = replace(graph, nodes=tuple(_dependence(node) for node in graph.nodes))
    with torch.no_grad():
        numbers = verifier.execute_all(graph, torch.zeros(1, *graph.input_shape, dtype=torch.float64))
        reached = verifier.execute_all(touched, torch.ones(1, *graph.input_shape, dtype=torch.float64))
    return {name: _Constant(numbers[name][0].numpy(), reached[name][0].numpy() > 0) for name in numbers}


def _dependence(node: verifier.Node) -> verifier.Node:
    """The node that tells which of its elements depend on a positive input."""
    constants = {key: (value != 0).astype(np.float64) if key in ("weight", "scale") else np.zeros_like(value, dtype=np.float64)
                 for key, value in node.constants.items()}
    return replace(node, op="Add" if node.op == "Sub" else node.op, constants=constants)


def _kept(graph: verifier.Graph, constants: dict[str, _Constant]) -> dict[str, np.ndarray]:
    """For each value which of its channels (entries of axis 1) stay, `(n,)`."""
    nodes = {node.name: node for node in graph.nodes}
    groups, fixed = _groups(graph)
    kept = {}
    for members in groups:
        sizes = [nodes[name].shape[1] if len(nodes[name].shape) > 1 else 1 for name in members]
        count = min(sizes)
        keep = np.zeros(count, bool)
        if fixed.intersection(members) or any(size % count for size in sizes):
            keep[:] = True
        else:
            for name in members:
                keep |= _needed(graph, nodes[name], constants[name]).reshape(count, -1).any(1)
            keep[0] |= not keep.any()
        kept.update({name: np.repeat(keep, size // count) for name, size in zip(members, sizes)})
    return kept


def _needed(graph: verifier.Graph, node: verifier.Node, constant: _Constant) -> np.ndarray:
    """Which channels of a value some layer gives a weight without being able to take their constant into its bias, `(n,)`."""
    needed = np.zeros(node.shape[1], bool)
    depends = constant.depends.reshape(len(needed), -1).any(1)
    nonzero = (constant.number != 0).reshape(len(needed), -1).any(1)
    for reader in graph.nodes:
        if node.name not in reader.inputs or reader.op not in ("Conv", "Linear"):
            continue
        read = (np.moveaxis(reader.constants["weight"], 1, 0) != 0).reshape(len(needed), -1).any(1)
        stays = depends
        if reader.op == "Conv" and prod(reader.shape[2:]) > 1:
            stays = depends | ~constant.uniform() | (nonzero & _fades(reader))
        needed |= read & stays
    return needed


def _groups(graph: verifier.Graph) -> tuple[list[list[str]], set[str]]:
    """The values that are cut together, and those that must stay whole."""
    group = {node.name: [node.name] for node in graph.nodes}
    shapes = {node.name: node.shape for node in graph.nodes}
    fixed = {graph.input.name, graph.output}
    for node in graph.nodes[1:]:
        values = [node.name, *node.inputs]
        kind = _kind(node, [shapes[name] for name in values])
        if kind == "fixed":
            fixed.update(values)
        elif kind == "joined":
            for name in values[1:]:
                if group[name] is not group[node.name]:
                    merged = group[name] + group[node.name]
                    group.update(dict.fromkeys(merged, merged))
    return list({id(members): members for members in group.values()}.values()), fixed


def _kind(node: verifier.Node, shapes: list[tuple[int, ...]]) -> str:
    """How a node ties the channels of its inputs to its own: 'free', 'joined', or 'fixed' where they cannot be followed."""
    if any(len(shape) < 2 or shape[0] != 1 for shape in shapes):
        return "fixed"
    if node.op == "Conv":
        return "free" if node.attributes.get("group", 1) == 1 else "fixed"
    if node.op == "Linear":
        return "free" if len(shapes[0]) == 2 else "fixed"
    counts = {shape[1] for shape in shapes}
    if node.op == "Reshape":
        return "joined" if max(counts) % min(counts) == 0 else "fixed"
    if node.op in ("Add", "Sub"):
        return "joined" if len(set(shapes)) == 1 else "fixed"
    return "joined" if len(counts) == 1 else "fixed"


def _cut(node: verifier.Node, kept: dict[str, np.ndarray], constants: dict[str, _Constant]) -> verifier.Node:
    """The node on the channels that stay."""
    keep = kept[node.name]
    if len(node.shape) < 2:
        return node
    shape = (node.shape[0], int(keep.sum()), *node.shape[2:])
    if node.op == "Scale":
        return replace(node, shape=shape, constants={key: _along_channels(value, node.shape, keep) for key, value in node.constants.items()})
    if node.op not in ("Conv", "Linear"):
        return replace(node, shape=shape)
    given = kept[node.inputs[0]]
    if keep.all() and given.all():
        return node
    bias = _of_constants(node, given, constants[node.inputs[0]]).reshape(len(keep), -1)[keep, 0]
    return replace(node, shape=shape, constants={"weight": node.constants["weight"][keep][:, given], "bias": bias})


def _of_constants(node: verifier.Node, given: np.ndarray, source: _Constant) -> np.ndarray:
    """The layer's value on the constants that are cut from its input, zeros elsewhere, `(1, n, ...)`: the bias that stands for them too."""
    number = np.where(source.depends, 0.0, source.number)
    number[:, given] = 0.0
    alone = verifier.Graph((verifier.Node("constants", "Input", (), source.number.shape), replace(node, inputs=("constants",))), node.name)
    with torch.no_grad():
        return verifier.execute_all(alone, torch.from_numpy(number).unsqueeze(0))[node.name][0].numpy()


def _along_channels(value: np.ndarray, shape: tuple[int, ...], keep: np.ndarray) -> np.ndarray:
    """A constant that broadcasts to `shape`, on the channels that stay."""
    value = value.reshape((1,) * (len(shape) - value.ndim) + value.shape)
    return value[:, keep] if value.shape[1] == len(keep) else value
