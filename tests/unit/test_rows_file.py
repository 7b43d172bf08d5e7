"""The rows of `accuracy` in a file: continued by a run of the same question, kept from any other, and never over an input."""
from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import verifier
from tests.unit.test_accuracy import FOUND, LATE, PROVED, STOPPED
from verifier.cli import run
from verifier.measure import accuracy
from verifier.measure.certified import ImageRow
from verifier.rows_file import COLUMNS

VERDICTS = [PROVED, LATE, FOUND, PROVED, LATE, PROVED]


@pytest.fixture
def model(digits: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(digits / "digits.onnx", tmp_path / "net.onnx"))


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The labels of the images that a scripted `certify` was given, which tells VERDICTS by the images' places in the data set."""
    given: list[int] = []
    labels = verifier.load_dataset("digits").test.y
    by_label = {int(label): k for k, label in reversed(list(enumerate(labels[:6].tolist())))}
    assert len(by_label) == 6, "the first six images have six labels"

    def certify(graph, images, labels, around, config, listener, proofs):
        for i, label in enumerate(labels.tolist()):
            verdict = VERDICTS[by_label[label]]
            margin = -0.25 if verdict is FOUND else 0.5
            given.append(by_label[label])
            yield ImageRow(i, label, label, verdict, margin)

    monkeypatch.setattr(accuracy, "certify", certify)
    return given


def asked(model: Path, rows: Path, *more: str) -> list[str]:
    return ["accuracy", str(model), "--data", "digits", "--eps", "0.02", "--json", "--results-file", str(rows), *more]


def answer(capsys: pytest.CaptureFixture) -> dict:
    return json.loads(capsys.readouterr().out)


def numbers(path: Path) -> list[int]:
    with path.open(newline="") as file:
        return [int(row["index"]) for row in csv.DictReader(file)]


def test_a_restart_goes_on_where_the_rows_end(model: Path, tmp_path: Path, computed, capsys) -> None:
    rows, whole = tmp_path / "rows.csv", tmp_path / "whole.csv"
    assert run(asked(model, whole, "--limit", "6")) == 0
    expected = answer(capsys)
    computed.clear()
    assert run(asked(model, rows, "--limit", "2")) == 0 and run(asked(model, rows, "--limit", "6")) == 0
    assert computed == [0, 1, 2, 3, 4, 5], "none twice"
    assert rows.read_bytes() == whole.read_bytes()
    shown = capsys.readouterr()
    assert json.loads(shown.out.splitlines()[-1]) == expected and "has 2 of 6 images already" in shown.err


def test_fewer_images_than_there_are_rows_take_them_from_there(model: Path, tmp_path: Path, computed, capsys) -> None:
    rows = tmp_path / "rows.csv"
    assert run(asked(model, rows, "--limit", "6")) == 0
    before, _ = rows.read_bytes(), capsys.readouterr()
    assert run(asked(model, rows, "--limit", "3")) == 0
    found = answer(capsys)
    assert len(computed) == 6 and rows.read_bytes() == before
    assert [image["verdict"] for image in found["images"]] == ["unsat", "timeout", "sat"] and found["summary"]["pgd_accuracy"] == 2 / 3


@pytest.mark.parametrize("cut", [1, 9, 40])
def test_a_row_that_was_cut_is_computed_again(model: Path, tmp_path: Path, computed, cut: int) -> None:
    rows = tmp_path / "rows.csv"
    assert run(asked(model, rows, "--limit", "4")) == 0
    whole = rows.read_bytes()
    rows.write_bytes(whole[:-cut])
    computed.clear()
    assert run(asked(model, rows, "--limit", "4")) == 0
    assert computed == [3] and rows.read_bytes() == whole


def test_interrupted_images_are_computed_again(model: Path, tmp_path: Path, computed, monkeypatch) -> None:
    rows = tmp_path / "rows.csv"
    monkeypatch.setitem(globals(), "VERDICTS", [PROVED, STOPPED, STOPPED])
    assert run(asked(model, rows, "--limit", "3")) == 0
    monkeypatch.setitem(globals(), "VERDICTS", [PROVED, FOUND, LATE])
    computed.clear()
    assert run(asked(model, rows, "--limit", "3")) == 0
    assert computed == [1, 2] and numbers(rows) == [0, 1, 2]


def other_model(model: Path, arguments: list[str]) -> list[str]:
    model.write_bytes(model.read_bytes() + b"\x3a\x00")  # an empty graph merged into the model: the same network, other bytes
    return arguments


OTHERS = {
    "model": other_model,
    "eps": lambda model, given: [*given, "--eps", "0.03"],
    "norm": lambda model, given: [*given, "--norm", "l2"],
    "split": lambda model, given: [*given, "--split", "train"],
    "time-out": lambda model, given: [*given, "--timeout", "7"],
    "attack": lambda model, given: [*given, "--no-attack"],
    "data": lambda model, given: [*given, "--data", str(model.with_name("i.npz"))],
}


@pytest.mark.parametrize("other", OTHERS)
def test_rows_of_another_question_are_kept(model: Path, tmp_path: Path, computed, capsys, other: str) -> None:
    rows, data = tmp_path / "rows.csv", verifier.load_dataset("digits").test
    np.savez(tmp_path / "i.npz", x=data.x[:6], y=data.y[:6])
    assert run(asked(model, rows, "--limit", "3")) == 0
    before = rows.read_bytes()
    computed.clear()
    arguments = OTHERS[other](model, asked(model, rows, "--limit", "3"))
    capsys.readouterr()
    assert run(arguments) == 2
    shown = capsys.readouterr()
    assert "--overwrite" in shown.err and len(shown.err.strip().splitlines()) == 1 and not computed and rows.read_bytes() == before
    if other != "split":
        assert run([*arguments, "--overwrite"]) == 0
        assert computed == [0, 1, 2] and numbers(rows) == [0, 1, 2] and rows.read_bytes() != before


