"""The schema of results.json: what it accepts comes back unchanged, what is broken is one sentence that names file and key."""
from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from certprune.rows import check_rows, dump_rows, read_rows
from tests.report_rows import network
from verifier import VerifierError


def test_rows_come_back_unchanged(tmp_path: Path) -> None:
    rows = [network("dense"), network("half", sparsity=0.5, clean=None, bytes=None, onnx=None)]
    path = tmp_path / "results.json"
    path.write_text(dump_rows(check_rows(rows)))
    assert json.loads(path.read_text()) == rows
    assert dump_rows(read_rows(path)) == path.read_text()


def test_undecided_images_that_an_attack_took_are_not_in_the_upper_limit() -> None:
    """Rows of runs that counted otherwise."""
    (row,) = check_rows([network("dense", pgd=0.75, certified=0.5, certified_upper=0.875)])
    assert row.certified_upper == 0.75
    (row,) = check_rows([network("dense", pgd=None, certified=0.5, certified_upper=0.875)])
    assert row.certified_upper == 0.875


def _broken(change: Any) -> dict[str, Any]:
    row = copy.deepcopy(network("dense"))
    change(row)
    return row


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda row: row.pop("pgd"), "key '0.pgd' is missing"),
        (lambda row: row.update(certifed=row.pop("certified")), "key '0.certifed' is not one of the schema: did you mean 'certified'"),
        (lambda row: row.update(clean=1.5), "key '0.clean' has the value 1.5"),
        (lambda row: row.update(clean="0.5"), "key '0.clean' has the value '0.5'"),
        (lambda row: row.update(seconds_per_image=float("nan")), "key '0.seconds_per_image' has the value nan"),
        (lambda row: row.update(certified=0.7, certified_upper=0.6), "row 0: certified 0.7 is above certified_upper 0.6"),
        (lambda row: row.update(certified=0.8, certified_upper=0.9), "row 0: certified 0.8 is above pgd 0.75: an attack took the label"),
        (lambda row: row["layers"][0]["ibp"].pop("active"), "key '0.layers.0.ibp.active' is missing"),
        (lambda row: row["image_rows"][1].update(verdict="proved"), "key '0.image_rows.1.verdict' has the value 'proved'"),
    ],
    ids=["missing", "misspelt", "fraction", "text", "nan", "limits", "attack", "nested", "verdict"],
)
def test_a_broken_row_is_one_sentence(tmp_path: Path, change: Any, said: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps([_broken(change)]))
    with pytest.raises(VerifierError) as caught:
        read_rows(path)
    assert str(caught.value).startswith(f"{path}: {said}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "said"), [("", "it is not JSON"), ("[{", "it is not JSON"), ("{}", "it does not hold a list of rows")])
def test_a_broken_file_is_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(VerifierError, match=said):
        read_rows(path)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(VerifierError, match="cannot be read"):
        read_rows(tmp_path / "none.json")
