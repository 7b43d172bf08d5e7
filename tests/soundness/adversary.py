"""False claims with the most favourable certificates that float64 finds, on networks where the accounting of errors decides.

Families: `mixed` has dead, active, equal, open and huge cancelling neurons side by side, long sums and fixed inputs, and is false over the reals, by
one float or by much; `absorbed` holds over the reals and is broken by a float32 sum that loses as much as its bound allows; `tiny` by underflow.
Every attempt is one file of a model, a property and a certificate; that one is accepted is what must not be.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from tests.soundness import handmade
from tests.soundness.exact_truth import Claim, Net, Step, smallest
from tests.soundness.handmade import Part, Recipe
from tests.soundness.nets import affine, single
from tests.soundness.orders import reaches, runs, worst
from tests.soundness.proofs import Judgement, files, judged, whole, write
from tests.soundness.traps import above, just_above

U = 2.0**-24


@dataclass(frozen=True)
class Attempt:
    """A claim that is false in each of `arithmetics`, and the records that seem to prove it."""

    family: str
    name: str
    net: Net
    claim: Claim
    arithmetics: tuple[str, ...]
    parts: tuple[Part, ...]


BOTH = ("real", "float32")


def proofs(net: Net, claim: Claim, number: int) -> Iterator[tuple[str, list[Part]]]:
    """Certificates by name: the root alone, boxes, a tree over neurons with multipliers by linear programs, with bounds of neurons before.

    Linear programs are dear: a point has none to choose, and other boxes take turns by their `number`.
    """
    yield "root", [handmade.case(net, claim, [], [])]
    if claim.lower == claim.upper:
        return
    yield "boxes", handmade.boxes(net, claim, 2)
    if {step.kind for step in net.steps} <= {"affine", "relu", "add", "max"} and max(net.sizes()[1:]) <= 8 and number % 3 == 0:
        lemmas = number % 9 == 0
        with np.errstate(all="ignore"):
            try:
                yield "lemmas" if lemmas else "tree", handmade.certificate(net, claim, Recipe(8, lemmas))[0]
            except ValueError as error:  # numbers beyond float64 are no linear program
                assert "inf" in str(error)


def attempts(number: int, net: Net, lower: list, upper: list, row: list[int]) -> Iterator[Attempt]:
    """Claims about one row that are false over the reals, by one float and by a share of the row's range."""
    least, _ = smallest(net, lower, upper, row)
    most = -smallest(net, lower, upper, [-c for c in row])[0]
    for share in (Fraction(0), Fraction(1, 3)):
        wanted = handmade_claim(lower, upper, row, just_above(least + share * (most - least)))
        for how, parts in proofs(net, wanted, number):
            yield Attempt("mixed", f"mixed, seed {number}, {'a third' if share else 'one float'} above, {how}", net, wanted, BOTH, tuple(parts))
        if least == most:
            break


def handmade_claim(lower: list, upper: list, row: list[int], offset: float | Fraction) -> Claim:
    made = above(lower, upper, offset, len(row))
    return Claim(made.lower, made.upper, (((tuple(map(Fraction, row)), Fraction(offset)),),))


def _rows(random: np.random.Generator, n: int, free: int, kinds: list[str], huge: float) -> tuple[np.ndarray, np.ndarray]:
    """One row of weights for each kind. `huge`: the size of the weights that cancel between two of the coordinates that are not free."""
    w, b = np.zeros((len(kinds), n)), np.zeros(len(kinds))
    for k, kind in enumerate(kinds):
        w[k, :free], b[k] = random.integers(-3, 4, free), random.integers(-2, 3)
        if kind == "equal" and k:
            w[k], b[k] = w[k - 1], b[k - 1]
        elif kind == "cancelling" and n - free >= 2:
            i, j = free + random.permutation(n - free)[:2]
            w[k, i], w[k, j] = huge, -huge
        elif kind == "long":
            w[k, free:] = random.choice([-1.0, 1.0], n - free)
            w[k, free:] -= np.roll(w[k, free:], 1) * random.integers(0, 2)
        b[k] += {"active": 1.0, "dead": -1.0}.get(kind, 0.0) * (4 * abs(w[k, :free]).sum() + 4)
    return w, b


