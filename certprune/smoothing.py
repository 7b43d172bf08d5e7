"""Randomised smoothing: the class that a classifier gives most often under Gaussian noise, and a radius in which that class cannot change.

Ref: Cohen et al., arXiv:1902.02918, theorem 1 and the algorithm CERTIFY of section 3.2. The certificate is of another kind than the prover's: it
is of the smoothed classifier, for the Euclidean norm, and each may be wrong with probability `alpha`.
"""
from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.stats import beta, norm
from torch import nn

import verifier

Classify = Callable[[np.ndarray], np.ndarray]
"""Images `(K, *shape)` float32 to labels `(K,)`."""


@dataclass(frozen=True, slots=True)
class SmoothingConfig:
    """`sigma`: the noise's deviation in pixel units. `pilot` draws (n0) choose the class and `draws` others (n) bound its probability.

    `alpha`: the probability that one certificate is wrong. `batch`: noisy images classified together.

    Raises:
        VerifierError: a value with which there is no certificate.
    """

    sigma: float
    pilot: int = 100
    draws: int = 10_000
    alpha: float = 0.001
    batch: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.sigma < np.inf:
            raise verifier.VerifierError(f"sigma is {self.sigma}: the noise needs a positive deviation, in pixel units.")
        if min(self.pilot, self.draws, self.batch) < 1:
            raise verifier.VerifierError(f"pilot is {self.pilot}, draws {self.draws}, batch {self.batch}: each must be at least 1.")
        if self.seed < 0:
            raise verifier.VerifierError(f"seed is {self.seed}: give a number of at least 0.")
        if not 0 < self.alpha < 1:
            raise verifier.VerifierError(f"alpha is {self.alpha}: give the accepted probability of error, between 0 and 1.")


@dataclass(frozen=True, slots=True)
class SmoothedRow:
    """One image's outcome: `predicted` (None: abstained) holds for every image within `radius` (Euclidean) with confidence 1 - alpha.

    `votes`: of the draws, how many gave the class that the pilot chose.
    """

    index: int
    label: int
    predicted: int | None
    radius: float
    votes: int
    seconds: float

    def certified(self, radius: float) -> bool:
        """The label is right and holds within `radius`."""
        return self.predicted == self.label and self.radius >= radius


@dataclass(frozen=True, slots=True)
class SmoothedSummary:
    """Counts of images; `certified` at one radius, `correct` at radius 0, `abstained` without any answer."""

    images: int
    correct: int
    certified: int
    abstained: int
    radius: float
    seconds: float

    @staticmethod
    def of(rows: Sequence[SmoothedRow], radius: float) -> SmoothedSummary:
        correct, certified = (sum(row.certified(r) for row in rows) for r in (0.0, radius))
        abstained = sum(row.predicted is None for row in rows)
        return SmoothedSummary(len(rows), correct, certified, abstained, radius, sum(row.seconds for row in rows))

    def sentence(self) -> str:
        correct, certified = (count / max(self.images, 1) for count in (self.correct, self.certified))
        shares = f"{correct:.1%} right under noise, {certified:.1%} certified within the Euclidean radius {self.radius:g}"
        return f"{self.images} images: {shares}, {self.abstained} abstained, {self.seconds:.1f} s."


def check_radius(radius: float, config: SmoothingConfig) -> None:
    """Refuses a radius that no image could have: every draw of the chosen class certifies sigma * Phi^-1(alpha^(1/n)).

    Raises:
        VerifierError: the radius is above that, negative or no number.
    """
    if not 0 <= radius < np.inf:
        raise verifier.VerifierError(f"radius is {radius}: give a Euclidean distance in pixel units, at least 0.")
    largest = config.sigma * float(norm.ppf(lower_probability(config.draws, config.draws, config.alpha)))
    if radius > max(largest, 0.0):
        reached = f"{config.draws} draws of sigma {config.sigma:g} at alpha {config.alpha:g} certify {max(largest, 0.0):.3g} at most"
        raise verifier.VerifierError(f"radius is {radius:g}, but {reached}: more draws or a larger sigma reach farther.")


def certify_smoothed(classify: Classify, x: np.ndarray, y: np.ndarray, config: SmoothingConfig) -> Iterator[SmoothedRow]:
    """CERTIFY for each image `x (N, *shape)` with label `y (N,)`, as it is known.

    An image's noise follows from (seed, index) alone: neither the batch's size nor the other images change a row.
    """
    for index, (image, label) in enumerate(zip(x, y, strict=True)):
        started = time.monotonic()
        generator = np.random.default_rng((config.seed, index))
        counts = label_counts(classify, image, config.pilot, config, generator)
        chosen = int(counts.argmax())
        again = label_counts(classify, image, config.draws, config, generator)
        votes = int(again[chosen]) if chosen < len(again) else 0
        p = lower_probability(votes, config.draws, config.alpha)
        radius = config.sigma * float(norm.ppf(p)) if p > 0.5 else 0.0
        yield SmoothedRow(index, int(label), chosen if p > 0.5 else None, radius, votes, time.monotonic() - started)


def label_counts(classify: Classify, image: np.ndarray, draws: int, config: SmoothingConfig, generator: np.random.Generator) -> np.ndarray:
    """How often each label was given to image + N(0, sigma^2 I)."""
    counts = np.zeros(1, np.int64)
    for start in range(0, draws, config.batch):
        noise = generator.standard_normal((min(config.batch, draws - start), *image.shape), dtype=np.float32)
        found = np.bincount(classify(image.astype(np.float32) + np.float32(config.sigma) * noise))
        longer, shorter = (found, counts) if len(found) > len(counts) else (counts, found)
        counts = longer.copy()
        counts[: len(shorter)] += shorter
    return counts


def lower_probability(successes: int, draws: int, alpha: float) -> float:
    """The p with P(Binomial(draws, p) >= successes) = alpha (Clopper and Pearson): the true one lies below it with probability alpha at most."""
    return float(beta.ppf(alpha, successes, draws - successes + 1)) if successes else 0.0


def module_classifier(model: nn.Module) -> Classify:
    """The largest output of a module in eval mode, on the module's device.

    Raises:
        VerifierError: the module is in training mode.
    """
    if model.training:
        raise verifier.VerifierError("The module to smooth is in training mode: call eval() first.")
    like = next((p for p in (*model.parameters(), *model.buffers()) if p.is_floating_point()), torch.zeros(()))

    @torch.no_grad()
    def classify(x: np.ndarray) -> np.ndarray:
        return model(torch.from_numpy(x).to(like)).flatten(1).argmax(1).cpu().numpy()

    return classify


def onnx_classifier(path: str | Path) -> Classify:
    """The largest output of an onnx file, by onnxruntime; errors as for `verifier.OnnxRunner`."""
    runner = verifier.OnnxRunner(path)
    return lambda x: runner.many(x.reshape(len(x), -1)).argmax(1)
