"""Certified accuracy of exported networks without certificates, with ones in real arithmetic and with ones for float32: what a proof costs.

python -m benchmarks.certified_accuracy run runs/digits/stages/*-export-*/compact.onnx --data digits --eps 0.06 --limit 30 --timeout 2
python -m benchmarks.certified_accuracy table
"""
from __future__ import annotations

import csv
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.certificates import Answer, run_command
from benchmarks.rows import append_row, circumstances
from verifier.options import takes

ROWS = Path(__file__).parent / "results" / "certified_accuracy.csv"
MODES = ("none", "real", "float32")
LIMIT_S = 3600.0


@dataclass(frozen=True, kw_only=True)
class Options:
    models: Annotated[list[Path], typer.Argument(metavar="MODEL.onnx...", exists=True, help="The networks.")]
    data: Annotated[str, typer.Option(help="As `verifier accuracy --data`.")]
    eps: Annotated[str, typer.Option(help="Radius in pixels from 0 to 1.")]
    data_dir: Annotated[Path | None, typer.Option(help="Where the data lie.")] = None
    limit: Annotated[int, typer.Option(min=1, help="The first so many test images.")] = 30
    timeout: Annotated[float, typer.Option(help="Seconds for each image.")] = 2.0
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch and numpy.")] = 1
    name: Annotated[str | None, typer.Option(help="What the rows call the network; by default its folder.")] = None
    out: Annotated[Path, typer.Option(help="CSV file of the rows.")] = ROWS


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    out: Annotated[Path, typer.Option(help="CSV file of the rows.")] = ROWS


@dataclass(frozen=True, slots=True)
class Row:
    """One network in one mode: `certificates` is none, real or float32. Accuracies in [0, 1], `bytes` of all certificates together."""

    network: str
    data: str
    eps: str
    certificates: str
    images: int
    clean: float
    certified: float
    certified_upper: float
    bytes: int
    wall_s: float
    timeout_s: float
    commit: str
    device: str
    threads: int
    machine: str
    date: str


def measure(model: Path, mode: str, options: Options) -> Row:
    """The row of one network in one mode."""
    effort = ["--limit", str(options.limit), "--timeout", str(options.timeout)]
    arguments = ["accuracy", str(model), "--data", options.data, "--eps", options.eps, *effort]
    arguments += ["--data-dir", str(options.data_dir)] * (options.data_dir is not None)
    with tempfile.TemporaryDirectory() as folder:
        arguments += ["--certificates", folder, "--arithmetic", mode] * (mode != "none")
        answer: Answer = run_command(arguments, LIMIT_S, options.threads)
        size = sum(path.stat().st_size for path in Path(folder).glob("*.cert"))
    if "summary" not in answer.said:
        raise SystemExit(f"{model}: {answer.sentence}")
    found: dict[str, Any] = answer.said["summary"]
    return Row(
        network=options.name or model.parent.name.rsplit("-export-", 1)[0], data=options.data, eps=options.eps, certificates=mode,
        images=found["images"], clean=found["clean_accuracy"], certified=found["certified_accuracy"],
        certified_upper=found["certified_accuracy_upper"], bytes=size, wall_s=round(answer.wall_s, 2), timeout_s=options.timeout,
        **asdict(circumstances("cpu", options.threads)),
    )


def table(rows: list[dict[str, str]]) -> str:
    """A line of Markdown for each row; percent."""
    lines = ["| data, eps | network | clean | certificates | certified | wall s | KB a certificate |", "|---" * 7 + "|"]
    for row in rows:
        clean, low, high = (100 * float(row[key]) for key in ("clean", "certified", "certified_upper"))
        count = round(float(row["certified"]) * int(row["images"]))
        size = f"{int(row['bytes']) / 1000 / count:.1f}" if count and int(row["bytes"]) else ""
        effort = f"{float(row['wall_s']):.0f} | {size}"
        lines.append(f"| {row['data']}, {row['eps']} | {row['network']} | {clean:.1f} | {row['certificates']} | {low:.1f} – {high:.1f} | {effort} |")
    return "\n".join(lines)


app = typer.Typer(add_completion=False)


@app.command()
@takes(Options)
def run(options: Options) -> None:
    """Measure networks in all three modes."""
    for model in options.models:
        for mode in MODES:
            row = measure(model, mode, options)
            append_row(options.out, row)
            print(f"{row.network:24} {mode:8} {row.certified:.3f} to {row.certified_upper:.3f} in {row.wall_s:.1f} s", flush=True)


@app.command(name="table")
@takes(TableOptions)
def table_(options: TableOptions) -> None:
    """Print what was measured as Markdown."""
    if not options.out.exists():
        raise typer.BadParameter(f"{options.out} is not there: `python -m benchmarks.certified_accuracy run` makes it.")
    with options.out.open(newline="") as file:
        print(table(list(csv.DictReader(file))))


if __name__ == "__main__":
    app()
