"""The loop, whole, on a run of seconds: its rows, what is used again, and that a run cut anywhere ends as one that was not."""
from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import verifier
from certprune import stages
from certprune.checkpoint import load
from certprune.config_file import read
from certprune.loop import Result, as_csv, run_loop, stage_count
from certprune.progress import Step, silent
from certprune.prune.mask import sparsity
from certprune.rows import check_rows, read_rows
from certprune.train.initialise import Initialise
from certprune.train.net import Net
from tests.loop_runs import TINY

CLOCK = ("seconds", "seconds_per_image")


def without_clock(value: Any) -> Any:
    """The rows without what depends on the machine's load."""
    if isinstance(value, dict):
        return {key: without_clock(inner) for key, inner in value.items() if key not in CLOCK}
    return [without_clock(inner) for inner in value] if isinstance(value, list) else value


def rows_of(folder: Path) -> Any:
    return without_clock(json.loads((folder / "results.json").read_text()))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result, list[Step]]:
    """(the runs' folder, the result, what was told) of one undisturbed run."""
    runs, told = tmp_path_factory.mktemp("runs"), []
    return runs, run_loop(read(TINY, "tiny"), runs, told.append), told


def test_rows_are_of_every_network_on_its_splits(finished: tuple[Path, Result, list[Step]]) -> None:
    _, result, _ = finished
    selection = [(row.method, row.round) for row in result.rows if row.split == "selection"]
    assert selection == [("dense", 0), ("magnitude", 1), ("magnitude", 2), ("early", 1), ("verification-guided", 1)]
    tested = [row.name for row in result.rows if row.split == "test"]
    assert tested[0] == "dense" and sorted(tested[1:]) == sorted(result.picked) and len(result.picked) == 3
    assert {row.name: round(row.sparsity, 2) for row in result.rows}["magnitude-2"] == 0.5
    assert all(row.images == (12 if row.split == "selection" else 4) == len(row.image_rows) for row in result.rows)
    assert all(row.certified <= row.pgd <= row.clean for row in result.rows)
    assert all(row.sparsity <= row.sparsity_file < row.sparsity + 0.1 for row in result.rows)
    assert read_rows(result.folder / "results.json") == result.rows


def test_the_pick_is_the_most_certified_of_its_arm(finished: tuple[Path, Result, list[Step]]) -> None:
    _, result, _ = finished
    certified = {row.name: row.certified for row in result.rows if row.split == "selection"}
    for name in result.picked:
        arm = name.rpartition("-")[0]
        assert certified[name] == max(value for other, value in certified.items() if other.rpartition("-")[0] == arm)
    assert certified[result.picked[0]] == max(certified[name] for name in result.picked)


def test_the_count_of_stages_is_what_is_told(finished: tuple[Path, Result, list[Step]]) -> None:
    _, _, told = finished
    assert stage_count(read(TINY, "tiny")) == sum(step.finished for step in told)
    assert not any(step.reused for step in told)


def test_the_file_that_is_certified_is_the_network(finished: tuple[Path, Result, list[Step]]) -> None:
    _, result, _ = finished
    data = verifier.load_dataset("digits")
    for row in (row for row in result.rows if row.split == "test"):
        runner = verifier.OnnxRunner(result.folder / row.onnx)
        right = runner.many(data.x_test[:4].reshape(4, -1)).argmax(1) == data.y_test[:4]
        assert row.clean == right.mean()


def test_a_second_run_finds_every_stage(finished: tuple[Path, Result, list[Step]]) -> None:
    runs, result, _ = finished
    told: list[Step] = []
    assert run_loop(read(TINY, "tiny"), runs, told.append) == result
    assert all(step.reused for step in told if step.finished)


