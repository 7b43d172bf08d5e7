"""Certified accuracy: of a set of labelled images, which keep their label on a whole ball, proved, and which do not.

    images.npz -> (x, y) -> classified wrongly: falsified without work
                         -> classified rightly: one robustness property an image
                              -> many at once attacked (attacked.py): a point that takes the label, replayed, falsifies without further work
                              -> many at once through cheap bounds (screen.py), which prove the easy ones
                              -> the others to the solver, many in one batch of problems: attack, root bounds, branch and bound
"""
from __future__ import annotations

import math
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import BadZipFile, ZipFile

import numpy as np

from verifier.bab.budget import Listener, Progress, silent
from verifier.config import Config
from verifier.errors import ShapeError, VerifierError
from verifier.graph.ir import Graph
from verifier.measure.layout import fitted
from verifier.spec.spec import Spec
from verifier.verdict import Counterexample, Reason, Status, Verdict

if TYPE_CHECKING:
    from verifier.attack.confirm import Replay
    from verifier.measure.proofs import ProofFolder, ProvingSolver
    from verifier.measure.screen import Screen

IMAGE_NAMES = ("x", "images", "x_test", "arr_0")
LABEL_NAMES = ("y", "labels", "y_test", "arr_1")
PREDICTED = 256  # images classified together
SCREENED = 64  # images attacked and bounded together: enough that the cost of a call is shared, few enough that rows appear soon
CHUNK = 32  # images handed to the solver together: enough to fill a batch, few enough that rows appear soon


@dataclass(frozen=True, slots=True)
class Perturbation:
    """{x' : ||x' - x||_norm <= eps, clip}, in the images' own units; the network sees (x' - mean) / std, one number or one a channel."""

    eps: float
    norm: str = "linf"
    clip: tuple[float, float] | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)


@dataclass(frozen=True, slots=True)
class ImageRow:
    """One image's outcome. `predicted` is the label of the image itself, unperturbed.

    `pgd_margin`: the least margin that an attack found, infinite where it found none that the file confirms; None where none was made.
    """

    index: int
    label: int
    predicted: int
    verdict: Verdict
    pgd_margin: float | None = None

    @property
    def correct(self) -> bool:
        return self.predicted == self.label

    @property
    def stands(self) -> bool:
        """Classified rightly, and no attack took the label."""
        return self.correct and not (self.pgd_margin is not None and self.pgd_margin <= 0)


def settled(status: Status, stands: bool) -> Status:
    """What an image counts as: FALSIFIED where it is classified wrongly or an attack took its label, whatever else became of it.

    So that certified images and undecided ones are among those that an attack leaves: certified accuracy <= its upper limit <= PGD accuracy.

    Raises:
        VerifierError: it was proved nevertheless.
    """
    if not stands and status is Status.VERIFIED:
        raise VerifierError("An image is proved to keep its label, and a point of its ball loses it: a proof is wrong; trust none, and report it.")
    return status if stands else Status.FALSIFIED


@dataclass(frozen=True, slots=True)
class Summary:
    """Counts of images; certified + falsified + undecided = images, and misclassified images are among the falsified.

    `attacked`: images classified rightly whose label PGD took (branch and bound may falsify more); None where no attack was made.
    """

    images: int
    correct: int
    certified: int
    falsified: int
    undecided: int
    seconds: float
    attacked: int | None = 0

    @staticmethod
    def of(rows: Sequence[ImageRow]) -> Summary:
        found = [settled(row.verdict.status, row.stands) for row in rows]
        correct = [row for row in rows if row.correct]
        attacked = None if any(row.pgd_margin is None for row in correct) else sum(not row.stands for row in correct)
        seconds = sum(row.verdict.seconds for row in rows)
        return Summary(len(rows), len(correct), *map(found.count, (Status.VERIFIED, Status.FALSIFIED, Status.UNKNOWN)), seconds, attacked)

    def as_dict(self) -> dict[str, float | None]:
        return {
            "images": self.images,
            "clean_accuracy": self.correct / max(self.images, 1),
            "certified_accuracy": self.certified / max(self.images, 1),
            "certified_accuracy_upper": (self.certified + self.undecided) / max(self.images, 1),
            "pgd_accuracy": None if self.attacked is None else (self.correct - self.attacked) / max(self.images, 1),
            "certified": self.certified,
            "falsified": self.falsified,
            "undecided": self.undecided,
            "seconds": round(self.seconds, 3),
        }

    def sentence(self) -> str:
        shares = self.as_dict()
        return (
            f"{self.images} images: clean accuracy {shares['clean_accuracy']:.1%}, certified accuracy {shares['certified_accuracy']:.1%} "
            f"({self.certified} certified, {self.falsified} falsified, {self.undecided} undecided), {self.seconds:.1f} s."
        )


