"""VNN-LIB 1.0 -> the union of disjuncts that a certificate must cover. Independent of `verifier.spec`: the checker trusts this file alone.

Everything is a row (form, offset), which says that a sum is at most the offset: ((("X_3", 1.0), ("Y_0", -1.0)), offset). Rows that hold together
are a dict of the least offset of each form. An offset is a real number as (the nearest float, itself): exact where the form is a single input with
coefficient 1 or -1, its nearest float elsewhere. Strict is read as non-strict, and an input that is Int lies between integers.
"""
from __future__ import annotations

import gzip
import hashlib
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from itertools import chain, pairwise, product
from math import floor, inf, nextafter
from pathlib import Path

import numpy as np

from verifier.errors import SpecError

MOST_DISJUNCTS, MOST_NUMBERS, MOST_DEPTH, MOST_BITS = 20_000, 8_000_000, 100, 100_000
"""What `and`s and `or`s multiply out to, numbers written for it, depth of parentheses, bits of a fraction."""
MOST_BYTES, MOST_UNPACKING, SMALL_BYTES = 2**28, 128, 2**25
"""Of the text: in all, and how many times its packed size where it has more than SMALL_BYTES."""
LEAST, LARGEST = 2.0**-1022, 2.0**100
"""Sizes of the numbers that are read: coefficients that are not 0, and offsets, which may also be smaller."""
_NUMERAL = r"[-+]?(?=\.?[0-9])[0-9]{0,999}(?:\.[0-9]{0,999})?(?:[eE][-+]?[0-9]{1,4})?"
_WORD = re.compile(  # a comparison, in an assert or not; a declaration; a comment; a quotation, whatever it holds; any other word; many spaces
    rf"\(\s*(assert\s*\(\s*)?([<>]=?)\s+([XY]_[0-9]+)\s+({_NUMERAL}|[XY]_[0-9]+)\s*\)(?(1)\s*\))|\(\s*declare-const\s+([XY]_[0-9]+)\s+Real\s*\)"
    r"""|;[^\n]*|"[^"]*"|\|[^|]*\||[()"|]|[^\s();"|]+|\s{64,}"""
)
_NUMBER, _VARIABLE = re.compile(_NUMERAL), re.compile(r"[XY]_(?:0|[1-9][0-9]{0,8})")
_NEGATED = {"<=": ">", ">=": "<", "<": ">=", ">": "<="}
Form = tuple[tuple[str, float], ...]
Number = tuple[float, str | Fraction]
Part = dict[Form, Number]
Sum = dict[str, Fraction | int]
"""Of a linear term: the coefficient of each variable, and the constant at ""."""


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
    most = MOST_BYTES
    try:
        with open(path, "rb") as file:
            data = file.read(min(most, os.fstat(file.fileno()).st_size or most) + 1)  # room is made for as much as is asked for
        if data[:2] == b"\x1f\x8b":
            most = min(most, max(SMALL_BYTES, MOST_UNPACKING * len(data)))
            with gzip.GzipFile(fileobj=BytesIO(data)) as packed:
                data = packed.read(most + 1)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise SpecError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    if len(data) > most:
        raise SpecError(f"{path} has more than {most:,} bytes of text, too many for a property of its size.")
    return data


