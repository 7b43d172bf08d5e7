"""Numbers as the report writes them, its tables, and the sentence on top. What was not measured is a dash."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from certprune.rows import Row

DASH = "–"


@dataclass(frozen=True, slots=True)
class Cell:
    """What is shown, and the number by which the column is sorted (None sorts last)."""

    text: str
    order: float | None = None
    is_number: bool = True


@dataclass(frozen=True, slots=True)
class Table:
    """Headings, each with its unit, and rows of cells in the same order."""

    headings: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


def percent(fraction: float | None) -> str:
    return DASH if fraction is None else f"{100 * fraction:.1f} %"


def number(value: float | None, digits: int = 4) -> str:
    """Four significant digits, thousands grouped: 12,345 and 0.01234."""
    if value is None:
        return DASH
    return f"{value:,.0f}" if abs(value) >= 1000 or float(value).is_integer() else f"{value:.{digits}g}"


def interval(lower: float | None, upper: float | None) -> str:
    """The certified share, or both limits where images were left undecided."""
    if lower is None or upper is None or percent(lower) == percent(upper):
        return percent(lower)
    return f"{100 * lower:.1f} – {100 * upper:.1f} %"


def settings(about: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """A nested configuration as lines (train.epochs, 3), in its own order."""
    lines = []
    for key, value in about.items():
        if isinstance(value, Mapping):
            lines += settings(value, f"{prefix}{key}.")
        elif isinstance(value, (list, tuple)):
            lines.append((prefix + str(key), ", ".join(_said(v) for v in value) or DASH))
        else:
            lines.append((prefix + str(key), DASH if value is None else str(value)))
    return lines


def _said(value: Any) -> str:
    """A value in a line; of a table its values with their keys, the name first: nrs (weight 0.1)."""
    if not isinstance(value, Mapping):
        return str(value)
    inside = ", ".join(f"{key} {more}" for key, more in value.items() if key != "name")
    return f"{value['name']} ({inside})" if "name" in value and inside else str(value.get("name", inside))


def _cell(value: float | None, text: str | None = None) -> Cell:
    return Cell(number(value) if text is None else text, value)


def _word(text: str) -> Cell:
    return Cell(text, is_number=False)


def networks(rows: Sequence[Row]) -> Table:
    """A line for each network and split: what it is, how accurate, how stable, how fast to prove."""
    headings = (
        "network", "method", "round", "seed", "split", "images", "sparsity (%)", "in the file (%)", "clean (%)", "PGD (%)", "certified (%)",
        "unstable ReLUs (IBP)", "unstable ReLUs (CROWN)", "domains an image", "time an image (s)", "strong PGD survived",
    )  # fmt: skip
    survived = {None: DASH, True: "yes", False: "NO"}
    lines = [
        (
            _word(r.name), _word(r.method), _cell(r.round), Cell(str(r.seed), r.seed), _word(r.split), _cell(r.images),
            *(Cell(percent(v).removesuffix(" %"), v) for v in (r.sparsity, r.sparsity_file, r.clean, r.pgd)),
            Cell(interval(r.certified, r.certified_upper).removesuffix(" %"), r.certified),
            *(_cell(v) for v in (r.unstable_ibp, r.unstable_crown, r.domains_per_image, r.seconds_per_image)), _word(survived[r.survived_attack]),
        )
        for r in rows
    ]  # fmt: skip
    return Table(headings, tuple(lines))


def sizes(rows: Sequence[Row]) -> Table:
    """Weights, operations and bytes on disk of the exported forms; one line for each network."""
    headings = (
        "network", "parameters", "nonzero", "nonzero (%)", "FLOPs", "FLOPs of nonzero weights", "masked (KiB)", "compact (KiB)", "sparse (KiB)",
        "largest output difference, file against training",
    )  # fmt: skip
    lines = []
    for r in rows:
        forms = (None, None, None) if r.bytes is None else (r.bytes.masked, r.bytes.compact, r.bytes.sparse)
        share = r.nonzero / r.parameters if r.nonzero is not None and r.parameters else None
        counts = (_cell(r.parameters), _cell(r.nonzero), Cell(percent(share).removesuffix(" %"), share), _cell(r.flops), _cell(r.flops_nonzero))
        files = (_cell(size, DASH if size is None else f"{size / 1024:,.1f}") for size in forms)
        difference = _cell(r.max_difference, DASH if r.max_difference is None else f"{r.max_difference:.1e}")
        lines.append((_word(r.name), *counts, *files, difference))
    return Table(headings, tuple(lines))


def tightness(rows: Sequence[Row]) -> Table:
    """A line for each network, a column for each engine: how far its bound lies below that of branch and bound."""
    engines = tuple(dict.fromkeys(t.engine for r in rows for t in r.tightness))
    lines = []
    for r in rows:
        gaps = {t.engine: t.gap for t in r.tightness}
        if gaps:
            lines.append((_word(r.name), *(_cell(gaps.get(engine)) for engine in engines)))
    return Table(("network", *engines), tuple(lines))


def one_a_network(rows: Sequence[Row]) -> list[Row]:
    """Each network once, as measured on the test images where it was, in order of sparsity."""
    chosen: dict[tuple[str, int], Row] = {}
    for row in rows:
        key = (row.name, row.seed)
        if key not in chosen or (row.split == "test" and chosen[key].split != "test"):
            chosen[key] = row
    return sorted(chosen.values(), key=lambda r: (r.sparsity, r.name, r.seed))


def headline(rows: Sequence[Row]) -> str:
    """Dense against one pruned network, on the test images where there are any.

    The one is the most certified on the other images, which chose it without seeing these; only where nothing else was measured it is
    the most certified on these, and that is said.
    """
    split = "test" if any(r.split == "test" for r in rows) else rows[0].split
    here = [r for r in rows if r.split == split]
    dense = next((r for r in here if r.sparsity == 0), None)
    candidates = [r for r in here if r.sparsity > 0 and r.certified is not None]
    chosen_by = {(r.name, r.seed): r.certified for r in rows if r.split != split and r.certified is not None}
    blind = [r for r in candidates if (r.name, r.seed) in chosen_by]
    pruned = max(blind or candidates, key=lambda r: (chosen_by.get((r.name, r.seed), r.certified), r.sparsity), default=None)
    if dense is None or pruned is None:
        only = pruned or dense or here[0]
        return f"On {only.images:,} {split} images at eps {only.eps:g} ({only.norm}) {only.name} is certified on {_certified(only)}."
    choice = f", the best of the {len(candidates)} measured on these images" if len(candidates) > 1 and not blind else ""
    return (
        f"On {pruned.images:,} {split} images at eps {pruned.eps:g} ({pruned.norm}) the dense network is certified on {_certified(dense)}, "
        f"{pruned.name} ({pruned.method}, {percent(pruned.sparsity)} of the prunable weights removed{choice}) on {_certified(pruned)}. "
        f"Clean accuracy {percent(dense.clean)} → {percent(pruned.clean)}, unstable ReLUs an image (CROWN) {number(dense.unstable_crown)} → "
        f"{number(pruned.unstable_crown)}, verification time {number(dense.seconds_per_image, 3)} → {number(pruned.seconds_per_image, 3)} s an image."
    )


def _certified(row: Row) -> str:
    text = interval(row.certified, row.certified_upper)
    return text if "–" not in text[1:] else f"{text} (lower and upper limit: some images are undecided)"
