"""onnxruntime on the CPU against docs/certificate.md's model of float32: what it computes lies within the errors that the checker allows a node.

The exact values are the graph's in float64, whose own rounding (2^-53) is far below what is looked for (2^-24).
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import ModelProto
from onnx.helper import make_node as N

from tests.onnx_models import model, saved
from verifier.certificate.affine import Affine, is_affine
from verifier.certificate.arithmetic import FLOAT32, Rounded, Runtime
from verifier.graph.execute import execute_all
from verifier.graph.ir import Graph, Node
from verifier.graph.onnx_load import load_onnx
from verifier.graph.onnx_run import OnnxRunner
from verifier.graph.passes import simplify

POINTS = 24
DOUBLE = 2.0**-44  # relative error of float64 sums of up to 512 terms


def allowed(graph: Graph, x: np.ndarray, runtime: Runtime) -> tuple[np.ndarray, np.ndarray]:
    """The exact output at `x (n_in,)` and how far a runtime may be from it: every node's own error and what reaches it from before."""
    exact = {name: t[0].numpy() for name, t in execute_all(graph, torch.from_numpy(x.astype(np.float64)).reshape(1, *graph.input_shape)).items()}
    error = {graph.input.name: np.zeros(graph.input_shape)}
    for node in graph.nodes[1:]:
        given = [(exact[name], error[name]) for name in node.inputs]
        error[node.name] = _error(node, given, runtime) + DOUBLE * np.abs(exact[node.name])
    return exact[graph.output], error[graph.output]


def _error(node: Node, given: list[tuple[np.ndarray, np.ndarray]], runtime: Runtime) -> np.ndarray:
    room = lambda k, terms: runtime.room(k, terms, Rounded())  # noqa: E731
    value, error = given[0]
    if is_affine(node):
        affine, k = Affine(node, Rounded()), Affine(node, Rounded()).products(value.shape)
        carried, terms = (affine.absolute([part[None] for part in parts])[0] for parts in ([e for _, e in given], [np.abs(v) + e for v, e in given]))
        return np.broadcast_to(carried + (room(k, terms + affine.shift_terms()) if k else 0.0), node.shape)
    if node.op == "LeakyRelu":
        slope = abs(node.attributes["slope"])
        return max(1.0, slope) * error + room(1, slope * (np.abs(value) + error))
    if node.op == "Mul":
        other, its = given[1]
        return np.abs(value) * its + np.abs(other) * error + error * its + room(1, (np.abs(value) + error) * (np.abs(other) + its))
    return {"Relu": error, "Sigmoid": error / 4 + runtime.transcendental, "Tanh": error + runtime.transcendental}[node.op]


R = np.random.default_rng(5)


def floats(*shape: int, size: float = 1.0) -> np.ndarray:
    return (R.standard_normal(shape) * size).astype(np.float32)


def spread(*shape: int) -> np.ndarray:
    """Sizes from 1e-4 to 1e4 in one tensor: sums in which large terms cancel."""
    return (R.standard_normal(shape) * 10.0 ** R.uniform(-4, 4, shape)).astype(np.float32)


def norm(channels: int, mean: float = 1.0) -> dict[str, np.ndarray]:
    return {"g": floats(channels), "b": floats(channels), "m": floats(channels, size=mean), "v": np.abs(floats(channels)) + np.float32(0.01)}


BN = N("BatchNormalization", ["c", "g", "b", "m", "v"], ["n"])
CONV = N("Conv", ["x", "w", "k"], ["c"], pads=[1, 1, 1, 1])
TAIL = [N("Relu", ["n"], ["h"]), N("ReduceMean", ["h"], ["r"], axes=[2, 3], keepdims=0), N("Gemm", ["r", "u", "t"], ["y"], transB=1)]
DENSE = [N("Gemm", ["x", "w", "k"], ["a"], transB=1), N("Relu", ["a"], ["h"]), N("Gemm", ["h", "u", "t"], ["y"], transB=1)]
IMAGE = (1, 3, 12, 12)
ENDS = {"k": floats(16), "u": floats(4, 16), "t": floats(4)}
LAYER, WEIGHTS = N("Gemm", ["x", "w", "k"], ["a"], transB=1), {"w": floats(30, 60), "k": floats(30)}

