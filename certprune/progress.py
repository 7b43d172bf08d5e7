"""What the loop tells of its work while it runs, for whoever shows it."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Step:
    """`done` of `total` units (epochs, images; 0 of 0 where it has none) of a stage are behind; `note` is what came of it, at its end."""

    stage: str
    done: float = 0
    total: int = 0
    finished: bool = False
    reused: bool = False
    note: str = ""


Listener = Callable[[Step], None]


def silent(_: Step) -> None:
    """A listener for those who do not listen."""
