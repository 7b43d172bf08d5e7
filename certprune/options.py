"""The arguments and options of each command of `certprune`, as frozen dataclasses for `verifier.takes`."""
from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class SplitName(str, Enum):
    """Splits that a network can be measured on."""

    SELECTION = "selection"
    TEST = "test"


ConfigArgument = Annotated[
    Path | None, typer.Argument(metavar="[CONFIG.toml]", exists=True, dir_okay=False, help="The run's configuration; or name a --preset.")
]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", metavar="CONFIG.toml", exists=True, dir_okay=False, help="The run's configuration; or name a --preset.")
]
Network = Annotated[Path, typer.Argument(metavar="NETWORK.pt", exists=True, dir_okay=False, help="A network that train, prune or finetune wrote.")]
OutFile = Annotated[
    Path, typer.Option("--out", "-o", metavar="OUT.pt", dir_okay=False, help="Where the network goes; a cut training goes on from OUT.pt.part.")
]
ArmName = Annotated[str | None, typer.Option("--arm", metavar="NAME", help="Which [prune.NAME] of the configuration (default its first).")]


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What every command takes that reads a configuration."""

    preset: Annotated[
        str | None, typer.Option(metavar="NAME", help="A configuration that comes with the package: digits, fashion-mnist, cifar10.")
    ] = None
    set: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Lies over the configuration: train.epochs=3. Repeatable.")
    ] = None
    data_dir: Annotated[Path | None, typer.Option(metavar="DIR", help="Where the data set's files are.")] = None
    device: Annotated[str | None, typer.Option(metavar="auto|cpu|cuda", help="Where to compute.")] = None


@dataclass(frozen=True, kw_only=True)
class LoopOptions(RunOptions):
    config: ConfigArgument = None
    runs: Annotated[Path, typer.Option(metavar="DIR", file_okay=False, help="The folder of runs; a run is a folder in it.")] = Path("runs")


@dataclass(frozen=True, kw_only=True)
class TrainOptions(RunOptions):
    config: ConfigArgument = None
    out: OutFile = Path("dense.pt")


@dataclass(frozen=True, kw_only=True)
class PruneOptions(RunOptions):
    network: Network
    config: ConfigOption = None
    arm: ArmName = None
    sparsity: Annotated[float | None, typer.Option(metavar="S", help="Fraction of prunable weights to remove (default the arm's).")] = None
    out: OutFile = Path("pruned.pt")


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions(RunOptions):
    network: Network
    config: ConfigOption = None
    arm: ArmName = None
    out: OutFile = Path("finetuned.pt")


@dataclass(frozen=True, kw_only=True)
class ExportOptions(RunOptions):
    network: Network
    config: ConfigOption = None
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", file_okay=False, help="The folder for the three files.")] = Path("exported")


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(RunOptions):
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", exists=True, dir_okay=False, help="An exported network.")]
    config: ConfigOption = None
    split: Annotated[SplitName, typer.Option(help="Which images.")] = SplitName.TEST
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", file_okay=False, help="The folder for measured.json; a cut run goes on there.")
    ] = Path("measured")


@dataclass(frozen=True, kw_only=True)
class SmoothOptions:
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", exists=True, dir_okay=False, help="A classifier of images with pixels in [0, 1].")]
    data: Annotated[str, typer.Option(metavar="NAME", help="digits, mnist, fashion-mnist, cifar10, svhn, or a file .npz: its test images.")]
    data_dir: Annotated[Path | None, typer.Option(metavar="DIR", help="Where the data set's files are.")] = None
    sigma: Annotated[float, typer.Option(help="Deviation of the noise, in pixel units.")] = 0.25
    radius: Annotated[float, typer.Option(help="The Euclidean radius that the summary counts at.")] = 0.25
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="The first N images (default all).")] = None
    n0: Annotated[int, typer.Option("--n0", min=1, help="Draws that choose the class.")] = 100
    n: Annotated[int, typer.Option("--n", min=1, help="Draws that bound its probability.")] = 10_000
    alpha: Annotated[float, typer.Option(help="Accepted probability that a certificate is wrong.")] = 0.001
    seed: Annotated[int, typer.Option(min=0, help="Of the noise.")] = 0
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    run: Annotated[Path, typer.Argument(metavar="RUN", exists=True, file_okay=False, help="The folder of a run, e.g. runs/digits.")]
    data_dir: Annotated[Path | None, typer.Option(metavar="DIR", help="Where the data set's files are, for the pictures.")] = None
