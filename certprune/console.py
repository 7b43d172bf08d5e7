"""What `certprune` shows on stderr: bars with the time left on a terminal, one line for each finished stage anywhere."""
from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from certprune.progress import Step


def tell(sentence: str) -> None:
    """One sentence for a person."""
    print(sentence, file=sys.stderr, flush=True)


class Bars:
    """A listener of steps, to be used in a `with` block; `stages` is how many the whole run has, 0 where that is one alone."""

    def __init__(self, stages: int = 0) -> None:
        self.stages = stages
        self.reused: list[str] = []
        self.finished = 0
        self._began: dict[str, float] = {}
        self._progress: Any = None
        self._whole: Any = None
        self._current: Any = None

    def __enter__(self) -> Bars:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

            name, left = TextColumn("{task.description:<28}"), TextColumn("left")
            columns = (name, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), left, TimeRemainingColumn())
            self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
            self._progress.start()
            self._whole = self._progress.add_task("stages", total=self.stages, visible=self.stages > 0)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._progress is not None:
            self._progress.stop()

    def __call__(self, step: Step) -> None:
        if step.finished:
            self._finish(step)
            return
        began = step.stage in self._began
        self._began.setdefault(step.stage, time.monotonic())
        if self._progress is None:
            return
        if not began or self._current is None:
            self._drop()
            self._current = self._progress.add_task(step.stage, total=step.total or None)
        self._progress.update(self._current, description=step.stage, completed=int(step.done), total=step.total or None)

    def _finish(self, step: Step) -> None:
        self.finished += 1
        self._drop()
        seconds = time.monotonic() - self._began.pop(step.stage, time.monotonic())
        if step.reused:
            self.reused.append(step.stage)
        how = "found, used again" if step.reused else f"{seconds:.1f} s"
        line = f"{step.stage:<40} {how:<18} {step.note}".rstrip()
        if self._progress is None:
            tell(line)
            return
        self._progress.console.print(line, highlight=False, markup=False)
        self._progress.update(self._whole, completed=self.finished)

    def _drop(self) -> None:
        if self._current is not None:
            self._progress.remove_task(self._current)
            self._current = None


def table(rows: Any) -> str:
    """The rows of a run for a person: one line each, certified from lower to upper limit."""
    head = f"{'network':<28} {'split':<9} {'sparsity':>8} {'clean':>7} {'pgd':>7} {'certified':>16} {'unstable':>9} {'s/image':>8}"
    return "\n".join([head, *(_line(row) for row in rows)])


def _line(row: Any) -> str:
    limits = share(row.certified) if row.certified == row.certified_upper else f"{share(row.certified)} to {share(row.certified_upper)}"
    unstable = "-" if row.unstable_crown is None else f"{row.unstable_crown:.1f}"
    seconds = "-" if row.seconds_per_image is None else f"{row.seconds_per_image:.3f}"
    shares = f"{share(row.sparsity):>8} {share(row.clean):>7} {share(row.pgd):>7} {limits:>16}"
    return f"{row.name:<28} {row.split:<9} {shares} {unstable:>9} {seconds:>8}"


def share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
