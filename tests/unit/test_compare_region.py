"""The comparison with onnxruntime inside a property's region: sees another pixel or operation, and never takes rounding for one."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx.helper import make_node as N

from tests.onnx_models import model, saved
from verifier.errors import ModelError, ShapeError
from verifier.graph import onnx_resize, validate
from verifier.graph.load import load_onnx
from verifier.graph.onnx_run import OnnxRunner
from verifier.graph.validate import compare_in_region

R = np.random.default_rng(3)


def box(low: float, high: float, n: int) -> tuple[np.ndarray, np.ndarray]:
    return np.full(n, low), np.full(n, high)


def flat_near_zero(folder: Path) -> Path:
    """y = max(resize(x) - 50, 0), a scale at which float64 coordinates would take another pixel; zero wherever |x| < 50."""
    nodes = [N("Resize", ["x", "", "s"], ["r"], nearest_mode="floor", coordinate_transformation_mode="asymmetric"), N("Sub", ["r", "k"], ["d"]),
             N("Relu", ["d"], ["y"])]
    return saved(model(nodes, (1, 1, 11), {"s": np.float32([1, 1, 55 / 11 * 0.2 * 13 / 11]), "k": np.float32(50)}, 18), folder)


def test_another_pixel_is_seen_where_only_the_region_shows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = flat_near_zero(tmp_path)
    compare_in_region(load_onnx(path), path, [box(60, 100, 11)])
    right = onnx_resize.nearest_indices
    monkeypatch.setattr(onnx_resize, "nearest_indices", lambda *a: np.maximum(right(*a) - (np.arange(a[2]) == 7), 0))
    graph = load_onnx(path)  # the comparison at loading is blind to it
    with pytest.raises(ModelError, match="differ at Gather 'r'"):
        compare_in_region(graph, path, [box(60, 100, 11)])


def test_a_graph_that_was_rewritten_wrongly_is_seen(tmp_path: Path) -> None:
    path, other = saved(model([N("Relu", ["x"], ["y"])], (1, 4)), tmp_path), tmp_path / "other"
    other.mkdir()
    wrong = load_onnx(saved(model([N("LeakyRelu", ["x"], ["y"], alpha=0.001)], (1, 4)), other))
    with pytest.raises(ModelError, match="once it is simplified"):
        compare_in_region(replace(wrong, raw=None), path, [box(-1, 1, 4)])


@pytest.mark.parametrize("size", [1.0, 1e6, 1e-20])
def test_large_cancelling_weights_are_no_difference(size: float, tmp_path: Path) -> None:
    w = (R.standard_normal((60, 40)) * 10.0 ** R.uniform(-4, 4, (60, 40)) * size).astype(np.float32)
    nodes = [N("Gemm", ["x", "w"], ["a"]), N("Sub", ["a", "b"], ["c"]), N("Relu", ["c"], ["r"]), N("Gemm", ["r", "v"], ["y"])]
    v = np.concatenate([np.ones((20, 1)), -np.ones((20, 1))]).astype(np.float32) * np.float32(1e4)
    path = saved(model(nodes, (1, 60), {"w": w, "b": w.sum(0), "v": v}), tmp_path)
    for low, high in ((0.999, 1.001), (-1, 1), (1, 1)):
        assert compare_in_region(load_onnx(path), path, [box(low, high, 60)]).points == validate.MOST_POINTS


def test_many_boxes_share_the_points_and_one_session(tmp_path: Path) -> None:
    path = saved(model([N("Relu", ["x"], ["y"])], (1, 4)), tmp_path)
    runner = OnnxRunner(path)
    seen = compare_in_region(load_onnx(path), path, [box(-k, k, 4) for k in range(1, 500)], runner, most=32)
    assert seen.points == 32 and seen.by_node == validate.MOST_BY_NODE
    assert compare_in_region(load_onnx(path), path, [], runner).points == 0


def test_an_overflow_inside_the_region_is_said(tmp_path: Path) -> None:
    path = saved(model([N("Mul", ["x", "k"], ["a"]), N("Mul", ["a", "k"], ["y"])], (1, 2), {"k": np.float32(1e30)}), tmp_path)
    graph = load_onnx_unchecked(path)
    with pytest.raises(ModelError, match="NaN or infinite"):
        compare_in_region(graph, path, [box(1, 2, 2)])


def load_onnx_unchecked(path: Path):
    from verifier.graph.onnx_load import load_onnx as read

    return read(path)


def test_a_box_of_another_size(tmp_path: Path) -> None:
    path = saved(model([N("Relu", ["x"], ["y"])], (1, 4)), tmp_path)
    with pytest.raises(ShapeError, match="4 values"):
        compare_in_region(load_onnx(path), path, [box(-1, 1, 3)])
