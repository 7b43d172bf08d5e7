"""The arguments and options of each command, as frozen dataclasses: a field is an argument or an option, its annotation says which.

`takes(Options)` turns a function of one such value into a command that typer understands.
"""
from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer


class Engine(str, Enum):
    """Bound engines by their command-line names, cheapest first."""

    IBP = "ibp"
    CROWN = "crown"
    ALPHA_CROWN = "alpha-crown"


class Norm(str, Enum):
    """Norms of a perturbation."""

    LINF = "linf"
    L2 = "l2"
    L1 = "l1"


class Arithmetic(str, Enum):
    """What a proof must be about: the network as its own arithmetic computes it, or over the reals."""

    AUTO = "auto"
    REAL = "real"
    FLOAT32 = "float32"
    FLOAT64 = "float64"
    FLOAT16 = "float16"


class Part(str, Enum):
    """Which images of a data set."""

    TEST = "test"
    TRAIN = "train"


Model = Annotated[Path, typer.Argument(metavar="MODEL.onnx", exists=True, dir_okay=False, help="The network; .gz is read as it is.")]
Property = Annotated[
    Path, typer.Argument(metavar="PROPERTY.vnnlib", exists=True, dir_okay=False, help="The property in VNN-LIB 1.0; .gz is read as it is.")
]
Images = Annotated[
    Path,
    typer.Argument(metavar="IMAGES.npz", exists=True, dir_okay=False, help="Arrays x (N, ...), y (N,); 8-bit pixels are scaled by 1/255."),
]
Within = Annotated[float, typer.Option("--timeout", metavar="S", help="Seconds until the command gives up, with exit code 2.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What every command that runs the solver takes. None means: as in the configuration file, or its default."""

    timeout: Annotated[
        float | None, typer.Option(metavar="S", help="Seconds from the command's start until the answer is `timeout` (default 120).")
    ] = None
    device: Annotated[str | None, typer.Option(metavar="auto|cpu|cuda", help="Where to compute (default auto).")] = None
    arithmetic: Annotated[
        Arithmetic | None,
        typer.Option(help="What an `unsat` must be proved of: the network as its own type computes it, in any order of summation; over the reals; or "
                     "(auto, the default) the first, and where that fails the second, which the answer says."),
    ] = None
    config: Annotated[
        Path | None, typer.Option(metavar="F.toml", exists=True, dir_okay=False, help="Settings in TOML; options win over it.")
    ] = None
    no_attack: Annotated[bool, typer.Option("--no-attack", help="Do not search for counterexamples by gradient first.")] = False
    json: Json = False
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print every step on stderr.")] = False


@dataclass(frozen=True, kw_only=True)
class VerifyOptions(RunOptions):
    model: Model
    property: Property
    results_file: Annotated[
        Path | None, typer.Option(metavar="F", dir_okay=False, help="Write the verdict, and the witness after `sat`, there too. An older verdict "
                     "there is replaced once there is a new one; no other file is overwritten.")
    ] = None
    certificate: Annotated[
        Path | None,
        typer.Option(metavar="F.cert", dir_okay=False, help="Keep the proof of an `unsat` there, for `verifier check`. An older certificate of this "
                     "question is removed at the start, whatever the answer will be; no other file is overwritten."),
    ] = None
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a certificate of another model or property, too.")] = False


@dataclass(frozen=True, kw_only=True)
class RobustnessOptions(RunOptions):
    model: Model
    images: Images
    eps: Annotated[str, typer.Option(metavar="EPS", help="Radius in the images' own units: 0.1 or 2/255.")]
    norm: Annotated[Norm, typer.Option(help="Norm of the perturbation.")] = Norm.LINF
    mean: Annotated[str | None, typer.Option(metavar="M[,M...]", help="Subtracted before the network, one or one a channel.")] = None
    std: Annotated[str | None, typer.Option(metavar="S[,S...]", help="Divided by before the network, one or one a channel.")] = None
    clip: Annotated[
        tuple[float, float] | None,
        typer.Option(metavar="LOW HIGH", help="Range of valid pixels (default 0 1 when all images lie in it, else none)."),
    ] = None
    index: Annotated[str | None, typer.Option(metavar="A:B", help="Which images: 0:100, 7, or 1,5,9 (default all).")] = None


@dataclass(frozen=True, kw_only=True)
class AccuracyOptions(RunOptions):
    model: Model
    data: Annotated[str, typer.Option(metavar="NAME|FILE.npz", help="digits, mnist, fashion-mnist, cifar10, svhn, or a file of arrays x, y.")]
    eps: Annotated[str, typer.Option(metavar="EPS", help="Radius in pixels from 0 to 1: 0.1 or 2/255.")]
    norm: Annotated[Norm, typer.Option(help="Norm of the perturbation.")] = Norm.LINF
    limit: Annotated[int | None, typer.Option(metavar="N", min=1, help="Only the first N images.")] = None
    split: Annotated[Part, typer.Option(help="Which images.")] = Part.TEST
    data_dir: Annotated[
        Path | None, typer.Option(metavar="D", help="Where the publisher's files lie (else CERTPRUNE_DATA, this system's, or fetched).")
    ] = None
    results_file: Annotated[
        Path | None,
        typer.Option(metavar="ROWS.csv", dir_okay=False, help="Write a row an image there too; those of this question that are there are kept."),
    ] = None
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what is there of another question: rows, and certificates of these images.")
    ] = False
    timeout: Annotated[float | None, typer.Option(metavar="S", help="Seconds for each image (default 120).")] = None
    no_attack: Annotated[bool, typer.Option("--no-attack", help="No search for counterexamples by gradient, so no PGD accuracy.")] = False
    certificates: Annotated[
        Path | None,
        typer.Option(metavar="DIR", file_okay=False, help="Write properties and proofs, image-N.vnnlib and .cert; those found are only checked."),
    ] = None


@dataclass(frozen=True, kw_only=True)
class BoundsOptions:
    model: Model
    property: Property
    engine: Annotated[Engine, typer.Option(help="How to bound, from fast to tight.")] = Engine.CROWN
    timeout: Within = 600.0
    json: Json = False


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    model: Model
    property: Property
    certificate: Annotated[Path, typer.Argument(metavar="PROOF.cert", exists=True, dir_okay=False, help="What `verify --certificate` wrote.")]
    exact: Annotated[bool, typer.Option("--exact", help="Compute over the rationals: for small networks.")] = False
    timeout: Within = 600.0
    json: Json = False


@dataclass(frozen=True, kw_only=True)
class InfoOptions:
    model: Model
    timeout: Within = 600.0
    json: Json = False


def takes(options: type) -> Callable[[Callable[[Any], None]], Callable[..., None]]:
    """Decorator: `command(options(**fields))` as a function with one keyword parameter for each field of `options`."""
    hints = get_type_hints(options, include_extras=True)
    defaults = {f.name: inspect.Parameter.empty if f.default is MISSING else f.default for f in fields(options)}
    parameters = [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=d, annotation=hints[n]) for n, d in defaults.items()]

    def decorate(command: Callable[[Any], None]) -> Callable[..., None]:
        def run(**given: Any) -> None:
            command(options(**given))

        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__annotations__ = hints
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return run

    return decorate