CASES: dict[str, Callable[[], ModelProto]] = {
    "gemm": lambda: model([N("Gemm", ["x", "w", "k"], ["y"], transB=1, alpha=0.3, beta=1.7)], (1, 300), {"w": floats(7, 300), "k": floats(7)}),
    "gemm of spread weights": lambda: model([N("Gemm", ["x", "w", "k"], ["y"], transB=1)], (1, 300), {"w": spread(7, 300), "k": spread(7)}),
    "gemm of tiny weights": lambda: model([N("MatMul", ["x", "w"], ["y"])], (1, 40), {"w": floats(40, 7, size=1e-39)}),
    "matmul": lambda: model([N("MatMul", ["x", "w"], ["m"]), N("Add", ["m", "k"], ["y"])], (1, 300), {"w": floats(300, 7), "k": floats(7)}),
    "dense": lambda: model(DENSE, (1, 100), {"w": floats(50, 100), "k": floats(50), "u": floats(5, 50), "t": floats(5)}),
    "conv": lambda: model([N("Conv", ["x", "w", "k"], ["y"], strides=[2, 2])], IMAGE, {"w": floats(16, 3, 5, 5), "k": floats(16)}),
    "grouped conv": lambda: model([N("Conv", ["x", "w"], ["y"], group=3)], IMAGE, {"w": floats(6, 1, 3, 3)}),
    "conv, norm": lambda: model([CONV, BN, *TAIL], IMAGE, {"w": floats(16, 3, 3, 3), **norm(16), **ENDS}),
    "conv, norm of large mean": lambda: model(
        [CONV, N("BatchNormalization", ["c", "g", "b", "m", "v"], ["y"])], IMAGE, {"w": floats(16, 3, 3, 3), "k": floats(16), **norm(16, 1e4)}),
    "norm of large mean": lambda: model([N("BatchNormalization", ["x", "g", "b", "m", "v"], ["y"])], IMAGE, norm(3, 1e4)),
    "mean pool": lambda: model([N("AveragePool", ["x"], ["y"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2])], IMAGE),
    "global mean": lambda: model([N("GlobalAveragePool", ["x"], ["p"]), N("Flatten", ["p"], ["y"])], IMAGE),
    "mean": lambda: model([N("ReduceMean", ["x"], ["y"], axes=[2, 3], keepdims=0)], IMAGE),
    "sum": lambda: model([N("ReduceSum", ["x", "s"], ["y"], keepdims=0)], IMAGE, {"s": np.array([1, 2, 3])}),
    "leaky": lambda: model([LAYER, N("LeakyRelu", ["a"], ["y"], alpha=0.123)], (1, 60), WEIGHTS),
    "product": lambda: model([LAYER, N("Gemm", ["x", "u", "t"], ["c"], transB=1), N("Mul", ["a", "c"], ["y"])],
                             (1, 60), {**WEIGHTS, "u": floats(30, 60), "t": floats(30)}),
    "residual": lambda: model([CONV, N("Relu", ["c"], ["h"]), N("Conv", ["h", "u"], ["d"], pads=[1, 1, 1, 1]), N("Add", ["d", "x"], ["y"])], IMAGE,
                              {"w": floats(16, 3, 3, 3), "k": floats(16), "u": floats(3, 16, 3, 3)}),
    "scaled input": lambda: model([N("Sub", ["x", "m"], ["a"]), N("Div", ["a", "s"], ["b"]), N("Gemm", ["b", "w", "k"], ["y"], transB=1)], (1, 60),
                                  {"m": floats(60), "s": np.abs(floats(60)) + np.float32(0.1), "w": floats(9, 60), "k": floats(9)}),
    "sigmoid": lambda: model([LAYER, N("Sigmoid", ["a"], ["y"])], (1, 60), WEIGHTS),
    "tanh": lambda: model([LAYER, N("Tanh", ["a"], ["y"])], (1, 60), WEIGHTS),
}


