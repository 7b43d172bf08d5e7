"""Random problems with their truth: a network of `drawn`, and a property whose thresholds stand at known distances from the true extremes.

The truth over the reals is exact where the network has linear pieces and the distance is small; where it is a share of the output's range, an
enclosure by intervals is enough. `clear` problems have such a distance, above what float32 can round: these have to be decided.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from tests.soundness import drawn, enclosures
from tests.soundness.drawn import Drawn
from tests.soundness.exact_truth import Net, Step, smallest
from tests.soundness.formulas import Box, Disjunct, Row, text
from tests.soundness.handmade import decimal
from tests.soundness.layers import write_model
from tests.soundness.orders import in_float64
from tests.soundness.traps import just_above, just_below

SMALLEST = Fraction(1, 2**300)
"""What stands for one float beside 0, whose neighbours' decimals are too long."""


@dataclass(frozen=True)
class Problem:
    """`net` has the inputs behind its outputs, as rows may speak of both. `real`: whether the text is safe over the reals.

    `near`: inputs at which a threshold is met most closely. `distance`: clear, one float, or zero.
    """

    family: str
    name: str
    model: bytes
    text: str
    net: Net
    n_out: int
    disjuncts: tuple[Disjunct, ...]
    real: bool
    distance: str
    clear: bool
    near: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class _Placed:
    rows: tuple[Row, ...]
    safe: bool
    clear: bool
    near: tuple[float, ...]


def problem(family: str, seed: int) -> Problem:
    """One problem; the same seed gives the same one."""
    random = np.random.default_rng([seed, sum(map(ord, family))])
    return asked_of(drawn.FAMILIES[family](random), random, family, f"{family} {seed}")


def asked_of(made: Drawn, random: np.random.Generator, family: str, name: str) -> Problem:
    """A random property of the network."""
    net = Net(made.net.n_in, (*made.net.steps, Step("concat", (len(made.net.steps), 0))))
    distance = str(random.choice(["clear", "clear", "clear", "one float", "zero"])) if made.linear else "clear"
    safe = random.random() < 0.5
    boxes = _boxes(made.box, random) if random.random() < 0.3 else [made.box]
    counts = [int(random.choice([1, 1, 1, 2, 3])) for _ in boxes]
    bad = int(random.integers(sum(counts))) if not safe else -1
    strict, disjuncts, placed = random.random() < 0.3, [], []
    for box, count in zip(boxes, counts):
        own = []
        for _ in range(count):
            wanted = len(placed) != bad and (safe or random.random() < 0.8)
            own.append(_place(random, net, made, box, distance, wanted, strict))
            placed.append(own[-1])
        disjuncts.append((box, tuple(p.rows for p in own)))
    real = all(p.safe for p in placed)
    clear = all(p.clear for p in placed) if real else any(p.clear and not p.safe for p in placed)
    near = tuple(p.near for p in placed)
    return Problem(family, name, write_model(made.net, made.shape), text(disjuncts, made.net.n_out, random), net, made.net.n_out,
                   tuple(disjuncts), real, distance, clear, near)


def _boxes(box: Box, random: np.random.Generator) -> list[Box]:
    """The box cut in two or three along its first free side, parts left out or overlapping, or a part that is a point or thin."""
    low, high = box.sides()
    axis = next(i for i in range(len(low)) if low[i] < high[i])
    width, found = high[axis] - low[axis], []
    for a, b in [[(0, 1), (2, 4)], [(0, 3), (2, 4)], [(0, 1), (1, 2), (3, 4)], [(1, 1), (2, 4)]][random.integers(4)]:
        sides = [list(box.lower), list(box.upper)]
        sides[0][axis], sides[1][axis] = decimal(low[axis] + width * Fraction(a, 4)), decimal(low[axis] + width * Fraction(b, 4))
        found.append(Box(tuple(sides[0]), tuple(sides[1])))
    return found


