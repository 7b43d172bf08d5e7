"""Graph and Node: the network, frozen, topologically ordered, with no bounds stored on it.

Shapes. A node's `shape` is exactly the shape that ONNX gives its value for one sample (a dynamic dimension counts as 1), so a leading 1 that
ONNX calls the batch is part of it; but a value without dimensions has the shape (1,).
Execution and bounds put one more dimension in front, the batch of this package: `(B, *node.shape)`. All axes
and permutations in attributes count from `node.shape`'s first dimension and are non-negative.

Vocabulary (op: constants; attributes). `x` is the first input.

| op | constants | attributes |
|---|---|---|
| Input | | |
| Linear: x @ weight.T + bias on the last axis | weight (out, in), bias (out,) | |
| LeftMatMul: weight @ x on the last two axes | weight (m, k) | |
| Conv, ConvTranspose (x is (1, C, *spatial)) | weight (ONNX layout), bias | strides, dilations, pads (begins then ends), group; output_padding |
| Scale: x * scale + offset, broadcast to x's own shape | scale, offset; as read from a BatchNormalization also terms: abs(beta) + abs(mean scale) | |
| Add, Sub: two inputs, broadcast | | |
| Mul: product of two inputs, broadcast | | |
| AveragePool, MaxPool | | kernel_shape, strides, dilations, pads, ceil_mode; count_include_pad (average only) |
| ReduceSum, ReduceMean | | axes |
| Reshape (to `node.shape`), Expand (to `node.shape`) | | |
| Transpose | | perm |
| Concat | | axis |
| Slice | | axes, starts, ends, steps (normalised: 0 <= start; end may be -1 - size for a negative step) |
| Gather (constant indices) | indices (int64) | axis |
| Pad (constant mode) | | pads (begins then ends), value |
| Relu, Sigmoid, Tanh | | |
| LeakyRelu | | slope |
| Clip | | lower, upper (floats, may be infinite) |

Constants are numpy arrays when a graph comes from a file, torch tensors after `Graph.to` or `load_torch`.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Node:
    """One operation: `name` is also the name of its only output."""

    name: str
    op: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    constants: Mapping[str, Any] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Graph:
    """Nodes in topological order, the first the only Input, `output` the name of the node whose value is the network's.

    `source` is the file it was read from, empty for a network that has none, and `digest` that of the bytes that were read. `computed` names the
    file's nodes that do not depend on the input and were computed and rounded when it was read: a runtime may have rounded them otherwise.
    `arithmetic` is the floating type in which the file computes what depends on the input, float16, float32 or float64; None where it is not one of
    them alone (`mixed` says why) or there is no file; `input_type` is that of its input. `raw` is the graph as it was read, before passes changed it:
    what proofs are checked on.
    """

    nodes: tuple[Node, ...]
    output: str
    source: str = ""
    computed: tuple[str, ...] = ()
    digest: str = ""
    arithmetic: str | None = None
    mixed: str = ""
    input_type: str = "float32"
    raw: Graph | None = None

    def __post_init__(self) -> None:
        if not all(node.shape for node in self.nodes):
            object.__setattr__(self, "nodes", tuple(map(_with_a_dimension, self.nodes)))

    @property
    def input(self) -> Node:
        return self.nodes[0]

    def node(self, name: str) -> Node:
        return next(n for n in self.nodes if n.name == name)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.nodes[0].shape

    @property
    def output_shape(self) -> tuple[int, ...]:
        return self.node(self.output).shape

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Graph:
        """A copy whose constants are torch tensors there (integer constants keep their type). Tensors keep their gradient link."""
        import torch

        def move(value: Any) -> torch.Tensor:
            tensor = value if isinstance(value, torch.Tensor) else torch.tensor(value)
            return tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else tensor.dtype)

        nodes = tuple(replace(n, constants={k: move(v) for k, v in n.constants.items()}) for n in self.nodes)
        return replace(self, nodes=nodes)

    def to_numpy(self) -> Graph:
        """A copy whose constants are numpy arrays."""
        plain = lambda value: value if isinstance(value, np.ndarray) else value.detach().cpu().numpy()  # noqa: E731
        nodes = tuple(replace(n, constants={k: plain(v) for k, v in n.constants.items()}) for n in self.nodes)
        return replace(self, nodes=nodes)

def _with_a_dimension(node: Node) -> Node:
    """A node whose value has no dimensions as one of shape (1,): what it does to its inputs stays right, for they broadcast."""
    if node.shape:
        return node
    attributes = {**node.attributes, "perm": (0,)} if node.op == "Transpose" else node.attributes
    return replace(node, shape=(1,), attributes=attributes)
