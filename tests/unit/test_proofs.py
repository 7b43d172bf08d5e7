"""Accuracy with certificates: each image that counts as certified has a proof in the folder that the checker accepts, and no other image has one."""
from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import verifier
from tests.mlp import random_mlp
from verifier.certificate.case import Failure
from verifier.certificate.check import check
from verifier.certificate.gate import CaseGate
from verifier.cli import run
from verifier.errors import VerifierError
from verifier.measure import proofs
from verifier.measure.certified import ImageRow, Perturbation, certify
from verifier.measure.proofs import ProofFolder
from verifier.verdict import Status

AROUND = Perturbation(0.12, clip=(0.0, 1.0))
CONFIG = verifier.Config(timeout_s=20, device="cpu")
EASY, HARD, UNSAFE = 0, 1, 2  # among these images: proved by root bounds, by splits, and not at all
IMAGES = [0, 1, 6]


@pytest.fixture
def graph(digits: Path) -> verifier.Graph:
    return verifier.load_onnx(digits / "digits.onnx")


@pytest.fixture(scope="module")
def made(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[ImageRow]]:
    """A folder of proofs of three images, and their rows."""
    graph, folder = verifier.load_onnx(digits / "digits.onnx"), tmp_path_factory.mktemp("made") / "new" / "folder"
    return folder, certified(graph, ProofFolder(folder, graph))


@pytest.fixture
def copied(made, graph, tmp_path: Path) -> ProofFolder:
    return ProofFolder(shutil.copytree(made[0], tmp_path / "proofs"), graph)


def certified(graph: verifier.Graph, folder: ProofFolder, around: Perturbation = AROUND, images: list[int] = IMAGES) -> list[ImageRow]:
    part = verifier.load_dataset("digits").test
    return list(certify(graph, part.x[images], part.y[images], around, CONFIG, proofs=folder))


def test_every_certified_image_has_a_proof_and_no_other_image_has_one(graph, made) -> None:
    folder, rows = made
    assert [row.verdict.status for row in rows] == [Status.VERIFIED, Status.VERIFIED, Status.FALSIFIED]
    assert rows[HARD].verdict.domains > 0 == rows[EASY].verdict.domains
    assert sorted(path.name for path in folder.iterdir()) == ["image-0.cert", "image-0.vnnlib", "image-1.cert", "image-1.vnnlib"]
    for image in (EASY, HARD):
        path = Path(rows[image].verdict.certificate)
        report = check(graph.source, path.with_suffix(".vnnlib"), path)
        assert report.accepted and report.arithmetic == "float32" and (report.leaves > 0) == (image == HARD)
    assert rows[UNSAFE].verdict.certificate is None


def test_proofs_that_are_there_are_checked_and_not_made_again(graph, copied, monkeypatch) -> None:
    before = {path.name: path.read_bytes() for path in copied.folder.iterdir()}

    def unwanted(*given):
        raise AssertionError("nothing is to be proved")

    monkeypatch.setattr(proofs, "verify", unwanted)
    monkeypatch.setattr(ProofFolder, "at_root", unwanted)
    again = certified(graph, copied, images=[0, 1])
    assert [row.verdict.status for row in again] == [Status.VERIFIED] * 2 and {row.verdict.engine for row in again} == {"certificate"}
    assert {path.name: path.read_bytes() for path in copied.folder.iterdir()} == before


def forged(folder: ProofFolder) -> ProofFolder:
    """The hard image's certificate stands for the easy one's."""
    shutil.copy(folder.wanted(HARD).path, folder.wanted(EASY).path)
    return folder


def damaged(folder: ProofFolder) -> ProofFolder:
    path = folder.wanted(EASY).path
    path.write_bytes(path.read_bytes()[:-5])
    return folder


def restated(folder: ProofFolder) -> ProofFolder:
    """A property that is easier to prove, with its own proof."""
    over = ProofFolder(folder.folder, folder.graph, overwrite=True)
    next(certify(folder.graph, *_first(), Perturbation(0.01, clip=(0.0, 1.0)), CONFIG, proofs=over))
    return folder


def restated_only(folder: ProofFolder) -> ProofFolder:
    """Another property without its proof."""
    restated(folder).wanted(EASY).path.unlink()
    return folder


def unstated(folder: ProofFolder) -> ProofFolder:
    """Another property's certificate, whose property is gone."""
    forged(folder).wanted(EASY).property.unlink()
    return folder


def no_certificate(folder: ProofFolder) -> ProofFolder:
    folder.wanted(EASY).path.write_text("a letter")
    return folder


def _first() -> tuple[np.ndarray, np.ndarray]:
    part = verifier.load_dataset("digits").test
    return part.x[:1], part.y[:1]


def other_arithmetic(folder: ProofFolder) -> ProofFolder:
    return ProofFolder(folder.folder, folder.graph, "real")


def other_model(folder: ProofFolder) -> ProofFolder:
    copy = folder.folder.parent / "other.onnx"
    copy.write_bytes(Path(folder.graph.source).read_bytes() + b"\x3a\x00")  # an empty graph merged into the model: the same network, other bytes
    return ProofFolder(folder.folder, verifier.load_onnx(copy))


def contents(folder: ProofFolder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.folder.iterdir()}


def check_proved_anew(folder: ProofFolder) -> None:
    row = next(certify(folder.graph, *_first(), AROUND, CONFIG, proofs=folder))
    assert row.verdict.status is Status.VERIFIED and row.verdict.engine != "certificate"
    wanted = folder.wanted(EASY)
    report = check(folder.graph.source, wanted.property, wanted.path)
    assert report.accepted and folder.arithmetic in ("auto", report.arithmetic)


