"""Networks and claims made to fool a verifier, each with its truth.

`real` is the truth over the reals, by exact enumeration; `float32` is False where some order of summation violates the claim at a point of the box,
which is then in `witness`, and None where none is known to. Refs: No Soundness in the Real World (arXiv:2506.01054): the order of summation;
SoundnessBench (arXiv:2412.03154): counterexamples hidden in the box.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import inf, nextafter

import numpy as np

from tests.soundness import nets
from tests.soundness.exact_truth import Claim, Net, Step, holds, smallest
from tests.soundness.nets import ORDERS, affine, mlp, run_float32, single


@dataclass(frozen=True)
class Trap:
    name: str
    net: Net
    claim: Claim
    real: bool
    float32: bool | None = None
    text: str = ""
    """The property where it is not the claim's numbers in full."""
    witness: tuple[str, tuple[float, ...]] | None = None
    """Order of summation and input."""


def claim(lower: Sequence, upper: Sequence, *polytopes: Sequence[tuple[Sequence, float | Fraction]]) -> Claim:
    rational = lambda values: tuple(Fraction(v) for v in values)  # noqa: E731
    rows = [[(rational(row), Fraction(offset)) for row, offset in polytope] for polytope in polytopes]
    return Claim(rational(lower), rational(upper), tuple(map(tuple, rows)))


def above(lower: Sequence, upper: Sequence, offset: float | Fraction, n_out: int = 1) -> Claim:
    """y_0 > offset on the box."""
    return claim(lower, upper, [([1] + [0] * (n_out - 1), offset)])


def just_below(value: Fraction) -> float:
    """The largest float64 less than the value."""
    near = float(value)
    return near if Fraction(near) < value else nextafter(near, -inf)


def just_above(value: Fraction) -> float:
    """The smallest float64 that is not less than the value."""
    near = float(value)
    return near if Fraction(near) >= value else nextafter(near, inf)


def violated(net: Net, wanted: Claim, x: Sequence[float]) -> str | None:
    """The order of summation in which float32 breaks the claim at this float32 point of its box."""
    for name, order in ORDERS.items():
        y = run_float32(net, x, order)
        if not np.isnan(y).any() and any(all(_reaches(row, y, offset) for row, offset in polytope) for polytope in wanted.polytopes):
            return name
    return None


def _reaches(row: Sequence[Fraction], y: np.ndarray, offset: Fraction) -> bool:
    """row @ y <= offset for float32 numbers y, exactly; an infinite y counts by its sign."""
    if np.isinf(y).any():
        return sum(float(c) * float(v) for c, v in zip(row, y) if c != 0) == -inf
    return sum(c * Fraction(float(v)) for c, v in zip(row, y)) <= offset


def at(trap: Trap, *points: Sequence[float]) -> Trap:
    """The trap with what float32 does at these points and at the exact minimiser."""
    for x in points:
        inside = all(low <= Fraction(float(v)) <= high for v, low, high in zip(x, trap.claim.lower, trap.claim.upper))
        if inside and np.array_equal(single(x), np.asarray(x, float)) and (order := violated(trap.net, trap.claim, x)):
            return replace(trap, float32=False, witness=(order, tuple(map(float, x))))
    return trap


