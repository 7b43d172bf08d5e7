"""What may be done to a certificate: a mutation takes its records, HEAD and DONE included, and returns others, or None if it has nothing to change.

A gap between two sides of a split cannot be written in this format, as both share one number: that is moved, and leaves a proof of the same cover.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tests.soundness.handmade import Part

Parts = list[Part]
Mutation = Callable[[np.random.Generator, Parts], "Parts | None"]


def _pick(random: np.random.Generator, parts: Parts, kind: str, array: str = "") -> int | None:
    """One record of the kind, with the array where one is named."""
    found = [k for k, (own, _, arrays) in enumerate(parts) if own == kind and (not array or arrays.get(array, np.zeros(0)).size)]
    return int(random.choice(found)) if found else None


def _with(parts: Parts, at: int, **arrays: np.ndarray) -> Parts:
    kind, fields, own = parts[at]
    return [*parts[:at], (kind, fields, {**own, **arrays}), *parts[at + 1:]]


def _fields(parts: Parts, at: int, **fields: object) -> Parts:
    kind, own, arrays = parts[at]
    return [*parts[:at], (kind, {**own, **fields}, arrays), *parts[at + 1:]]


def entry(kind: str, array: str, change: Callable[[np.random.Generator, np.ndarray, tuple], float], nonzero: bool = False) -> Mutation:
    """One number of an array replaced by `change(random, array, index)`; with `nonzero` one that is not 0."""

    def mutate(random: np.random.Generator, parts: Parts) -> Parts | None:
        at = _pick(random, parts, kind, array)
        if at is None:
            return None
        new = parts[at][2][array].copy()
        places = np.argwhere(new != 0) if nonzero else np.argwhere(np.ones(new.shape, bool))
        if not len(places):
            return None
        index = tuple(random.choice(places))
        new[index] = change(random, new, index)
        return None if np.array_equal(new, parts[at][2][array]) else _with(parts, at, **{array: new})

    return mutate


def whole_array(kind: str, array: str, change: Callable[[np.random.Generator, np.ndarray], np.ndarray]) -> Mutation:
    """An array replaced as a whole."""

    def mutate(random: np.random.Generator, parts: Parts) -> Parts | None:
        at = _pick(random, parts, kind, array)
        if at is None:
            return None
        old = parts[at][2][array]
        new = change(random, old)
        return None if new.shape == old.shape and np.array_equal(new, old) else _with(parts, at, **{array: new})

    return mutate


def leaf_rows(choose: Callable[[np.random.Generator, int], Sequence[int]]) -> Mutation:
    """The vectors of a LEAF record in another order, more or fewer of them; beta is left as it is."""

    def mutate(random: np.random.Generator, parts: Parts) -> Parts | None:
        at = _pick(random, parts, "LEAF")
        if at is None:
            return None
        arrays = {name: a for name, a in parts[at][2].items() if name != "beta"}
        chosen = list(choose(random, len(next(iter(arrays.values())))))
        return None if not chosen else _with(parts, at, **{name: a[chosen] for name, a in arrays.items()})

    return mutate


def _end(tree: np.ndarray, start: int) -> int:
    """Where the subtree that begins at `start` ends."""
    need, at = 1, start
    while need and at < len(tree):
        need += 1 if tree[at] >= 0 else -1
        at += 1
    return at


def swapped_children(random: np.random.Generator, parts: Parts) -> Parts | None:
    """The two subtrees of one split exchanged, the multipliers where they were."""
    at = _pick(random, parts, str(random.choice(["TREE", "BOXS"])), "tree")
    inner = np.flatnonzero(parts[at][2]["tree"] >= 0) if at is not None else []
    if at is None or not len(inner):
        return None
    tree = parts[at][2]["tree"]
    start = int(random.choice(inner))
    middle = _end(tree, start + 1)
    stop = _end(tree, middle)
    order = np.concatenate([np.arange(start + 1), np.arange(middle, stop), np.arange(start + 1, middle), np.arange(stop, len(tree))])
    moved = {k: parts[at][2][k][order] for k in ("tree", "point") if k in parts[at][2]}
    return None if np.array_equal(tree[order], tree) else _with(parts, at, **moved)


def pruned(random: np.random.Generator, parts: Parts) -> Parts | None:
    """One subtree and its vectors dropped: a leaf stands in its place, with the vector of one of the dropped ones."""
    at = _pick(random, parts, "TREE", "tree")
    if at is None or not (inner := np.flatnonzero(parts[at][2]["tree"] >= 0)).size or parts[at + 1][0] != "LEAF" or "beta" in parts[at + 1][2]:
        return None
    tree = parts[at][2]["tree"]
    start = int(random.choice(inner))
    stop = _end(tree, start)
    first, last = (int((tree[:k] < 0).sum()) for k in (start, stop))
    count = len(next(iter(parts[at + 1][2].values())))
    if last > count:
        return None
    kept = [*range(first), int(random.integers(first, last)), *range(last, count)]
    keep = np.r_[np.arange(start + 1), np.arange(stop, len(tree))]
    new = {k: parts[at][2][k][keep].copy() for k in ("tree", "point") if k in parts[at][2]}
    new["tree"][start] = -1
    return _with(_with(parts, at, **new), at + 1, **{k: a[kept] for k, a in parts[at + 1][2].items()})


def moved_point(random: np.random.Generator, parts: Parts) -> Parts | None:
    """A split's point elsewhere, for both sides."""
    at = _pick(random, parts, str(random.choice(["TREE", "BOXS"])), "tree")
    if at is None or not (inner := np.flatnonzero(parts[at][2]["tree"] >= 0)).size:
        return None
    points = parts[at][2].get("point", np.zeros(len(parts[at][2]["tree"]))).copy()
    points[random.choice(inner)] += random.choice([1e-9, -1e-6, 0.01, -0.3, 5.0, 1e30])
    return _with(parts, at, point=points)


