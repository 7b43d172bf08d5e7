"""The rounded checker beside the exact one, step for step: with the same multipliers at every bound, the rounded bound is the lower one."""
from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.soundness.battery import Subject
from tests.soundness.proofs import files, judged, whole, write
from verifier.certificate import bound, threads
from verifier.certificate.arithmetic import Exact, Rounded


@dataclass(frozen=True)
class Agreement:
    """`rounded` and `exact` are verdicts, `slack` is exact minus rounded bound of every row that the checker bounded.

    `aligned`: both arithmetics bounded the same rows. Where they did not, as at intervals that end in 0 exactly, there is no slack to tell.
    """

    subject: str
    rounded: str
    exact: str
    slack: tuple[float, ...]
    aligned: bool


@contextmanager
def proved_by(replacement: Any) -> Iterator[None]:
    """`bound.proved` replaced, and one thread instead of two, so that bounds come in order."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bound, "proved", replacement(bound.proved))
        patch.setattr(threads, "ThreadPoolExecutor", lambda _: ThreadPoolExecutor(1))
        yield


def agreement(subject: Subject, folder: Path) -> Agreement:
    """Both arithmetics on one certificate. The exact run takes the multipliers of the rounded one, in the order in which they were used."""
    where = files(subject.net, subject.claims, folder)
    path = write(whole(where.head(subject.arithmetic), subject.parts, subject.cases), folder / "whole.cert")
    used: list[tuple[np.ndarray, np.ndarray]] = []

    def recorded(right: Any) -> Any:
        def run(problem: Any, rows: Any, lower: Any, upper: Any, nu: np.ndarray, *rest: Any) -> np.ndarray:
            found = right(problem, rows, lower, upper, nu, *rest)
            used.append((np.array(nu), np.array(found)))
            return found

        return run

    with proved_by(recorded):
        rounded = judged(where, path, Rounded())
    pairs, slack, aligned = iter(list(used)), [], True

    def replayed(right: Any) -> Any:
        def run(problem: Any, rows: Any, lower: Any, upper: Any, nu: np.ndarray, *rest: Any) -> np.ndarray:
            nonlocal aligned
            given, seen = next(pairs, (np.zeros(0), np.zeros(0)))
            if given.shape != nu.shape:
                aligned = False
                return right(problem, rows, lower, upper, nu, *rest)
            found = right(problem, rows, lower, upper, Exact().array(given), *rest)
            both = zip(found.ravel().tolist(), seen.ravel().tolist())
            slack.extend(float(Fraction(e) - Fraction(r)) for e, r in both if e not in (np.inf, -np.inf) and np.isfinite(r))
            return found

        return run

    with proved_by(replayed):
        exact = judged(where, path, Exact())
    aligned = aligned and next(pairs, None) is None
    return Agreement(f"{subject.name}, {subject.arithmetic}", rounded.verdict, exact.verdict, tuple(slack) if aligned else (), aligned)
