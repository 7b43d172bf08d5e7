"""Random small networks of every operation, with a box: the first half of a random problem.

Weights are small multiples of 1/8 or float32 normals, then scaled by powers of two; `exact` says whether the steps are exactly what the file says.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from tests.soundness.adversary import mixed_rows
from tests.soundness.exact_truth import Net
from tests.soundness.formulas import Box
from tests.soundness.handmade import decimal
from tests.soundness.layers import IMAGE, VECTOR, Builder, Shape, simple, with_constants


@dataclass(frozen=True)
class Drawn:
    """A network, its input's shape and a box. `linear`: it has linear pieces, few enough to enumerate."""

    net: Net
    shape: Shape
    box: Box
    linear: bool = True


PIECES = [("relu", ()), ("relu", ()), ("relu", ()), ("leaky", (0.25,)), ("clip", (-0.5, 1.0)), ("abs", ()), ("leaky", (0.01,)), ("clip", (0.0, 6.0))]


def weights(random: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    if random.random() < 0.5:
        return random.integers(-8, 9, (rows, columns)) / 8
    return random.normal(size=(rows, columns)).astype(np.float32).astype(float)


def drawn_box(random: np.random.Generator, n: int, free: int, scale: float = 1.0) -> Box:
    """`free` inputs with intervals, at random places; decimals of few digits, or numbers of float32 in full."""
    places = random.permutation(n)[:free]
    low, high = [], []
    for i in range(n):
        centre, half = int(random.integers(-100, 101)), int(random.integers(20, 100)) if i in places else 0
        if scale == 1.0 and random.random() < 0.5:
            low.append(f"{(centre - half) / 100:.2f}")
            high.append(f"{(centre + half) / 100:.2f}")
        else:
            low.append(decimal(Fraction(centre - half, 64) * Fraction(scale)))
            high.append(decimal(Fraction(centre + half, 64) * Fraction(scale)))
    return Box(tuple(low), tuple(high))


def dense(random: np.random.Generator, scaled: bool = False) -> Drawn:
    """Two or three layers; `scaled` by powers of two from 1e-36 to 1e29, inputs, layers and outputs each by their own."""
    n, free = int(random.integers(2, 6)), int(random.integers(1, 4))
    sizes = [int(v) for v in random.integers(2, 6, random.integers(1, 3))]
    powers = [2.0 ** int(random.integers(-119, 96)) if scaled and random.random() < 0.6 else 1.0 for _ in range(len(sizes) + 2)]
    for k in range(1, len(powers)):
        powers[k] = powers[k - 1] * 2.0 ** int(np.clip(np.log2(powers[k] / powers[k - 1]), -110, 110))
    b, last = Builder((n,)), n
    for k, size in enumerate([*sizes, int(random.integers(1, 4))], 1):
        w = weights(random, size, last) * (powers[k] / powers[k - 1])
        b.dense(b.last, w, random.integers(-8, 9, size) / 8 * powers[k], int(random.integers(5)))
        last = size
        if k <= len(sizes):
            kind, numbers = PIECES[random.integers(len(PIECES))] if not scaled or random.random() < 0.5 else ("relu", ())
            b.activation(b.last, kind, tuple(v * powers[k] for v in numbers) if kind == "clip" else numbers, int(random.integers(3)))
    return Drawn(b.net(), (n,), drawn_box(random, n, min(n, free), powers[0]))


def residual(random: np.random.Generator) -> Drawn:
    n, width = int(random.integers(2, 4)), int(random.integers(2, 5))
    b = Builder((n,))
    first = b.dense(0, weights(random, width, n), random.integers(-4, 5, width) / 8, int(random.integers(5)))
    inner = b.dense(b.activation(first, "relu"), weights(random, width, width), np.zeros(width), int(random.integers(5)))
    op = str(random.choice(["Add", "Sum", "Sub", "Mean", "Max", "Min"]))
    joined = b.pair(op, first, inner)
    if random.random() < 0.5:
        joined = b.activation(joined, *PIECES[random.integers(3)])
    if random.random() < 0.4:
        joined = b.concat((joined, first))
    size = b.shapes[joined][0]
    b.dense(joined, weights(random, 2, size), np.zeros(2), int(random.integers(5)))
    return Drawn(b.net(), (n,), drawn_box(random, n, 2))


def moves(random: np.random.Generator) -> Drawn:
    """Layers that move and scale values, between dense ones."""
    n = int(random.integers(2, 5))
    b = Builder((n,))
    for _ in range(2):
        b.dense(b.last, weights(random, 3, b.shapes[b.last][0]), random.integers(-4, 5, 3) / 8, int(random.integers(5)))
        VECTOR[str(random.choice(list(VECTOR)))](b, b.last, random)
        if random.random() < 0.2:
            b.hard_sigmoid(b.last)
        else:
            b.activation(b.last, *PIECES[random.integers(len(PIECES))], int(random.integers(3)))
        VECTOR[str(random.choice(list(VECTOR)))](b, b.last, random)
    b.dense(b.last, weights(random, 2, b.shapes[b.last][0]), np.zeros(2), int(random.integers(5)))
    return Drawn(b.net(), (n,), drawn_box(random, n, 2))


def image(random: np.random.Generator) -> Drawn:
    c, h = int(random.integers(1, 3)), int(random.integers(3, 5))
    b = Builder((c, h, h))
    stride, pad, out = int(random.integers(1, 3)), int(random.integers(0, 2)), int(random.integers(1, 3))
    b.conv(0, weights(random, out, c * 4).reshape(out, c, 2, 2), random.integers(-4, 5, out) / 8, stride, pad)
    if random.random() < 0.3:
        b.activation(b.last, *PIECES[random.integers(len(PIECES))])
    for _ in range(int(random.integers(1, 3))):
        if min(b.shapes[b.last][1:]) >= 2 and max(b.shapes[b.last]) <= 6:
            IMAGE[str(random.choice(list(IMAGE)))](b, b.last, random)
    b.activation(b.last, *PIECES[random.integers(3)])
    size = int(np.prod(b.shapes[b.last]))
    b.dense(b.last, weights(random, 2, size), np.zeros(2), int(random.integers(5)))
    return Drawn(b.net(), (c, h, h), drawn_box(random, c * h * h, 2))


def neurons(random: np.random.Generator) -> Drawn:
    """Dead, active, equal and cancelling neurons of large fixed inputs, as `adversary.mixed` has them."""
    free, fixed = int(random.integers(1, 3)), int(random.choice([2, 3, 8]))
    w, bias, size = mixed_rows(random, free, fixed)
    b = Builder((free + fixed,))
    b.activation(b.dense(0, w, bias), "relu")
    b.dense(b.last, random.integers(-2, 3, (2, len(bias))).astype(float), random.integers(-1, 2, 2).astype(float))
    value = decimal(Fraction(size) * int(random.integers(1, 8)))
    return Drawn(b.net(), (free + fixed,), Box(("-1",) * free + (value,) * fixed, ("1",) * free + (value,) * fixed))


def long(random: np.random.Generator) -> Drawn:
    """A sum of many terms: of fixed inputs, or of equal neurons."""
    k = int(random.choice([50, 300, 1000]))
    if random.random() < 0.5:
        b = Builder((2 + k,))
        w = np.concatenate([weights(random, 2, 2), random.choice([-1.0, 1.0, 2.0**-12], (2, k))], 1)
        b.activation(b.dense(0, w, random.integers(-4, 5, 2) / 8), "relu")
        b.dense(b.last, weights(random, 1, 2), np.zeros(1))
        box = drawn_box(random, 2, 2)
        return Drawn(b.net(), (2 + k,), Box(box.lower + ("0.25",) * k, box.upper + ("0.25",) * k))
    b = Builder((2,))
    row = weights(random, 1, 2)
    b.activation(b.dense(0, np.repeat(row, k, 0), np.full(k, 0.125)), "relu")
    b.dense(b.last, np.full((1, k), float(np.float32(1 / k))), np.zeros(1))
    return Drawn(b.net(), (2,), drawn_box(random, 2, 2))


def stable(random: np.random.Generator) -> Drawn:
    """No unstable neuron, as pruning leaves networks: all active, all dead, no layer at all, weights of zero; at times an output of rank 0."""
    n = int(random.choice([1, 2, 3, 22]))
    b, kind = Builder((n,)), random.choice(["active", "dead", "linear", "zeros"])
    if kind != "linear":
        bias = {"active": 8.0 * n, "dead": -8.0 * n, "zeros": 1.0}[str(kind)]
        b.activation(b.dense(0, weights(random, 3, n) * (kind != "zeros"), np.full(3, bias)), "relu")
    b.dense(b.last, weights(random, 2, b.shapes[b.last][0]), random.integers(-4, 5, 2) / 8)
    if random.random() < 0.2:
        b.affine(b.last, lambda v: v.sum(keepdims=True), simple("ReduceSum", keepdims=0))
        b.steps[-1].form["whole"] = ()
    return Drawn(b.net(), (n,), drawn_box(random, n, min(n, 2)))


def smooth(random: np.random.Generator) -> Drawn:
    """Sigmoids and tanhs."""
    n = int(random.integers(1, 4))
    b = Builder((n,))
    for _ in range(int(random.integers(1, 3))):
        b.dense(b.last, weights(random, 3, b.shapes[b.last][0]), random.integers(-4, 5, 3) / 8, int(random.integers(5)))
        b.activation(b.last, str(random.choice(["sigmoid", "tanh"])))
    b.dense(b.last, weights(random, 2, 3), np.zeros(2))
    return Drawn(b.net(), (n,), drawn_box(random, n, int(random.integers(1, min(n, 2) + 1))), False)


def products(random: np.random.Generator) -> Drawn:
    """Products of values, squares and HardSwish."""
    n = int(random.integers(1, 4))
    b = Builder((n,))
    first = b.dense(0, weights(random, 3, n), random.integers(-4, 5, 3) / 8)
    kind = random.choice(["product", "square", "swish", "gate"])
    if kind == "product":
        b.pair("Mul", first, b.dense(0, weights(random, 3, n), random.integers(-4, 5, 3) / 8))
    elif kind == "square":
        b.add("mul", (first, first), (3,), with_constants("Pow", np.array(2, np.float32)), of=(first,))
    elif kind == "swish":
        bounded = b.add("clip", (b.affine(first, lambda v: v / 6, None, 0.5),), (3,), None, numbers=(0.0, 1.0))
        b.add("mul", (first, bounded), (3,), simple("HardSwish"), of=(first,))
    else:
        b.pair("Mul", first, b.activation(first, "sigmoid"))
    b.dense(b.last, weights(random, 2, 3), np.zeros(2))
    return Drawn(b.net(), (n,), drawn_box(random, n, int(random.integers(1, min(n, 2) + 1))), False)


def planted(random: np.random.Generator) -> Drawn:
    """A narrow spike at a hidden point beside a small network, as gradients do not find it."""
    n, width = int(random.integers(1, 3)), int(random.integers(2, 5))
    b = Builder((n,))
    point, sharp = np.round(random.uniform(-0.2, 0.2, n) * 64) / 64, float(2 ** random.integers(4, 8))
    first = np.vstack([weights(random, width, n), np.eye(n), -np.eye(n)])
    b.activation(b.dense(0, first, np.concatenate([random.integers(-4, 5, width) / 8, -point, point])), "relu")
    base = np.concatenate([weights(random, 1, width)[0] / 4, np.zeros(2 * n)])
    b.activation(b.dense(b.last, np.vstack([base, np.concatenate([np.zeros(width), np.full(2 * n, -sharp)])]), np.array([8.0, 1.0])), "relu")
    b.dense(b.last, np.array([[1.0, -4.0], [1.0, 0.0]]), np.zeros(2))
    return Drawn(b.net(), (n,), drawn_box(random, n, n))


FAMILIES: dict[str, Callable[[np.random.Generator], Drawn]] = {
    "dense": dense, "scaled": lambda random: dense(random, True), "residual": residual, "moves": moves, "image": image, "neurons": neurons,
    "long": long, "stable": stable, "smooth": smooth, "products": products,
    "planted": planted,
}
