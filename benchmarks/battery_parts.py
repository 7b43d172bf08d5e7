"""What the battery runs, in units of some seconds: each is counted by part and kind, and what was wrong is kept in full."""
from __future__ import annotations

import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tests.soundness import adversary, balls, drawn, pairs, problems, prover, verdicts
from tests.soundness.agreement import agreement
from tests.soundness.battery import outcomes, reason, subjects
from tests.soundness.test_traps import FAMILIES, float_bound, is_false
from tests.soundness.test_traps import verdicts as trap_verdicts
from tests.soundness.traps import Trap
from tests.soundness.verdicts import Outcome

ARITHMETICS = ("real", "float32")
WRONG = Path("runs") / "battery" / "wrong"
"""The files of problems that were answered wrongly."""
SEEDED = ("planted", "thresholds")
"""How the names of families of traps begin that are drawn by seeds; the others are whole lists."""


@dataclass(frozen=True)
class Unit:
    """Seeds `start` to `stop` of one kind of a part."""

    part: str
    kind: str
    start: int
    stop: int

    @property
    def name(self) -> str:
        return f"{self.part}|{self.kind}|{self.start}|{self.stop}"


@dataclass
class Found:
    """Counts by (part, kind), sentences about what was wrong with the names of their files, and rounded bounds' distances from exact ones."""

    counts: dict[tuple[str, str], Counter[str]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    slack: list[float] = field(default_factory=list)

    def add(self, part: str, kind: str, *names: str, by: int = 1) -> None:
        counter = self.counts.setdefault((part, kind), Counter())
        for name in names:
            counter[name] += by


def _answer(found: Found, part: str, outcome: Outcome, kind: str = "") -> None:
    """A verdict as the rows count it."""
    answer = f"unsat_{outcome.proved}" if outcome.answer == "unsat" else outcome.answer
    names = ["tried", answer] + ["clear"] * outcome.clear + ["clear_decided"] * (outcome.clear and outcome.decided) + ["wrong"] * bool(outcome.wrong)
    found.add(part, kind or outcome.family, *names)


def _problems(unit: Unit, folder: Path, found: Found) -> None:
    for seed in range(unit.start, unit.stop):
        problem = problems.problem(unit.kind, seed)
        outcome = verdicts.asked(problem, folder)
        _answer(found, "problems", outcome)
        if outcome.wrong:
            found.wrong.append(f"{outcome.problem}: {outcome.wrong}")
            WRONG.mkdir(parents=True, exist_ok=True)
            for name in ("problem.onnx", "problem.vnnlib"):
                shutil.copy(folder / name, WRONG / f"{outcome.problem.replace(' ', '-')}{Path(name).suffix}")


def _pairs(unit: Unit, folder: Path, found: Found) -> None:
    for seed in range(unit.start, unit.stop):
        first, other, clash = pairs.compared(unit.kind, seed, folder)
        for outcome in (first, other):
            _answer(found, "pairs", outcome)
            if outcome.wrong:
                found.wrong.append(f"pair {outcome.problem}: {outcome.wrong}")
        if clash:
            found.add("pairs", unit.kind, "wrong")
            found.wrong.append(f"pair {first.problem}: {clash}")


def _balls(unit: Unit, folder: Path, found: Found) -> None:
    for seed in range(unit.start, unit.stop):
        outcome = balls.asked(balls.ball_problem(seed), folder)
        _answer(found, "balls", outcome)
        if outcome.wrong:
            found.wrong.append(f"{outcome.problem}: {outcome.wrong}")


def _false_claims(unit: Unit, folder: Path, found: Found) -> None:
    for seed in range(unit.start, unit.stop):
        for attempt in adversary.FAMILIES[unit.kind](seed):
            for arithmetic, judgement in adversary.answers(attempt, folder):
                accepted = judgement.verdict == "accepted"
                found.add("false claims", f"{unit.kind}, {arithmetic}", "tried", "false_proofs" if accepted else f"refused_{reason(judgement)}")
                if accepted:
                    found.wrong.append(f"false claim {attempt.name}: accepted in {arithmetic}")


def _mutants(unit: Unit, folder: Path, found: Found) -> None:
    for seed in range(unit.start, unit.stop):
        made = prover.subjects(seed, unit.kind, folder / "proved") if unit.part.endswith("prover's") else subjects(seed, unit.kind)
        for subject in made:
            for outcome in outcomes(subject, folder / "mutants", seed, 1):
                part = unit.part + ("" if subject.true else ", false twins")
                counted = {"harmless": "accepted_true", "FALSE": "false_proofs"}.get(outcome.verdict, f"refused_{outcome.verdict}")
                found.add(part, outcome.kind, "tried", counted)
                if outcome.verdict == "FALSE":
                    found.wrong.append(f"mutant of {outcome.subject}: {outcome.kind}")


def _new(family: Callable, unit: Unit) -> Iterator[Trap]:
    """What the family has of `unit.stop` seeds and not yet of `unit.start`."""
    before = {trap.name for trap in family(unit.start)} if unit.start else set()
    yield from (trap for trap in family(unit.stop) if trap.name not in before)


def _traps(unit: Unit, folder: Path, found: Found) -> None:
    for trap in FAMILIES[unit.kind](1) if not unit.kind.startswith(SEEDED) else _new(FAMILIES[unit.kind], unit):
        for arithmetic, judgement in trap_verdicts(trap, folder):
            if is_false(trap, arithmetic):
                accepted = judgement.verdict == "accepted"
                found.add("made to fool", f"{unit.kind}, {arithmetic}", "tried", "false_proofs" if accepted else f"refused_{reason(judgement)}")
                if accepted:
                    found.wrong.append(f"made to fool, {trap.name}: accepted in {arithmetic}")
        for kind, arithmetic in ((np.float32, "real"), (np.float64, "float32")):
            if is_false(trap, arithmetic) and (arithmetic == "real" or trap.real) and "float64" not in trap.name:
                name = f"{unit.kind}, {arithmetic}, in {kind.__name__}"
                found.add("float bounds", name, "tried", "false_proofs" if float_bound(trap, kind) > 0 else "not_proved")


def _agreement(unit: Unit, folder: Path, found: Found) -> None:
    for seed in range(unit.start, unit.stop):
        for one in (agreement(s, folder) for s in subjects(seed, unit.kind)):
            same = one.rounded == one.exact and min(one.slack, default=0.0) >= 0
            found.add("agreement", unit.kind, "tried", "unlike" if not same else "alike" if one.aligned else "unaligned_alike")
            found.slack += one.slack
            if not same:
                found.wrong.append(f"agreement of {one.subject}: {one.rounded} and {one.exact}")


def _command(unit: Unit, folder: Path, found: Found) -> None:
    """Problems through the command line: its word is what `verify` said."""
    for seed in range(unit.start, unit.stop):
        problem = problems.problem(unit.kind, seed)
        inside = verdicts.asked(problem, folder)
        command = [sys.executable, "-m", "verifier.cli", "verify", str(folder / "problem.onnx"), str(folder / "problem.vnnlib"), "--timeout", "10"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        word = (done.stdout.split() or [""])[0]
        apart = {word, inside.answer} == {"sat", "unsat"} or "Traceback" in done.stderr
        found.add("command line", "a sample of the problems", "tried", *["wrong"] * apart)
        if apart:
            found.wrong.append(f"command line, {problem.name}: {word or done.stderr[-200:]!r}, and in the process {inside.answer}")


RUN: dict[str, Callable[[Unit, Path, Found], None]] = {
    "problems": _problems, "pairs": _pairs, "balls": _balls, "false claims": _false_claims, "mutants": _mutants, "mutants of the prover's": _mutants,
    "made to fool": _traps, "agreement": _agreement, "command line": _command,
}


def run_unit(unit: Unit, folder: Path) -> Found:
    found = Found()
    with np.errstate(all="ignore"):
        RUN[unit.part](unit, folder, found)
    return found


def units(share: float) -> Iterator[Unit]:
    """All units; `share` of the full number of seeds."""
    plan = [
        *(("problems", kind, 900, 15) for kind in drawn.FAMILIES), *(("pairs", kind, 120, 6) for kind in pairs.SPELLINGS),
        ("balls", "l1 and l2", 400, 20), ("false claims", "mixed", 600, 10), ("false claims", "absorbed", 1400, 40),
        ("false claims", "tiny", 150, 20),
        *(("mutants", kind, 2, 1) for kind in ARITHMETICS), *(("mutants of the prover's", kind, 2, 1) for kind in ARITHMETICS),
        *(("made to fool", kind, 15 if kind.startswith(SEEDED) else 1, 1) for kind in FAMILIES),
        *(("agreement", kind, 5, 1) for kind in ARITHMETICS), *(("command line", kind, 4, 1) for kind in drawn.FAMILIES),
    ]
    for part, kind, total, size in plan:
        last = max(1, round(total * share))
        for start in range(0, last, size):
            yield Unit(part, kind, start, min(last, start + size))
