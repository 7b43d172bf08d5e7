"""`verifier accuracy`: rows, limits, interruption and bad input; and the attack whose margins it prints."""
from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import verifier
from tests.small_models import dense_relu
from verifier.bab.budget import Progress
from verifier.cli import run
from verifier.config import AttackConfig, Config
from verifier.errors import VerifierError
from verifier.measure import accuracy, attacked, certified
from verifier.measure.accuracy import Accuracy, Measured
from verifier.measure.certified import ImageRow, Perturbation, Summary, ball
from verifier.spec.spec import Case
from verifier.verdict import Counterexample, Reason, Status, Verdict

PROVED = Verdict(Status.VERIFIED, Reason.PROVED, "Proved.", 0.5, 3, "scripted")
FOUND = Verdict(Status.FALSIFIED, Reason.REPLAYED, "Found.", 0.5, 3, "PGD", None, Counterexample(np.zeros(64), np.zeros(10), 0.25))
LATE = Verdict(Status.UNKNOWN, Reason.TIMEOUT, "Late.", 2.0, 9, "scripted", -0.125)
STOPPED = Verdict(Status.UNKNOWN, Reason.INTERRUPTED, "Interrupted.")


def asked(digits: Path, *more: str) -> list[str]:
    return ["accuracy", str(digits / "digits.onnx"), "--data", "digits", "--eps", "0.02", *more]


def scripted(monkeypatch: pytest.MonkeyPatch, verdicts: list[Verdict | type[BaseException]], wrong: tuple[int, ...] = ()) -> list[str]:
    """`certify` tells these verdicts, or raises; the images in `wrong` are misclassified. Returns what the listener was told."""
    heard: list[str] = []

    def certify(graph, images, labels, around, config, listener, proofs) -> Iterator[ImageRow]:
        for i, verdict in enumerate(verdicts):
            if not isinstance(verdict, Verdict):
                raise verdict
            listener(Progress(f"image {i}", 0.0))
            heard.append(f"image {i}")
            margin = None if i in wrong else -verdict.counterexample.margin if verdict.counterexample is not None else 0.5
            yield ImageRow(i, int(labels[i]), int(labels[i]) + (i in wrong), verdict, margin)

    monkeypatch.setattr(accuracy, "certify", certify)
    return heard


def summary_of(capsys: pytest.CaptureFixture) -> dict:
    return json.loads(capsys.readouterr().out)["summary"]


def test_digits_agree_with_one_property_an_image(digits: Path, capsys) -> None:
    assert run(asked(digits, "--limit", "5", "--json")) == 0
    answer = json.loads(capsys.readouterr().out)
    data, graph = verifier.load_dataset("digits"), verifier.load_onnx(digits / "digits.onnx")
    assert len(answer["images"]) == 5
    for i, row in enumerate(answer["images"]):
        spec = verifier.robustness(data.x_test[i], int(data.y_test[i]), 0.02, 10)
        expected = {Status.VERIFIED: "unsat", Status.FALSIFIED: "sat"}[verifier.verify(graph, spec).status]
        assert (row["index"], row["label"], row["verdict"]) == (i, data.y_test[i], expected)
        assert row["verdict"] != "unsat" or row["pgd_margin"] > row["margin"] > 0
    assert answer["summary"]["certified"] == sum(row["verdict"] == "unsat" for row in answer["images"])


def test_limits_hold_what_is_open(monkeypatch, digits: Path, capsys) -> None:
    scripted(monkeypatch, [PROVED, LATE, FOUND, FOUND, PROVED], wrong=(3,))
    assert run(asked(digits, "--limit", "5", "--json")) == 0
    told = summary_of(capsys)
    assert (told["certified"], told["falsified"], told["undecided"]) == (2, 2, 1)
    assert (told["clean_accuracy"], told["clean_accuracy_upper"]) == (0.8, 0.8)
    assert (told["certified_accuracy"], told["certified_accuracy_upper"]) == (0.4, 0.6)
    assert told["pgd_accuracy"] == told["pgd_accuracy_upper"] == 0.6, "the solver's own attack counts"
    scripted(monkeypatch, [PROVED, LATE])
    assert run(asked(digits, "--limit", "2")) == 0
    assert "PGD accuracy 100.0%, certified accuracy 50.0% to 100.0% (1 certified, 0 falsified, 1 undecided)" in capsys.readouterr().out


