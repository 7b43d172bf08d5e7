"""Property -> Spec: the disjunctive normal form of the asserted formulas, as cases of an input box times polytopes.

The top-level conjunction is split in two: comparisons that always hold (the global box and rows, dense) and the disjunctions, whose product
is formed over sparse conjuncts that hold only what differs from the global part. Disjuncts with the same box become polytopes of one case,
so a global box with one `or` of `and`s, and an `or` of many boxes, both cost time in proportion to the text. Contradictory disjuncts are
dropped as soon as they arise.

Strict comparisons of variables are read as non-strict: the unsafe set becomes its closure, which contains it; what was strict is kept beside it,
for counterexamples. Linear terms are evaluated exactly, over the rationals, and rounded once.
"""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from decimal import Decimal
from fractions import Fraction
from math import ceil, floor, inf, nextafter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from verifier.errors import SpecError
from verifier.spec.spec import Case, Polytope, Spec
from verifier.spec.vnnlib1 import And, Apply, Compare, Formula, Not, Number, Property, Source, Term, Variable, read_vnnlib1

MAX_DISJUNCTS = 1_000_000
MAX_NUMBERS = 200_000_000
MAX_MULTIPLIED, MAX_WRITTEN = 20_000, 8_000_000
"""Disjuncts, and numbers that are written to reach them, where they come from multiplying `or`s out and not from the text as it stands."""
MAX_BITS = 100_000
"""Of a constant's numerator and denominator while a term is summed."""
_NEGATED = {"<=": ">", ">=": "<", "<": ">=", ">": "<="}


class _Row(NamedTuple):
    """sum of coefficients * variables <= offset; at least one variable is an output, or two are inputs."""

    coefficients: tuple[tuple[Variable, float], ...]
    offset: float
    strict: bool


class _Bound(NamedTuple):
    """A bound of one input: the nearest float64, the nearest one that satisfies it as it is written, and the real number."""

    value: float
    within: float
    exact: str | Fraction


def _bound(value: float, exact: str | Fraction, strict: bool, up: float) -> _Bound:
    """The bound at `exact`, to which `value` is nearest; satisfied by what lies in the direction of `up`, which is inf or -inf."""
    number = Decimal(exact) if type(exact) is str else exact
    satisfied = number < value if up > 0 else number > value
    return _Bound(value, value if satisfied or (number == value and not strict) else nextafter(value, up), exact)


def _order(a: _Bound, b: _Bound) -> int:
    """The sign of a - b, exactly."""
    if a.value != b.value:
        return 1 if a.value > b.value else -1
    if a.exact == b.exact:
        return 0
    difference = Fraction(a.exact) - Fraction(b.exact)
    return (difference > 0) - (difference < 0)


@dataclass(slots=True)
class _Conjunct:
    """Bounds of single inputs and rows that all hold. A work area of one call, filled by `add` and never shared once filled."""

    lower: dict[int, _Bound] = field(default_factory=dict)
    upper: dict[int, _Bound] = field(default_factory=dict)
    rows: dict[_Row, None] = field(default_factory=dict)
    false: bool = False

    def bound_below(self, i: int, bound: _Bound) -> None:
        known, above = self.lower.get(i), self.upper.get(i)
        order = 1 if known is None else _order(bound, known)
        if order > 0 or (order == 0 and bound.within > known.within):
            self.lower[i] = bound
            self.false = self.false or (above is not None and _order(bound, above) > 0)

    def bound_above(self, i: int, bound: _Bound) -> None:
        known, below = self.upper.get(i), self.lower.get(i)
        order = -1 if known is None else _order(bound, known)
        if order < 0 or (order == 0 and bound.within < known.within):
            self.upper[i] = bound
            self.false = self.false or (below is not None and _order(bound, below) < 0)

    def both(self, other: _Conjunct) -> _Conjunct:
        """The conjunction of the two, a new object."""
        joined = _Conjunct(dict(self.lower), dict(self.upper), self.rows | other.rows, self.false or other.false)
        for i, value in other.lower.items():
            joined.bound_below(i, value)
        for i, value in other.upper.items():
            joined.bound_above(i, value)
        return joined

    def size(self) -> int:
        return 1 + len(self.lower) + len(self.upper) + len(self.rows)

    def key(self) -> tuple:
        """Equal for conjuncts that say the same in the same words."""
        return frozenset(self.lower.items()), frozenset(self.upper.items()), frozenset(self.rows)


def load_vnnlib(path: str | Path, n_in: int | None = None, n_out: int | None = None) -> Spec:
    """The Spec of a VNN-LIB 1.0 file; where `n_in` and `n_out` are given, they must be the file's.

    Raises:
        SpecError: the file cannot be read, means nothing, or belongs to a network of other sizes.
    """
    prop = read_vnnlib1(path)
    for seen, expected, what in ((prop.n_in, n_in, "inputs"), (prop.n_out, n_out, "outputs")):
        if expected is not None and seen != expected:
            raise SpecError(f"{path} declares {seen} {what} but the network has {expected}: is it the property of another network?")
    return replace(normalize(prop), path=str(path))


