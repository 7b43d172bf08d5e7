"""Every ONNX operation and form that is lowered, over its opsets, against onnxruntime."""
from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from onnx import NodeProto, helper

from tests.onnx_models import assert_as_onnxruntime, model, saved

R = np.random.default_rng(7)


def floats(*shape: int) -> np.ndarray:
    return R.standard_normal(shape).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


@dataclass(frozen=True, slots=True)
class Case:
    """One or several nodes from x to y; `ops`: the operations that must be in the loaded graph."""

    name: str
    nodes: tuple[NodeProto, ...]
    shape: tuple[int, ...]
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    opsets: tuple[int, ...] = (7, 13, 21)
    ops: tuple[str, ...] = ()


def case(name: str, op: str, shape: tuple[int, ...], constants: dict | None = None, opsets: tuple[int, ...] = (7, 13, 21),
         ops: tuple[str, ...] = (), **attributes) -> Case:
    """One node that reads x and then the constants, in their order; a constant named `<x` comes before x, `_` is an absent input."""
    constants = constants or {}
    names = [key for key in constants if key.startswith("<")] + ["x"] + [key for key in constants if not key.startswith("<")]
    node = helper.make_node(op, [("" if key.startswith("_") else key) for key in names], ["y"], name="the node", **attributes)
    return Case(name, (node,), shape, {k: v for k, v in constants.items() if not k.startswith("_")}, opsets, ops)


def chain(name: str, shape: tuple[int, ...], *nodes: NodeProto, opsets: tuple[int, ...] = (9, 13, 17), **constants: np.ndarray) -> Case:
    return Case(name, nodes, shape, constants, opsets)