@pytest.mark.parametrize("change", [forged, restated, restated_only, unstated, no_certificate, other_arithmetic, other_model])
def test_what_proves_something_else_is_no_proof_and_is_kept(copied, change) -> None:
    """Another property's, model's or arithmetic's certificate is neither taken nor replaced: only a run that says so makes its own in its place."""
    folder = change(copied)
    spec = proofs.load_vnnlib(folder.wanted(HARD).property, 64, 10)
    assert (folder.known(HARD, spec) is None) == (change in (other_arithmetic, other_model))
    before = contents(folder)
    with pytest.raises(VerifierError, match=r"image-0\.(cert|vnnlib) .*--overwrite"):
        next(certify(folder.graph, *_first(), AROUND, CONFIG, proofs=folder))
    assert contents(folder) == before
    folder.overwrite = True
    check_proved_anew(folder)
    kept = [name for name in before if not name.startswith("image-0.")]
    assert {name: before[name] for name in kept} == {name: contents(folder)[name] for name in kept}


def test_a_damaged_proof_of_this_very_question_is_made_again(copied) -> None:
    check_proved_anew(damaged(copied))


def test_the_network_is_not_overwritten_by_a_certificate(digits: Path, tmp_path: Path) -> None:
    shutil.copy(digits / "digits.onnx", tmp_path / "image-0.cert")
    folder = ProofFolder(tmp_path, verifier.load_onnx(tmp_path / "image-0.cert"), overwrite=True)
    with pytest.raises(VerifierError, match="would be overwritten"):
        next(certify(folder.graph, *_first(), AROUND, CONFIG, proofs=folder))
    assert (tmp_path / "image-0.cert").read_bytes() == (digits / "digits.onnx").read_bytes()


def test_files_that_are_kept_are_seen_before_any_work(copied, monkeypatch) -> None:
    """The last image's place is taken: no image is attacked or proved before that is said."""
    monkeypatch.setattr("verifier.measure.certified.predict", lambda *given: pytest.fail("work"))
    folder = other_model(copied)
    for path in (folder.wanted(EASY).path, folder.wanted(EASY).property):
        path.unlink()
    with pytest.raises(VerifierError, match=r"image-1\.cert is there and is the certificate of another model"):
        certified(folder.graph, folder)


def test_where_root_bounds_do_not_do_the_solver_proves(graph, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(ProofFolder, "at_root", lambda *given: None)
    row = certified(graph, ProofFolder(tmp_path, graph), images=[0])[0]
    assert row.verdict.status is Status.VERIFIED and Path(row.verdict.certificate).is_file()


def test_what_the_checker_refuses_is_not_certified(graph, tmp_path: Path, monkeypatch) -> None:
    """Sabotage: a checker that accepts nothing leaves no image certified and no file in the folder."""
    refuse = Failure(0, 0, None, None, -np.inf)
    monkeypatch.setattr(CaseGate, "failures", lambda *given: [refuse])
    rows = certified(graph, ProofFolder(tmp_path, graph), images=[0])
    assert rows[0].verdict.status is Status.UNKNOWN and rows[0].verdict.reason is verifier.Reason.REFUSED
    assert not list(tmp_path.iterdir())


def test_accuracy_tells_of_the_certificates(digits: Path, tmp_path: Path, capsys) -> None:
    model, folder, rows = str(digits / "digits.onnx"), tmp_path / "proofs", tmp_path / "rows.csv"
    more = ["--certificates", str(folder), "--arithmetic", "float32", "--results-file", str(rows), "--json", "--no-attack", "--timeout", "20"]
    assert run(["accuracy", model, "--data", "digits", "--eps", "0.05", "--limit", "3", *more]) == 0
    answer = json.loads(capsys.readouterr().out)
    names = [f"image-{k}.cert" for k in range(3)]
    assert [image["certificate"] for image in answer["images"]] == names and answer["summary"]["certified"] == 3
    with rows.open(newline="") as file:
        assert [row["certificate"] for row in csv.DictReader(file)] == names
    for name in names:
        assert run(["check", model, str(folder / name.replace(".cert", ".vnnlib")), str(folder / name), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["arithmetic"] == "float32"


@pytest.mark.parametrize(
    ("more", "what"),
    [
        (["--certificates", "D", "--norm", "l2"], "use --norm linf"),
        (["--certificates", "D", "--norm", "l1"], "an l1 ball is none"),
        (["--certificates", "taken/D"], "cannot be made"),
    ],
)
def test_bad_requests_are_one_sentence(digits: Path, tmp_path: Path, capsys, monkeypatch, more: list[str], what: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("taken").write_text("a file")
    assert run(["accuracy", str(digits / "digits.onnx"), "--data", "digits", "--eps", "0.05", "--limit", "1", *more]) == 2
    error = capsys.readouterr().err
    assert what in error and len(error.strip().splitlines()) == 1 and not Path("D").exists()


def test_a_network_without_a_file_cannot_be_certified(tmp_path: Path) -> None:
    with pytest.raises(VerifierError, match="has none: export it"):
        ProofFolder(tmp_path, replace(random_mlp(0).graph(), source=""))


def test_no_other_file_of_the_folder_is_touched(copied) -> None:
    foreign = copied.folder / "image-0.vnnlib.part"
    foreign.write_text("mine")
    part = verifier.load_dataset("digits").test
    copied.state(0, verifier.robustness(part.x[0], int(part.y[0]), 0.12, 10))
    assert foreign.read_text() == "mine"