def normalize(prop: Property) -> Spec:
    """{(x, y) : all asserts hold} as a union over cases of {x in box} x {(x, y) in a polytope}.

    Raises:
        SpecError: an input has no bound, a term is not linear, or there are more than MAX_DISJUNCTS disjuncts.
    """
    source = prop.source
    common, choices = _Conjunct(), []
    _gather(prop.asserts, False, common, choices, source)
    disjuncts = [] if common.false else _product(_Conjunct(), choices, source)
    groups, empty = _grouped(common, disjuncts, prop)
    _check_size(groups, prop)
    cases = tuple(_case(common, group, prop) for group in groups)
    return Spec(cases, prop.n_in, prop.n_out, source.name, _note(common, cases, empty, prop))


def _gather(parts: Iterable[Formula], negated: bool, common: _Conjunct, choices: list, source: Source) -> None:
    """Adds to `common` what a conjunction states outright, and to `choices` its disjunctions, each a list of `(formula, negated)`.

    With `negated` the conjunction is that of the negated parts.
    """
    for part in parts:
        if type(part) is Compare:
            if negated and part.op == "=":
                choices.append([(Compare(op, *part[1:]), False) for op in ("<", ">")])
            else:
                _add_comparison(part, negated, common, source)
        elif type(part) is Not:
            _gather((part.part,), not negated, common, choices, source)
        elif (type(part) is And) != negated:
            _gather(part.parts, negated, common, choices, source)
        else:
            choices.append([(inner, negated) for inner in part.parts])


def _product(start: _Conjunct, choices: list, source: Source) -> list[_Conjunct]:
    """The disjuncts of `start` and one alternative of every choice, without repetitions and those that contradict themselves."""
    result = [start]
    for choice in choices:
        several = _alternatives(choice, source)
        if len(result) == 1 and result[0].size() == 1:
            result = several
            continue
        joined: dict[tuple, _Conjunct] = {}
        most = MAX_MULTIPLIED if len(result) > 1 and len(several) > 1 else MAX_DISJUNCTS
        written = 0
        for left in result:
            for right in several:
                both = left.both(right)
                written += both.size()
                if not both.false:
                    joined.setdefault(both.key(), both)
                _check_count(len(joined), written, most, source)
        result = list(joined.values())
    return result


def _alternatives(choice: list, source: Source) -> list[_Conjunct]:
    """The disjuncts of a disjunction of `(formula, negated)`."""
    result: list[_Conjunct] = []
    for formula, negated in choice:
        inner, inner_choices = _Conjunct(), []
        _gather((formula,), negated, inner, inner_choices, source)
        result += [] if inner.false else _product(inner, inner_choices, source)
        _check_count(len(result), 0, MAX_DISJUNCTS, source)
    return result


def _check_count(disjuncts: int, written: int, most: int, source: Source) -> None:
    numbers = MAX_NUMBERS if most == MAX_DISJUNCTS else MAX_WRITTEN
    if disjuncts > most or written > numbers:
        limit = f"{most:,} disjuncts or {numbers:,} numbers"
        raise SpecError(f"{source.name} has more than {limit} when its 'and's and 'or's are multiplied out: split it into several.")


def _add_comparison(compare: Compare, negated: bool, conjunct: _Conjunct, source: Source) -> None:
    """Adds a comparison's bound or row; negated, its complement's (never called so for '=')."""
    op, left, right, _ = compare
    if negated:
        op = _NEGATED[op]
    if type(right) is Number and type(left) is Variable and left.letter == "X":
        if op[0] != ">":
            conjunct.bound_above(left.index, _bound(*right, op == "<", -inf))
        if op[0] != "<":
            conjunct.bound_below(left.index, _bound(*right, op == ">", inf))
        return
    coefficients, offset = _difference(left, right, source)
    if not coefficients:
        true = {"<=": offset <= 0, ">=": offset >= 0, "<": offset < 0, ">": offset > 0, "=": offset == 0}
        conjunct.false = conjunct.false or not true[op]
        return
    if op[0] != ">":
        _add_row(coefficients, -offset, compare._replace(op=op), conjunct, source)
    if op[0] != "<":
        _add_row({variable: -c for variable, c in coefficients.items()}, offset, compare._replace(op=op), conjunct, source)


def _difference(left: Term, right: Term, source: Source) -> tuple[dict[Variable, Fraction | int], Fraction | int]:
    """left - right as coefficients, none of them zero, and a constant."""
    coefficients, constant = _linear(left, source)
    minus, minus_constant = _linear(right, source)
    total = dict(coefficients)
    for variable, c in minus.items():
        total[variable] = total.get(variable, 0) - c
    return {variable: c for variable, c in total.items() if c != 0}, constant - minus_constant


