"""Clean, attacked and certified accuracy of one network on one list of images, as they are decided.

    clean      the network is right on the image itself
    PGD        and projected gradient descent finds no point of its ball where it is wrong
    certified  and there is none, proved

Each is a share of all images that were asked for, with a lower and an upper limit: an image that was not reached, or not decided in its
time, counts as wrong in the lower limit and as right in the upper one.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from verifier.bab.budget import Listener, Progress, silent
from verifier.config import AttackConfig, Config
from verifier.graph.ir import Graph
from verifier.measure.certified import ImageRow, Perturbation, certify
from verifier.verdict import Reason, Status

if TYPE_CHECKING:
    from verifier.measure.proofs import ProofFolder

PGD = AttackConfig(restarts=5, steps=40)
PIECE = 64  # images attacked together: enough to fill a pass, few enough that rows appear soon


@dataclass(frozen=True, slots=True)
class Measured:
    """One image's outcome; `pgd_margin` is the least margin that an attack found, None where none was made."""

    row: ImageRow
    pgd_margin: float | None

    @property
    def correct(self) -> bool:
        return self.row.predicted == self.row.label

    @property
    def survives(self) -> bool:
        return self.correct and self.pgd_margin is not None and self.pgd_margin > 0

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
    """One outcome an image, in their order; `config.timeout_s` is for each image, and no attack is made where `config.attack` is None.

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

    margins: list[float | None] = []
    try:
        for row in certify(graph, images, labels, around, config, told, proofs):
            interrupted |= row.verdict.reason is Reason.INTERRUPTED
            if row.index == len(margins):
                chosen = slice(row.index, row.index + PIECE)
                margins += _attacked(graph, images[chosen], labels[chosen], around, config)
            yield Measured(row, _least(margins[row.index], row))
    except KeyboardInterrupt:
        if not interrupted:
            raise


def _attacked(graph: Graph, images: np.ndarray, labels: np.ndarray, around: Perturbation, config: Config) -> list[float | None]:
    if config.attack is None:
        return [None] * len(images)
    from verifier.measure.attacked import attacked_margins
    from verifier.solve import device_of

    return attacked_margins(graph, images, labels, around, PGD, config.seed, device_of(config.device)).tolist()


def _least(margin: float | None, row: ImageRow) -> float | None:
    """The solver's own attack may have found less."""
    found = row.verdict.counterexample
    if margin is None or found is None or row.verdict.engine != "PGD":
        return margin
    return min(margin, -found.margin)


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
        count = {status: sum(m.row.verdict.status is status for m in measured) for status in Status}
        attacked = all(m.pgd_margin is not None for m in measured)

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
