"""Proofs over a VNN-COMP folder: which arithmetic they are about, what they cost beside an earlier version, and that a stranger's check accepts them.

python -m benchmarks.certificates run --families acasxu,test --timeout 60 --before /path/to/earlier/bin/verifier
python -m benchmarks.certificates table

Every instance that is expected to be safe is proved, its certificate is kept and checked by a process of its own. `--before` names the command
of an earlier version, which then runs right before: the ratio is of whole processes of one run. A run that was stopped goes on where it stopped.
"""
from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

from benchmarks.rows import Circumstances, Instance, append_row, circumstances, read_instances
from verifier.options import Arithmetic, takes

ROWS = Path(__file__).parent / "results" / "certificates.csv"
KILL_AFTER_S = 10.0  # past its own time-out a process that still runs is ended; the verifier promises two seconds
CHECK_LIMIT_S = 600.0
Csv = Annotated[Path, typer.Option(help="CSV file of the rows.")]


@dataclass(frozen=True, kw_only=True)
class Options:
    root: Annotated[Path, typer.Option(help="Folder with instances.csv.", exists=True, file_okay=False)] = Path("../shared/vnncomp")
    out: Csv = ROWS
    families: Annotated[str, typer.Option(help="Which benchmarks, with commas between; all by default.")] = ""
    arithmetic: Annotated[Arithmetic, typer.Option(help="As in `verifier verify`.")] = Arithmetic.AUTO
    timeout: Annotated[float, typer.Option(help="Seconds for each proof.")] = 60.0
    threads: Annotated[int, typer.Option(help="Threads of torch and numpy.")] = os.cpu_count() or 1
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many instances of each benchmark.")] = None
    before: Annotated[Path | None, typer.Option(help="The `verifier` of an earlier version, to compare with; without it only this one runs.")] = None


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    out: Csv = ROWS


@dataclass(frozen=True, slots=True)
class Row:
    """One instance. `before` is the earlier version's verdict, empty where none ran; `checked` the checker's word; `proved` the arithmetic.

    `*_wall_s` is of a whole process, `*_s` what it says of itself. `sentence` tells what is lacking: an accepted proof, or the model's arithmetic.
    """

    benchmark: str
    onnx: str
    vnnlib: str
    before: str
    before_wall_s: float
    before_s: float
    verdict: str
    proved: str
    wall_s: float
    seconds: float
    checked: str
    check_wall_s: float
    check_s: float
    bytes: int
    leaves: int
    sentence: str
    timeout_s: float
    commit: str
    device: str
    threads: int
    machine: str
    date: str

    @property
    def accepted(self) -> bool:
        return self.verdict == "unsat" and self.checked == "accepted"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command of the verifier printed as JSON, `{}` where it printed none; the last sentence of stderr; its wall time."""

    said: dict[str, Any]
    sentence: str
    wall_s: float


Command = Callable[[Sequence[str], float], Answer]


THIS = Path(sys.executable).with_name("verifier")


def run_command(arguments: Sequence[str], limit_s: float, threads: int, program: Path = THIS) -> Answer:
    """`verifier ARGUMENTS --json` as a child of this or another version, ended by force after `limit_s`."""
    environment = {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))}
    started, whole = time.monotonic(), [str(program), *arguments, "--json"]
    try:
        done = subprocess.run(whole, capture_output=True, text=True, env=environment, timeout=limit_s)
    except subprocess.TimeoutExpired:
        return Answer({}, f"ended after {limit_s:g} s", time.monotonic() - started)
    wall_s = time.monotonic() - started
    last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode} without a word"])[-1]
    return Answer(json.loads(done.stdout) if done.stdout.strip() else {}, last, wall_s)


def measure(instance: Instance, options: Options, command: Command, earlier: Command | None) -> dict[str, Any]:
    """The measured columns of one row."""
    problem = [str(options.root / instance.onnx), str(options.root / instance.vnnlib)]
    limits, limit_s = ["--timeout", str(options.timeout), "--device", "cpu"], options.timeout + KILL_AFTER_S
    before = earlier(["verify", *problem, *limits], limit_s) if earlier is not None else None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "proof.cert"
        kept = ["--certificate", str(path), "--arithmetic", options.arithmetic.value]
        proved = command(["verify", *problem, *limits, *kept], limit_s)
        size = path.stat().st_size if path.exists() else 0
        checked = command(["check", *problem, str(path)], CHECK_LIMIT_S) if size else Answer({}, "", 0.0)
    said, verdict = proved.said, proved.said.get("verdict", "error")
    word = "" if not size else {True: "accepted", False: "rejected", None: "error"}[checked.said.get("accepted")]
    lacks = said.get("lacks") or ""
    if (verdict, word) != ("unsat", "accepted"):
        lacks = f"{said.get('reason', '')}: {proved.sentence}".removeprefix(": ")
    return {
        "before": "" if before is None else before.said.get("verdict", "error"), "before_wall_s": 0.0 if before is None else round(before.wall_s, 3),
        "before_s": 0.0 if before is None else before.said.get("seconds", 0.0), "verdict": verdict, "proved": said.get("proved", ""),
        "wall_s": round(proved.wall_s, 3), "seconds": said.get("seconds", 0.0), "checked": word, "check_wall_s": round(checked.wall_s, 3),
        "check_s": checked.said.get("seconds", 0.0), "bytes": size, "leaves": checked.said.get("leaves", 0),
        "sentence": (checked.said.get("reason") or checked.sentence) if word in ("rejected", "error") else lacks, "timeout_s": options.timeout,
    }  # fmt: skip


def run_all(instances: list[Instance], options: Options, command: Command, earlier: Command | None = None) -> None:
    """Measures every instance that has no row yet, and appends its row."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    done = {(row.onnx, row.vnnlib) for row in read_rows(options.out)}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns) as bar:
        task = bar.add_task("", total=len(instances))
        for instance in instances:
            bar.update(task, description=f"{instance.benchmark} {Path(instance.onnx).name[:40]}")
            if (instance.onnx, instance.vnnlib) not in done:
                now: Circumstances = circumstances("cpu", options.threads)
                measured = measure(instance, options, command, earlier)
                row = Row(benchmark=instance.benchmark, onnx=instance.onnx, vnnlib=instance.vnnlib, **measured, **asdict(now))
                append_row(options.out, row)
                text = f"{row.before:8} {row.before_wall_s:7.2f} s  {row.verdict:8} {row.wall_s:7.2f} s  {row.proved:7} {row.checked:8}"
                bar.print(f"{text} {row.bytes:10d} B  {row.onnx} {row.vnnlib}", highlight=False)
            bar.advance(task)


