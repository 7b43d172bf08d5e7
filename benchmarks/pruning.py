"""Pruning methods by what a verifier can prove afterwards, on Fashion-MNIST at eps 0.1: the table beside that of Li et al., arXiv:2206.07311.

    python -m benchmarks.pruning train adversarial dense magnitude magnitude+nrs hydra hydra+nrs --runs runs/fashion
    python -m benchmarks.pruning certify --runs runs/fashion --images 1000 --timeout 3

Each network is a checkpoint and an ONNX file in the folder of runs; a training that was cut goes on from its last whole epoch, a certification from
its last image. The last 5,000 training images are never trained on: whatever is chosen is chosen on them, the test images only measure.
"""
from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

import verifier
from certprune.checkpoint import Architecture, Saved, load, read_tensors, save, write_tensors
from certprune.models import ModelSpec
from certprune.prune.hydra import Hydra
from certprune.prune.magnitude import Magnitude
from certprune.prune.mask import Layers, Mask, Scope, apply, full, select, sparsity
from certprune.prune.scorer import Context, Scorer
from certprune.train.fit import Checkpoint, Epoch, FitConfig, Task, fit
from certprune.train.net import Net
from certprune.train.objectives.crown_ibp import CrownIbp
from certprune.train.objectives.fgsm import FgsmGradAlign
from certprune.train.regularizers import NormalizedReluStability, Regularizer
from certprune.train.stability_distance import StabilityDistance
from certprune.train.weights import Weights

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
        "hydra": Method(Hydra(epochs=1)),
        "ours": Method(Hydra(epochs=1), distance),
        "stable": Method(None, distance),
    }


@dataclass(frozen=True, slots=True)
class Run:
    """Where runs are kept, and what they train on: `train` to learn from, `selection` to choose by, 8-bit images `(N, 1, 28, 28)`."""

    folder: Path
    train: tuple[Tensor, Tensor]
    selection: tuple[Tensor, Tensor]
    architecture: Architecture

    @staticmethod
    def of(folder: Path, data_dir: str | None) -> Run:
        data = verifier.load_dataset("fashion-mnist", data_dir)
        x, y = torch.from_numpy(data.x_train.stored.copy()), torch.from_numpy(data.y_train.copy())
        cut = len(x) - SELECTION
        mean, std = (tuple(round(float(v), 4) for v in moment) for moment in data.moments())
        architecture = Architecture(ModelSpec("paper7", width=WIDTH), tuple(x.shape[1:]), len(data.classes), mean, std)
        return Run(folder, (x[:cut], y[:cut]), (x[cut:], y[cut:]), architecture)

    def path(self, training: str, method: str, seed: int, suffix: str = ".pt") -> Path:
        return self.folder / f"{training}-{method.replace(', ', '-')}-{seed}{suffix}"


def train(run: Run, training: str, method: str, seed: int) -> Saved:
    """The network of one row of the table, from disk or made now."""
    path = run.path(training, method, seed)
    if path.exists():
        return load(path)
    torch.manual_seed(seed)
    if method == "dense":
        model, mask, config = run.architecture.build(), {}, DENSE[training]
    else:
        model, how = train(run, training, "dense", seed).model(), methods(training)[method]
        config = replace(TUNE[training], regularizers=how.regularizers)
        mask = {} if how.scorer is None else pruned(run, model, how.scorer, replace(config, seed=seed), path)
        apply(model, mask)
    learn(run, model, mask, replace(config, seed=seed), path)
    history = ({"training": training, "method": method, "seed": seed, "sparsity": sparsity(mask) if mask else 0.0, "epochs": config.epochs},)
    saved = Saved(run.architecture, {k: v.clone() for k, v in model.state_dict().items()}, mask, history)
    save(saved, path)
    return saved


def pruned(run: Run, model: torch.nn.Module, scorer: Scorer, config: FitConfig, path: Path) -> Mask:
    """The mask by one shot of the scorer, a threshold over all convolutions; kept on disk beside the network to come."""
    kept = path.with_suffix(".mask.pt")
    if kept.exists():
        return read_tensors(kept)
    net = Net(model, run.architecture.input_shape)
    generator = torch.Generator().manual_seed(config.seed)
    context = Context(net, full(model, Layers.CONV), *run.train, config, SPARSITY, generator=generator, scope=Scope.GLOBAL)
    mask = select(scorer(context), SPARSITY, Scope.GLOBAL, context.mask)
    write_tensors(mask, kept)
    return mask


def learn(run: Run, model: torch.nn.Module, mask: Mask, config: FitConfig, path: Path) -> None:
    """Trains in place, from the last whole epoch on disk."""
    partial, last = path.with_suffix(".partial.pt"), None
    if partial.exists():
        c = read_tensors(partial)
        last = Checkpoint([Epoch(**e) for e in c["epochs"]], c["model"], c["learned"], c["optimizer"])
    task = Task(Net(model, run.architecture.input_shape), Weights(model, mask), *run.train, config)
    for state in fit(task, last):
        epochs = [asdict(epoch) for epoch in state.epochs]
        write_tensors({"epochs": epochs, "model": state.model, "learned": state.learned, "optimizer": state.optimizer}, partial)
        done = state.epochs[-1]
        print(f"{path.stem} epoch {done.number}: loss {done.loss:.3f}, accuracy {done.accuracy:.3f}, {done.seconds:.0f} s", flush=True)
    partial.unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("training", choices=sorted(DENSE))
    parser.add_argument("methods", nargs="+")
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--data-dir")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    run = Run.of(options.runs, options.data_dir)
    for method in options.methods:
        train(run, options.training, method, options.seed)


if __name__ == "__main__":
    main()
