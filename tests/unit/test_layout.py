"""Images in one order of axes and a network in another: the order that fits is found and said, or the images are refused."""
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import verifier
from verifier.cli import run
from verifier.errors import ShapeError, VerifierError
from verifier.measure.certified import Perturbation, certify
from verifier.measure.layout import fitted, layout_of
from verifier.verdict import Status

COLOURS = np.eye(3, dtype=np.float32)  # class k is the picture that is brightest in channel k


@pytest.mark.parametrize(
    ("image", "network", "axes", "said"),
    [
        ((8, 8, 3), (1, 8, 8, 3), None, ""),
        ((3, 8, 8), (1, 3, 8, 8), None, ""),
        ((3, 8, 8), (1, 8, 8, 3), (1, 2, 0), "their channel is put last"),
        ((8, 8, 3), (1, 3, 8, 8), (2, 0, 1), "their channel is put first"),
        ((8, 8, 3), (3, 8, 8), (2, 0, 1), "their channel is put first"),
        ((2, 3, 3), (1, 3, 3, 2), (1, 2, 0), "last"),
        ((1, 8, 8), (1, 8, 8, 1), None, ""),
        ((8, 8), (1, 1, 8, 8), None, ""),
        ((1, 8, 8), (1, 64), None, ""),
        ((1, 8, 8), (64,), None, ""),
        ((1, 8, 8), (1, 64, 1, 1), None, ""),
        ((3, 8, 8), (1, 192), None, "the network's input has no such axes, so their numbers are taken in the order they stand in"),
        ((192,), (1, 3, 8, 8), None, "the images have no such axes"),
        ((1, 1, 64), (1, 1, 8, 8), None, ""),
        ((3, 3, 3), (1, 3, 3, 3), None, ""),
    ],
)
def test_the_layout_that_fits(image, network, axes, said: str) -> None:
    found = layout_of(image, network)
    assert found.axes == axes and said in found.sentence and bool(found.sentence) == bool(said)


@pytest.mark.parametrize(
    ("image", "network", "said"),
    [
        ((3, 8, 8), (1, 3, 8, 9), "counts of numbers must agree"),
        ((3, 4, 6), (1, 3, 6, 4), "no order of their axes"),
        ((4, 6, 3), (1, 6, 4, 3), "no order of their axes"),
        ((8, 3, 8), (1, 3, 8, 8), "no order of their axes"),
        ((8, 4, 4), (1, 4, 4, 8), "no order of their axes"),
        ((4, 16), (1, 8, 8), "no order of their axes"),
    ],
)
def test_what_does_not_fit_is_refused(image, network, said: str) -> None:
    with pytest.raises(ShapeError, match=said):
        layout_of(image, network)


def colour_network(path: Path, last: bool) -> Path:
    """The mean of each channel, on images of 5 x 6 pixels with the channel first or last."""
    shape, axes = ((1, 5, 6, 3), [1, 2]) if last else ((1, 3, 5, 6), [2, 3])
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m"], axes=axes, keepdims=0), helper.make_node("Relu", ["m"], ["a"]),
        helper.make_node("MatMul", ["a", "w"], ["y"]),
    ]  # fmt: skip
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", shape), ("y", (1, 3)))]
    graph = helper.make_graph(nodes, "colours", ends[:1], ends[1:], [numpy_helper.from_array(COLOURS, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


def pictures(last: bool) -> tuple[np.ndarray, np.ndarray]:
    """Six pictures, each brightest in the channel of its label, pixels from 0 to 1."""
    labels = np.array([0, 1, 2, 0, 1, 2])
    x = np.random.default_rng(0).uniform(0, 0.2, (6, 5, 6, 3)) + 0.6 * COLOURS[labels][:, None, None]
    return (x if last else x.transpose(0, 3, 1, 2)).astype(np.float32), labels


@pytest.mark.parametrize("images_last", [False, True], ids=["images first", "images last"])
@pytest.mark.parametrize("network_last", [False, True], ids=["network first", "network last"])
def test_every_command_sees_the_pictures(tmp_path: Path, capsys, network_last: bool, images_last: bool) -> None:
    """All four pairs of layouts are classified rightly and certified, and what was moved is said."""
    model, (x, y) = colour_network(tmp_path / "c.onnx", network_last), pictures(images_last)
    np.savez(tmp_path / "i.npz", x=x, y=y)
    rows = list(certify(verifier.load_onnx(model), x, y, Perturbation(0.05, clip=(0.0, 1.0)), verifier.Config(device="cpu")))
    assert [row.verdict.status for row in rows] == [Status.VERIFIED] * 6
    for command in (["accuracy", str(model), "--data", str(tmp_path / "i.npz")], ["robustness", str(model), str(tmp_path / "i.npz")]):
        assert run([*command, "--eps", "0.05", "--json"]) == 0
        shown = capsys.readouterr()
        answer = json.loads(shown.out)
        assert answer["summary"]["clean_accuracy"] == answer["summary"]["certified_accuracy"] == 1
        # `accuracy` reads files with the channel in front, whatever theirs was
        moved = network_last if command[0] == "accuracy" else network_last != images_last
        assert ("their channel is put" in shown.err) == moved == bool(answer["layout"])


@pytest.mark.parametrize("images_last", [False, True])
@pytest.mark.parametrize("network_last", [False, True])
def test_mean_and_std_follow_the_channel(tmp_path: Path, network_last: bool, images_last: bool) -> None:
    """Pictures with an offset and a scale in each channel, which mean and std undo: without, or on another axis, they are all of class 2."""
    graph, (x, y) = verifier.load_onnx(colour_network(tmp_path / "c.onnx", network_last)), pictures(images_last)
    mean, std = np.array([0.0, 2.0, 9.0], np.float32), np.array([1.0, 0.5, 2.0], np.float32)
    shape = (3,) if images_last else (3, 1, 1)
    around = Perturbation(0.01, mean=tuple(mean.tolist()), std=tuple(std.tolist()))
    rows = list(certify(graph, x * std.reshape(shape) + mean.reshape(shape), y, around, verifier.Config(device="cpu")))
    assert [(row.predicted, row.verdict.status) for row in rows] == [(label, Status.VERIFIED) for label in y.tolist()]


def test_a_mean_that_could_belong_to_two_axes_is_refused() -> None:
    class Network:
        input_shape = (1, 3, 5, 3)

    images = np.zeros((2, 3, 5, 3))
    with pytest.raises(VerifierError, match="cannot be told"):
        fitted(Network(), images, Perturbation(0.1, mean=(0.1, 0.2, 0.3)))
    assert fitted(Network(), images, Perturbation(0.1, mean=(0.1,))) is images


def test_measurements_of_images_see_the_same_pictures(tmp_path: Path) -> None:
    """Strong attack, stability and tightness: either layout gives the same numbers."""
    graph, around, found = verifier.load_onnx(colour_network(tmp_path / "c.onnx", True)), Perturbation(0.05, clip=(0.0, 1.0)), []
    for last in (False, True):
        x, y = pictures(last)
        survived = verifier.survives_attack(graph, x, y, around, verifier.AttackConfig(2, 5))
        tight = verifier.tightness(graph, x[:1], y[:1], around, verifier.Config(device="cpu"))
        found.append((survived.tolist(), verifier.stability_of_images(graph, x, around).active.tolist(), tight.bounds["crown"].tolist()))
    assert found[0] == found[1] and found[0][0] == [True] * 6
