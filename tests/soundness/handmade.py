"""Certificates without the verifier: branch and bound on ReLU signs over a `Net`, multipliers from HiGHS's duals, in plain float64.

Every ReLU, and every comparison of a MaxPool, is a neuron; nothing is substituted. A proof that fails is written all the same: of a false claim it
is the most favourable certificate that there is. The records are (kind, fields, arrays) in the order of docs/certificate.md, between HEAD and DONE.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
from scipy.optimize import linprog

from tests.soundness.exact_truth import Claim, Net

Part = tuple[str, dict, dict[str, np.ndarray]]


def decimal(value: Fraction | float) -> str:
    """A dyadic number in full."""
    number = Fraction(value)
    with localcontext() as context:
        context.prec = 2000
        return format(Decimal(number.numerator) / Decimal(number.denominator), "f")


@dataclass(frozen=True)
class Columns:
    """Neurons z = A x + W h + b and rows m = A_o x + W_o h + b_o over x in [-1, 1]^n, h = relu(z); `names (U, 2)`: (step, number within the node)."""

    A: np.ndarray
    W: np.ndarray
    b: np.ndarray
    A_o: np.ndarray
    W_o: np.ndarray
    b_o: np.ndarray
    names: list[tuple[int, int]]
    lower: np.ndarray
    upper: np.ndarray


def columns(net: Net, lower: np.ndarray, upper: np.ndarray, rows: np.ndarray, offset: np.ndarray) -> Columns:
    """Forwards, in float64; bounds by intervals."""
    free = np.flatnonzero(upper > lower)
    start = np.zeros((net.n_in, 1 + len(free)))
    start[:, 0] = (lower + upper) / 2
    start[free, 1 + np.arange(len(free))] = ((upper - lower) / 2)[free]
    values, neurons, names = [start], [], []

    def grown(value: np.ndarray) -> np.ndarray:
        return np.hstack([value, np.zeros((len(value), 1 + len(free) + len(neurons) - value.shape[1]))])

    def relu(value: np.ndarray, step: int, first: int) -> np.ndarray:
        neurons.extend(grown(value))
        names.extend((step, first + i) for i in range(len(value)))
        return np.hstack([np.zeros((len(value), 1 + len(free) + len(neurons) - len(value))), np.eye(len(value))])

    for number, step in enumerate(net.steps, 1):
        source = grown(values[step.sources[0]])
        if step.kind == "affine":
            assert step.matrix is not None and step.bias is not None
            value = step.matrix @ source
            value[:, 0] += step.bias
        elif step.kind == "add":
            value = source + grown(values[step.sources[1]])
        elif step.kind == "relu":
            value = relu(source, number, 0)
        else:
            players, first = [source[[g[k] for g in step.groups]] for k in range(len(step.groups[0]))], 0
            while len(players) > 1:
                winners = []
                for a, b in zip(players[0::2], players[1::2]):
                    more = relu(grown(b) - grown(a), number, first)
                    first += len(step.groups)
                    winners.append(grown(a) + more)
                players = winners + (players[-1:] if len(players) % 2 else [])
            value = grown(players[0])
        values.append(value)
    n, total = len(free), 1 + len(free) + len(neurons)
    z = np.array([np.pad(v, (0, total - len(v))) for v in neurons]).reshape(-1, total)
    m = rows @ grown(values[-1])
    low, high = _intervals(z, n)
    return Columns(z[:, 1:1 + n], z[:, 1 + n:], z[:, 0], m[:, 1:1 + n], m[:, 1 + n:], m[:, 0] - offset, names, low, high)


def _intervals(z: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    low, high = np.zeros(len(z)), np.zeros(len(z))
    for j, row in enumerate(z):
        reach, w = np.abs(row[1:1 + n]).sum(), row[1 + n:1 + n + j]
        ends = np.maximum(np.stack([low[:j], high[:j]]), 0)
        low[j] = row[0] - reach + np.minimum(w * ends[0], w * ends[1]).sum()
        high[j] = row[0] + reach + np.maximum(w * ends[0], w * ends[1]).sum()
    return low, high


def cast(c: Columns, kind: type) -> Columns:
    """Every number in another precision."""
    first = (part.astype(kind) for part in (c.A, c.W, c.b, c.A_o, c.W_o, c.b_o))
    return Columns(*first, c.names, c.lower.astype(kind), c.upper.astype(kind))


def leaf_bounds(c: Columns, tree: Sequence[int]) -> list[tuple[np.ndarray, np.ndarray]]:
    """The neurons' intervals on the leaves of a tree in pre-order, all split at 0."""
    waiting, found = [(c.lower, c.upper)], []
    for code in tree:
        lower, upper = waiting.pop()
        if code < 0:
            found.append((lower, upper))
            continue
        above, below = lower.copy(), upper.copy()
        above[code], below[code] = 0.0, 0.0
        waiting += [(lower, below), (above, upper)]
    return found


