"""Properties as VNN-LIB text in many spellings, and their truth at a point, in rationals. Nothing here imports the verifier."""
from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from tests.soundness.handmade import decimal


@dataclass(frozen=True)
class Row:
    """coefficients @ (y, x) <= offset, or < offset; `text` is the offset as it is written, its value in full where empty."""

    coefficients: tuple[Fraction, ...]
    offset: Fraction
    strict: bool = False
    text: str = ""


@dataclass(frozen=True)
class Box:
    """Sides as they are written, decimals."""

    lower: tuple[str, ...]
    upper: tuple[str, ...]

    def sides(self) -> tuple[list[Fraction], list[Fraction]]:
        return [Fraction(v) for v in self.lower], [Fraction(v) for v in self.upper]


Disjunct = tuple[Box, tuple[tuple[Row, ...], ...]]
"""Unsafe: an input of the box whose outputs satisfy all rows of one of the polytopes."""


def text(disjuncts: Sequence[Disjunct], n_out: int, random: np.random.Generator) -> str:
    """The property, nested and spelled at random."""
    n_in = len(disjuncts[0][0].lower)
    lines = [f"(declare-const {letter}_{i} Real)" for letter, n in (("X", n_in), ("Y", n_out)) for i in range(n)]
    if len(disjuncts) == 1:
        box, polytopes = disjuncts[0]
        lines += [f"(assert {side})" for side in _sides(box, random)]
        lines.append(f"(assert {_or([_and([_row(r, n_out, random) for r in p], random) for p in polytopes], random)})")
    else:
        parts = [_and([*_sides(box, random), _or([_and([_row(r, n_out, random) for r in p], random) for p in polytopes], random)], random)
                 for box, polytopes in disjuncts]
        lines.append(f"(assert {_or(parts, random)})")
    return "\n".join(lines) + "\n"


def _sides(box: Box, random: np.random.Generator) -> list[str]:
    found = []
    for i, (low, high) in enumerate(zip(box.lower, box.upper)):
        if low == high and random.random() < 0.3:
            found.append(f"(= X_{i} {low})")
        else:
            found += [_spelled(f"X_{i}", "<=", high, random), _spelled(low, "<=", f"X_{i}", random)]
    return found


OPPOSITE = {"<=": ">", "<": ">=", ">=": "<", ">": "<="}
MIRRORED = {"<=": ">=", "<": ">"}


def _spelled(left: str, op: str, right: str, random: np.random.Generator) -> str:
    """left op right, as it is, mirrored, or as the negation of its opposite."""
    if random.random() < 0.5:
        left, op, right = right, MIRRORED[op], left
    if random.random() < 0.15:
        return f"(not ({OPPOSITE[op]} {left} {right}))"
    return f"({op} {left} {right})"


def _row(row: Row, n_out: int, random: np.random.Generator) -> str:
    names = [f"Y_{j}" for j in range(n_out)] + [f"X_{i}" for i in range(len(row.coefficients) - n_out)]
    terms = [(c, name) for c, name in zip(row.coefficients, names) if c != 0]
    moved = random.random() < 0.3 and len(terms) > 1
    left, right = (terms[:-1], terms[-1:]) if moved else (terms, [])
    offset = row.text or decimal(row.offset)
    rest = [_term(-c, name) for c, name in right]
    if rest and row.offset == 0:
        return _spelled(_sum([_term(*t) for t in left]), "<" if row.strict else "<=", _sum(rest), random)
    return _spelled(_sum([_term(*t) for t in left]), "<" if row.strict else "<=", _sum([*rest, offset]), random)


def _term(c: Fraction, name: str) -> str:
    return name if c == 1 else f"(- {name})" if c == -1 else f"(* {decimal(c)} {name})"


def _sum(terms: list[str]) -> str:
    return terms[0] if len(terms) == 1 else f"(+ {' '.join(terms)})"


def _and(parts: list[str], random: np.random.Generator) -> str:
    """Nested: a part of the conjuncts in a conjunction of their own, or by De Morgan."""
    if len(parts) == 1:
        return parts[0] if random.random() < 0.7 else f"(and {parts[0]})"
    if random.random() < 0.1:
        return f"(not (or {' '.join(f'(not {p})' for p in parts)}))"
    if len(parts) > 2 and random.random() < 0.3:
        cut = int(random.integers(1, len(parts) - 1))
        parts = [*parts[:cut], f"(and {' '.join(parts[cut:])})"]
    return f"(and {' '.join(parts)})"


def _or(parts: list[str], random: np.random.Generator) -> str:
    if len(parts) == 1:
        return parts[0] if random.random() < 0.7 else f"(or {parts[0]})"
    if random.random() < 0.2:
        return f"(not (and {' '.join(f'(not {p})' for p in parts)}))"
    return f"(or {' '.join(parts)})"


_WORD = re.compile(r"[()]|[^\s()]+")


def satisfied(source: str, x: Sequence[Fraction], y: Sequence[Fraction], fixed: dict[str, Fraction]) -> bool:
    """Whether all asserts hold, exactly. `fixed`: values that asserts about a single input read for inputs that have only one."""
    stack: list[list] = [[]]
    for word in _WORD.findall(source):
        if word == "(":
            stack.append([])
        elif word == ")":
            done = stack.pop()
            stack[-1].append(done)
        else:
            stack[-1].append(word)
    values = {f"X_{i}": v for i, v in enumerate(x)} | {f"Y_{j}": v for j, v in enumerate(y)}
    return all(_holds(statement[1], values, fixed) for statement in stack[0] if statement[0] == "assert")


def _holds(formula: list, values: dict[str, Fraction], fixed: dict[str, Fraction]) -> bool:
    op, *rest = formula
    if op == "not":
        return not _holds(rest[0], values, fixed)
    if op in ("and", "or"):
        return (all if op == "and" else any)(_holds(part, values, fixed) for part in rest)
    names = [w for w in rest if isinstance(w, str) and w in values]
    own = values | {n: fixed[n] for n in names if n in fixed} if all(isinstance(w, str) for w in rest) and len(names) == 1 else values
    left, right = (_value(term, own) for term in rest)
    return {"<=": left <= right, ">=": left >= right, "<": left < right, ">": left > right, "=": left == right}[op]


def _value(term: str | list, values: dict[str, Fraction]) -> Fraction:
    if isinstance(term, str):
        return values[term] if term in values else Fraction(term)
    op, *rest = (term[0], *(_value(part, values) for part in term[1:]))
    if op == "+":
        return sum(rest, Fraction(0))
    if op == "*":
        return rest[0] * rest[1]
    return -rest[0] if len(rest) == 1 else rest[0] - sum(rest[1:])
