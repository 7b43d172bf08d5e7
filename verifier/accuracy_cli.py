"""What `verifier accuracy` does after its files are read: measures, with a row an image, a bar while it goes on, and a summary."""
from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from verifier.bab.budget import Listener, silent
from verifier.config import Config
from verifier.console import ProgressLine, tell, word
from verifier.errors import VerifierError
from verifier.options import AccuracyOptions, Norm, Part
from verifier.outputs import keep_apart
from verifier.rows_file import RowsFile, fields_of, question_of

if TYPE_CHECKING:
    from verifier.data.dataset import Split
    from verifier.graph.ir import Graph
    from verifier.measure.accuracy import Measured
    from verifier.measure.certified import Perturbation
    from verifier.measure.proofs import ProofFolder

_HEAD = f"{'index':>6} {'label':>6} {'predicted':>9} {'verdict':>8} {'margin':>10} {'PGD margin':>10} {'domains':>8} {'seconds':>8}"
_PIXELS = (0.0, 1.0)


def measure(options: AccuracyOptions, graph: Graph, config: Config) -> None:
    """Measures and prints; an interruption prints what there is."""
    from verifier.data.load import load_dataset
    from verifier.measure.accuracy import Accuracy
    from verifier.measure.certified import Perturbation
    from verifier.measure.layout import layout_of
    from verifier.spec.robustness import parse_eps

    inputs = {"the network": options.model, "the file of images": options.data, "the configuration": options.config}
    keep_apart(inputs, {"--results-file": options.results_file})
    around = Perturbation(parse_eps(options.eps), options.norm.value, _PIXELS)
    dataset = load_dataset(options.data, options.data_dir)
    part = dataset.test if options.split is Part.TEST else dataset.train
    if not len(part):
        raise VerifierError(f"{dataset.name} has no {options.split.value} images: give the other --split, or another file.")
    placed = layout_of(part.x.shape[1:], graph.input_shape).sentence
    if placed:
        tell(placed)
    count = len(part) if options.limit is None else min(options.limit, len(part))
    campaign = _Campaign(options, graph, part, around, config)
    measured: list[Measured] = []
    try:
        for outcome in campaign.outcomes(count):
            measured.append(outcome)
            if not options.json:
                print(_line(outcome) if len(measured) > 1 else f"{_HEAD}\n{_line(outcome)}", flush=True)
    except KeyboardInterrupt:
        pass
    found = Accuracy.of(measured, count)
    if found.reached < count or any(m.row.verdict.reason.value == "interrupted" for m in measured):
        tell("Interrupted: images without a verdict count in the upper limits only.")
    if options.json:
        print(json.dumps({"images": [fields_of(m) for m in measured], "summary": found.as_dict(), "layout": placed or None}))
    else:
        print(f"\n{found.sentence()}")


@dataclass(frozen=True, slots=True, eq=False)
class _Campaign:
    """The images of a split, asked one question; those that the results file has answers of are not asked again."""

    options: AccuracyOptions
    graph: Graph
    part: Split
    around: Perturbation
    config: Config

    def outcomes(self, count: int) -> Iterator[Measured]:
        """Those of the first `count` images, as they are decided; each is in the file before it is yielded."""
        from verifier.measure.accuracy import measure_accuracy

        options, rows = self.options, self._rows()
        before, size = ([], 0) if rows is None else rows.kept(options.overwrite)
        known = before[:count]
        proofs = _proofs(options, self.graph, len(known))
        with ExitStack() as stack:
            write = None if rows is None or len(known) == count else stack.enter_context(rows.writer(size))
            listener, advance = stack.enter_context(_bar(count, options.verbose))
            if known:
                tell(f"{options.results_file} has {len(known)} of {count} images already.")
            for outcome in known:
                advance(outcome)
                yield outcome
            rest = slice(len(known), count)
            for outcome in measure_accuracy(self.graph, self.part.x[rest], self.part.y[rest], self.around, self.config, listener, proofs):
                placed = replace(outcome, row=replace(outcome.row, index=outcome.row.index + len(known)))
                if write is not None:
                    write(placed)
                advance(placed)
                yield placed

    def _rows(self) -> RowsFile | None:
        options, folder = self.options, self.options.certificates
        if options.results_file is None:
            return None
        proofs = None if folder is None else (str(folder.resolve()), _arithmetic(options))
        question = question_of(options.model, self.part, self.around, self.config, proofs)
        return RowsFile(options.results_file, question, self.config.attack is not None, folder)


def _arithmetic(options: AccuracyOptions) -> str:
    return "auto" if options.arithmetic is None else options.arithmetic.value


def _proofs(options: AccuracyOptions, graph: Graph, first: int) -> ProofFolder | None:
    """Where the proofs of images go, the first of which has this number."""
    if options.certificates is None:
        return None
    if options.norm is not Norm.LINF:
        raise VerifierError(f"Certificates are for boxes, and an {options.norm.value} ball is none: use --norm linf, or no --certificates.")
    from verifier.measure.proofs import ProofFolder

    others = {"the configuration": options.config, "the file of images": options.data, "the results file": options.results_file}
    return ProofFolder(options.certificates, graph, _arithmetic(options), options.overwrite, first, others)


def _line(outcome: Measured) -> str:
    shown = fields_of(outcome)
    margin, pgd = ("" if shown[key] is None else f"{shown[key]:.4g}" for key in ("margin", "pgd_margin"))
    start = f"{shown['index']:6d} {shown['label']:6d} {shown['predicted']:9d} {shown['verdict']:>8}"
    return f"{start} {margin:>10} {pgd:>10} {shown['domains']:8d} {shown['seconds']:8.2f}"


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
