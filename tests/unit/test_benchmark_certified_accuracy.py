"""The benchmark of certified accuracy with and without certificates: rows of a real network, and their table."""
from __future__ import annotations

import csv
from pathlib import Path

from benchmarks.certified_accuracy import Options, measure, table
from benchmarks.rows import append_row

DIGITS = Path(__file__).resolve().parents[2] / "examples" / "digits" / "digits.onnx"


def test_a_row_counts_the_images_that_carry_certificates(tmp_path: Path) -> None:
    options = Options(models=[DIGITS], data="digits", eps="0.02", limit=2, timeout=20.0)
    row = measure(DIGITS, "real", options)
    assert (row.images, row.certified, row.certificates, row.network) == (2, 1.0, "real", "digits")
    assert row.bytes > 0
    append_row(tmp_path / "rows.csv", row)
    with (tmp_path / "rows.csv").open(newline="") as file:
        lines = table(list(csv.DictReader(file))).splitlines()
    assert lines[2].startswith("| digits, 0.02 | digits | 100.0 | real | 100.0 – 100.0 |")
    assert lines[2].split("|")[-2].strip() == f"{row.bytes / 2000:.1f}"
