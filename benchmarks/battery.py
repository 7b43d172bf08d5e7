"""The soundness battery's counts: `python -m benchmarks.battery` writes results/battery.csv and prints it as a table.

Three parts: mutants of certificates, handmade and the prover's, of true claims and their false twins; certificates of networks made to fool a
verifier, beside what plain float bounds prove of the same claims; exact and rounded arithmetic side by side. An accepted certificate of a false
claim is what must not be.
"""
from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from benchmarks.rows import append_row, circumstances
from tests.soundness import prover
from tests.soundness.agreement import agreement
from tests.soundness.battery import Subject, outcomes, reason, subjects
from tests.soundness.test_traps import FAMILIES, float_bound, is_false, verdicts

RESULTS = Path(__file__).parent / "results" / "battery.csv"
ARITHMETICS = ("real", "float32")


@dataclass(frozen=True, slots=True)
class Row:
    """How many certificates of one kind were tried, why they were refused, and how many were accepted of a true claim or of a false one.

    Of the part `agreement`: how many certificates both arithmetics judge alike (`harmless`) or not (`false_accepted`), and exact minus rounded bound.
    Of the part `float bounds`, which have no checker: `false_accepted` are the false claims that they prove.
    """

    part: str
    kind: str
    tried: int
    hash: int
    bound: int
    cover: int
    form: int
    bytes: int
    harmless: int
    false_accepted: int
    slack_median: float | None
    slack_max: float | None
    commit: str
    machine: str
    date: str


def counted(part: str, kind: str, verdicts_: Counter[str], slack: np.ndarray | None = None) -> Row:
    now = circumstances("cpu", 1)
    counts = [verdicts_[name] for name in ("hash", "bound", "cover", "form", "bytes", "harmless", "FALSE")]
    sizes = (None, None) if slack is None else (float(np.median(slack)), float(slack.max()))
    return Row(part, kind, sum(counts), *counts, *sizes, now.commit, now.machine, now.date)


def made(seeds: int, folder: Path) -> Iterator[Subject]:
    """The handmade subjects of all seeds, then the prover's of the first ones."""
    for seed in range(seeds):
        for arithmetic in ARITHMETICS:
            yield from subjects(seed, arithmetic)
            if seed < 2:
                yield from prover.subjects(seed, arithmetic, folder)


def mutant_rows(seeds: int, each: int, folder: Path) -> Iterator[Row]:
    counts: dict[tuple[str, str], Counter[str]] = {}
    for subject in made(seeds, folder / "proved"):
        for outcome in outcomes(subject, folder / "mutants", seeds, each):
            part = ("mutants of the prover's" if subject.name.startswith("prover") else "mutants") + ("" if subject.true else ", false twins")
            counts.setdefault((part, outcome.kind), Counter())[outcome.verdict] += 1
    yield from (counted(*key, counts[key]) for key in sorted(counts))


def trap_rows(count: int, folder: Path) -> Iterator[Row]:
    for family, drawn in FAMILIES.items():
        traps = list(drawn(count))
        for arithmetic in ARITHMETICS:
            found: Counter[str] = Counter()
            for trap in traps:
                for own, judgement in verdicts(trap, folder):
                    if own == arithmetic and is_false(trap, arithmetic):
                        found["FALSE" if judgement.verdict == "accepted" else reason(judgement)] += 1
            yield counted("made to fool", f"{family}, false, {arithmetic}", found)
        for kind, arithmetic in ((np.float32, "real"), (np.float64, "float32")):
            false = [t for t in traps if is_false(t, arithmetic) and (arithmetic == "real" or t.real) and "float64" not in t.name]
            fooled = sum(float_bound(trap, kind) > 0 for trap in false)
            counts = Counter({"FALSE": fooled, "bound": len(false) - fooled})
            yield counted("float bounds", f"{family}, false, {arithmetic}, in {kind.__name__}", counts)


def agreement_rows(seeds: int, folder: Path) -> Iterator[Row]:
    for arithmetic in ARITHMETICS:
        found = [agreement(s, folder) for seed in range(seeds) for s in subjects(seed, arithmetic)]
        slack = np.concatenate([a.slack for a in found])
        alike = sum(a.rounded == a.exact and min(a.slack, default=0.0) >= 0 for a in found)
        yield counted("agreement", f"{arithmetic}, {len(slack)} bounds", Counter({"harmless": alike, "FALSE": len(found) - alike}), slack)


def main(
    seeds: Annotated[int, typer.Option(help="Seeds of the handmade subjects.")] = 3,
    each: Annotated[int, typer.Option(help="Mutants of each kind and subject.")] = 1,
) -> None:
    """Runs the whole battery: some minutes."""
    RESULTS.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as name, np.errstate(all="ignore"):
        folder = Path(name)
        for rows in (trap_rows(5 * seeds, folder), agreement_rows(max(5, seeds), folder), mutant_rows(seeds, each, folder)):
            for row in rows:
                append_row(RESULTS, row)
                slack = "" if row.slack_median is None else f"  slack median {row.slack_median:.1e}, largest {row.slack_max:.1e}"
                refused = f"{row.hash:5}{row.bound:6}{row.cover:6}{row.form:6}{row.bytes:6} refused"
                print(f"{row.part:38}{row.kind:48}{row.tried:6} tried {refused} {row.harmless:6} harmless {row.false_accepted:4} FALSE" + slack)


if __name__ == "__main__":
    typer.run(main)