def test_rows_go_to_the_file(monkeypatch, digits: Path, tmp_path: Path) -> None:
    scripted(monkeypatch, [PROVED, LATE, FOUND])
    assert run(asked(digits, "--limit", "3", "--results-file", str(tmp_path / "rows.csv"))) == 0
    rows = list(csv.DictReader((tmp_path / "rows.csv").open()))
    assert [row["verdict"] for row in rows] == ["unsat", "timeout", "sat"]
    assert list(rows[0]) == ["index", "label", "predicted", "verdict", "reason", "margin", "pgd_margin", "domains", "seconds", "certificate",
                             "question"]
    assert (rows[1]["margin"], rows[1]["domains"], rows[2]["margin"]) == ("-0.125", "9", "-0.25")
    assert (float(rows[0]["margin"]), float(rows[2]["pgd_margin"]) <= -0.25) == (0.0, True)


def test_an_interruption_between_rows_keeps_them_and_counts_all_images(monkeypatch, digits: Path, capsys, tmp_path: Path) -> None:
    scripted(monkeypatch, [PROVED, FOUND, KeyboardInterrupt])
    assert run(asked(digits, "--limit", "8", "--json", "--results-file", str(tmp_path / "rows.csv"))) == 0
    shown = capsys.readouterr()
    told = json.loads(shown.out)["summary"]
    assert "Interrupted" in shown.err
    assert (told["images"], told["reached"], told["certified_accuracy"], told["certified_accuracy_upper"]) == (8, 2, 1 / 8, 7 / 8)
    assert (told["clean_accuracy"], told["clean_accuracy_upper"]) == (2 / 8, 1.0)
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == 3


def test_after_interrupted_verdicts_no_further_image_is_begun(monkeypatch, digits: Path, capsys) -> None:
    heard = scripted(monkeypatch, [PROVED, STOPPED, PROVED, PROVED])
    assert run(asked(digits, "--limit", "4", "--json")) == 0
    told = summary_of(capsys)
    assert heard == ["image 0", "image 1"]
    assert (told["reached"], told["certified_accuracy"], told["certified_accuracy_upper"]) == (2, 0.25, 1.0)


@pytest.mark.slow
def test_ctrl_c_prints_the_summary(digits: Path, tmp_path: Path) -> None:
    """A whole process: some of 360 images are done when the signal comes."""
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from verifier.cli import main; main()"
    arguments = ["accuracy", str(digits / "digits.onnx"), "--data", "digits", "--eps", "0.1", "--results-file", str(tmp_path / "rows.csv")]
    child = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert "verdict" in child.stdout.readline() and child.stdout.readline()
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)  # the run itself takes minutes: some images are hard
    assert child.returncode == 0 and "Traceback" not in err and "Interrupted" in err
    assert " of 360 images: clean accuracy " in out


def test_no_attack_makes_no_pgd_accuracy(digits: Path, capsys) -> None:
    assert run(asked(digits, "--limit", "2", "--no-attack", "--json")) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["summary"]["pgd_accuracy"] is None and answer["images"][0]["pgd_margin"] is None
    assert run(asked(digits, "--limit", "2", "--no-attack")) == 0
    assert "PGD accuracy" not in capsys.readouterr().out


