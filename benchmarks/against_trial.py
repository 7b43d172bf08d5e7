"""Our solver against a script that prints `built: …`, `root: worst row R, T s` and `unsat|unknown: …, T s`: both in turn, the same threads.

    python -m benchmarks.against_trial SCRIPT.py --root FOLDER --instances instances.csv [--families oval21,mnist_fc] [--timeout 60] [--threads 2]

Times are what each takes after its imports and after reading its files. A row an instance goes to `--out`: verdicts, seconds, worst root bounds.
"""
from __future__ import annotations

import argparse
import csv
import json
import re
import subprocess
import sys
from pathlib import Path

from benchmarks.rows import circumstances

FIELDS = (
    "benchmark", "onnx", "vnnlib", "ours", "ours_s", "theirs", "theirs_s", "ratio", "ours_root", "theirs_root",
    "timeout_s", "threads", "commit", "machine",
)


def ours(model: str, prop: str, timeout_s: float, threads: int) -> dict:
    """Verdict, seconds and worst root bound of one instance, in this process."""
    import time

    import torch

    from verifier import Config, load_onnx, load_vnnlib, verify
    from verifier.bab.budget import Deadline
    from verifier.bab.driver import Search
    from verifier.bab.ladder import open_root
    from verifier.reduced.build import build
    from verifier.reduced.problem import ReducedProblem

    torch.set_num_threads(threads)
    graph, spec = load_onnx(model), load_vnnlib(prop)

    def root(problem: ReducedProblem) -> float:
        search = Search(0, problem)
        open_root(search, Deadline.after(timeout_s))
        return float(search.floor.min())

    begin = time.monotonic()
    verdict = verify(graph, spec, Config(timeout_s=timeout_s, attack=None))
    seconds = time.monotonic() - begin
    with torch.no_grad():
        moved = graph.to("cpu", torch.float32)
        worst = min(root(build(moved, case)) for case in spec.cases)
    return {"verdict": verdict.status.value, "seconds": seconds, "root": worst}


def run_ours(model: Path, prop: Path, timeout_s: float, threads: int) -> dict:
    own = [sys.executable, "-m", "benchmarks.against_trial", "--one", str(model), str(prop)]
    command = [*own, "--timeout", str(timeout_s), "--threads", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def run_theirs(script: Path, model: Path, prop: Path, timeout_s: float, threads: int) -> dict | None:
    """None where the script cannot run the instance."""
    command = [sys.executable, str(script), str(model), str(prop), "--timeout", str(timeout_s), "--threads", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True)
    root = re.search(r"root: worst row (-?[\d.]+)", done.stdout)
    end = re.search(r"(unsat|unknown): .* ([\d.]+) s", done.stdout)
    if done.returncode or not root or not end:
        return None
    return {"verdict": end[1], "seconds": float(end[2]), "root": float(root[1])}


def compare(options: argparse.Namespace) -> None:
    with options.instances.open() as file:
        instances = [row for row in csv.DictReader(file) if row["benchmark"] in options.families.split(",")]
    now = circumstances("cpu", options.threads)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        for row in instances:
            model, prop = options.root / row["onnx"], options.root / row["vnnlib"]
            theirs = run_theirs(options.script, model, prop, options.timeout, options.threads)
            if theirs is None:
                print(f"{row['onnx']} {row['vnnlib']}: the script cannot run it", flush=True)
                continue
            mine = run_ours(model, prop, options.timeout, options.threads)
            writer.writerow({
                "benchmark": row["benchmark"], "onnx": row["onnx"], "vnnlib": row["vnnlib"],
                "ours": mine["verdict"], "ours_s": round(mine["seconds"], 3),
                "theirs": theirs["verdict"], "theirs_s": theirs["seconds"], "ratio": round(mine["seconds"] / theirs["seconds"], 3),
                "ours_root": round(mine["root"], 4), "theirs_root": theirs["root"], "timeout_s": options.timeout, "threads": options.threads,
                "commit": now.commit, "machine": now.machine,
            })
            file.flush()
            print(f"{Path(row['vnnlib']).name:52} ours {mine['verdict']:9} {mine['seconds']:6.2f} s root {mine['root']:8.4f}   "
                  f"script {theirs['verdict']:8} {theirs['seconds']:6.2f} s root {theirs['root']:8.4f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("script", type=Path, nargs="?", help="the script to compare with")
    parser.add_argument("--one", nargs=2, metavar=("MODEL", "PROPERTY"), help="run ours on one instance and print a JSON object")
    parser.add_argument("--root", type=Path, default=Path())
    parser.add_argument("--instances", type=Path)
    parser.add_argument("--families", default="oval21,mnist_fc,cifar_biasfield")
    parser.add_argument("--timeout", type=float, default=60.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/against_trial.csv"))
    options = parser.parse_args()
    if options.one:
        print(json.dumps(ours(*options.one, options.timeout, options.threads)))
    elif options.script is None or options.instances is None:
        parser.error("give the script and --instances, or --one MODEL PROPERTY")
    else:
        compare(options)


if __name__ == "__main__":
    main()
