"""The command `verifier`: reads files and options, asks the solver, writes the verdict.

Exit code 0 after any verdict, 2 after bad input with one sentence on stderr; `check` has 1 for a proof that it rejects.
"""
from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from verifier import __version__, supervisor
from verifier.config import CertificateConfig, Config, load_config
from verifier.console import Answer, ProgressLine, as_json, end_after, finite, word
from verifier.errors import OutOfMemory, VerifierError
from verifier.options import AccuracyOptions, BoundsOptions, CheckOptions, InfoOptions, RobustnessOptions, RunOptions, VerifyOptions, takes
from verifier.outputs import keep_apart
from verifier.streams import plain, tell
from verifier.verdict import Reason

if TYPE_CHECKING:
    from verifier.graph.ir import Graph
    from verifier.measure.certified import ImageRow
    from verifier.verdict import Verdict

UsageError = typer.BadParameter.__base__  # the class of typer's complaints about options; newer releases do not export it
_INTERRUPTED = 130
app = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"verifier {__version__}")
        raise typer.Exit()


@app.callback()
def about(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")] = False) -> None:
    """Prove that a neural network keeps a property on every input of a region, or find an input where it does not."""


@app.command(epilog="Example: verifier verify net.onnx prop.vnnlib.gz --timeout 60 --results-file out.txt")
@takes(VerifyOptions)
def verify(options: VerifyOptions) -> None:
    """Decide a property: `unsat` (it holds, proved), `sat` (it fails; the input where it does follows), `unknown` or `timeout`.

    The first line of stdout is the verdict, sentences go to stderr. The exit code is 0 for every verdict and 2 for bad input.
    """
    line = ProgressLine(options.verbose)
    keep_apart(
        {"the model": options.model, "the property": options.property, "the configuration": options.config},
        {"--results-file": options.results_file, "--certificate": options.certificate},
    )
    config = _settings(options)
    if options.certificate is not None:
        from verifier.certificate.gate import make_room

        wanted = CertificateConfig(options.certificate, options.property, options.overwrite)
        make_room(wanted, options.model)  # before the clock can end this: no older proof lies beside a time-out
    answer = Answer(options.json, options.results_file, line, config.timeout_s, _unfinished(options.certificate))
    answer.give(_decide(options, config, line))


def _unfinished(certificate: Path | None) -> list[str]:
    """What this process would leave behind if it were ended while it gives the certificate its name."""
    return [] if certificate is None else [str(certificate.with_name(f"{certificate.name}.{os.getpid()}.part"))]


def _decide(options: VerifyOptions, config: Config, line: ProgressLine) -> Verdict:
    """The solver's verdict, or UNKNOWN with what was reached where it was interrupted or ran out of memory."""
    from verifier.graph.load import load_onnx
    from verifier.spec.normal import load_vnnlib

    try:
        graph = load_onnx(options.model)
        spec = load_vnnlib(options.property, _size(graph.input_shape), _size(graph.output_shape))
        if spec.note:
            tell(spec.note)
        from verifier import solve

        supervisor.interruptible()
        elapsed = time.monotonic() - line.started
        left = max(config.timeout_s - elapsed, min(config.timeout_s, 0.5))  # the user's clock started with the command, not with the solver
        verdict = solve.verify(graph, spec, replace(config, timeout_s=left), line, _wanted(options))
        ended = verdict.reason is Reason.TIMEOUT and verdict.sentence.startswith("The time of")  # of less: the command's start took some
        sentence = f"The time of {config.timeout_s:g} s is over." if ended else verdict.sentence
        return replace(verdict, sentence=sentence, seconds=time.monotonic() - line.started)
    except KeyboardInterrupt:
        return line.undecided(Reason.INTERRUPTED, "Interrupted.")
    except OutOfMemory as error:
        return line.undecided(Reason.MEMORY, str(error))
    except MemoryError:
        return line.undecided(Reason.MEMORY, "This machine has no memory left.")


@app.command(epilog="Example: verifier robustness net.onnx test.npz --eps 2/255 --mean 0.49,0.48,0.45 --std 0.25,0.24,0.26 --index 0:100")
@takes(RobustnessOptions)
def robustness(options: RobustnessOptions) -> None:
    """Certify images: for each, does the network keep its label on every input within EPS? One row an image, then a summary.

    IMAGES.npz holds arrays x (N, ...) and y (N,) (also called images and labels, X and Y, or unnamed). The time-out is for each image.
    """
    from verifier.measure.certified import Perturbation, Summary, certify, load_images, select
    from verifier.measure.layout import layout_of
    from verifier.spec.robustness import parse_eps

    line = ProgressLine(options.verbose)
    config = _settings(options)
    images, labels = load_images(options.images)
    chosen = select(options.index, len(images))
    mean, std = _numbers(options.mean, "--mean", (0.0,)), _numbers(options.std, "--std", (1.0,))
    clip = options.clip or ((0.0, 1.0) if images.min() >= 0 and images.max() <= 1 else None)
    around = Perturbation(parse_eps(options.eps), options.norm.value, clip, mean, std)
    graph = _load(options.model)
    placed = layout_of(images.shape[1:], graph.input_shape).sentence
    if placed:
        tell(placed)
    rows = []
    supervisor.interruptible()
    try:
        for row in certify(graph, images[chosen], labels[chosen], around, config, line):
            rows.append(replace(row, index=chosen[row.index]))
            line.clear()
            if not options.json:
                _print_row(rows)
    except KeyboardInterrupt:
        tell("Interrupted: the summary counts the images above.")
    line.clear()
    summary = Summary.of(rows)
    if not options.json:
        print(f"\n{summary.sentence()}")
        return
    keep = ("verdict", "reason", "seconds", "domains", "lower_bound")
    about_image = [{"index": r.index, "label": r.label, "predicted": r.predicted} for r in rows]
    shown = [image | {key: as_json(r.verdict)[key] for key in keep} for image, r in zip(about_image, rows)]
    print(json.dumps({"images": shown, "summary": summary.as_dict(), "layout": placed or None}))


def _print_row(rows: list[ImageRow]) -> None:
    """The last of the rows, under a headline if it is the first."""
    if len(rows) == 1:
        print(f"{'index':>6} {'label':>6} {'predicted':>9} {'verdict':>8} {'seconds':>8} {'domains':>8}")
    row, verdict = rows[-1], rows[-1].verdict
    print(f"{row.index:6d} {row.label:6d} {row.predicted:9d} {word(verdict):>8} {verdict.seconds:8.2f} {verdict.domains:8d}", flush=True)


@app.command(epilog="Example: verifier accuracy net.onnx --data fashion-mnist --eps 0.1 --limit 1000 --timeout 10 --results-file rows.csv")
@takes(AccuracyOptions)
def accuracy(options: AccuracyOptions) -> None:
    """Measure a network on a data set: clean accuracy, accuracy under PGD, and certified accuracy with limits where images time out.

    The network takes pixels from 0 to 1; images are brought into its order of axes, channels first or last. Ctrl-C prints what there is.
    """
    from verifier.accuracy_cli import measure

    graph, config = _load(options.model), _settings(options)
    supervisor.interruptible()
    measure(options, graph, config)


@app.command(epilog="Example: verifier check net.onnx prop.vnnlib proof.cert")
@takes(CheckOptions)
def check(options: CheckOptions) -> None:
    """Check a proof: recompute every bound of a certificate, trusting none of its numbers. See docs/certificate.md.

    Prints `accepted` or `rejected`. The exit code is 0 or 1, and 2 where a file cannot be read.
    """
    from verifier import check_cli

    end_after(options.timeout)
    if not check_cli.check(options):
        raise typer.Exit(1)


@app.command(epilog="Example: verifier bounds net.onnx prop.vnnlib --engine alpha-crown --json")
@takes(BoundsOptions)
def bounds(options: BoundsOptions) -> None:
    """Bound every output over the property's input region, and count unstable, active and inactive ReLUs in each layer."""
    from verifier.spec.normal import load_vnnlib

    end_after(options.timeout)
    graph = _load(options.model)
    spec = load_vnnlib(options.property, _size(graph.input_shape), _size(graph.output_shape))
    from verifier.measure.outputs import output_bounds

    found = output_bounds(graph, spec, options.engine.value)
    supervisor.speaking()
    if options.json:
        numbers = {"lower": [finite(v) for v in found.lower], "upper": [finite(v) for v in found.upper]}
        print(json.dumps(numbers | {"layers": [asdict(layer) for layer in found.layers]}))
        return
    print(f"{'output':>8} {'lower':>14} {'upper':>14}")
    for i, (lower, upper) in enumerate(zip(found.lower, found.upper)):
        print(f"{f'Y_{i}':>8} {lower:14.6g} {upper:14.6g}")
    print(f"\n{'neurons':>8} {'unstable':>8} {'active':>8} {'inactive':>8}  layer")
    for layer in found.layers:
        print(f"{layer.neurons:8d} {layer.unstable:8d} {layer.active:8d} {layer.inactive:8d}  {plain(layer.name)}")


@app.command(epilog="Example: verifier info net.onnx.gz")
@takes(InfoOptions)
def info(options: InfoOptions) -> None:
    """Show a network as a table: operations, shapes, parameters, zero weights and activations; unsupported nodes are named."""
    from verifier.graph.describe import describe, total

    end_after(options.timeout)
    rows = describe(_load(options.model))
    supervisor.speaking()
    if options.json:
        print(json.dumps({"nodes": [asdict(row) for row in rows], "total": asdict(total(rows))}))
        return
    width = max(len(plain(row.name)) for row in [*rows, total(rows)])
    print(f"{'node':<{width}}  {'operation':<13} {'shape':<18} {'parameters':>11} {'zero':>7} {'activations':>11}")
    for row in [*rows, total(rows)]:
        shape = "x".join(map(str, row.shape)) or "scalar"
        zero = f"{row.sparsity:.1%}" if row.parameters else ""
        print(f"{plain(row.name):<{width}}  {plain(row.op):<13} {shape:<18} {row.parameters or '':>11} {zero:>7} {row.activations or '':>11}")


def _load(path: object) -> Graph:
    from verifier.graph.load import load_onnx

    return load_onnx(path)


def _settings(options: RunOptions) -> Config:
    """The configuration file's settings, or the defaults, with the command's options over them."""
    config = Config() if options.config is None else load_config(options.config)
    if options.timeout is not None:
        config = replace(config, timeout_s=options.timeout)
    if options.device is not None:
        config = replace(config, device=options.device)
    if options.arithmetic is not None:
        config = replace(config, arithmetic=options.arithmetic.value)
    return replace(config, attack=None) if options.no_attack else config


def _wanted(options: VerifyOptions) -> CertificateConfig | None:
    if options.certificate is None:
        return None
    return CertificateConfig(options.certificate, options.property, options.overwrite)


def _numbers(text: str | None, option: str, default: tuple[float, ...]) -> tuple[float, ...]:
    """The numbers of "0.49,0.48,0.45"."""
    if text is None:
        return default
    try:
        return tuple(float(part) for part in text.replace(",", " ").split())
    except ValueError:
        raise VerifierError(f"{option} is {text!r}: give one number, or one a channel with commas between.") from None


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for side in shape:
        size *= side
    return size


def run(arguments: list[str]) -> int:
    """The exit code of the command line `verifier *arguments`, all of it in this process: without the supervisor's deadlines."""
    try:
        code = int(app(arguments or ["--help"], prog_name="verifier", standalone_mode=False) or 0)
        sys.stdout.flush()
        if code == _INTERRUPTED:  # newer releases of typer turn an interruption into this code, without a word
            tell("verifier: interrupted.")
        return code
    except UsageError as error:
        tell(f"verifier: {error.format_message().rstrip('.')}: see verifier --help.")
    except VerifierError as error:
        tell(f"verifier: {error}")
    except MemoryError:
        tell("verifier: this machine has no memory left for that.")
    except OSError as error:  # what cannot be read or written, of no file of which a command says so itself
        tell(f"verifier: {error.filename or 'a temporary file'} cannot be read or written: {error.strerror or error}.")
    except (KeyboardInterrupt, typer.Abort):
        tell("verifier: interrupted.")
        return _INTERRUPTED
    return 2


def main() -> None:
    """As the installed command; `verifier.start` does the same before anything large is imported."""
    from verifier import start

    start.main()


if __name__ == "__main__":
    main()