def test_a_changed_setting_redoes_what_depends_on_it_and_nothing_else(finished: tuple[Path, Result, list[Step]], tmp_path: Path) -> None:
    runs, _, _ = finished
    shutil.copytree(runs, tmp_path / "runs")
    told: list[Step] = []
    run_loop(read(TINY, "tiny", ["prune.early.rewind_epoch=2", "verify.test=2"]), tmp_path / "runs", told.append)
    redone = {step.stage for step in told if step.finished and not step.reused}
    of_early = {"dense-epoch-2", "early-1-prune", "early-1-finetune", "early-1-export", "early-1-verify-selection"}
    assert redone - of_early == {step.stage for step in told if step.stage.endswith("-verify-test")} and redone >= of_early


def test_a_stage_whose_file_is_gone_is_done_again(finished: tuple[Path, Result, list[Step]], tmp_path: Path) -> None:
    runs, result, _ = finished
    shutil.copytree(runs, tmp_path / "runs")
    gone = tmp_path / "runs" / result.folder.name / result.rows[0].onnx
    gone.unlink()
    told: list[Step] = []
    again = run_loop(read(TINY, "tiny"), tmp_path / "runs", told.append)
    assert [step.stage for step in told if step.finished and not step.reused] == ["dense-export"]
    assert gone.exists() and again.rows == result.rows


class Cut(Exception):
    """Stands for the end of the process."""


class Scissors:
    """A listener that lets so many steps pass."""

    def __init__(self, left: int) -> None:
        self.left = left

    def __call__(self, _: Step) -> None:
        self.left -= 1
        if self.left < 0:
            raise Cut


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 6))])
def test_a_run_cut_at_any_step_ends_as_one_that_was_not(finished: tuple[Path, Result, list[Step]], tmp_path: Path, seed: int) -> None:
    """Every call of the listener is a place to be cut: after a batch, a piece of images, before and after a stage."""
    _, result, told = finished
    moments = random.Random(seed)
    for limit in (len(told), 30):  # cut somewhere in the whole run, then soon after it has begun again
        with contextlib.suppress(Cut):
            run_loop(read(TINY, "tiny"), tmp_path, Scissors(moments.randrange(limit)))
    run_loop(read(TINY, "tiny"), tmp_path, silent)
    assert rows_of(tmp_path / "tiny") == rows_of(result.folder)


def test_another_seed_gives_another_network(finished: tuple[Path, Result, list[Step]], tmp_path: Path) -> None:
    _, result, _ = finished
    images = stages.read_images(read(TINY, "tiny").data, 3)
    first, second = (stages.initial(images.architecture(read(TINY, "tiny").model), seed) for seed in (3, 4))
    assert not all(torch.equal(first.state[name], second.state[name]) for name in first.state if name.endswith("weight"))
    assert result.rows[0].seed == 3


def test_the_initialisation_is_part_of_what_is_trained(tmp_path: Path) -> None:
    """No epochs: the trained network is the initial one."""
    for how in ("default", "ibp"):
        config = read(TINY, "tiny", ["train.epochs=0", "finetune.epochs=1", "prune.early.rewind_epoch=0", f"train.initialise={how}"])
        assert {arm.finetune.initialise for arm in config.prune.values()} == {Initialise.DEFAULT}
        run_loop(replace(config, prune={}), tmp_path, silent)
    trained = [load(path / "network.pt") for path in (tmp_path / "tiny" / "stages").glob("dense-train-*")]
    untrained = [stages.initial(trained[0].architecture, 3, how).state for how in Initialise]
    found = sorted(k for saved in trained for k, state in enumerate(untrained) if all(torch.equal(saved.state[n], state[n]) for n in state))
    assert found == [0, 1]


def test_rewinding_goes_back_to_the_early_weights(finished: tuple[Path, Result, list[Step]]) -> None:
    _, result, _ = finished
    early, pruned = (load(next((result.folder / "stages").glob(f"{label}-*")) / "network.pt") for label in ("dense-epoch-1", "early-1-prune"))
    assert abs(sparsity(pruned.mask) - 0.5) < 0.01
    for name, kept in pruned.mask.items():
        assert torch.equal(pruned.state[name], early.state[name] * kept)


