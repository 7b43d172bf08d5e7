"""VNN-LIB 1.0 -> the union of disjuncts that a certificate must cover. Independent of `verifier.spec`: the checker trusts this file alone.

Everything is a row (form, offset), which says that a sum is at most the offset: ((("X_3", 1.0), ("Y_0", -1.0)), 0.5). Rows that hold together
are a dict of the least offset of each form. Bounds of single inputs are kept as rationals, with coefficient 1 or -1; strict is read as non-strict.
"""
from __future__ import annotations

import gzip
import hashlib
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, product
from math import inf, nextafter, prod
from pathlib import Path

import numpy as np

from verifier.errors import SpecError

MOST_NUMBERS, MOST_DEPTH = 4_000_000, 100
LEAST, LARGEST = 2.0**-1022, 2.0**100
"""Sizes of the numbers that are read: coefficients that are not 0, and offsets, which may also be smaller."""
_WORD = re.compile(r""";[^\n]*|"[^"]*"|\|[^|]*\||[()"|]|[^\s();"|]+""")  # a quotation is one word, whatever it holds
_NUMBER = re.compile(r"[-+]?(?=\.?[0-9])[0-9]{0,999}(?:\.[0-9]{0,999})?(?:[eE][-+]?[0-9]{1,4})?")
Form = tuple[tuple[str, float], ...]
Row = tuple[Form, Fraction | float]
Part = dict[Form, Fraction | float]


@dataclass(frozen=True, slots=True)
class Property:
    """Unsafe: `common` and one of `disjuncts`, none of which is empty; a disjunct holds only what `common` does not say already."""

    name: str
    n_in: int
    n_out: int
    common: Part
    disjuncts: list[Part]


def property_digest(path: str | Path) -> str:
    """SHA-256 of the file's bytes after gunzip, in hexadecimal."""
    return hashlib.sha256(_bytes_of(path)).hexdigest()


def _bytes_of(path: str | Path) -> bytes:
    try:
        data = Path(path).read_bytes()
        return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise SpecError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None


def read_property(path: str | Path, n_in: int | None = None, n_out: int | None = None) -> Property:
    """The property of a VNN-LIB 1.0 file; `.gz` is read as it is. Where `n_in` and `n_out` are given, they must be the file's.

    Raises:
        SpecError: the file cannot be read, says what this reader does not know (names file and line), or is of other sizes.
    """
    text = _bytes_of(path).decode("utf-8-sig", "replace")
    words = (word for word in _WORD.finditer(text) if word[0][0] != ";")
    sizes, names, asserted, at, asked = {"X": 0, "Y": 0}, set(), [], 0, False
    try:
        for word in words:
            at, due = word.start(), [f"{letter}_{size}" for letter, size in sizes.items()]
            statement = _nested(words, 0) if word[0] == "(" else word[0]
            match statement:
                case ["declare-const", str(name), "Real" | "Int"] | ["declare-fun", str(name), [], "Real" | "Int"] if name in due:
                    names.add(name)
                    sizes[name[0]] += 1
                case ["assert", _] if asked:
                    raise SpecError("an assert stands behind check-sat or exit, so it is not part of the property: remove it or move it up.")
                case ["assert", formula]:
                    asserted.append(_alternatives(formula, False, names))
                case ["check-sat"] | ["exit"]:
                    asked = True
                case ["set-logic" | "set-info", *_]:
                    pass
                case _:
                    raise SpecError(f"an assert or a declaration of {' or '.join(due)} is due, but this stands there: {statement!r:.60}.")
        common = _least(chain.from_iterable(union[0] for union in asserted if len(union) == 1), {})
        disjuncts = [_least(rows, common) for rows in _product([union for union in asserted if len(union) != 1])]
    except SpecError as error:
        raise SpecError(f"{path}, line {text.count(chr(10), 0, at) + 1}: {error}") from None
    own_in, own_out = sizes.values()
    if 0 in (own_in, own_out) or (n_in or own_in, n_out or own_out) != (own_in, own_out):
        wanted = f"{n_in or 'some'} and {n_out or 'some'}"
        raise SpecError(f"{path} has {own_in} inputs and {own_out} outputs, but the network {wanted}: is it of another network?")
    disjuncts = [part for part in disjuncts if _meets(part, common)] if _meets(common, common) else []
    return Property(str(path), own_in, own_out, common, disjuncts)


def _nested(words: Iterator[re.Match], depth: int) -> list:
    """The words up to the parenthesis that closes this list, as nested lists."""
    found: list = []
    if depth > MOST_DEPTH:
        raise SpecError("parentheses are nested too deeply.")
    for word in words:
        if word[0] == ")":
            return found
        if word[0] in ('"', "|"):
            raise SpecError("a quotation is never closed.")
        found.append(_nested(words, depth + 1) if word[0] == "(" else word[0])
    raise SpecError("a parenthesis is never closed.")


def _alternatives(formula: str | list, negated: bool, names: set[str]) -> list[list[Row]]:
    """The formula, or its negation, as a union of conjunctions."""
    match formula:
        case ["not", inner]:
            return _alternatives(inner, not negated, names)
        case ["and" | "or" as head, _, *_]:
            several = [_alternatives(inner, negated, names) for inner in formula[1:]]
            if (head == "or") != negated:
                several = [list(chain.from_iterable(several))]
            return _product(several)
        case ["<=" | ">=" | "<" | ">" | "=" as op, left, right]:
            form: dict[str, Fraction] = {}
            _add(form, ["-", left, right], 1, names)
            signs = (1, -1) if op == "=" else (1,) if (op[0] == "<") != negated else (-1,)
            rows = [_row(form, sign) for sign in signs]
            return [[row] for row in rows] if negated else [rows]
    raise SpecError(f"this is no formula of and, or, not and comparisons of two terms: {formula!r:.60}.")


