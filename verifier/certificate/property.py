"""VNN-LIB 1.0 -> the union of disjuncts that a certificate must cover. Independent of `verifier.spec`: the checker trusts this file alone.

A statement becomes nested lists of words; a formula becomes its alternatives, each a `Part`: bounds of single inputs and rows that all hold.
Numbers are the rationals that the text says. Strict comparisons are read as non-strict ones, and Int as Real: both only enlarge the unsafe set.
"""
from __future__ import annotations

import gzip
import hashlib
import operator
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from math import inf, nextafter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from verifier.errors import SpecError

MOST_NUMBERS, MOST_DEPTH = 2_000_000, 100
_WORD = re.compile(r";[^\n]*|[()]|[^\s();]+")
_NUMBER = re.compile(r"[-+]?(?=\.?[0-9])[0-9]{0,999}(?:\.[0-9]{0,999})?(?:[eE][-+]?[0-9]{1,4})?")
_VARIABLE = re.compile(r"([XY])_(0|[1-9][0-9]{0,8})")
_HOLDS = {"<=": operator.le, "<": operator.lt, ">=": operator.ge, ">": operator.gt, "=": operator.eq, "!=": operator.ne}
_NEGATED = {"<=": ">", ">=": "<", "<": ">=", ">": "<=", "=": "!="}
_IGNORED = ("set-logic", "set-info", "set-option", "check-sat", "get-model", "exit")
Row = tuple[tuple[tuple[tuple[str, int], float], ...], float]  # ((("X", 3), 1.0), (("Y", 0), -1.0)), offset: the sum is <= offset


class Part(NamedTuple):
    """What holds together: `bound[2 i]` is b in x_i <= b, `bound[2 i + 1]` is b in -x_i <= b; and rows over several variables."""

    bound: dict[int, Fraction]
    rows: list[Row]

    def add(self, other: Part) -> bool:
        """Takes what `other` says into this one; whether some input is left."""
        self.rows.extend(other.rows)
        for key, value in other.bound.items():
            if value < self.bound.get(key, inf):
                self.bound[key] = value
        return all(-self.bound[key] <= self.bound.get(key ^ 1, inf) for key in other.bound)


@dataclass(frozen=True, slots=True)
class Property:
    """Unsafe: `common` and one of `disjuncts`, none of which is empty. `bound (2 n_in,)`: that of `common`, rounded upwards; inf: none."""

    name: str
    n_in: int
    n_out: int
    common: Part
    disjuncts: tuple[Part, ...]
    bound: np.ndarray


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
    try:
        text = _bytes_of(path).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise SpecError(f"{path} is not text: give a VNN-LIB 1.0 file.") from None
    names: dict[str, tuple[str, int]] = {}
    parts: list[list[Part]] = []
    place = 0
    try:
        for at, statement in _statements(text):
            place = at
            match statement:
                case ["declare-const", str(name), "Real" | "Int"] | ["declare-fun", str(name), [], "Real" | "Int"]:
                    names[name] = _declared(name, names)
                case ["assert", formula]:
                    parts.append(_alternatives(formula, False, names))
                case [str(command), *_] if command in _IGNORED:
                    pass
                case _:
                    raise SpecError(f"this is no declaration and no assert of VNN-LIB 1.0: {statement!r:.60}.")
        sizes = _count("X", names), _count("Y", names)
        common, disjuncts = _joined(parts)
        disjuncts = [part for part in disjuncts if _meets(common, part)]
        bound = np.full(2 * sizes[0], inf)
        for key, value in common.bound.items():
            bound[key] = _upwards(value)
    except SpecError as error:
        line = text.count("\n", 0, place) + 1
        raise SpecError(f"{path}, line {line}: {error}") from None
    if (n_in or sizes[0], n_out or sizes[1]) != sizes:
        raise SpecError(f"{path} has {sizes[0]} inputs and {sizes[1]} outputs, but the network {n_in} and {n_out}: is it of another network?")
    return Property(str(path), *sizes, common, tuple(disjuncts), bound)


def _statements(text: str) -> Iterator[tuple[int, list]]:
    """The outermost lists of the text, as nested lists of words, with their places."""
    stack: list[list] = []
    start = 0
    for match in _WORD.finditer(text):
        word = match[0]
        if word == "(":
            start = start if stack else match.start()
            stack.append([])
            if len(stack) > MOST_DEPTH:
                yield start, ["parentheses nested too deeply"]
        elif word == ")" and stack:
            closed = stack.pop()
            if stack:
                stack[-1].append(closed)
            else:
                yield start, closed
        elif stack and word[0] != ";":
            stack[-1].append(word)
        elif word[0] != ";":
            yield match.start(), [f"{word} outside of all parentheses"]
    if stack:
        yield start, ["a parenthesis that is never closed"]


