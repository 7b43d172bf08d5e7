"""Graph -> ONNX model: one function for each operation of the vocabulary, with the constants rounded once, to float32.

Every node becomes one ONNX node, or two (a Scale is a Mul and an Add), whose value bears the node's name; an initializer is called after its
node: "4.weight", "4.bias". The first dimension is left open ("batch") where no node touches it, so that a runtime takes many samples at once.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import verifier

# Opset 13 (with IR version 8) is read by every onnxruntime since 1.8.
OPSET, IR_VERSION = 13, 8
PRODUCER = "certprune"


class _Writer:
    """The ONNX nodes and initializers so far."""

    def __init__(self, graph: verifier.Graph) -> None:
        self.shapes: Mapping[str, tuple[int, ...]] = {node.name: node.shape for node in graph.nodes}
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def add(self, op: str, inputs: tuple[str, ...], output: str, **attributes: object) -> None:
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=output, **attributes))

    def constant(self, name: str, array: np.ndarray, dtype: type = np.float32) -> str:
        """The name of a new initializer."""
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(array, dtype), name))
        return name


def to_onnx(graph: verifier.Graph) -> onnx.ModelProto:
    """The model whose function is the graph's, in float32.

    Args:
        graph: with numpy constants.

    Raises:
        UnsupportedError: an operation that no function here writes; the message names all.
    """
    unknown = sorted({node.op for node in graph.nodes[1:]} - set(_WRITERS))
    if unknown:
        raise verifier.UnsupportedError(f"The network cannot be written as ONNX: nothing writes {', '.join(unknown)}.")
    writer = _Writer(graph)
    for node in graph.nodes[1:]:
        _WRITERS[node.op](writer, node)
    is_open = all(_keeps_batch(node, writer.shapes) for node in graph.nodes)
    infos = []
    for name in (graph.input.name, graph.output):
        shape = writer.shapes[name]
        infos.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape[1:]] if is_open else list(shape)))
    proto = helper.make_graph(writer.nodes, "network", infos[:1], infos[1:], writer.initializers)
    return helper.make_model(proto, producer_name=PRODUCER, ir_version=IR_VERSION, opset_imports=[helper.make_opsetid("", OPSET)])


def _keeps_batch(node: verifier.Node, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether the node treats the first dimension, of size 1, as it would treat many samples: each by itself."""
    touched = {"Transpose": node.attributes.get("perm", (0,))[0] != 0, "Concat": node.attributes.get("axis") == 0,
               "Gather": node.attributes.get("axis") == 0, "Slice": 0 in node.attributes.get("axes", ()),
               "ReduceSum": 0 in node.attributes.get("axes", ()), "ReduceMean": 0 in node.attributes.get("axes", ()),
               "LeftMatMul": len(node.shape) < 3, "Linear": len(node.shape) < 2}
    rows = [node.shape, *(shapes[name] for name in node.inputs), *(value.shape for value in node.constants.values() if node.op == "Scale")]
    lead = all(len(row) < len(node.shape) or row[0] == 1 for row in rows if row)
    return lead and bool(node.shape) and node.shape[0] == 1 and not touched.get(node.op, False)


def _linear(writer: _Writer, node: verifier.Node) -> None:
    """Gemm on a matrix, MatMul and Add on more axes."""
    weight, bias = node.constants["weight"], node.constants["bias"]
    if len(node.shape) == 2:
        given = (*node.inputs, writer.constant(f"{node.name}.weight", weight), writer.constant(f"{node.name}.bias", bias))
        writer.add("Gemm", given, node.name, transB=1)
        return
    writer.add("MatMul", (*node.inputs, writer.constant(f"{node.name}.weight", weight.T)), f"{node.name}/product")
    writer.add("Add", (f"{node.name}/product", writer.constant(f"{node.name}.bias", bias)), node.name)


def _left_product(writer: _Writer, node: verifier.Node) -> None:
    writer.add("MatMul", (writer.constant(f"{node.name}.weight", node.constants["weight"]), *node.inputs), node.name)


def _conv(writer: _Writer, node: verifier.Node) -> None:
    weight = node.constants["weight"]
    given = (*node.inputs, writer.constant(f"{node.name}.weight", weight), writer.constant(f"{node.name}.bias", node.constants["bias"]))
    writer.add(node.op, given, node.name, kernel_shape=weight.shape[2:], **node.attributes)