def planted(seed: int, n: int, width: int) -> Trap:
    """A ReLU network and a narrow spike at a hidden point of the box, deep enough to break the claim there and nowhere far from it.

    It fools who samples; plain float bounds are not fooled, as the leaves around the tip all end in it and the least of their bounds counts.
    """
    random = np.random.default_rng([seed, n, width])
    point = single(np.round(random.uniform(-0.9, 0.9, n) * 64) / 64)
    sharp, depth = float(2 ** random.integers(4, 9)), 4.0
    first = np.vstack([random.normal(size=(width, n)), np.eye(n), -np.eye(n)])
    bias = np.concatenate([random.normal(size=width), -point, point])
    away = np.concatenate([np.zeros(width), np.full(2 * n, -sharp)])
    second = np.vstack([np.hstack([random.normal(size=(1, width)) / 8, np.zeros((1, 2 * n))]), away])
    steps = (affine(0, first, bias), Step("relu", (1,)), affine(2, second, [6.0, 1.0]), Step("relu", (3,)), affine(4, [[1.0, -depth]], [0.0]))
    net = Net(n, steps)
    value = run_float32(net, point, ORDERS["forward"])[0]
    made = Trap(f"planted {n}x{width}, seed {seed}", net, above([-1] * n, [1] * n, float(value) + depth / 2), False)
    return at(made, tuple(point))


def planted_close(seed: int, n: int, width: int) -> Trap:
    """The same spike with a claim that only its tip breaks, by at most one ulp of float64: far less than float32 rounds."""
    deep = planted(seed, n, width)
    least, _ = smallest(deep.net, deep.claim.lower, deep.claim.upper, [1])
    return Trap(f"{deep.name}, its tip", deep.net, above(deep.claim.lower, deep.claim.upper, just_above(least)), False)


def thresholds(seed: int, net: Net, lower: Sequence, upper: Sequence) -> Iterator[Trap]:
    """The exact minimum one float above and one float below the threshold, and far enough below for float32 to break what the reals keep."""
    least, x = smallest(net, lower, upper, [1] + [0] * (net.n_out - 1))
    name = f"threshold, seed {seed}"
    yield Trap(f"{name}: false by at most one ulp", net, above(lower, upper, just_above(least), net.n_out), False)
    yield Trap(f"{name}: true by at most one ulp", net, above(lower, upper, just_below(least), net.n_out), True)
    near = [single([float(v) for v in x])]
    low, high = (np.array([float(v) for v in side]) for side in (lower, upper))
    random = np.random.default_rng(seed)
    near += [single(np.clip(near[0] + step * random.normal(size=net.n_in), low, high)) for step in (1e-7,) * 8 + (1e-6,) * 4]
    values = [(min(float(run_float32(net, p, order)[0]) for order in ORDERS.values()), tuple(p)) for p in near]
    worst = min(values)
    if worst[0] < least:
        yield at(Trap(f"{name}: true by less than float32 rounds", net, above(lower, upper, worst[0], net.n_out), worst[0] < least), worst[1])


def summation() -> Iterator[Trap]:
    """(w + 1) - w is 1, and 0 in float32 where w = 2^24 or more and the sum runs from the left: arXiv:2506.01054's detectors of an environment."""
    for exponent in (24, 30, 100):
        w = 2.0**exponent
        net = mlp([(np.array([[1.0], [1.0], [1.0]]), np.zeros(3)), (np.array([[w, 1.0, -w]]), np.zeros(1))])
        yield at(Trap(f"(w + 1) - w, w = 2^{exponent}", net, above([1], [1], 0.5), True), (1.0,))
        switch = mlp([(np.array([[w], [1.0], [-w]]), np.zeros(3)), (np.array([[1.0, 1.0, 1.0]]), np.zeros(1))])
        yield Trap(f"relu(w x) + relu(x) + relu(-w x), w = 2^{exponent}", switch, above([0], [1], -0.5), True)
        inner = Net(1, (affine(0, [[1.0]] * 3, [0.0] * 3), Step("relu", (1,)), affine(2, [[w, 1.0, -w]], [0.0]), Step("relu", (3,)),
                        affine(4, [[-1.0]], [1.5])))
        made = Trap(f"1.5 - relu((w + 1) - w), w = 2^{exponent}", inner, claim([1], [1], [([-1], -1.0)]), True)
        yield at(made, (1.0,))
    many = mlp([(np.ones((64, 1)), np.zeros(64)), (np.full((1, 64), 1.0) * (1 + 2.0**-23), np.zeros(1))])
    yield at(Trap("64 equal terms", many, above([1], [1], 64 * (1 + 2.0**-23) - 2.0**-40), True), (1.0,))


