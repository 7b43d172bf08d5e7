"""The checker with one line of its rules or of its error accounting changed, and where the battery must see it.

A row replaces a piece of a function's source, which must be there exactly once: whoever rewrites the line rewrites its row.
"""
from __future__ import annotations

import inspect
import textwrap
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import pytest


@dataclass(frozen=True)
class Line:
    """In `function` (module:name) `old` becomes `new`. `seen`: the pool of `pools` that must turn red."""

    function: str
    old: str
    new: str
    seen: str

    @property
    def name(self) -> str:
        return f"{self.function}: {self.old[:60]} -> {self.new[:50] or 'nothing'}"


def function_of(name: str) -> Any:
    """The function object, which keeps its identity wherever it was imported to."""
    module, path = name.split(":")
    found: Any = import_module(f"verifier.certificate.{module}")
    for part in path.split("."):
        found = vars(found)[part]
    return getattr(found, "func", found)


def change(line: Line, patch: pytest.MonkeyPatch) -> None:
    """Gives the function the changed code."""
    function = function_of(line.function)
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(line.old) == 1, f"{line.function} has {source.count(line.old)} times {line.old!r}: the row is out of date"
    names: dict[str, Any] = dict(function.__globals__)
    lines = source.replace(line.old, line.new).splitlines()
    while lines[0].startswith("@"):
        lines = lines[1:]
    exec(compile("from __future__ import annotations\n" + "\n".join(lines), line.function, "exec"), names)
    patch.setattr(function, "__code__", names[function.__name__].__code__)


