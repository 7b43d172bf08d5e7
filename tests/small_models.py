"""Tiny ONNX files and VNN-LIB texts, written for a test."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def dense_relu(path: Path, first: np.ndarray, second: np.ndarray, op: str = "Relu") -> Path:
    """y = second op(first x), at `path`: `first (h, n_in)`, `second (n_out, h)`, input `(1, n_in)`, output `(1, n_out)`."""
    weights = [numpy_helper.from_array(w.T.astype(np.float32), name) for w, name in ((first, "first"), (second, "second"))]
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["h"], name="layer1"),
        helper.make_node(op, ["h"], ["a"], name="activation"),
        helper.make_node("MatMul", ["a", "second"], ["y"], name="layer2"),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, (1, size)) for n, size in (("x", first.shape[1]), ("y", second.shape[0]))]
    graph = helper.make_graph(nodes, "small", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


def absolute_value(path: Path) -> Path:
    """y = |x| as relu(x) + relu(-x), one input, one output."""
    return dense_relu(path, np.array([[1.0], [-1.0]]), np.array([[1.0, 1.0]]))


def vnnlib(path: Path, *assertions: str, n_in: int = 1, n_out: int = 1) -> Path:
    """A property of declarations and one `(assert ...)` for each assertion."""
    lines = [f"(declare-const X_{i} Real)" for i in range(n_in)] + [f"(declare-const Y_{i} Real)" for i in range(n_out)]
    path.write_text("\n".join([*lines, *(f"(assert {text})" for text in assertions)]) + "\n")
    return path


IN_UNIT = ("(>= X_0 -1)", "(<= X_0 1)")
