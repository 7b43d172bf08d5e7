"""Certificates of false claims in pools, as files: what a checker with a changed line is tried on."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
import onnxruntime

from tests.soundness import adversary, handmade
from tests.soundness.adversary import Attempt, broken, handmade_claim
from tests.soundness.battery import subjects
from tests.soundness.exact_truth import Net, Step, smallest
from tests.soundness.handmade import Part, Recipe
from tests.soundness.nets import affine, mlp, save, single
from tests.soundness.proofs import Files, files, judged, whole, write
from tests.soundness.test_traps import FAMILIES, certificates, is_false
from tests.soundness.traps import just_above


@dataclass(frozen=True)
class Item:
    """A certificate of a claim that is false in its arithmetic."""

    name: str
    where: Files
    certificate: Path

    def accepted(self) -> bool:
        return judged(self.where, self.certificate).verdict == "accepted"


def _item(name: str, net: Net, claims: list, arithmetic: str, parts: list[Part] | tuple[Part, ...], folder: Path) -> Item:
    where = files(net, claims, folder)
    cases = sum(kind == "CASE" for kind, _, _ in parts)
    return Item(f"{name}, {arithmetic}", where, write(whole(where.head(arithmetic), parts, cases), folder / "item.cert"))


def _attempts(found: Iterator[Attempt], folder: Path) -> Iterator[Item]:
    for k, attempt in enumerate(found):
        for arithmetic in attempt.arithmetics:
            yield _item(attempt.name, attempt.net, [attempt.claim], arithmetic, attempt.parts, folder / f"{k}{arithmetic}")


def one_node() -> Iterator[Attempt]:
    """A single operation on inputs without an error: what that one operation rounds."""
    random = np.random.default_rng(5)
    for k in range(12):
        x = single(random.uniform(1, 2, 2))
        nets_ = {
            "leaky": Net(2, (Step("leaky", (0,), numbers=(float(np.float32(0.1)),)), affine(1, [[1.0, 0.0]], [0.0]))),
            "product": Net(2, (affine(0, [[1.0, 0.0]], [0.0]), affine(0, [[0.0, 1.0]], [0.0]), Step("mul", (1, 2)))),
            "sum": Net(2, (affine(0, [[0.0, 2.0**-9]], [0.0]), affine(0, [[1.0, 0.0]], [0.0]), Step("add", (1, 2)))),
        }
        for name, net in nets_.items():
            point = single(-x if name == "leaky" else x)
            sides = [Fraction(float(v)) for v in point]
            value = sides[0] * Fraction(float(np.float32(0.1))) if name == "leaky" else sides[0] * sides[1] if name == "product" else None
            for row in ([1], [-1]):
                yield from broken(name, f"{name} {k}, {row[0]:+}", net, sides, sides, row, point[None], None if value is None else row[0] * value)


def smooth(folder: Path) -> Iterator[Attempt]:
    """What onnxruntime's sigmoid and tanh are off by at points."""
    folder.mkdir(parents=True, exist_ok=True)
    x = single(np.random.default_rng(3).uniform(-4, 4, 400))
    for kind in ("sigmoid", "tanh"):
        net = Net(1, (Step(kind, (0,)), affine(1, [[1.0]], [0.0])))
        session = onnxruntime.InferenceSession(str(save(net, folder / "net.onnx")), providers=["CPUExecutionProvider"])
        y = np.array([session.run(None, {"x": np.array([[v]], np.float32)})[0][0, 0] for v in x], float)
        exact = 0.5 + 0.5 * np.tanh(x / 2) if kind == "sigmoid" else np.tanh(x)
        for sign in (1, -1):
            k = int((sign * (y - exact)).argmin())
            side = [Fraction(float(x[k]))]
            claim = handmade_claim(side, side, [sign], sign * Fraction(float(y[k])))
            yield Attempt("smooth", f"{kind}, {sign:+}", net, claim, ("float32",), (handmade.case(net, claim, [], []),))