def bad_point(random: np.random.Generator, parts: Parts) -> Parts | None:
    at = _pick(random, parts, str(random.choice(["TREE", "BOXS"])), "tree")
    if at is None:
        return None
    points = parts[at][2].get("point", np.zeros(len(parts[at][2]["tree"]))).copy()
    points[random.integers(len(points))] = random.choice([np.nan, np.inf, -np.inf])
    return _with(parts, at, point=points)


def dropped_polytope(random: np.random.Generator, parts: Parts) -> Parts | None:
    """A polytope and its rows taken out of the CASE, and its trees with it."""
    at = _pick(random, parts, "CASE")
    counts = parts[at][1]["rows"] if at is not None else []
    if at is None or not counts:
        return None
    gone = int(random.integers(len(counts)))
    ends = np.cumsum([0, *counts])
    keep = [r for r in range(ends[-1]) if not ends[gone] <= r < ends[gone + 1]]
    changed = _with(_fields(parts, at, rows=[c for k, c in enumerate(counts) if k != gone]), at, **{
        k: parts[at][2][k][keep] for k in ("output", "offset", "input") if k in parts[at][2]})
    result: Parts = []
    skip = False
    for k, (kind, fields, arrays) in enumerate(changed):
        if kind == "CASE":
            inside = k == at
        if kind == "TREE":
            target = arrays["target"]
            skip = fields["target"] == "polytopes" and len(target) == 1 and target[0, 0] == gone and inside
            if fields["target"] == "polytopes" and not skip and inside:
                arrays = {**arrays, "target": np.where(target > gone, target - 1, target).astype(np.int32)}
        if not (skip and kind in ("TREE", "LEAF")):
            result.append((kind, fields, arrays))
    return result


def box_side(lower: float, upper: float) -> Mutation:
    """One side of the CASE's box moved by shares of its width."""

    def mutate(random: np.random.Generator, parts: Parts) -> Parts | None:
        at = _pick(random, parts, "CASE")
        if at is None:
            return None
        low, high = parts[at][2]["lower"].copy(), parts[at][2]["upper"].copy()
        i = int(random.choice(np.flatnonzero(high > low))) if (high > low).any() else 0
        width = high[i] - low[i]
        low[i], high[i] = low[i] + lower * width, high[i] + upper * width
        return _with(parts, at, lower=low, upper=high) if width else None

    return mutate


def flipped_targets(random: np.random.Generator, parts: Parts) -> Parts | None:
    """A lemma about the other side of its neurons."""
    found = [k for k, (kind, fields, _) in enumerate(parts) if kind == "TREE" and fields.get("target") == "neurons"]
    if not found:
        return None
    at = int(random.choice(found))
    return _with(parts, at, target=parts[at][2]["target"] * np.array([1, -1], np.int32))


def box_two_ulps(random: np.random.Generator, parts: Parts) -> Parts | None:
    """Every side that is not a point, smaller by two floats (a prover may have written one more than it needs)."""
    at = _pick(random, parts, "CASE")
    if at is None:
        return None
    low, high = parts[at][2]["lower"], parts[at][2]["upper"]
    less = np.nextafter(np.nextafter(high, -np.inf), -np.inf)
    return _with(parts, at, upper=np.where(less > low, less, high)) if (less > low).any() else None


