"""The benchmark of methods and objectives on digits: its cells are complete and comparable, its rows resume, its table is readable."""
from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import typer

from benchmarks import methods
from benchmarks.methods import Cell, Row, chosen, config_of, method_cells, objective_cells, on_test, read_table, row_of, run_cells, table
from certprune.config import Feedback, VerifyConfig, check_fit, digest, plain
from certprune.loop import Result
from certprune.progress import silent
from certprune.prune.registry import SCORERS
from certprune.rows import Row as LoopRow
from certprune.rows import check_rows
from certprune.train.objectives.registry import OBJECTIVES
from verifier import VerifierError

VERIFY = VerifyConfig(0.06, test=120, timeout_s=2.0)


def row(name: str, wanted: float, error: str = "", config: str = "") -> Row:
    numbers = dict.fromkeys(("sparsity", "clean", "pgd", "certified", "certified_upper", "max_difference"), None if error else 0.25)
    numbers |= dict.fromkeys(("unstable_ibp", "unstable_crown", "seconds_per_image", "domains_per_image"), None if error else 12.0)
    asked = {"images": 120, "eps": 0.06, "timeout_s": 2.0, "seed": 0}
    now = {"commit": "abc", "device": "cpu", "threads": 1, "machine": "m", "date": "d", "config": config}
    return Row("method", name, wanted, **numbers, nonzero=None if error else 7, error=error, **asked, **now)


def test_every_scorer_and_every_objective_has_its_cells() -> None:
    removed = [0.5, 0.95]
    cells = method_cells(methods.methods(), removed, VERIFY, 0)
    assert {cell.name for cell in cells} >= set(SCORERS)
    assert len(cells) == 2 * len(methods.methods())
    assert [cell.name for cell in objective_cells(methods.objectives(), VERIFY, 0)] == list(OBJECTIVES)
    for name, fit in methods.objectives().items():
        check_fit(fit)
        assert fit.objective.name == name


def test_arms_differ_in_their_method_alone() -> None:
    """One dense network, the same layers, the same epochs of fine-tuning in sum, the same images."""
    cells = method_cells(methods.methods(), [0.9], VERIFY, 3)
    for cell in cells:
        (arm,) = cell.config.prune.values()
        assert arm.finetune.epochs * arm.rounds == methods.TUNE.epochs
        assert replace(arm.finetune, epochs=0, regularizers=()) == replace(methods.TUNE, epochs=0)
        assert (arm.sparsity, arm.layers, arm.scope) == (0.9, "conv", "layer")
        assert plain(replace(cell.config, prune={}, verify=VERIFY)) == plain(config_of(methods.DENSE, {}, VERIFY, 3))
        assert (cell.config.verify.test, cell.config.verify.timeout_s) == (120, 2.0)


def test_images_to_learn_from_are_verified_only_where_something_learns() -> None:
    for cell in method_cells(methods.methods(), [0.9], VERIFY, 0):
        (arm,) = cell.config.prune.values()
        assert cell.config.verify.selection == (1 if arm.feedback is Feedback.NONE else methods.GUIDING)
        assert (arm.feedback is Feedback.NONE) == (arm.rounds == 1)


def test_the_table_shows_percent_and_tells_of_failures() -> None:
    shown = table([{k: "" if v is None else str(v) for k, v in asdict(r).items()} for r in (row("b", 0.9), row("a", 0.5), row("c", 0.5, "no."))])
    head, rule, *lines = shown.splitlines()
    assert {line.count("|") for line in (head, rule, *lines)} == {head.count("|")}
    assert [line.split("|")[1].strip() for line in lines] == ["a", "c", "b"]
    assert lines[0] == "| a | 0.250 | 25.0 | 25.0 | 25.0 | 25.0 | 12 | 12 | 12.00 |"
    assert "no." in lines[1]


