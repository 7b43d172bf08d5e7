"""The command line in front of a scripted solver: words, JSON, files, exit codes, time-outs, interruptions."""
from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import verifier
from tests.small_models import IN_UNIT, absolute_value, vnnlib
from verifier.bab.budget import Progress
from verifier.cli import run
from verifier.config import AttackConfig, Config
from verifier.errors import OutOfMemory
from verifier.verdict import Counterexample, Reason, Status, Verdict

PROVED = Verdict(Status.VERIFIED, Reason.PROVED, "Proved.", 0.5, 3, "scripted", 0.25)
FOUND = Verdict(
    Status.FALSIFIED, Reason.REPLAYED, "Found.", 0.5, 3, "scripted", None, Counterexample(np.float32([0.5]), np.float32([0.5]), 0.25)
)


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """A network and a property, as command-line arguments."""
    return [str(absolute_value(tmp_path / "abs.onnx")), str(vnnlib(tmp_path / "p.vnnlib", *IN_UNIT, "(<= Y_0 -0.5)"))]


@pytest.fixture
def solver(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module in the place of `verifier.solve`; a test sets `answer`, the solver's function of (config, listener)."""
    fake = ModuleType("verifier.solve")
    fake.answer = lambda config, listener: PROVED
    fake.verify = lambda graph, spec, config, listener, certificate: fake.answer(config, listener)
    fake.verify_many = lambda graph, specs, config, listener: [fake.answer(config, listener) for _ in specs]
    monkeypatch.setitem(sys.modules, "verifier.solve", fake)
    monkeypatch.setattr(verifier, "solve", fake, raising=False)
    monkeypatch.setattr("verifier.measure.certified.screen_of", lambda graph, config: None)  # every image goes to the script
    return fake


def unknown(reason: Reason) -> Verdict:
    return Verdict(Status.UNKNOWN, reason, "Not decided.")


@pytest.mark.parametrize(
    ("verdict", "text"),
    [
        (PROVED, "unsat\n"),
        (FOUND, "sat\n((X_0 0.5)\n(Y_0 0.5))\n"),
        (unknown(Reason.TIMEOUT), "timeout\n"),
        (unknown(Reason.MEMORY), "unknown\n"),
        (unknown(Reason.INTERRUPTED), "unknown\n"),
        (unknown(Reason.UNCONFIRMED), "unknown\n"),
    ],
)
def test_words_of_the_competition(solver, files, tmp_path, capsys, verdict: Verdict, text: str) -> None:
    solver.answer = lambda config, listener: verdict
    assert run(["verify", *files, "--results-file", str(tmp_path / "out.txt")]) == 0
    shown = capsys.readouterr()
    assert shown.out == text
    assert (tmp_path / "out.txt").read_text() == text
    assert verdict.sentence in shown.err


def test_the_time_that_is_over_is_the_commands(solver, files, capsys) -> None:
    """Not what was left of it for the solver."""
    solver.answer = lambda config, listener: replace(unknown(Reason.TIMEOUT), sentence="The time of 118.3 s is over.")
    assert run(["verify", *files]) == 0
    assert "The time of 120 s is over." in capsys.readouterr().err


def test_json_has_exactly_the_promised_keys(solver, files, capsys) -> None:
    solver.answer = lambda config, listener: FOUND
    assert run(["verify", *files, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert list(answer) == ["verdict", "reason", "seconds", "domains", "engine", "lower_bound", "witness"]
    assert answer["verdict"] == "sat" and answer["witness"] == {"x": [0.5], "y": [0.5], "margin": 0.25}


def test_json_of_an_infinite_bound_is_null(solver, files, capsys) -> None:
    solver.answer = lambda config, listener: Verdict(Status.VERIFIED, Reason.PROVED, "Nothing to reach.", lower_bound=float("inf"))
    assert run(["verify", *files, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["lower_bound"] is None


def test_options_win_over_the_file_which_wins_over_the_defaults(solver, files, tmp_path) -> None:
    seen: list[Config] = []
    solver.answer = lambda config, listener: seen.append(config) or PROVED
    (tmp_path / "c.toml").write_text("seed = 7\ntimeout_s = 1000\n[attack]\nsteps = 5\n")
    assert run(["verify", *files, "--config", str(tmp_path / "c.toml"), "--timeout", "50", "--device", "cpu"]) == 0
    assert run(["verify", *files, "--no-attack"]) == 0
    assert (seen[0].seed, seen[0].device, seen[0].attack) == (7, "cpu", AttackConfig(steps=5))
    assert 40 < seen[0].timeout_s <= 50
    assert seen[1].attack is None and 100 < seen[1].timeout_s <= 120


@pytest.mark.parametrize(
    ("error", "reason"),
    [(KeyboardInterrupt(), "interrupted"), (OutOfMemory("No room."), "out of memory"), (MemoryError(), "out of memory")],
)
def test_what_ends_the_solver_is_a_verdict_with_what_was_reached(solver, files, capsys, error: BaseException, reason: str) -> None:
    def answer(config: Config, listener: Callable[[Progress], None]) -> Verdict:
        listener(Progress("branch and bound", 1.0, -0.5, 4, 9))
        raise error

    solver.answer = answer
    assert run(["verify", *files, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["verdict"], shown["reason"], shown["domains"], shown["lower_bound"]) == ("unknown", reason, 9, -0.5)


def test_verbose_prints_every_step(solver, files, capsys) -> None:
    def answer(config: Config, listener: Callable[[Progress], None]) -> Verdict:
        listener(Progress("attack", 0.1))
        listener(Progress("branch and bound", 1.0, -0.5, 4, 9))
        return PROVED

    solver.answer = answer
    assert run(["verify", *files, "-v"]) == 0
    shown = capsys.readouterr()
    assert shown.out == "unsat\n"
    assert " s, attack\n" in shown.err and "lower bound -0.5, 4 domains open, 9 closed" in shown.err


def test_a_note_of_the_property_is_told(solver, tmp_path, capsys) -> None:
    solver.answer = lambda config, listener: PROVED
    model = absolute_value(tmp_path / "abs.onnx")
    prop = vnnlib(tmp_path / "p.vnnlib", "(>= X_0 1)", "(<= X_0 -1)", "(<= Y_0 0)")
    assert run(["verify", str(model), str(prop)]) == 0
    assert "X_0" in capsys.readouterr().err


def test_robustness_counts_misclassified_images_as_falsified(solver, digits, tmp_path, capsys) -> None:
    x, y = verifier.load_images(digits / "images.npz")
    wrong = y.copy()
    wrong[1] = (wrong[1] + 1) % 10
    np.savez(tmp_path / "i.npz", images=x, labels=wrong)
    arguments = ["robustness", str(digits / "digits.onnx"), str(tmp_path / "i.npz"), "--eps", "1/255", "--index", "0:3", "--no-attack"]
    assert run([*arguments, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [image["verdict"] for image in answer["images"]] == ["unsat", "sat", "unsat"]
    assert (answer["images"][1]["label"], answer["images"][1]["predicted"]) == (wrong[1], y[1])
    assert {k: answer["summary"][k] for k in ("images", "certified", "falsified", "undecided")} == {
        "images": 3, "certified": 2, "falsified": 1, "undecided": 0,
    }  # fmt: skip
    assert answer["summary"]["clean_accuracy"] == pytest.approx(2 / 3)
    assert run(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:4] == ["0", str(y[0]), str(y[0]), "unsat"]
    assert lines[-1].startswith("3 images: clean accuracy 66.7%, certified accuracy 66.7%")


def test_robustness_keeps_the_numbers_of_chosen_images(solver, digits, capsys) -> None:
    arguments = ["robustness", str(digits / "digits.onnx"), str(digits / "images.npz"), "--eps", "0.01", "--index", "7,2", "--no-attack", "--json"]
    assert run(arguments) == 0
    assert [image["index"] for image in json.loads(capsys.readouterr().out)["images"]] == [7, 2]


@pytest.mark.parametrize("command", [[], ["verify"], ["robustness"], ["bounds"], ["info"]])
def test_help_shows_an_example_for_every_command(command: list[str], capsys) -> None:
    assert run([*command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "Usage: verifier" in shown
    assert not command or "Example: verifier" in shown


def test_info_is_a_table_with_a_total(digits, capsys) -> None:
    assert run(["info", str(digits / "digits.onnx")]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["conv2d_0", "Conv", "1x8x8x8", "80", "0.0%"] in lines
    assert lines[-1] == ["total", "1x10", "4480", "0.0%", "718"]
    assert run(["info", str(digits / "digits.onnx"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["total"]["parameters"] == 4480


def test_version(capsys) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"verifier {verifier.__version__}\n"