def _product(several: list[list[list[Row]]]) -> list[list[Row]]:
    """The conjunction of unions of conjunctions."""
    count = prod(map(len, several))
    if count + sum(count // max(1, len(union)) * sum(map(len, union)) for union in several) > MOST_NUMBERS:
        raise SpecError(f"its 'and's and 'or's multiplied out are more than {MOST_NUMBERS:,} numbers: split the property.")
    return [list(chain.from_iterable(choice)) for choice in product(*several)]


def _add(total: dict[str, Fraction], term: str | list, factor: Fraction | int, names: set[str]) -> None:
    """total += factor term, with the coefficient of each variable, and the constant at ""."""
    match term:
        case str() if term in names:
            total[term] = total.get(term, 0) + factor
        case str() if _NUMBER.fullmatch(term):
            total[""] = total.get("", 0) + factor * Fraction(term)
        case ["-", inner]:
            _add(total, inner, -factor, names)
        case ["+" | "-" as sign, inner, *others]:
            _add(total, inner, factor, names)
            for other in others:
                _add(total, other, factor if sign == "+" else -factor, names)
        case ["*", str(number), inner] if _NUMBER.fullmatch(number):
            _add(total, inner, factor * Fraction(number), names)
        case ["*", inner, str(number)] if _NUMBER.fullmatch(number):
            _add(total, inner, factor * Fraction(number), names)
        case _:
            raise SpecError(f"this is no term of declared variables, numbers, +, -, and * by a number: {term!r:.60}.")


def _row(form: dict[str, Fraction], sign: int) -> Row:
    """sign form <= 0. Its numbers are the nearest floats; but an offset that bounds one input or nothing is exact, the coefficient being 1 or -1."""
    offset, terms = -sign * form.get("", Fraction(0)), sorted((name, sign * c) for name, c in form.items() if name and c)
    exact = not terms or (len(terms) == 1 and terms[0][0][0] == "X")
    scale = abs(terms[0][1]) if terms and exact else 1
    try:
        row = tuple((name, float(c / scale)) for name, c in terms), float(offset / scale)
        large = max(abs(row[1]), *(abs(c) for _, c in row[0]), 0.0) > LARGEST
    except OverflowError:
        large = True
    if large:
        raise SpecError("a number is too large: coefficients and offsets are read up to 2^100 in size.")
    if not all(abs(c) >= LEAST for _, c in row[0]):
        raise SpecError("a coefficient is too small: those below 2^-1022 in size are not read.")
    return (row[0], offset / scale) if exact else row


def _least(rows: Iterable[Row], common: Part) -> Part:
    """What the rows say that `common` does not."""
    part: Part = {}
    for form, offset in rows:
        if offset < part.get(form, common.get(form, inf)):
            part[form] = offset
    return part


def _meets(part: Part, common: Part) -> bool:
    """Whether both together leave an input: of the rows that are exact, no two contradict each other, and () none."""
    exact = [(tuple((name, -c) for name, c in form), offset) for form, offset in part.items() if isinstance(offset, Fraction)]
    return all(-offset <= part.get(opposite, common.get(opposite, inf)) for opposite, offset in exact)


def _upwards(value: Fraction | float) -> float:
    """The least float that is not below the value."""
    nearest = float(value)
    return nearest if nearest >= value else nextafter(nearest, inf)


def covered(prop: Property, cases: Iterable[tuple[np.ndarray, np.ndarray, Iterable]]) -> str | None:
    """Every disjunct lies in a case: whatever the case's box and the rows of one of its polytopes say, the disjunct says, too.

    A case is `(lower (n_in,), upper (n_in,), polytopes)`, a polytope `(output (R, n_out), offset (R,), input (R, n_in))`. Returns None, or the
    sentence that names a disjunct that is in no case.
    """
    sides = [((f"X_{i}", sign),) for sign in (1.0, -1.0) for i in range(prop.n_in)]
    common, *parts = ({form: _upwards(offset) for form, offset in part.items()} for part in ({(): 0.0} | prop.common, *prop.disjuncts))
    waiting, boxed = dict(enumerate(parts)), set()
    for lower, upper, polytopes in cases:
        box = zip(sides, np.concatenate([upper, -lower]).tolist(), strict=True)
        left = [(form, offset) for form, offset in box if not common.get(form, inf) <= offset]
        known = [_rows_of(*polytope) for polytope in polytopes]
        for d in [d for d, part in waiting.items() if all(part.get(form, inf) <= offset for form, offset in left)]:
            boxed.add(d)
            said = common | waiting[d]
            if any(all(said.get(form, inf) <= offset for form, offset in rows) for rows in known):
                del waiting[d]
    for d in waiting:
        why = "a case's box contains its box, but it has other rows than that case's polytopes" if d in boxed else "no case's box contains its box"
        return f"disjunct {d + 1} of {len(parts)} of {prop.name} is in no case of the certificate: {why}."
    return None


def _rows_of(output: np.ndarray, offset: np.ndarray, inputs: np.ndarray) -> list[Row]:
    """The rows of a polytope as the reader has them."""
    rows = []
    for of_y, of_x, bound in zip(output, inputs, offset):
        form = [(f"X_{i}", float(of_x[i])) for i in np.flatnonzero(of_x)] + [(f"Y_{j}", float(of_y[j])) for j in np.flatnonzero(of_y)]
        rows.append((tuple(sorted(form)), float(bound)))
    return rows
