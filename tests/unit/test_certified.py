"""Image sets: how they are read, which are chosen, which properties they become, and how outcomes are counted."""
from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import verifier
from verifier.config import Config
from verifier.measure import certified
from verifier.measure.certified import ImageRow, Perturbation, Summary, certify, load_images, select
from verifier.solve import device_of
from verifier.spec.spec import Spec
from verifier.verdict import Reason, Status, Verdict

ALONE = Config(attack=None)
PIXELS = np.array([[[0, 51], [102, 255]], [[255, 0], [0, 0]]])


@pytest.fixture
def specs(monkeypatch: pytest.MonkeyPatch) -> list[Spec]:
    """The properties that a scripted solver is given where nothing is proved before; it proves all."""
    given: list[Spec] = []

    def verify_many(graph, specs, config, listener) -> list[Verdict]:
        given.extend(specs)
        return [Verdict(Status.VERIFIED, Reason.PROVED, "Proved.", 0.5) for _ in specs]

    fake = ModuleType("verifier.solve")
    fake.verify_many, fake.device_of = verify_many, device_of
    monkeypatch.setitem(sys.modules, "verifier.solve", fake)
    monkeypatch.setattr(certified, "screen_of", lambda graph, config: None)
    return given


@pytest.mark.parametrize(("x", "y"), [("x", "y"), ("X", "Y"), ("images", "labels"), ("arr_0", "arr_1"), ("x_test", "y_test")])
def test_names_of_the_arrays(tmp_path: Path, x: str, y: str) -> None:
    np.savez(tmp_path / "i.npz", **{x: PIXELS / 255, y: np.array([3, 1], np.uint8)})
    images, labels = load_images(tmp_path / "i.npz")
    assert np.array_equal(images, PIXELS / 255) and images.dtype == np.float64
    assert labels.tolist() == [3, 1] and labels.dtype == np.int64


@pytest.mark.parametrize(("kind", "scale"), [(np.uint8, 255), (np.float32, 1), (np.int32, 1)])
def test_only_8_bit_pixels_are_scaled(tmp_path: Path, kind: type, scale: int) -> None:
    np.savez(tmp_path / "i.npz", x=PIXELS.astype(kind), y=np.zeros(2, int))
    assert np.array_equal(load_images(tmp_path / "i.npz")[0], PIXELS / scale)


@pytest.mark.parametrize(
    ("index", "chosen"),
    [(None, [0, 1, 2, 3, 4]), ("1:3", [1, 2]), (":2", [0, 1]), ("3:", [3, 4]), ("0:5:2", [0, 2, 4]), ("4", [4]), ("3,1", [3, 1])],
)
def test_select(index: str | None, chosen: list[int]) -> None:
    assert select(index, 5) == chosen


def test_each_right_image_becomes_its_ball(digits, specs) -> None:
    graph = verifier.load_onnx(digits / "digits.onnx")
    x, y = load_images(digits / "images.npz")
    wrong = np.concatenate([y[:1], (y[1:2] + 1) % 10])
    rows = list(certify(graph, x[:2], wrong, Perturbation(0.25, clip=(0.0, 1.0)), ALONE))
    assert [(row.label, row.predicted, row.verdict.status) for row in rows] == [
        (y[0], y[0], Status.VERIFIED), (wrong[1], y[1], Status.FALSIFIED),
    ]  # fmt: skip
    (spec,) = specs
    assert np.array_equal(spec.cases[0].lower, np.maximum(x[0].ravel() - 0.25, 0))
    assert np.array_equal(spec.cases[0].upper, np.minimum(x[0].ravel() + 0.25, 1))
    assert len(spec.cases[0].polytopes) == 9


def test_the_network_sees_normalised_images(digits, specs) -> None:
    """Images shifted and scaled, with the mean and std that undo it, are classified as the originals are."""
    graph = verifier.load_onnx(digits / "digits.onnx")
    x, y = load_images(digits / "images.npz")
    right = [i for i, row in enumerate(certify(graph, x, y, Perturbation(0.1), ALONE)) if row.predicted == row.label]
    specs.clear()
    rows = list(certify(graph, 2 * x[right] + 3, y[right], Perturbation(0.5, mean=(3.0,), std=(2.0,)), ALONE))
    assert [row.predicted for row in rows] == y[right].tolist()
    assert len(specs) == len(right)
    assert np.allclose(specs[0].cases[0].lower, x[right[0]].ravel() - 0.25)


@pytest.mark.parametrize(
    ("arguments", "lower"), [([], 0.0), (["--clip", "-1", "1"], -0.5), (["--clip", "0", "0.5"], 0.0)], ids=["default", "wide", "half"]
)
def test_clip_of_the_command_line(digits, specs, tmp_path, arguments: list[str], lower: float) -> None:
    from verifier.cli import run

    x, y = load_images(digits / "images.npz")
    np.savez(tmp_path / "i.npz", x=x[:1] * 0.5, y=y[:1])
    assert run(["robustness", str(digits / "digits.onnx"), str(tmp_path / "i.npz"), "--eps", "1/2", "--no-attack", *arguments]) == 0
    assert specs[0].cases[0].lower.min() == lower
    assert specs[0].cases[0].upper.max() == (0.5 if "0.5" in arguments else 1.0)


def test_images_outside_of_the_unit_range_are_not_clipped_by_default(digits, specs, tmp_path) -> None:
    from verifier.cli import run

    x, y = load_images(digits / "images.npz")
    np.savez(tmp_path / "i.npz", x=2 * x[:1], y=y[:1])
    assert run(["robustness", str(digits / "digits.onnx"), str(tmp_path / "i.npz"), "--eps", "1", "--std", "2", "--no-attack"]) == 0
    assert specs[0].cases[0].lower.min() == -0.5


def test_summary_counts() -> None:
    def row(predicted: int, status: Status) -> ImageRow:
        return ImageRow(0, 1, predicted, Verdict(status, Reason.PROVED, "", 0.25), 0.5)

    found = Summary.of([row(1, Status.VERIFIED), row(1, Status.FALSIFIED), row(2, Status.FALSIFIED), row(1, Status.UNKNOWN)])
    assert found == Summary(4, 3, 1, 2, 1, 1.0)
    assert found.as_dict()["clean_accuracy"] == 0.75 and found.as_dict()["certified_accuracy"] == 0.25
    assert "(1 certified, 2 falsified, 1 undecided)" in found.sentence()
