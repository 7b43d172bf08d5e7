"""ONNX models of a few nodes, and the comparison of a loaded graph with onnxruntime: the oracle of the loader's tests."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper

from verifier.graph.execute import execute
from verifier.graph.ir import Graph
from verifier.graph.onnx_load import load_onnx
from verifier.graph.onnx_run import OnnxRunner
from verifier.graph.passes import simplify

# Of the largest output: onnxruntime rounds to float32 (6e-8) in sums of at most a few hundred terms here.
TOLERANCE = 1e-5


def model(
    nodes: Sequence[NodeProto],
    shape: Sequence[int | str],
    constants: Mapping[str, np.ndarray] | None = None,
    opset: int = 13,
    kind: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """From input `x` of `shape` to output `y`."""
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()]
    ends = [helper.make_tensor_value_info("x", kind, shape), helper.make_tensor_value_info("y", kind, None)]
    graph = helper.make_graph(list(nodes), "small", ends[:1], ends[1:], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def saved(made: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "small.onnx"
    onnx.save(made, path)
    return path


def ours(graph: Graph, x: np.ndarray) -> np.ndarray:
    """The graph's output in float64, without the package's batch."""
    return execute(graph, torch.from_numpy(x.astype(np.float64))[None])[0].numpy()


def assert_as_onnxruntime(path: Path, tolerance: float = TOLERANCE, seeds: Sequence[int] = (0, 1)) -> Graph:
    """Loaded, and loaded and simplified, the file gives onnxruntime's shape and values; the graph is returned."""
    graph, runner = load_onnx(path), OnnxRunner(path)
    simple = simplify(graph)
    shape = runner.output_shape or (1,)
    assert graph.output_shape == simple.output_shape == shape
    for seed in seeds:
        x = np.asarray(np.random.default_rng(seed).standard_normal(graph.input_shape)).astype(runner.input_dtype)
        expected = runner(x.reshape(-1)).reshape(shape).astype(np.float64)
        allowed = tolerance * max(float(np.abs(expected).max()), 1.0)
        np.testing.assert_allclose(ours(graph, x), expected, rtol=0, atol=allowed)
        np.testing.assert_allclose(ours(simple, x), expected, rtol=0, atol=allowed)
    return graph
