"""What `verifier accuracy` does after its files are read: measures, with a row an image, a bar while it goes on, and a summary."""
from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verifier.bab.budget import Listener, silent
from verifier.config import Config
from verifier.console import ProgressLine, finite, tell, word
from verifier.errors import VerifierError
from verifier.options import AccuracyOptions, Norm, Part

if TYPE_CHECKING:
    from verifier.graph.ir import Graph
    from verifier.measure.accuracy import Measured
    from verifier.measure.proofs import ProofFolder

COLUMNS = ("index", "label", "predicted", "verdict", "reason", "margin", "pgd_margin", "domains", "seconds", "certificate")
_HEAD = f"{'index':>6} {'label':>6} {'predicted':>9} {'verdict':>8} {'margin':>10} {'PGD margin':>10} {'domains':>8} {'seconds':>8}"
_PIXELS = (0.0, 1.0)


def measure(options: AccuracyOptions, graph: Graph, config: Config) -> None:
    """Measures and prints; an interruption prints what there is."""
    from verifier.data.load import load_dataset
    from verifier.measure.accuracy import Accuracy, measure_accuracy
    from verifier.measure.certified import Perturbation
    from verifier.spec.robustness import parse_eps

    proofs = _proofs(options, graph)
    around = Perturbation(parse_eps(options.eps), options.norm.value, _PIXELS)
    dataset = load_dataset(options.data, options.data_dir)
    part = dataset.test if options.split is Part.TEST else dataset.train
    if not len(part):
        raise VerifierError(f"{dataset.name} has no {options.split.value} images: give the other --split, or another file.")
    count = len(part) if options.limit is None else min(options.limit, len(part))
    measured: list[Measured] = []
    with ExitStack() as stack:
        write = stack.enter_context(_rows_file(options.results_file))
        listener, advance = stack.enter_context(_bar(count, options.verbose))
        try:
            for outcome in measure_accuracy(graph, part.x[:count], part.y[:count], around, config, listener, proofs):
                measured.append(outcome)
                write(outcome)
                if not options.json:
                    print(_line(outcome) if len(measured) > 1 else f"{_HEAD}\n{_line(outcome)}", flush=True)
                advance(outcome)
        except KeyboardInterrupt:
            pass
    found = Accuracy.of(measured, count)
    if found.reached < count or any(m.row.verdict.reason.value == "interrupted" for m in measured):
        tell("Interrupted: images without a verdict count in the upper limits only.")
    if options.json:
        print(json.dumps({"images": [_fields(m) for m in measured], "summary": found.as_dict()}))
    else:
        print(f"\n{found.sentence()}")


def _proofs(options: AccuracyOptions, graph: Graph) -> ProofFolder | None:
    if options.certificates is None:
        return None
    if options.norm is not Norm.LINF:
        raise VerifierError(f"Certificates are for boxes, and an {options.norm.value} ball is none: use --norm linf, or no --certificates.")
    from verifier.measure.proofs import ProofFolder

    return ProofFolder(options.certificates, graph, "auto" if options.arithmetic is None else options.arithmetic.value)


def _fields(outcome: Measured) -> dict[str, Any]:
    row, verdict = outcome.row, outcome.row.verdict
    values = (
        row.index, row.label, row.predicted, word(verdict), verdict.reason.value, finite(outcome.margin), finite(outcome.pgd_margin),
        verdict.domains, round(verdict.seconds, 4), None if verdict.certificate is None else Path(verdict.certificate).name,
    )  # fmt: skip
    return dict(zip(COLUMNS, values, strict=True))


def _line(outcome: Measured) -> str:
    shown = _fields(outcome)
    margin, pgd = ("" if shown[key] is None else f"{shown[key]:.4g}" for key in ("margin", "pgd_margin"))
    start = f"{shown['index']:6d} {shown['label']:6d} {shown['predicted']:9d} {shown['verdict']:>8}"
    return f"{start} {margin:>10} {pgd:>10} {shown['domains']:8d} {shown['seconds']:8.2f}"


@contextmanager
def _rows_file(path: Path | None) -> Iterator[Callable[[Measured], None]]:
    """A function that writes one row to a CSV file at once, so that the rows of a killed run are there; without a file it does nothing."""
    if path is None:
        yield lambda outcome: None
        return
    try:
        file = path.open("w", newline="", encoding="utf-8")
    except OSError as error:
        raise VerifierError(f"Cannot write the results file {path}: {error.strerror}.") from None
    with file:
        writer = csv.DictWriter(file, COLUMNS)

        def write(outcome: Measured | None) -> None:
            try:
                if outcome is None:
                    writer.writeheader()
                else:
                    writer.writerow(_fields(outcome))
                file.flush()
            except OSError as error:
                raise VerifierError(f"Cannot write the results file {path}: {error.strerror}; the rows before are in it.") from None

        write(None)
        yield write


@contextmanager
def _bar(count: int, verbose: bool) -> Iterator[tuple[Listener, Callable[[Measured], None]]]:
    """A bar with the time left on stderr where that is a terminal: the solver's listener, and what to call after each image."""
    if verbose or not sys.stderr.isatty():
        yield ProgressLine(verbose) if verbose else silent, lambda outcome: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.fields[certified]} certified"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"),
        TimeRemainingColumn(), TextColumn("{task.fields[stage]}"),
    )  # fmt: skip
    on_terminal = sys.stdout.isatty()  # only then rows must be printed above the bar; a pipe gets them as they are
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=on_terminal, redirect_stderr=True) as bar:
        task = bar.add_task("", total=count, certified=0, stage="")
        done = [0]

        def advance(outcome: Measured) -> None:
            done[0] += word(outcome.row.verdict) == "unsat"
            bar.update(task, advance=1, certified=done[0])

        yield lambda progress: bar.update(task, stage=progress.stage), advance
