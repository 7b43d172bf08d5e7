"""Two spellings of one problem: the same function of the reals, written otherwise. They are never `unsat` here and `sat` there.

Where the thresholds are closer than float32 rounds, a proof over the reals and a witness of float32 may stand side by side; a float32 proof and a
witness may not, where the other spelling is the same computation in another order.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tests.soundness.drawn import Drawn, drawn_box, weights
from tests.soundness.formulas import Box, text
from tests.soundness.handmade import decimal
from tests.soundness.layers import VECTOR, Builder, with_constants, write_model
from tests.soundness.problems import Problem, asked_of
from tests.soundness.verdicts import Outcome, asked


@dataclass(frozen=True)
class Layer:
    """activation(weight x + bias); the last one has none."""

    weight: np.ndarray
    bias: np.ndarray
    kind: str = ""


Chain = list[Layer]


def drawn_chain(random: np.random.Generator) -> Chain:
    sizes = [int(random.integers(2, 5)), *(int(v) for v in random.integers(3, 6, random.integers(1, 3))), 2]
    kinds = [str(random.choice(["relu", "relu", "leaky", "abs"])) for _ in sizes[2:]] + [""]
    return [Layer(weights(random, b, a), random.integers(-8, 9, b) / 8, kind) for a, b, kind in zip(sizes, sizes[1:], kinds)]


def built(chain: Chain, dense: Callable[[Builder, Layer, int], None] = lambda b, layer, k: plain(b, layer)) -> Builder:
    b = Builder((chain[0].weight.shape[1],))
    for k, layer in enumerate(chain):
        dense(b, layer, k)
        if layer.kind:
            b.activation(b.last, layer.kind, (0.25,) if layer.kind == "leaky" else ())
    return b


def plain(b: Builder, layer: Layer) -> None:
    b.dense(b.last, layer.weight, layer.bias)


def permuted(chain: Chain, random: np.random.Generator) -> Builder:
    """The hidden neurons in another order."""
    new = list(chain)
    for k in range(len(chain) - 1):
        order = random.permutation(len(new[k].bias))
        new[k] = replace(new[k], weight=new[k].weight[order], bias=new[k].bias[order])
        new[k + 1] = replace(new[k + 1], weight=new[k + 1].weight[:, order])
    return built(new)


def scaled(chain: Chain, random: np.random.Generator) -> Builder:
    """Each hidden layer times a power of two, which the next one takes back."""
    new = list(chain)
    for k in range(len(chain) - 1):
        power = 2.0 ** int(random.integers(-40, 41))
        new[k] = replace(new[k], weight=new[k].weight * power, bias=new[k].bias * power)
        new[k + 1] = replace(new[k + 1], weight=new[k + 1].weight / power)
    return built(new)


def respelled(chain: Chain, random: np.random.Generator) -> Builder:
    """MatMul and Add, Gemm with factors, Gemm without transposition."""
    variants = random.integers(1, 5, len(chain))
    return built(chain, lambda b, layer, k: b.dense(b.last, layer.weight, layer.bias, int(variants[k])) and None)


def normalised(chain: Chain, random: np.random.Generator) -> Builder:
    """Each layer as a product and a BatchNormalization that doubles it."""

    def dense(b: Builder, layer: Layer, k: int) -> None:
        n = len(layer.bias)
        b.dense(b.last, layer.weight / 2, np.zeros(n))
        values = (np.full(n, 1.0), layer.bias, np.zeros(n), np.full(n, 0.25))
        b.affine(b.last, lambda v: v * 2, with_constants("BatchNormalization", *(v.astype(np.float32) for v in values), epsilon=0.0), layer.bias)

    return built(chain, dense)


def interrupted(chain: Chain, random: np.random.Generator) -> Builder:
    """Nodes that change nothing between the layers."""

    def dense(b: Builder, layer: Layer, k: int) -> None:
        VECTOR[str(random.choice(["Identity", "Dropout", "Cast", "Shape", "Unsqueeze", "Expand", "Transpose"]))](b, b.last, random)
        plain(b, layer)

    return built(chain, dense)


def halved(chain: Chain, random: np.random.Generator) -> Builder:
    """Each hidden layer as two, joined again."""

    def dense(b: Builder, layer: Layer, k: int) -> None:
        source, cut = b.last, len(layer.bias) // 2
        b.concat([b.dense(source, layer.weight[part], layer.bias[part]) for part in (slice(0, cut), slice(cut, None))])

    return built(chain, dense)


SPELLINGS: dict[str, Callable[[Chain, np.random.Generator], Builder]] = {
    "permuted": permuted, "scaled": scaled, "respelled": respelled, "normalised": normalised, "interrupted": interrupted, "halved": halved,
    "split boxes": lambda chain, random: built(chain),
}
REORDERED = ("permuted", "respelled", "interrupted", "halved", "split boxes")
"""The same float32 sums, in another order at most."""


def pair(kind: str, seed: int) -> tuple[Problem, Problem]:
    random = np.random.default_rng([seed, sum(map(ord, kind))])
    chain = drawn_chain(random)
    n = chain[0].weight.shape[1]
    first = asked_of(Drawn(built(chain).net(), (n,), drawn_box(random, n, min(n, 2))), random, kind, f"{kind} {seed}")
    other = replace(first, model=write_model(SPELLINGS[kind](chain, random).net(), (n,)))
    if kind == "split boxes":
        parts = tuple((box, polytopes) for whole, polytopes in first.disjuncts for box in _halves(whole))
        other = replace(other, disjuncts=parts, text=text(parts, first.n_out, random))
    return first, other


def _halves(box: Box) -> list[Box]:
    low, high = box.sides()
    axis = next((i for i in range(len(low)) if low[i] < high[i]), None)
    if axis is None:
        return [box]
    cut = decimal(round((low[axis] + high[axis]) / 2 * 64) / 64 if high[axis] - low[axis] > 0.1 else low[axis])
    if not low[axis] < float(cut) < high[axis]:
        return [box]
    sides = [list(box.lower), list(box.upper)]
    return [Box(box.lower, (*sides[1][:axis], cut, *sides[1][axis + 1:])), Box((*sides[0][:axis], cut, *sides[0][axis + 1:]), box.upper)]


def compared(kind: str, seed: int, folder: Path) -> tuple[Outcome, Outcome, str]:
    """Both answers, and what is wrong about the two together, if anything is."""
    first, other = pair(kind, seed)
    said = asked(first, folder), asked(other, folder)
    answers = {o.answer for o in said}
    proved = next((o.proved for o in said if o.answer == "unsat"), "")
    clash = answers == {"sat", "unsat"} and (first.clear or (proved == "float32" and kind in REORDERED))
    return *said, "unsat of one spelling, sat of another" if clash else ""
