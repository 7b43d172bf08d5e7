"""Whether the asserts of a VNN-LIB text hold at a point: over the rationals, as they are written."""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction

from verifier.spec.vnnlib1 import And, Apply, Compare, Formula, Not, Number, Term, Variable


def holds(asserts: Iterable[Formula], x: Sequence[Fraction], y: Sequence[Fraction], alone: Sequence[Fraction] | None = None) -> bool:
    """Whether all formulas are true at x and y.

    Args:
        alone: what the inputs are in comparisons that mention no output; x, where it is not given.
    """
    values = {"X": x, "Y": y}, {"X": x if alone is None else alone, "Y": y}
    return all(_truth(formula, values) for formula in asserts)


def _truth(formula: Formula, values: tuple[dict, dict]) -> bool:
    if type(formula) is Compare:
        mixed = _mentions_output(formula.left) or _mentions_output(formula.right)
        left, right = (_value(term, values[0 if mixed else 1]) for term in (formula.left, formula.right))
        return {"<=": left <= right, ">=": left >= right, "<": left < right, ">": left > right, "=": left == right}[formula.op]
    if type(formula) is Not:
        return not _truth(formula.part, values)
    parts = (_truth(part, values) for part in formula.parts)
    return all(parts) if type(formula) is And else any(parts)


def _mentions_output(term: Term) -> bool:
    if type(term) is Apply:
        return any(_mentions_output(inner) for inner in term.terms)
    return type(term) is Variable and term.letter == "Y"


def _value(term: Term, values: dict[str, Sequence[Fraction]]) -> Fraction:
    if type(term) is Variable:
        return values[term.letter][term.index]
    if type(term) is Number:
        return Fraction(term.text)
    first, *others = (_value(inner, values) for inner in term.terms)
    if term.op == "-" and not others:
        return -first
    for other in others:
        if term.op == "+":
            first += other
        elif term.op == "-":
            first -= other
        else:
            first = first * other if term.op == "*" else first / other
    return first