def load_images(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Images `(N, *shape)` as float64 and labels `(N,)` as int64 of an .npz file; 8-bit images are divided by 255.

    Raises:
        VerifierError: the file cannot be read, lacks one of the arrays, or they do not fit together.
    """
    try:
        with ZipFile(path):  # np.load takes other files too, and refuses each in another way
            pass
        with np.load(path, allow_pickle=False) as file:
            arrays = {name.lower(): file[name] for name in file.files}
    except OSError as error:
        raise VerifierError(f"{path} cannot be read ({error.strerror or error}): check the path of the images.") from None
    except (BadZipFile, ValueError, EOFError, RuntimeError, zlib.error) as error:  # a damaged archive or member, or pickled objects in it
        raise VerifierError(f"{path} is not an .npz file of plain arrays ({error}): write it with numpy.savez.") from None
    images, labels = _pick(arrays, IMAGE_NAMES, path), _pick(arrays, LABEL_NAMES, path)
    if labels.ndim != 1 or images.ndim < 2 or len(images) != len(labels) or images.size == 0:
        raise ShapeError(f"{path}: images {images.shape} and labels {labels.shape} do not fit: expected (N, ...) and (N,), N at least 1.")
    if labels.dtype.kind not in "iu" or images.dtype.kind not in "iuf":
        raise VerifierError(f"{path}: images are {images.dtype} and labels {labels.dtype}: expected numbers and integers.")
    pixels = images.astype(np.float64) / (255.0 if images.dtype == np.uint8 else 1.0)
    if not np.isfinite(pixels).all():
        raise VerifierError(f"{path}: an image has a pixel that is NaN or infinite.")
    return pixels, labels.astype(np.int64)


def _pick(arrays: dict[str, np.ndarray], names: Sequence[str], path: str | Path) -> np.ndarray:
    for name in names:
        if name in arrays:
            return arrays[name]
    raise VerifierError(f"{path} has the arrays {', '.join(arrays) or '(none)'}: expected one called {' or '.join(names)}.")


def select(index: str | None, count: int) -> list[int]:
    """The image numbers that "0:100", "7" or "1,5,9" names, of `count`; all for None."""
    if index is None:
        return list(range(count))
    try:
        if ":" in index:
            chosen = list(range(count))[slice(*(int(part) if part else None for part in index.split(":")))]
        else:
            chosen = [int(part) for part in index.split(",")]
    except (ValueError, TypeError):
        raise VerifierError(f"--index is {index!r}: give a range 0:100, one number, or numbers with commas.") from None
    if not chosen or any(not 0 <= i < count for i in chosen):
        raise VerifierError(f"--index {index!r} names no image or one that is not there: the file has {count}, from 0 to {count - 1}.")
    return chosen


def certify(
    graph: Graph, images: np.ndarray, labels: np.ndarray, around: Perturbation, config: Config, listener: Listener = silent,
    proofs: ProofFolder | None = None,
) -> Iterator[ImageRow]:
    """One row an image, in their order, as they are decided; `config.timeout_s` is for each image, and the attack before it takes its own time.

    Args:
        images: `(N, *shape)` in their own units, before mean and std; brought into the network's order of axes (layout.py).
        labels: `(N,)`.
        config: where `config.attack` is None no attack is made.
        proofs: where a certificate of each VERIFIED is to be; without one no image is VERIFIED then.

    Raises:
        ShapeError: an image is no input of the network, in no order of its axes.
        VerifierError: a label is not an output's number; or the proofs of another question are where these go.
    """
    images, n_out = fitted(graph, images, around), math.prod(graph.output_shape)
    if not ((labels >= 0) & (labels < n_out)).all():
        raise VerifierError(f"Labels go from {labels.min()} to {labels.max()} but the network has {n_out} outputs: are they its images?")
    if proofs is not None:
        proofs.claim(len(images), lambda i: ball(images[i], int(labels[i]), around, around.eps, n_out))
    predicted = predict(graph, np.stack([ball(x, 0, around, 0.0, n_out).cases[0].lower for x in images]), labels) if len(images) else []
    solver, attack = _solver(graph, config, listener, proofs), _Attack(graph, config, listener)
    for start in range(0, len(images), SCREENED):
        chunk = range(start, min(start + SCREENED, len(images)))
        decided = {i: _misclassified(predicted[i]) for i in chunk if predicted[i] != labels[i]}
        specs = {i: ball(images[i], int(labels[i]), around, around.eps, n_out) for i in chunk if i not in decided}
        margins, lost, attack_s = attack.made(specs, labels)
        decided, next_row = decided | lost, start
        for more in chain([{}], solver.verdicts({i: spec for i, spec in specs.items() if i not in lost})):
            decided |= {i: replace(verdict, seconds=verdict.seconds + attack_s) for i, verdict in more.items()}
            while next_row in decided:
                yield _row(next_row, int(labels[next_row]), predicted[next_row], decided[next_row], margins.get(next_row))
                next_row += 1


def _row(index: int, label: int, predicted: int, verdict: Verdict, margin: float | None) -> ImageRow:
    """The solver's own attack may have found less."""
    found = verdict.counterexample
    if margin is not None and found is not None and verdict.engine == "PGD":
        margin = min(margin, 0.0 - found.margin)
    return ImageRow(index, label, predicted, verdict, margin)


class _Attack:
    """PGD on many images at once, before anything is proved of them; what it says is lost counts once it is replayed."""

    def __init__(self, graph: Graph, config: Config, listener: Listener) -> None:
        self.graph, self.config, self.listener = graph, config, listener
        self.replay: Replay | None = None

    def made(self, specs: Mapping[int, Spec], labels: np.ndarray) -> tuple[dict[int, float], dict[int, Verdict], float]:
        """The least margin of each image, the verdicts of those that lost their label, and the seconds that each took."""
        if self.config.attack is None or not specs:
            return {}, {}, 0.0
        from verifier.attack.confirm import replay_graph, replay_onnx
        from verifier.measure.attacked import PGD, attacked, confirmed
        from verifier.solve import device_of

        self.listener(Progress("attack", 0.0))
        if self.replay is None:
            self.replay = replay_onnx(self.graph.source) if self.graph.source else replay_graph(self.graph)
        begin, cases, own = time.monotonic(), [spec.cases[0] for spec in specs.values()], labels[list(specs)]
        found = attacked(self.graph, cases, own, PGD, self.config.seed, device_of(self.config.device))
        hits = confirmed(found, cases, own, self.replay)
        took = (time.monotonic() - begin) / len(specs)
        margins = {i: float(m) if m > 0 else math.inf if hit is None else 0.0 - hit.margin for i, m, hit in zip(specs, found.margin, hits)}
        return margins, {i: _lost(hit, took) for i, hit in zip(specs, hits) if hit is not None}, took


def _lost(found: Counterexample, seconds: float) -> Verdict:
    sentence = f"Counterexample found by PGD, replayed with margin {found.margin:.3g}."
    return Verdict(Status.FALSIFIED, Reason.REPLAYED, sentence, seconds, engine="PGD", counterexample=found)


def _solver(graph: Graph, config: Config, listener: Listener, proofs: ProofFolder | None) -> _Solver | ProvingSolver:
    if proofs is None:
        return _Solver(graph, config, listener)
    from verifier.measure.proofs import ProvingSolver

    return ProvingSolver(proofs, screen_of(graph, config), config, listener)


class _Solver:
    """Cheap bounds of all, then the solver for what they leave open; remembers what paid."""

    def __init__(self, graph: Graph, config: Config, listener: Listener) -> None:
        self.graph, self.config, self.listener = graph, config, listener
        self.screen = screen_of(graph, config)
        self.solved, self.seconds = 0, 0.0

    def verdicts(self, specs: Mapping[int, Spec]) -> Iterator[dict[int, Verdict]]:
        """Verdicts by the key of their property, as they come; `seconds` of each is its share of all work."""
        from verifier.solve import verify_many

        spent, proved = {}, {}
        if specs and self.screen is not None:
            self.listener(Progress("bounds of many", 0.0))
            found = self.screen.prove([spec.cases[0] for spec in specs.values()], self.config.timeout_s)
            spent = dict(zip(specs, found.seconds.tolist()))
            bounds = zip(specs, found.engine, found.lower.tolist())
            proved = {key: _proved(engine, self.screen.arithmetic, spent[key], lower) for key, engine, lower in bounds if engine}
        yield proved
        waiting = [key for key in specs if key not in proved]
        for start in range(0, len(waiting), CHUNK):
            group = waiting[start:start + CHUNK]
            before = max(spent.get(key, 0.0) for key in group)
            config = replace(self.config, timeout_s=max(self.config.timeout_s - before, 0.1 * self.config.timeout_s))
            answers = verify_many(self.graph, [specs[key] for key in group], config, self.listener)
            self._charge(answers)
            yield {key: replace(a, seconds=a.seconds + spent.get(key, 0.0)) for key, a in zip(group, answers)}

    def _charge(self, answers: Sequence[Verdict]) -> None:
        self.solved, self.seconds = self.solved + len(answers), self.seconds + sum(answer.seconds for answer in answers)
        if self.screen is not None:
            self.screen.solver_s = self.seconds / self.solved


def screen_of(graph: Graph, config: Config) -> Screen:
    """The network's cheap proofs, on the configured device."""
    from verifier.measure.screen import Screen
    from verifier.solve import device_of

    return Screen(graph, device_of(config.device), config.arithmetic)


def _proved(engine: str, arithmetic: str, seconds: float, lower: float) -> Verdict:
    sentence = f"All unsafe sets are unreachable, proved by {engine} of many images in {arithmetic} arithmetic."
    return Verdict(Status.VERIFIED, Reason.PROVED, sentence, seconds, engine=engine, lower_bound=lower, proved=arithmetic)


def ball(image: np.ndarray, label: int, around: Perturbation, eps: float, n_out: int) -> Spec:
    """The property that an image keeps its label within eps; with eps = 0 its box is the network's input itself."""
    from verifier.spec.robustness import robustness

    clip = around.clip if eps > 0 else None
    return robustness(image, label, eps, n_out, norm=around.norm, clip=clip, mean=around.mean, std=around.std)


def _misclassified(predicted: int) -> Verdict:
    return Verdict(Status.FALSIFIED, Reason.REPLAYED, f"The image itself is classified as {predicted}.")


def predict(graph: Graph, points: np.ndarray, labels: np.ndarray) -> list[int]:
    """The largest output at each point `(N, n_in)`, by onnxruntime where the network came from a file.

    In batches where the file allows it; a point that a batch says is not of its label is run alone, as a stranger would.
    """
    from verifier.attack.confirm import replay_graph
    from verifier.graph.onnx_run import OnnxRunner

    if not graph.source:
        replay = replay_graph(graph)
        return [int(replay(point).argmax()) for point in points]
    runner = OnnxRunner(graph.source)
    together = np.concatenate([runner.many(part).argmax(1) for part in np.array_split(points, math.ceil(len(points) / PREDICTED))])
    return [int(p if p == label else runner(point).argmax()) for p, label, point in zip(together.tolist(), labels.tolist(), points)]