def read_rows(path: Path) -> list[Row]:
    """The rows measured so far; none where there is no file yet."""
    if not path.exists():
        return []
    kinds = {"int": int, "float": float, "str": str}
    with path.open(newline="") as file:
        return [Row(**{f.name: kinds[f.type](line[f.name]) for f in fields(Row)}) for line in csv.DictReader(file)]


def table(rows: list[Row]) -> str:
    """A line of Markdown for each family, then what was lost or gained beside the earlier version, and what is proved over the reals only, and why.

    The ratios are medians over the family's members: seconds to check over seconds to prove, and seconds now over seconds before (of what both
    proved; the largest in brackets), in whole processes.
    """
    head = "| family | proved before | proved | own arithmetic | accepted | check / prove | now / before (largest) | bytes, median | largest |"
    lines, families = [head, "|---" * 9 + "|"], list(dict.fromkeys(row.benchmark for row in rows))
    lines += [_line(name, [row for row in rows if name in (row.benchmark, "all")]) for name in [*families, "all"]]
    lost = [row for row in rows if row.before == "unsat" and not row.accepted]
    gained = [row for row in rows if row.before not in ("", "unsat") and row.accepted]
    weaker = [row for row in rows if row.accepted and row.proved == "real"]
    for title, found in (("lost", lost), ("gained", gained), ("over the reals only", weaker)):
        lines += ["", f"{len(found)} {title}."]
        lines += [f"- {row.onnx} {row.vnnlib}: {row.before or '-'} before, {row.verdict} now: {row.sentence}".rstrip(": ") for row in found]
    return "\n".join(lines)


def _line(name: str, members: list[Row]) -> str:
    accepted = [row for row in members if row.accepted]
    own, before = [row for row in accepted if row.proved != "real"], sum(row.before == "unsat" for row in members)
    start = f"| {name} | {before} | {sum(row.verdict == 'unsat' for row in members)} | {len(own)} | {len(accepted)} |"
    if not accepted:
        return f"{start} | | | |"
    check = median(row.check_wall_s / max(row.wall_s, 1e-3) for row in accepted)
    both = [row.wall_s / max(row.before_wall_s, 1e-3) for row in accepted if row.before == "unsat"]
    ratio = f"{median(both):.2f} ({max(both):.2f})" if both else ""
    sizes = [row.bytes for row in accepted]
    return f"{start} {check:.2f} | {ratio} | {median(sizes):,.0f} | {max(sizes):,} |"


app = typer.Typer(add_completion=False)


@app.command()
@takes(Options)
def run(options: Options) -> None:
    """Measure the instances that are expected to be safe."""
    families = {name for name in options.families.split(",") if name}
    safe = [x for x in read_instances(options.root / "instances.csv", families) if x.expected == "unsat"]
    if not safe:
        raise typer.BadParameter(f"{options.root / 'instances.csv'} has no safe instance of {options.families or 'any benchmark'}.")
    if options.limit is not None:
        safe = [x for k, x in enumerate(safe) if sum(y.benchmark == x.benchmark for y in safe[:k]) < options.limit]
    earlier = None if options.before is None else (lambda arguments, limit_s: run_command(arguments, limit_s, options.threads, options.before))
    try:
        run_all(safe, options, lambda arguments, limit_s: run_command(arguments, limit_s, options.threads), earlier)
    except KeyboardInterrupt:
        print("Stopped: the same command goes on from here.")
    print(table(read_rows(options.out)))


@app.command(name="table")
@takes(TableOptions)
def table_(options: TableOptions) -> None:
    """Print what was measured as Markdown."""
    rows = read_rows(options.out)
    if not rows:
        raise typer.BadParameter(f"{options.out} has no rows: `python -m benchmarks.certificates run` measures them.")
    print(table(rows))


if __name__ == "__main__":
    app()
