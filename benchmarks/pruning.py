"""Pruning methods by what a verifier can prove afterwards, on Fashion-MNIST at eps 0.1: the table beside that of Li et al., arXiv:2206.07311.

    python -m benchmarks.pruning --runs runs/fashion train adversarial dense magnitude magnitude+nrs hydra ours
    python -m benchmarks.pruning --runs runs/fashion certify adversarial dense ours --images 1000 --timeout 2

Each network is a checkpoint and an ONNX file in the folder of runs; a training that was cut goes on from its last whole epoch, a certification from
its last image. The last 5,000 training images are never trained on: whatever is chosen is chosen on them, the test images only measure.
"""
from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor

import verifier
from benchmarks.rows import append_row, circumstances, limited
from certprune.checkpoint import Architecture, Saved, load, read_tensors, save, write_tensors
from certprune.config import VerifyConfig, digest
from certprune.measured import CHECKED, MEASURE, Question, export, measure
from certprune.models import ModelSpec
from certprune.prune.hydra import Hydra
from certprune.prune.magnitude import Magnitude
from certprune.prune.mask import Layers, Scope, full
from certprune.prune.schedule import prune_once
from certprune.prune.scorer import Context, Scorer
from certprune.stages import Training, initial
from certprune.stages import train as trained
from certprune.train.fit import FitConfig
from certprune.train.net import Net
from certprune.train.objectives.crown_ibp import CrownIbp
from certprune.train.objectives.fgsm import FgsmGradAlign
from certprune.train.regularizers import NormalizedReluStability, Regularizer
from certprune.train.stability_distance import StabilityDistance

EPS, SELECTION, SPARSITY, WIDTH = 0.1, 5000, 0.93, 0.25
DENSE = {
    "adversarial": FitConfig(8, EPS, FgsmGradAlign(share=0.25), lr=2e-3, ramp=1.0),
    "certified": FitConfig(5, EPS, CrownIbp(final_beta=1.0, hardest=3), lr=1e-3, warmup=0.5, ramp=2.0),
}
TUNE = {
    "adversarial": FitConfig(4, EPS, FgsmGradAlign(share=0.25), lr=1e-3),
    "certified": FitConfig(2, EPS, CrownIbp(final_beta=1.0, hardest=3), lr=1e-3),
}
"""Fine-tuning: eps is at its end from the start."""


@dataclass(frozen=True, slots=True)
class Method:
    """How a dense network is pruned: scores (None: not at all), and what the fine-tuning adds to its loss."""

    scorer: Scorer | None
    regularizers: tuple[Regularizer, ...] = ()


NRS = {"adversarial": 1.0, "certified": 0.1}
DISTANCE = {"adversarial": 0.5, "certified": 0.1}
"""Weights of the stability terms: of the published one, and of ours."""


def methods(training: str) -> dict[str, Method]:
    """The rows of the table after `dense`; `ours` learns its mask and its weights under our stability term, `stable` is ours without pruning."""
    nrs, distance = (NormalizedReluStability(NRS[training]),), (StabilityDistance(DISTANCE[training]),)
    return {
        "magnitude": Method(Magnitude()),
        "magnitude+nrs": Method(Magnitude(), nrs),
        "magnitude+distance": Method(Magnitude(), distance),
        "hydra": Method(Hydra(epochs=1)),
        "ours": Method(Hydra(epochs=1), distance),
        "stable": Method(None, distance),
    }