def products() -> Iterator[Attempt]:
    """(a x + b)(c y + d) + e x, least at a corner; and squares, least inside."""
    random = np.random.default_rng(4)
    for k in range(20):
        a, b, c, d, e = (float(v) for v in random.integers(-4, 5, 5) / 2)
        net = Net(2, (affine(0, [[a, 0.0]], [b]), affine(0, [[0.0, c]], [d]), Step("mul", (1, 2)), affine(0, [[e, 0.0]], [0.0]), Step("add", (3, 4))))
        half = Fraction(1, 2 ** (k % 5 * 3))
        corners = [(Fraction(i) * half, Fraction(j) * half) for i in (-1, 1) for j in (-1, 1)]
        value = min((Fraction(a) * x + Fraction(b)) * (Fraction(c) * y + Fraction(d)) + Fraction(e) * x for x, y in corners)
        for above in (0, Fraction(1, 10**6), Fraction(1, 100)):
            claim = handmade_claim([-half] * 2, [half] * 2, [1], just_above(value + above))
            for depth in (0, 4):
                parts = handmade.boxes(net, claim, depth) if depth else [handmade.case(net, claim, [], [])]
                yield Attempt("products", f"product {k}, {float(above)}", net, claim, ("real", "float32"), tuple(parts))


def steps() -> Iterator[Attempt]:
    """Active neurons that no split mentions, behind lemmas and a STEP: what it substitutes counts."""
    random = np.random.default_rng(6)
    for k in range(24):
        size = 2.0 ** (k % 12)
        w, b = random.integers(-2, 3, (4, 2)).astype(float), np.array([3.0, 1.0, 6.0, 0.5])
        layers = [(w, b), (random.integers(-2, 3, (3, 4)).astype(float) * size, random.integers(-2, 3, 3).astype(float)),
                  (random.integers(-2, 3, (1, 3)).astype(float), np.zeros(1))]
        net = mlp(layers)
        lower, upper = [Fraction(-1)] * 2, [Fraction(1)] * 2
        least, _ = smallest(net, lower, upper, [1])
        for above in (Fraction(0), Fraction(1, 1000) * (1 + abs(least))):
            claim = handmade_claim(lower, upper, [1], just_above(least + above))
            parts, _ = handmade.certificate(net, claim, Recipe(64, lemmas=True))
            yield Attempt("steps", f"step {k}", net, claim, ("real", "float32"), tuple(parts))
            yield Attempt("steps", f"step {k}, STEP", net, claim, ("real", "float32"), stepped(parts))


def stepped(parts: list[Part]) -> tuple[Part, ...]:
    """With a STEP that keeps what the trees of polytopes split, before the first of them."""
    at = next(k for k, (kind, fields, _) in enumerate(parts) if kind == "TREE" and fields["target"] == "polytopes")
    used = sorted({int(code) for kind, _, arrays in parts[at:] if kind == "TREE" for code in arrays["tree"] if code >= 0})
    return (*parts[:at], ("STEP", {}, {"kept": np.array(used, np.uint32)}), *parts[at:])


def pool(name: str, folder: Path) -> Iterator[Item]:
    """All certificates of a pool."""
    if name in adversary.FAMILIES:
        count = {"mixed": 130, "absorbed": 140, "tiny": 16}[name]
        yield from _attempts((a for seed in range(count) for a in adversary.FAMILIES[name](seed)), folder)
    elif name == "twins":
        for k, s in enumerate(s for seed in (0, 1) for arithmetic in ("real", "float32") for s in subjects(seed, arithmetic) if not s.true):
            yield _item(s.name, s.net, list(s.claims), s.arithmetic, s.parts, folder / str(k))
    elif name == "traps":
        for k, trap in enumerate(t for family in FAMILIES for t in islice(FAMILIES[family](6), 12)):
            for n, parts in enumerate(certificates(trap)):
                for arithmetic in ("real", "float32"):
                    if is_false(trap, arithmetic):
                        yield _item(trap.name, trap.net, [trap.claim], arithmetic, parts, folder / f"{k}-{n}{arithmetic}")
    else:
        yield from _attempts({"one node": one_node, "smooth": lambda: smooth(folder / "s"), "products": products, "steps": steps}[name](), folder)


POOLS = ("twins", "mixed", "absorbed", "tiny", "one node", "smooth", "products", "steps", "traps")