def mixed_rows(random: np.random.Generator, free: int, fixed: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Weights and biases of neurons of all kinds, and the size that the fixed inputs are to have, all the same."""
    size, huge = 10.0 ** random.integers(0, 6), 10.0 ** random.integers(1, 6)
    kinds = [str(k) for k in random.choice(["active", "dead", "equal", "cancelling", "cancelling", "long", "open"], int(random.integers(2, 7)))]
    kinds += ["active"] * int(random.integers(2))
    return (*_rows(random, free + fixed, free, kinds, huge), size)


def mixed(seed: int) -> Iterator[Attempt]:
    """One or two hidden layers of neurons of all kinds over few free and some fixed, equal, large inputs."""
    random = np.random.default_rng([seed, 1])
    free, fixed = int(random.integers(1, 3)), int(random.choice([2, 2, 3, 8, 24]))
    w, b, size = mixed_rows(random, free, fixed)
    kind, numbers = [("relu", ()), ("relu", ()), ("leaky", (0.25,)), ("clip", (-1.0, 8.0)), ("abs", ())][seed % 5]
    steps = [affine(0, w, b), Step(kind, (1,), numbers=numbers)]
    if seed % 3 == 0:
        w, b = _rows(random, len(b), min(2, len(b)), ["cancelling", "active", "open"], 10.0 ** random.integers(0, 4))
        steps += [affine(2, w, b), Step("relu", (3,))]
    width = len(steps[-2].bias)
    out = random.integers(-2, 3, (1, width)) * (random.random((1, width)) < 0.7)
    scale = 2.0 ** random.integers(-20, 20)
    net = Net(free + fixed, (*steps, affine(len(steps), out * scale, random.integers(-1, 2, 1) * scale)))
    value = single(np.full(fixed, size * random.integers(1, 8)))
    lower, upper = ([Fraction(s)] * free + [Fraction(float(v)) for v in value] for s in (-1, 1))
    yield from attempts(seed, net, lower, upper, [1 if random.random() < 0.5 else -1])


def absorbed(seed: int) -> Iterator[Attempt]:
    """A sum of 1 and k terms that float32 drops one by one, or a product that loses half a float and then k terms, on the way to the output."""
    random = np.random.default_rng([seed, 2])
    k = int([1, 2, 4, 8, 16, 40, 150][seed % 7])
    after = ["nothing", "relu", "scaled", "difference", "leaky", "larger", "add", "clip", "square", "negative"][seed // 7 % 10]
    dominant = ["bias", "product"][seed // 70 % 2]
    p = 1.0 + 2047 * 2 * U  # its square loses nearly half a float
    w, x = np.full((1, k + 1), U), np.ones(k + 1)
    w[0, 0], b = (p, U) if dominant == "product" else (U, 1.0)
    x[0] = p if dominant == "product" else 1.0
    sign = 1.0 if after in ("relu", "larger") else random.choice([-1.0, 1.0])
    first = affine(0, sign * w, [sign * b])
    tail: dict[str, list[Step]] = {
        "nothing": [], "relu": [Step("relu", (1,))], "scaled": [affine(1, [[3.0]], [0.0])], "negative": [affine(1, [[-1.0]], [0.5])],
        "difference": [affine(1, [[1.0], [1.0]], [0.0, 4.0]), Step("relu", (2,)), affine(3, [[1.0, 2.0]], [-1.0])],
        "leaky": [Step("leaky", (1,), numbers=(0.5,))], "larger": [affine(1, [[1.0], [0.25]], [0.0, 0.0]), Step("max", (2,), groups=((0, 1),))],
        "add": [affine(0, w * 0.5, [0.0]), Step("add", (1, 2))], "clip": [Step("clip", (1,), numbers=(-2.5, 2.5))], "square": [Step("mul", (1, 1))],
    }
    net = Net(k + 1, (first, *tail[after]))
    point = single(x)
    lower = upper = [Fraction(float(v)) for v in point]
    for row in ([1], [-1]):
        yield from broken("absorbed", f"absorbed, {k} terms beside a {dominant}, {after}, {row[0]:+}", net, lower, upper, row, point[None])


def tiny(seed: int) -> Iterator[Attempt]:
    """Products that underflow, grown again by the layers behind."""
    random = np.random.default_rng([seed, 3])
    e, k = int(random.integers(64, 76)), int(random.integers(1, 5))
    first, second = np.full((k, 1), 2.0**-e), np.full((k, k), 2.0 ** -int(random.integers(60, 76)))
    grow = 2.0 ** int(random.integers(60, 70))
    net = Net(1, (affine(0, first, np.zeros(k)), Step("relu", (1,)), affine(2, second, np.zeros(k)), Step("relu", (3,)),
                  affine(4, np.eye(k) * grow, np.zeros(k)), affine(5, np.ones((1, k)) * grow, [random.integers(0, 2)])))
    x = np.array([[float(np.float32(random.uniform(1, 2)))]])
    point = [Fraction(float(v)) for v in x[0]]
    for row in ([1], [-1]):
        yield from broken("tiny", f"tiny, seed {seed}, {row[0]:+}", net, point, point, row, x)


def broken(
    family: str, name: str, net: Net, lower: list, upper: list, row: list[int], points: np.ndarray, value: Fraction | None = None
) -> Iterator[Attempt]:
    """The claim that float32 breaks at one of the points although the reals keep it, with the least offset that it reaches.

    `value`: the row's least value over the reals, where it is known already.
    """
    value = exact_least(net, lower, upper, row) if value is None else value
    every = np.concatenate([worst(net, points, row), *(runs(net, points, order) for order in ("forward", "bias first", "pairs", "fused"))])
    found = min((sum(Fraction(float(v)) * c for v, c in zip(y, row)) for y in every if np.isfinite(y).all()), default=value)
    if found < value:
        wanted = handmade_claim(lower, upper, row, found)
        assert any(reaches(wanted.polytopes[0], y) for y in every)
        yield Attempt(family, name, net, wanted, ("float32",), (handmade.case(net, wanted, [], []),))


def exact_least(net: Net, lower: list, upper: list, row: list[int]) -> Fraction:
    """The row's minimum; a network with products has one here if its box is a point."""
    if any(step.kind == "mul" for step in net.steps):
        assert lower == upper and net.steps[-1].kind == "mul" and net.steps[-1].sources[0] == net.steps[-1].sources[1]
        inner = Net(net.n_in, net.steps[:-1])
        value, _ = smallest(inner, lower, upper, [1])
        return row[0] * value * value
    return smallest(net, lower, upper, row)[0]


FAMILIES: dict[str, Callable[[int], Iterator[Attempt]]] = {"mixed": mixed, "absorbed": absorbed, "tiny": tiny}


def every(count: int) -> Iterator[Attempt]:
    """About `count` attempts of all families, the first seeds of each."""
    drawn, seed = 0, 0
    while drawn < count:
        for name, family in FAMILIES.items():
            for attempt in family(seed) if name != "tiny" or seed % 4 == 0 else ():
                drawn += len(attempt.arithmetics)
                yield attempt
        seed += 1


def answers(attempt: Attempt, folder: Path) -> Iterator[tuple[str, Judgement]]:
    """(arithmetic, what the checker says), for each in which the claim is false."""
    where = files(attempt.net, [attempt.claim], folder)
    for arithmetic in attempt.arithmetics:
        yield arithmetic, judged(where, write(whole(where.head(arithmetic), attempt.parts), folder / "attempt.cert"))
