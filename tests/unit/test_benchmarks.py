"""The benchmark runner: rows survive the file, a stopped run goes on, a contradiction and a false witness are seen."""
from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.rows import Instance, Row, read_instances, read_rows
from benchmarks.vnncomp import Options, Outcome, in_own_process, in_this_process, report, run_all
from benchmarks.witness import witness_holds
from tests.small_models import IN_UNIT, absolute_value, vnnlib

ANSWER = {"verdict": "unsat", "reason": "proved", "seconds": 0.1, "domains": 2, "engine": "scripted", "lower_bound": None, "witness": None}


@pytest.fixture
def options(tmp_path: Path) -> Options:
    """A folder of three instances: |x| <= -0.5 (never), |x| >= 0.5 (somewhere), and a property that cannot be read."""
    absolute_value(tmp_path / "abs.onnx")
    vnnlib(tmp_path / "never.vnnlib", *IN_UNIT, "(<= Y_0 -0.5)")
    vnnlib(tmp_path / "some.vnnlib", *IN_UNIT, "(>= Y_0 0.5)")
    (tmp_path / "broken.vnnlib").write_text("(assert")
    with (tmp_path / "instances.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["benchmark", "onnx", "vnnlib", "timeout_s", "expected", "tools_agreeing"])
        for family, prop, expected in (("a", "never", "unsat"), ("a", "some", "sat"), ("b", "broken", "unknown")):
            writer.writerow([family, "abs.onnx", f"{prop}.vnnlib", "60", expected, "3"])
    return Options(root=tmp_path, out=tmp_path / "out" / "rows.csv", device="cpu", threads=1)


def instances(options: Options, families: str = "") -> list[Instance]:
    return read_instances(options.root / "instances.csv", {name for name in families.split(",") if name})


def test_families_choose_instances(options) -> None:
    assert [x.vnnlib for x in instances(options, "a")] == ["never.vnnlib", "some.vnnlib"]
    assert len(instances(options)) == 3


def test_a_stopped_run_goes_on_and_measures_nothing_twice(options) -> None:
    measured = []

    def measure(instance: Instance, given: Options) -> Outcome:
        measured.append(instance.vnnlib)
        if measured == ["never.vnnlib", "some.vnnlib"]:
            raise KeyboardInterrupt
        return Outcome(ANSWER, 0.5, 1000)

    with pytest.raises(KeyboardInterrupt):
        run_all(instances(options), options, measure)
    run_all(instances(options), replace(options, timeout=7.0), measure)
    assert measured == ["never.vnnlib", "some.vnnlib", "some.vnnlib", "broken.vnnlib"]
    rows = read_rows(options.out)
    assert [(row.vnnlib, row.timeout_s, row.wall_s, row.peak_bytes) for row in rows] == [
        ("never.vnnlib", 60.0, 0.5, 1000), ("some.vnnlib", 7.0, 0.5, 1000), ("broken.vnnlib", 7.0, 0.5, 1000),
    ]  # fmt: skip
    assert all(row.machine and row.commit and row.date and row.device == "cpu" for row in rows)


def test_contradictions_and_errors_are_reported(options) -> None:
    answers = {
        "never.vnnlib": ANSWER | {"verdict": "sat", "witness": {"x": [0.0]}},
        "some.vnnlib": ANSWER,
        "broken.vnnlib": ANSWER | {"verdict": "error", "reason": "No such thing."},
    }
    run_all(instances(options), options, lambda instance, given: Outcome(answers[instance.vnnlib], 0.5, 0))
    rows = read_rows(options.out)
    assert [row.contradicts() for row in rows] == [True, True, False]
    assert rows[0].witness == "invalid"
    text = report(rows)
    assert text.count("CONTRADICTION") == 2 and "sat (invalid witness), expected unsat" in text
    assert "error: abs.onnx broken.vnnlib: error, expected unknown: No such thing." in text
    counts = [" ".join(line.split()[:5]) for line in text.splitlines()[1:4]]
    assert counts == ["a 2 2 1 1", "b 1 0 0 0", "all 3 2 1 1"]


def test_an_expected_sat_with_a_false_witness_is_a_contradiction(options) -> None:
    false = ANSWER | {"verdict": "sat", "witness": {"x": [0.1]}}
    run_all(instances(options)[1:2], options, lambda instance, given: Outcome(false, 0.5, 0))
    (row,) = read_rows(options.out)
    assert (row.verdict, row.expected, row.witness, row.contradicts()) == ("sat", "sat", "invalid", True)


@pytest.mark.parametrize(("x", "holds"), [(0.75, True), (-0.5, True), (0.4, False), (1.5, False)])
def test_a_witness_is_judged_by_region_and_output(options, x: float, holds: bool) -> None:
    assert witness_holds(options.root / "abs.onnx", options.root / "some.vnnlib", [x]) is holds


@pytest.mark.parametrize("measure", [in_this_process, in_own_process])
def test_real_runs(options, measure) -> None:
    run_all(instances(options), options, measure)
    rows: list[Row] = read_rows(options.out)
    assert [(row.verdict, row.witness) for row in rows] == [("unsat", ""), ("sat", "valid"), ("error", "")]
    assert "broken.vnnlib" in rows[2].reason
    assert not any(row.contradicts() for row in rows)
    assert all((row.peak_bytes > 10**7) == (measure is in_own_process) for row in rows)