def read_property(path: str | Path, n_in: int | None = None, n_out: int | None = None) -> Property:
    """The property of a VNN-LIB 1.0 file; `.gz` is read as it is. Where `n_in` and `n_out` are given, they must be the file's.

    Raises:
        SpecError: the file cannot be read, says what this reader does not know (names file and line), or is of other sizes.
    """
    text, reader, at = _bytes_of(path).decode("utf-8-sig", "replace"), _Reader(), 0
    words = (word for word in _WORD.finditer(text) if word[0][0] != ";" and not word[0][0].isspace())
    try:
        for word in words:
            at = word.start()
            reader.take(word, words)
        disjuncts = reader.product(union for union in reader.asserted)
    except SpecError as error:
        raise SpecError(f"{path}, line {text.count(chr(10), 0, at) + 1}: {error}") from None
    own_in, own_out = (sum(name[0] == letter for name in reader.names) for letter in "XY")
    if reader.names != {f"{letter}_{k}" for letter, size in (("X", own_in), ("Y", own_out)) for k in range(size)}:
        raise SpecError(f"{path}: the inputs or outputs are not numbered 0, 1, 2, ... without a gap.")
    if 0 in (own_in, own_out) or (n_in or own_in, n_out or own_out) != (own_in, own_out):
        wanted = f"{n_in or 'some'} and {n_out or 'some'}"
        raise SpecError(f"{path} has {own_in} inputs and {own_out} outputs, but the network {wanted}: is it of another network?")
    common, parts = _drawn_in(reader.common, reader.integers), []
    for part in (_drawn_in(part, reader.integers) for part in disjuncts) if _meets(common, common) else []:
        part = {form: offset for form, offset in part.items() if form not in common or _below(offset, common[form])}
        parts += [part] if _meets(part, common) else []
    return Property(str(path), own_in, own_out, common, parts)