def test_findings_name_the_neurons_of_the_network_in_training(finished: tuple[Path, Result, list[Step]]) -> None:
    """A split recorded of the exported file comes back at the value that the same ReLU reads, and images behind the training images."""
    _, result, _ = finished
    saved = load(next((result.folder / "stages").glob("dense-train-*")) / "network.pt")
    net = Net(saved.model(), saved.architecture.input_shape)
    graph = verifier.load_onnx(result.folder / result.rows[0].onnx)
    relu = next(node.name for node in graph.nodes if node.op == "Relu")
    recorded = {"relus": [relu], "splits": {relu: [[5, 2], [7, 1]]}, "undecided": [9], "falsified": [4, 9]}
    found = stages.findings_of(recorded, net, first=100)
    (value, counts), = found.splits.items()
    assert value == next(node.inputs[0] for node in net.graph({}).nodes if node.op == "Relu")
    assert counts.flatten().nonzero().flatten().tolist() == [5, 7] and counts.sum() == 3
    assert found.undecided == (101,) and found.falsified == (100, 101)
    with pytest.raises(verifier.VerifierError, match="not the same network"):
        stages.findings_of(recorded | {"relus": [relu, relu]}, net, 0)


def test_repeated_images_follow_the_training_images() -> None:
    images = stages.read_images(read(TINY, "tiny").data, 3)
    x, y = stages.with_repeats(images, (2, 5), 3)
    assert x.shape == (102, 1, 8, 8) and y.shape == (102,)
    assert torch.equal(x[96:], torch.from_numpy(images.selection.x[[2, 5] * 3])) and y[96:].tolist() == images.selection.y[[2, 5] * 3].tolist()


def test_selection_test_and_training_images_are_disjoint() -> None:
    images = stages.read_images(read(TINY, "tiny", ["data.train_limit=1300"]).data, 3)
    parts = [images.x.numpy(), images.selection.x[:], images.test.x[:]]
    data = verifier.load_dataset("digits")
    whole = sorted(x.tobytes() for part in (data.x_train[:], data.x_test[:]) for x in part)
    rest = 1437 - 40 - 1300
    assert sum(map(len, parts)) == len(whole) - rest
    left = list(whole)
    for x in (x for part in parts for x in part):
        left.remove(x.tobytes())
    assert len(left) == rest


def test_csv_has_a_line_a_row_and_no_nested_part(finished: tuple[Path, Result, list[Step]]) -> None:
    _, result, _ = finished
    lines = as_csv(result.rows).splitlines()
    assert len(lines) == 1 + len(result.rows) and (result.folder / "results.csv").read_text().splitlines() == lines
    assert "image_rows" not in lines[0] and lines[0].startswith("name,method,round,sparsity,sparsity_file,")
    assert check_rows(json.loads((result.folder / "results.json").read_text())) == result.rows


@pytest.mark.slow
def test_killed_at_ten_random_moments_the_run_ends_with_the_same_rows(finished: tuple[Path, Result, list[Step]], tmp_path: Path) -> None:
    _, result, _ = finished
    config = tmp_path / "tiny.toml"
    config.write_text(TINY)
    command = [sys.executable, "-m", "certprune.cli", "loop", str(config), "--runs", str(tmp_path / "runs")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    moments, killed = random.Random(0), 0
    while killed < 10:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)
        process.stderr.readline()  # from the first stage that was finished or found, the process is at work
        time.sleep(moments.uniform(0.0, 1.5))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
        if process.returncode == 0:  # it was faster: the kills that are left are of another run
            assert rows_of(tmp_path / "runs" / "tiny") == rows_of(result.folder)
            shutil.rmtree(tmp_path / "runs")
    assert subprocess.run(command, capture_output=True, env=environment).returncode == 0
    assert rows_of(tmp_path / "runs" / "tiny") == rows_of(result.folder)
