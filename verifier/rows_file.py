"""The rows of `verifier accuracy` in a CSV file: each is there as soon as its image is decided, and a run that asks the same goes on behind them.

The last column, `question`, is a digest of all that the rows answer: network, images, radius, settings. Rows of another question are kept unless the
user gives them up, and so is any other file that lies there.
"""
from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verifier import __version__
from verifier.config import Config
from verifier.console import finite, word
from verifier.errors import VerifierError
from verifier.graph.onnx_file import model_digest
from verifier.verdict import Reason, Status, Verdict

try:
    import fcntl
except ImportError:  # not on every system
    fcntl = None

if TYPE_CHECKING:
    from verifier.data.dataset import Split
    from verifier.measure.accuracy import Measured
    from verifier.measure.certified import Perturbation

FIELDS = ("index", "label", "predicted", "verdict", "reason", "margin", "pgd_margin", "domains", "seconds", "certificate")
COLUMNS = (*FIELDS, "question")
_STATUS = {"unsat": Status.VERIFIED, "sat": Status.FALSIFIED, "unknown": Status.UNKNOWN, "timeout": Status.UNKNOWN}
_REMEDY = "give another name, or --overwrite to lose what is there"


def fields_of(outcome: Measured) -> dict[str, Any]:
    """One image's row, as JSON and the file have it."""
    row, verdict = outcome.row, outcome.row.verdict
    values = (
        row.index, row.label, row.predicted, word(verdict), verdict.reason.value, finite(outcome.margin), finite(outcome.pgd_margin),
        verdict.domains, round(verdict.seconds, 4), None if verdict.certificate is None else Path(verdict.certificate).name,
    )  # fmt: skip
    return dict(zip(FIELDS, values, strict=True))


def question_of(model: Path, split: Split, around: Perturbation, config: Config, proofs: tuple[str, str] | None) -> str:
    """Sixteen hexadecimal letters that differ where the rows might: of the model, all images of the split, the ball, every setting, the release.

    Args:
        proofs: where certificates go, and of which arithmetic they speak; None where none are made.
    """
    images = hashlib.sha256(repr((split.x.stored.shape, split.x.stored.dtype.str, split.x.scale)).encode())
    images.update(split.x.stored.tobytes())
    images.update(split.y.tobytes())
    asked = [model_digest(model), images.hexdigest(), asdict(around), asdict(config), proofs, __version__]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class RowsFile:
    """The file at `path`; its rows answer the question of this digest. `folder`: where the certificates are that they name."""

    path: Path
    question: str
    attacked: bool = True
    folder: Path | None = None

    def kept(self, overwrite: bool) -> tuple[list[Measured], int]:
        """The outcomes that are there, images 0, 1, ... in order, and the bytes that they take; after an interruption or a half row comes nothing.

        Raises:
            VerifierError: what is there is something else, and `overwrite` is not given.
        """
        if overwrite or not self.path.is_file():
            return [], 0
        try:
            lines = self.path.read_bytes().splitlines(keepends=True)
        except OSError as error:
            raise VerifierError(f"Cannot read the results file {self.path}: {error.strerror}.") from None
        whole = [line for line in lines if line.endswith(b"\n")]
        if lines and (not whole or whole[0].strip() != ",".join(COLUMNS).encode()):
            raise VerifierError(f"{self.path} is there and has no rows of this command: {_REMEDY}.")
        found, size = [], len(whole[0]) if whole else 0
        for line in whole[1:]:
            outcome = self._read(line, len(found))
            if outcome.row.verdict.reason is Reason.INTERRUPTED:
                break
            found.append(outcome)
            size += len(line)
        return found, size

    def _read(self, line: bytes, index: int) -> Measured:
        from verifier.measure.accuracy import Measured
        from verifier.measure.certified import ImageRow

        place = f"{self.path}, line {index + 2}"
        try:
            values = dict(zip(COLUMNS, next(csv.reader([line.decode()])), strict=True))
            if values["question"] != self.question:
                raise VerifierError(f"{self.path} has rows of another network, other images or other settings: {_REMEDY}.")
            number, label, predicted, domains = (int(values[key]) for key in ("index", "label", "predicted", "domains"))
            margin, pgd = (float(values[key]) if values[key] else None for key in ("margin", "pgd_margin"))
            seconds, status, reason = float(values["seconds"]), _STATUS[values["verdict"]], Reason(values["reason"])
        except (ValueError, KeyError, StopIteration):
            raise VerifierError(f"{place} is no row of this command: {_REMEDY}.") from None
        if number != index:
            raise VerifierError(f"{place} has image {number} where {index} is expected: {_REMEDY}.")
        proof = None if not values["certificate"] or self.folder is None else self.folder / values["certificate"]
        if proof is not None and not proof.is_file():
            raise VerifierError(f"{place} tells of {proof}, which is not there: {_REMEDY}.")
        verdict = Verdict(status, reason, "", seconds, domains, lower_bound=margin, certificate=None if proof is None else str(proof))
        if pgd is None and predicted == label and self.attacked:
            pgd = math.inf
        return Measured(ImageRow(index, label, predicted, verdict, pgd))

    @contextmanager
    def writer(self, size: int) -> Iterator[_Writer]:
        """What writes rows behind the first `size` bytes, one at a time, so that the rows of a killed run are there.

        Raises:
            VerifierError: it cannot be written, or another run writes there, or did since it was read.
        """
        try:
            number = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise VerifierError(f"Cannot write the results file {self.path}: {error.strerror}.") from None
        with open(number, "r+b" if self.path.is_file() else "wb", buffering=0) as file:
            if not _alone(file) or (size and self.kept(False)[1] != size):
                raise VerifierError(f"Another run writes the results file {self.path}: give another name, or wait for its end.")
            writer = _Writer(self, file)
            if self.path.is_file():
                writer.go_on(size)
            if not size:
                writer.add(dict(zip(COLUMNS, COLUMNS, strict=True)))
            yield writer


def _alone(file: io.RawIOBase) -> bool:
    """Whether no other run has a file open for its rows; until it is closed, no other run will. Devices, and systems without locks, have none."""
    if fcntl is not None and stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return True
    return True


class _Writer:
    def __init__(self, rows: RowsFile, file: io.RawIOBase) -> None:
        self.rows, self.file = rows, file

    def __call__(self, outcome: Measured) -> None:
        self.add(fields_of(outcome) | {"question": self.rows.question})

    def go_on(self, size: int) -> None:
        try:
            self.file.truncate(size)
            self.file.seek(size)
        except OSError as error:
            raise self._failed(error) from None

    def add(self, values: dict[str, Any]) -> None:
        """One line, written at once."""
        text = io.StringIO(newline="")
        csv.DictWriter(text, COLUMNS).writerow(values)
        line = memoryview(text.getvalue().encode())
        try:
            while line:
                line = line[self.file.write(line):]
        except OSError as error:
            raise self._failed(error) from None

    def _failed(self, error: OSError) -> VerifierError:
        return VerifierError(f"Cannot write the results file {self.rows.path}: {error.strerror}; the rows before are in it.")
