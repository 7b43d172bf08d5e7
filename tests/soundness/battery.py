"""The battery: genuine certificates of true claims, their false twins, and mutants of both; what the checker says, held against the exact truth.

An accepted mutant is harmless where the claim that it is about is true (the files say which), and a false proof where it is not. A twin is the best
certificate that float64 finds for a claim that is false by one float; so every accepted mutant of a twin is a false proof.
"""
from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import numpy as np

from tests.soundness import handmade, nets
from tests.soundness.exact_truth import Claim, Net, Step, holds, smallest
from tests.soundness.handmade import Part, Recipe
from tests.soundness.mutations import CERTIFICATE, damaged
from tests.soundness.proofs import Files, Judgement, files, judged, whole, write
from tests.soundness.traps import claim, just_above, just_below


@dataclass(frozen=True)
class Subject:
    """A certificate of claims about a network; `true` says whether they hold. `parts` are the records between HEAD and DONE."""

    name: str
    net: Net
    claims: tuple[Claim, ...]
    true: bool
    arithmetic: str
    parts: tuple[Part, ...]

    @property
    def cases(self) -> int:
        return sum(kind == "CASE" for kind, _, _ in self.parts)


def _offsets(made: Claim, shift: dict[tuple[int, int], float]) -> Claim:
    """The claim with other offsets, by (polytope, row)."""
    moved = [[(row, Fraction(shift.get((p, r), offset))) for r, (row, offset) in enumerate(rows)] for p, rows in enumerate(made.polytopes)]
    return replace(made, polytopes=tuple(map(tuple, moved)))


MARGIN = {"real": 1e-7, "float32": 1e-4}
"""What a true claim has to spare: several times what the checker gives away on these networks, whose outputs are near 1."""


def _pairs(seed: int, arithmetic: str) -> Iterator[tuple[str, Net, tuple[Claim, ...], tuple[Claim, ...], Recipe | int]]:
    """Name, network, true claims, false claims and how to certify them: a recipe, or the depth of input splits."""
    room = MARGIN[arithmetic]

    def below(net: Net, lower: list, upper: list) -> tuple[Claim, Claim]:
        least, _ = smallest(net, lower, upper, [1] + [0] * (net.n_out - 1))
        asked = lambda offset: claim(lower, upper, [([1] + [0] * (net.n_out - 1), offset)])  # noqa: E731
        return asked(just_below(least - Fraction(room))), asked(just_above(least))

    def box(net: Net, half: float = 0.5) -> tuple[list, list]:
        center = [Fraction(int(v), 16) for v in np.random.default_rng(seed).integers(-8, 8, net.n_in)]
        free = net.n_in if net.n_in <= 3 else 2
        return [c - Fraction(half) * (i < free) for i, c in enumerate(center)], [c + Fraction(half) * (i < free) for i, c in enumerate(center)]

    forms = [("mlp", nets.random_mlp(seed, (2, 4, 3, 2))), ("wide", nets.random_mlp(seed, (3, 5, 2))), ("residual", nets.random_residual(seed)),
             ("conv", nets.random_conv(seed)), ("pool", nets.random_conv(seed, True))]
    for name, net in forms:
        true, false = below(net, *box(net))
        yield name, net, (true,), (false,), Recipe()
        if name != "pool":
            yield f"{name}, lemmas", net, (true,), (false,), Recipe(lemmas=True)
    name, net = forms[0]
    lower, upper = box(net)
    first, _ = smallest(net, lower, upper, [1, 0])
    middle = just_above(first + Fraction(1, 8))
    other, _ = smallest(net, lower, upper, [0, 1], [([1, 0], Fraction(middle))])
    joint = claim(lower, upper, [([1, 0], middle), ([0, 1], just_below(other - Fraction(room)))], [([1, 0], just_below(first - Fraction(room)))])
    yield "two polytopes", net, (joint,), (_offsets(joint, {(0, 1): just_above(other)}),), Recipe()
    cut = (lower[0] + upper[0]) / 2
    halves = [(lower, [cut, *upper[1:]]), ([cut, *lower[1:]], upper)]
    two = [below(net, *half) for half in halves]
    yield "two cases", net, (two[0][0], two[1][0]), (two[0][0], two[1][1]), Recipe()
    net = nets.random_mlp(seed, (2, 3, 2))
    true, false = below(net, *box(net, 0.125))
    spare = claim(true.lower, true.upper, [([1, 0], float(true.polytopes[0][0][1]) - 0.05)])
    yield "boxes", net, (spare,), (false,), 6


@lru_cache(maxsize=16)
def subjects(seed: int, arithmetic: str) -> tuple[Subject, ...]:
    """True claims with certificates, and their twins."""
    found = []
    for name, net, true, false, how in _pairs(seed, arithmetic):
        for claims, holds_ in ((true, True), (false, False)):
            parts = [part for c in claims for part in (handmade.boxes(net, c, how) if isinstance(how, int) else handmade.certificate(net, c, how)[0])]
            found.append(Subject(f"{name}, seed {seed}", net, claims, holds_, arithmetic, tuple(parts)))
    return tuple(found)