def test_images_fit_by_the_count_of_their_numbers(tmp_path: Path, capsys) -> None:
    random = np.random.default_rng(0)
    model = dense_relu(tmp_path / "flat.onnx", random.normal(size=(5, 64)), random.normal(size=(10, 5)))
    assert run(["accuracy", str(model), "--data", "digits", "--eps", "1/255", "--limit", "3", "--split", "train", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["images"]
    assert [row["label"] for row in rows] == [0, 1, 2]


@pytest.mark.parametrize(
    ("more", "what"),
    [
        (["--eps", "x"], "eps = 'x' is not a number"),
        (["--data", "digit"], "did you mean digits"),
        (["--data", "absent.npz"], "absent.npz cannot be read"),
        (["--limit", "0"], "--limit"),
        (["--split", "all"], "--split"),
        (["--results-file", "no/such/rows.csv"], "Cannot write the results file"),
        (["--timeout", "-1"], "timeout_s is -1"),
        (["--data", "mnist", "--data-dir", "."], "are not all in ."),
    ],
)
def test_bad_input_is_one_sentence(digits: Path, capsys, more: list[str], what: str) -> None:
    assert run(asked(digits, "--limit", "1", *more)) == 2
    shown = capsys.readouterr()
    assert what in shown.err and shown.out == "" and len(shown.err.strip().splitlines()) == 1


def test_a_file_without_the_asked_images_or_of_another_size_is_refused(digits: Path, tmp_path: Path, capsys) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((2, 5, 5)), y=[0, 1])
    arguments = ["accuracy", str(digits / "digits.onnx"), "--data", str(tmp_path / "a.npz"), "--eps", "0.1"]
    assert run([*arguments, "--split", "train"]) == 2
    assert "a.npz has no train images" in capsys.readouterr().err
    assert run(arguments) == 2
    assert "(1, 5, 5) but the network takes (1, 1, 8, 8)" in capsys.readouterr().err


def cases_of(x: np.ndarray, around: Perturbation) -> list[Case]:
    """The balls of images of class 0 of two."""
    return [ball(image, 0, around, around.eps, 2).cases[0] for image in x]


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2), ("l1", np.inf)])
def test_the_attack_reaches_the_least_margin_of_a_linear_network(tmp_path: Path, norm: str, dual: float) -> None:
    """min over ||d||_p <= eps of <w, x + d> = <w, x> - eps ||w||_q; the difference of two classes is w."""
    random = np.random.default_rng(1)
    w = random.normal(size=6)
    w[2] = 4.0  # one largest coordinate, for the l1 ball
    graph = verifier.load_onnx(dense_relu(tmp_path / "linear.onnx", np.stack([w, -w]), np.array([[1.0, -1.0], [0.0, 0.0]])))
    x = random.uniform(-1, 1, (4, 6)).astype(np.float32)
    labels = np.zeros(4, np.int64)
    found = attacked.attacked(graph, cases_of(x, Perturbation(0.3, norm)), labels, AttackConfig(restarts=2, steps=60)).margin
    exact = x.astype(np.float64) @ w - 0.3 * np.linalg.norm(w, dual)
    # An image that lost its label starts no more, and small last steps leave the surface of an l2 ball by their square.
    np.testing.assert_allclose(found, exact, rtol=2e-2, atol=2e-2)
    assert (found >= exact - 1e-4).all()


def test_the_attack_stays_inside_the_pixels(tmp_path: Path) -> None:
    graph = verifier.load_onnx(dense_relu(tmp_path / "a.onnx", np.eye(2), np.array([[1.0, 0.0], [0.0, 1.0]])))
    x = np.float32([[0.05, 0.0], [0.5, 0.0]])
    cases = cases_of(x, Perturbation(0.1, "linf", (0.0, 1.0)))
    found = attacked.attacked(graph, cases, np.zeros(2, np.int64), AttackConfig(restarts=3, steps=20))
    np.testing.assert_allclose(found.margin, [-0.1, 0.3], atol=1e-5)
    reached = np.maximum(found.x, 0) @ np.array([1.0, -1.0])
    np.testing.assert_allclose(reached, found.margin, atol=1e-6)


def test_measuring_in_pieces_changes_nothing(digits: Path, monkeypatch) -> None:
    data, graph = verifier.load_dataset("digits"), verifier.load_onnx(digits / "digits.onnx")
    around = Perturbation(0.02, "linf", (0.0, 1.0))
    whole = list(accuracy.measure_accuracy(graph, data.x_test[:3], data.y_test[:3], around, Config()))
    monkeypatch.setattr(certified, "SCREENED", 2)
    parts = list(accuracy.measure_accuracy(graph, data.x_test[:3], data.y_test[:3], around, Config()))
    assert [m.row.index for m in parts] == list(range(3))
    np.testing.assert_allclose([m.pgd_margin for m in whole], [m.pgd_margin for m in parts], rtol=0.2)
    with pytest.raises(VerifierError):
        list(accuracy.measure_accuracy(graph, data.x_test[:3], data.y_test[:3] + 9, around, Config()))


