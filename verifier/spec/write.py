"""Spec -> VNN-LIB 1.0 text, such that `load_vnnlib` reads the same Spec back."""
from __future__ import annotations

import numpy as np

from verifier.errors import SpecError
from verifier.spec.spec import Case, Polytope, Spec


def to_vnnlib(spec: Spec) -> str:
    """The property as VNN-LIB 1.0 text; every number is printed so that it is read back exactly.

    Raises:
        SpecError: a case has an l2 or l1 ball, which the format cannot state.
    """
    if any(case.ball is not None for case in spec.cases):
        raise SpecError("VNN-LIB 1.0 states linear constraints only, and this property has an l2 or l1 ball: use the linf norm.")
    lines = [f"(declare-const {letter}_{i} Real)" for letter, n in (("X", spec.n_in), ("Y", spec.n_out)) for i in range(n)]
    if not spec.cases:
        lines += [f"(assert (>= X_{i} 1.0))\n(assert (<= X_{i} 0.0))" for i in range(spec.n_in)]
    elif len(spec.cases) == 1:
        case = spec.cases[0]
        lines += [f"(assert {bound})" for bound in _bounds(case)]
        lines += ["(assert (or", *(f"  (and {_rows(polytope)})" for polytope in case.polytopes), "))"]
    else:
        lines.append("(assert (or")
        for case in spec.cases:
            box = " ".join(_bounds(case))
            lines += [f"  (and {box} {_rows(polytope)})" for polytope in case.polytopes]
        lines.append("))")
    return "\n".join(lines) + "\n"


def _bounds(case: Case) -> list[str]:
    """A bound is strict where it leaves its own number out: as it was written, or as its decimals were rounded."""
    least, largest = (case.lower, case.upper) if case.within is None else case.within
    bounds = enumerate(zip(case.lower, case.upper, least > case.lower, largest < case.upper, strict=True))
    return [
        text
        for i, (low, high, above, below) in bounds
        for text in (f"({'>' if above and not _is_fixed(case, i) else '>='} X_{i} {_number(low)})",
                     f"({'<' if below and not _is_fixed(case, i) else '<='} X_{i} {_number(high)})")
    ]


def _is_fixed(case: Case, i: int) -> bool:
    """Whether the input is fixed: to the nearest float64, as it is written."""
    return case.fixed is not None and i in case.fixed


def _rows(polytope: Polytope) -> str:
    count = len(polytope.offset)
    inputs = polytope.input if polytope.input is not None else np.zeros((count, 0))
    strict = np.zeros(count, dtype=bool) if polytope.strict is None else polytope.strict
    return " ".join(_row(polytope.output[r], inputs[r], polytope.offset[r], "<" if strict[r] else "<=") for r in range(count))


def _row(output: np.ndarray, inputs: np.ndarray, offset: float, op: str) -> str:
    """<output, y> + <inputs, x> <= offset, or <."""
    terms = [(f"Y_{j}", output[j]) for j in np.flatnonzero(output)] + [(f"X_{i}", inputs[i]) for i in np.flatnonzero(inputs)]
    signs = [c for _, c in terms]
    if signs in ([1.0], [-1.0]):
        return f"({op} {terms[0][0]} {_number(offset)})" if signs == [1.0] else f"({op.replace('<', '>')} {terms[0][0]} {_number(-offset)})"
    if offset == 0 and sorted(signs) == [-1.0, 1.0]:
        (left, sign), (right, _) = terms
        return f"({op} {left} {right})" if sign > 0 else f"({op} {right} {left})"
    total = " ".join(f"(* {_number(c)} {name})" for name, c in terms) or "(* 0.0 Y_0)"
    return f"({op} (+ {total}) {_number(offset)})"


def _number(value: float) -> str:
    return repr(float(value))
