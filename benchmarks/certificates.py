"""Certificates over a VNN-COMP folder: what they cost to write and to check, how large they are, and which proofs get none.

python -m benchmarks.certificates run --families acasxu,test --timeout 60
python -m benchmarks.certificates table

An instance that is expected to be safe is verified without a certificate, then for each arithmetic with one, which a process of its own checks.
A run that was stopped goes on where it stopped.
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
from enum import Enum
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

from benchmarks.rows import Circumstances, Instance, append_row, circumstances, read_instances
from verifier.options import takes

ARITHMETICS = ("real", "float32")
ROWS = Path(__file__).parent / "results" / "certificates.csv"
KILL_AFTER_S = 30.0  # past its own time-out a prover that still runs is ended: it may be in its checker
CHECK_LIMIT_S = 600.0
Csv = Annotated[Path, typer.Option(help="CSV file of the rows.")]


class Arithmetic(str, Enum):
    REAL = "real"
    FLOAT32 = "float32"
    BOTH = "both"


@dataclass(frozen=True, kw_only=True)
class Options:
    root: Annotated[Path, typer.Option(help="Folder with instances.csv.", exists=True, file_okay=False)] = Path("../shared/vnncomp")
    out: Csv = ROWS
    families: Annotated[str, typer.Option(help="Which benchmarks, with commas between; all by default.")] = ""
    arithmetic: Annotated[Arithmetic, typer.Option(help="real, float32 or both.")] = Arithmetic.BOTH
    timeout: Annotated[float, typer.Option(help="Seconds for each proof.")] = 60.0
    threads: Annotated[int, typer.Option(help="Threads of torch and numpy.")] = os.cpu_count() or 1
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many instances of each benchmark.")] = None


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    out: Csv = ROWS


@dataclass(frozen=True, slots=True)
class Row:
    """One instance in one arithmetic. `plain` is the verdict without a certificate, `verdict` that with one, `checked` the checker's word.

    `*_wall_s` is of a whole process, `*_s` what it says of itself. `sentence` tells why there is no accepted certificate; empty where there is one.
    """

    benchmark: str
    onnx: str
    vnnlib: str
    arithmetic: str
    plain: str
    plain_wall_s: float
    plain_s: float
    verdict: str
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


def run_command(arguments: Sequence[str], limit_s: float, threads: int) -> Answer:
    """`verifier ARGUMENTS --json` as a child, ended by force after `limit_s`."""
    environment = {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))}
    started, whole = time.monotonic(), [sys.executable, "-m", "verifier.cli", *arguments, "--json"]
    try:
        done = subprocess.run(whole, capture_output=True, text=True, env=environment, timeout=limit_s)
    except subprocess.TimeoutExpired:
        return Answer({}, f"ended after {limit_s:g} s", time.monotonic() - started)
    wall_s = time.monotonic() - started
    last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode} without a word"])[-1]
    return Answer(json.loads(done.stdout) if done.stdout.strip() else {}, last, wall_s)


def measure(instance: Instance, options: Options, plain: Answer, arithmetic: str, command: Command) -> dict[str, Any]:
    """The measured columns of one row; `plain` is the answer without a certificate."""
    problem = [str(options.root / instance.onnx), str(options.root / instance.vnnlib)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "proof.cert"
        limits = ["--timeout", str(options.timeout), "--device", "cpu"]
        proved = command(["verify", *problem, *limits, "--certificate", str(path), "--arithmetic", arithmetic], options.timeout + KILL_AFTER_S)
        size = path.stat().st_size if path.exists() else 0
        checked = command(["check", *problem, str(path)], CHECK_LIMIT_S) if size else Answer({}, "", 0.0)
    verdict, said = proved.said.get("verdict", "error"), checked.said
    word = "" if not size else {True: "accepted", False: "rejected", None: "error"}[said.get("accepted")]
    reason = proved.said.get("reason", "")
    sentence = said.get("reason") or checked.sentence if word in ("rejected", "error") else f"{reason}: {proved.sentence}".removeprefix(": ")
    return {
        "arithmetic": arithmetic, "plain": plain.said.get("verdict", "error"), "plain_wall_s": round(plain.wall_s, 3),
        "plain_s": plain.said.get("seconds", 0.0), "verdict": verdict, "wall_s": round(proved.wall_s, 3),
        "seconds": proved.said.get("seconds", 0.0), "checked": word, "check_wall_s": round(checked.wall_s, 3), "check_s": said.get("seconds", 0.0),
        "bytes": size, "leaves": said.get("leaves", 0), "sentence": "" if (verdict, word) == ("unsat", "accepted") else sentence,
        "timeout_s": options.timeout,
    }  # fmt: skip


def run_all(instances: list[Instance], options: Options, command: Command) -> None:
    """Measures every instance and arithmetic that has no row yet, and appends its row."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    wanted = ARITHMETICS if options.arithmetic is Arithmetic.BOTH else (options.arithmetic.value,)
    rows = {(row.onnx, row.vnnlib, row.arithmetic): row for row in read_rows(options.out)}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns) as bar:
        task = bar.add_task("", total=len(instances))
        for instance in instances:
            bar.update(task, description=f"{instance.benchmark} {Path(instance.onnx).name[:40]}")
            open_ = [a for a in wanted if (instance.onnx, instance.vnnlib, a) not in rows]
            plain = _plain(instance, options, rows, command) if open_ else None
            for arithmetic in open_:
                now: Circumstances = circumstances("cpu", options.threads)
                columns_ = measure(instance, options, plain, arithmetic, command)
                row = Row(benchmark=instance.benchmark, onnx=instance.onnx, vnnlib=instance.vnnlib, **columns_, **asdict(now))
                append_row(options.out, row)
                text = f"{arithmetic:7} {row.plain:8} {row.verdict:8} {row.checked:8} {row.bytes:10d} B  {row.onnx} {row.vnnlib}"
                bar.print(text, highlight=False)
            bar.advance(task)


