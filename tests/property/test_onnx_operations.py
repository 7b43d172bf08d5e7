"""Random models of every operation that the loader lowers or computes, over its opsets and attributes, against onnxruntime."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.onnx_constants import NAMES, constant_model
from tests.onnx_fuzz import MAKERS, drawn
from tests.onnx_models import model, ours, saved
from verifier.errors import ModelError, UnsupportedError, VerifierError
from verifier.graph.onnx_load import load_onnx, supported_operations
from verifier.graph.onnx_run import OnnxRunner
from verifier.graph.passes import simplify
from verifier.graph.validate import compare_in_region

NEAR = 1e-5


def one(op: str, seed: list[int], folder: Path) -> str:
    """`read`, `unsupported` or `unfit` (for onnxruntime too); fails where the loader says something else than onnxruntime."""
    random = np.random.default_rng(seed)
    nodes, d = drawn(op, random)
    path = saved(model(nodes, d.shape, d.constants, d.opset), folder)
    try:
        runner = OnnxRunner(path)
    except ModelError:
        runner = None
    try:
        graph = load_onnx(path)
    except VerifierError as error:
        fits = runner is not None and runner.n_out > 0 and not op.endswith("Pool")  # a pool's window may hang over its whole input
        assert isinstance(error, UnsupportedError) or not fits, error
        return "unsupported" if isinstance(error, UnsupportedError) else "unfit"
    if runner is None:
        return "unfit"
    box = np.full(runner.n_in, -3.0), np.full(runner.n_in, 3.0)
    compare_in_region(simplify(graph), path, [box], runner)
    assert graph.output_shape == (runner.output_shape or (1,))
    return "read"


def one_constant(op: str, seed: list[int], folder: Path) -> str:
    made, _ = constant_model(op, np.random.default_rng(seed))
    path = saved(made, folder)
    try:
        runner = OnnxRunner(path)
        graph = load_onnx(path)
    except ModelError:
        return "refused"
    expected = runner(np.zeros(1)).astype(np.float64)
    assert graph.output_shape == runner.output_shape
    far, size = float(np.abs(ours(graph, np.zeros(1)).reshape(-1) - expected).max()), float(np.abs(expected).max())
    assert far <= NEAR * max(1.0, size), onnx.printer.to_text(made)
    return "read"


def test_every_operation_has_a_generator() -> None:
    assert set(supported_operations()) <= set(MAKERS)


@pytest.mark.parametrize("op", sorted(MAKERS))
def test_operation(op: str, tmp_path: Path) -> None:
    seen = [one(op, [1, k], tmp_path) for k in range(8)]
    assert "read" in seen


@pytest.mark.parametrize("op", NAMES)
def test_constant(op: str, tmp_path: Path) -> None:
    seen = [one_constant(op, [1, k], tmp_path) for k in range(8)]
    assert "read" in seen


@pytest.mark.slow
@pytest.mark.parametrize("op", sorted(MAKERS))
def test_operation_many(op: str, tmp_path: Path) -> None:
    seen = [one(op, [2, k], tmp_path) for k in range(150)]
    assert seen.count("read") > 50


@pytest.mark.slow
@pytest.mark.parametrize("op", NAMES)
def test_constant_many(op: str, tmp_path: Path) -> None:
    seen = [one_constant(op, [2, k], tmp_path) for k in range(150)]
    assert seen.count("read") > 40
