"""Property -> Spec: the disjunctive normal form of the asserted formulas, as cases of an input box times polytopes.

The top-level conjunction is split in two: comparisons that always hold (the global box and rows, dense) and the disjunctions, whose product
is formed over sparse conjuncts that hold only what differs from the global part. Disjuncts with the same box become polytopes of one case,
so a global box with one `or` of `and`s, and an `or` of many boxes, both cost time in proportion to the text. Contradictory disjuncts are
dropped as soon as they arise.

Strict comparisons of variables are read as non-strict: the unsafe set becomes its closure, which contains it. Linear terms are evaluated
exactly, over the rationals, and rounded once.
"""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from math import ceil, floor, inf, isinf, prod
from pathlib import Path
from typing import NamedTuple

import numpy as np

from verifier.errors import SpecError
from verifier.spec.spec import Case, Polytope, Spec
from verifier.spec.vnnlib1 import And, Apply, Compare, Formula, Not, Property, Source, Term, Variable, read_vnnlib1

MAX_DISJUNCTS = 1_000_000
MAX_NUMBERS = 200_000_000
MAX_TRIES_PER_DISJUNCT = 10
_NEGATED = {"<=": ">", ">=": "<", "<": ">=", ">": "<="}


class _Row(NamedTuple):
    """sum of coefficients * variables <= offset; at least one variable is an output, or two are inputs."""

    coefficients: dict[Variable, float]
    offset: float


