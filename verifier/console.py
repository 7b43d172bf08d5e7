"""What the command line writes: one verdict on stdout, sentences and a progress line on stderr.

The words of the competition live here: `unsat`, `sat`, `unknown`, `timeout`.
"""
from __future__ import annotations

import json
import math
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from verifier import supervisor
from verifier.bab.budget import Progress
from verifier.errors import VerifierError
from verifier.outputs import OutputError, check_writable, replace_file, standard_stream
from verifier.streams import draw, plain, tell
from verifier.verdict import Reason, Status, Verdict

GRACE_S = 1.5  # what the solver may take to come back after its time is over; the promise to the user is two seconds
_WORDS = {Status.VERIFIED: "unsat", Status.FALSIFIED: "sat", Status.UNKNOWN: "unknown"}
_FIRST_LINES = {text.encode() for text in (*_WORDS.values(), "timeout")}


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


@dataclass(slots=True)
class ProgressLine:
    """A listener: the latest step on one line of a terminal, every step with `verbose`, nothing otherwise. Remembers the latest."""

    verbose: bool = False
    started: float = field(default_factory=supervisor.began)
    latest: Progress | None = None
    shown_at: float = -math.inf
    heard: Callable[[], None] | None = None

    def __call__(self, progress: Progress) -> None:
        self.latest = progress
        if self.heard is not None:
            self.heard()
        text = f"{time.monotonic() - self.started:.1f} s, {_line(progress)}"  # the whole run's seconds; a stage counts its own
        if self.verbose:
            tell(text)
        elif sys.stderr.isatty() and time.monotonic() - self.shown_at > 0.1:
            self.shown_at = time.monotonic()
            width = shutil.get_terminal_size().columns - 1
            draw(f"\r\x1b[2K{plain(text)[:width]}")

    def clear(self) -> None:
        if self.shown_at > -math.inf:
            draw("\r\x1b[2K")

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
    """Writes the one verdict of a run, or has the supervisor write it: `timeout`, `GRACE_S` after the time is over, and what else ends the run."""

    json: bool
    results_file: Path | None
    line: ProgressLine
    timeout_s: float = math.inf
    parts: list[str] = field(default_factory=list)
    posted_at: float = -math.inf
    stage: str = ""

    def __post_init__(self) -> None:
        """What cannot be written is better known before the work than after it."""
        if self.results_file is not None:
            check_replaceable(self.results_file)
            check_writable(self.results_file)
        self.line.heard = self._post
        self._post()

    def give(self, verdict: Verdict) -> None:
        """Writes the verdict everywhere it is wanted, also where one of the places fails."""
        supervisor.speaking()
        self.line.clear()
        words = self._words(verdict)
        try:
            sys.stdout.write(words["text"] if words["answer"] is None else json.dumps(words["answer"]) + "\n")
            sys.stdout.flush()
        finally:
            if self.results_file is not None:
                replace_file(self.results_file, words["text"].encode())
        tell(words["sentence"].replace(supervisor.SECONDS, f"{verdict.seconds:.2f}"))
        supervisor.spoken(0)

    def _words(self, verdict: Verdict) -> dict[str, Any]:
        text = as_text(verdict)
        return {
            "answer": as_json(verdict) if self.json else None, "text": text, "code": 0,
            "file": None if self.results_file is None else [str(self.results_file), text],
            "sentence": f"{verdict.sentence} ({supervisor.SECONDS} s, {verdict.domains} domains)",
        }  # fmt: skip

    def _post(self) -> None:
        """Leaves the last words with the supervisor: at once in a new stage, else ten times a second."""
        now, stage = time.monotonic(), "" if self.line.latest is None else self.line.latest.stage
        if stage == self.stage and now - self.posted_at < 0.1:
            return
        self.posted_at, self.stage = now, stage
        causes = {
            "timeout": (Reason.TIMEOUT, f"The time of {self.timeout_s:g} s is over."), "interrupted": (Reason.INTERRUPTED, "Interrupted."),
            "memory": (Reason.MEMORY, "The system ended the computation, most likely for want of memory."),
        }  # fmt: skip
        words = {cause: self._words(self.line.undecided(*why)) for cause, why in causes.items()}
        supervisor.last_words(self.line.started + self.timeout_s + GRACE_S, words, self.parts)


def check_replaceable(path: Path) -> None:
    """That nothing lies at the name of a results file but an older one, which a run may replace."""
    try:
        start = _beginning(path) if path.is_file() and not standard_stream(path) else b""
    except (OSError, ValueError) as error:
        raise OutputError(f"Cannot write {path}: {getattr(error, 'strerror', None) or error}.") from None
    if start and start.split(b"\n")[0] not in _FIRST_LINES:
        raise OutputError(f"{path} is there and holds no verdict of an earlier run; it would be overwritten: give the results file another name.")


def _beginning(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(16)


def end_after(seconds: float) -> None:
    """Gives this command so much time, from its start on: its supervisor ends it then, with one sentence and exit code 2."""
    if not 0 < seconds < math.inf:
        raise VerifierError(f"--timeout is {seconds:g}: give a positive number of seconds.")
    sentence = f"verifier: the time of {seconds:g} s is over: give more with --timeout."
    words = {"timeout": {"answer": None, "text": "", "file": None, "sentence": sentence, "code": 2}}
    supervisor.last_words(supervisor.began() + seconds, words, [])