def records(change: Callable[[np.random.Generator, Parts, int], Parts], only: Sequence[str] = ()) -> Mutation:
    """A change of the sequence at one record, of one of the kinds `only`."""

    def mutate(random: np.random.Generator, parts: Parts) -> Parts | None:
        places = [k for k, part in enumerate(parts) if not only or part[0] in only]
        return change(random, parts, int(random.choice(places))) if places else None

    return mutate


def _swap(random: np.random.Generator, parts: Parts, at: int) -> Parts:
    other = int(random.integers(len(parts)))
    result = list(parts)
    result[at], result[other] = result[other], result[at]
    return result


def _head(field: str, value: Callable[[str], str]) -> Mutation:
    return lambda random, parts: _fields(parts, 0, **{field: value(parts[0][1][field])})


def _another_split(random: np.random.Generator, tree: np.ndarray) -> np.ndarray:
    """One split of another coordinate, that there may not be."""
    new, inner = tree.copy(), np.flatnonzero(tree >= 0)
    if len(inner):
        new[random.choice(inner)] = random.integers(0, tree.max() + 3)
    return new


_FACTORS = [-1.0, 0.0, 0.5, 0.9, 0.99, 1.01, 1.1, 2.0, 100.0, -1e6]
_scaled = lambda random, array, index: array[index] * random.choice(_FACTORS)  # noqa: E731
_constant = lambda *values: lambda random, array, index: random.choice(values)  # noqa: E731