class _Reader:
    """What the statements said so far: variables, the rows that hold in every disjunct, and the unions of which one part each holds."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.integers: set[str] = set()
        self.common: Part = {}
        self.asserted: list[list[Part]] = []
        self.asked, self.numbers, self.written = False, {}, 0

    def take(self, word: re.Match, words: Iterator[re.Match]) -> None:
        """One statement, which begins with this word."""
        asserted, op, left, right, declared = word.groups()
        if op:
            statement = ["assert", (op, left, right)] if asserted else (op, left, right)
        elif declared:
            statement = ["declare-const", declared, "Real"]
        else:
            statement = _nested(words, 0) if word[0] == "(" else word[0]
        match statement:
            case ["declare-const", str(name), "Real" | "Int"] | ["declare-fun", str(name), [], "Real" | "Int"] if _VARIABLE.fullmatch(name):
                if name in self.names:
                    raise SpecError(f"{name} is declared twice.")
                self.names.add(name)
                if name[0] == "X" and statement[-1] == "Int":
                    self.integers.add(name)
            case ["assert", _] if self.asked:
                raise SpecError("an assert stands behind check-sat or exit, so it is not part of the property: remove it or move it up.")
            case ["assert", formula]:
                union = self.union(formula, False)
                if len(union) == 1:
                    _add(self.common, union[0])
                else:
                    self.asserted.append(union)
            case ["check-sat"] | ["exit"]:
                self.asked = True
            case ["set-logic" | "set-info" | "set-option" | "get-model", *_]:
                pass
            case _:
                raise SpecError(f"an assert or a declaration of X_i or Y_j is due, but this stands there: {statement!r:.60}.")

    def union(self, formula: str | list | tuple, negated: bool) -> list[Part]:
        """The formula, or its negation, as a union of conjunctions."""
        match formula:
            case "true" | "false":
                return [{}] if (formula == "true") != negated else []
            case ["not", inner]:
                return self.union(inner, not negated)
            case ["=>", inner, then]:
                return self.union(["or", ["not", inner], then], negated)
            case ["and" | "or" as head, _, *_]:
                unions = (self.union(inner, negated) for inner in formula[1:])
                return self.product(unions) if (head == "and") != negated else list(chain.from_iterable(unions))
            case ["<=" | ">=" | "<" | ">" | "=" as op, left, right]:
                if op == "=":
                    return self.union(["or" if negated else "and", *((one, left, right) for one in ("<>" if negated else ("<=", ">=")))], False)
                row = self._row(_NEGATED[op] if negated else op, left, right)
                return [] if row is None else [dict([row] if row[0] else [])]
            case ["<=" | ">=" | "<" | ">" | "=" as op, _, _, *_]:
                return self.union(["and", *((op, *pair) for pair in pairwise(formula[1:]))], negated)
        raise SpecError(f"this is no formula of and, or, not, => and comparisons: {formula!r:.60}.")

    def product(self, unions: Iterable[list[Part]]) -> list[Part]:
        """The conjunction of unions, without repetitions and without parts whose bounds contradict each other."""
        single: Part = {}
        result, several = [single], []
        for union in unions:
            if len(union) == 1:
                _add(single, union[0])
            else:
                several.append(union)
        for union in several:
            if result == [{}]:
                result = union
                continue
            found: dict[frozenset, Part] = {}
            for left, right in product(result, union):
                both = dict(left)
                _add(both, right)
                self.written += len(both) if len(result) > 1 else 0
                if _meets(right, both):
                    found[frozenset(both.items())] = both
                if self.written > MOST_NUMBERS or (len(found) > MOST_DISJUNCTS and len(result) > 1):
                    limit = f"{MOST_DISJUNCTS:,} disjuncts or {MOST_NUMBERS:,} numbers"
                    raise SpecError(f"its 'and's and 'or's multiplied out are more than {limit}: split the property.")
            result = list(found.values())
        return result

    def _row(self, op: str, left: str | list | tuple, right: str | list | tuple) -> tuple[Form, Number] | None:
        """left op right as a row; without a variable, a row without a form where it is true, None where not."""
        sign = 1 if op[0] == "<" else -1
        if type(left) is type(right) is str and left in self.names and left[0] == "X" and _NUMBER.fullmatch(right):
            return ((left, float(sign)),), self._number(right, sign)
        form = self._sum(["-", left, right])
        offset, terms = -sign * form.get("", 0), sorted((name, sign * c) for name, c in form.items() if name and c)
        if not terms:
            return ((), (0.0, "0")) if offset > 0 or (offset == 0 and len(op) == 2) else None
        exact = len(terms) == 1 and terms[0][0][0] == "X"
        scale = abs(terms[0][1]) if exact else 1
        row, near = tuple((name, _float(c / scale)) for name, c in terms), _float(offset / Fraction(scale))
        if not all(abs(c) >= LEAST for _, c in row):
            raise SpecError("a coefficient is too small: those below 2^-1022 in size are not read.")
        return row, (near, offset / Fraction(scale) if exact else Fraction(near))

    def _number(self, text: str, sign: int) -> Number:
        """sign text; known ones are remembered, as long as they are few."""
        known = self.numbers.get((text, sign))
        if known is None:
            bare = text.lstrip("+-")
            minus = (text[0] == "-") != (sign < 0)
            known = _float(float(text) * sign), "-" + bare if minus else bare
            if len(self.numbers) < 100_000:
                self.numbers[text, sign] = known
        return known

    def _sum(self, term: str | list | tuple) -> Sum:
        """The linear term, exactly."""
        match term:
            case str() if term in self.names:
                return {term: 1}
            case str() if _NUMBER.fullmatch(term):
                return {"": Fraction(term)}
            case ["-", inner]:
                return _times(self._sum(inner), -1)
            case ["+" | "-" as sign, inner, *others]:
                total = dict(self._sum(inner))
                for other in others:
                    for name, c in self._sum(other).items():
                        total[name] = _short(total.get(name, 0) + (c if sign == "+" else -c))
                return total
            case ["*" | "/" as sign, inner, *others] if others or sign == "*":
                total = self._sum(inner)
                for other in map(self._sum, others):
                    if sign == "*" and not set(total) - {""}:
                        total, other = other, total
                    factor = other.get("", 0)
                    if set(other) - {""} or (sign == "/" and factor == 0):
                        raise SpecError(f"this is no product with a number, or quotient by one that is not 0: {term!r:.60}.")
                    total = _times(total, factor if sign == "*" else 1 / Fraction(factor))
                return total
        raise SpecError(f"this is no term of declared variables, numbers, +, -, * and /: {term!r:.60}.")


def _nested(words: Iterator[re.Match], depth: int) -> list:
    """The words up to the parenthesis that closes this list, as nested lists; a comparison is a tuple, and |X_0| is X_0."""
    found: list = []
    if depth > MOST_DEPTH:
        raise SpecError("parentheses are nested too deeply.")
    for word in words:
        asserted, op, left, right, declared = word.groups()
        if asserted or declared:
            raise SpecError("an assert or a declaration stands inside another statement.")
        if op:
            found.append((op, left, right))
        elif word[0] == ")":
            return found
        elif word[0] in ('"', "|"):
            raise SpecError("a quotation is never closed.")
        elif word[0] == "(":
            found.append(_nested(words, depth + 1))
        else:
            found.append(word[0][1:-1] if word[0][0] == "|" and _VARIABLE.fullmatch(word[0][1:-1]) else word[0])
    raise SpecError("a parenthesis is never closed.")


def _short(value: Fraction | int) -> Fraction | int:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MOST_BITS:
        raise SpecError(f"its constants multiply to a fraction of more than {MOST_BITS:,} bits.")
    return value


def _times(form: Sum, factor: Fraction | int) -> Sum:
    return {name: _short(c * factor) for name, c in form.items()}


def _float(value: Fraction | float) -> float:
    """The nearest float."""
    try:
        near = float(value)
    except OverflowError:
        near = inf
    if abs(near) > LARGEST:
        raise SpecError("a number is too large: coefficients and offsets are read up to 2^100 in size.")
    return near


def _drawn_in(part: Part, integers: set[str]) -> Part:
    """The bounds of these inputs drawn in to integers."""
    whole = {form: Fraction(floor(Fraction(part[form][1]))) for form in part if len(form) == 1 and form[0][0] in integers} if integers else {}
    return part | {form: (_float(bound), bound) for form, bound in whole.items()}


def _below(a: Number, b: Number) -> bool:
    """a < b, exactly: rounding is monotone, so that only equal floats leave it open."""
    return a[0] < b[0] or (a[0] == b[0] and a[1] != b[1] and Fraction(a[1]) < Fraction(b[1]))


def _add(part: Part, more: Part) -> None:
    """Makes `part` the conjunction of both."""
    for form, offset in more.items():
        if form not in part or _below(offset, part[form]):
            part[form] = offset


def _meets(part: Part, whole: Part) -> bool:
    """Whether no bound of an input in `part` contradicts one of `whole` or of `part`."""
    for form, offset in part.items():
        if len(form) == 1 and form[0][0][0] == "X":
            opposite = ((form[0][0], -form[0][1]),)
            for known in (part, whole):
                other = known.get(opposite)
                if other is not None and -offset[0] >= other[0] and _sign_of_sum(offset, other) < 0:
                    return False
    return True


def _sign_of_sum(a: Number, b: Number) -> int:
    """The sign of a + b, exactly."""
    if -a[0] != b[0]:
        return 1 if b[0] > -a[0] else -1
    if type(a[1]) is type(b[1]) is str and a[1].lstrip("-") == b[1].lstrip("-"):
        return 0
    total = Fraction(a[1]) + Fraction(b[1])
    return (total > 0) - (total < 0)


def covered(prop: Property, cases: Iterable[tuple[np.ndarray, np.ndarray, Iterable]], dtype: np.dtype | type = np.float32) -> str | None:
    """Every disjunct lies in a case: the case's box holds the disjunct's, and whatever the rows of one of the case's polytopes say, it says, too.

    The box of a disjunct is its real region and what a runtime receives for it: of a fixed input, the hull of its value and of the numbers of the
    input type `dtype` nearest to the floats around it.

    A case is `(lower (n_in,), upper (n_in,), polytopes)`, a polytope `(output (R, n_out), offset (R,), input (R, n_in))`. Returns None, or the
    sentence that names a disjunct that is in no case.
    """
    boxes = _Boxes(prop, np.dtype(dtype))
    known = [(lower, upper, [_rows_of(*polytope) for polytope in polytopes]) for lower, upper, polytopes in cases]
    waiting = dict.fromkeys(range(len(prop.disjuncts)))
    # Mostly case after case holds disjunct after disjunct; only what this leaves is compared with every case.
    for lower, upper, polytopes in known:
        while waiting and boxes.inside(d := next(iter(waiting)), lower, upper) and _said(prop, d, polytopes):
            del waiting[d]
    for d in waiting:
        boxed = False
        for lower, upper, polytopes in known:
            if boxes.inside(d, lower, upper):
                boxed = True
                if _said(prop, d, polytopes):
                    break
        else:
            why = "a case's box contains its box, but it has other rows than that case's polytopes" if boxed else "no case's box contains its box"
            return f"disjunct {d + 1} of {len(prop.disjuncts)} of {prop.name} is in no case of the certificate: {why}."
    return None


class _Boxes:
    """The boxes of a property's disjuncts, rounded outwards to floats."""

    def __init__(self, prop: Property, dtype: np.dtype) -> None:
        self.prop, self.dtype = prop, dtype
        self.forms = [(((f"X_{i}", -1.0),), ((f"X_{i}", 1.0),)) for i in range(prop.n_in)]
        self.lower, self.upper = np.array([self._ends(i, {}, _beyond) for i in range(prop.n_in)]).T

    def inside(self, d: int, lower: np.ndarray, upper: np.ndarray) -> bool:
        """Whether the box of disjunct d lies in [lower, upper]; only where an ulp decides are its ends compared exactly."""
        part = self.prop.disjuncts[d]
        own = {int(form[0][0][2:]) for form in part if len(form) == 1 and form[0][0][0] == "X"}
        outside = set(np.flatnonzero(~((lower <= self.lower) & (self.upper <= upper))).tolist())
        return all(self._inside(i, part, lower[i], upper[i]) for i in own | outside)

    def _inside(self, i: int, part: Part, lower: float, upper: float) -> bool:
        ends = (self._ends(i, part, outwards) for outwards in (_beyond, _upwards))
        return any(lower <= low and high <= upper for low, high in ends)

    def _ends(self, i: int, part: Part, outwards: Callable[[Number], float]) -> tuple[float, float]:
        """The hull of input i in floats, infinite where a bound is missing; `outwards` makes a float of an end."""
        minus, plus = (part.get(form) or self.prop.common.get(form) for form in self.forms[i])
        low, high = -inf if minus is None else -outwards(minus), inf if plus is None else outwards(plus)
        if plus is not None and minus is not None and _sign_of_sum(minus, plus) == 0:
            with np.errstate(over="ignore"):
                received = np.array([low, high]).astype(self.dtype).astype(float)
            low, high = min(low, float(received[0])), max(high, float(received[1]))
        return low, high