def _plain(instance: Instance, options: Options, rows: dict[tuple[str, str, str], Row], command: Command) -> Answer:
    """The answer without a certificate; that of the other arithmetic's row where there is one."""
    for arithmetic in ARITHMETICS:
        row = rows.get((instance.onnx, instance.vnnlib, arithmetic))
        if row is not None and row.timeout_s == options.timeout:
            return Answer({"verdict": row.plain, "seconds": row.plain_s}, "", row.plain_wall_s)
    problem = [str(options.root / instance.onnx), str(options.root / instance.vnnlib)]
    return command(["verify", *problem, "--timeout", str(options.timeout), "--device", "cpu"], options.timeout + KILL_AFTER_S)


def read_rows(path: Path) -> list[Row]:
    """The rows measured so far; none where there is no file yet."""
    if not path.exists():
        return []
    kinds = {"int": int, "float": float, "str": str}
    with path.open(newline="") as file:
        return [Row(**{f.name: kinds[f.type](line[f.name]) for f in fields(Row)}) for line in csv.DictReader(file)]


def table(rows: list[Row]) -> str:
    """A line of Markdown for each family and arithmetic, then every proof that has no accepted certificate, with the reason.

    Proved: answered `unsat` without a certificate. The ratios are of medians' members: seconds to check over seconds to prove without a certificate,
    and seconds to prove with over without one, in whole processes; in brackets by what the commands say of themselves.
    """
    lines = ["| family | arithmetic | proved | accepted | check / prove | with / without | bytes, median | largest |", "|---" * 8 + "|"]
    families = list(dict.fromkeys(row.benchmark for row in rows))
    for arithmetic in ARITHMETICS:
        for name in [*families, "all"]:
            members = [row for row in rows if row.arithmetic == arithmetic and name in (row.benchmark, "all") and row.plain == "unsat"]
            if members:
                lines.append(_line(name, arithmetic, members))
    lost = [row for row in rows if row.plain == "unsat" and not row.accepted]
    lines += ["", f"{len(lost)} of {sum(row.plain == 'unsat' for row in rows)} proofs have no accepted certificate."]
    lines += [f"- {row.arithmetic}: {row.onnx} {row.vnnlib}: {row.verdict}{f', {row.checked}' * bool(row.checked)}: {row.sentence}" for row in lost]
    gained = [row for row in rows if row.plain != "unsat" and row.accepted]
    lines += [f"- {row.arithmetic}: {row.onnx} {row.vnnlib}: proved with a certificate only ({row.plain} without)" for row in gained]
    return "\n".join(lines)


def _line(name: str, arithmetic: str, members: list[Row]) -> str:
    accepted = [row for row in members if row.accepted]
    start = f"| {name} | {arithmetic} | {len(members)} | {len(accepted)} ({len(accepted) / len(members):.0%}) |"
    if not accepted:
        return f"{start} | | | |"
    over = lambda a, b: median(getattr(row, a) / max(getattr(row, b), 1e-3) for row in accepted)  # noqa: E731
    check = f"{over('check_wall_s', 'plain_wall_s'):.2f} ({over('check_s', 'plain_s'):.2f})"
    more = f"{over('wall_s', 'plain_wall_s'):.2f} ({over('seconds', 'plain_s'):.2f})"
    sizes = [row.bytes for row in accepted]
    return f"{start} {check} | {more} | {median(sizes):,.0f} | {max(sizes):,} |"


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
    try:
        run_all(safe, options, lambda arguments, limit_s: run_command(arguments, limit_s, options.threads))
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
