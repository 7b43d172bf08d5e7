"""One row an instance, with the circumstances it was measured in, in a CSV file that grows as the run goes on."""
from __future__ import annotations

import csv
import datetime
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Instance:
    """One line of an `instances.csv`; paths as written there. `expected` is unsat, sat or unknown."""

    benchmark: str
    onnx: str
    vnnlib: str
    timeout_s: float
    expected: str


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What a time means nothing without."""

    commit: str
    device: str
    threads: int
    machine: str
    date: str


@dataclass(frozen=True, slots=True)
class Row:
    """A verdict of the competition's words, or `error` with the sentence as reason.

    `witness` is valid, invalid or empty; `proved` is the arithmetic of the accepted proof.
    """

    benchmark: str
    onnx: str
    vnnlib: str
    expected: str
    verdict: str
    reason: str
    proved: str
    witness: str
    seconds: float
    wall_s: float
    domains: int
    engine: str
    lower_bound: float | None
    peak_bytes: int
    commit: str
    device: str
    threads: int
    machine: str
    timeout_s: float
    date: str

    def contradicts(self) -> bool:
        """Whether the verdict is not what was expected, or its witness does not hold."""
        return self.witness == "invalid" or {self.verdict, self.expected} == {"sat", "unsat"}

    def decided(self) -> bool:
        return self.verdict in ("sat", "unsat")


_NUMBERS = {"seconds": float, "wall_s": float, "timeout_s": float, "domains": int, "peak_bytes": int, "threads": int}


def read_instances(path: Path, families: set[str]) -> list[Instance]:
    """The instances of the families; of all for an empty set."""
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    chosen = [line for line in lines if not families or line["benchmark"] in families]
    return [Instance(x["benchmark"], x["onnx"], x["vnnlib"], float(x["timeout_s"]), x["expected"]) for x in chosen]


def read_rows(path: Path) -> list[Row]:
    """The rows measured so far; none where there is no file yet."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    return [_row(line) for line in lines]


def _row(line: dict[str, str]) -> Row:
    line = {"proved": ""} | line
    values = {name: _NUMBERS[name](text) if name in _NUMBERS else text for name, text in line.items()}
    values["lower_bound"] = float(line["lower_bound"]) if line["lower_bound"] else None
    return Row(**values)


def append_row(path: Path, row: Any) -> None:
    """Adds the row, a dataclass's value, with the names of its columns above the first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(row)])
        if new:
            writer.writeheader()
        writer.writerow({name: "" if value is None else value for name, value in asdict(row).items()})


def limited(row: Mapping[str, str]) -> dict[str, str]:
    """The row with `certified_upper` at most `pgd`, where it has both: of the same images, those whose label an attack took cannot be certified.

    Older rows counted an image as undecided that only an attack, made beside the verifier's own, had falsified.
    """
    upper, pgd = (row.get(key, "") for key in ("certified_upper", "pgd"))
    return dict(row) | ({"certified_upper": pgd} if upper and pgd and float(pgd) < float(upper) else {})


def circumstances(device: str, threads: int) -> Circumstances:
    """Those of now and here."""
    commit = _git("rev-parse", "--short", "HEAD") + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    return Circumstances(commit, device, threads, _processor(), datetime.datetime.now().isoformat(timespec="seconds"))


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip()


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