def _linear(term: Term, source: Source) -> tuple[dict[Variable, Fraction | int], Fraction | int]:
    """A term as coefficients and a constant, exactly."""
    if type(term) is Variable:
        return {term: 1}, 0
    if type(term) is not Apply:
        return {}, Fraction(term.text)
    parts = [_linear(inner, source) for inner in term.terms]
    if term.op == "-" and len(parts) == 1:
        return _scaled(parts[0], -1)
    if term.op in "+-":
        total, constant = dict(parts[0][0]), parts[0][1]
        sign = 1 if term.op == "+" else -1
        for coefficients, offset in parts[1:]:
            constant = _kept_small(constant + sign * offset, source, term.at)
            for variable, c in coefficients.items():
                total[variable] = _kept_small(total.get(variable, 0) + sign * c, source, term.at)
        return total, constant
    result = parts[0]
    for part in parts[1:]:
        result = _times(result, part, source, term.at) if term.op == "*" else _divided(result, part, source, term.at)
        for c in (*result[0].values(), result[1]):
            _kept_small(c, source, term.at)
    return result


def _kept_small(value: Fraction | int, source: Source, at: int) -> Fraction | int:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise source.error(at, f"the constants of this term multiply to a fraction of more than {MAX_BITS:,} bits: write it with fewer digits.")
    return value


def _scaled(form: tuple, factor: Fraction | int) -> tuple:
    return {variable: c * factor for variable, c in form[0].items()}, form[1] * factor


def _times(left: tuple, right: tuple, source: Source, at: int) -> tuple:
    if left[0] and right[0]:
        seen = " * ".join(f"{v.letter}_{v.index}" for v in (next(iter(left[0])), next(iter(right[0]))))
        raise source.error(at, f"the term {seen} is not linear: only products with constants are supported.")
    return _scaled(left, right[1]) if left[0] else _scaled(right, left[1])


def _divided(left: tuple, right: tuple, source: Source, at: int) -> tuple:
    if right[0]:
        variable = next(iter(right[0]))
        raise source.error(at, f"the division by {variable.letter}_{variable.index} is not linear: divide by constants only.")
    if right[1] == 0:
        raise source.error(at, "this term divides by zero: correct the constant.")
    return _scaled(left, Fraction(1) / right[1])


def _add_row(coefficients: dict, offset: Fraction | int, compare: Compare, conjunct: _Conjunct, source: Source) -> None:
    """Adds sum coefficients * variables <= offset, as a bound of one input or as a row; strict where the comparison is."""
    at, strict = compare.at, compare.op in ("<", ">")
    if len(coefficients) == 1:
        (variable, c), = coefficients.items()
        if variable.letter == "X":
            exact = Fraction(offset) / c
            bound = _bound(_rounded(exact, at, source), exact, strict, -inf if c > 0 else inf)
            if c > 0:
                conjunct.bound_above(variable.index, bound)
            else:
                conjunct.bound_below(variable.index, bound)
            return
    row = tuple(sorted((variable, _rounded(c, at, source)) for variable, c in coefficients.items()))
    if not all(c for _, c in row):
        raise source.error(at, "a coefficient is too small for a 64-bit float: scale the comparison.")
    conjunct.rows[_Row(row, _rounded(offset, at, source), strict)] = None


def _rounded(value: Fraction | int, at: int, source: Source) -> float:
    try:
        return float(value)
    except OverflowError:
        raise source.error(at, "a constant of this comparison is too large for a 64-bit float: scale the comparison.") from None


@dataclass(slots=True)
class _Group:
    """Disjuncts of one box: the bounds that are tighter than the common ones, and the rows of each."""

    lower: dict[int, _Bound]
    upper: dict[int, _Bound]
    members: list[list[_Row]] = field(default_factory=list)


def _grouped(common: _Conjunct, disjuncts: list[_Conjunct], prop: Property) -> tuple[list[_Group], str]:
    """The rows of the disjuncts that are not empty, grouped by their box, and in words why the first empty one is."""
    groups: dict[tuple, _Group] = {}
    empty = ""
    for disjunct in disjuncts:
        tight = _Conjunct(
            {i: bound for i, bound in disjunct.lower.items() if i not in common.lower or _tighter(bound, common.lower[i], 1)},
            {i: bound for i, bound in disjunct.upper.items() if i not in common.upper or _tighter(bound, common.upper[i], -1)},
        )
        _round_integers(tight, common, prop)
        crossed = _crossed(tight, common)
        if crossed is not None:
            empty = empty or crossed
            continue
        _check_bounded(tight.lower, tight.upper, common, prop)
        key = tuple(tuple(sorted((i, *bound[:2]) for i, bound in side.items())) for side in (tight.lower, tight.upper))
        groups.setdefault(key, _Group(tight.lower, tight.upper)).members.append(list(disjunct.rows))
    return list(groups.values()), empty