def _declared(name: str, names: dict) -> tuple[str, int]:
    match = _VARIABLE.fullmatch(name)
    if not match or name in names:
        raise SpecError(f"{name!r:.40} is declared twice, or is not called X_i or Y_i.")
    return match[1], int(match[2])


def _count(letter: str, names: dict) -> int:
    numbers = {index for seen, index in names.values() if seen == letter}
    if not numbers or max(numbers) != len(numbers) - 1:
        raise SpecError(f"the variables {letter}_0, {letter}_1, ... are not declared without a gap.")
    return len(numbers)


def _alternatives(formula: str | list, negated: bool, names: dict) -> list[Part]:
    """The formula, or its negation, as a disjunction; the parts are the caller's own."""
    match formula:
        case "true" | "false":
            return [Part({}, [])] if (formula == "true") != negated else []
        case ["not", inner]:
            return _alternatives(inner, not negated, names)
        case ["=>", left, right]:
            return _alternatives(["or", ["not", left], right], negated, names)
        case ["and" | "or" as head, _, *_]:
            several = [_alternatives(inner, negated, names) for inner in formula[1:]]
            if (head == "or") != negated:
                return [part for alternatives in several for part in alternatives]
            common, product = _joined(several)
            return [part for part in product if part.add(common)]
        case ["<=" | ">=" | "<" | ">" | "=" as op, left, right]:
            return _compared(_NEGATED[op] if negated else op, _form(left, names), _form(right, names))
        case ["<=" | ">=" | "<" | ">" | "=" as op, _, _, _, *_]:
            return _alternatives(["and", *([op, a, b] for a, b in pairwise(formula[1:]))], negated, names)
    raise SpecError(f"this is no formula that this reader knows: {formula!r:.60}.")


def _joined(several: list[list[Part]]) -> tuple[Part, list[Part]]:
    """The conjunction of disjunctions: what all of them say outright, and the product of the others. Nothing is left of a contradiction."""
    common, product = Part({}, []), [Part({}, [])]
    if not all(common.add(alternatives[0]) for alternatives in several if len(alternatives) == 1):
        return common, []
    for alternatives in (a for a in several if len(a) != 1):
        numbers = sum(len(part.bound) + len(part.rows) + 1 for part in alternatives) * len(product)
        if numbers > MOST_NUMBERS:
            raise SpecError(f"its 'and's and 'or's multiplied out are more than {MOST_NUMBERS:,} numbers: split the property.")
        pairs = ((Part(dict(left.bound), list(left.rows)), right) for left in product for right in alternatives)
        product = [left for left, right in pairs if left.add(right)]
    return common, product


def _meets(common: Part, part: Part) -> bool:
    """Whether the bounds of both leave an input."""

    def both(key: int) -> Fraction | float:
        return min(part.bound.get(key, inf), common.bound.get(key, inf))

    return all(-both(key) <= both(key ^ 1) for key in part.bound)


def _compared(op: str, left: dict, right: dict) -> list[Part]:
    """left op right: its alternatives (two for !=)."""
    form = _plus(left, right, -1)
    offset = -form.pop((), Fraction(0))
    if not form:
        return [Part({}, [])] if _HOLDS[op](0, offset) else []
    below = _row(form, offset)
    above = _row({name: -c for name, c in form.items()}, -offset)
    if op == "=":
        return [below] if below.add(above) else []
    return [below, above] if op == "!=" else [below if op[0] == "<" else above]


def _row(form: dict, offset: Fraction) -> Part:
    """form <= offset, as a bound of one input or as a row, whose numbers are rounded once to the nearest floats."""
    if len(form) == 1:
        ((letter, i), c), = form.items()
        if letter == "X":
            return Part({2 * i + (c < 0): offset / abs(c)}, [])
    try:
        row = tuple((name, float(c)) for name, c in sorted(form.items())), float(offset)
    except OverflowError:
        raise SpecError("a number is too large for a 64-bit float.") from None
    if not all(c for _, c in row[0]):
        raise SpecError("a coefficient is too small for a 64-bit float.")
    return Part({}, [row])


