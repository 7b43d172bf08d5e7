"""Rows of a run -> one HTML file: values are prepared here, the template only places them."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from certprune.report import figures, tables
from certprune.report.pictures import Images, Triple, class_name, triple
from certprune.rows import ImageResult, Row, check_rows
from certprune.store import write_text
from verifier import VerifierError

SHOWN = 200  # images of one network that are visible at once
PICTURED = 50  # counterexamples of one network that are drawn: the page stays a few megabytes
MARKS = {"verified": "✓ verified", "falsified": "✗ falsified", "unknown": "? unknown"}


@dataclass(frozen=True, slots=True)
class ImageLine:
    """A line of the table of images; `order` are the values that its columns are sorted by."""

    result: ImageResult
    cells: tuple[str, ...]
    verdict: str
    pictures: Triple | None


@dataclass(frozen=True, slots=True)
class ImageTable:
    """What became of each image of one network on one split."""

    anchor: str
    row: Row
    summary: str
    lines: tuple[ImageLine, ...]


def write_report(rows: list[dict[str, Any]], about: dict[str, Any], images: Images | None, path: str | Path, where: str = "the rows") -> None:
    """Writes the page of a run; the file is replaced only when the new one is whole.

    Args:
        rows: as in results.json, see `certprune.rows`.
        about: what was run, shown as a table; nested tables become `train.epochs`. `title`, if given, is the page's title.
        images: for the pictures of counterexamples; None leaves them out.
        path: where the HTML file goes.
        where: what the rows are called in an error, for example the file that they are of.

    Raises:
        VerifierError: a row does not fit the schema, there is none, or the file cannot be written.
    """
    checked = check_rows(rows, where)
    if not checked:
        raise VerifierError("There are no rows to report: run at least one evaluation first.")
    write_text(render(checked, about, images), Path(path))


def render(rows: Sequence[Row], about: dict[str, Any], images: Images | None) -> str:
    """The text of the page; the same rows give the same text."""
    place = PackageLoader("certprune.report", ".")
    environment = Environment(loader=place, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    looks = figures.looks([row.method for row in rows])
    splits = sorted({row.split for row in rows}, key=lambda split: (split != "test", split))
    by_split = {split: [row for row in rows if row.split == split] for split in splits}
    single = tables.one_a_network(rows)
    layers = [(row, figures.stability(row, f"layers-{i}")) for i, row in enumerate(single)]
    return environment.get_template("template.html").render(
        title=str(about.get("title", "CertPrune report")),
        settings=tables.settings({key: value for key, value in about.items() if key != "title"}),
        headline=tables.headline(rows),
        looks=looks,
        panels={split: figures.panels(inside, looks, f"panel-{split}") for split, inside in by_split.items()},
        networks=tables.networks(rows),
        layers=[(row, drawing) for row, drawing in layers if drawing is not None],
        states=tuple(figures.STATES),
        tightness=tables.tightness(single),
        sizes=tables.sizes(single),
        images=[_image_table(row, i, images) for i, row in enumerate(row for inside in by_split.values() for row in inside) if row.image_rows],
        shown=SHOWN,
        pictured=PICTURED,
        percent=tables.percent,
    )


def _image_table(row: Row, place: int, images: Images | None) -> ImageTable:
    """Lines in the order of the images; the first `PICTURED` counterexamples get their pictures."""
    seen = images if images is not None and images.split == row.split else None
    drawn = [r.index for r in row.image_rows if r.counterexample and r.predicted == r.label][:PICTURED] if seen is not None else []
    classes = images.classes if images is not None else ()
    counts = {mark: sum(r.verdict == verdict for r in row.image_rows) for verdict, mark in MARKS.items()}
    lines = tuple(
        ImageLine(r, _image_cells(r, classes), MARKS[r.verdict], triple(r, seen, row.name) if seen is not None and r.index in drawn else None)
        for r in row.image_rows
    )
    return ImageTable(f"images-{place}", row, ", ".join(f"{count:,} {mark[2:]}" for mark, count in counts.items()), lines)


def _image_cells(result: ImageResult, classes: Sequence[str]) -> tuple[str, ...]:
    """Index, label, predicted; then margin, domains and seconds. Numbers are ungrouped: the page sorts by what it shows."""
    plain = [tables.DASH if v is None else f"{v:.4g}" if isinstance(v, float) else str(v) for v in (result.margin, result.domains, result.seconds)]
    return (str(result.index), class_name(result.label, classes), class_name(result.predicted, classes), *plain)
