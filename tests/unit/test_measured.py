"""What the measurement of a file refuses to store: a proof that an attack breaks, and forms of a network that contradict each other."""
from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import verifier
from certprune.config import VerifyConfig
from certprune.export import Form, export_model
from certprune.measured import COMPARED, Question, _shares, check_forms, measure
from verifier import VerifierError

X = np.random.default_rng(0).random((5, 1, 4, 4), dtype=np.float32)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.ReLU(), nn.Linear(6, 3)).eval()


def question(model: nn.Module, **asked: Any) -> Question:
    """The first images, labelled as the module does, under a radius that every proof is easy for."""
    with torch.no_grad():
        labels = model(torch.from_numpy(X)).argmax(1).numpy()
    data = verifier.load_dataset("digits").test.of(slice(len(X)))
    split = replace(data, x=replace(data.x, stored=X, scale=1), y=labels)
    return Question(split, len(X), VerifyConfig(**({"eps": 1e-4, "timeout_s": 1000.0, "stability": 1} | asked)), 0, "cpu")


@pytest.fixture()
def folder(tmp_path: Path) -> Path:
    for form in Form:
        export_model(network(), (1, 4, 4), tmp_path / f"{form.value}.onnx", form)
    return tmp_path


def test_a_proof_that_an_attack_breaks_stops_the_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = question(network(), strong_attack=3)
    attacked: list[int] = []

    def survives(_: verifier.Graph, images: np.ndarray, *__: object, **___: object) -> np.ndarray:
        attacked.append(len(images))
        return np.array([True, True, not attacked[1:]])

    monkeypatch.setattr(verifier, "survives_attack", survives)
    record = measure(folder / "masked.onnx", asked, folder / "stands", lambda *_: None)
    assert record["row"]["certified"] == 1 and record["row"]["survived_attack"] is True
    with pytest.raises(VerifierError, match=r"masked\.onnx: image 2 was proved .* but an attack finds a counterexample: the proof is wrong"):
        measure(folder / "masked.onnx", asked, folder / "falls", lambda *_: None)
    assert attacked == [3, 3]


def rows(*verdicts: str) -> list[dict[str, Any]]:
    return [{"index": k, "verdict": verdict} for k, verdict in enumerate(verdicts)]


def test_forms_of_one_network_agree(folder: Path) -> None:
    asked = question(network())
    found = measure(folder / "masked.onnx", asked, folder / "kept", lambda *_: None)["row"]["image_rows"]
    assert {image["verdict"] for image in found} == {"verified"}
    check_forms(folder / "masked.onnx", asked, found)
    check_forms(folder / "masked.onnx", asked, rows("unknown", "unknown", "verified"))
    check_forms(folder / "masked.onnx", asked, rows("unknown"))
    check_forms(folder / "masked.onnx", asked, found[:COMPARED] + rows(*["falsified"] * 5)[COMPARED:])


@pytest.mark.parametrize("form", ["compact", "sparse"])
def test_a_form_that_contradicts_is_named(folder: Path, form: str) -> None:
    asked = question(network())
    with pytest.raises(VerifierError, match=r"Image 1 is falsified in .*masked\.onnx but verified in .*compact\.onnx: they are not the same"):
        check_forms(folder / "masked.onnx", asked, rows("unknown", "falsified", "verified"))
    other = network()
    with torch.no_grad():
        other[3].weight.neg_()
        other[3].bias.neg_()
    export_model(other, (1, 4, 4), folder / "other.onnx", Form(form))
    shutil.move(folder / "other.onnx", folder / f"{form}.onnx")
    with pytest.raises(VerifierError, match=rf"Image 0 is verified in .*masked\.onnx but falsified in .*{form}\.onnx"):
        check_forms(folder / "masked.onnx", asked, rows("verified"))


def piece(predicted: int, verdict: str, survives: bool) -> dict[str, Any]:
    return {"index": 0, "label": 1, "predicted": predicted, "verdict": verdict, "survives": survives, "seconds": 0.5, "domains": 1, "splits": []}


PIECES = st.builds(piece, st.sampled_from([1, 1, 2]), st.sampled_from(["verified", "falsified", "unknown"]), st.booleans())


@given(st.lists(PIECES, min_size=1, max_size=12))
def test_certified_shares_stay_below_what_the_attack_leaves(pieces: list[dict[str, Any]]) -> None:
    if any(p["verdict"] == "verified" and not (p["survives"] and p["predicted"] == 1) for p in pieces):
        with pytest.raises(VerifierError, match="a proof is wrong"):
            _shares(pieces)
        return
    found = _shares(pieces)
    assert found["certified"] <= found["certified_upper"] <= found["pgd"] <= found["clean"]


def test_comparing_forms_can_be_interrupted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = question(network())
    stopped = verifier.Verdict(verifier.Status.UNKNOWN, verifier.Reason.INTERRUPTED, "Interrupted.", 0.0)
    monkeypatch.setattr(verifier, "certify", lambda *_: iter([verifier.ImageRow(0, 0, 0, stopped)]))
    with pytest.raises(KeyboardInterrupt):
        check_forms(folder / "masked.onnx", asked, rows("verified"))
    assert asked.count == 5
