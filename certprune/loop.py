"""The closed loop: dense -> rounds of (score, prune, rewind or fine-tune, export, verify) -> pick by the selection split -> certify on test.

Each arm of the configuration starts from the same dense network. The rounds of an arm are measured on the selection split; the round that is
certified most often is picked there, and only that one, with the dense network, meets the test images.
"""
from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import verifier
from certprune import stages
from certprune.checkpoint import Saved, load, save
from certprune.config import After, Arm, Feedback, LoopConfig, digest, plain
from certprune.measured import MEASURE, Question, check_forms, export, measure
from certprune.progress import Listener, Step
from certprune.prune.schedule import sparsities
from certprune.prune.scorer import Findings
from certprune.rows import Row, check_rows, dump_rows
from certprune.stages import Images, Round, Training
from certprune.store import Stage, Store, make_folder, write_json, write_text
from certprune.train.fit import FitConfig, Progress
from certprune.train.net import Net

NETWORK = "network.pt"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A network of the loop: the dense one (method "dense", round 0), or an arm's after a round."""

    method: str
    round: int
    trained: Stage
    exported: Stage

    @property
    def name(self) -> str:
        return self.method if self.round == 0 else f"{self.method}-{self.round}"

    def saved(self) -> Saved:
        return load(self.trained.folder / NETWORK)


@dataclass(frozen=True, slots=True)
class Measurement:
    """A candidate on a split."""

    candidate: Candidate
    split: str
    stage: Stage

    @property
    def certified(self) -> float:
        return self.stage.record["row"]["certified"]


@dataclass(frozen=True, slots=True)
class Result:
    """All rows, and the picks: one an arm, the best of them first."""

    folder: Path
    rows: tuple[Row, ...]
    picked: tuple[str, ...]


def run_loop(config: LoopConfig, runs: Path, tell: Listener) -> Result:
    """The whole run in `runs/NAME`; what is there of an earlier one is used again where it answers the same question.

    Raises:
        VerifierError: the data are not to be had, a file cannot be written, a training diverged.
    """
    folder = runs / config.name
    make_folder(folder)
    write_json(plain(config), folder / "config.json")
    run = _Run(config, Store(folder, tell), stages.read_images(config.data, config.seed))
    found: list[Measurement] = []
    picks: list[Measurement] = []
    dense = run.dense()
    for measurement in run.rounds(dense):
        found.append(measurement)
        _write(run, found)
    for method in config.prune:
        picks.append(best([m for m in found if m.candidate.method == method]))
    for pick in [found[0], *picks]:
        found.append(run.measured(pick.candidate, "test"))
        _write(run, found)
    order = [best(picks), *picks] if picks else []
    picked = tuple(dict.fromkeys(pick.candidate.name for pick in order))
    write_json({"picked": list(picked)}, folder / "picked.json")
    rows = _write(run, found)
    return Result(folder, rows, picked)


def evaluate_file(onnx: Path, config: LoopConfig, images: Images, split: str, folder: Path, listener: Callable[[int, int], None]) -> str:
    """Measures any ONNX file as the configuration says, into `folder/measured.json`; what came of it in a sentence.

    What is kept on the way lies in a folder named by the question, so that another file or setting finds nothing of this one.
    """
    asked = config.verify
    chosen, count = (images.test, asked.test) if split == "test" else (images.selection, asked.selection)
    known = {"file": hashlib.sha256(onnx.read_bytes()).hexdigest(), "data": replace(config.data, data_dir=None), "split": split}
    kept = folder / f"decided-{digest(known | {'verify': asked, 'seed': config.seed, 'measure': MEASURE})}"
    make_folder(kept)
    record = measure(onnx, Question(chosen, count, asked, config.seed, config.device), kept, listener)
    write_json(record["row"], folder / "measured.json")
    return record["note"]


def best(measured: Sequence[Measurement]) -> Measurement:
    """Certified most often; of equals the sparser one, then the earlier."""
    return max(measured, key=lambda m: (m.certified, m.candidate.exported.record["sparsity"], -m.candidate.round))


def stage_count(config: LoopConfig) -> int:
    """How many stages a run has: for the share of it that is done."""
    early = len({arm.rewind_epoch for arm in config.prune.values() if arm.after is After.REWIND})
    return 3 + early + sum(4 * arm.rounds for arm in config.prune.values()) + 1 + len(config.prune)


