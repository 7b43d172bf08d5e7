"""The figures as inline SVG. Colours are the page's CSS variables, so that one drawing serves light and dark; the same rows give the same bytes."""
from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter
from matplotlib.transforms import blended_transform_factory

from certprune.rows import LayerRow, Row

INK, GRID = "#1c2128", "#d0d7de"
# Okabe and Ito's palette for colour-blind readers, without its yellow, which a white page swallows.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
STATES = {"unstable": "#d55e01", "active": "#0072b1", "inactive": "#b0b8c1"}
VARIABLES = {INK: "--ink", GRID: "--grid", **{c: f"--c{i}" for i, c in enumerate(SERIES)}, **{c: f"--{name}" for name, c in STATES.items()}}
# matplotlib's markers with the characters that show them in the legend.
MARKERS = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "P": "✚", "X": "✖"}
LINES = ("-", "--", ":")
SETTINGS = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names of layers and methods are shown as they are, dollars included
    "font.family": ["DejaVu Sans"],
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
}


@dataclass(frozen=True, slots=True)
class Look:
    """How one method is drawn: colour, marker and line differ together, so that no one of them has to be seen."""

    colour: str
    marker: str
    line: str

    @property
    def variable(self) -> str:
        return VARIABLES[self.colour]

    @property
    def sign(self) -> str:
        return MARKERS[self.marker]


