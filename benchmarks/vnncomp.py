"""Runs the instances of a VNN-COMP folder as the competition does, one process each, and keeps a row of every one of them.

python -m benchmarks.vnncomp --families acasxu,test --timeout 20

A run that was stopped goes on where it stopped: instances that have a row in the output file are left out. Every contradiction with the
expected verdict and every error is printed at the end, and the exit code is 1 if there is a contradiction.
"""
from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

from benchmarks.rows import Circumstances, Instance, Row, append_row, circumstances, read_instances, read_rows
from benchmarks.witness import witness_holds
from verifier.errors import VerifierError
from verifier.options import takes

KILL_AFTER_S = 10.0  # past its own time-out a process that still runs is ended; the verifier promises two seconds


@dataclass(frozen=True, kw_only=True)
class Options:
    root: Annotated[Path, typer.Option(help="Folder with instances.csv.", exists=True, file_okay=False)] = Path("../shared/vnncomp")
    out: Annotated[Path, typer.Option(help="CSV file of the rows.")] = Path("benchmarks/results/vnncomp.csv")
    families: Annotated[str, typer.Option(help="Which benchmarks, with commas between; all by default.")] = ""
    timeout: Annotated[float | None, typer.Option(help="Seconds an instance, instead of the competition's.")] = None
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = os.cpu_count() or 1
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto"
    no_attack: Annotated[bool, typer.Option("--no-attack", help="As in `verifier verify`.")] = False
    one_process: Annotated[bool, typer.Option("--one-process", help="All in this process: no start-up in wall_s, no peak memory.")] = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """`answer` as `verifier verify --json` prints it."""

    answer: dict[str, Any]
    wall_s: float
    peak_bytes: int


def in_own_process(instance: Instance, options: Options) -> Outcome:
    """`verifier verify --json` as a child, ended by force some time after its time is over."""
    command = [sys.executable, "-m", "verifier.cli", "verify", str(options.root / instance.onnx), str(options.root / instance.vnnlib)]
    command += ["--json", "--timeout", str(instance.timeout_s), "--device", options.device, *["--no-attack"] * options.no_attack]
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "MKL_NUM_THREADS": str(options.threads)}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        started = time.monotonic()
        child = subprocess.Popen(command, stdout=out, stderr=err, env=environment)
        killer = threading.Timer(instance.timeout_s + KILL_AFTER_S, child.kill)
        killer.start()
        try:
            _, status, usage = os.wait4(child.pid, 0)  # the only call that tells the peak memory of one child
        except KeyboardInterrupt:
            child.kill()
            raise
        finally:
            killer.cancel()
        wall_s = time.monotonic() - started
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        return Outcome(_answer(child.returncode, out.read(), err.read()), wall_s, usage.ru_maxrss * 1024)


def _answer(code: int, out: str, err: str) -> dict[str, Any]:
    if code == 0 and out.strip():
        return json.loads(out)
    last = err.strip().splitlines()[-1:] or [f"exit code {code} without a word"]
    return _error(last[0])


def _error(sentence: str) -> dict[str, Any]:
    return {"verdict": "error", "reason": sentence, "seconds": 0.0, "domains": 0, "engine": "", "lower_bound": None, "witness": None}


def in_this_process(instance: Instance, options: Options) -> Outcome:
    """The same by the library, without the start of a process."""
    from math import prod

    import verifier
    from verifier.console import as_json

    config = verifier.Config(timeout_s=instance.timeout_s, device=options.device)
    config = replace(config, attack=None) if options.no_attack else config
    started = time.monotonic()
    try:
        graph = verifier.load_onnx(options.root / instance.onnx)
        spec = verifier.load_vnnlib(options.root / instance.vnnlib, prod(graph.input_shape), prod(graph.output_shape))
        answer = as_json(verifier.verify(graph, spec, config))
    except VerifierError as error:
        answer = _error(str(error))
    return Outcome(answer, time.monotonic() - started, 0)


