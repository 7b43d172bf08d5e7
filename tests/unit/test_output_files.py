"""What a command writes: never over an input, never over what is not its own, and never in part."""
from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.small_models import IN_UNIT, absolute_value, vnnlib
from verifier.cli import run
from verifier.outputs import OutputError, check_writable, keep_apart, replace_file


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """A network, a property that it has, and a configuration, in a folder of their own."""
    (tmp_path / "c.toml").write_text("seed = 1\n")
    return [str(absolute_value(tmp_path / "abs.onnx")), str(vnnlib(tmp_path / "p.vnnlib", *IN_UNIT, "(<= Y_0 -0.5)")), str(tmp_path / "c.toml")]


def hard(path: Path) -> Path:
    (path.parent / "hard").hardlink_to(path)
    return path.parent / "hard"


def soft(path: Path) -> Path:
    (path.parent / "soft").symlink_to(path)
    return path.parent / "soft"


def folder(path: Path) -> Path:
    (path.parent / "d").symlink_to(path.parent)
    return path.parent / "d" / path.name


SPELLINGS: dict[str, Callable[[Path], Path]] = {
    "the same": lambda path: path,
    "dots": lambda path: path.parent / "." / ".." / path.parent.name / path.name,
    "relative": lambda path: Path(os.path.relpath(path)),
    "hard link": hard,
    "symbolic link": soft,
    "linked folder": folder,
}


@pytest.mark.parametrize("option", ["--results-file", "--certificate"])
@pytest.mark.parametrize("which", range(3), ids=["model", "property", "configuration"])
@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS)
def test_no_input_is_overwritten(files, capsys, option: str, which: int, spelling: Callable[[Path], Path]) -> None:
    output = spelling(Path(files[which]))
    before = {path: path.read_bytes() for path in Path(files[0]).parent.iterdir() if path.is_file()}
    assert run(["verify", *files[:2], "--config", files[2], option, str(output)]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and len(shown.err.splitlines()) == 1
    assert option in shown.err and "would be overwritten" in shown.err
    assert before == {path: path.read_bytes() for path in Path(files[0]).parent.iterdir() if path.is_file()}


def test_one_file_for_two_outputs(files, tmp_path, capsys) -> None:
    assert run(["verify", *files[:2], "--results-file", str(tmp_path / "new"), "--certificate", str(tmp_path / "." / "new")]) == 2
    assert "--results-file" in capsys.readouterr().err and not (tmp_path / "new").exists()


@pytest.mark.parametrize("held", [b"my notes\n", b"unsatisfied\n", b"\x08\x09", b"safe\nunsat\n"])
def test_a_file_that_is_no_results_file_is_kept(files, tmp_path, capsys, held: bytes) -> None:
    """The weights of a model with external data are such a file, whatever names them."""
    path = tmp_path / "weights.bin"
    path.write_bytes(held)
    assert run(["verify", *files[:2], "--results-file", str(path)]) == 2
    assert "weights.bin" in capsys.readouterr().err and path.read_bytes() == held


@pytest.mark.parametrize("held", [None, b"", b"unsat\n", b"timeout\n", b"sat\n((X_0 0.5)\n(Y_0 0.5))\n", b"unknown"])
def test_an_older_results_file_is_replaced(files, tmp_path, held: bytes | None) -> None:
    path = tmp_path / "out.txt"
    if held is not None:
        path.write_bytes(held)
    assert run(["verify", *files[:2], "--results-file", str(path)]) == 0
    assert path.read_text() == "unsat\n"


def test_an_older_results_file_stays_until_there_is_an_answer(files, tmp_path, monkeypatch) -> None:
    path = tmp_path / "out.txt"
    path.write_text("sat\nof last week\n")
    seen = []

    def load(model: object) -> None:
        seen.append(path.read_text())
        raise KeyboardInterrupt

    monkeypatch.setattr("verifier.graph.load.load_onnx", load)
    assert run(["verify", *files[:2], "--results-file", str(path)]) == 0
    assert seen == ["sat\nof last week\n"] and path.read_text() == "unknown\n"
    path.write_text("sat\nof last week\n")
    Path(files[0]).write_bytes(b"no model")
    monkeypatch.undo()
    assert run(["verify", *files[:2], "--results-file", str(path)]) == 2
    assert path.read_text() == "sat\nof last week\n"


def test_links_and_permissions_stay(tmp_path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    path.chmod(0o640)
    replace_file(soft(path), b"new")
    assert path.read_bytes() == b"new" and (tmp_path / "soft").is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    mask = os.umask(0o027)
    try:
        replace_file(tmp_path / "b", b"new")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "b").stat().st_mode) == 0o640


def test_another_name_of_a_replaced_file_keeps_what_it_had(tmp_path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    other = hard(path)
    replace_file(path, b"new")
    assert (path.read_bytes(), other.read_bytes()) == (b"new", b"old")


def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("name", ["none/at/all", ".", "a\0b", "x" * 300])
def test_what_cannot_be_written_is_known_before(tmp_path, name: str) -> None:
    for attempt in (lambda path: check_writable(path), lambda path: replace_file(path, b"")):
        with pytest.raises(OutputError, match="Cannot write"):
            attempt(tmp_path / name)
    assert not any(tmp_path.iterdir())


def test_files_apart_are_left_alone(tmp_path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(b"same")
    other.write_bytes(b"same")
    assert keep_apart({"the model": one, "the data": "a name"}, {"--out": other, "--more": None, "--new": tmp_path / "new"}) is None
    assert keep_apart({}, {"--out": "/dev/stdout", "--more": "/dev/stdout"}) is None
