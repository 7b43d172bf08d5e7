"""The soundness battery's counts: `python -m benchmarks.battery` writes results/battery.csv and prints it as a table.

Three parts: mutants of certificates, handmade and the prover's, of true claims and their false twins; certificates of networks made to fool a
verifier, beside what plain float bounds prove of the same claims; exact and rounded arithmetic side by side. An accepted certificate of a false
claim is what must not be.
"""
from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

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
    """Counts of one kind; a column that a part does not have is empty.

    Certificates (mutants, made to fool): how many were tried, why they were refused, how many were accepted of true claims, and how many prove
    false ones. Float bounds, which have no checker: how many false claims were tried, and which of them are proved. Agreement: how many distinct
    problems, and whether both arithmetics judge them alike with no rounded bound above the exact one; of unaligned ones, whose bounds are not the
    same ones in both, only the verdict is compared. Slack is exact minus rounded bound, of the `bounds` compared.
    """

    part: str
    kind: str
    tried: int
    refused_hash: int | None = None
    refused_bound: int | None = None
    refused_cover: int | None = None
    refused_form: int | None = None
    refused_bytes: int | None = None
    accepted_true: int | None = None
    false_proofs: int | None = None
    not_proved: int | None = None
    alike: int | None = None
    unaligned_alike: int | None = None
    unlike: int | None = None
    bounds: int | None = None
    slack_median: float | None = None
    slack_max: float | None = None
    commit: str = ""
    machine: str = ""
    date: str = ""


def dated(part: str, kind: str, tried: int, **numbers: Any) -> Row:
    now = circumstances("cpu", 1)
    return Row(part, kind, tried, **numbers, commit=now.commit, machine=now.machine, date=now.date)


def counted(part: str, kind: str, verdicts_: Counter[str]) -> Row:
    refused = {f"refused_{name}": verdicts_[name] for name in ("hash", "bound", "cover", "form", "bytes")}
    return dated(part, kind, verdicts_.total(), **refused, accepted_true=verdicts_["harmless"], false_proofs=verdicts_["FALSE"])


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
            yield dated("float bounds", f"{family}, false, {arithmetic}, in {kind.__name__}", len(false), false_proofs=fooled,
                        not_proved=len(false) - fooled)


def agreement_rows(seeds: int, folder: Path) -> Iterator[Row]:
    """Each arithmetic has seeds of its own, so that no problem counts twice; true claims and false twins."""
    for k, arithmetic in enumerate(ARITHMETICS):
        found = [agreement(s, folder) for seed in range(k * seeds, (k + 1) * seeds) for s in subjects(seed, arithmetic)]
        same = [a for a in found if a.rounded == a.exact and min(a.slack, default=0.0) >= 0]
        aligned, slack = sum(a.aligned for a in same), np.concatenate([a.slack for a in found])
        yield dated("agreement", arithmetic, len(found), alike=aligned, unaligned_alike=len(same) - aligned, unlike=len(found) - len(same),
                    bounds=len(slack), slack_median=float(np.median(slack)), slack_max=float(slack.max()))


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
                numbers = {name: value for name, value in list(asdict(row).items())[2:-3] if value}
                print(f"{row.part:38}{row.kind:48}" + "  ".join(f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
                                                                for name, value in numbers.items()))


if __name__ == "__main__":
    typer.run(main)
