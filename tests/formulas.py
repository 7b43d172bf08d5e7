"""VNN-LIB text and specifications evaluated the slow way: by the definition, over the rationals. Imports no reader."""
from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from itertools import pairwise

import numpy as np

from verifier.spec.spec import Polytope, Spec


def holds(text: str, values: Mapping[str, Fraction]) -> bool:
    """Whether all assertions of a VNN-LIB 1.0 text are true, strictness included, where X_i and Y_j have these values."""
    tokens = re.findall(r"[()]|[^\s()]+", re.sub(r";[^\n]*", "", text))
    statements = []
    while tokens:
        statements.append(_expression(tokens))
    return all(_truth(s[1], values) for s in statements if s[0] == "assert")


def _expression(tokens: list[str]) -> str | list:
    token = tokens.pop(0)
    if token != "(":
        return token
    items = []
    while tokens[0] != ")":
        items.append(_expression(tokens))
    tokens.pop(0)
    return items


def _truth(formula: str | list, values: Mapping[str, Fraction]) -> bool:
    if isinstance(formula, str):
        return formula == "true"
    head, *rest = formula
    if head == "and":
        return all(_truth(part, values) for part in rest)
    if head == "or":
        return any(_truth(part, values) for part in rest)
    if head == "not":
        return not _truth(rest[0], values)
    if head == "=>":
        return not _truth(rest[0], values) or _truth(rest[1], values)
    numbers = [_value(term, values) for term in rest]
    compare = {"<=": Fraction.__le__, ">=": Fraction.__ge__, "<": Fraction.__lt__, ">": Fraction.__gt__, "=": Fraction.__eq__}[head]
    return all(compare(a, b) for a, b in pairwise(numbers))


def _value(term: str | list, values: Mapping[str, Fraction]) -> Fraction:
    if isinstance(term, str):
        return values[term] if term in values else Fraction(term)
    head, *rest = term
    first, *others = [_value(part, values) for part in rest]
    if head == "-" and not others:
        return -first
    for other in others:
        first = {"+": first + other, "-": first - other, "*": first * other}.get(head) if head != "/" else first / other
    return first


def unsafe(spec: Spec, x: list[Fraction], y: list[Fraction]) -> bool:
    """Whether some case's box (and ball, squared or summed exactly) holds x and one of its polytopes holds (x, y)."""
    return any(
        all(Fraction(float(low)) <= v <= Fraction(float(high)) for low, v, high in zip(case.lower, x, case.upper, strict=True))
        and (case.ball is None or _in_ball(case.ball, x))
        and any(_inside(polytope, x, y) for polytope in case.polytopes)
        for case in spec.cases
    )


def _in_ball(ball, x: list[Fraction]) -> bool:
    away = [abs(v - Fraction(float(c))) for v, c in zip(x, ball.center, strict=True)]
    return sum(d**ball.norm for d in away) <= Fraction(float(ball.radius)) ** ball.norm


def _inside(polytope: Polytope, x: list[Fraction], y: list[Fraction]) -> bool:
    inputs = polytope.input if polytope.input is not None else np.zeros((len(polytope.offset), len(x)))
    rows = zip(polytope.output, inputs, polytope.offset, strict=True)
    return all(_dot(of_y, y) + _dot(of_x, x) <= Fraction(float(bound)) for of_y, of_x, bound in rows)


def _dot(row: np.ndarray, values: list[Fraction]) -> Fraction:
    return sum((Fraction(float(c)) * v for c, v in zip(row, values, strict=True)), Fraction(0))


def declared(n_in: int, n_out: int, *assertions: str) -> str:
    """A text that declares the variables and asserts each formula."""
    names = [f"X_{i}" for i in range(n_in)] + [f"Y_{j}" for j in range(n_out)]
    return "\n".join([*(f"(declare-const {name} Real)" for name in names), *(f"(assert {text})" for text in assertions)]) + "\n"


def box(n_in: int, low: float = -2, high: float = 2) -> list[str]:
    return [text for i in range(n_in) for text in (f"(>= X_{i} {low})", f"(<= X_{i} {high})")]
