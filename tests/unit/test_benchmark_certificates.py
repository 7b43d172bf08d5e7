"""The benchmark of proofs: rows survive the file, nothing is measured twice, the table tells what is lost and what is proved over the reals only."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.certificates import Answer, Options, Row, read_rows, run_all, run_command, table
from benchmarks.rows import Instance
from tests.small_models import IN_UNIT, absolute_value, vnnlib
from verifier.certificate.schema import Record, write_header, write_record

SAFE = [Instance("a", "abs.onnx", "never.vnnlib", 60.0, "unsat"), Instance("b", "abs.onnx", "hard.vnnlib", 60.0, "unsat")]


class Script:
    """Answers as the commands would: 5 s to prove, 0.5 to check; the second instance is proved over the reals only."""

    def __init__(self, stop_at: int | None = None, lost: bool = False) -> None:
        self.asked: list[tuple[str, ...]] = []
        self.stop_at, self.lost = stop_at, lost

    def __call__(self, arguments: Sequence[str], limit_s: float) -> Answer:
        self.asked.append(tuple(arguments))
        if len(self.asked) == self.stop_at:
            raise KeyboardInterrupt
        if arguments[0] == "check":
            return Answer({"accepted": True, "seconds": 0.25, "leaves": 3}, "fine", 0.5)
        hard = "hard" in arguments[2]
        if hard and self.lost:
            return Answer({"verdict": "unknown", "seconds": 4.0, "reason": "proof refused"}, "a leaf's margin is too small", 5.0)
        Path(arguments[arguments.index("--certificate") + 1]).write_bytes(b"x" * (300 if hard else 100))
        proved = {"proved": "real", "lacks": "0.1 at leaf 7"} if hard else {"proved": "float32", "lacks": None}
        return Answer({"verdict": "unsat", "seconds": 4.0, "reason": "proved"} | proved, "", 5.0)


def before(arguments: Sequence[str], limit_s: float) -> Answer:
    return Answer({"verdict": "unsat", "seconds": 1.0, "reason": "proved"}, "", 2.0)


@pytest.fixture
def options(tmp_path: Path) -> Options:
    return Options(root=tmp_path, out=tmp_path / "out" / "rows.csv", threads=1)


def test_rows_hold_what_was_measured(options) -> None:
    run_all(SAFE, options, Script(), before)
    rows = read_rows(options.out)
    assert [(row.vnnlib, row.proved, row.checked, row.bytes, row.accepted, row.sentence) for row in rows] == [
        ("never.vnnlib", "float32", "accepted", 100, True, ""), ("hard.vnnlib", "real", "accepted", 300, True, "0.1 at leaf 7"),
    ]  # fmt: skip
    assert {(row.before, row.before_wall_s, row.wall_s, row.timeout_s, row.threads) for row in rows} == {("unsat", 2.0, 5.0, 60.0, 1)}
    assert rows[0].check_wall_s == 0.5 and rows[0].leaves == 3 and all(row.commit and row.machine and row.date for row in rows)


@pytest.mark.parametrize("stop_at", range(1, 5))
def test_a_stopped_run_goes_on_and_measures_nothing_twice(options, stop_at: int) -> None:
    first, second = Script(stop_at), Script()
    with pytest.raises(KeyboardInterrupt):
        run_all(SAFE, options, first)
    there = len(read_rows(options.out))
    run_all(SAFE, options, second)
    assert len(read_rows(options.out)) == 2
    assert sum("--certificate" in asked for asked in second.asked) == 2 - there


def test_the_table_counts_and_names_what_is_weaker(options) -> None:
    run_all(SAFE, options, Script(), before)
    lines = table(read_rows(options.out)).splitlines()
    assert "| all | 2 | 2 | 1 | 2 | 0.10 | 2.50 (2.50) | 200 | 300 |" in lines
    assert "0 lost." in lines and "0 gained." in lines and "1 over the reals only." in lines
    assert lines[-1] == "- abs.onnx hard.vnnlib: unsat before, unsat now: 0.1 at leaf 7"


def test_without_an_earlier_version_there_is_no_ratio(options) -> None:
    run_all(SAFE, options, Script())
    assert "| all | 0 | 2 | 1 | 2 | 0.10 |  | 200 | 300 |" in table(read_rows(options.out)).splitlines()


def test_what_is_lost_is_named(options) -> None:
    run_all(SAFE, options, Script(lost=True), before)
    lines = table(read_rows(options.out)).splitlines()
    assert "1 lost." in lines and "| b | 1 | 0 | 0 | 0 | | | | |" in lines
    assert "- abs.onnx hard.vnnlib: unsat before, unknown now: proof refused: a leaf's margin is too small" in lines


def test_a_rejected_certificate_is_lost_and_says_why(options) -> None:
    def command(arguments: Sequence[str], limit_s: float) -> Answer:
        rejected = Answer({"accepted": False, "seconds": 0.1, "leaves": 1, "reason": "leaf 7"}, "", 0.2)
        return rejected if arguments[0] == "check" else Script()(arguments, limit_s)

    run_all(SAFE[:1], options, command, before)
    row: Row = read_rows(options.out)[0]
    assert (row.verdict, row.checked, row.sentence, row.accepted) == ("unsat", "rejected", "leaf 7", False)
    assert "1 lost." in table([row]) and "unsat now: leaf 7" in table([row])


def test_a_command_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    absolute_value(tmp_path / "abs.onnx")
    vnnlib(tmp_path / "never.vnnlib", *IN_UNIT, "(<= Y_0 -0.5)")
    problem, path = [str(tmp_path / "abs.onnx"), str(tmp_path / "never.vnnlib")], tmp_path / "other.cert"
    with path.open("wb") as file:
        write_header(file)
        write_record(file, Record("HEAD", {"arithmetic": "real", "model": "0", "property": "0", "prover": ""}, {}))
    answer = run_command(["check", *problem, str(path)], 60.0, 1)
    assert answer.said["accepted"] is False and answer.said["reason"] and answer.wall_s > answer.said["seconds"] >= 0
    wrong = run_command(["check", *problem, problem[0]], 60.0, 1)
    assert wrong.said == {} and "not a certificate" in wrong.sentence
