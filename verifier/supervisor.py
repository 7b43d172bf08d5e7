"""Two processes for one command: the one that was started waits, the other works; the first speaks where the second cannot.

A thread cannot promise an answer in time: it waits for the interpreter, which a long call of another library may hold. So the process that was
started forks before anything large is imported, and keeps a clock. The worker sends it its last words beforehand: what is to be said if the time
is over, if it is interrupted, or if the system ends it for want of memory. Whoever speaks says so first, and nobody speaks after that.

A signal of the terminal or of `kill` reaches the first process alone, which hands on one interruption (as SIGUSR1). The worker dies of that
at once, except where it said `interruptible`: there it is a KeyboardInterrupt. Only the standard library is imported here.
"""
from __future__ import annotations

import json
import math
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from verifier.outputs import OutputError, replace_file, write_all
from verifier.streams import draw, prepare, tell

_NOTED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SECONDS = "\0"  # stands in a sentence for the seconds that the command took
_TORN = 131  # the worker's exit code where an interruption tore something apart: the supervisor speaks
_BARE = {
    "interrupted": ("interrupted.", 130),
    "ended": ("ended by a signal.", 143),
    "memory": ("the system ended the computation, most likely for want of memory: use a machine with more, or a smaller network.", 2),
}
_PATIENCE_S = 2.0  # between an interruption and the end of a worker that does not react to it
_LEAVING_S = 1.0  # what a worker may take to end after it has spoken
_OLDEST_START_S = 3.0  # a process older than this at its start was another program before: a shell's `exec` keeps the age


@dataclass(slots=True)
class _Here:
    """What a process has once: the pipe to its supervisor, and when its command began."""

    report: int | None = None
    began: float | None = None
    interrupted: bool = False


_here = _Here()


def began() -> float:
    """When the command's clock started, in seconds of `time.monotonic`: with its process, or now where it is not supervised."""
    return time.monotonic() if _here.began is None else _here.began


def last_words(at_s: float, words: dict[str, Any], parts: list[str]) -> None:
    """What the supervisor says in place of this process: at `at_s` (of `time.monotonic`) those for "timeout".

    Args:
        at_s: when this process is ended.
        words: for "timeout", "interrupted" and "memory": {"answer": JSON for stdout, or None, "text": for stdout where that is None, "file": [path,
            text] or None, "sentence": for stderr, with `SECONDS`, "code": exit code}; the last two causes have a sentence of their own otherwise.
        parts: names of files that are to be removed if this process is ended.
    """
    _send({"at": at_s, "words": words, "parts": parts})


def speaking() -> None:
    """From here on this process speaks for itself, without interruption: the supervisor waits for it as long as that takes."""
    if _here.report is not None:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    _send({"speaking": True})


def spoken(code: int) -> None:
    """The answer is out; the exit code is this one whatever happens to the process now."""
    _send({"spoken": code})


def interruptible() -> None:
    """From here on an interruption is a KeyboardInterrupt, and no longer the end of this process."""
    if _here.report is not None:
        signal.signal(signal.SIGUSR1, _interrupt)


def _interrupt(number: int, frame: object) -> None:
    _here.interrupted = True
    raise KeyboardInterrupt


def _send(message: dict[str, Any]) -> None:
    if _here.report is not None:
        with suppress(BrokenPipeError):
            write_all(_here.report, json.dumps(message).encode() + b"\n")


def supervise(name: str, work: Callable[[], int]) -> int:
    """The exit code of `work()`, done in a process of its own where the system can fork; `name` begins the sentences."""
    _here.began = _process_start()
    prepare()
    if not hasattr(os, "fork"):
        return work()
    get, put = os.pipe()
    parent = _Parent(name, get)
    worker = os.fork()
    if worker:
        os.close(put)
        return parent.watch(worker)
    os.close(get)
    parent.forget()
    _here.report = put
    _die_with_parent()
    sys.excepthook = _last_fault
    sys.unraisablehook = _ignored
    return work()


