"""Networks whose values have no axes: sums and products of everything, as torch exports `x.sum()`."""
from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

import verifier
from tests.small_models import vnnlib
from verifier.verdict import Status

NODES = {
    "sum": [helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)],
    "relu": [helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0), helper.make_node("Relu", ["s"], ["y"])],
    "sigmoid": [helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0), helper.make_node("Sigmoid", ["s"], ["y"])],
    "leaky": [helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0), helper.make_node("LeakyRelu", ["s"], ["y"], alpha=0.5)],
    "product": [helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0), helper.make_node("Mul", ["s", "s"], ["y"])],
}
SAFE = {"sum": "(>= Y_0 1.5)", "relu": "(>= Y_0 1.5)", "sigmoid": "(>= Y_0 0.9)", "leaky": "(<= Y_0 -1.0)", "product": "(>= Y_0 2.0)"}


def saved(name: str, path: Path) -> Path:
    values = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])], [helper.make_tensor_value_info("y", TensorProto.FLOAT, [])]
    graph = helper.make_graph(NODES[name], "g", *values)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


@pytest.mark.parametrize("name", NODES)
@pytest.mark.parametrize("safe", [True, False])
def test_an_output_without_axes_is_one_number(name: str, safe: bool, tmp_path: Path) -> None:
    """x in [-0.6, 0.6]^2: the sum reaches 1.2 and no more."""
    box = [f"({op} X_{i} {end})" for i in range(2) for op, end in ((">=", -0.6), ("<=", 0.6))]
    prop = vnnlib(tmp_path / "p.vnnlib", *box, SAFE[name] if safe else "(<= Y_0 5.0)", n_in=2)
    verdict = verifier.verify(verifier.load_onnx(saved(name, tmp_path / "n.onnx")), verifier.load_vnnlib(prop), verifier.Config(timeout_s=20))
    assert verdict.status is (Status.VERIFIED if safe else Status.FALSIFIED), verdict.sentence