def _scale(writer: _Writer, node: verifier.Node) -> None:
    """x * scale + offset, without the part that changes nothing."""
    scale, offset = node.constants["scale"], node.constants["offset"]
    source = node.inputs[0]
    if not (offset == 0).all() and not (scale == 1).all():
        writer.add("Mul", (source, writer.constant(f"{node.name}.scale", scale)), f"{node.name}/scaled")
        source = f"{node.name}/scaled"
    if (offset == 0).all():
        writer.add("Mul", (source, writer.constant(f"{node.name}.scale", scale)), node.name)
    else:
        writer.add("Add", (source, writer.constant(f"{node.name}.offset", offset)), node.name)


def _reshape(writer: _Writer, node: verifier.Node) -> None:
    """Flatten where it is one; else a Reshape that keeps a leading 1 open."""
    given = writer.shapes[node.inputs[0]]
    if len(node.shape) == 2 and node.shape[0] == 1 and given and given[0] == 1:
        writer.add("Flatten", node.inputs, node.name, axis=1)
        return
    keep = bool(given and node.shape) and given[0] == node.shape[0] == 1
    shape = (0, *node.shape[1:]) if keep else node.shape
    writer.add("Reshape", (*node.inputs, writer.constant(f"{node.name}.shape", np.array(shape), np.int64)), node.name)


def _expand(writer: _Writer, node: verifier.Node) -> None:
    writer.add("Expand", (*node.inputs, writer.constant(f"{node.name}.shape", np.array(node.shape), np.int64)), node.name)


def _pool(writer: _Writer, node: verifier.Node) -> None:
    """An AveragePool of opset 13 has no dilations."""
    attributes = {key: value for key, value in node.attributes.items() if key != "dilations" or node.op == "MaxPool"}
    if node.op == "AveragePool" and set(node.attributes.get("dilations", (1,))) != {1}:
        raise verifier.UnsupportedError(f"The network cannot be written as ONNX: AveragePool {node.name!r} is dilated.")
    writer.add(node.op, node.inputs, node.name, **attributes)


def _reduce_sum(writer: _Writer, node: verifier.Node) -> None:
    """Axes are an input since opset 13."""
    axes = writer.constant(f"{node.name}.axes", np.array(node.attributes["axes"]), np.int64)
    writer.add("ReduceSum", (*node.inputs, axes), node.name, keepdims=int(len(node.shape) == len(writer.shapes[node.inputs[0]])))


def _reduce_mean(writer: _Writer, node: verifier.Node) -> None:
    keep = int(len(node.shape) == len(writer.shapes[node.inputs[0]]))
    writer.add("ReduceMean", node.inputs, node.name, axes=node.attributes["axes"], keepdims=keep)


def _slice(writer: _Writer, node: verifier.Node) -> None:
    names = [writer.constant(f"{node.name}.{key}", np.array(node.attributes[key]), np.int64) for key in ("starts", "ends", "axes", "steps")]
    writer.add("Slice", (*node.inputs, *names), node.name)


def _gather(writer: _Writer, node: verifier.Node) -> None:
    indices = writer.constant(f"{node.name}.indices", node.constants["indices"], np.int64)
    writer.add("Gather", (*node.inputs, indices), node.name, axis=node.attributes["axis"])


def _pad(writer: _Writer, node: verifier.Node) -> None:
    pads = writer.constant(f"{node.name}.pads", np.array(node.attributes["pads"]), np.int64)
    value = writer.constant(f"{node.name}.value", np.array(node.attributes["value"]))
    writer.add("Pad", (*node.inputs, pads, value), node.name)


def _clip(writer: _Writer, node: verifier.Node) -> None:
    limits = [writer.constant(f"{node.name}.{key}", np.array(node.attributes[key])) for key in ("lower", "upper")]
    writer.add("Clip", (*node.inputs, *limits), node.name)


def _same(writer: _Writer, node: verifier.Node) -> None:
    """Operations that ONNX has under the same name with the same attributes."""
    writer.add(node.op, node.inputs, node.name, **node.attributes)


def _leaky_relu(writer: _Writer, node: verifier.Node) -> None:
    writer.add("LeakyRelu", node.inputs, node.name, alpha=float(node.attributes["slope"]))


_WRITERS: dict[str, Callable[[_Writer, verifier.Node], None]] = {
    **dict.fromkeys(("Add", "Sub", "Mul", "Transpose", "Concat", "Relu", "Sigmoid", "Tanh"), _same),
    **dict.fromkeys(("Conv", "ConvTranspose"), _conv),
    **dict.fromkeys(("AveragePool", "MaxPool"), _pool),
    "Clip": _clip,
    "Expand": _expand,
    "Gather": _gather,
    "LeakyRelu": _leaky_relu,
    "LeftMatMul": _left_product,
    "Linear": _linear,
    "Pad": _pad,
    "ReduceMean": _reduce_mean,
    "ReduceSum": _reduce_sum,
    "Reshape": _reshape,
    "Scale": _scale,
    "Slice": _slice,
}