def bound(c: Columns, rows: np.ndarray, offset: float, nu: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> float:
    """The proof rule of docs/certificate.md without noise, for r = rows @ (x, h) + offset. Any nu gives a bound."""
    n = c.A.shape[1]
    a, w = rows[:n] + nu @ c.A, rows[n:] + nu @ c.W
    if (lower > upper).any():
        return np.inf
    ends = np.stack([lower, np.clip(0.0, lower, upper), upper])
    return float(offset + nu @ c.b - np.abs(a).sum() + (w * np.maximum(ends, 0) - nu * ends).min(0).sum())


def best_multipliers(c: Columns, rows: np.ndarray, offset: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """lambda (R,) over the rows, nu (U,) and the bound that they give: duals of min t, rows <= t, (z, h) in the hull of ReLU over its interval."""
    n, u = c.A.shape[1], len(c.b)
    count = len(rows)
    cost = np.zeros(n + 2 * u + 1)
    cost[-1] = 1.0
    equal = np.hstack([-c.A, np.eye(u), -c.W, np.zeros((u, 1))])
    less, limit = [np.hstack([rows[:, :n], np.zeros((count, u)), rows[:, n:], -np.ones((count, 1))])], [-offset]
    low, high = np.minimum(lower, upper), upper
    sides = [(-1.0, 1.0)] * n + list(zip(low, high)) + list(zip(np.maximum(low, 0), np.maximum(high, 0))) + [(None, None)]
    slope = np.where(high - low > 1e-30, (np.maximum(high, 0) - np.maximum(low, 0)) / np.maximum(high - low, 1e-30), 0.0)
    eye, none = np.eye(u), np.zeros((u, 1))
    less += [np.hstack([np.zeros((u, n)), eye, -eye, none]), np.hstack([np.zeros((u, n)), -slope[:, None] * eye, eye, none])]
    limit += [np.zeros(u), np.maximum(low, 0) - slope * low]
    found = linprog(cost, np.vstack(less), np.concatenate(limit), equal, c.b, sides, method="highs")
    if found.status != 0:  # nothing satisfies the signs: equations that may be broken for a price, whose duals then prove it
        wide = np.hstack([np.vstack(less), np.zeros((count + 2 * u, 2 * u))])
        equal, price = np.hstack([equal, np.eye(u), -np.eye(u)]), np.full(2 * u, 1e4 * (1 + np.abs(rows).max()))
        found = linprog(np.append(cost, price), wide, np.concatenate(limit), equal, c.b, sides + [(0.0, None)] * 2 * u, method="highs")
    single = np.eye(count)
    if found.status != 0:
        options = [(single[r], np.zeros(u)) for r in range(count)]
    else:
        weight = np.maximum(-found.ineqlin.marginals[:count], 0)
        options = [(w, sign * found.eqlin.marginals) for w in (weight / max(weight.sum(), 1e-300), *single) for sign in (1, -1)]
    weight, nu = max(options, key=lambda o: bound(c, o[0] @ rows, float(o[0] @ offset), o[1], lower, upper))
    return weight, nu, bound(c, weight @ rows, float(weight @ offset), nu, lower, upper)


@dataclass(frozen=True)
class Recipe:
    """How a certificate is made. `leaves`: where the search gives up and writes what it has; `lemmas`: neurons are bounded first."""

    leaves: int = 1024
    lemmas: bool = False
    margin: float = 0.0


def neuron_lemmas(c: Columns) -> tuple[list[Part], Columns]:
    """A lemma for both signs of every neuron, in order, and the bounds that they give, lowered by 1e-9."""
    parts: list[Part] = []
    u = len(c.b)
    z = np.hstack([c.A, c.W])
    for j in range(u):
        nus = []
        for sign in (1, -1):
            _, nu, value = best_multipliers(c, sign * z[j:j + 1], sign * c.b[j:j + 1], c.lower, c.upper)
            nus.append(nu)
            value -= 1e-9 * (1 + abs(value))
            lower, upper = c.lower.copy(), c.upper.copy()
            if sign > 0:
                lower[j] = max(lower[j], value)
            else:
                upper[j] = min(upper[j], -value)
            c = replace(c, lower=lower, upper=np.maximum(lower, upper))
        every = np.arange(u)
        parts.append(("TREE", {"target": "neurons"}, {
            "target": np.array([[j, 1], [j, -1]], np.int32), "columns": every.astype(np.uint32), "tree": np.array([-1, -1], np.int32)}))
        parts.append(("LEAF", {}, {"nu": np.array(nus).reshape(2, u)}))
    return parts, c


def split_tree(c: Columns, chosen: np.ndarray, recipe: Recipe) -> tuple[list[int], list[np.ndarray], list[np.ndarray], bool]:
    """Pre-order tree, weights and multipliers of its leaves, and whether every leaf is above the margin. `chosen`: which rows the polytope has."""
    rows, offset = np.hstack([c.A_o, c.W_o])[chosen], c.b_o[chosen]
    tree: list[int] = []
    weights: list[np.ndarray] = []
    nus: list[np.ndarray] = []
    proved = True

    def visit(lower: np.ndarray, upper: np.ndarray, room: int) -> None:
        nonlocal proved
        weight, nu, value = best_multipliers(c, rows, offset, lower, upper)
        gap = np.where((lower < 0) & (upper > 0), np.minimum(-lower, upper), 0.0)
        if value > recipe.margin or room < 2 or not len(gap) or gap.max() == 0:
            proved &= value > recipe.margin
            tree.append(-1)
            weights.append(weight)
            nus.append(nu)
            return
        j = int(gap.argmax())
        tree.append(j)
        above, below = lower.copy(), upper.copy()
        above[j], below[j] = 0.0, 0.0
        visit(above, upper, room // 2)
        visit(lower, below, room // 2)

    visit(c.lower, c.upper, recipe.leaves)
    return tree, weights, nus, proved


def certificate(net: Net, claim: Claim, recipe: Recipe = Recipe()) -> tuple[list[Part], bool]:
    """One case with all polytopes of the claim, each with its tree, and whether float64 found it proved."""
    lower, upper = outward(claim)
    rows = [row for polytope in claim.polytopes for row in polytope]
    c = columns(net, lower, upper, np.array([[float(v) for v in r] for r, _ in rows]), np.array([float(o) for _, o in rows]))
    counts = [len(polytope) for polytope in claim.polytopes]
    parts, c = neuron_lemmas(c) if recipe.lemmas else ([], c)
    starts, proved = np.cumsum([0, *counts]), True
    for p in range(len(counts)):
        tree, weights, nus, done = split_tree(c, np.arange(starts[p], starts[p + 1]), recipe)
        proved &= done
        arrays = {"target": np.array([[p]], np.int32), "columns": np.arange(len(c.b), dtype=np.uint32), "tree": np.array(tree, np.int32)}
        parts.append(("TREE", {"target": "polytopes"}, arrays))
        leaf = {"nu": np.array(nus).reshape(len(nus), -1)}
        parts.append(("LEAF", {}, leaf if counts[p] == 1 else {**leaf, "weight": np.array(weights)}))
    return [case(net, claim, c.names, range(len(c.b))), *parts], proved


def boxes(net: Net, claim: Claim, depth: int) -> list[Part]:
    """One case, its widest input cut in the middle `depth` times over; polytopes of several rows get them in equal parts."""
    lower, upper = outward(claim)
    tree: list[int] = []
    points: list[float] = []

    def visit(low: np.ndarray, high: np.ndarray, left: int) -> None:
        axis = int((high - low).argmax())
        point = float((low[axis] + high[axis]) / 2)
        if left == 0 or not low[axis] < point < high[axis]:
            tree.append(-1)
            points.append(0.0)
            return
        tree.append(axis)
        points.append(point)
        for side in (0, 1):
            below, above = low.copy(), high.copy()
            (above if side == 0 else below)[axis] = point
            visit(below, above, left - 1)

    visit(lower, upper, depth)
    arrays = {"tree": np.array(tree, np.int32), "point": np.array(points)}
    if any(len(polytope) > 1 for polytope in claim.polytopes):
        weight = np.concatenate([np.full(len(polytope), 1 / len(polytope)) for polytope in claim.polytopes])
        arrays["weight"] = np.repeat(weight[None].astype(np.float32), tree.count(-1), 0)
    return [case(net, claim, [], []), ("BOXS", {}, arrays)]


def outward(claim: Claim) -> tuple[np.ndarray, np.ndarray]:
    """The claim's box in float64, outward."""
    lower = [float(v) if Fraction(float(v)) <= v else np.nextafter(float(v), -np.inf) for v in claim.lower]
    upper = [float(v) if Fraction(float(v)) >= v else np.nextafter(float(v), np.inf) for v in claim.upper]
    return np.array(lower, np.float64), np.array(upper, np.float64)


def case(net: Net, claim: Claim, names: Sequence[tuple[int, int]], kept: Sequence[int]) -> Part:
    lower, upper = outward(claim)
    nodes = sorted({step for step, _ in names})
    rows = [row for polytope in claim.polytopes for row in polytope]
    arrays = {
        "lower": lower, "upper": upper, "output": np.array([[float(v) for v in r] for r, _ in rows]), "offset": np.array([float(o) for _, o in rows]),
        "neuron": np.array([(nodes.index(step), number) for step, number in names], np.int32).reshape(-1, 2), "kept": np.array(kept, np.uint32),
    }
    return "CASE", {"rows": [len(p) for p in claim.polytopes], "nodes": [f"v{step}" for step in nodes]}, arrays


def vnnlib(claims: Sequence[Claim], n_out: int) -> str:
    """The claims as one property, their dyadic numbers in full."""
    n_in = len(claims[0].lower)
    lines = [f"(declare-const {letter}_{i} Real)" for letter, n in (("X", n_in), ("Y", n_out)) for i in range(n)]
    boxes = [" ".join(f"(>= X_{i} {decimal(low)}) (<= X_{i} {decimal(high)})" for i, (low, high) in enumerate(zip(c.lower, c.upper))) for c in claims]
    parts = [f"  (and {box} {' '.join(_row(*row) for row in polytope)})" for c, box in zip(claims, boxes) for polytope in c.polytopes]
    return "\n".join([*lines, "(assert (or", *parts, "))"]) + "\n"


def _row(coefficients: Sequence[Fraction], offset: Fraction) -> str:
    terms = " ".join(f"(* {decimal(c)} Y_{j})" for j, c in enumerate(coefficients) if c != 0)
    return f"(<= (+ {terms}) {decimal(offset)})"