def test_a_cell_that_has_its_row_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []

    def measured(cell: Cell, *_: object) -> Row:
        ran.append((cell.name, cell.sparsity))
        return row(cell.name, cell.sparsity, config=digest(cell.config))

    monkeypatch.setattr(methods, "row_of", measured)
    cells = method_cells(["random", "magnitude+nrs"], [0.5, 0.9], VERIFY, 0)
    for part in (cells[:3], cells, cells):
        run_cells(part, tmp_path, tmp_path / "rows.csv", 1, silent)
    assert ran == [(cell.name, cell.sparsity) for cell in cells]
    assert [line["name"] for line in read_table(tmp_path / "rows.csv")] == ["random", "magnitude+nrs"] * 2
    run_cells(method_cells(["random"], [0.5], replace(VERIFY, timeout_s=3.0), 0), tmp_path, tmp_path / "rows.csv", 1, silent)
    assert len(ran) == 5  # another time-out is another question
    other = [replace(cell, config=replace(cell.config, train=replace(cell.config.train, lr=0.5))) for cell in cells[:1]]
    for _ in range(2):
        run_cells(other, tmp_path, tmp_path / "rows.csv", 1, silent)
    assert len(ran) == 6  # and so is another training


def test_rows_of_a_file_without_digests_count_and_keep_their_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "row_of", lambda cell, *_: row(cell.name, cell.sparsity, config=digest(cell.config)))
    out, old = tmp_path / "rows.csv", {k: "" if v is None else str(v) for k, v in asdict(row("random", 0.5)).items() if k != "config"}
    out.write_text(f"{','.join(old)}\n{','.join(old.values())}\n")
    cells = method_cells(["random", "magnitude+nrs"], [0.5], VERIFY, 0)
    run_cells(cells, tmp_path, out, 1, silent)
    first, second = read_table(out)
    assert first == old | {"config": ""}
    assert (second["name"], second["config"]) == ("magnitude+nrs", digest(cells[1].config))


def test_a_failure_is_a_row_with_its_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> Result:
        raise VerifierError("The loss became nan: lower lr.")

    monkeypatch.setattr(methods, "run_loop", fails)
    found = row_of(method_cells(["random"], [0.5], VERIFY, 0)[0], tmp_path, 1, silent)
    assert found.error == "The loss became nan: lower lr."
    assert (found.name, found.wanted, found.clean, found.certified, found.images) == ("random", 0.5, None, None, 120)


def loop_row(name: str, split: str) -> LoopRow:
    known = {"name": name, "method": "a", "round": 1, "sparsity": 0.5, "seed": 0, "split": split, "images": 4, "eps": 0.06, "norm": "linf"}
    lists = {key: [] for key in ("layers", "tightness", "image_rows")}
    return check_rows([dict.fromkeys(LoopRow.model_fields) | known | lists | {"onnx": f"stages/{name}-export/masked.onnx"}])[0]


def test_the_last_round_meets_the_test_images_though_an_earlier_one_was_picked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def evaluate(onnx: Path, config: object, images: object, split: str, folder: Path, listener: object) -> str:
        asked.append((onnx, split))
        folder.mkdir(parents=True)
        (folder / "measured.json").write_text('{"clean": 0.5}')
        return ""

    monkeypatch.setattr(methods, "evaluate_file", evaluate)
    result = Result(tmp_path, (loop_row("a-1", "selection"), loop_row("a-2", "selection"), loop_row("a-1", "test")), ("a-1",))
    config = method_cells(["random"], [0.5], VERIFY, 0)[0].config
    assert on_test(result, config, "a-1", silent)["images"] == 4
    assert asked == []
    for _ in range(2):
        assert on_test(result, config, "a-2", silent) == {"clean": 0.5}
    assert asked == [(tmp_path / "stages/a-2-export/masked.onnx", "test")]


def test_names_between_commas() -> None:
    assert chosen("all", ["a", "b"], "method") == ["a", "b"]
    assert chosen("none", ["a", "b"], "method") == []
    assert chosen("b, a", ["a", "b"], "method") == ["b", "a"]
    with pytest.raises(typer.BadParameter, match="no method 'c'; there are a, b"):
        chosen("a,c", ["a", "b"], "method")
