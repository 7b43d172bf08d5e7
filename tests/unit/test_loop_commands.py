"""The stages as commands, each reading what the one before wrote; help pages, Ctrl-C, and what a terminal shows."""
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import verifier
from certprune import __version__, cli
from certprune.checkpoint import load
from certprune.console import Bars
from certprune.progress import Step
from certprune.prune.mask import sparsity
from tests.loop_runs import TINY

COMMANDS = ("loop", "train", "prune", "finetune", "export", "evaluate", "smooth", "report")


@pytest.fixture()
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


def run(*arguments: object) -> int:
    return cli.run([str(argument) for argument in arguments])


def test_the_stages_one_after_another(config: Path, tmp_path: Path, capfd: Any) -> None:
    dense, pruned, tuned = (tmp_path / f"{name}.pt" for name in ("dense", "pruned", "tuned"))
    assert run("train", config, "--out", dense) == 0
    assert run("prune", dense, "--config", config, "--arm", "magnitude", "--sparsity", "0.75", "--out", pruned) == 0
    assert run("finetune", pruned, "--config", config, "--out", tuned) == 0
    assert run("export", tuned, "--config", config, "--out", tmp_path / "onnx") == 0
    model = tmp_path / "onnx" / "masked.onnx"
    more = ("--set", "verify.tightness=1", "--set", "verify.strong_attack=1", "--set", "verify.test=2")
    assert run("evaluate", model, "--config", config, "--out", tmp_path / "measured", *more) == 0
    saved = load(tuned)
    assert abs(sparsity(saved.mask) - 0.75) < 0.01 and [step["stage"] for step in saved.history] == ["train", "prune", "train"]
    assert {path.name for path in (tmp_path / "onnx").iterdir()} == {"masked.onnx", "compact.onnx", "sparse.onnx"}
    row = json.loads((tmp_path / "measured" / "measured.json").read_text())
    assert row["images"] == 2 and row["parameters"] - row["nonzero"] >= 0.75 * 64 * 12
    assert {one["engine"] for one in row["tightness"]} == {"ibp", "crown-ibp", "crown", "alpha-crown"}
    assert row["survived_attack"] in (True, None) and (row["survived_attack"] is None) == (row["certified"] == 0)
    assert not list(tmp_path.glob("*.part")) and "sparsity 75.0%" in capfd.readouterr().out


def test_stability_of_a_row_counts_every_neuron(config: Path, tmp_path: Path) -> None:
    digits = Path(__file__).parents[2] / "examples" / "digits" / "digits.onnx"
    assert run("evaluate", digits, "--config", config, "--out", tmp_path, "--split", "selection", "--set", "verify.selection=2") == 0
    row = json.loads((tmp_path / "measured.json").read_text())
    for engine in ("ibp", "crown"):
        assert all(sum(layer[engine].values()) == pytest.approx(layer["neurons"]) for layer in row["layers"])
        assert sum(layer[engine]["unstable"] for layer in row["layers"]) == pytest.approx(row[f"unstable_{engine}"])
    neurons = [node for node in verifier.load_onnx(digits).nodes if node.op == "Relu"]
    assert len(row["layers"]) == len(neurons)


def test_what_was_decided_of_one_file_is_not_another_files(config: Path, tmp_path: Path) -> None:
    dense, other = tmp_path / "dense.pt", tmp_path / "other.pt"
    rows = []
    for network, seed in ((dense, 1), (other, 2)):
        assert run("train", config, "--set", f"seed={seed}", "--set", "train.epochs=1", "--out", network) == 0
        assert run("export", network, "--config", config, "--out", network.with_suffix("")) == 0
        model = network.with_suffix("") / "masked.onnx"
        for folder in ("shared", network.stem):
            assert run("evaluate", model, "--config", config, "--out", tmp_path / folder, "--set", "verify.test=4") == 0
            rows.append(json.loads((tmp_path / folder / "measured.json").read_text())["image_rows"])
    shown = [[(image["predicted"], image["verdict"]) for image in images] for images in rows]
    assert shown[0] == shown[1] and shown[2] == shown[3] and shown[0] != shown[2]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command: str, capfd: Any) -> None:
    assert run(command, "--help") == 0
    assert f"Example: certprune {command}" in " ".join(capfd.readouterr().out.split())


def test_version_and_no_arguments(capfd: Any) -> None:
    assert run("--version") == 0
    assert capfd.readouterr().out == f"certprune {__version__}\n"
    assert run() == 0
    assert all(command in capfd.readouterr().out for command in ("loop",))


def test_ctrl_c_says_what_is_kept(config: Path, tmp_path: Path) -> None:
    # A shell in the background starts its children with SIGINT ignored.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\nfrom certprune.cli import main; main()"
    command = [sys.executable, "-c", code]
    arguments = ["loop", str(config), "--runs", str(tmp_path / "runs"), "--set", "train.epochs=100000"]
    process = subprocess.Popen(command + arguments, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    partial = None
    while partial is None and process.poll() is None:
        time.sleep(0.1)
        partial = next((tmp_path / "runs").glob("tiny/stages/dense-train-*/partial.pt"), None)
    process.send_signal(signal.SIGINT)
    told = process.communicate()[1]
    assert process.returncode == 130 and "Traceback" not in told
    assert "Interrupted: 0 finished stages and every finished epoch are kept in" in told and "goes on from there" in told
    assert partial.exists()


def test_bars_tell_a_line_for_each_finished_stage(capfd: Any) -> None:
    with Bars(2) as bars:
        bars(Step("train", 1, 3))
        bars(Step("train", finished=True, note="loss 0.1"))
        bars(Step("export", finished=True, reused=True))
    lines = capfd.readouterr().err.splitlines()
    assert [line.split()[0] for line in lines] == ["train", "export"] and "loss 0.1" in lines[0] and "used again" in lines[1]
    assert bars.finished == 2 and bars.reused == ["export"]


def test_bars_on_a_terminal_show_the_time_left(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    with Bars(2) as bars:
        bars(Step("train", 1, 3))
        bars(Step("train", 2, 3))
        bars(Step("train", finished=True, note="[loss] 0.1"))
        bars(Step("verify", 0, 0))
    told = capfd.readouterr().err
    assert "left" in told and "[loss] 0.1" in told