def _beyond(value: Number) -> float:
    """A float that is not below the number, at most an ulp too large; the least at zero."""
    return nextafter(value[0], inf) if value[0] else _upwards(value)


def _upwards(value: Number) -> float:
    """The least float that is not below the number."""
    near, exact = value
    return near if Fraction(near) >= Fraction(exact) else nextafter(near, inf)


def _said(prop: Property, d: int, polytopes: Iterable[list[tuple[Form, float]]]) -> bool:
    """Whether disjunct d says the rows of one of the polytopes."""
    part = prop.disjuncts[d]

    def least(form: Form) -> float:
        if not form:
            return 0.0
        offset = part.get(form) or prop.common.get(form)
        return inf if offset is None else _upwards(offset)

    return any(all(least(form) <= offset for form, offset in rows) for rows in polytopes)


def _rows_of(output: np.ndarray, offset: np.ndarray, inputs: np.ndarray) -> list[tuple[Form, float]]:
    """The rows of a polytope as the reader has them."""
    rows = []
    for of_y, of_x, bound in zip(output, inputs, offset):
        form = [(f"X_{i}", float(of_x[i])) for i in np.flatnonzero(of_x)] + [(f"Y_{j}", float(of_y[j])) for j in np.flatnonzero(of_y)]
        rows.append((tuple(sorted(form)), float(bound)))
    return rows