def _process_start() -> float:
    """When this process started, on the clock of `time.monotonic`, as far as the system says; else what its own computing tells."""
    now, own = time.monotonic(), time.process_time()
    try:
        with open("/proc/self/stat", "rb") as file:
            ticks = int(file.read().rpartition(b")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        age = own
    return now - (age if own <= age <= max(_OLDEST_START_S, own) else own)


def _die_with_parent() -> None:
    """Where the system can do it: this process is killed when its supervisor is."""
    if sys.platform == "linux":
        import ctypes

        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG


def _last_fault(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """A fault of the program: where it is, what it says, exit code 2; nothing of it where an interruption tore something apart."""
    if _here.interrupted or issubclass(kind, KeyboardInterrupt):
        os._exit(_TORN)
    place = "an unknown place"
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if f"{os.sep}verifier{os.sep}" in file or place == "an unknown place":
            place = f"{os.path.basename(file)}, line {trace.tb_lineno}"
        trace = trace.tb_next
    tell(f"verifier: a fault of this program, please report it: {kind.__name__} at {place}: {error}")
    os._exit(2)


def _ignored(unraisable: Any) -> None:
    """An interruption that came where none can be raised; the supervisor ends this process soon. Anything else is told as usual."""
    if not isinstance(unraisable.exc_value, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)


@dataclass(slots=True)
class _Parent:
    """The process that was started: hears the worker and the signals, keeps the clock."""

    name: str
    pipe: int
    at_s: float = math.inf
    words: dict[str, Any] = field(default_factory=dict)
    parts: list[str] = field(default_factory=list)
    speaking: bool = False
    code: int | None = None
    cause: str = "timeout"
    signals: list[int] = field(default_factory=list)
    before: dict[int, Any] = field(default_factory=dict)
    wake: tuple[int, int] = (-1, -1)
    heard: bytes = b""

    def __post_init__(self) -> None:
        """Signals are noted from here on; one that was ignored, as for a command in the background, stays so."""
        self.wake = os.pipe()
        for end in self.wake:
            os.set_blocking(end, False)
        signal.set_wakeup_fd(self.wake[1], warn_on_full_buffer=False)
        for number in _NOTED:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self.before[number] = signal.signal(number, lambda n, frame: self.signals.append(n))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _NOTED)

    def forget(self) -> None:
        """In the worker: the terminal's signals are the supervisor's alone."""
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        for number in self.before:
            signal.signal(number, signal.SIG_IGN)
        for end in self.wake:
            os.close(end)

    def watch(self, worker: int) -> int:
        """The exit code, once the worker has ended or its time is over."""
        seen = 0
        while True:
            ready = self._wait()
            if self.pipe in ready and not self._hear():
                return self._ended(os.waitpid(worker, 0)[1])
            if len(self.signals) > seen:
                seen = len(self.signals)
                self._interrupt(worker)
            if time.monotonic() >= self.at_s:
                code = self._end(worker)
                if code is not None:
                    return code

    def _wait(self) -> list[int]:
        left = max(0.0, self.at_s - time.monotonic())
        ready, _, _ = select.select([self.pipe, self.wake[0]], [], [], min(left, 3600.0))
        if self.wake[0] in ready:
            with suppress(BlockingIOError):
                os.read(self.wake[0], 4096)
        return ready

    def _hear(self) -> bool:
        """Takes in what the worker sent; whether it is still there."""
        data = os.read(self.pipe, 1 << 16)
        *lines, self.heard = (self.heard + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "words" in message:
                self.words, self.parts = message["words"], message["parts"]
                if not self.signals:
                    self.at_s = message["at"]
            elif "speaking" in message:
                self.speaking, self.at_s = True, math.inf
            else:
                self.code, self.at_s = message["spoken"], time.monotonic() + _LEAVING_S
        return bool(data)

    def _interrupt(self, worker: int) -> None:
        """Hands the first interruption on: where nothing else is known, the worker may take its time to show what it has. The second ends it."""
        self.cause = "interrupted" if self.signals[0] == signal.SIGINT else "ended"
        if len(self.signals) > 1:
            self.at_s = time.monotonic()
        elif not self.speaking:
            if "interrupted" in self.words:
                self.at_s = min(self.at_s, time.monotonic() + _PATIENCE_S)
            os.kill(worker, signal.SIGUSR1)

    def _end(self, worker: int) -> int | None:
        """The exit code after the worker was ended; None where it has begun to speak. It is halted first, and so is on one side of that."""
        os.kill(worker, signal.SIGSTOP)
        status = os.waitpid(worker, os.WUNTRACED)[1]
        while select.select([self.pipe], [], [], 0.0)[0] and self._hear():
            pass
        if not os.WIFSTOPPED(status):
            return self._ended(status)
        if self.speaking and self.code is None and len(self.signals) < 2:
            os.kill(worker, signal.SIGCONT)
            return None
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)
        return self._speak()

    def _ended(self, status: int) -> int:
        """The exit code after the worker ended by itself, or by a signal."""
        if self.code is not None:
            return self.code
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
        if number is None and os.WEXITSTATUS(status) != _TORN:
            return os.WEXITSTATUS(status)
        if not self.signals and number != signal.SIGKILL:
            tell(f"{self.name}: the computation was ended by signal {number}, a fault of this program or of a library that it uses.")
            return 2
        if not self.signals:
            self.cause = "memory"
        return self._speak()

    def _speak(self) -> int:
        """Says the last words that fit the cause, unless the worker has spoken; the exit code."""
        if self.code is not None:
            return self.code
        for part in self.parts:
            with suppress(OSError):
                os.unlink(part)
        if sys.stderr.isatty():
            draw("\r\x1b[2K\x1b[?25h")  # no half line, and the cursor is seen again
        words = self.words.get("interrupted" if self.cause == "ended" else self.cause)
        if words is None:
            sentence, code = _BARE[self.cause]
            tell(f"{self.name}: {sentence}")
            return code
        try:
            self._say(words)
        except OutputError as error:
            tell(f"{self.name}: {error}")
            return 2
        return words["code"]

    def _say(self, words: dict[str, Any]) -> None:
        seconds = time.monotonic() - began()
        text = words["text"] if words["answer"] is None else json.dumps(words["answer"] | {"seconds": round(seconds, 3)}) + "\n"
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        finally:
            if words["file"] is not None:
                replace_file(Path(words["file"][0]), words["file"][1].encode())
        tell(words["sentence"].replace(SECONDS, f"{seconds:.2f}"))
