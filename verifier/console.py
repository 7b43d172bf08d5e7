"""What the command line writes: one verdict on stdout, sentences and a progress line on stderr.

The words of the competition live here: `unsat`, `sat`, `unknown`, `timeout`.
"""
from __future__ import annotations

import json
import math
import os
import shutil
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from verifier.bab.budget import Progress
from verifier.errors import VerifierError
from verifier.verdict import Reason, Status, Verdict

GRACE_S = 1.5  # what the solver may take to come back after its time is over; the promise to the user is two seconds
_WORDS = {Status.VERIFIED: "unsat", Status.FALSIFIED: "sat", Status.UNKNOWN: "unknown"}


def word(verdict: Verdict) -> str:
    """The verdict in the competition's words."""
    return "timeout" if verdict.reason is Reason.TIMEOUT else _WORDS[verdict.status]


def finite(value: float | None) -> float | None:
    """A number that JSON can hold, or None."""
    return None if value is None or not math.isfinite(value) else float(value)


def as_json(verdict: Verdict) -> dict[str, Any]:
    """The verdict with exactly the keys that `--json` promises: for `unsat` also `proved`, `lacks` and, where one was written, `certificate`."""
    found = verdict.counterexample
    return {
        "verdict": word(verdict),
        "reason": verdict.reason.value,
        "seconds": round(verdict.seconds, 3),
        "domains": verdict.domains,
        "engine": verdict.engine,
        "lower_bound": finite(verdict.lower_bound),
        "witness": None if found is None else {"x": found.x.tolist(), "y": found.y.tolist(), "margin": finite(found.margin)},
    } | _proof(verdict)


def _proof(verdict: Verdict) -> dict[str, Any]:
    if verdict.status is not Status.VERIFIED:
        return {}
    kept = {} if verdict.certificate is None else {"certificate": verdict.certificate}
    return {"proved": verdict.proved, "lacks": verdict.lacks or None} | kept


def as_text(verdict: Verdict) -> str:
    """The verdict's word on the first line, after `sat` the witness in the competition's form."""
    if verdict.counterexample is None:
        return word(verdict) + "\n"
    from verifier.attack.confirm import witness_text

    return witness_text(verdict.counterexample)


def tell(sentence: str) -> None:
    """One sentence for a person."""
    print(sentence, file=sys.stderr, flush=True)


@dataclass(slots=True)
class ProgressLine:
    """A listener: the latest step on one line of a terminal, every step with `verbose`, nothing otherwise. Remembers the latest."""

    verbose: bool = False
    started: float = field(default_factory=time.monotonic)
    latest: Progress | None = None
    shown_at: float = -math.inf

    def __call__(self, progress: Progress) -> None:
        self.latest = progress
        text = f"{time.monotonic() - self.started:.1f} s, {_line(progress)}"  # the whole run's seconds; a stage counts its own
        if self.verbose:
            tell(text)
        elif sys.stderr.isatty() and time.monotonic() - self.shown_at > 0.1:
            self.shown_at = time.monotonic()
            width = shutil.get_terminal_size().columns - 1
            sys.stderr.write(f"\r\x1b[2K{text[:width]}")
            sys.stderr.flush()

    def clear(self) -> None:
        if self.shown_at > -math.inf:
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()

    def undecided(self, reason: Reason, sentence: str) -> Verdict:
        """UNKNOWN with what the latest step had reached."""
        seconds = time.monotonic() - self.started
        if self.latest is None:
            return Verdict(Status.UNKNOWN, reason, sentence, seconds)
        reached = f"{sentence} Reached: {_line(self.latest)}."
        return Verdict(Status.UNKNOWN, reason, reached, seconds, self.latest.closed_domains, self.latest.stage, self.latest.lower_bound)


def _line(progress: Progress) -> str:
    parts = [progress.stage]
    if progress.lower_bound is not None:
        parts.append(f"lower bound {progress.lower_bound:.4g}")
    if progress.open_domains or progress.closed_domains:
        parts.append(f"{progress.open_domains} domains open, {progress.closed_domains} closed")
    return ", ".join(parts)


@dataclass(slots=True)
class Answer:
    """Writes the one verdict of a run: whoever comes first, the solver or the watchdog, speaks, and nobody after it."""

    json: bool
    results_file: Path | None
    line: ProgressLine
    lock: threading.Lock = field(default_factory=threading.Lock)
    given: bool = False

    def __post_init__(self) -> None:
        self._write_file("")  # a file that cannot be written is better known before the work than after it

    def give(self, verdict: Verdict) -> bool:
        """Whether this call wrote the verdict."""
        with self.lock:
            if self.given:
                return False
            self.given = True
            self.line.clear()
            text = as_text(verdict)
            sys.stdout.write(json.dumps(as_json(verdict)) + "\n" if self.json else text)
            sys.stdout.flush()
            self._write_file(text)
            tell(f"{verdict.sentence} ({verdict.seconds:.2f} s, {verdict.domains} domains)")
            return True

    def _write_file(self, text: str) -> None:
        if self.results_file is None:
            return
        try:
            self.results_file.write_text(text)
        except OSError as error:
            raise VerifierError(f"Cannot write the results file {self.results_file}: {error.strerror}.") from None


def watch(answer: Answer, timeout_s: float) -> threading.Timer:
    """Gives the verdict `timeout` and ends the process `GRACE_S` after the time is over, whatever the solver is doing then."""

    def end() -> None:
        try:
            answer.give(answer.line.undecided(Reason.TIMEOUT, f"The time of {timeout_s:g} s is over."))
        finally:
            os._exit(0)

    timer = threading.Timer(max(timeout_s + GRACE_S - (time.monotonic() - answer.line.started), 0.0), end)
    timer.daemon = True
    timer.start()
    return timer
