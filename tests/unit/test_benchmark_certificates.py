"""The benchmark of certificates: rows survive the file, nothing is measured twice, and the table tells what has no certificate and why."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.certificates import Answer, Arithmetic, Options, Row, read_rows, run_all, run_command, table
from benchmarks.rows import Instance
from tests.small_models import IN_UNIT, absolute_value, vnnlib
from verifier.certificate.schema import Record, write_header, write_record

SAFE = [Instance("a", "abs.onnx", "never.vnnlib", 60.0, "unsat"), Instance("b", "abs.onnx", "hard.vnnlib", 60.0, "unsat")]


class Script:
    """Answers as the commands would: 2 s to prove, 5 with a certificate, 0.5 to check; float32 loses the second instance."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.asked: list[tuple[str, ...]] = []
        self.stop_at = stop_at

    def __call__(self, arguments: Sequence[str], limit_s: float) -> Answer:
        self.asked.append(tuple(arguments))
        if len(self.asked) == self.stop_at:
            raise KeyboardInterrupt
        if arguments[0] == "check":
            return Answer({"accepted": True, "seconds": 0.25, "leaves": 3}, "fine", 0.5)
        if "--certificate" not in arguments:
            return Answer({"verdict": "unsat", "seconds": 1.0, "reason": "proved"}, "", 2.0)
        if "float32" in arguments and "hard" in arguments[2]:
            return Answer({"verdict": "unknown", "seconds": 4.0, "reason": "certificate"}, "a leaf's margin is too small", 5.0)
        Path(arguments[arguments.index("--certificate") + 1]).write_bytes(b"x" * (100 if "never" in arguments[2] else 300))
        return Answer({"verdict": "unsat", "seconds": 4.0, "reason": "proved"}, "", 5.0)


@pytest.fixture
def options(tmp_path: Path) -> Options:
    return Options(root=tmp_path, out=tmp_path / "out" / "rows.csv", threads=1)


def test_rows_hold_what_was_measured(options) -> None:
    run_all(SAFE, options, Script())
    rows = read_rows(options.out)
    assert [(row.vnnlib, row.arithmetic, row.checked, row.bytes, row.accepted) for row in rows] == [
        ("never.vnnlib", "real", "accepted", 100, True), ("never.vnnlib", "float32", "accepted", 100, True),
        ("hard.vnnlib", "real", "accepted", 300, True), ("hard.vnnlib", "float32", "", 0, False),
    ]  # fmt: skip
    assert {(row.plain, row.plain_wall_s, row.wall_s, row.timeout_s, row.threads) for row in rows} == {("unsat", 2.0, 5.0, 60.0, 1)}
    assert rows[0].check_wall_s == 0.5 and rows[0].leaves == 3 and rows[0].sentence == ""
    assert rows[3].sentence == "certificate: a leaf's margin is too small" and all(row.commit and row.machine and row.date for row in rows)


@pytest.mark.parametrize("stop_at", range(2, 10))
def test_a_stopped_run_goes_on_and_measures_nothing_twice(options, stop_at: int) -> None:
    """Wherever it stops: what has a row is not measured again, and the answer without a certificate is taken from the other arithmetic's row."""
    first, second = Script(stop_at), Script()
    with pytest.raises(KeyboardInterrupt):
        run_all(SAFE, options, first)
    before = len(read_rows(options.out))
    run_all(SAFE, options, second)
    assert len(read_rows(options.out)) == 4
    assert sum("--certificate" in asked for asked in second.asked) == 4 - before
    plain = [asked for asked in second.asked if asked[0] == "verify" and "--certificate" not in asked]
    assert len(plain) == sum(all(row.vnnlib != x.vnnlib for row in read_rows(options.out)[:before]) for x in SAFE)


def test_one_arithmetic_only(options) -> None:
    run_all(SAFE, replace(options, arithmetic=Arithmetic.FLOAT32), Script())
    assert {row.arithmetic for row in read_rows(options.out)} == {"float32"}


def test_the_table_counts_and_names_what_is_lost(options) -> None:
    run_all(SAFE, options, Script())
    lines = table(read_rows(options.out)).splitlines()
    assert "| all | real | 2 | 2 (100%) | 0.25 (0.25) | 2.50 (4.00) | 200 | 300 |" in lines
    assert "| b | float32 | 1 | 0 (0%) | | | | |" in lines
    assert "1 of 4 proofs have no accepted certificate." in lines
    assert lines[-1] == "- float32: abs.onnx hard.vnnlib: unknown: certificate: a leaf's margin is too small"


def test_a_rejected_certificate_is_lost_and_says_why(options) -> None:
    def command(arguments: Sequence[str], limit_s: float) -> Answer:
        rejected = Answer({"accepted": False, "seconds": 0.1, "leaves": 1, "reason": "leaf 7"}, "", 0.2)
        return rejected if arguments[0] == "check" else Script()(arguments, limit_s)

    run_all(SAFE[:1], options, command)
    row: Row = read_rows(options.out)[0]
    assert (row.verdict, row.checked, row.sentence, row.accepted) == ("unsat", "rejected", "leaf 7", False)
    assert "0 (0%)" in table([row]) and "unsat, rejected: leaf 7" in table([row])


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
