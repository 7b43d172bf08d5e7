"""Deadline and progress: what a long computation asks and tells while it runs."""
from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Deadline:
    """A point of the monotonic clock. Asked inside every loop that can be long."""

    at_s: float

    @staticmethod
    def after(seconds: float) -> Deadline:
        return Deadline(time.monotonic() + seconds)

    def left_s(self) -> float:
        return self.at_s - time.monotonic()

    def expired(self) -> bool:
        return self.left_s() <= 0

    def sooner(self, seconds: float) -> Deadline:
        """This deadline or `seconds` from now, whichever comes first."""
        return Deadline(min(self.at_s, time.monotonic() + seconds))


@dataclass(frozen=True, slots=True)
class Progress:
    """One line for a person: what is being done, and how far it is. `lower_bound` is that of the worst open domain."""

    stage: str
    seconds: float
    lower_bound: float | None = None
    open_domains: int = 0
    closed_domains: int = 0


Listener = Callable[[Progress], None]


def silent(progress: Progress) -> None:
    """The listener of a caller that wants no progress."""