@dataclass(frozen=True, slots=True)
class Run:
    """Where runs are kept, and what they train on: `train` to learn from, 8-bit images `(N, 1, 28, 28)`; `test` to measure."""

    folder: Path
    train: tuple[Tensor, Tensor]
    test: verifier.Split
    architecture: Architecture

    @staticmethod
    def of(folder: Path, data_dir: str | None) -> Run:
        data = verifier.load_dataset("fashion-mnist", data_dir)
        x, y = torch.from_numpy(data.x_train.stored.copy()), torch.from_numpy(data.y_train.copy())
        cut = len(x) - SELECTION
        mean, std = (tuple(round(float(v), 4) for v in moment) for moment in data.moments())
        architecture = Architecture(ModelSpec("paper7", width=WIDTH), tuple(x.shape[1:]), len(data.classes), mean, std)
        return Run(folder, (x[:cut], y[:cut]), data.test, architecture)

    def path(self, training: str, method: str, seed: int) -> Path:
        """Where a network is kept: under another name when any setting that made it is another."""
        made = {"architecture": self.architecture, "dense": DENSE[training], "sparsity": SPARSITY}
        if method != "dense":
            how = methods(training)[method]
            made |= {"tune": TUNE[training], "scorer": how.scorer, "regularizers": how.regularizers}
        return self.folder / f"{training}-{method}-{seed}-{digest(made)}.pt"


def train(run: Run, training: str, method: str, seed: int) -> Saved:
    """The network of one row of the table, from disk or made now; a training that was cut goes on after its last whole epoch."""
    path = run.path(training, method, seed)
    if path.exists():
        return load(path)
    if method == "dense":
        start, config = initial(run.architecture, seed), DENSE[training]
    else:
        start, how = train(run, training, "dense", seed), methods(training)[method]
        config = replace(TUNE[training], regularizers=how.regularizers)
        start = start if how.scorer is None else pruned(run, start, how.scorer, replace(config, seed=seed), path)
    task = Training(replace(config, seed=seed), path.with_suffix(".partial.pt"), torch.device("cpu"), lambda _: None)
    after = trained(start, *run.train, task, method)
    about = {"training": training, "method": method, "seed": seed, "epochs": config.epochs}
    saved = replace(after, history=(*after.history, about))
    save(saved, path)
    print(f"{path.stem}: trained", flush=True)
    return saved


def pruned(run: Run, dense: Saved, scorer: Scorer, config: FitConfig, path: Path) -> Saved:
    """The network under the mask of one shot of the scorer, a threshold over all convolutions; the mask is kept beside the network to come."""
    kept, model = path.with_suffix(".mask.pt"), dense.model()
    if kept.exists():
        return replace(dense, mask=read_tensors(kept))
    generator = torch.Generator().manual_seed(config.seed)
    context = Context(Net(model, run.architecture.input_shape), full(model, Layers.CONV), *run.train, config, SPARSITY, generator=generator)
    mask = prune_once(scorer, context, Scope.GLOBAL, SPARSITY)
    write_tensors(mask, kept)
    return replace(dense, mask=mask)


@dataclass(frozen=True, slots=True)
class Row:
    """One network's file on the first test images. Shares of all images; `certified_upper` counts the undecided as certified."""

    training: str
    method: str
    seed: int
    width: float
    sparsity: float
    epochs: int
    images: int
    clean: float
    pgd: float
    certified: float
    certified_upper: float
    unstable_ibp: float
    unstable_crown: float
    seconds_per_image: float
    domains_per_image: float
    survived_attack: bool | None
    nonzero: int
    bytes_masked: int
    bytes_compact: int
    bytes_sparse: int
    max_difference: float
    timeout_s: float
    commit: str
    device: str
    threads: int
    machine: str
    date: str


def certify(run: Run, saved: Saved, folder: Path, verify: VerifyConfig, threads: int) -> Row:
    """Exports a network in all forms, each checked against it, and measures the masked file on the first test images."""
    about = saved.history[-1]
    question = Question(run.test, verify.test, verify, seed=0, device="cpu")
    exported = export(saved, run.test.x[:CHECKED], folder)
    kept = folder / f"test-{verify.timeout_s:g}s-{MEASURE}"
    found = measure(folder / "masked.onnx", question, kept, lambda done, of: tell(folder.name, done, of))["row"]
    forms = exported["forms"]
    same = {key: found[key] for key in (f.name for f in fields(Row)) if key in found}
    return Row(
        **same, **{f"bytes_{form}": forms[form]["bytes"] for form in forms}, **asdict(circumstances("cpu", threads)), training=about["training"],
        method=about["method"], seed=about["seed"], width=saved.architecture.spec.width, sparsity=round(exported["sparsity"], 4),
        epochs=about["epochs"], max_difference=max(form["max_difference"] for form in forms.values()), timeout_s=verify.timeout_s,
    )