@dataclass(frozen=True)
class Mutant:
    """What is given to the checker, and the truth of what its files claim."""

    kind: str
    where: Files
    certificate: Path
    true: bool


def mutants(subject: Subject, where: Files, seed: int, each: int) -> Iterator[Mutant]:
    """`each` mutants of every kind that applies; the files stand beside the subject's. One certificate is written at a time."""
    original = whole(where.head(subject.arithmetic), subject.parts, subject.cases)
    path = where.model.with_name("mutant.cert")
    for number, (kind, mutate) in enumerate(CERTIFICATE.items()):
        random = np.random.default_rng([seed, number])
        for _ in range(each):
            parts = mutate(random, original)
            if parts is not None:
                yield Mutant(kind, where, write(parts, path), subject.true)
    random = np.random.default_rng(seed)
    data = write(original, path).read_bytes()
    for kind in ("bytes: cut", "bytes: one flipped"):
        for _ in range(each):
            path.write_bytes(damaged(random, data, kind))
            yield Mutant(kind, where, path, subject.true)
    for _ in range(each if subject.true else 0):
        yield from _other_files(random, subject, where.model.parent / "other")


def _other_files(random: np.random.Generator, subject: Subject, folder: Path) -> Iterator[Mutant]:
    """Another model or a harder property, with hashes that fit: the records as they were, or with the harder claim's numbers in their CASE."""

    def made(kind: str, net: Net, claims: tuple[Claim, ...], forged: bool) -> Mutant:
        where = files(net, claims, folder)
        parts = list(subject.parts)
        if forged:
            new = iter([handmade.case(net, c, [], []) for c in claims])
            parts = [(k, f, {**a, **{n: v for n, v in next(new)[2].items() if n in ("lower", "upper", "offset")}}) if k == "CASE" else (k, f, a)
                     for k, f, a in parts]
        truth = all(holds(net, c) for c in claims)
        return Mutant(kind, where, write(whole(where.head(subject.arithmetic), parts, subject.cases), folder / "mutant.cert"), truth)

    def off(step: Step) -> Step:
        if step.matrix is None or step.form["op"] == "conv":
            return step
        return replace(step, matrix=nets.single(step.matrix * (1 + 0.01 * random.choice([-1, 1], step.matrix.shape))))

    def wider(made: Claim) -> Claim:
        shares = [Fraction(int(random.integers(1, 9)), 8) for _ in made.upper]
        return replace(made, upper=tuple(high + (high - low) * share for low, high, share in zip(made.lower, made.upper, shares)))

    yield made("model: weights off by 1 %", Net(subject.net.n_in, tuple(map(off, subject.net.steps))), subject.claims, False)
    more = {(p, 0): 10.0 ** random.integers(-4, 1) for p in range(8)}
    harder = tuple(_offsets(c, {(p, 0): float(rows[0][1]) + more[p, 0] for p, rows in enumerate(c.polytopes)}) for c in subject.claims)
    yield made("property: harder, the certificate as it was", subject.net, harder, False)
    yield made("property: harder, the certificate says so", subject.net, harder, True)
    grown = tuple(map(wider, subject.claims))
    yield made("property: larger box, the certificate as it was", subject.net, grown, False)
    yield made("property: larger box, the certificate says so", subject.net, grown, True)


REASONS = {
    "hash": r"certificate for another", "bound": r"is not proved", "cover": r"is in no case",
    "bytes": r"was cut|is damaged|unpacks to|unknown kind|not a certificate|is empty|of version|after its DONE",
}


def reason(judgement: Judgement) -> str:
    """Why a mutant was refused: hash, bound, cover, bytes, or form (anything else that a record says)."""
    return next((name for name, pattern in REASONS.items() if re.search(pattern, judgement.sentence)), "form")


@dataclass(frozen=True)
class Outcome:
    """One mutant: `verdict` is a reason of refusal, harmless, or FALSE (an accepted claim that is false)."""

    subject: str
    kind: str
    verdict: str
    sentence: str


def outcomes(subject: Subject, folder: Path, seed: int, each: int) -> Iterator[Outcome]:
    """The mutants of one subject before the checker."""
    where = files(subject.net, subject.claims, folder)
    for mutant in mutants(subject, where, seed, each):
        judgement = judged(mutant.where, mutant.certificate)
        verdict = reason(judgement) if judgement.verdict != "accepted" else ("harmless" if mutant.true else "FALSE")
        yield Outcome(f"{subject.name}, {subject.arithmetic}{'' if subject.true else ', false twin'}", mutant.kind, verdict, judgement.sentence)


def table(found: list[Outcome]) -> dict[str, Counter[str]]:
    """Verdicts by kind."""
    rows: dict[str, Counter[str]] = {}
    for outcome in found:
        rows.setdefault(outcome.kind, Counter())[outcome.verdict] += 1
    return rows
