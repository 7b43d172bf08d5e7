"""Random formulas keep their meaning through reader and normal form; random bytes never do worse than a VerifierError."""
from __future__ import annotations

import gzip
import random
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.formulas import box, declared, holds, unsafe
from verifier.errors import VerifierError
from verifier.spec import normal
from verifier.spec.normal import load_vnnlib, normalize
from verifier.spec.vnnlib1 import parse_vnnlib1
from verifier.spec.write import to_vnnlib

N_IN, N_OUT = 2, 2
NAMES = [f"X_{i}" for i in range(N_IN)] + [f"Y_{j}" for j in range(N_OUT)]

constants = st.sampled_from(["0", "1", "-1", "2.5", "-0.75", "5e-1", ".25", "3."])
leaves = st.one_of(st.sampled_from(NAMES), constants)
terms = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds("(+ {} {})".format, inner, inner),
        st.builds("(- {} {})".format, inner, inner),
        st.builds("(- {})".format, inner),
        st.builds("(* {} {})".format, constants, inner),
        st.builds("(/ {} {})".format, inner, st.sampled_from(["2", "-4", "0.5"])),
    ),
    max_leaves=4,
)
comparisons = st.builds("({} {} {})".format, st.sampled_from(["<=", ">=", "<", ">", "="]), terms, terms)
formulas = st.recursive(
    comparisons,
    lambda inner: st.one_of(
        st.builds(lambda parts: f"(and {' '.join(parts)})", st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda parts: f"(or {' '.join(parts)})", st.lists(inner, min_size=1, max_size=3)),
        st.builds("(not {})".format, inner),
        st.builds("(=> {} {})".format, inner, inner),
    ),
    max_leaves=8,
)


def points(seed: int, generic: bool) -> list[list[Fraction]]:
    """Points of the box and around it: on a grid of quarters, where comparisons are often equalities, or off every hyperplane."""
    rng = random.Random(seed)
    if generic:
        return [[Fraction(rng.uniform(-2.5, 2.5)) for _ in NAMES] for _ in range(40)]
    return [[Fraction(rng.randint(-10, 10), 4) for _ in NAMES] for _ in range(40)]


def disagreements(text: str, seed: int) -> list:
    """Points that the text calls unsafe and the Spec does not; and, off the hyperplanes, points where they differ at all."""
    spec = normalize(parse_vnnlib1(text))
    found = []
    for generic in (False, True):
        for values in points(seed, generic):
            truth = holds(text, dict(zip(NAMES, values)))
            said = unsafe(spec, values[:N_IN], values[N_IN:])
            if (truth and not said) or (generic and truth != said):
                found.append(values)
    return found


@settings(max_examples=150)
@given(st.lists(formulas, min_size=0, max_size=3), st.integers(0, 10**6))
def test_the_spec_means_what_the_text_says(parts: list[str], seed: int) -> None:
    assert disagreements(declared(N_IN, N_OUT, *box(N_IN), *parts), seed) == []


@settings(max_examples=50)
@given(st.lists(formulas, min_size=1, max_size=2), st.integers(0, 10**6))
def test_what_is_written_means_the_same(parts: list[str], seed: int) -> None:
    spec = normalize(parse_vnnlib1(declared(N_IN, N_OUT, *box(N_IN), *parts)))
    again = normalize(parse_vnnlib1(to_vnnlib(spec)))
    for values in points(seed, generic=False):
        assert unsafe(spec, values[:N_IN], values[N_IN:]) == unsafe(again, values[:N_IN], values[N_IN:])


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("(<= (+ Y_0 Y_1) 1)", ("_NEGATED", {})),
        ("(or (<= Y_0 0) (>= Y_1 0))", ("_add_row", lambda coefficients, offset, at, conjunct, source: None)),
        ("(<= (- Y_0 X_1) 1)", ("_scaled", lambda form, factor: form)),
        ("(not (<= Y_0 Y_1))", ("_NEGATED", {"<=": "<="})),
    ],
)
def test_a_broken_normal_form_is_seen(monkeypatch: pytest.MonkeyPatch, text: str, broken: tuple) -> None:
    """The law above can fail: a lost row, a lost sign, a lost negation."""
    whole = declared(N_IN, N_OUT, *box(N_IN), text, "(or (<= (- Y_0) 1) (not (>= Y_1 (* 2 X_0))))")
    assert disagreements(whole, 1) == []
    monkeypatch.setattr(normal, *broken)
    try:
        seen = disagreements(whole, 1) != []
    except KeyError:
        seen = True
    assert seen


SEEDS = [
    declared(2, 2, *box(2), "(or (and (<= Y_0 Y_1) (>= X_0 0.5)) (not (> (+ Y_0 (* 2 X_1)) 1e-05)))").encode(),
    b"; comment\n(declare-fun X_0 () Real)(declare-const Y_0 Real)(assert (<= -1 X_0 1))(assert (=> (< Y_0 0) (= X_0 0)))",
]
PIECES = [b"(", b")", b"(assert ", b"(or ", b"(not ", b"X_0", b"Y_9", b"1e999", b"nan", b";", b"\n", b"\x00", b"\xff", b"(* X_0 X_1)"]
kinds = st.sampled_from(["put", "cut", "flip", "twice"])
edits = st.lists(st.tuples(kinds, st.floats(0, 1), st.sampled_from(PIECES), st.integers(0, 255)), max_size=6)


def mutated(data: bytes, changes: list[tuple[str, float, bytes, int]]) -> bytes:
    for kind, where, piece, number in changes:
        at = int(where * len(data))
        if kind == "put":
            data = data[:at] + piece + data[at:]
        elif kind == "cut":
            data = data[:at] + data[at + number % 20 :]
        elif kind == "twice":
            data = data[:at] + data[at : at + number] * 2 + data[at + number :]
        elif data:
            at = min(at, len(data) - 1)
            data = data[:at] + bytes([number]) + data[at + 1 :]
    return data


def outcome(data: bytes) -> str:
    """`read`, or the sentence of the error; anything but a VerifierError goes through."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fuzz.vnnlib"
        path.write_bytes(data)
        try:
            load_vnnlib(path)
        except VerifierError as error:
            return str(error)
    return "read"


@settings(max_examples=400)
@given(st.sampled_from(SEEDS), edits, st.booleans())
def test_mutated_files_are_read_or_refused_in_one_sentence(data: bytes, changes: list, packed: bool) -> None:
    begin = time.process_time()
    said = outcome(mutated(gzip.compress(data) if packed else data, changes))
    assert said == "read" or ("\n" not in said and said.endswith("."))
    assert time.process_time() - begin < 5


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_random_bytes_are_refused(data: bytes) -> None:
    assert outcome(data) != "read"


@pytest.mark.parametrize(
    "text",
    [
        "(" * 1_000_000,
        ")" * 1_000_000,
        "(assert " * 200_000,
        " " * 1_000_000 + "x",
        "(<= X_0 " * 100_000,
        "(declare-const X_0 Real)(declare-const Y_0 Real)(assert (<= X_0 " + "1" * 100_000 + "))",
        "(declare-const X_0 Real)(declare-const Y_0 Real)(assert (<= X_0 1e" + "9" * 100_000 + "))",
        "(declare-const X_" + "9" * 100_000 + " Real)",
        ";" * 1_000_000,
    ],
    ids=["opened", "closed", "asserts", "spaces", "comparisons", "digits", "exponent", "index", "comment"],
)
def test_large_nonsense_does_not_hang(text: str) -> None:
    begin = time.process_time()
    assert outcome(text.encode()) != "read"
    assert time.process_time() - begin < 5