def worst_share(graph: Graph, run: Callable[[np.ndarray], np.ndarray], runtime: Runtime) -> float:
    """The largest share of what is allowed that the runtime uses up, over random points of several sizes."""
    share = 0.0
    random = np.random.default_rng(0)
    for k in range(POINTS):
        x = (random.standard_normal(int(np.prod(graph.input_shape))) * 10.0 ** (k % 4 - 2)).astype(np.float32)
        exact, error = allowed(graph, x, runtime)
        share = max(share, float((np.abs(run(x).astype(np.float64) - exact.reshape(-1)) / error.reshape(-1)).max()))
    return share


@pytest.mark.parametrize("name", CASES)
def test_onnxruntime_stays_within_the_model(name: str, tmp_path: Path) -> None:
    """And uses some of it: with a unit roundoff of 2^-40 instead of 2^-24 the same check fails."""
    path = saved(CASES[name](), tmp_path)
    graph, runner = load_onnx(path), OnnxRunner(path)
    assert worst_share(graph, runner, FLOAT32) <= 1
    finer = replace(FLOAT32, u=2.0**-40, least=2.0**-160, transcendental=2.0**-40)
    assert worst_share(graph, runner, finer) > 1


def test_an_offset_of_cancelling_terms_needs_them(tmp_path: Path) -> None:
    """beta - mean * scale is near zero, its terms are 1e4: a model that sees only the offset is too fine for what onnxruntime computes."""
    r = np.random.default_rng(0)
    scale, mean = r.uniform(0.5, 2, 64).astype(np.float32), r.uniform(1e4, 2e4, 64).astype(np.float32)
    constants = {"g": scale, "b": (mean.astype(np.float64) * scale).astype(np.float32), "m": mean, "v": np.ones(64, np.float32)}
    node = N("BatchNormalization", ["x", "g", "b", "m", "v"], ["y"], epsilon=1e-9)
    path = saved(model([node], (1, 64), constants), tmp_path)
    graph, runner = load_onnx(path), OnnxRunner(path)
    assert worst_share(graph, runner, FLOAT32) <= 1
    assert worst_share(simplify(graph), runner, FLOAT32) > 1


def test_terms_are_what_is_read_and_nothing_that_is_simplified_has_them(tmp_path: Path) -> None:
    path = saved(CASES["norm of large mean"](), tmp_path)
    read = load_onnx(path).nodes[1]
    scale, offset, terms = (read.constants[key] for key in ("scale", "offset", "terms"))
    assert read.op == "Scale" and (terms >= np.abs(offset)).all() and (terms > 10 * np.abs(scale)).any()
    kept = simplify(load_onnx(path)).nodes[1]
    assert kept.name == read.name and set(kept.constants) == {"scale", "offset"}
    plain = simplify(simplify(load_onnx(path)))
    assert simplify(plain) is plain


@pytest.mark.parametrize("op", ["Sigmoid", "Tanh"])
def test_transcendentals_are_off_by_less_than_the_model_says(op: str, tmp_path: Path) -> None:
    """All exponents and both signs, in a long vector and in short ones: below 2^-20, above a sixteenth of it (measured: 2^-22.4 and 2^-21.5)."""
    runner = OnnxRunner(saved(model([N(op, ["x"], ["y"])], (1, 4096)), tmp_path))
    bits = (np.arange(0, 255, dtype=np.uint32)[:, None] << 23 | R.integers(0, 2**23, (255, 2048), dtype=np.uint32)).reshape(-1)
    middle = np.linspace(-20, 20, 2**20).astype(np.float32)
    x = np.concatenate([bits.view(np.float32), -bits.view(np.float32), middle])
    worst = max(_largest_error(op, part, runner) for part in x[:len(x) // 4096 * 4096].reshape(-1, 4096))
    assert FLOAT32.transcendental / 16 < worst < FLOAT32.transcendental
    for count in (1, 3, 7, 17):
        short = OnnxRunner(saved(model([N(op, ["x"], ["y"])], (1, count)), tmp_path))
        assert max(_largest_error(op, part, short) for part in R.permutation(x)[:500 * count].reshape(-1, count)) < FLOAT32.transcendental


def _largest_error(op: str, x: np.ndarray, run: Callable[[np.ndarray], np.ndarray]) -> float:
    wide = x.astype(np.float64)
    true = np.tanh(wide) if op == "Tanh" else 0.5 + 0.5 * np.tanh(wide / 2)
    return float(np.abs(run(x) - true).max())
