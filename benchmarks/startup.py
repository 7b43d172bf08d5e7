"""What a verdict costs before any verifying: whole processes, `import torch` against `verifier verify` on the smallest instance, in turn.

python -m benchmarks.startup --rounds 7
"""
from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Annotated

import typer


def seconds(command: list[str]) -> float:
    """Wall-clock seconds of one process, from start to exit; a process that fails is an error."""
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def main(
    model: Annotated[Path, typer.Option(exists=True)] = Path("../shared/vnncomp/test/test_nano.onnx.gz"),
    prop: Annotated[Path, typer.Option(exists=True)] = Path("../shared/vnncomp/test/test_nano.vnnlib.gz"),
    rounds: Annotated[int, typer.Option(help="How often each; they take turns, so that a busy machine slows both.")] = 7,
) -> None:
    """Print the median of both and of their difference."""
    torch_only = [sys.executable, "-c", "import torch"]
    verify = [sys.executable, "-m", "verifier.cli", "verify", str(model), str(prop)]
    pairs = [(seconds(torch_only), seconds(verify)) for _ in range(rounds + 1)][1:]  # the first round fills the disk cache
    print(f"import torch            {median(a for a, _ in pairs):6.3f} s")
    print(f"verifier verify         {median(b for _, b in pairs):6.3f} s")
    print(f"difference (median)     {median(b - a for a, b in pairs):6.3f} s, of {rounds} rounds")


if __name__ == "__main__":
    typer.run(main)
