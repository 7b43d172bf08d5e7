"""certprune smooth: its rows are those of `certify_smoothed`, its summary counts them, and what it cannot do is one sentence."""
from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import verifier
from certprune import cli, smoothing
from certprune.smoothing import SmoothedRow, SmoothingConfig, certify_smoothed, onnx_classifier

SMALL = ("--sigma", 0.1, "--radius", 0.1, "--n0", 10, "--n", 200)


def run(*arguments: object) -> int:
    return cli.run([str(argument) for argument in arguments])


@pytest.fixture()
def model(digits: Path) -> Path:
    return digits / "digits.onnx"


def test_rows_and_summary(model: Path, capfd: Any) -> None:
    assert run("smooth", model, "--data", "digits", "--limit", 5, "--seed", 3, *SMALL) == 0
    head, *lines, empty, summary = capfd.readouterr().out.splitlines()
    part = verifier.load_dataset("digits").test.of(slice(5))
    expected = list(certify_smoothed(onnx_classifier(model), part.x[:], part.y, SmoothingConfig(0.1, 10, 200, seed=3)))
    assert head.split() == ["image", "of", "label", "predicted", "radius", "certified", "seconds"] and empty == ""
    answers = [("abstains" if r.predicted is None else str(r.predicted), f"{r.radius:.4f}", "yes" if r.certified(0.1) else "no") for r in expected]
    assert [line.split()[:6] for line in lines] == [[str(r.index), "5", str(r.label), *said] for r, said in zip(expected, answers)]
    share = sum(r.certified(0.1) for r in expected) / 5
    assert summary.startswith("5 images: ") and f"{share:.1%} certified within the Euclidean radius 0.1" in summary and share > 0


def test_json_is_one_object(model: Path, capfd: Any) -> None:
    assert run("smooth", model, "--data", "digits", "--limit", 2, "--json", *SMALL) == 0
    told = capfd.readouterr()
    found = json.loads(told.out)
    assert [image["index"] for image in found["images"]] == [0, 1] and set(found["images"][0]) == set(SmoothedRow.__slots__)
    assert found["summary"]["images"] == 2 and found["summary"]["radius"] == 0.1


def test_ctrl_c_keeps_the_summary(model: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    def cut(*_: object) -> Iterator[SmoothedRow]:
        yield SmoothedRow(0, 3, 3, 0.2, 190, 0.5)
        raise KeyboardInterrupt

    monkeypatch.setattr(smoothing, "certify_smoothed", cut)
    for form in ((), ("--json",)):
        assert run("smooth", model, "--data", "digits", "--limit", 7, *SMALL, *form) == 130
        told = capfd.readouterr()
        assert told.err.strip() == "Interrupted: the summary counts 1 of 7 images."
        assert json.loads(told.out)["summary"]["certified"] == 1 if form else "1 images: 100.0% right" in told.out


def test_bad_input_is_one_sentence(model: Path, tmp_path: Path, capfd: Any) -> None:
    (tmp_path / "no.onnx").write_bytes(b"no network")
    cases = {
        (tmp_path / "none.onnx", "--data", "digits"): "does not exist",
        (tmp_path / "no.onnx", "--data", "digits"): "no.onnx",
        (model,): "--data",
        (model, "--data", "digit"): "did you mean digits",
        (model, "--data", "digits", "--sigma", 0): "sigma is 0.0",
        (model, "--data", "digits", "--alpha", 1): "alpha is 1.0",
        (model, "--data", "digits", "--n", 0): "--n",
        (model, "--data", "digits", "--limit", 0): "--limit",
        (model, "--data", "digits", "--radius", -1): "radius is -1.0",
        (model, "--data", "digits", "--radius", 2): "certify 0.8 at most",
    }  # fmt: skip
    for arguments, said in cases.items():
        assert run("smooth", *arguments) == 2
        told = capfd.readouterr().err.strip()
        assert said in told and told.count("\n") == 0 and "Traceback" not in told


def test_the_largest_radius_is_reached_by_a_constant_classifier() -> None:
    config = SmoothingConfig(0.25, draws=100)
    (row,) = certify_smoothed(lambda x: np.zeros(len(x), int), np.zeros((1, 1, 2, 2)), np.zeros(1, int), config)
    smoothing.check_radius(row.radius, config)
    with pytest.raises(verifier.VerifierError, match=re.escape(f"certify {row.radius:.3g} at most")):
        smoothing.check_radius(row.radius + 1e-9, config)