def test_what_the_attack_falsifies_is_falsified_and_not_searched(digits: Path, monkeypatch) -> None:
    """At a radius where no label stands: each image has a counterexample that the file confirms, and the solver is given nothing."""
    monkeypatch.setattr("verifier.solve.verify_many", lambda *given: pytest.fail("searched"))
    data, graph = verifier.load_dataset("digits"), verifier.load_onnx(digits / "digits.onnx")
    found = list(accuracy.measure_accuracy(graph, data.x_test[:5], data.y_test[:5], Perturbation(0.5, "linf", (0.0, 1.0)), Config()))
    assert [m.row.verdict.status for m in found] == [Status.FALSIFIED] * 5
    replay = verifier.OnnxRunner(graph.source)
    for m, label in zip(found, data.y_test[:5].tolist()):
        y = replay(m.row.verdict.counterexample.x).astype(float).reshape(-1)
        assert y[label] - np.delete(y, label).max() == pytest.approx(m.pgd_margin) and m.pgd_margin <= 0
        assert m.row.verdict.seconds > 0 and not m.survives
    told = Accuracy.of(found, 5)
    assert told.pgd.upper == told.provable.upper == 0


def test_a_point_that_the_file_does_not_confirm_falsifies_nothing(digits: Path, monkeypatch) -> None:
    """Sabotage: an attack that says that every label is lost at the image itself."""
    def lying(graph, cases, labels, *given) -> attacked.Attacked:
        return attacked.Attacked(np.full(len(cases), -1.0), np.stack([case.lower + case.upper for case in cases]).astype(np.float32) / 2)

    monkeypatch.setattr(attacked, "attacked", lying)
    data, graph = verifier.load_dataset("digits"), verifier.load_onnx(digits / "digits.onnx")
    found = list(accuracy.measure_accuracy(graph, data.x_test[:3], data.y_test[:3], Perturbation(0.01, "linf", (0.0, 1.0)), Config()))
    assert [m.row.verdict.status for m in found] == [Status.VERIFIED] * 3
    assert all(m.survives and m.pgd_margin == np.inf for m in found)


@st.composite
def outcomes(draw: st.DrawFn) -> ImageRow:
    """Any row: also what no run makes, as one that is falsified by the attack and left undecided by the search."""
    status = draw(st.sampled_from(list(Status)))
    margin = draw(st.one_of(st.floats(-1, 1), st.just(np.inf)))
    engine = draw(st.sampled_from(["PGD", "a corner of a bound", "CROWN"]))
    return ImageRow(0, 1, draw(st.sampled_from([1, 1, 1, 2])), Verdict(status, Reason.PROVED, "", 0.25, engine=engine), margin)


@given(st.lists(outcomes(), max_size=12), st.integers(0, 5))
def test_no_limit_of_certified_accuracy_exceeds_what_the_attack_leaves(rows: list[ImageRow], unreached: int) -> None:
    """For any rows, in the summaries of both commands; a proof of an image that the attack took is refused by name."""
    if any(row.verdict.status is Status.VERIFIED and not (row.correct and row.pgd_margin > 0) for row in rows):
        for summed in (lambda: Accuracy.of([Measured(row) for row in rows], len(rows)), lambda: Summary.of(rows)):
            with pytest.raises(VerifierError, match="a proof is wrong"):
                summed()
        return
    found = Accuracy.of([Measured(row) for row in rows], len(rows) + unreached)
    assert found.provable.lower <= found.pgd.lower <= found.clean.lower
    assert found.provable.lower <= found.provable.upper <= found.pgd.upper <= found.clean.upper
    assert found.certified + found.falsified + found.undecided == len(rows)
    shares = Summary.of(rows).as_dict()
    assert shares["certified_accuracy"] <= shares["certified_accuracy_upper"] <= shares["pgd_accuracy"] <= shares["clean_accuracy"]