def _form(term: str | list, names: dict) -> dict:
    """A linear term as coefficients of variables; the constant is at (), and no value is 0."""
    if isinstance(term, str):
        if term in names:
            return {names[term]: Fraction(1)}
        if _NUMBER.fullmatch(term):
            return {(): value} if (value := Fraction(term)) else {}
        raise SpecError(f"{term!r:.40} is neither a declared variable nor a number that this reader takes.")
    if len(term) < 2 or term[0] not in ("+", "-", "*", "/"):
        raise SpecError(f"this is no term of +, -, * and / by constants: {term!r:.60}.")
    first, *others = (_form(inner, names) for inner in term[1:])
    if term[0] == "-" and not others:
        return _plus({}, first, -1)
    for other in others:
        if term[0] in "+-":
            first = _plus(first, other, 1 if term[0] == "+" else -1)
            continue
        first, factor = (other, first) if term[0] == "*" and not first.keys() - {()} else (first, other)
        if factor.keys() - {()} or (term[0] == "/" and not factor):
            raise SpecError("a product of variables, or a division by a variable or by zero, is not linear.")
        value = factor.get((), Fraction(0))
        first = _plus({}, first, 1 / value if term[0] == "/" else value)
    return first


def _plus(left: dict, right: dict, factor: Fraction | int) -> dict:
    """left + factor right, without zeros."""
    total = dict(left)
    for name, c in right.items():
        total[name] = total[name] + factor * c if name in total else factor * c
    return {name: c for name, c in total.items() if c}


def _upwards(value: Fraction) -> float:
    """The least float that is not below the value."""
    try:
        nearest = float(value)
    except OverflowError:
        raise SpecError("a bound is too large for a 64-bit float.") from None
    return nearest if nearest >= value else nextafter(nearest, inf)


def covered(prop: Property, cases: Iterable[tuple[np.ndarray, np.ndarray, Iterable]]) -> str | None:
    """Every disjunct lies in a case: the case's box contains the disjunct's, and the rows of one of its polytopes are among the disjunct's.

    Args:
        prop: what must be covered.
        cases: `(lower (n_in,), upper (n_in,), polytopes)` each, a polytope being `(output (R, n_out), offset (R,), input (R, n_in))`.

    Returns:
        None, or the sentence that names a disjunct that is in no case.
    """
    many = len(prop.disjuncts)
    owner = np.repeat(np.arange(many), [len(part.bound) for part in prop.disjuncts])
    key = np.array([k for part in prop.disjuncts for k in part.bound], int)
    value = np.array([_upwards(b) for part in prop.disjuncts for b in part.bound.values()], float)
    boxed, waiting = np.zeros(many, bool), np.ones(many, bool)
    for lower, upper, polytopes in cases:
        bound = np.stack([upper, -lower], 1).reshape(-1)
        if len(bound) != len(prop.bound):
            return f"{prop.name} has {prop.n_in} inputs, but the network {len(lower)}: is it the property of another network?"
        open_sides = ~(prop.bound <= bound)  # of the common box; a disjunct's own bounds must close them all
        closed = open_sides[key] & (value <= bound[key])
        inside = np.bincount(owner[closed], minlength=many) == open_sides.sum()
        boxed |= inside
        by_last: dict[tuple, list[list[Row]]] = {}
        for rows in (_rows_of(*polytope) for polytope in polytopes):
            by_last.setdefault(rows[-1][0] if rows else (), []).append(rows)
        for d in np.flatnonzero(inside & waiting):
            has = {(): 0.0}  # 0 <= 0 holds always
            for form, offset in (*prop.common.rows, *prop.disjuncts[d].rows):
                has[form] = min(offset, has.get(form, inf))
            chosen = (rows for form in has for rows in by_last.get(form, ()))
            waiting[d] = not any(all(has.get(form, inf) <= offset for form, offset in rows) for rows in chosen)
    if not waiting.any():
        return None
    d = int(np.argmax(waiting))
    why = "a case's box contains its box, but it has other rows than that case's polytopes" if boxed[d] else "no case's box contains its box"
    return f"disjunct {d + 1} of {many} of {prop.name} is in no case of the certificate: {why}."


def _rows_of(output: np.ndarray, offset: np.ndarray, inputs: np.ndarray) -> list[Row]:
    sides = (("X", inputs), ("Y", output))
    return [
        (tuple(((letter, int(i)), float(side[r, i])) for letter, side in sides for i in np.flatnonzero(side[r])), float(offset[r]))
        for r in range(len(offset))
    ]
