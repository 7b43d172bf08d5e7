"""Affine forms and relaxation planes, and the exact minimum of a form over a box."""
from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from verifier.box import Box


@dataclass(frozen=True, slots=True)
class LinearForm:
    """x -> <coeff, x> + bias, always a lower bound of its row: `coeff: (B, S, *shape)`, `bias: (B, S)`."""

    coeff: Tensor
    bias: Tensor


@dataclass(frozen=True, slots=True)
class Relaxation:
    """lower_slope * x + lower_offset <= f(x) <= upper_slope * x + upper_offset, each `(B, *shape)`, over the box they were made for."""

    lower_slope: Tensor
    lower_offset: Tensor
    upper_slope: Tensor
    upper_offset: Tensor


@dataclass(frozen=True, slots=True)
class BilinearRelaxation:
    """Planes of f(x, y): lower_left * x + lower_right * y + lower_offset <= f(x, y) <= the same with `upper`, each broadcasting to `(B, *shape)`."""

    lower_left: Tensor
    lower_right: Tensor
    lower_offset: Tensor
    upper_left: Tensor
    upper_right: Tensor
    upper_offset: Tensor


@dataclass(frozen=True, slots=True)
class SelectionRelaxation:
    """x[index] <= f(x) <= (x[index] where `exact`, else upper_offset), each `(B, *shape)`; index counts the flattened input of one problem."""

    index: Tensor
    exact: Tensor
    upper_offset: Tensor


def minimum_over_box(form: LinearForm, box: Box) -> Tensor:
    """min over l <= x <= u of <c, x> + b = <c, m> - <|c|, r> + b, with m = (l + u)/2 and r = (u - l)/2.

    Args:
        form: coefficients `(B, S, *shape)` and bias `(B, S)`.
        box: the input region, `(B, *shape)`; sides with l = u are allowed.

    Returns:
        `(B, S)`, one lower bound for each problem and row.

    Sound: exact in real arithmetic.
    """
    coeff = form.coeff.flatten(2)
    center, radius = box.center.flatten(1).unsqueeze(-1), box.radius.flatten(1).unsqueeze(-1)
    return form.bias + (coeff @ center).squeeze(-1) - (coeff.abs() @ radius).squeeze(-1)