R, B, A, C = "reduce:_Builder.", "bound:", "arithmetic:", "case:"
LINES = (
    # The runtime's roundings.
    Line(A + "gamma", "return k * u /", "return 0.5 * k * u /", "absorbed"),
    Line(A + "gamma", "return k * u /", "return 0.9 * k * u /", "absorbed"),
    Line("affine:Affine.terms", "np.minimum(found,", "0.5 * np.minimum(found,", "absorbed"),
    Line("affine:Affine.terms", "(np.asarray(constant) != 0)", "(np.asarray(constant) > 0)", "absorbed"),
    Line(A + "Runtime.room", "gamma(k + EXTRA, self.u)", "gamma(k, self.u)", "absorbed"),
    Line(A + "Runtime.room", "(k + EXTRA) * self.least", "0.0 * self.least", "tiny"),
    Line(A + "Runtime.room", "(k + EXTRA) * self.least", "self.least * 2.0**-30", "tiny"),
    Line(A + "Runtime.room", "relative * terms + absolute", "relative * 0 * terms + absolute", "absorbed"),
    Line(R + "_affine", "most + terms)))", "most + 0 * terms)))", "absorbed"),
    Line(R + "_affine", "self.computed(value, there, value.most)", "value", "absorbed"),
    Line(R + "_affine", "self.computed(value, there, value.most)", "self.computed(value, 1, value.most)", "absorbed"),
    Line(R + "_affine", "error=self.arithmetic.up(error + self.arithmetic.room(k + EXTRA_TERMS, size) + read * most)", "error=0 * error", "absorbed"),
    Line(R + "_affine", "columns[0] += shift", "pass", "twins"),
    Line(R + "_affine", "[np.stack(value[1:]) for value in inputs]", "[np.stack(value[1:]) * np.array([0.0, 1.0, 1.0])"
         ".reshape(-1, *(1,) * value.error.ndim) for value in inputs]", "absorbed"),
    Line(R + "off", "error=self.arithmetic.up(value.error + room)", "error=value.error", "absorbed"),
    Line(R + "combined", "self.arithmetic.up(error + self.arithmetic.room(len(parts) + EXTRA_TERMS, size))", "0 * error", "absorbed"),
    Line(R + "combined", "abs(f) * v[k]", "v[k] * (abs(f) if k > 1 else 0)", "absorbed"),
    Line(R + "combined", "columns[0] += shift", "pass", "mixed"),
    Line("reduce:_leaky", "builder.computed(value, 1, abs(slope) * inputs[0].most)", "value", "one node"),
    Line("reduce:_product", "builder.computed(value, 1, x.most * y.most)", "value", "one node"),
    Line("reduce:_product", "(0.25, plus), (-0.25, minus)", "(0.25, plus), (0.25, minus)", "products"),
    Line("reduce:_max_pool", "(1.0, a), (1.0, builder.activate", "(1.0, a), (0.9, builder.activate", "twins"),
    Line("reduce:_smooth", "builder.off(value, builder.runtime.transcendental)", "value", "smooth"),
    # Bounds of values, and what becomes of neurons.
    Line(R + "bounds", "size) + value.error)", "size) + 0 * value.error)", "opened"),
    Line(R + "bounds", "center - reach[0] - room", "center - 0.9 * reach[0] - room", "mixed"),
    Line(R + "bounds", "center + reach[0] + room", "center + 0.9 * reach[0] + room", "mixed"),
    Line(R + "activate", "error[own] = 0", "error[:] = 0", "mixed"),
    Line(R + "activate", "columns[np.arange(before, before + len(own)), own] = error[own]", "pass", "absorbed"),
    Line(R + "activate", "np.maximum(upper, 0)", "0 * upper", "mixed"),
    Line(R + "activate", "np.where(active, value.error,", "np.where(active, 0 * value.error,", "absorbed"),
    Line(R + "activate", "columns, index, value.error)", "columns, index, 0 * value.error)", "opened"),
    Line(R + "activate", "appended(rows, lower[index]", "appended(rows, 0.9 * lower[index]", "twins"),
    Line(R + "finish", "stated + abs(output) @ value.error", "stated + 0 * abs(output) @ value.error", "absorbed"),
    Line(R + "finish", "rows[:, 0] = rows[:, 0] - offset", "rows[:, 0] = rows[:, 0] - offset * (1 - 1e-6)", "mixed"),
    # The proof rule.
    Line(B + "proved", "- abs(nu) @ problem.noise[:stop]", "", "opened"),
    Line(B + "proved", "- abs(nu) @ problem.noise[:stop]", "+ abs(nu) @ problem.noise[:stop]", "opened"),
    Line(B + "proved", "rows.b + nu @ problem.b[:stop]", "rows.b", "twins"),
    Line(B + "proved", "total - rows.slack - arithmetic.room", "total - arithmetic.room", "absorbed"),
    Line(B + "recipe", "c[..., :start] += times(nu[..., at], W[at, :start])", "c[..., :start] -= times(nu[..., at], W[at, :start])", "steps"),
    Line(B + "recipe", "c[..., :start] += times(nu[..., at], W[at, :start])", "pass", "steps"),
    Line(B + "proved", "zip(problem.blocks, problem.reads)", "zip(problem.blocks[1:], problem.reads[1:])", "twins"),
    Line(B + "proved", "a[..., :reads] += times(nu[..., start:end], problem.A[start:end, :reads])", "pass", "twins"),
    Line(B + "proved", ".any(-1), np.inf", ".any(-1) | (nu < 0).any(-1), np.inf", "twins"),
    Line(B + "minimum", "np.minimum(c * ends[0] - nu * lower, c * ends[1] - nu * upper)", "c * ends[0] - nu * lower", "twins"),
    Line(B + "minimum", "-nu * turn / 2", "nu * turn / 2", "products"),
    Line(B + "_over_box", "return -abs(a).sum(-1)", "return -0.999 * abs(a).sum(-1)", "twins"),
    Line(B + "_over_box", "- (abs(a) @ radius[..., None])[..., 0]", "- 0.999 * (abs(a) @ radius[..., None])[..., 0]", "twins"),
    Line(B + "center_and_radius", "np.maximum(upper - center, center - lower)", "0.999 * np.maximum(upper - center, center - lower)", "twins"),
    Line(B + "eliminate", "constant += column @ problem.b[gone]", "pass", "steps"),
    Line(B + "eliminate", "rest += column @ problem.A[gone]", "pass", "steps"),
    Line(B + "eliminate", "into[:, :start] += column @ problem.W[gone, :start]", "pass", "steps"),
    # Trees, boxes, cases.
    Line("boxes:box_bounds", "reach + problem.noise[at]", "reach + 0 * problem.noise[at]", "opened"),
    Line("boxes:box_bounds", "middle - reach)", "middle - 0.5 * reach)", "mixed"),
    Line("boxes:box_bounds", "sign * bound(", "sign * 0.1 + sign * bound(", "mixed"),
    Line("boxes:BoxProof._bounds", "(boxes.lower > boxes.upper).any(1)", "(boxes.lower > boxes.upper - 0.1).any(1)", "twins"),
    Line("boxes:BoxProof._unproved", "left = np.nonzero((boxes.open & ~(best > 0)).any(1))[0]",
         "left = np.nonzero((boxes.open & ~(best > 0)).any(1))[0][1:]", "twins"),
    Line(C + "Case._narrow", "upper[k] = min(upper[k], -value)", "upper[k] = min(upper[k], -value - 0.3)", "twins"),
    Line(C + "Case._narrow", "lower[k] = max(lower[k], value)", "lower[k] = max(lower[k], value + 0.3)", "twins"),
    Line(C + "Case._tree", "worst[tree] = min(worst[tree], value)", "worst[tree] = abs(value)", "twins"),
    Line(C + "Case._tree", "if not value > 0 and", "if not value > -1e-9 and", "twins"),
    Line("trees:narrowed", "max(low[leaf, coordinate], point)", "max(low[leaf, coordinate], point + 0.1)", "twins"),
    Line("trees:narrowed", "min(high[leaf, coordinate], point)", "min(high[leaf, coordinate], point - 0.1)", "twins"),
)
SURVIVORS = (
    Line(R + "activate", "active = (lower >= 0)", "active = (lower >= -0.5)", "mixed"),
    Line(B + "minimum", "np.where((lower < 0) & (upper > 0), np.minimum(least, 0), least)", "least", "twins"),
    Line(B + "Problem.weighted", "weight @ rows.slack +", "0 * weight @ rows.slack +", "twins"),
    Line(B + "eliminate", "active, inactive = relu & (problem.lower >= 0)", "active, inactive = relu & (problem.lower >= -1)", "steps"),
    Line("boxes:Boxes.halves", "each.lower[at + 1, axis] = np.clip(", "each.lower[at + 1, axis] = 0.5 + np.clip(", "twins"),
    Line(R + "bounds", "center - reach[0] - room", "center - reach[0]", "mixed"),
    Line(B + "eliminate", "error[:] = arithmetic.up(error + own)", "pass", "steps"),
    Line(R + "finish", "* array(2.0**-52)", "* array(0.0)", "traps"),
)
"""What no pool sees yet. Intervals without their room below: a ReLU passes on no more than its argument's error. Noise in `eliminate`: a neuron that
only a lemma shows to be active. Decimals of coefficients: claims of small integers have none. The others want slopes between the ends, weights of
several rows, neurons that a STEP removes at a false sign, and boxes that the checker halves by itself.
"""