@pytest.mark.parametrize(
    "text",
    ["a letter\n", "index,label\n0,1\n", "no end of line", ",".join(COLUMNS) + "\nthis,is,no,row\n", ",".join(COLUMNS) + "\n" + "x," * 10 + "x\n"],
    ids=["text", "other columns", "no line", "short row", "no numbers"],
)
def test_any_other_file_is_kept(model: Path, tmp_path: Path, computed, capsys, text: str) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text(text)
    assert run(asked(model, rows, "--limit", "2")) == 2
    assert "--overwrite" in capsys.readouterr().err and rows.read_text() == text and not computed


@pytest.mark.parametrize("text", ["", ",".join(COLUMNS) + "\r\n"], ids=["empty", "headline"])
def test_a_file_without_rows_is_taken(model: Path, tmp_path: Path, computed, text: str) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_bytes(text.encode())
    assert run(asked(model, rows, "--limit", "2")) == 0
    assert numbers(rows) == [0, 1]


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_no_input_is_overwritten(model: Path, tmp_path: Path, computed, capsys, overwrite: list[str]) -> None:
    data = verifier.load_dataset("digits").test
    np.savez(tmp_path / "i.npz", x=data.x[:6], y=data.y[:6])
    (tmp_path / "c.toml").write_text("timeout_s = 5.0\n")
    (tmp_path / "link.csv").symlink_to(model)
    for name in ("net.onnx", "i.npz", "c.toml", "link.csv"):
        before = (tmp_path / name).read_bytes()
        arguments = asked(model, tmp_path / name, "--data", str(tmp_path / "i.npz"), "--config", str(tmp_path / "c.toml"), *overwrite)
        assert run(arguments) == 2
        assert "would be overwritten" in capsys.readouterr().err and (tmp_path / name).read_bytes() == before
    assert not computed


def test_a_real_run_and_its_rows_tell_the_same(model: Path, tmp_path: Path, capsys) -> None:
    """Every number of a summary survives the file: without an attack too, and with misclassified images."""
    for more in (["--eps", "0.1", "--limit", "6", "--timeout", "3"], ["--eps", "0.01", "--limit", "4", "--no-attack"]):
        rows = tmp_path / f"rows{len(more)}.csv"
        assert run(asked(model, rows, *more)) == 0
        first = answer(capsys)
        assert run(asked(model, rows, *more)) == 0
        second = answer(capsys)
        assert abs(first["summary"].pop("seconds") - second["summary"].pop("seconds")) < 0.01  # a row has four decimals
        assert first == second


def test_rows_and_certificates_go_on_together(model: Path, tmp_path: Path, capsys) -> None:
    rows, folder = tmp_path / "rows.csv", tmp_path / "proofs"
    more = ["--eps", "0.01", "--certificates", str(folder), "--no-attack"]
    assert run(asked(model, rows, *more, "--limit", "2")) == 0 and run(asked(model, rows, *more, "--limit", "4")) == 0
    names = {f"image-{k}.{kind}" for k in range(4) for kind in ("cert", "vnnlib")}
    assert {path.name for path in folder.iterdir()} == names and numbers(rows) == [0, 1, 2, 3]
    capsys.readouterr()
    for k in range(4):
        assert run(["check", str(model), str(folder / f"image-{k}.vnnlib"), str(folder / f"image-{k}.cert")]) == 0
    (folder / "image-1.cert").unlink()
    assert run(asked(model, rows, *more, "--limit", "4")) == 2
    assert "image-1.cert, which is not there" in capsys.readouterr().err




@pytest.mark.parametrize("more", [(), ("--overwrite",)])
def test_two_runs_do_not_write_the_same_rows(model: Path, tmp_path: Path, computed, capsys, more: tuple[str, ...]) -> None:
    fcntl, rows = pytest.importorskip("fcntl"), tmp_path / "rows.csv"
    assert run(asked(model, rows, "--limit", "2")) == 0
    before = rows.read_bytes()
    with rows.open("r+b") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert run(asked(model, rows, "--limit", "4", *more)) == 2
    assert "Another run writes the results file" in capsys.readouterr().err and rows.read_bytes() == before
    assert run(asked(model, rows, "--limit", "4", *more)) == 0 and numbers(rows) == [0, 1, 2, 3]


@pytest.mark.parametrize("place", ["results", "config"])
def test_certificates_leave_the_other_files_of_their_run(model: Path, tmp_path: Path, capsys, place: str) -> None:
    folder, settings = tmp_path / "proofs", tmp_path / "settings.toml"
    folder.mkdir()
    rows = folder / "image-1.cert" if place == "results" else tmp_path / "rows.csv"
    settings = folder / "image-1.vnnlib" if place == "config" else settings
    settings.write_text("seed = 1\n")
    command = ["accuracy", str(model), "--data", "digits", "--eps", "0.001", "--limit", "2", "--results-file", str(rows)]
    assert run([*command, "--config", str(settings), "--certificates", str(folder), "--overwrite"]) == 2
    assert "would be overwritten" in capsys.readouterr().err and settings.read_text() == "seed = 1\n" and rows.is_file()