def _place(random: np.random.Generator, net: Net, made: Drawn, box: Box, distance: str, safe: bool, strict: bool) -> _Placed:
    """A polytope whose last row is at the distance from what can be reached."""
    n_in, n_out = net.n_in, made.net.n_out
    low, high = box.sides()
    row = [Fraction(0)] * (n_out + n_in)
    for j in random.permutation(n_out)[:int(random.integers(1, 3))]:
        row[j] = Fraction(int(random.choice([-2, -1, 1, 1, 3])))
    free = [i for i in range(n_in) if low[i] < high[i]]
    samples = _samples(random, net, low, high)
    values = samples[1] @ np.array([float(c) for c in row])
    if random.random() < 0.15 and free:
        row[n_out + free[0]] = Fraction(1)
        values = samples[1] @ np.array([float(c) for c in row])
    within = _within(random, net, made, samples) if made.linear and distance == "clear" and random.random() < 0.25 else ()
    room = _rounding(net, samples[0], row)
    spread = max(float(np.ptp(values)), 0.02 * float(abs(values).max()))
    if spread == 0:
        spread = float(max(abs(np.concatenate([samples[1].reshape(-1), [1e-30]]))))
    share = float(random.choice([0.02, 0.1, 0.3])) * spread
    if distance == "clear" and not within:
        below, above, x = enclosures.least(net, [float(v) for v in low], [float(v) for v in high], [float(c) for c in row])
        offset, near = (below - share if safe else above + share), tuple(map(float, x))
        written = f"{offset:.6g}"
        number = Fraction(written)
        is_clear = share > 4 * room and (number < below - share / 2 if safe else number > above + share / 2)
        return _Placed((Row(tuple(row), number, strict and random.random() < 0.5, written),), safe, is_clear, near)
    try:
        least, where = smallest(net, low, high, row, [(r.coefficients, r.offset) for r in within])
    except LookupError:
        return _Placed((*within, Row(tuple(row), Fraction(float(values.max())))), True, False, tuple(samples[0][0]))
    number = {
        "clear": lambda: Fraction(f"{float(least) - share if safe else float(least) + share:.6g}"),
        "one float": lambda: Fraction(just_below(least) if safe else just_above(least)) if least else SMALLEST * (-1 if safe else 1),
        "zero": lambda: least if dyadic(least) else Fraction(just_above(least)),
    }[distance]()
    last = Row(tuple(row), number, strict and (distance != "clear" or random.random() < 0.5))
    is_safe = number < least or (number == least and last.strict)
    is_clear = distance == "clear" and share > 4 * room and (is_safe or not within)
    return _Placed((*within, last), is_safe, is_clear, tuple(float(v) for v in where))


def dyadic(value: Fraction) -> bool:
    """Whether it can be written as a decimal of at most some hundred digits."""
    return value.denominator.bit_length() < 500 and value.denominator & (value.denominator - 1) == 0


def _within(random: np.random.Generator, net: Net, made: Drawn, samples: tuple[np.ndarray, np.ndarray]) -> tuple[Row, ...]:
    """One more row, or a band, around what the middle samples give."""
    row = [Fraction(0)] * (made.net.n_out + net.n_in)
    row[int(random.integers(made.net.n_out))] = Fraction(int(random.choice([-1, 1])))
    values = np.sort(samples[1] @ np.array([float(c) for c in row]))
    lower, upper = (Fraction(f"{float(values[k]):.6g}") for k in (len(values) // 4, 3 * len(values) // 4))
    rows = [Row(tuple(row), upper)]
    if random.random() < 0.3 and lower < upper:
        rows.append(Row(tuple(-c for c in row), -lower))
    return tuple(rows)


def _samples(random: np.random.Generator, net: Net, low: Sequence[Fraction], high: Sequence[Fraction]) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and extended outputs, `(K, ...)` each."""
    a, b = (np.array([float(v) for v in side]) for side in (low, high))
    x = a + (b - a) * random.random((60, len(a)))
    return x, in_float64(net, x)[-1]


def _rounding(net: Net, x: np.ndarray, row: Sequence[Fraction]) -> float:
    """A generous guess of what float32 rounds at these inputs: k u times the absolute terms of every layer, carried to the row."""
    values, errors = in_float64(net, x), [abs(x) * 2.0**-24]
    for number, step in enumerate(net.steps):
        sources, off = [values[s] for s in step.sources], [errors[s] for s in step.sources]
        if step.kind == "affine":
            w, b = abs(np.asarray(step.matrix, float)), abs(np.asarray(step.bias, float))
            errors.append(off[0] @ w.T + (w.shape[1] + 2) * 2.0**-24 * (abs(sources[0]) @ w.T + b) + (w.shape[1] + 8) * 2.0**-126)
        elif step.kind == "concat":
            errors.append(np.concatenate(off, 1))
        elif step.kind == "max":
            errors.append(np.stack([off[0][:, list(group)].max(1) for group in step.groups], 1))
        elif step.kind == "mul":
            errors.append(off[0] * abs(sources[1]) + off[1] * abs(sources[0]) + 2.0**-23 * abs(values[number + 1]))
        else:
            smoothness = 2.0**-20 if step.kind in ("sigmoid", "tanh") else 2.0**-23 * abs(values[number + 1])
            errors.append(sum(off) + smoothness)
    return float((errors[-1] @ np.array([abs(float(c)) for c in row])).max())
