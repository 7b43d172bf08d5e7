"""Every ONNX operation that moves values, over its opsets, against onnxruntime; and what is computed at loading."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.onnx_models import assert_as_onnxruntime, model, saved
from tests.unit.test_onnx_load import IMAGE, Case, N, case, chain, floats, ints

NEW, OLD = (13, 17, 21), (7, 9, 11)
BLOCK = (2, 3, 4)
NONE = np.zeros(0, np.float32)
RESHAPES = [
    case("reshape", "Reshape", BLOCK, {"s": ints(4, 6)}, ops=("Reshape",)),
    case("reshape keeps and fills", "Reshape", BLOCK, {"s": ints(0, -1)}),
    case("reshape to a flat one", "Reshape", BLOCK, {"s": ints(-1)}),
    case("flatten", "Flatten", BLOCK),
    case("flatten all", "Flatten", BLOCK, axis=0),
    case("flatten behind", "Flatten", BLOCK, axis=3),
    case("flatten from behind", "Flatten", BLOCK, {}, (11, 13), axis=-1),
    case("squeeze attribute", "Squeeze", (1, 3, 1, 2), {}, OLD, axes=[0, 2]),
    case("squeeze input", "Squeeze", (1, 3, 1, 2), {"a": ints(-2)}, NEW),
    case("squeeze all", "Squeeze", (1, 3, 1, 2)),
    case("unsqueeze attribute", "Unsqueeze", BLOCK, {}, OLD, axes=[0, 3]),
    case("unsqueeze input", "Unsqueeze", BLOCK, {"a": ints(-1, 1)}, NEW),
    case("transpose", "Transpose", BLOCK, perm=[2, 0, 1], ops=("Transpose",)),
    case("transpose reversed", "Transpose", BLOCK),
    case("expand", "Expand", (3, 1), {"s": ints(2, 1, 4)}, (8, 13), ops=("Expand",)),
    case("expand below the rank", "Expand", BLOCK, {"s": ints(1)}, (8, 13)),
    case("tile", "Tile", BLOCK, {"r": ints(1, 2, 3)}),
]
JOINS = [
    chain("concat", BLOCK, N("Neg", ["x"], ["n"]), N("Concat", ["x", "n", "x"], ["y"], axis=1)),
    chain("concat negative axis", BLOCK, N("Neg", ["x"], ["n"]), N("Concat", ["n", "x"], ["y"], axis=-1), opsets=(11, 13)),
    chain("concat constants around", BLOCK, N("Concat", ["c", "x", "d", "x", "e"], ["y"], axis=2), c=floats(2, 3, 1), d=floats(2, 3, 2),
          e=floats(2, 3, 3)),
    chain("concat of one and a constant", BLOCK, N("Concat", ["x", "c"], ["y"], axis=0), c=floats(1, 3, 4)),
    chain("split equal", (2, 6), N("Split", ["x"], ["a", "b", "c"], axis=1), N("Concat", ["c", "a", "b"], ["y"], axis=1),
          opsets=(7, 11, 13)),
    chain("split sizes attribute", (2, 6), N("Split", ["x"], ["a", "b"], axis=1, split=[2, 4]), N("Concat", ["b", "a"], ["y"], axis=1),
          opsets=(7, 11)),
    chain("split sizes input", (2, 6), N("Split", ["x", "s"], ["a", "b"], axis=-1), N("Concat", ["b", "a"], ["y"], axis=1), opsets=(13, 18),
          s=ints(1, 5)),
    chain("split uneven", (2, 7), N("Split", ["x"], ["a", "b", "c"], axis=1, num_outputs=3), N("Concat", ["c", "a", "b"], ["y"], axis=1),
          opsets=(18, 21)),
    chain("split, one part read", (6,), N("Split", ["x"], ["a", "y", "c"], axis=0), opsets=(7, 13)),
]
CUTS = [
    case("slice attributes", "Slice", BLOCK, {}, (7, 9), axes=[1, 2], starts=[1, -3], ends=[1000, -1], ops=("Slice",)),
    case("slice attributes without axes", "Slice", BLOCK, {}, (7, 9), starts=[1, 0], ends=[2, 2]),
    case("slice inputs", "Slice", BLOCK, {"s": ints(1, 0), "e": ints(3, 4), "a": ints(-2, 2), "t": ints(1, 2)}, (10, 13, 21)),
    case("slice backwards", "Slice", (6, 5), {"s": ints(4, -1), "e": ints(0, -(2**62)), "a": ints(0, 1), "t": ints(-2, -1)}, (10, 13, 21)),
    case("slice to the first, backwards", "Slice", (6,), {"s": ints(5), "e": ints(-7), "a": ints(0), "t": ints(-1)}, (10, 13)),
    case("slice without steps", "Slice", BLOCK, {"s": ints(1), "e": ints(2)}, (10, 13)),
    case("gather", "Gather", BLOCK, {"i": ints(2, 0, -1)}, (11, 13, 21), axis=1, ops=("Gather",)),
    case("gather a scalar", "Gather", BLOCK, {"i": np.array(1)}, axis=2),
    case("gather a matrix", "Gather", BLOCK, {"i": np.array([[0, 1], [1, 0]])}, axis=0),
    case("pad attributes", "Pad", BLOCK, {}, (7, 10), pads=[0, 1, 0, 1, 0, 2], value=0.5, ops=("Pad",)),
    case("pad attributes, default value", "Pad", IMAGE, {}, (7, 10), pads=[0, 0, 1, 2, 0, 0, 0, 3], mode="constant"),
    case("pad inputs", "Pad", BLOCK, {"p": ints(0, 1, 0, 1, 0, 2), "v": np.float32(-1.5)}, (11, 13, 21)),
    case("pad inputs, default value", "Pad", BLOCK, {"p": ints(0, 1, 0, 1, 0, 2)}, (11, 13, 21)),
    case("pad some axes", "Pad", BLOCK, {"p": ints(1, 0, 2, 1), "_v": None, "a": ints(2, 0)}, (18, 21)),
    case("pad negative", "Pad", BLOCK, {"p": ints(0, -1, 1, 0, 0, -2), "v": np.float32(2)}, (11, 13), ops=("Slice", "Pad")),
    case("reduce sum attribute", "ReduceSum", BLOCK, {}, OLD, axes=[1, 2], keepdims=0, ops=("ReduceSum",)),
    case("reduce sum input", "ReduceSum", BLOCK, {"a": ints(-1)}, NEW, keepdims=1),
    case("reduce sum of all", "ReduceSum", BLOCK),
    case("reduce sum of nothing", "ReduceSum", BLOCK, {"a": ints()}, NEW, noop_with_empty_axes=1),
    case("reduce mean attribute", "ReduceMean", BLOCK, {}, (7, 11, 13, 17), axes=[0, 2], ops=("ReduceMean",)),
    case("reduce mean input", "ReduceMean", BLOCK, {"a": ints(0, -1)}, (18, 21), keepdims=0),
    case("upsample attribute", "Upsample", IMAGE, {}, (7,), scales=[1.0, 1.0, 2.0, 3.0], ops=("Gather",)),
    case("upsample input", "Upsample", IMAGE, {"s": np.float32([1, 1, 2, 3])}, (9,)),
    case("resize 10", "Resize", IMAGE, {"s": np.float32([1, 1, 2, 3])}, (10,), mode="nearest"),
    case("resize half pixel", "Resize", IMAGE, {"_r": None, "s": np.float32([1, 1, 2, 3])}, (13, 19)),
    case("resize asymmetric floor", "Resize", IMAGE, {"r": NONE, "s": np.float32([1, 1, 2, 3])}, (11, 13), nearest_mode="floor",
         coordinate_transformation_mode="asymmetric"),
    case("resize asymmetric round", "Resize", IMAGE, {"r": NONE, "s": np.float32([1, 1, 2, 3])}, (11, 13),
         coordinate_transformation_mode="asymmetric"),
    case("resize pytorch ceil", "Resize", IMAGE, {"r": NONE, "s": np.float32([1, 1, 2, 2])}, (11, 13), nearest_mode="ceil",
         coordinate_transformation_mode="pytorch_half_pixel"),
    case("resize round up", "Resize", IMAGE, {"r": NONE, "s": np.float32([1, 1, 3, 2])}, (13,), nearest_mode="round_prefer_ceil"),
    case("resize sizes", "Resize", IMAGE, {"r": NONE, "s": NONE, "n": ints(1, 3, 14, 24)}, (11, 13, 19)),
    case("resize down", "Resize", (1, 1, 8, 9), {"r": NONE, "s": NONE, "n": ints(1, 1, 4, 3)}, (11, 13), nearest_mode="floor"),
]
FOLDED = [
    chain("shape arithmetic", BLOCK, N("Shape", ["x"], ["s"]), N("Gather", ["s", "first"], ["n"]), N("Unsqueeze", ["n"], ["u"], axes=[0]),
          N("Concat", ["u", "rest"], ["t"], axis=0), N("Reshape", ["x", "t"], ["y"]), opsets=(7, 11), first=np.array(0), rest=ints(-1)),
    chain("shape from to", BLOCK, N("Shape", ["x"], ["s"], start=1, end=-1), N("Concat", ["s", "rest"], ["t"], axis=0),
          N("Reshape", ["x", "t"], ["y"]), opsets=(15, 21), rest=ints(-1)),
    chain("size", BLOCK, N("Size", ["x"], ["n"]), N("Cast", ["n"], ["f"], to=1), N("Div", ["x", "f"], ["y"])),
    chain("products of sizes", BLOCK, N("Shape", ["x"], ["s"]), N("ReduceProd", ["s"], ["p"], keepdims=1), N("Cast", ["p"], ["q"], to=7),
          N("Reshape", ["x", "q"], ["y"])),
    chain("constant of shape", BLOCK, N("Shape", ["x"], ["s"]), N("ConstantOfShape", ["s"], ["c"]), N("Add", ["x", "c"], ["y"])),
    chain("range", (5,), N("Range", ["a", "b", "c"], ["r"]), N("Gather", ["x", "r"], ["y"]), opsets=(11, 13), a=np.array(4), b=np.array(0),
          c=np.array(-2)),
    chain("constants as nodes", (3,), N("Constant", [], ["c"], value_floats=[1.0, 2.0, 3.0]), N("Constant", [], ["d"], value_float=2.0),
          N("Mul", ["x", "c"], ["m"]), N("Add", ["m", "d"], ["y"]), opsets=(12, 13)),
    chain("weights that are computed", (1, 4), N("Transpose", ["w"], ["t"]), N("Mul", ["t", "mask"], ["m"]), N("MatMul", ["x", "m"], ["y"]),
          w=floats(3, 4), mask=(floats(4, 3) > 0).astype(np.float32)),
    chain("a dead unsupported branch", (1, 4), N("Softmax", ["x"], ["dead"]), N("Relu", ["x"], ["y"])),
]
TABLE: list[Case] = [*RESHAPES, *JOINS, *CUTS, *FOLDED]


@pytest.mark.parametrize(("made", "opset"), [pytest.param(c, o, id=f"{c.name}-{o}") for c in TABLE for o in c.opsets])
def test_as_onnxruntime(made: Case, opset: int, tmp_path: Path) -> None:
    graph = assert_as_onnxruntime(saved(model(made.nodes, made.shape, made.constants, opset), tmp_path))
    assert set(made.ops) <= {node.op for node in graph.nodes}
