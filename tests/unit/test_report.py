"""The page of a run: every number of the rows is on it, nothing is fetched, the same rows give the same bytes, and pictures show the right pixels."""
from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.image import imread

from certprune.report import Images, figures, tables, write_report
from certprune.report.pictures import triple
from certprune.rows import ImageResult, check_rows
from tests.report_rows import image, layer, network
from verifier import VerifierError

PRUNED = network("half", method="magnitude", sparsity=0.5, certified=0.75, certified_upper=0.75, unstable_crown=9.5, clean=0.8125)
IMAGES = Images(np.zeros((2, 1, 2, 2)), ("shirt", "coat"))
VOID = {"meta", "link", "img", "input", "br", "circle", "path", "use"}


class Reader(HTMLParser):
    """Texts, addresses, names and unclosed elements of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.texts, self.addresses, self.ids, self.targets, self.open = [], [], [], [], []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        self.ids += [found["id"]] if "id" in found else []
        self.addresses += [value for key, value in found.items() if key in ("src", "href", "xlink:href", "data", "action", "srcset")]
        self.targets += re.findall(r"url\(#([^)]*)\)", " ".join(str(value) for value in found.values()))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["style"], ["script"]):
            self.texts.append(data.strip())


RUN = {"title": "A run", "train": {"epochs": 3, "losses": [{"name": "nrs", "weight": 0.5}, "l1"], "device": None}}


def page_of(path: Path, rows: list[dict[str, Any]], images: Images | None = IMAGES, about: dict[str, Any] = RUN) -> str:
    write_report(rows, about, images, path / "report.html")
    return (path / "report.html").read_text()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return page_of(tmp_path_factory.mktemp("page"), [network("dense"), PRUNED])


def test_every_number_is_on_the_page(page: str) -> None:
    texts = Reader(page).texts
    for shown in (
        "train.epochs", "3", "nrs (weight 0.5), l1", "87.5", "75.0", "50.0 – 62.5", "41.5", "17.25", "123", "1.75", "yes", "1,000", "900", "90.0",
        "2,000", "1,800", "4.0", "2.0", "1.5e-06", "0.375", "✓ verified", "✗ falsified", "-0.125", "coat",
        "dense, test images: 1 verified, 1 falsified, 0 unknown",
    ):  # fmt: skip
        assert shown in texts, shown


def test_the_headline_compares_dense_with_pruned() -> None:
    said = tables.headline(check_rows([network("dense"), PRUNED]))
    for part in ("2 test images", "eps 0.1", "50.0 – 62.5 % (lower and upper limit", "half (magnitude, 50.0 %", "on 75.0 %"):
        assert part in said
    assert all(part in said for part in ("87.5 % → 81.2 %", "17.25 → 9.5", "1.75 → 1.75 s"))
    assert "best of" not in said


def test_a_choice_made_on_the_shown_images_is_said() -> None:
    rows = check_rows([network("dense"), PRUNED, PRUNED | {"name": "b", "certified": 0.25}])
    assert "the best of the 2 measured on these images" in tables.headline(rows)


def test_the_headline_takes_what_the_other_images_chose() -> None:
    other = network("b", method="hydra", sparsity=0.75, certified=0.6, certified_upper=0.6)
    chosen = [network(r["name"], split="selection", sparsity=0.5, certified=c, certified_upper=1.0) for r, c in ((PRUNED, 0.5), (other, 0.75))]
    said = tables.headline(check_rows([network("dense"), PRUNED, other, *chosen]))
    assert "b (hydra, 75.0 % of the prunable weights removed) on 60.0 %" in said


def test_nothing_is_fetched_and_every_name_is_there(page: str) -> None:
    reader = Reader(page)
    assert reader.open == []
    assert len(reader.ids) == len(set(reader.ids))
    local = [a for a in reader.addresses if not a.startswith("data:")]
    assert local and all(a.startswith("#") and a[1:] in reader.ids for a in local)
    assert set(reader.targets) <= set(reader.ids)
    assert not re.search(r"https?:|@import|url\((?!#)", page)


def test_the_same_rows_give_the_same_bytes(page: str, tmp_path: Path) -> None:
    again = page_of(tmp_path, [network("dense"), PRUNED])
    assert again == page


def test_what_was_not_measured_is_a_dash(tmp_path: Path) -> None:
    empty = dict.fromkeys(("clean", "pgd", "certified", "certified_upper", "unstable_ibp", "unstable_crown"))
    empty |= dict.fromkeys(("seconds_per_image", "domains_per_image"))
    empty |= dict.fromkeys(("parameters", "nonzero", "flops", "flops_nonzero", "bytes", "max_difference", "survived_attack", "onnx"))
    rows = [network("bare", **empty, layers=[], tightness=[], image_rows=[])]
    texts = Reader(page_of(tmp_path, rows, None)).texts
    assert not re.search(r"\b(nan|none)\b", " ".join(texts), re.IGNORECASE)
    assert texts.count(tables.DASH) == 1 + len(tables.networks(check_rows(rows)).headings) - 8 + len(tables.sizes(check_rows(rows)).headings) - 1
    assert "Stable and unstable ReLUs, layer by layer" not in texts and "Tightness of the bounds" not in texts


def test_text_of_the_run_is_not_markup(tmp_path: Path) -> None:
    name = "<script>alert(1)</script> & <b>"
    rows = [network(name, layers=[layer(name, 4, 1.0)])]
    text = page_of(tmp_path, rows, Images(IMAGES.x, (name, name)), {"title": name, name: name})
    assert "<script>alert" not in text and "& <b>" not in text
    assert Reader(text).open == []


def _svg(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text.replace("<svg ", '<svg xmlns:xlink="x" ', 1))


def test_marks_lie_where_the_numbers_are() -> None:
    """Marker heights in the drawing are an affine function of the values: the three points of a method give its slope and its test."""
    values = {0.5: 0.9, 0.75: 0.6, 0.875: 0.2}
    rows = check_rows([network(str(s), method="magnitude", sparsity=s, certified=v, certified_upper=v, clean=v, pgd=v) for s, v in values.items()])
    drawing = next(d for d in figures.panels(rows, figures.looks(["magnitude"]), "p") if d.title == "Clean accuracy")
    marks = [(float(e.get("x")), float(e.get("y"))) for e in _svg(drawing.svg).iter() if e.tag.endswith("use") and "--c0" in e.get("style", "")]
    x, y = np.array(sorted(marks)[-3:]).T
    for places, numbers in ((x, np.array(list(values))), (y, np.array(list(values.values())))):
        assert np.diff(places)[0] / np.diff(places)[1] == pytest.approx(np.diff(numbers)[0] / np.diff(numbers)[1], rel=1e-4)
    assert y[0] < y[2]


def test_undecided_images_are_an_error_bar_upwards() -> None:
    rows = check_rows([network("a", method="m", sparsity=0.5, certified=0.5, certified_upper=0.75)])
    sure = check_rows([network("a", method="m", sparsity=0.5, certified=0.5, certified_upper=0.5)])
    drawn, plain = (figures.panels(r, figures.looks(["m"]), "p")[0].svg for r in (rows, sure))
    assert "LineCollection" in drawn and "LineCollection" not in plain


def test_methods_differ_in_colour_or_line_and_dense_is_ink() -> None:
    looks = figures.looks(["dense", *(f"m{i}" for i in range(18)), "hydra-0.9", "hydra-0.95"])
    assert len(looks) == 20 and "hydra" in looks
    assert len({(look.variable, look.sign) for look in looks.values()}) == 20, "the legend shows no more than these"
    assert looks["dense"].variable == "--ink"
    assert [figures.family(m) for m in ("nm-2-4", "hydra-0.9", "mtl-ibp", "x.5")] == ["nm-2-4", "hydra", "mtl-ibp", "x.5"]


def test_the_page_defines_every_colour_that_figures_use(page: str) -> None:
    used = set(re.findall(r"var\((--[\w]+)\)", page))
    light, dark = re.findall(r":root\{([^}]*)\}", page)
    assert "prefers-color-scheme:dark" in page
    for theme in (light, dark):
        assert used <= set(re.findall(r"(--\w+):", theme))
    svgs = "".join(re.findall(r"<svg .*?</svg>", page, re.DOTALL))
    assert not re.findall(r"(?:fill|stroke): ?#(?!none)[0-9a-f]{3,6}", svgs), "a colour that stays the same on a dark page"


def test_bars_of_stability_fill_each_layer() -> None:
    (row,) = check_rows([network("a")])
    drawing = figures.stability(row, "s")
    widths: dict[str, list[float]] = {}
    for path in (e for e in _svg(drawing.svg).iter() if e.tag.endswith("path")):
        state = re.search(r"fill: var\(--(unstable|active|inactive)\)", path.get("style", ""))
        if state:
            x = [float(v) for v in re.findall(r"[ML] ([\d.]+) ", path.get("d"))]
            widths.setdefault(state.group(1), []).append(max(x) - min(x))
    total = np.sum([widths[state] for state in figures.STATES], axis=0)
    np.testing.assert_allclose(np.array(widths["unstable"]) / total, [8 / 64, 4 / 16], rtol=1e-3)
    np.testing.assert_allclose(np.array(widths["active"]) / total, [1 / 64, 1 / 16], rtol=1e-3)
    assert "relu_1: IBP 8 unstable, 1 active, 55 inactive" in drawing.description


def _pixels(address: str) -> np.ndarray:
    file = io.BytesIO(base64.b64decode(address.removeprefix("data:image/png;base64,")))
    return np.rint(255 * imread(file, format="png"))[..., :3].astype(int)


NAMES = (
    "a$\\frac$b", "$", "$x$", "</text></svg><script>s()</script>",
    'url(#p0 id="y" &amp; #0072b2', "one\ntwo", "\0\x1b", "'DejaVu Sans'", "{{ 7 * 7 }}",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names_from_files_are_shown_as_they_are(tmp_path: Path, name: str) -> None:
    """Layers, networks and methods may be called anything: nothing is read as mathematics, markup or part of the drawing."""
    said = image(0, "verified")
    rows = [network("dense"), network(name, method=name, sparsity=0.5, layers=[layer(name, 64, 8.0)], image_rows=[said])]
    seen = Reader(page_of(tmp_path, rows))
    assert not seen.open and set(seen.targets) <= set(seen.ids)
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)
    in_figure = shown if len(shown) <= 18 else "…" + shown[-17:]
    assert any(text == in_figure for text in seen.texts), "in the figure"
    pages = [page_of(tmp_path, given) for given in (rows, [network("dense")])]
    assert len({page.count("<script") for page in pages}) == 1, "no more scripts than the page's own"


def test_times_over_a_wide_range_have_plain_numbers_on_their_axis() -> None:
    rows = check_rows([network(str(s), method="m", sparsity=s, seconds_per_image=t) for s, t in ((0.5, 0.001), (0.75, 0.1), (0.9, 10.0))])
    drawing = next(d for d in figures.panels(rows, figures.looks(["m"]), "p") if d.title == "Verification time")
    texts = [e.text for e in _svg(drawing.svg).iter() if e.tag.endswith("text")]
    assert {"0.001", "0.01", "10"} <= set(texts) and not any("$" in (text or "") for text in texts)


def test_pictures_show_image_counterexample_and_difference() -> None:
    x = np.array([[0.0, 0.2], [0.4, 1.0]]).reshape(1, 1, 2, 2)
    result = ImageResult(**image(0, "falsified", counterexample=(0.1, 0.2, 0.35, 0.9)))
    seen = triple(result, Images(x, ()), "net")
    assert _pixels(seen.original)[..., 0].tolist() == [[0, 51], [102, 255]]
    assert _pixels(seen.counterexample)[..., 1].tolist() == [[26, 51], [89, 230]]
    assert seen.largest == pytest.approx(0.1)
    brighter, same, darker_half, darker = _pixels(seen.difference).reshape(4, 3).tolist()
    assert (brighter, same, darker) == ([255, 0, 0], [255, 255, 255], [0, 0, 255])
    np.testing.assert_allclose(darker_half, [128, 128, 255], atol=1)


def test_colour_pictures_keep_their_channels() -> None:
    x = np.stack([np.full((1, 2), v) for v in (1.0, 0.2, 0.0)])[None]
    result = ImageResult(**image(0, "falsified", counterexample=(1.0, 1.0, 0.3, 0.2, 0.0, 0.0)))
    seen = triple(result, Images(x, ()), "net")
    assert _pixels(seen.original)[0, 0].tolist() == [255, 51, 0]
    assert _pixels(seen.difference)[0, 0].tolist() == [128, 255, 128]


def test_images_of_another_split_are_not_shown(tmp_path: Path) -> None:
    blank = dict.fromkeys(("clean", "certified", "certified_upper", "unstable_crown", "seconds_per_image")) | {"layers": []}
    rows = [network("dense", **blank), network("dense", split="selection", **blank)]
    assert page_of(tmp_path, rows).count("<img ") == 3
    assert page_of(tmp_path, rows, None).count("<img ") == 0


def test_many_images_are_folded(tmp_path: Path) -> None:
    few, many = ([network("a", layers=[], image_rows=[image(i, "verified") for i in range(n)])] for n in (200, 201))
    assert 'type="checkbox"' not in page_of(tmp_path, few)
    assert "Show all 201 images (200 are shown)" in page_of(tmp_path, many)


@pytest.mark.parametrize(
    ("found", "images", "said"),
    [
        (image(2, "falsified", counterexample=[0.0] * 4), IMAGES, "net: image 2 is not among the 2 images"),
        (image(1, "falsified", counterexample=[0.0] * 5), IMAGES, "net: the counterexample of image 1 has 5 pixels"),
    ],
)
def test_pictures_that_do_not_fit_are_refused(tmp_path: Path, found: dict[str, Any], images: Images, said: str) -> None:
    with pytest.raises(VerifierError, match=said):
        page_of(tmp_path, [network("net", image_rows=[found])], images)
    assert not (tmp_path / "report.html").exists()


def test_what_cannot_be_reported_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(VerifierError, match="no rows"):
        page_of(tmp_path, [])
    with pytest.raises(VerifierError, match="Cannot write"):
        page_of(tmp_path / "absent", [network("a")])
    with pytest.raises(VerifierError, match=r"^results\.json: key '0\.clean'"):
        write_report([network("a", clean=2)], {}, None, tmp_path / "report.html", "results.json")
    with pytest.raises(VerifierError, match="give \\(N, C, H, W\\)"):
        Images(np.zeros((2, 4)), ())
