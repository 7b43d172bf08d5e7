"""Clean, attacked and certified accuracy of one network on one list of images, as they are decided.

    clean      the network is right on the image itself
    PGD        and projected gradient descent finds no point of its ball where it is wrong
    certified  and there is none, proved

The attack comes first, and what it falsifies is falsified: certified accuracy and its upper limit never exceed PGD accuracy, nor that the clean one.
Each is a share of all images that were asked for, with a lower and an upper limit: an image that was not reached, or not decided in its
time, counts as wrong in the lower limit and as right in the upper one.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from verifier.bab.budget import Listener, Progress, silent
from verifier.config import Config
from verifier.graph.ir import Graph
from verifier.measure.certified import ImageRow, Perturbation, certify, settled
from verifier.verdict import Reason, Status

if TYPE_CHECKING:
    from verifier.measure.proofs import ProofFolder


@dataclass(frozen=True, slots=True)
class Measured:
    """One image's outcome."""

    row: ImageRow

    @property
    def pgd_margin(self) -> float | None:
        return self.row.pgd_margin

    @property
    def correct(self) -> bool:
        return self.row.correct

    @property
    def survives(self) -> bool:
        """An attack was made, and the label stands."""
        return self.row.stands and self.row.pgd_margin is not None

    @property
    def margin(self) -> float | None:
        """A proved lower bound of the least margin in the ball, 0 where the proof tells no more; of a falsified image its counterexample's
        margin, at most 0; None where nothing is known.
        """
        verdict = self.row.verdict
        if verdict.counterexample is not None:
            return 0.0 - verdict.counterexample.margin
        return 0.0 if verdict.lower_bound is None and verdict.status is Status.VERIFIED else verdict.lower_bound


def measure_accuracy(
    graph: Graph, images: np.ndarray, labels: np.ndarray, around: Perturbation, config: Config, listener: Listener = silent,
    proofs: ProofFolder | None = None,
) -> Iterator[Measured]:
    """One outcome an image, in their order, as `certify` has them.

    After an interruption, of which some of the verdicts tell, nothing more is begun.

    Args:
        images: `(N, *shape)` in their own units.
        labels: `(N,)`.
        proofs: as for `certify`.

    Raises:
        VerifierError: as `certify`.
    """
    interrupted = False

    def told(progress: Progress) -> None:
        if interrupted:
            raise KeyboardInterrupt  # verdicts tell of the first one; this keeps the solver from beginning with further images
        listener(progress)

    try:
        for row in certify(graph, images, labels, around, config, told, proofs):
            interrupted |= row.verdict.reason is Reason.INTERRUPTED
            yield Measured(row)
    except KeyboardInterrupt:
        if not interrupted:
            raise


@dataclass(frozen=True, slots=True)
class Limits:
    """lower <= accuracy <= upper."""

    lower: float
    upper: float

    def __str__(self) -> str:
        return f"{self.lower:.1%}" if self.lower == self.upper else f"{self.lower:.1%} to {self.upper:.1%}"


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Counts over `images` that were asked for, `reached` of them; `pgd` is None where no attack was made."""

    images: int
    reached: int
    certified: int
    falsified: int
    undecided: int
    clean: Limits
    pgd: Limits | None
    provable: Limits
    seconds: float

    @staticmethod
    def of(measured: Sequence[Measured], images: int) -> Accuracy:
        found = [settled(m.row.verdict.status, m.row.stands) for m in measured]
        count = {status: found.count(status) for status in Status}
        attacked = all(m.pgd_margin is not None for m in measured if m.correct)

        def limits(right: int, open_: int) -> Limits:
            return Limits(right / max(images, 1), (right + open_ + images - len(measured)) / max(images, 1))

        return Accuracy(
            images=images,
            reached=len(measured),
            certified=count[Status.VERIFIED],
            falsified=count[Status.FALSIFIED],
            undecided=count[Status.UNKNOWN],
            clean=limits(sum(m.correct for m in measured), 0),
            pgd=limits(sum(m.survives for m in measured), 0) if attacked else None,
            provable=limits(count[Status.VERIFIED], count[Status.UNKNOWN]),
            seconds=sum(m.row.verdict.seconds for m in measured),
        )

    def as_dict(self) -> dict[str, float | None]:
        """An accuracy under its own name is its lower limit."""
        return {
            "images": self.images,
            "reached": self.reached,
            "clean_accuracy": self.clean.lower,
            "clean_accuracy_upper": self.clean.upper,
            "pgd_accuracy": self.pgd.lower if self.pgd else None,
            "pgd_accuracy_upper": self.pgd.upper if self.pgd else None,
            "certified_accuracy": self.provable.lower,
            "certified_accuracy_upper": self.provable.upper,
            "certified": self.certified,
            "falsified": self.falsified,
            "undecided": self.undecided,
            "seconds": round(self.seconds, 3),
        }

    def sentence(self) -> str:
        images = f"{self.images} images" if self.reached == self.images else f"{self.reached} of {self.images} images"
        pgd = f"PGD accuracy {self.pgd}, " if self.pgd else ""
        counts = f"{self.certified} certified, {self.falsified} falsified, {self.undecided} undecided"
        return f"{images}: clean accuracy {self.clean}, {pgd}certified accuracy {self.provable} ({counts}), {self.seconds:.1f} s."
