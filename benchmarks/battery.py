"""The soundness battery: `python -m benchmarks.battery` (or `make battery`) writes results/battery.csv, one row a part and kind.

Parts: random problems through `verify`, pairs of spellings of one problem, false claims with favourable certificates, mutants of certificates,
networks made to fool a verifier beside what plain float bounds prove of them, exact and rounded arithmetic side by side, a sample through the command
line. A wrong verdict or an accepted false certificate is what must not be: each is printed, and the exit status is 1.

Units that are done are kept in runs/battery until the tree changes: a run that was stopped goes on where it was.
"""
from __future__ import annotations

import json
import multiprocessing
import os
import signal
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmarks.battery_parts import Found, Unit, run_unit, units
from benchmarks.rows import append_row, circumstances

RESULTS = Path(__file__).parent / "results" / "battery.csv"
KEPT = Path("runs") / "battery" / "units.jsonl"


@dataclass(frozen=True, slots=True)
class Row:
    """Counts of one kind; a column that a part does not have is empty.

    Verdicts (problems, pairs): how many were tried, of how many the distance to the truth is `clear` and how many of these were decided; the
    answers; how many were wrong. Certificates: why they were refused, how many were accepted of true claims, and how many prove false ones. Float
    bounds, which have no checker: which false claims they prove. Agreement: how many distinct problems, and whether both arithmetics judge them
    alike with no rounded bound above the exact one; of unaligned ones, whose bounds are not the same ones in both, only the verdict is compared.
    Slack is exact minus rounded bound.
    """

    part: str
    kind: str
    tried: int
    clear: int | None = None
    clear_decided: int | None = None
    unsat_float32: int | None = None
    unsat_real: int | None = None
    sat: int | None = None
    unknown: int | None = None
    refused: int | None = None
    crash: int | None = None
    wrong: int | None = None
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
    slack_median: float | None = None
    slack_max: float | None = None
    commit: str = ""
    machine: str = ""
    date: str = ""


VERDICTS = ("clear", "clear_decided", "unsat_float32", "unsat_real", "sat", "unknown", "refused", "crash", "wrong")
CERTIFICATES = ("refused_hash", "refused_bound", "refused_cover", "refused_form", "refused_bytes", "accepted_true", "false_proofs")
COLUMNS = {"problems": VERDICTS, "pairs": VERDICTS, "balls": VERDICTS, "command line": ("wrong",), "float bounds": ("false_proofs", "not_proved"),
           "agreement": ("alike", "unaligned_alike", "unlike")}


def rows(done: list[Found]) -> Iterator[Row]:
    """One row a part and kind, the parts in the order in which they came."""
    total: dict[tuple[str, str], Counter[str]] = {}
    for found in done:
        for key, counts in found.counts.items():
            total.setdefault(key, Counter()).update(counts)
    slack, now = np.concatenate([np.zeros(0), *(found.slack for found in done)]), circumstances("cpu", 1)
    for (part, kind), counts in sorted(total.items()):
        numbers: dict[str, Any] = {name: counts[name] for name in COLUMNS.get(part, CERTIFICATES)}
        if part == "agreement" and len(slack):
            numbers |= {"slack_median": float(np.median(slack)), "slack_max": float(slack.max())}
        yield Row(part, kind, counts["tried"], **numbers, commit=now.commit, machine=now.machine, date=now.date)


def _alone() -> None:
    """A worker: Ctrl-C is its parent's business, and one thread is enough."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def _worked(unit: Unit) -> tuple[Unit, Found]:
    with tempfile.TemporaryDirectory() as folder:
        return unit, run_unit(unit, Path(folder))


def _kept(path: Path, commit: str) -> dict[str, Found]:
    """What an earlier run of the same tree has done, by the unit's name."""
    if not path.exists():
        return {}
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    found = {}
    for line in lines:
        if line["commit"] == commit:
            counts = {tuple(key.split("|", 1)): Counter(value) for key, value in line["counts"].items()}
            found[line["unit"]] = Found(counts, line["wrong"], line["slack"])
    return found


def _keep(path: Path, commit: str, unit: Unit, found: Found) -> None:
    counts = {"|".join(key): dict(value) for key, value in found.counts.items()}
    with path.open("a") as file:
        file.write(json.dumps({"commit": commit, "unit": unit.name, "counts": counts, "wrong": found.wrong, "slack": found.slack}) + "\n")


def run(wanted: list[Unit], processes: int, kept: Path, anew: bool) -> list[Found]:
    """The units' counts, those kept among them; after Ctrl-C what was done until then."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    commit = circumstances("cpu", 1).commit
    kept.parent.mkdir(parents=True, exist_ok=True)
    before = {} if anew else _kept(kept, commit)
    done = [before[unit.name] for unit in wanted if unit.name in before]
    left = [unit for unit in wanted if unit.name not in before]
    if not before:
        kept.unlink(missing_ok=True)
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _alone)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns) as progress:
        bar = progress.add_task("units", total=len(wanted), completed=len(done))
        try:
            for future in as_completed([pool.submit(_worked, unit) for unit in left]):
                unit, found = future.result()
                _keep(kept, commit, unit, found)
                done.append(found)
                for sentence in found.wrong:
                    progress.console.print(f"WRONG {sentence}", markup=False)
                progress.advance(bar)
        except KeyboardInterrupt:
            progress.console.print("Stopped: the same command goes on from here.")
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    return done


def main(
    share: Annotated[float, typer.Option(help="Of the full number of cases.")] = 1.0,
    processes: Annotated[int, typer.Option(help="0: one a core.")] = 0,
    only: Annotated[str, typer.Option(help="Only the parts whose names begin so.")] = "",
    anew: Annotated[bool, typer.Option(help="Forget what an earlier run has done.")] = False,
    out: Annotated[Path, typer.Option(help="Where the rows go.")] = RESULTS,
) -> None:
    """Runs the battery."""
    wanted = [unit for unit in units(share) if unit.part.startswith(only)]
    done = run(wanted, processes or os.cpu_count() or 1, KEPT, anew)
    out.unlink(missing_ok=True)
    total: Counter[str] = Counter()
    for row in rows(done):
        append_row(out, row)
        numbers = {name: value for name in Row.__dataclass_fields__ if (value := getattr(row, name)) and name not in ("commit", "machine", "date")}
        total.update({name: value for name, value in numbers.items() if isinstance(value, int) and row.part != "float bounds"})
        shown = [f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in list(numbers.items())[2:]]
        print(f"{row.part:38}{row.kind:48}" + "  ".join(shown))
    wrong = [sentence for found in done for sentence in found.wrong]
    decided = f"{total['clear_decided']:,} of {total['clear']:,} ({total['clear_decided'] / max(1, total['clear']):.1%})"
    print(f"{total['tried']:,} cases, {len(wanted) - len(done)} units left; {len(wrong)} wrong; decided where the distance is clear: {decided}")
    print(*(f"WRONG {sentence}" for sentence in wrong), sep="\n")
    raise typer.Exit(1 if wrong else 0)


if __name__ == "__main__":
    typer.run(main)
