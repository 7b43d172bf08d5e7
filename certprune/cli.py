"""The command `certprune`: the whole loop, and each of its stages alone, reading and writing files.

Exit code 0 when the work is done, 2 after bad input or a full disk with one sentence on stderr, 130 after Ctrl-C.
"""
from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from certprune import __version__
from certprune.console import Bars, share, table, tell
from certprune.options import (
    EvaluateOptions,
    ExportOptions,
    FinetuneOptions,
    LoopOptions,
    PruneOptions,
    ReportOptions,
    RunOptions,
    SmoothOptions,
    TrainOptions,
)
from verifier import VerifierError, takes
from verifier.start import settle

if TYPE_CHECKING:
    from certprune.checkpoint import Saved
    from certprune.config import Arm, LoopConfig
    from certprune.smoothing import SmoothedRow
    from certprune.stages import Images
    from certprune.train.fit import FitConfig

UsageError = typer.BadParameter.__base__  # the class of typer's complaints about options; newer releases do not export it
app = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"certprune {__version__}")
        raise typer.Exit()


@app.callback()
def about(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")] = False) -> None:
    """Train networks, prune them so that they are easier to prove, export them as sparse ONNX, and certify the files."""


@app.command(epilog="Example: certprune loop --preset digits --set train.epochs=3")
@takes(LoopOptions)
def loop(options: LoopOptions) -> None:
    """The closed loop: train, then rounds of prune, fine-tune, export and verify; pick by the selection split, certify on test.

    Everything is kept in RUNS/NAME as it is done. The same command resumes where it stopped, and uses again what a changed
    configuration leaves as it was.
    """
    from certprune.loop import run_loop, stage_count

    config = _config(options, options.config)
    folder = options.runs / config.name
    with Bars(stage_count(config)) as bars:
        try:
            result = run_loop(config, options.runs, bars)
        except KeyboardInterrupt:
            raise _Kept(f"Interrupted: {bars.finished} finished stages and every finished epoch are kept in {folder}; "
                        "the same command goes on from there.") from None
        except VerifierError as error:
            kept = f" What was finished ({bars.finished} stages) is kept in {folder}." if bars.finished else ""
            raise VerifierError(f"{error}{kept}") from None
    from certprune.reported import report_run  # matplotlib is not needed before

    page = report_run(folder, options.data_dir)
    print(table(result.rows))
    if bars.reused:
        tell(f"{len(bars.reused)} of {bars.finished} stages were found in {folder}/stages, and used again.")
    if result.picked:
        tell(f"Picked by the selection split: {result.picked[0]}. Rows are in {folder}/results.json and results.csv.")
    tell(f"The report: {page}")


class _Kept(Exception):
    """Ctrl-C, with the sentence that says what is kept."""


@app.command(epilog="Example: certprune train --preset digits --out dense.pt")
@takes(TrainOptions)
def train(options: TrainOptions) -> None:
    """Train the dense network of a configuration."""
    from certprune import stages

    config, images = _prepared(options, options.config)
    untrained = stages.initial(images.architecture(config.model), config.seed, config.train.initialise)
    _fitted(untrained, images, config, config.train, options.out)


@app.command(epilog="Example: certprune prune dense.pt --preset digits --arm magnitude --sparsity 0.8 --out pruned.pt")
@takes(PruneOptions)
def prune(options: PruneOptions) -> None:
    """Remove weights of a network by one arm's method, in one round and without findings; fine-tuning comes after."""
    from certprune import stages
    from certprune.checkpoint import save
    from certprune.progress import Step

    config, images = _prepared(options, options.config)
    arm = _arm(config, options.arm)
    removed = arm.sparsity if options.sparsity is None else options.sparsity
    with Bars() as bars:
        task = stages.Round(arm, removed, images.x, images.y, None, None, config.seed, _device(config))
        after = stages.prune(_loaded(options.network, images), task, lambda p: bars(Step("prune", p.epoch + p.batch / p.batches, p.epochs)))
    save(after, options.out)
    print(f"{options.out}: sparsity {share(after.history[-1]['sparsity'])}")


@app.command(epilog="Example: certprune finetune pruned.pt --preset digits --arm magnitude --out finetuned.pt")
@takes(FinetuneOptions)
def finetune(options: FinetuneOptions) -> None:
    """Train a pruned network on; its removed weights stay at zero."""
    config, images = _prepared(options, options.config)
    _fitted(_loaded(options.network, images), images, config, _arm(config, options.arm).finetune, options.out)


@app.command(epilog="Example: certprune export finetuned.pt --preset digits --out exported")
@takes(ExportOptions)
def export(options: ExportOptions) -> None:
    """Write a network as ONNX in its three forms, each compared with the network on real images."""
    from certprune import measured
    from certprune.store import make_folder

    _, images = _prepared(options, options.config)
    network = _loaded(options.network, images)
    make_folder(options.out)
    record = measured.export(network, images.selection.x[: measured.CHECKED], options.out)
    for form, found in record["forms"].items():
        difference = f"at most {found['max_difference']:.2g} from the network"
        print(f"{options.out / form}.onnx: {found['bytes']:,} bytes, sparsity {share(found['sparsity'])}, {difference}")


@app.command(epilog="Example: certprune evaluate exported/masked.onnx --preset digits --split test --out measured")
@takes(EvaluateOptions)
def evaluate(options: EvaluateOptions) -> None:
    """Measure an exported network on a split: clean, attacked and certified accuracy, an image at a time."""
    from certprune.loop import evaluate_file
    from certprune.progress import Step

    config, images = _prepared(options, options.config)
    with Bars() as bars:
        try:
            note = evaluate_file(options.model, config, images, options.split.value, options.out, lambda n, of: bars(Step("evaluate", n, of)))
        except KeyboardInterrupt:
            raise _Kept(f"Interrupted: the images that were decided are kept in {options.out}; the same command goes on from there.") from None
    print(f"{options.out / 'measured.json'}: {note}")


@app.command(epilog="Example: certprune smooth exported/masked.onnx --data digits --sigma 0.25 --radius 0.25 --limit 100")
@takes(SmoothOptions)
def smooth(options: SmoothOptions) -> None:
    """Certify a network's class under Gaussian noise (randomised smoothing): each certificate may be wrong with probability ALPHA.

    That is a statement on the smoothed network and Euclidean distances; what evaluate proves is on the network itself. One row an image,
    then a summary.
    """
    import verifier
    from certprune.progress import Step
    from certprune.smoothing import SmoothedSummary, SmoothingConfig, certify_smoothed, check_radius, onnx_classifier

    config = SmoothingConfig(options.sigma, options.n0, options.n, options.alpha, seed=options.seed)
    check_radius(options.radius, config)
    classify = onnx_classifier(options.model)
    test = verifier.load_dataset(options.data, options.data_dir).test
    part = test.of(slice(options.limit))
    if not len(part):
        raise VerifierError(f"Data set {options.data!r} has no test images: give x_test and y_test.")
    rows: list[SmoothedRow] = []
    interrupted = None
    with Bars() if options.json else nullcontext() as bars:  # a bar would take the rows of standard output to itself
        try:
            for row in certify_smoothed(classify, part.x[:], part.y, config):
                rows.append(row)
                if bars is not None:
                    bars(Step("smooth", len(rows), len(part)))
                else:
                    _print_smoothed(rows, len(part), options.radius)
        except KeyboardInterrupt:
            interrupted = _Kept(f"Interrupted: the summary counts {len(rows)} of {len(part)} images.")
    summary = SmoothedSummary.of(rows, options.radius)
    print(json.dumps({"images": [asdict(row) for row in rows], "summary": asdict(summary)}) if options.json else f"\n{summary.sentence()}")
    if interrupted is not None:
        raise interrupted


def _print_smoothed(rows: list[SmoothedRow], count: int, radius: float) -> None:
    """The last of the rows, under a headline if it is the first."""
    if len(rows) == 1:
        print(f"{'image':>6} {'of':>6} {'label':>6} {'predicted':>9} {'radius':>8} {'certified':>9} {'seconds':>8}")
    row = rows[-1]
    predicted, certified = "abstains" if row.predicted is None else row.predicted, "yes" if row.certified(radius) else "no"
    print(f"{row.index:6d} {count:6d} {row.label:6d} {predicted:>9} {row.radius:8.4f} {certified:>9} {row.seconds:8.2f}", flush=True)


@app.command(epilog="Example: certprune report runs/digits")
@takes(ReportOptions)
def report(options: ReportOptions) -> None:
    """Write RUN/report.html, one self-contained file, from RUN/results.json."""
    from certprune.reported import report_run

    print(report_run(options.run, options.data_dir))


def _config(options: RunOptions, path: Path | None) -> LoopConfig:
    """The configuration of the file or the preset, with the command's options over it."""
    from certprune.config_file import load, load_preset, presets

    if (path is None) == (options.preset is None):
        raise VerifierError(f"Give a configuration file or --preset {'|'.join(presets())}, one of both.")
    changes = list(options.set or ())
    changes += [] if options.device is None else [f"device={options.device}"]
    config = load_preset(options.preset, changes) if path is None else load(path, changes)
    return config if options.data_dir is None else replace(config, data=replace(config.data, data_dir=str(options.data_dir)))


def _prepared(options: RunOptions, path: Path | None) -> tuple[LoopConfig, Images]:
    from certprune.stages import read_images

    config = _config(options, path)
    return config, read_images(config.data, config.seed)


def _loaded(path: Path, images: Images) -> Saved:
    """A checkpoint whose network takes these images and has a class for each of their labels."""
    from certprune.checkpoint import load

    saved = load(path)
    own, wanted = saved.architecture, (tuple(images.x.shape[1:]), len(images.classes))
    if (tuple(own.input_shape), own.classes) != wanted:
        seen = f"{path} takes images {tuple(own.input_shape)} of {own.classes} classes"
        raise VerifierError(f"{seen}, but the data set has images {wanted[0]} of {wanted[1]}: give the configuration that it was trained by.")
    return saved


def _device(config: LoopConfig) -> object:
    import verifier

    return verifier.device_of(config.device)


def _arm(config: LoopConfig, name: str | None) -> Arm:
    if not config.prune:
        raise VerifierError("The configuration has no [prune.NAME]: add one, for example [prune.magnitude].")
    chosen = next(iter(config.prune)) if name is None else name
    if chosen not in config.prune:
        raise VerifierError(f"The configuration has no [prune.{chosen}]; it has {', '.join(config.prune)}.")
    return config.prune[chosen]


def _fitted(saved: Saved, images: Images, config: LoopConfig, fit: FitConfig, out: Path) -> None:
    """Trains and saves, keeping each epoch beside `out` until it is done."""
    from certprune import stages
    from certprune.checkpoint import save
    from certprune.progress import Step

    partial = out.with_name(out.name + ".part")
    with Bars() as bars:
        training = stages.Training(fit, partial, _device(config), lambda p: bars(Step("train", p.epoch + p.batch / p.batches, p.epochs)))
        try:
            after = stages.train(saved, images.x, images.y, training, "train")
        except KeyboardInterrupt:
            raise _Kept(f"Interrupted: every finished epoch is kept in {partial}; the same command goes on from there.") from None
    save(after, out)
    partial.unlink(missing_ok=True)
    last = after.history[-1]["epochs"][-1:]
    print(f"{out}: " + ("".join(f"loss {e['loss']:.3f}, training accuracy {share(e['accuracy'])}" for e in last) or "untrained"))


def run(arguments: list[str]) -> int:
    """The exit code of the command line `certprune *arguments`."""
    try:
        return int(app(arguments or ["--help"], prog_name="certprune", standalone_mode=False) or 0)
    except UsageError as error:
        tell(f"certprune: {error.format_message().rstrip('.')}: see certprune --help.")
    except VerifierError as error:
        tell(f"certprune: {error}")
    except _Kept as kept:
        tell(str(kept))
        return 130
    except (KeyboardInterrupt, typer.Abort):
        tell("certprune: interrupted.")
        return 130
    return 2


def main() -> None:
    settle()
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