def scales() -> Iterator[Trap]:
    """Huge and tiny weights, cancelling pairs, numbers near both ends of float32."""
    for e in (10, 20, 38):
        big, small = 10.0**e, 10.0**-e
        net = mlp([(np.array([[big], [-big]]), np.array([0.0, 1.0])), (np.array([[small, -small]]), np.zeros(1))])
        least, x = smallest(net, [-1], [1], [1])
        yield at(Trap(f"1e{e} and back", net, above([-1], [1], just_above(least)), False), tuple(map(float, x)))
        twins = mlp([(np.array([[big, 1.0], [big, -1.0]]), np.zeros(2)), (np.array([[1.0, -1.0]]), np.zeros(1))])
        least, x = smallest(twins, [0, -1], [1, 1], [1, 0])
        yield at(Trap(f"twins that differ by 1 in 1e{e}: false", twins, above([0, -1], [1, 1], just_above(least)), False), (1.0, -1.0), (0.5, -0.5))
        yield at(Trap(f"twins that differ by 1 in 1e{e}: true", twins, above([0, -1], [1, 1], just_below(least)), True), (1.0, -1.0), (0.5, -1.0))
    net = Net(1, (affine(0, [[3e38]], [0.0]), Step("relu", (1,)), affine(2, [[1e-38]], [-100.0]), Step("relu", (3,)), affine(4, [[-1.0]], [1.0])))
    yield at(Trap("overflow: inf after a ReLU, hidden by a tiny weight", net, above([1], [2], 0.0), True), (2.0,))
    net = mlp([(np.array([[2e38], [2e38]]), np.zeros(2)), (np.array([[1.0, -1.0], [1.0, 1.0]]), np.array([1.0, 0.0]))])
    yield at(Trap("overflow: a partial sum", net, claim([1], [1.5], [([1, 0], 0.0)]), True), (1.5,))
    deep = mlp([(np.array([[1e38]]), np.zeros(1))] * 10 + [(np.array([[-1.0]]), np.zeros(1))])
    yield Trap("beyond float64: 1e380", deep, above([0], [1], 0.0), False)
    deep = mlp([(np.array([[1e-38]]), np.zeros(1))] * 10 + [(np.array([[-1.0]]), np.zeros(1))])
    yield Trap("below float64: -1e-380 <= 0", deep, above([0], [1], -0.0), False)
    tiny = mlp([(np.array([[weight]]), np.zeros(1)) for weight in (1e-38, 1e-38, 1e38, 1e38)])
    yield at(Trap("underflow: 1 through 1e-76 is 0 in float32", tiny, above([1], [1], 0.5), True), (1.0,))


def boxes() -> Iterator[Trap]:
    """Thin, flat and denormal boxes, and counterexamples within one float of a side."""
    up = float(np.nextafter(1.0, 2.0))
    wide = mlp([(np.array([[2.0**52]]), np.array([-(2.0**52)])), (np.array([[-1.0]]), np.zeros(1))])
    yield Trap("a box of two floats, 1 at one end", wide, above([1], [up], -1.0), False)
    yield Trap("a box of two floats, below 1", wide, above([1], [up], nextafter(-1.0, -2)), True)
    thin = mlp([(np.array([[2.0**50]]), np.array([-(2.0**50)])), (np.array([[-1.0]]), np.zeros(1))])
    yield Trap("thinner than 1e-12: false", thin, above([1], [1 + 2.0**-42], -256.0), False)
    yield Trap("thinner than 1e-12: true", thin, above([1], [1 + 2.0**-42], -257.0), True)
    least = float(np.nextafter(0.0, 1.0))
    for name, scale in (("1e38", 1e38), ("1", 1.0)):
        net = mlp([(np.array([[scale]]), np.zeros(1)), (np.array([[-scale]]), np.zeros(1))])
        reached = -(Fraction(float(np.float32(scale))) ** 2) * Fraction(least)
        yield Trap(f"a denormal box, weights {name}: false", net, above([0], [least], just_above(reached)), False)
    net = nets.random_mlp(5, (2, 4, 1))
    for seed in range(3):
        point = single(np.random.default_rng(seed).uniform(-1, 1, 2))
        x = [Fraction(float(v)) for v in point]
        value, _ = smallest(net, x, x, [1])
        yield at(Trap(f"a point box at the threshold, seed {seed}", net, above(x, x, just_above(value)), False), tuple(point))
    edge = mlp([(np.array([[1.0]]), np.array([-1.0])), (np.array([[-(2.0**60)]]), np.array([1.0]))])
    yield Trap("a spike within one float of the side: false", edge, above([0], [up], 0.0), False)
    yield Trap("a spike beyond the side: true", edge, above([0], [1], 0.0), True)