@dataclass(slots=True)
class _Conjunct:
    """Bounds of single inputs and rows that all hold. A work area of one call, filled by `add` and never shared once filled."""

    lower: dict[int, float] = field(default_factory=dict)
    upper: dict[int, float] = field(default_factory=dict)
    rows: list[_Row] = field(default_factory=list)
    false: bool = False

    def bound_below(self, i: int, value: float) -> None:
        if value > self.lower.get(i, -inf):
            self.lower[i] = value
            self.false = self.false or value > self.upper.get(i, inf)

    def bound_above(self, i: int, value: float) -> None:
        if value < self.upper.get(i, inf):
            self.upper[i] = value
            self.false = self.false or value < self.lower.get(i, -inf)

    def both(self, other: _Conjunct) -> _Conjunct:
        """The conjunction of the two, a new object."""
        joined = _Conjunct(dict(self.lower), dict(self.upper), self.rows + other.rows, self.false or other.false)
        for i, value in other.lower.items():
            joined.bound_below(i, value)
        for i, value in other.upper.items():
            joined.bound_above(i, value)
        return joined

    def size(self) -> int:
        return 1 + len(self.lower) + len(self.upper) + len(self.rows)


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
    cases = tuple(_case(common, box, members, prop) for box, members in groups.items())
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
    """The disjuncts of `start` and one alternative of every choice, without those that contradict themselves."""
    alternatives = [_alternatives(choice, source) for choice in choices]
    # Alternatives without bounds contradict nothing, so all their combinations stay: an absurd file is refused before the work.
    _check_count(prod(sum(not (a.lower or a.upper) for a in several) for several in alternatives), 0, source)
    result = [start]
    for several in alternatives:
        _check_count(len(result) * len(several) // MAX_TRIES_PER_DISJUNCT, 0, source)
        joined: list[_Conjunct] = []
        numbers = 0
        for left in result:
            for right in several:
                both = left.both(right)
                if not both.false:
                    joined.append(both)
                    numbers += both.size()
            _check_count(len(joined), numbers, source)
        result = joined
    return result


def _alternatives(choice: list, source: Source) -> list[_Conjunct]:
    """The disjuncts of a disjunction of `(formula, negated)`."""
    result: list[_Conjunct] = []
    for formula, negated in choice:
        inner, inner_choices = _Conjunct(), []
        _gather((formula,), negated, inner, inner_choices, source)
        result += [] if inner.false else _product(inner, inner_choices, source)
        _check_count(len(result), 0, source)
    return result


def _check_count(disjuncts: int, numbers: int, source: Source) -> None:
    if disjuncts > MAX_DISJUNCTS or numbers > MAX_NUMBERS:
        limit = f"{MAX_DISJUNCTS:,} disjuncts or {MAX_NUMBERS:,} numbers"
        raise SpecError(f"{source.name} has more than {limit} when its 'and's and 'or's are multiplied out: split it into several.")


def _add_comparison(compare: Compare, negated: bool, conjunct: _Conjunct, source: Source) -> None:
    """Adds a comparison's bound or row; negated, its complement's (never called so for '=')."""
    op, left, right, at = compare
    if negated:
        op = _NEGATED[op]
    if type(right) is float and type(left) is Variable and left.letter == "X":
        if op[0] != ">":
            conjunct.bound_above(left.index, right)
        if op[0] != "<":
            conjunct.bound_below(left.index, right)
        return
    coefficients, offset = _difference(left, right, source)
    if not coefficients:
        true = {"<=": offset <= 0, ">=": offset >= 0, "<": offset < 0, ">": offset > 0, "=": offset == 0}
        conjunct.false = conjunct.false or not true[op]
        return
    if op[0] != ">":
        _add_row(coefficients, -offset, at, conjunct, source)
    if op[0] != "<":
        _add_row({variable: -c for variable, c in coefficients.items()}, offset, at, conjunct, source)


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
        return {}, Fraction(term)
    parts = [_linear(inner, source) for inner in term.terms]
    if term.op == "-" and len(parts) == 1:
        return _scaled(parts[0], -1)
    if term.op in "+-":
        total, constant = dict(parts[0][0]), parts[0][1]
        sign = 1 if term.op == "+" else -1
        for coefficients, offset in parts[1:]:
            constant += sign * offset
            for variable, c in coefficients.items():
                total[variable] = total.get(variable, 0) + sign * c
        return total, constant
    result = parts[0]
    for part in parts[1:]:
        result = _times(result, part, source, term.at) if term.op == "*" else _divided(result, part, source, term.at)
    return result


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


def _add_row(coefficients: dict, offset: Fraction | int, at: int, conjunct: _Conjunct, source: Source) -> None:
    """Adds sum coefficients * variables <= offset, as a bound of one input or as a row."""
    if len(coefficients) == 1:
        (variable, c), = coefficients.items()
        if variable.letter == "X":
            bound = _rounded(Fraction(offset) / c, at, source)
            if c > 0:
                conjunct.bound_above(variable.index, bound)
            else:
                conjunct.bound_below(variable.index, bound)
            return
    row = {variable: _rounded(c, at, source) for variable, c in coefficients.items()}
    if not all(row.values()):
        raise source.error(at, "a coefficient is too small for a 64-bit float: scale the comparison.")
    conjunct.rows.append(_Row(row, _rounded(offset, at, source)))


def _rounded(value: Fraction | int, at: int, source: Source) -> float:
    try:
        return float(value)
    except OverflowError:
        raise source.error(at, "a constant of this comparison is too large for a 64-bit float: scale the comparison.") from None


def _grouped(common: _Conjunct, disjuncts: list[_Conjunct], prop: Property) -> tuple[dict, str]:
    """The rows of the disjuncts that are not empty, grouped by their box, and in words why the first empty one is.

    The key of a group is the bounds that are tighter than the common ones: `((i, lower), ...), ((i, upper), ...)`.
    """
    groups: dict[tuple, list[list[_Row]]] = {}
    empty = ""
    for disjunct in disjuncts:
        lower = {i: value for i, value in disjunct.lower.items() if value > common.lower.get(i, -inf)}
        upper = {i: value for i, value in disjunct.upper.items() if value < common.upper.get(i, inf)}
        _round_integers(lower, upper, common, prop)
        crossed = next((i for i in (*lower, *upper) if _at(lower, common.lower, i, -inf) > _at(upper, common.upper, i, inf)), None)
        if crossed is not None:
            low, high = _at(lower, common.lower, crossed, -inf), _at(upper, common.upper, crossed, inf)
            empty = empty or f"X_{crossed} has lower bound {low:.17g} above upper bound {high:.17g}"
            continue
        _check_bounded(lower, upper, common, prop)
        groups.setdefault((tuple(sorted(lower.items())), tuple(sorted(upper.items()))), []).append(disjunct.rows)
    return groups, empty


def _at(tight: dict[int, float], common: dict[int, float], i: int, default: float) -> float:
    return tight[i] if i in tight else common.get(i, default)


def _round_integers(lower: dict[int, float], upper: dict[int, float], common: _Conjunct, prop: Property) -> None:
    """Shrinks each Int input to the integers in its interval, of which there must be at most one: engines know real inputs only."""
    for i in (variable.index for variable in prop.integers if variable.letter == "X"):
        low, high = _at(lower, common.lower, i, -inf), _at(upper, common.upper, i, inf)
        if isinf(low) or isinf(high):
            continue
        if floor(high) > ceil(low):
            seen = f"X_{i} as Int with several values, {low:g} to {high:g}"
            raise SpecError(f"{prop.source.name} declares {seen}: declare it Real, or fix its value.")
        lower[i], upper[i] = float(ceil(low)), float(floor(high))


def _check_bounded(lower: dict[int, float], upper: dict[int, float], common: _Conjunct, prop: Property) -> None:
    if len(common.lower) == len(common.upper) == prop.n_in:
        return
    for i in range(prop.n_in):
        for side, bounded in (("lower", i in lower or i in common.lower), ("upper", i in upper or i in common.upper)):
            if not bounded:
                example = f"(assert ({'>=' if side == 'lower' else '<='} X_{i} 0.0))"
                raise SpecError(f"{prop.source.name} gives X_{i} no {side} bound: every input needs both; add for example {example}.")


def _check_size(groups: dict, prop: Property) -> None:
    numbers = sum(2 * prop.n_in + sum(len(rows) + 1 for rows in members) * prop.n_out for members in groups.values())
    if numbers > MAX_NUMBERS:
        raise SpecError(f"{prop.source.name} needs {numbers:,} numbers for its {len(groups):,} boxes: split it into several properties.")


def _case(common: _Conjunct, box: tuple, members: list[list[_Row]], prop: Property) -> Case:
    lower, upper = np.empty(prop.n_in), np.empty(prop.n_in)
    for bound, shared, tight in ((lower, common.lower, box[0]), (upper, common.upper, box[1])):
        for part in (shared.items(), tight):
            for i, value in part:
                bound[i] = value
    return Case(lower, upper, tuple(_polytope(common.rows + rows, prop) for rows in members))


def _polytope(rows: list[_Row], prop: Property) -> Polytope:
    """The rows as matrices; no rows at all is the row 0 <= 0, which every output satisfies."""
    count = max(len(rows), 1)
    output, offset = np.zeros((count, prop.n_out)), np.zeros(count)
    mentions_input = any(variable.letter == "X" for row in rows for variable in row.coefficients)
    inputs = np.zeros((count, prop.n_in)) if mentions_input else None
    for r, row in enumerate(rows):
        offset[r] = row.offset
        for variable, c in row.coefficients.items():
            if variable.letter == "Y":
                output[r, variable.index] = c
            elif inputs is not None:
                inputs[r, variable.index] = c
    return Polytope(output, offset, inputs)


def _note(common: _Conjunct, cases: tuple[Case, ...], empty: str, prop: Property) -> str:
    """What a reader of the verdict should know: why there is no case, and which sorts were read as Real."""
    if common.false:
        i = next((i for i in common.lower if common.lower[i] > common.upper.get(i, inf)), None)
        empty = "" if i is None else f"X_{i} has lower bound {common.lower[i]:.17g} above upper bound {common.upper[i]:.17g}"
    outputs = [variable for variable in prop.integers if variable.letter == "Y"]
    integers = f"Y_{outputs[0].index} is declared Int and read as Real." if outputs else ""
    if cases:
        return integers
    return f"The unsafe set is empty: {empty or 'the assertions contradict each other'}."
