"""The benchmark of bound engines: its boxes, its rows, and failures that are rows too."""
from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.bounds import Job, append, measure, prepared, request_of
from tests.small_models import dense_relu
from verifier.bounds.lirpa import installed


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """y = [1 -1] relu(x), x in [-1, 1] x [0, 2]."""
    model = dense_relu(tmp_path / "net.onnx", np.eye(2), np.array([[1.0, -1.0]]))
    prop = tmp_path / "prop.vnnlib"
    inputs = [(0, -1.0, 1.0), (1, 0.0, 2.0)]
    text = "".join(f"(declare-const X_{k} Real)" for k, *_ in inputs) + "(declare-const Y_0 Real)"
    text += "".join(f"(assert (>= X_{k} {low}))(assert (<= X_{k} {high}))" for k, low, high in inputs)
    prop.write_text(text + "(assert (>= Y_0 5.0))")
    return str(model), str(prop)


def test_the_first_box_is_the_propertys_and_the_others_are_as_wide(files: tuple[str, str]) -> None:
    box = request_of(Job("ours", "ibp", *files, 4, 1, 0, "cpu")).box
    assert box.lower.shape == (4, 1, 2)
    assert box.lower[0].tolist() == [[-1.0, 0.0]]
    assert box.upper[0].tolist() == [[1.0, 2.0]]
    assert torch.allclose(box.upper - box.lower, torch.full((4, 1, 2), 2.0))
    assert len({tuple(row.flatten().tolist()) for row in box.lower}) == 4


@pytest.mark.parametrize("engine", ["ibp", "crown", "alpha-crown"])
def test_what_is_timed_are_the_bounds(files: tuple[str, str], engine: str) -> None:
    result = prepared(Job("ours", engine, *files, 1, 1, 0, "cpu"))()
    assert float(result.lower) <= -2.0
    assert float(result.upper) >= 1.0


def test_both_tools_get_a_row_and_a_failure_says_why(files: tuple[str, str], tmp_path: Path) -> None:
    jobs = tuple(Job(tool, "ibp", *files, 1, 1, 0, "cpu") for tool in ("ours", "auto_LiRPA"))
    rows = measure(jobs, rounds=1, limit_s=60.0)
    for row in rows:
        append(tmp_path / "out.csv", row)
    with (tmp_path / "out.csv").open(newline="") as file:
        ours, theirs = csv.DictReader(file)
    assert float(ours["seconds"]) > 0
    assert ours["error"] == ""
    if installed():
        assert float(ours["times_faster"]) > 0
    else:
        assert theirs["seconds"] == ""
        assert "auto_LiRPA is not installed" in theirs["error"]