CERTIFICATE: dict[str, Mutation] = {
    "nu: a sign": entry("LEAF", "nu", lambda r, a, i: -a[i], nonzero=True),
    "nu: scaled": entry("LEAF", "nu", _scaled, nonzero=True),
    "nu: replaced": entry("LEAF", "nu", lambda r, a, i: r.normal() * 10.0 ** r.integers(-6, 6)),
    "nu: extreme": entry("LEAF", "nu", _constant(1e30, -1e37)),
    "nu: not finite": entry("LEAF", "nu", _constant(np.nan, np.inf, -np.inf)),
    "nu: all drawn anew": whole_array("LEAF", "nu", lambda r, a: r.normal(size=a.shape).astype(a.dtype)),
    "nu: columns exchanged": whole_array("TREE", "columns", lambda r, a: r.permutation(a)),
    "nu: a column too many": whole_array("TREE", "columns", lambda r, a: np.append(a, a[:1])),
    "alpha: replaced": entry("LEAF", "alpha", lambda r, a, i: r.integers(256)),
    "alpha: all drawn anew": whole_array("LEAF", "alpha", lambda r, a: r.integers(0, 256, a.shape).astype(a.dtype)),
    "beta: negative": entry("LEAF", "beta", lambda r, a, i: -abs(a[i]) - 0.1),
    "beta: scaled": entry("LEAF", "beta", _scaled, nonzero=True),
    "beta: replaced": entry("LEAF", "beta", lambda r, a, i: abs(r.normal()) * 10.0 ** r.integers(-3, 4)),
    "beta: one missing": whole_array("LEAF", "beta", lambda r, a: a[1:]),
    "leaf: a vector dropped": leaf_rows(lambda r, n: [k for k in range(n) if k != n // 2]),
    "leaf: a vector too many": leaf_rows(lambda r, n: [*range(n), n - 1]),
    "leaf: vectors in another order": leaf_rows(lambda r, n: r.permutation(n) if n > 1 else []),
    "leaf: another's vector": leaf_rows(lambda r, n: np.where(np.arange(n) == r.integers(n), r.integers(n), np.arange(n)) if n > 1 else []),
    "tree: children exchanged": swapped_children,
    "tree: a subtree pruned": pruned,
    "tree: a split of another neuron": whole_array("TREE", "tree", _another_split),
    "tree: a coordinate that is not": entry("TREE", "tree", _constant(-2, 10**6)),
    "tree: a node dropped": whole_array("TREE", "tree", lambda r, a: np.delete(a, r.integers(len(a)))),
    "tree: a leaf too many": whole_array("TREE", "tree", lambda r, a: np.append(a, np.int32(-1))),
    "boxes: a split of another input": whole_array("BOXS", "tree", _another_split),
    "boxes: a node dropped": whole_array("BOXS", "tree", lambda r, a: np.delete(a, r.integers(len(a)))),
    "point: moved": moved_point,
    "point: not finite": bad_point,
    "weight: negative": entry("LEAF", "weight", lambda r, a, i: -abs(a[i]) - 0.1),
    "weight: scaled": entry("LEAF", "weight", lambda r, a, i: a[i] * r.choice([0.0, 0.5, 0.99, 1.01, 2.0, 1e6])),
    "weight: extreme": entry("LEAF", "weight", _constant(1e38)),
    "weight: all zero": whole_array("LEAF", "weight", lambda r, a: 0 * a),
    "weight: not finite": entry("LEAF", "weight", _constant(np.nan, np.inf)),
    "boxes: weight replaced": entry("BOXS", "weight", lambda r, a, i: r.choice([-1.0, 0.0, 3.0, np.nan])),
    "case: a polytope dropped": dropped_polytope,
    "case: offset lower": entry("CASE", "offset", lambda r, a, i: a[i] - r.choice([1e-6, 1.0])),
    "case: offset higher": entry("CASE", "offset", lambda r, a, i: a[i] + r.choice([1e-12, 1e-6])),
    "case: a coefficient": entry("CASE", "output", lambda r, a, i: a[i] * r.choice([-1.0, 0.99, 1.01, 2.0]), nonzero=True),
    "case: a row on inputs": lambda r, parts: None if (at := _pick(r, parts, "CASE")) is None else _with(
        parts, at, input=np.full((len(parts[at][2]["offset"]), len(parts[at][2]["lower"])), 10.0)),
    "case: box smaller": box_side(0.01, 0.0),
    "case: box smaller by two ulps": box_two_ulps,
    "case: box larger": box_side(0.0, 0.01),
    "case: box inverted": box_side(2.0, 0.0),
    "case: box not finite": entry("CASE", "upper", _constant(np.nan, np.inf)),
    "case: kept emptied": whole_array("CASE", "kept", lambda r, a: a[:0]),
    "case: kept drawn anew": whole_array("CASE", "kept", lambda r, a: r.integers(0, 40, len(a)).astype(a.dtype)),
    "case: neurons renamed": whole_array("CASE", "neuron", lambda r, a: r.permutation(a)),
    "case: a neuron that is not": entry("CASE", "neuron", _constant(-1, 10**6)),
    "target: another": entry("TREE", "target", lambda r, a, i: r.integers(-1, 8)),
    "target: signs flipped": flipped_targets,
    "records: one removed": records(lambda r, parts, at: parts[:at] + parts[at + 1:]),
    "records: one twice": records(lambda r, parts, at: parts[:at + 1] + parts[at:]),
    "records: two exchanged": records(_swap),
    "records: a STEP": records(lambda r, parts, at: [*parts[:at], ("STEP", {}, {}), *parts[at:]], only=("TREE", "DONE", "STEP")),
    "records: other number of cases": lambda r, parts: _fields(parts, len(parts) - 1, cases=int(r.choice([0, 3, 7]))),
    "head: another model's hash": _head("model", lambda text: text[::-1]),
    "head: another property's hash": _head("property", lambda text: text[::-1]),
    "head: other arithmetic": _head("arithmetic", lambda text: "real" if text == "float32" else "float32"),
    "head: unknown arithmetic": _head("arithmetic", lambda text: "float16"),
}

NEVER = frozenset({
    "nu: not finite", "beta: negative", "beta: one missing", "leaf: a vector dropped", "leaf: a vector too many", "tree: a coordinate that is not",
    "tree: a leaf too many", "point: not finite", "weight: negative", "weight: not finite", "weight: all zero", "case: box smaller",
    "case: box smaller by two ulps", "case: box inverted", "case: box not finite", "case: offset lower",
    "case: a row on inputs", "case: a coefficient", "case: a polytope dropped",
    "records: other number of cases", "head: another model's hash", "head: another property's hash", "head: unknown arithmetic",
    "nu: a column too many",
    "bytes: cut", "bytes: one flipped",
})
"""No checker may accept these, whatever the truth. ("weight: all zero" and "a polytope dropped": the subjects have none that the root proves.)"""


def damaged(random: np.random.Generator, data: bytes, kind: str) -> bytes:
    """The file cut somewhere, or with one bit the other way."""
    at = int(random.integers(len(data)))
    if kind == "bytes: cut":
        return data[:at]
    return data[:at] + bytes([data[at] ^ (1 << int(random.integers(8)))]) + data[at + 1:]