def _write(run: _Run, found: Sequence[Measurement]) -> tuple[Row, ...]:
    """results.json and results.csv of what is known so far."""
    rows = check_rows([run.row(m) for m in found])
    write_text(dump_rows(rows), run.store.root / "results.json")
    write_text(as_csv(rows), run.store.root / "results.csv")
    return rows


def as_csv(rows: Sequence[Row]) -> str:
    """The rows without their nested parts."""
    import csv
    import io

    flat = [{key: value for key, value in row.model_dump().items() if not isinstance(value, (tuple, list, dict))} for row in rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, [key for key in flat[0] if key != "bytes"], extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


@dataclass(frozen=True, slots=True, eq=False)
class _Run:
    """The stages with what they depend on."""

    config: LoopConfig
    store: Store
    images: Images

    @property
    def device(self) -> torch.device:
        return verifier.device_of(self.config.device)

    def _base(self) -> dict[str, Any]:
        """What every stage depends on; where the data lie is not part of it."""
        return {"data": plain(replace(self.config.data, data_dir=None)), "seed": self.config.seed}

    def dense(self) -> Candidate:
        saved = self._initial()
        label, config = "dense-train", self._fit(self.config.train, 0)

        def work(folder: Path) -> dict[str, Any]:
            return self._trained(saved, (self.images.x, self.images.y), self._training(config, folder, label), folder)

        trained = self.store.stage(label, self._train_key(), work)
        return Candidate("dense", 0, trained, self._exported("dense", trained))

    def _initial(self) -> Saved:
        return stages.initial(self.images.architecture(self.config.model), self.config.seed, self.config.train.initialise)

    def _train_key(self) -> dict[str, Any]:
        return self._base() | {"model": self.config.model, "fit": self._fit(self.config.train, 0)}

    def _fit(self, config: FitConfig, round_: int) -> FitConfig:
        """Each round draws its own batches."""
        return replace(config, seed=self.config.seed + 7919 * round_)

    def _training(self, config: FitConfig, folder: Path, label: str, stop: int | None = None) -> Training:
        return Training(config, folder / "partial.pt", self.device, self._epochs(label), stop)

    def _epochs(self, label: str) -> Any:
        def listener(progress: Progress) -> None:
            self.store.tell(Step(label, progress.epoch + progress.batch / progress.batches, progress.epochs))

        return listener

    def _trained(self, saved: Saved, data: tuple[torch.Tensor, torch.Tensor], training: Training, folder: Path) -> dict[str, Any]:
        after = stages.train(saved, *data, training, "train")
        save(after, folder / NETWORK)
        last = after.history[-1]["epochs"][-1:]
        note = "".join(f"loss {epoch['loss']:.3f}, training accuracy {epoch['accuracy']:.1%}" for epoch in last)
        return {"files": [NETWORK], "note": note}

    def _early(self, epoch: int) -> Stage:
        """The dense network as it was after so many epochs."""
        saved = self._initial()
        label, config = f"dense-epoch-{epoch}", self._fit(self.config.train, 0)

        def work(folder: Path) -> dict[str, Any]:
            return self._trained(saved, (self.images.x, self.images.y), self._training(config, folder, label, epoch), folder)

        return self.store.stage(label, self._train_key() | {"epoch": epoch}, work)

    def rounds(self, dense: Candidate) -> Iterator[Measurement]:
        """The dense network, then every round of every arm, on the selection split."""
        measured = self.measured(dense, "selection")
        yield measured
        for method, arm in self.config.prune.items():
            latest = measured
            for number, removed in enumerate(sparsities(arm.sparsity, arm.rounds), start=1):
                latest = self.measured(self._round(method, arm, number, removed, latest), "selection")
                yield latest

    def _round(self, method: str, arm: Arm, number: int, removed: float, latest: Measurement) -> Candidate:
        name, config = f"{method}-{number}", self._fit(arm.finetune, number)
        arm = replace(arm, finetune=config)
        early = self._early(arm.rewind_epoch) if arm.after is After.REWIND else None
        found = None if arm.feedback is Feedback.NONE else latest.stage
        before = latest.candidate
        settings = {"method": arm.method, "layers": arm.layers, "scope": arm.scope, "fit": config, "removed": removed}
        depends = {"of": before.trained.digest, "early": early and early.digest, "found": found and found.digest, **settings}

        def prune(folder: Path) -> dict[str, Any]:
            after = self._pruned(before, Round(arm, removed, self.images.x, self.images.y, None, None, config.seed, self.device), (early, found))
            save(after, folder / NETWORK)
            return {"files": [NETWORK], "note": f"sparsity {after.history[-1]['sparsity']:.1%}"}

        pruned = self.store.stage(f"{name}-prune", depends, prune)
        repeats = arm.repeats if arm.feedback is Feedback.SCORES_AND_IMAGES else 0
        label = f"{name}-finetune"

        def finetune(folder: Path) -> dict[str, Any]:
            data = stages.with_repeats(self.images, stages.found_images(found.record["findings"]) if found and repeats else (), repeats)
            return self._trained(load(pruned.folder / NETWORK), data, self._training(config, folder, label), folder)

        depends = {"of": pruned.digest, "found": found and found.digest, "repeats": repeats, "fit": config}
        trained = self.store.stage(label, depends, finetune)
        return Candidate(method, number, trained, self._exported(name, trained))

    def _pruned(self, before: Candidate, task: Round, given: tuple[Stage | None, Stage | None]) -> Saved:
        """One pruning; `given`: the early network and the last verification, where the task has such."""
        early, found = given
        saved = before.saved()
        if found is not None:
            findings, x, y = self._findings(saved, found.record["findings"])
            task = replace(task, findings=findings, x=x, y=y)
        if early is not None:
            task = replace(task, early=load(early.folder / NETWORK))
        return stages.prune(saved, task, self._epochs(f"{before.method}-prune"))

    def _findings(self, saved: Saved, recorded: dict[str, Any]) -> tuple[Findings, torch.Tensor, torch.Tensor]:
        """The findings, and the training images followed by those of the selection split that they name."""
        x, y = stages.with_repeats(self.images, stages.found_images(recorded), 1)
        net = Net(saved.model(), saved.architecture.input_shape)
        return stages.findings_of(recorded, net, len(self.images.x)), x, y

    def _exported(self, name: str, trained: Stage) -> Stage:
        def work(folder: Path) -> dict[str, Any]:
            return export(load(trained.folder / NETWORK), self.images.selection.x[:256], folder)

        return self.store.stage(f"{name}-export", {"of": trained.digest}, work)

    def measured(self, candidate: Candidate, split: str) -> Measurement:
        """The candidate's file on the first images of a split."""
        asked, images, count = self.config.verify, self.images.test, self.config.verify.test
        if split == "selection":  # what does not help to choose is left out
            asked, images, count = replace(asked, tightness=0, strong_attack=0), self.images.selection, asked.selection
        label = f"{candidate.name}-verify-{split}"

        def work(folder: Path) -> dict[str, Any]:
            question = Question(images, count, asked, self.config.seed, self.config.device)
            masked = candidate.exported.folder / "masked.onnx"
            record = measure(masked, question, folder, lambda n, of: self.store.tell(Step(label, n, of)))
            check_forms(masked, question, record["row"]["image_rows"])
            return record

        known = {key: value for key, value in plain(asked).items() if key not in ("test", "selection")}
        depends = {"of": candidate.exported.digest, "split": split, "count": count, "verify": known, "seed": self.config.seed, "measure": MEASURE}
        return Measurement(candidate, split, self.store.stage(label, depends, work))

    def row(self, measurement: Measurement) -> dict[str, Any]:
        """The measurement in the schema of results.json."""
        candidate, exported = measurement.candidate, measurement.candidate.exported
        forms = exported.record["forms"]
        about = {
            "name": candidate.name, "method": candidate.method, "round": candidate.round, "sparsity": exported.record["sparsity"],
            "seed": self.config.seed, "split": measurement.split, "eps": self.config.verify.eps, "norm": self.config.verify.norm,
            "bytes": {form: found["bytes"] for form, found in forms.items()},
            "sparsity_file": min(found["sparsity"] for found in forms.values()),
            "max_difference": max(found["max_difference"] for found in forms.values()),
            "onnx": str((exported.folder / "masked.onnx").relative_to(self.store.root)),
        }
        return about | measurement.stage.record["row"]