def _tighter(bound: _Bound, known: _Bound, sign: int) -> bool:
    order = sign * _order(bound, known)
    return order > 0 or (order == 0 and sign * bound.within > sign * known.within)


def _crossed(tight: _Conjunct, common: _Conjunct) -> str | None:
    """In words, the first input that has no value; None where each has one."""
    for i in (*tight.lower, *tight.upper):
        low, high = tight.lower.get(i, common.lower.get(i)), tight.upper.get(i, common.upper.get(i))
        if low is not None and high is not None and _order(low, high) > 0:
            return f"X_{i} has lower bound {low.value:.17g} above upper bound {high.value:.17g}"
    return None


def _round_integers(tight: _Conjunct, common: _Conjunct, prop: Property) -> None:
    """Shrinks each Int input to the integers in its interval, of which there must be at most one: engines know real inputs only."""
    for i in (variable.index for variable in prop.integers if variable.letter == "X"):
        low, high = tight.lower.get(i, common.lower.get(i)), tight.upper.get(i, common.upper.get(i))
        if low is None or high is None:
            continue
        least, largest = ceil(Fraction(low.exact)), floor(Fraction(high.exact))
        if largest > least:
            seen = f"X_{i} as Int with several values, {low.value:g} to {high.value:g}"
            raise SpecError(f"{prop.source.name} declares {seen}: declare it Real, or fix its value.")
        tight.lower[i] = _bound(float(least), Fraction(least), False, inf)
        tight.upper[i] = _bound(float(largest), Fraction(largest), False, -inf)


def _check_bounded(lower: dict[int, float], upper: dict[int, float], common: _Conjunct, prop: Property) -> None:
    if len(common.lower) == len(common.upper) == prop.n_in:
        return
    for i in range(prop.n_in):
        for side, bounded in (("lower", i in lower or i in common.lower), ("upper", i in upper or i in common.upper)):
            if not bounded:
                example = f"(assert ({'>=' if side == 'lower' else '<='} X_{i} 0.0))"
                raise SpecError(f"{prop.source.name} gives X_{i} no {side} bound: every input needs both; add for example {example}.")


def _check_size(groups: list[_Group], prop: Property) -> None:
    numbers = sum(4 * prop.n_in + sum(len(rows) + 1 for rows in group.members) * prop.n_out for group in groups)
    if numbers > MAX_NUMBERS:
        raise SpecError(f"{prop.source.name} needs {numbers:,} numbers for its {len(groups):,} boxes: split it into several properties.")


def _case(common: _Conjunct, group: _Group, prop: Property) -> Case:
    ends = []
    for shared, tight in ((common.lower, group.lower), (common.upper, group.upper)):
        bounds = shared | tight if tight else shared
        ends.append(np.array([bounds[i][:2] for i in range(prop.n_in)]).T)
    (lower, above), (upper, below) = ends
    fixed = {}
    for i in np.flatnonzero(lower == upper).tolist():
        low, high = group.lower.get(i) or common.lower[i], group.upper.get(i) or common.upper[i]
        if _order(low, high) == 0:
            fixed[i] = low.exact
    return Case(lower, upper, tuple(_polytope([*common.rows, *rows], prop) for rows in group.members), None, (above, below), fixed, prop.asserts)


def _polytope(rows: list[_Row], prop: Property) -> Polytope:
    """The rows as matrices; no rows at all is the row 0 <= 0, which every output satisfies."""
    count = max(len(rows), 1)
    output, offset, strict = np.zeros((count, prop.n_out)), np.zeros(count), np.zeros(count, dtype=bool)
    mentions_input = any(variable.letter == "X" for row in rows for variable, _ in row.coefficients)
    inputs = np.zeros((count, prop.n_in)) if mentions_input else None
    for r, row in enumerate(rows):
        offset[r], strict[r] = row.offset, row.strict
        for variable, c in row.coefficients:
            if variable.letter == "Y":
                output[r, variable.index] = c
            elif inputs is not None:
                inputs[r, variable.index] = c
    return Polytope(output, offset, inputs, strict if strict.any() else None)


def _note(common: _Conjunct, cases: tuple[Case, ...], empty: str, prop: Property) -> str:
    """What a reader of the verdict should know: why there is no case, and which sorts were read as Real."""
    if common.false:
        empty = _crossed(_Conjunct(common.lower), common) or ""
    outputs = [variable for variable in prop.integers if variable.letter == "Y"]
    integers = f"Y_{outputs[0].index} is declared Int and read as Real." if outputs else ""
    if cases:
        return integers
    return f"The unsafe set is empty: {empty or 'the assertions contradict each other'}."
