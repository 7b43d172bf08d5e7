"""Time and memory of each bound engine beside auto_LiRPA's, in one run: two processes that take turns, with the same number of threads.

    python -m benchmarks.bounds --root FOLDER NET.onnx PROP.vnnlib [NET.onnx PROP.vnnlib ...] [--batch 1,32] [--engines
    ibp,crown,alpha-crown]
                                [--rounds 5] [--limit 60] [--threads 2] [--seed 0] [--out benchmarks/results/bounds.csv]

What is bounded are all outputs, from both sides, over the property's input box. A batch is that box and copies of it, each moved by at
most its own width (`--seed`), so that no two problems have the same unstable neurons. A row a tool, engine, network and batch: the median
of the rounds (the first, in which kernels are compiled, is left out), the memory that the process grew by at its peak, the mean width of
the bounds, and for ours the median over rounds of theirs / ours. Where one call takes longer than the limit there is a single round. A
failure is a row too.
"""
from __future__ import annotations

import argparse
import csv
import json
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO, Any

from benchmarks.rows import circumstances

TOOLS = ("ours", "auto_LiRPA")
THEIR_METHODS = {"ibp": "IBP", "crown": "CROWN", "alpha-crown": "alpha-CROWN"}


@dataclass(frozen=True, slots=True)
class Row:
    """One tool's engine on one network and batch. `seconds` is None after a failure, whose sentence is `error`; `times_faster` is for
    ours.
    """

    onnx: str
    vnnlib: str
    engine: str
    tool: str
    batch: int
    seconds: float | None
    rounds: int
    peak_bytes: int | None
    mean_width: float | None
    times_faster: float | None
    error: str
    seed: int
    commit: str
    device: str
    threads: int
    machine: str
    date: str


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker bounds."""

    tool: str
    engine: str
    onnx: str
    vnnlib: str
    batch: int
    threads: int
    seed: int
    device: str


def work(job: Job) -> None:
    """Answers every line of the standard input by one timed call: seconds, the mean width, and the peak of memory so far, as JSON."""
    import torch

    torch.set_num_threads(job.threads)
    call = prepared(job)
    before = peak_bytes(job.device)
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        begin = time.perf_counter()
        result = call()
        if job.device.startswith("cuda"):
            torch.cuda.synchronize()
        seconds = time.perf_counter() - begin
        width = float((result.upper - result.lower).double().mean())
        print(json.dumps({"seconds": seconds, "mean_width": width, "peak_bytes": peak_bytes(job.device) - before}), flush=True)


def prepared(job: Job) -> Any:
    """The call that is timed: everything is loaded and handed over before."""
    from functools import partial

    from verifier.bounds.alpha import alpha_crown
    from verifier.bounds.crown import crown
    from verifier.bounds.ibp import ibp
    from verifier.bounds.lirpa import bounded

    request = request_of(job)
    if job.tool == "auto_LiRPA":
        return partial(bounded(request), THEIR_METHODS[job.engine])
    return partial({"ibp": ibp, "crown": crown, "alpha-crown": alpha_crown}[job.engine], request)


def request_of(job: Job) -> Any:
    import torch

    from verifier import load_onnx, load_vnnlib
    from verifier.bounds.engine import BoundRequest
    from verifier.box import Box

    graph = load_onnx(job.onnx)
    size = torch.Size(graph.input_shape).numel()
    case = load_vnnlib(job.vnnlib, size, torch.Size(graph.output_shape).numel()).cases[0]
    lower, upper = (torch.tensor(side, dtype=torch.float32).reshape(1, *graph.input_shape) for side in (case.lower, case.upper))
    share = 2 * torch.rand(job.batch, *graph.input_shape, generator=torch.Generator().manual_seed(job.seed)) - 1
    share[0] = 0
    shift = share * (upper - lower)
    box = Box((lower + shift).to(job.device), (upper + shift).to(job.device))
    return BoundRequest(graph.to(job.device, torch.float32), box)


def peak_bytes(device: str) -> int:
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class Worker:
    """A process that bounds one job again and again."""

    def __init__(self, job: Job) -> None:
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.bounds", "--worker", json.dumps(asdict(job))]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.answers: list[dict[str, Any]] = []
        self.error = "" if self._read().get("ready") else self._last_words()

    def run(self) -> bool:
        """One more timed call; False after a failure."""
        if self.error:
            return False
        stdin = self.process.stdin
        assert stdin is not None
        stdin.write("\n")
        stdin.flush()
        answer = self._read()
        if "seconds" not in answer:
            self.error = self._last_words()
            return False
        self.answers.append(answer)
        return True

    def close(self) -> None:
        self.process.kill()
        self.process.wait()

    def _read(self) -> dict[str, Any]:
        """The next answer; other lines, which a tool prints of its own, are passed over."""
        stdout: IO[str] | None = self.process.stdout
        assert stdout is not None
        for line in stdout:
            if line.startswith("{"):
                return json.loads(line)
        return {}

    def _last_words(self) -> str:
        lines = self.process.stderr.read().strip().splitlines() if self.process.stderr else []
        return (lines or [f"ended with exit code {self.process.wait()}"])[-1][:300]

    def times(self) -> list[float]:
        """Seconds of every round but the first, in which kernels are compiled; of that one where there is no other."""
        seconds = [answer["seconds"] for answer in self.answers]
        return seconds[1:] or seconds


def measure(jobs: tuple[Job, Job], rounds: int, limit_s: float) -> list[Row]:
    """Both tools in turn, and their two rows."""
    workers = [Worker(job) for job in jobs]
    for done in range(rounds + 1):
        going = [worker.run() for worker in workers]
        if not any(going) or (done == 0 and max(w.answers[0]["seconds"] for w in workers if w.answers) > limit_s):
            break
    for worker in workers:
        worker.close()
    pairs = list(zip(*(worker.times() for worker in workers), strict=False))
    faster = statistics.median(theirs / ours for ours, theirs in pairs) if pairs else None
    return [_row(job, worker, faster) for job, worker in zip(jobs, workers, strict=True)]


def _row(job: Job, worker: Worker, faster: float | None) -> Row:
    now, answered = circumstances(job.device, job.threads), bool(worker.answers)
    return Row(
        f"{Path(job.onnx).parent.name}/{Path(job.onnx).name}", Path(job.vnnlib).name, job.engine, job.tool, job.batch,
        statistics.median(worker.times()) if answered else None, len(worker.times()),
        max(a["peak_bytes"] for a in worker.answers) if answered else None, worker.answers[-1]["mean_width"] if answered else None,
        faster if job.tool == "ours" else None, worker.error, job.seed, now.commit, now.device, now.threads, now.machine, now.date,
    )


def append(path: Path, row: Row) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Row)])
        if new:
            writer.writeheader()
        writer.writerow({name: "" if value is None else value for name, value in asdict(row).items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", help="network and property, in pairs")
    parser.add_argument("--root", type=Path, default=Path())
    parser.add_argument("--batch", default="1,32")
    parser.add_argument("--engines", default="ibp,crown,alpha-crown")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--limit", type=float, default=60.0, help="seconds of a call after which there is no second round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/bounds.csv"))
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(Job(**json.loads(options.worker)))
        return
    if not options.files or len(options.files) % 2:
        parser.error("give a network and a property, or several such pairs")
    for onnx, vnnlib in zip(options.files[::2], options.files[1::2], strict=True):
        for batch in map(int, options.batch.split(",")):
            for engine in options.engines.split(","):
                paths = str(options.root / onnx), str(options.root / vnnlib)
                jobs = tuple(Job(tool, engine, *paths, batch, options.threads, options.seed, options.device) for tool in TOOLS)
                for row in measure(jobs, options.rounds, options.limit):
                    append(options.out, row)
                    print(f"{row.onnx} {engine} batch {batch} {row.tool}: " + (row.error or _line(row)), flush=True)


def _line(row: Row) -> str:
    faster = f", {row.times_faster:.2f} times faster" if row.times_faster else ""
    return f"{row.seconds:.3f} s, {row.peak_bytes / 2**20:.0f} MiB, mean width {row.mean_width:.5g}{faster}"


if __name__ == "__main__":
    main()