def row_of(instance: Instance, outcome: Outcome, options: Options, now: Circumstances) -> Row:
    """The row; a `sat` is replayed here, in the parent."""
    answer, found = outcome.answer, outcome.answer["witness"]
    witness = ""
    if answer["verdict"] == "sat":
        holds = found is not None and witness_holds(options.root / instance.onnx, options.root / instance.vnnlib, found["x"])
        witness = "valid" if holds else "invalid"
    measured = {name: answer[name] for name in ("verdict", "reason", "seconds", "domains", "engine", "lower_bound")}
    measured["proved"] = answer.get("proved", "")
    return Row(
        benchmark=instance.benchmark, onnx=instance.onnx, vnnlib=instance.vnnlib, expected=instance.expected, witness=witness,
        wall_s=round(outcome.wall_s, 3), peak_bytes=outcome.peak_bytes, timeout_s=instance.timeout_s, **measured, **asdict(now),
    )  # fmt: skip


def run_all(instances: list[Instance], options: Options, measure: Callable[[Instance, Options], Outcome]) -> None:
    """Measures every instance that has no row yet, and appends its row."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    done = {(row.benchmark, row.onnx, row.vnnlib) for row in read_rows(options.out)}
    todo = [x for x in instances if (x.benchmark, x.onnx, x.vnnlib) not in done]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns) as bar:
        task = bar.add_task("", total=len(todo))
        for instance in todo:
            bar.update(task, description=f"{instance.benchmark} {Path(instance.onnx).name[:40]}")
            limited = replace(instance, timeout_s=options.timeout or instance.timeout_s)
            row = row_of(limited, measure(limited, options), options, circumstances(_device(options.device), options.threads))
            append_row(options.out, row)
            bar.advance(task)
            bar.print(f"{row.verdict:8} {row.wall_s:7.2f} s  {row.onnx} {row.vnnlib}", highlight=False)


def _device(name: str) -> str:
    """The device by its own name: cpu, or the GPU's model."""
    import torch

    from verifier.solve import device_of

    device = device_of(name)
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def report(rows: list[Row]) -> str:
    """A line for each family, then every contradiction and every error."""
    lines = [f"{'family':<22} {'instances':>9} {'decided':>8} {'sat':>5} {'unsat':>6} {'median s':>9} {'sum s':>9}"]
    families = list(dict.fromkeys(row.benchmark for row in rows))
    for name, members in [*((f, [r for r in rows if r.benchmark == f]) for f in families), ("all", rows)]:
        if members:
            sat, unsat = (sum(r.verdict == w for r in members) for w in ("sat", "unsat"))
            walls = [r.wall_s for r in members]
            lines.append(f"{name:<22} {len(members):9d} {sat + unsat:8d} {sat:5d} {unsat:6d} {median(walls):9.2f} {sum(walls):9.1f}")
    for title, found in (("CONTRADICTION", [r for r in rows if r.contradicts()]), ("error", [r for r in rows if r.verdict == "error"])):
        for r in found:
            said = f"{r.verdict}{f' ({r.witness} witness)' if r.witness else ''}, expected {r.expected}"
            lines.append(f"{title}: {r.onnx} {r.vnnlib}: {said}: {r.reason}")
    return "\n".join(lines)


@takes(Options)
def main(options: Options) -> None:
    """Run VNN-COMP instances and write one row each."""
    families = {name for name in options.families.split(",") if name}
    instances = read_instances(options.root / "instances.csv", families)
    if not instances:
        raise typer.BadParameter(f"{options.root / 'instances.csv'} has no instance of {options.families}.")
    try:
        run_all(instances, options, in_this_process if options.one_process else in_own_process)
    except KeyboardInterrupt:
        print("Stopped: the same command goes on from here.")
    wanted = {(x.benchmark, x.onnx, x.vnnlib) for x in instances}
    rows = [row for row in read_rows(options.out) if (row.benchmark, row.onnx, row.vnnlib) in wanted]
    print(report(rows))
    raise typer.Exit(1 if any(row.contradicts() for row in rows) else 0)


if __name__ == "__main__":
    typer.run(main)