def tell(name: str, done: int, count: int) -> None:
    print(f"{name}: {done} of {count} images", flush=True)


PAPER = {
    ("adversarial", "dense"): "85.2 / 81.2 / 1.5", ("adversarial", "magnitude"): "80.2 / 75.3 / 39.0", ("adversarial", "hydra"): "81.5 / 77.2 / 33.5",
    ("adversarial", "magnitude+nrs"): "81.2 / 74.9 / 41.5", ("certified", "dense"): "77.2 / – / 68.8", ("certified", "magnitude"): "78.1 / – / 73.5",
    ("certified", "hydra"): "79.1 / – / 73.3", ("certified", "magnitude+nrs"): "80.5 / – / 74.0",
}
"""Li et al., table 1, in percent: clean, attacked, certified; full width, 200 test images, 300 s an image, 200 epochs a round."""


def table(rows: Sequence[dict[str, str]]) -> str:
    """The rows of `results/pruning.csv` as Markdown, shares in percent, the paper's numbers beside them."""
    lines = [
        "| training | pruning | clean | PGD | certified | unstable ReLUs | s an image | images, limit | the paper's clean / attacked / certified |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in map(limited, rows):
        clean, pgd, low, high = (f"{100 * float(row[key]):.1f}" for key in ("clean", "pgd", "certified", "certified_upper"))
        certified = low if low == high else f"{low} – {high}"
        effort = f"{float(row['unstable_crown']):,.0f}", f"{float(row['seconds_per_image']):.2f}", f"{row['images']}, {float(row['timeout_s']):g} s"
        cells = [row["training"], row["method"], clean, pgd, certified, *effort]
        lines.append(f"| {' | '.join(cells)} | {PAPER.get((row['training'], row['method']), '')} |")
    return "\n".join(lines)


def read_table(path: Path) -> str:
    with path.open(newline="") as file:
        return table(list(csv.DictReader(file)))


RESULTS = Path(__file__).parent / "results" / "pruning.csv"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/fashion"), help="where networks are kept")
    parser.add_argument("--data-dir", help="where the publisher's files lie")
    parser.add_argument("--threads", type=int, default=1)
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train", help="train, or prune and fine-tune, the networks of these methods")
    certifying = commands.add_parser("certify", help="export and certify them, a row each; what is not trained yet is")
    for command in (training, certifying):
        command.add_argument("training", choices=sorted(DENSE))
        command.add_argument("methods", nargs="+", choices=["dense", *methods("adversarial")])
        command.add_argument("--seed", type=int, default=0)
    certifying.add_argument("--images", type=int, default=1000)
    certifying.add_argument("--timeout", type=float, default=2.0, help="seconds an image")
    certifying.add_argument("--strong-attack", type=int, default=50, help="certified images attacked by 200 steps and 50 restarts")
    certifying.add_argument("--out", type=Path, default=RESULTS)
    commands.add_parser("table", help="the measured rows as Markdown").add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.command == "table":
        print(read_table(options.out))
        return
    torch.set_num_threads(options.threads)
    run = Run.of(options.runs, options.data_dir)
    for method in options.methods:
        saved = train(run, options.training, method, options.seed)
        if options.command == "certify":
            verify = VerifyConfig(EPS, test=options.images, timeout_s=options.timeout, stability=100, strong_attack=options.strong_attack)
            folder = run.path(options.training, method, options.seed).with_suffix("")
            append_row(options.out, certify(run, saved, folder, verify, options.threads))


if __name__ == "__main__":
    main()
