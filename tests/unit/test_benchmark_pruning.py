"""The Fashion-MNIST benchmark: its rows come back as they went, and its table tells both limits."""
from __future__ import annotations

import csv
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from benchmarks.pruning import DENSE, RESULTS, TUNE, Row, Run, methods, read_table
from benchmarks.rows import append_row, limited
from certprune.checkpoint import Architecture
from certprune.models import ModelSpec


def row(**given: object) -> Row:
    values = {f.name: "x" if f.type == "str" else 1 for f in fields(Row)}
    return Row(**(values | given))


def test_rows_become_a_table_with_both_limits_and_the_papers_numbers(tmp_path: Path) -> None:
    path = tmp_path / "rows" / "pruning.csv"
    shares = {"clean": 0.85, "pgd": 0.731, "unstable_crown": 1134.3, "seconds_per_image": 0.19, "images": 1000, "timeout_s": 2.0}
    append_row(path, row(training="adversarial", method="hydra", certified=0.682, certified_upper=0.737, **shares))
    append_row(path, row(training="certified", method="ours", certified=0.7, certified_upper=0.7, **shares))
    lines = read_table(path).splitlines()
    assert lines[2] == "| adversarial | hydra | 85.0 | 73.1 | 68.2 – 73.1 | 1,134 | 0.19 | 1000, 2 s | 81.5 / 77.2 / 33.5 |"
    assert lines[3] == "| certified | ours | 85.0 | 73.1 | 70.0 | 1,134 | 0.19 | 1000, 2 s |  |"
    assert len(lines) == 4


def test_the_readme_has_the_table_of_the_rows() -> None:
    text = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
    assert read_table(RESULTS) in text


@pytest.mark.parametrize("name", ["pruning", "methods"])
def test_no_measured_share_is_certified_that_an_attack_took(name: str) -> None:
    """The limit that is shown is at most PGD accuracy; a row that is certified beyond it would be a wrong proof."""
    with RESULTS.with_name(f"{name}.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["certified"]]
    assert len(rows) > 8
    for found in rows:
        shown = limited(found)
        assert float(shown["certified"]) <= float(shown["certified_upper"]) <= float(shown["pgd"]) <= float(shown["clean"])


@pytest.mark.parametrize("training", sorted(DENSE))
def test_every_method_is_tuned_at_the_same_radius_for_the_same_time(training: str) -> None:
    assert TUNE[training].eps == DENSE[training].eps == 0.1
    assert set(methods(training)) == set(methods("adversarial"))
    assert {how.scorer is None for how in methods(training).values()} == {True, False}


def test_a_network_made_by_other_settings_has_another_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    empty = torch.zeros(0)
    run = Run(tmp_path, (empty, empty), None, Architecture(ModelSpec("paper7"), (1, 28, 28), 10, (0.3,), (0.4,)))
    before = {method: run.path("adversarial", method, 0).name for method in ("dense", "hydra", "ours")}
    assert len(set(before.values())) == 3
    monkeypatch.setitem(TUNE, "adversarial", replace(TUNE["adversarial"], epochs=99))
    after = {method: run.path("adversarial", method, 0).name for method in before}
    assert {method for method in before if before[method] == after[method]} == {"dense"}
