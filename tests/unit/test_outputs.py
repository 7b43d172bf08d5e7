"""Output bounds over a property's inputs: sound, a hull over several regions, and what the command prints of them."""
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import verifier
import verifier.bounds.crown
from tests.small_models import IN_UNIT, absolute_value, vnnlib
from verifier.attack.confirm import replay_onnx
from verifier.cli import run
from verifier.errors import VerifierError
from verifier.measure.outputs import ENGINES, output_bounds


@pytest.fixture
def graph(tmp_path: Path):
    return verifier.load_onnx(absolute_value(tmp_path / "abs.onnx"))


def over(tmp_path: Path, *assertions: str):
    return verifier.load_vnnlib(vnnlib(tmp_path / "p.vnnlib", *assertions, "(<= Y_0 -1)"), 1, 1)


@pytest.mark.parametrize("engine", ENGINES)
def test_exact_where_every_neuron_is_stable(graph, tmp_path, engine: str) -> None:
    found = verifier.bounds(graph, over(tmp_path, "(>= X_0 1)", "(<= X_0 3)"), engine)
    assert (found.lower.tolist(), found.upper.tolist()) == ([1.0], [3.0])
    (layer,) = found.layers
    assert (layer.neurons, layer.unstable, layer.active, layer.inactive) == (2, 0, 1, 1)


def test_intervals_of_an_unstable_layer(graph, tmp_path) -> None:
    found = output_bounds(graph, over(tmp_path, *IN_UNIT), "ibp")
    assert (found.lower.tolist(), found.upper.tolist()) == ([0.0], [2.0])
    assert found.layers[0].unstable == 2


@pytest.mark.parametrize("engine", ENGINES)
def test_several_regions_give_the_hull(graph, tmp_path, engine: str) -> None:
    """x in [-3, -2] or [1, 2]: |x| in [1, 3], and over both regions together each neuron is unstable."""
    spec = over(tmp_path, "(or (and (>= X_0 -3) (<= X_0 -2)) (and (>= X_0 1) (<= X_0 2)))")
    assert len(spec.cases) == 2
    found = output_bounds(graph, spec, engine)
    assert (found.lower.tolist(), found.upper.tolist()) == ([1.0], [3.0])
    assert found.layers[0].unstable == 2


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("engine", ENGINES)
def test_sampled_outputs_lie_inside(digits, engine: str, norm: str) -> None:
    graph = verifier.load_onnx(digits / "digits.onnx")
    x, y = verifier.load_images(digits / "images.npz")
    found = output_bounds(graph, verifier.robustness(x[2], int(y[2]), 0.05, 10, norm=norm), engine)
    away = np.random.default_rng(0).uniform(-1, 1, (200, 64))
    away = away / np.linalg.norm(away, axis=1, keepdims=True) if norm == "l2" else np.sign(away)
    replay = replay_onnx(graph.source)
    seen = np.array([replay(np.clip(x[2].ravel() + 0.05 * d, 0, 1).astype(np.float32)) for d in away])
    slack = 1e-5  # onnxruntime computes these logits of size 10 in float32
    assert (found.lower - slack <= seen.min(0)).all() and (seen.max(0) <= found.upper + slack).all()
    assert (found.upper - found.lower < (100 if engine == "ibp" else 12)).all()  # not sound by being empty of meaning


def test_refusals(graph, tmp_path) -> None:
    with pytest.raises(VerifierError, match="'lp': use one of ibp, crown, alpha-crown"):
        output_bounds(graph, over(tmp_path, *IN_UNIT), "lp")
    with pytest.raises(VerifierError, match="no inputs to bound over"):
        output_bounds(graph, over(tmp_path, "(>= X_0 1)", "(<= X_0 -1)"))


@pytest.mark.parametrize("engine", ENGINES)
def test_the_command(tmp_path, capsys, engine: str) -> None:
    files = [str(absolute_value(tmp_path / "abs.onnx")), str(vnnlib(tmp_path / "p.vnnlib", "(>= X_0 1)", "(<= X_0 3)", "(<= Y_0 0)"))]
    assert run(["bounds", *files, "--engine", engine, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "lower": [1.0], "upper": [3.0], "layers": [{"name": "a", "neurons": 2, "unstable": 0, "active": 1, "inactive": 1}],
    }  # fmt: skip
    assert run(["bounds", *files, "--engine", engine]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["Y_0", "1", "3"] in lines and ["2", "0", "1", "1", "a"] in lines


def test_the_package_of_engines_is_the_public_function(graph, tmp_path) -> None:
    assert verifier.bounds.crown.__name__ == "verifier.bounds.crown"
    assert verifier.bounds(graph, over(tmp_path, *IN_UNIT), engine="crown").upper.shape == (1,)