@dataclass(frozen=True, slots=True)
class Drawing:
    """One figure: its heading, what it says to someone who cannot see it, and the SVG."""

    title: str
    description: str
    svg: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One quantity against sparsity: `value` and, where it is an interval, its `upper` end; `scale` turns a fraction into percent."""

    title: str
    label: str
    value: Callable[[Row], float | None]
    upper: Callable[[Row], float | None] = lambda row: None
    scale: float = 1.0


PANELS = (
    Panel("Certified accuracy", "certified (% of images)", lambda row: row.certified, lambda row: row.certified_upper, 100.0),
    Panel("Clean accuracy", "classified rightly (% of images)", lambda row: row.clean, scale=100.0),
    Panel("Unstable ReLUs", "unstable ReLUs an image (CROWN)", lambda row: row.unstable_crown),
    Panel("Verification time", "time (s an image)", lambda row: row.seconds_per_image),
)


def family(method: str) -> str:
    """The method without the sparsity that some runs put behind it: hydra-0.9 and hydra-0.95 are one line of a figure."""
    return re.sub(r"-0?\.\d+$", "", method)


def looks(methods: Sequence[str]) -> dict[str, Look]:
    """A look for each family of methods, in order; the dense network has the colour of the text."""
    others = [m for m in dict.fromkeys(map(family, methods)) if m != "dense"]
    signs = list(MARKERS)
    drawn = {m: Look(SERIES[i % len(SERIES)], signs[(i + 1) % len(signs)], LINES[i // len(SERIES) % len(LINES)]) for i, m in enumerate(others)}
    return {"dense": Look(INK, "o", ":"), **drawn} if "dense" in methods else drawn


def panels(rows: Sequence[Row], drawn: dict[str, Look], name: str) -> list[Drawing]:
    """The four panels over the rows of one split; those without any value are left out."""
    return [_panel(rows, panel, drawn, f"{name}-{i}") for i, panel in enumerate(PANELS) if any(panel.value(row) is not None for row in rows)]


def _panel(rows: Sequence[Row], panel: Panel, drawn: dict[str, Look], name: str) -> Drawing:
    with matplotlib.rc_context({**SETTINGS, "svg.hashsalt": name}):
        figure = Figure(figsize=(3.8, 2.9), layout="constrained")
        axes = figure.subplots()
        said = []
        for method, look in drawn.items():
            points = [(100 * r.sparsity, panel.scale * v, r) for r in rows if family(r.method) == method and (v := panel.value(r)) is not None]
            if points:
                _series(axes, panel, points, look)
                said.append(f"{method}: " + ", ".join(f"{y:.4g} at {x:.4g} %" for x, y, _ in sorted(points, key=lambda p: p[:2])))
        values = [v for r in rows if (v := panel.value(r)) is not None]
        _scale(axes, panel, values)
        axes.set_xlabel("sparsity (% of prunable weights removed)")
        axes.set_ylabel(panel.label)
        return Drawing(panel.title, f"{panel.title} against sparsity. {'; '.join(said)}.", _svg(figure, name))


def _series(axes: Axes, panel: Panel, points: list[tuple[float, float, Row]], look: Look) -> None:
    """Every network a marker, an undecided share a bar upwards, a line through the means over seeds; of the dense network a line across."""
    x, y = [p[0] for p in points], [p[1] for p in points]
    upper = [panel.upper(p[2]) for p in points]
    reach = [0.0 if u is None else max(panel.scale * u - v, 0.0) for u, v in zip(upper, y, strict=True)]
    if any(reach):
        axes.errorbar(x, y, yerr=[[0.0] * len(reach), reach], fmt="none", color=look.colour, ecolor=look.colour, elinewidth=1.2, capsize=3, alpha=0.7)
    axes.plot(x, y, linestyle="none", marker=look.marker, markersize=6, color=look.colour, alpha=0.9)
    steps = sorted(set(x))
    means = [fmean(v for u, v in zip(x, y, strict=True) if u == step) for step in steps]
    if look.colour == INK:
        axes.axhline(fmean(y), color=look.colour, linestyle=look.line, linewidth=1)
    else:
        axes.plot(steps, means, color=look.colour, linestyle=look.line, linewidth=1.4)


def _scale(axes: Axes, panel: Panel, values: Sequence[float]) -> None:
    """Percent stays inside 0..100; counts and times start at 0, times over more than a factor of ten are logarithmic."""
    axes.margins(x=0.06, y=0.12)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    if panel.scale == 100.0:
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, -2.0), min(high, 101.9))
    elif min(values) > 0 and max(values) > 10 * min(values) and "time" in panel.label:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")  # matplotlib's own writes powers in mathtext
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(0.0, 1.1 * max(values) or 1.0)


def stability(row: Row, name: str) -> Drawing | None:
    """For each layer of ReLUs two stacked bars, under IBP and under CROWN; None where neither was measured."""
    layers = [layer for layer in row.layers if layer.neurons and (layer.ibp or layer.crown)]
    if not layers:
        return None
    with matplotlib.rc_context({**SETTINGS, "axes.grid.axis": "x", "svg.hashsalt": name}):
        figure = Figure(figsize=(4.2, 0.75 + 0.5 * len(layers)), layout="constrained")
        axes = figure.subplots()
        for place, layer in enumerate(layers):
            _bars(axes, place, layer)
        axes.set_yticks(range(len(layers)), [f"{_short(layer.name)}\n{layer.neurons:,}" for layer in layers], fontsize=8.5, linespacing=1.4)
        axes.tick_params(axis="y", length=0, pad=44)
        axes.set_ylim(len(layers) - 0.5, -0.5)
        axes.set_xlim(0, 100)
        axes.set_xlabel("share of the layer's ReLUs (%)")
        said = "; ".join(f"{layer.name}: " + ", ".join(_said(layer)) for layer in layers)
        return Drawing(row.name, f"Stable and unstable ReLUs of {row.name}, layer by layer. {said}.", _svg(figure, name))


def _bars(axes: Axes, place: int, layer: LayerRow) -> None:
    beside = blended_transform_factory(axes.transAxes, axes.transData)
    for engine, shares, offset in (("IBP", layer.ibp, -0.2), ("CROWN", layer.crown, 0.2)):
        axes.text(-0.01, place + offset, engine, fontsize=7.5, ha="right", va="center", transform=beside)
        left = 0.0
        for state, colour in STATES.items() if shares else ():
            width = 100 * getattr(shares, state) / layer.neurons
            axes.barh(place + offset, width, height=0.36, left=left, color=colour, linewidth=0)
            left += width


def _said(layer: LayerRow) -> list[str]:
    shares = (("IBP", layer.ibp), ("CROWN", layer.crown))
    return [f"{engine} {s.unstable:.4g} unstable, {s.active:.4g} active, {s.inactive:.4g} inactive" for engine, s in shares if s]


def _short(name: str, longest: int = 18) -> str:
    """The end of a name, on one line; characters that a page cannot hold are replaced."""
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)
    return shown if len(shown) <= longest else "…" + shown[1 - longest :]


def _svg(figure: Figure, name: str) -> str:
    """The drawing as an element of the page: no date, names of its own, variables for colours, as wide as its place."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = file.getvalue()[file.getvalue().index("<svg") :]
    width, height = (math.ceil(float(size)) for size in re.search(r'width="([\d.]+)pt" height="([\d.]+)pt"', text).groups())
    text = re.sub(r'^<svg [^>]*viewBox="([^"]*)"[^>]*>', rf'<svg viewBox="\1" width="{width}" height="{height}" aria-hidden="true">', text, count=1)
    return re.sub(r"<[^<>]*>", lambda tag: _own(tag[0], name), text)  # within tags only: what stands between them is text of the run


def _own(tag: str, name: str) -> str:
    """A tag with the drawing's names made its own and colours made variables."""
    tag = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", tag)
    for colour, variable in VARIABLES.items():
        tag = tag.replace(colour, f"var({variable})")
    return tag.replace("'DejaVu Sans'", "'DejaVu Sans', sans-serif")
