"""`verify --certificate` from files to files: what is written, when nothing is, and what cannot be certified."""
from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import verifier
from tests import onnx_models
from tests.small_models import IN_UNIT, absolute_value, vnnlib
from verifier.certificate.case import Case
from verifier.certificate.schema import MAGIC
from verifier.cli import run
from verifier.config import CertificateConfig
from verifier.spec.spec import Ball
from verifier.spec.write import to_vnnlib
from verifier.verdict import Reason, Status


@pytest.fixture
def safe(tmp_path: Path) -> list[str]:
    """|x| >= 0 > -0.5 on [-1, 1]: a network and a property, as command-line arguments."""
    return [str(absolute_value(tmp_path / "abs.onnx")), str(vnnlib(tmp_path / "p.vnnlib", *IN_UNIT, "(<= Y_0 -0.5)"))]


def only(folder: Path, *names: str) -> bool:
    return sorted(path.name for path in folder.iterdir()) == sorted(names)


@pytest.mark.parametrize("arithmetic", ["real", "float32"])
def test_a_proof_is_written_and_accepted(safe: list[str], arithmetic: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "out" / "a.cert"
    path.parent.mkdir()
    assert run(["verify", *safe, "--certificate", str(path), "--arithmetic", arithmetic, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["verdict"] == "unsat" and said["certificate"] == str(path)
    assert only(path.parent, "a.cert")
    assert run(["check", *safe, str(path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["accepted"] and report["arithmetic"] == arithmetic and report["cases"] == 1


@pytest.mark.parametrize("eps", [0.02, 0.05])
def test_images_of_the_digits_network_are_certified(eps: float, digits: Path, tmp_path: Path) -> None:
    graph = verifier.load_onnx(digits / "digits.onnx")
    x, label = verifier.load_images(digits / "images.npz")
    spec = verifier.robustness(x[0], int(label[0]), eps=eps, n_out=10, clip=(0.0, 1.0))
    prop, path = tmp_path / "p.vnnlib", tmp_path / "a.cert"
    prop.write_text(to_vnnlib(spec))
    verdict = verifier.verify(graph, spec, verifier.Config(arithmetic="float32"), certificate=CertificateConfig(path, prop))
    assert verdict.status is not Status.UNKNOWN
    assert path.is_file() == (verdict.status is Status.VERIFIED) == (verdict.certificate is not None)
    if path.is_file():
        assert run(["check", str(digits / "digits.onnx"), str(prop), str(path)]) == 0


def test_no_file_without_a_proof(safe: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """After `sat` and after a time-out there is neither a certificate nor a part of one."""
    before = [path.name for path in tmp_path.iterdir()]
    unsafe = vnnlib(tmp_path / "p.vnnlib", *IN_UNIT, "(<= Y_0 0.5)")
    for more in ([], ["--timeout", "1e-3", "--no-attack"]):
        assert run(["verify", safe[0], str(unsafe), "--certificate", str(tmp_path / "a.cert"), *more]) == 0
        assert capsys.readouterr().out.split()[0] in ("sat", "timeout", "unknown")
        assert only(tmp_path, *before)


def test_an_interruption_leaves_no_file(safe: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Case, "run", interrupted)
    assert run(["verify", *safe, "--certificate", str(tmp_path / "a.cert")]) == 0
    assert capsys.readouterr().out == "unknown\n" and only(tmp_path, "abs.onnx", "p.vnnlib")


def test_nothing_is_proved_where_the_checker_refuses(safe: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checker that never accepts: the search goes on with wider margins, to the end of its time, and the verdict says why it is unknown."""
    from verifier.certificate.case import Failure

    refused = []
    monkeypatch.setattr(Case, "failures", lambda case: refused.append(case) or [Failure(case.number, 0, 0, 0, -0.01)])
    graph, spec = verifier.load_onnx(safe[0]), verifier.load_vnnlib(safe[1])
    wanted = CertificateConfig(tmp_path / "a.cert", Path(safe[1]))
    verdict = verifier.verify(graph, spec, verifier.Config(timeout_s=3, attack=None), certificate=wanted)
    assert verdict.status is Status.UNKNOWN and verdict.reason in (Reason.REFUSED, Reason.TIMEOUT) and "A proof was found" in verdict.sentence
    assert len(refused) > 1 and not wanted.path.exists() and verdict.certificate is None


@pytest.mark.parametrize("old", [b"", MAGIC, MAGIC + b"old"])
def test_an_old_certificate_is_replaced_whole(safe: list[str], tmp_path: Path, old: bytes) -> None:
    path = tmp_path / "a.cert"
    path.write_bytes(old)
    assert run(["verify", *safe, "--certificate", str(path)]) == 0
    assert run(["check", *safe, str(path)]) == 0


def test_another_questions_certificate_is_kept(safe: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A certificate of another property or model is lost only where that is said."""
    path, other = tmp_path / "a.cert", str(vnnlib(tmp_path / "q.vnnlib", *IN_UNIT, "(<= Y_0 -0.75)"))
    assert run(["verify", *safe, "--certificate", str(path)]) == 0
    before = path.read_bytes()
    capsys.readouterr()
    assert "is the certificate of another property" in refusal(capsys, safe[0], other, "--certificate", str(path))
    copy = tmp_path / "copy.onnx"
    copy.write_bytes(Path(safe[0]).read_bytes() + b"\x3a\x00")
    assert "is the certificate of another model" in refusal(capsys, str(copy), safe[1], "--certificate", str(path))
    assert path.read_bytes() == before
    assert run(["verify", safe[0], other, "--certificate", str(path), "--overwrite"]) == 0
    assert path.read_bytes() != before and run(["check", safe[0], other, str(path)]) == 0


def test_no_old_certificate_lies_beside_another_answer(safe: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """After `sat`, a time-out and an interruption, even one while the files are read; also where the solver is called without the command."""
    path, unsafe = tmp_path / "a.cert", str(vnnlib(tmp_path / "sat.vnnlib", *IN_UNIT, "(<= Y_0 0.5)"))
    for prop, more in ((unsafe, []), (unsafe, ["--timeout", "1e-3", "--no-attack"])):
        path.write_bytes(MAGIC + b"old")
        assert run(["verify", safe[0], prop, "--certificate", str(path), *more]) == 0
        assert capsys.readouterr().out.split()[0] != "unsat" and not path.exists()
    graph, spec = verifier.load_onnx(safe[0]), verifier.load_vnnlib(unsafe)
    path.write_bytes(MAGIC + b"old")
    assert verifier.verify(graph, spec, certificate=CertificateConfig(path, Path(unsafe))).status is Status.FALSIFIED and not path.exists()

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("verifier.graph.load.load_onnx", interrupted)
    path.write_bytes(MAGIC + b"old")
    assert run(["verify", *safe, "--certificate", str(path)]) == 0
    assert capsys.readouterr().out == "unknown\n" and not path.exists()


def test_no_other_file_is_overwritten(safe: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The model, the property, links to them, and any file that is no certificate are kept, and nothing is searched."""
    note, hard, soft, pipe = (tmp_path / name for name in ("note.txt", "hard", "soft", "pipe"))
    note.write_text("mine")
    hard.hardlink_to(safe[0])
    soft.symlink_to(safe[1])
    os.mkfifo(pipe)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path != pipe}
    for path in (*safe, note, hard, soft, pipe):
        said = refusal(capsys, *safe, "--certificate", str(path))
        is_input = path not in (note, pipe)
        assert f"{path} is {'the' if is_input else 'there and is no certificate'}" in said and "would be overwritten" in said
    graph, spec = verifier.load_onnx(safe[0]), verifier.load_vnnlib(safe[1])
    with pytest.raises(verifier.VerifierError, match="would be overwritten"):
        verifier.verify(graph, spec, certificate=CertificateConfig(Path(safe[0]), Path(safe[1])))
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir() if path != pipe}


def test_a_model_whose_name_ends_in_part_is_kept(safe: list[str], tmp_path: Path) -> None:
    """The file that becomes the certificate has a name of its own until it is whole."""
    model = Path(safe[0]).rename(tmp_path / "a.part")
    before = model.read_bytes()
    assert run(["verify", str(model), safe[1], "--certificate", str(tmp_path / "a")]) == 0
    assert model.read_bytes() == before and only(tmp_path, "a", "a.part", "p.vnnlib")


def test_the_help_says_that_old_certificates_are_removed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    assert run(["verify", "--help"]) == 0
    assert "is removed at the start" in capsys.readouterr().out


def test_a_property_that_nothing_meets_has_an_empty_proof(safe: list[str], tmp_path: Path) -> None:
    empty = str(vnnlib(tmp_path / "empty.vnnlib", "(>= X_0 1)", "(<= X_0 -1)", "(<= Y_0 0)"))
    assert run(["verify", safe[0], empty, "--certificate", str(tmp_path / "a.cert")]) == 0
    assert run(["check", safe[0], empty, str(tmp_path / "a.cert")]) == 0


def refusal(capsys: pytest.CaptureFixture, *arguments: str) -> str:
    assert run(["verify", *arguments]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said and len(said.splitlines()) == 1
    return said


def test_what_cannot_be_certified_is_one_sentence(safe: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert "Cannot write the certificate" in refusal(capsys, *safe, "--certificate", str(tmp_path / "no" / "a.cert"))
    made = onnx_models.model([helper.make_node("Relu", ["x"], ["y"])], (1, 1), kind=TensorProto.DOUBLE)
    double = tmp_path / "double.onnx"
    onnx.save(made, double)
    assert "so nothing is said of float32" in refusal(capsys, str(double), safe[1], "--certificate", str(tmp_path / "a"), "--arithmetic", "float32")
    assert run(["verify", str(double), safe[1], "--certificate", str(tmp_path / "a")]) == 0


def test_networks_without_files_and_balls_are_refused(safe: list[str], tmp_path: Path) -> None:
    graph, wanted = verifier.load_onnx(safe[0]), CertificateConfig(tmp_path / "a.cert", Path(safe[1]))
    spec = verifier.load_vnnlib(safe[1])
    with pytest.raises(verifier.VerifierError, match="ONNX file"):
        verifier.verify(replace(graph, source=""), spec, certificate=wanted)
    (case,) = spec.cases
    ball = replace(spec, cases=(replace(case, ball=Ball(np.zeros(1), 1.0, 2)),))
    with pytest.raises(verifier.VerifierError, match="l1 or l2"):
        verifier.verify(graph, ball, certificate=wanted)
    assert not wanted.path.exists()
