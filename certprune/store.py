"""What a run leaves on disk: a folder for each stage, known by what went into it.

    NAME/stages/dense-train-1f3a.../    network.pt, done.json          finished, and used again by every run that asks the same
    NAME/stages/magnitude-1-finetune-.../   partial.pt                 cut short, and gone on with

A stage's folder ends in the digest of everything that its result depends on: settings, seed, and the digests of the stages before it. So
what is found there is the result of the same question, and a changed setting finds nothing. `done.json` is written last, and every file at
once or not at all: killed at any moment, a stage is done, or cut short, or has not begun.
"""
from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from certprune import __version__
from certprune.config import digest
from certprune.progress import Listener, Step
from verifier import VerifierError

FORMAT = 1
"""Raised when a stage computes something else than it did, between releases: older results are not used again then."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A finished stage: its folder, the digest that stands for its result, and what it recorded."""

    folder: Path
    digest: str
    record: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Store:
    """The stages under `root`; `tell` hears of each."""

    root: Path
    tell: Listener

    def stage(self, label: str, depends: dict[str, Any], work: Callable[[Path], dict[str, Any]]) -> Stage:
        """The result of a stage: found, or worked out by `work(folder)`, which writes into the folder and returns what to record.

        Args:
            label: for people; the folder's name begins with it.
            depends: everything that the result is a function of.
        """
        known = digest({"format": FORMAT, "release": __version__, "stage": label, **depends})
        folder = self.root / "stages" / f"{label}-{known}"
        record = self._found(folder)
        if record is not None:
            self.tell(Step(label, finished=True, reused=True, note=record.get("note", "")))
            return Stage(folder, known, record)
        self.tell(Step(label))
        make_folder(folder)
        record = work(folder)
        write_json(record, folder / "done.json")
        (folder / "partial.pt").unlink(missing_ok=True)
        self.tell(Step(label, finished=True, note=record.get("note", "")))
        return Stage(folder, known, record)

    @staticmethod
    def _found(folder: Path) -> dict[str, Any] | None:
        """What a finished stage recorded; None where it is unfinished, or a file of it is gone."""
        if not (folder / "done.json").exists():
            return None
        record = read_json(folder / "done.json")
        return record if all((folder / name).exists() for name in record.get("files", ())) else None


def make_folder(folder: Path) -> None:
    """Raises VerifierError where the folder cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VerifierError(f"Cannot make the folder {folder}: {error.strerror}.") from None


def write_text(text: str, path: Path) -> None:
    """Writes the file at once or not at all.

    Raises:
        VerifierError: it cannot be written; an older file of this name is untouched.
    """
    beside = path.with_name(f".{path.name}.partial")
    try:
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise VerifierError(f"Cannot write {path} ({error.strerror}): what was finished before is kept; make room and start again.") from None


def write_json(value: Any, path: Path) -> None:
    """As `write_text`."""
    write_text(json.dumps(value, indent=1) + "\n", path)


def read_json(path: Path) -> Any:
    """Raises VerifierError where the file cannot be read or is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise VerifierError(f"Cannot read {path}: {error.strerror}.") from None
    except ValueError as error:
        raise VerifierError(f"{path} is not JSON ({error}): remove it, and its stage is done again.") from None