def decimals() -> Iterator[Trap]:
    """Properties whose decimals are no floats: the truth lies between the decimal and the float nearest to it."""
    for text in ("0.3", "0.7", "1.1", "123.4"):
        number, near = Fraction(text), Fraction(float(text))
        value = Fraction(int(number * 2**70), 2**70)
        pieces, rest = [], value
        for _ in range(4):
            pieces.append(float(np.float32(float(rest))))
            rest -= Fraction(pieces[-1])
        net = Net(4, (Step("relu", (0,)), affine(1, [pieces], [0.0])))
        exact_value = value - rest
        if near < exact_value <= number:
            wanted = above([1] * 4, [1] * 4, number)
            inputs = "".join(f"(declare-const X_{i} Real)(assert (= X_{i} 1.0))" for i in range(4))
            text_ = f"{inputs}(declare-const Y_0 Real)(assert (<= Y_0 {text}))"
            yield Trap(f"between float({text}) and {text}", net, wanted, False, text=text_)
    net = mlp([(np.array([[1.0]]), np.zeros(1)), (np.array([[-1.0]]), np.zeros(1))])
    number = Fraction(11, 10)
    text = "(declare-const X_0 Real)(declare-const Y_0 Real)(assert (>= X_0 0.0))(assert (<= X_0 1.1))(assert (<= Y_0 -1.1))"
    yield Trap("an input's decimal bound met exactly", net, above([0], [number], -number), False, text=text)


def random_nets(count: int) -> Iterator[tuple[int, Net, list[Fraction], list[Fraction]]]:
    """Networks of all the forms that `nets` makes, with boxes of two free inputs."""
    for seed in range(count):
        kind, half = seed % 5, Fraction(1, 2 ** (seed % 3))
        net = [lambda s: nets.random_mlp(s, (2, 4, 3, 2)), lambda s: nets.random_mlp(s, (3, 5, 2)), nets.random_residual, nets.random_conv,
               lambda s: nets.random_conv(s, True)][kind](seed)
        center = [Fraction(int(v), 16) for v in np.random.default_rng(seed).integers(-16, 16, net.n_in)]
        free = net.n_in if net.n_in <= 3 else 2
        yield seed, net, [c - half * (i < free) for i, c in enumerate(center)], [c + half * (i < free) for i, c in enumerate(center)]


def every(count: int) -> Iterator[Trap]:
    """All kinds; `count` sets how many are drawn of those with a seed."""
    for seed in range(count):
        yield planted(seed, 1 + seed % 3, 4 + seed % 5)
        yield planted_close(seed, 1 + seed % 3, 4 + seed % 5)
    for made in random_nets(count):
        yield from thresholds(*made)
    for family in (summation, scales, boxes, decimals):
        yield from family()


def check_truth(trap: Trap) -> bool:
    """Whether the stated truth over the reals is the exact one."""
    return holds(trap.net, trap.claim) == trap.real

