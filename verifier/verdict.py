"""Verdict: the answer, with its reason; Counterexample: a replayed witness."""
from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import numpy as np


class Status(Enum):
    """What is known of a property: it holds, it fails, or neither was shown."""

    VERIFIED = "verified"
    FALSIFIED = "falsified"
    UNKNOWN = "unknown"


class Reason(Enum):
    """Why a verdict is UNKNOWN; PROVED and REPLAYED for the other two."""

    PROVED = "proved"
    REPLAYED = "replayed"
    TIMEOUT = "timeout"
    INTERRUPTED = "interrupted"
    MEMORY = "out of memory"
    UNCONFIRMED = "unconfirmed counterexample"
    TOUCHES = "only touches"
    NO_NUMBER = "no number of the input type"
    INCOMPLETE = "incomplete method exhausted"
    NUMERICS = "numerical trouble"
    REFUSED = "proof refused"


@dataclass(frozen=True, slots=True)
class Counterexample:
    """x in the input region with onnxruntime's y, unsafe as the property is written. Made only by `attack/confirm.py`.

    `x: (n_in,)` of the network's input type, `y: (n_out,)` of its output type, `margin` = min over rows of offset - (output @ y + input @ x), >= 0.
    `rounded`: how many inputs are fixed to what is no number of the input type, and stand at the nearest one.
    """

    x: np.ndarray
    y: np.ndarray
    margin: float
    rounded: int = 0

    def remark(self) -> str:
        """A sentence that follows another, empty where the witness lies in the region to the letter."""
        if not self.rounded:
            return ""
        inputs = "1 fixed input stands" if self.rounded == 1 else f"{self.rounded} fixed inputs stand"
        return f" Of it, {inputs} at the nearest {self.x.dtype}, as a runtime receives it."


class NeuronSplit(NamedTuple):
    """Branch and bound split the neuron with this flat index in the shape of this node so many times."""

    node: str
    neuron: int
    times: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """`lower_bound`: the proved lower bound of the worst row: of UNKNOWN over what is open, of VERIFIED over the region and positive, where bounds
    without splits proved it; None where there is none, e.g. after a counterexample.

    `splits`: the neurons that branch and bound split for the property's rows, the most often split first (splits for the sake of other neurons'
    bounds, and of inputs, are not among them). `unstable`: neurons that are not linear over the region, once the root has bounded them, summed
    over the cases that were bounded; None where none was. `proved`: the arithmetic that the proof of a VERIFIED is about, "float32" as a runtime
    computes it in any order of summation, or "real"; `lacks`: why it is not about the arithmetic that the model computes in. `certificate`: the file
    that proves a VERIFIED, where one was asked for.
    """

    status: Status
    reason: Reason
    sentence: str
    seconds: float = 0.0
    domains: int = 0
    engine: str = ""
    lower_bound: float | None = None
    counterexample: Counterexample | None = None
    splits: tuple[NeuronSplit, ...] = ()
    unstable: int | None = None
    certificate: str | None = None
    proved: str = ""
    lacks: str = ""