N = helper.make_node
IMAGE = (1, 3, 7, 8)
LINEAR = [
    case("gemm", "Gemm", (1, 4), {"w": floats(4, 3), "b": floats(3)}, ops=("Linear",)),
    case("gemm transB alpha beta", "Gemm", (1, 4), {"w": floats(3, 4), "b": floats(1, 3)}, transB=1, alpha=0.5, beta=-2.0),
    case("gemm without bias", "Gemm", (2, 4), {"w": floats(4, 3)}, (11, 13)),
    case("gemm bias scalar", "Gemm", (2, 4), {"w": floats(4, 3), "b": floats()}),
    case("gemm bias a column", "Gemm", (2, 4), {"w": floats(4, 3), "b": floats(2, 1)}, beta=3.0),
    case("gemm bias a matrix", "Gemm", (2, 4), {"w": floats(4, 3), "b": floats(2, 3)}),
    case("gemm transA", "Gemm", (4, 2), {"w": floats(4, 3), "b": floats(3)}, transA=1),
    case("gemm constant left", "Gemm", (4, 2), {"<w": floats(3, 4), "b": floats(2)}, alpha=2.0),
    case("gemm constant left transposed", "Gemm", (2, 4), {"<w": floats(4, 3), "b": floats(2)}, transA=1, transB=1, alpha=2.0, beta=0.5),
    chain("gemm variable bias", (2, 3), N("Gemm", ["x", "w", "x"], ["y"], beta=2.0), w=floats(3, 3)),
    chain("gemm two variables", (3, 3), N("Gemm", ["x", "x", "b"], ["y"], alpha=0.5, transB=1), b=floats(3)),
    case("matmul right", "MatMul", (1, 4), {"w": floats(4, 3)}, ops=("Linear",)),
    case("matmul right of three axes", "MatMul", (2, 5, 4), {"w": floats(4, 3)}),
    case("matmul right, one batched matrix", "MatMul", (5, 4), {"w": floats(1, 1, 4, 3)}),
    case("matmul right, batches", "MatMul", (2, 5, 4), {"w": floats(2, 4, 3)}, ops=("ReduceSum",)),
    case("matmul right, new batches", "MatMul", (5, 4), {"w": floats(2, 4, 3)}),
    case("matmul right a vector", "MatMul", (2, 4), {"w": floats(4)}),
    case("matmul vector right", "MatMul", (4,), {"w": floats(4, 3)}),
    case("matmul vector right, batched matrix", "MatMul", (4,), {"w": floats(1, 1, 4, 3)}),
    case("matmul left", "MatMul", (4, 2), {"<w": floats(3, 4)}, ops=("LeftMatMul",)),
    case("matmul left batched x", "MatMul", (2, 4, 5), {"<w": floats(3, 4)}),
    case("matmul left, one batched matrix", "MatMul", (4, 5), {"<w": floats(1, 1, 3, 4)}),
    case("matmul left, batches", "MatMul", (2, 4, 5), {"<w": floats(2, 3, 4)}),
    case("matmul left a vector", "MatMul", (2, 4, 5), {"<w": floats(4)}),
    case("matmul left of a vector", "MatMul", (4,), {"<w": floats(3, 4)}),
    case("matmul left of a vector, batched matrix", "MatMul", (4,), {"<w": floats(1, 3, 4)}),
    chain("matmul two variables", (2, 3, 4), N("Transpose", ["x"], ["t"], perm=[0, 2, 1]), N("MatMul", ["x", "t"], ["y"])),
    chain("matmul two variables, broadcast", (3, 4), N("Unsqueeze", ["x"], ["u"], axes=[0]), N("Transpose", ["x"], ["t"]),
          N("MatMul", ["u", "t"], ["y"]), opsets=(9, 11)),
    chain("batch normalization", IMAGE, N("BatchNormalization", ["x", "g", "b", "m", "v"], ["y"], epsilon=0.01),
          g=floats(3), b=floats(3), m=floats(3), v=np.abs(floats(3))),
    chain("batch normalization of a vector", (1, 5), N("BatchNormalization", ["x", "g", "b", "m", "v"], ["y"]),
          g=floats(5), b=floats(5), m=floats(5), v=np.abs(floats(5)) + 0.1),
]
W = floats(4, 3, 3, 2)
CONVS = [
    case("conv", "Conv", IMAGE, {"w": W, "b": floats(4)}, ops=("Conv",)),
    case("conv without bias", "Conv", IMAGE, {"w": W}, kernel_shape=[3, 2]),
    case("conv strides and asymmetric pads", "Conv", IMAGE, {"w": W, "b": floats(4)}, strides=[2, 3], pads=[0, 1, 2, 3]),
    case("conv dilations", "Conv", IMAGE, {"w": W}, dilations=[2, 3], pads=[1, 1, 1, 1]),
    case("conv groups", "Conv", (1, 4, 5, 5), {"w": floats(6, 2, 3, 3), "b": floats(6)}, group=2),
    case("conv depthwise", "Conv", (1, 4, 5, 5), {"w": floats(4, 1, 3, 3)}, group=4, pads=[1, 1, 1, 1]),
    case("conv same upper", "Conv", IMAGE, {"w": W}, auto_pad="SAME_UPPER", strides=[2, 3]),
    case("conv same lower", "Conv", IMAGE, {"w": W}, auto_pad="SAME_LOWER", strides=[2, 3]),
    case("conv same, stride above kernel", "Conv", IMAGE, {"w": floats(2, 3, 1, 1)}, auto_pad="SAME_UPPER", strides=[3, 3]),
    case("conv valid", "Conv", IMAGE, {"w": W}, auto_pad="VALID"),
    case("conv 1d", "Conv", (1, 3, 9), {"w": floats(2, 3, 4), "b": floats(2)}, strides=[2], pads=[1, 2]),
    case("conv 3d", "Conv", (1, 2, 4, 5, 6), {"w": floats(3, 2, 2, 3, 2), "b": floats(3)}, pads=[1, 0, 1, 0, 1, 1]),
    case("convtranspose", "ConvTranspose", (1, 3, 4, 5), {"w": floats(3, 2, 3, 3), "b": floats(2)}, ops=("ConvTranspose",)),
    case("convtranspose strides pads", "ConvTranspose", (1, 3, 4, 5), {"w": floats(3, 2, 3, 3)}, strides=[2, 3], pads=[1, 0, 0, 2]),
    case("convtranspose output padding", "ConvTranspose", (1, 3, 4, 5), {"w": floats(3, 2, 3, 3)}, strides=[2, 2], pads=[1, 1, 1, 1],
         output_padding=[1, 0]),
    case("convtranspose output shape", "ConvTranspose", (1, 3, 4, 5), {"w": floats(3, 2, 4, 4)}, strides=[2, 2], output_shape=[9, 10]),
    case("convtranspose same upper", "ConvTranspose", (1, 3, 4, 5), {"w": floats(3, 2, 3, 3)}, strides=[2, 2], auto_pad="SAME_UPPER"),
    case("convtranspose same lower", "ConvTranspose", (1, 3, 4, 5), {"w": floats(3, 2, 3, 3)}, strides=[2, 2], auto_pad="SAME_LOWER"),
    case("convtranspose groups dilations", "ConvTranspose", (1, 4, 4, 5), {"w": floats(4, 3, 2, 2), "b": floats(6)}, group=2,
         dilations=[2, 1]),
    case("convtranspose 1d", "ConvTranspose", (1, 3, 5), {"w": floats(3, 2, 4)}, strides=[3], pads=[1, 2]),
]
POOLS = [
    case("maxpool", "MaxPool", IMAGE, kernel_shape=[2, 3], strides=[2, 2], ops=("MaxPool",)),
    case("maxpool asymmetric pads", "MaxPool", IMAGE, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 0, 0, 2]),
    case("maxpool ceil", "MaxPool", IMAGE, {}, (10, 13, 21), kernel_shape=[2, 3], strides=[2, 3], ceil_mode=1),
    case("maxpool ceil, pads", "MaxPool", (1, 2, 6, 6), {}, (10, 13, 21), kernel_shape=[3, 3], strides=[3, 2], pads=[1, 1, 1, 1],
         ceil_mode=1),
    case("maxpool ceil, a window in the pads alone", "MaxPool", (1, 1, 5, 5), {}, (10, 21), kernel_shape=[2, 2], strides=[3, 3],
         pads=[1, 1, 1, 1], ceil_mode=1),
    case("maxpool dilations", "MaxPool", IMAGE, {}, (10, 13), kernel_shape=[2, 2], dilations=[2, 3]),
    case("maxpool same upper", "MaxPool", IMAGE, auto_pad="SAME_UPPER", kernel_shape=[2, 3], strides=[2, 2]),
    case("maxpool same lower", "MaxPool", IMAGE, auto_pad="SAME_LOWER", kernel_shape=[2, 2], strides=[2, 2]),
    case("maxpool 1d", "MaxPool", (1, 2, 9), kernel_shape=[3]),
    case("maxpool 3d", "MaxPool", (1, 2, 4, 4, 5), kernel_shape=[2, 2, 2], strides=[1, 2, 3]),
    case("averagepool", "AveragePool", IMAGE, kernel_shape=[2, 3], strides=[2, 2], ops=("AveragePool",)),
    case("averagepool excludes pads", "AveragePool", IMAGE, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 0, 0, 2]),
    case("averagepool includes pads", "AveragePool", IMAGE, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 0, 0, 2], count_include_pad=1),
    case("averagepool ceil", "AveragePool", IMAGE, {}, (10, 13, 19), kernel_shape=[2, 3], strides=[2, 3], ceil_mode=1),
    case("averagepool ceil, pads", "AveragePool", (1, 2, 6, 6), {}, (10, 13, 19), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1],
         ceil_mode=1),
    case("averagepool ceil, includes pads", "AveragePool", (1, 2, 6, 6), {}, (19, 21), kernel_shape=[3, 3], strides=[2, 2],
         pads=[1, 1, 0, 0], ceil_mode=1, count_include_pad=1),
    case("averagepool same upper", "AveragePool", IMAGE, auto_pad="SAME_UPPER", kernel_shape=[2, 3], strides=[2, 2]),
    case("averagepool dilations", "AveragePool", IMAGE, {}, (19, 21), kernel_shape=[2, 2], dilations=[2, 3]),
    case("global average", "GlobalAveragePool", IMAGE, ops=("ReduceMean",)),
    case("global max", "GlobalMaxPool", IMAGE, ops=("MaxPool",)),
]
VECTOR = (2, 5)
ELEMENTWISE = [
    case("add", "Add", VECTOR, {"c": floats(5)}, ops=("Scale",)),
    case("add first", "Add", VECTOR, {"<c": floats(2, 1)}),
    case("add a larger constant", "Add", (2, 1), {"c": floats(3, 1, 4)}, ops=("Expand", "Scale")),
    case("sub", "Sub", VECTOR, {"c": floats(1, 5)}),
    case("sub from a constant", "Sub", VECTOR, {"<c": floats(2, 5)}),
    case("sub from a larger constant", "Sub", (5,), {"<c": floats(2, 5)}),
    case("mul", "Mul", VECTOR, {"c": floats(5)}, ops=("Scale",)),
    case("mul first larger", "Mul", (1, 1, 3), {"<c": floats(2, 1)}),
    case("div", "Div", VECTOR, {"c": floats(5)}),
    case("neg", "Neg", VECTOR, {}),
    case("pow", "Pow", VECTOR, {"two": np.float32([2.0])}, ops=("Mul",)),
    case("pow of a larger exponent", "Pow", (5,), {"two": np.full((2, 1), 2, np.float32)}),
    chain("add two", VECTOR, N("Relu", ["x"], ["r"]), N("Add", ["x", "r"], ["y"])),
    chain("sub two of other ranks", (2, 5), N("ReduceSum", ["x"], ["s"], axes=[0], keepdims=0), N("Sub", ["s", "x"], ["y"]),
          opsets=(9, 11)),
    chain("mul two, broadcast", (2, 5), N("ReduceSum", ["x"], ["s"], axes=[0], keepdims=0), N("Mul", ["s", "x"], ["y"]), opsets=(9, 11)),
    chain("sum of many", VECTOR, N("Sum", ["x", "c", "x", "d"], ["y"]), c=floats(5), d=floats(2, 1)),
    chain("mean of many", VECTOR, N("Relu", ["x"], ["r"]), N("Mean", ["x", "c", "r"], ["y"]), c=floats(5)),
    case("relu", "Relu", VECTOR, ops=("Relu",)),
    case("leaky", "LeakyRelu", VECTOR, alpha=0.1, ops=("LeakyRelu",)),
    case("leaky default", "LeakyRelu", VECTOR),
    case("leaky above one", "LeakyRelu", VECTOR, alpha=1.5, ops=("Relu", "Add")),
    case("leaky negative", "LeakyRelu", VECTOR, alpha=-0.5),
    case("prelu scalar", "PRelu", VECTOR, {"s": np.float32([0.2])}, ops=("LeakyRelu",)),
    case("prelu by channel", "PRelu", IMAGE, {"s": floats(3, 1, 1)}, ops=("Relu", "Add")),
    case("sigmoid", "Sigmoid", VECTOR, ops=("Sigmoid",)),
    case("tanh", "Tanh", VECTOR, ops=("Tanh",)),
    case("abs", "Abs", VECTOR),
    case("hard sigmoid", "HardSigmoid", VECTOR, alpha=0.3),
    case("hard sigmoid default", "HardSigmoid", VECTOR),
    case("hard swish", "HardSwish", VECTOR, {}, (14, 21)),
    case("clip attributes", "Clip", VECTOR, {}, (7, 10), min=-0.5, max=0.7, ops=("Clip",)),
    case("clip attribute below", "Clip", VECTOR, {}, (7, 10), min=0.0, ops=("Relu",)),
    case("clip attribute above", "Clip", VECTOR, {}, (7, 10), max=0.25),
    case("clip inputs", "Clip", VECTOR, {"l": np.float32(-0.5), "u": np.float32(0.7)}, (11, 13, 21), ops=("Clip",)),
    case("clip input above", "Clip", VECTOR, {"_l": None, "u": np.float32(0.25)}, (11, 13, 21)),
    case("clip input below, infinite above", "Clip", VECTOR, {"l": np.float32(0), "u": np.float32(np.inf)}, (11, 13), ops=("Relu",)),
    case("clip input below, float32's end above", "Clip", VECTOR, {"l": np.float32(0), "u": np.finfo(np.float32).max}, (11, 13),
         ops=("Relu",)),
    case("max scalar", "Max", VECTOR, {"c": np.float32(0.0)}, (8, 13), ops=("Relu",)),
    case("max vector", "Max", VECTOR, {"<c": floats(5)}, (8, 13)),
    case("max larger scalar", "Max", (5,), {"c": floats(1, 1)}, (8, 13)),
    case("min scalar", "Min", VECTOR, {"c": np.float32(0.3)}, (8, 13), ops=("Clip",)),
    case("min vector", "Min", VECTOR, {"c": floats(2, 1)}, (8, 13)),
    chain("max of two and a constant", VECTOR, N("Neg", ["x"], ["n"]), N("Max", ["x", "c", "n"], ["y"]), c=np.float32(0.4)),
    chain("min of two, broadcast", (2, 5), N("ReduceSum", ["x"], ["s"], axes=[0], keepdims=0), N("Min", ["s", "x"], ["y"]), opsets=(9, 11)),
    chain("identity and dropout", VECTOR, N("Identity", ["x"], ["i"]), N("Dropout", ["i"], ["y"])),
    chain("dropout at inference", VECTOR, N("Dropout", ["x", "ratio", "mode"], ["y"]), opsets=(12, 13), ratio=np.float32(0.3),
          mode=np.array(False)),
    chain("cast there and back", VECTOR, N("Cast", ["x"], ["d"], to=11), N("Relu", ["d"], ["r"]), N("Cast", ["r"], ["y"], to=1)),
]
TABLE = [*LINEAR, *CONVS, *POOLS, *ELEMENTWISE]


@pytest.mark.parametrize(("made", "opset"), [pytest.param(c, o, id=f"{c.name}-{o}") for c in TABLE for o in c.opsets])
def test_as_onnxruntime(made: Case, opset: int, tmp_path: Path) -> None:
    graph = assert_as_onnxruntime(saved(model(made.nodes, made.shape, made.constants, opset), tmp_path))
    assert set(made.ops) <= {node.op for node in graph.nodes}


def test_the_table_is_whole() -> None:
    """Every lowered operation is in this table or in that of test_onnx_load_shapes.py."""
    from tests.unit.test_onnx_load_shapes import TABLE as MORE
    from verifier.graph.onnx_load import supported_operations

    tested = {node.op_type for c in [*TABLE, *MORE] for node in c.nodes}
    assert set(supported_operations()) <= tested
