"""Every way of pruning at several sparsities, and every training objective, on digits: what each network is worth, and what can be proved of it.

    python -m benchmarks.methods --runs runs/methods --sparsities 0.9,0.95 --objectives none
    python -m benchmarks.methods --runs runs/methods --print

Each cell of the tables is a run of the loop with one arm, all in one folder, so that they share the dense network and a cell that was cut goes on.
Rows go to the output file as cells are done; a cell that has its row there is left out, one that failed is a row with the sentence.
"""
from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

import typer

import verifier
from benchmarks.rows import append_row, circumstances, limited
from certprune.config import Arm, DataConfig, Feedback, LoopConfig, VerifyConfig, digest
from certprune.loop import Result, evaluate_file, run_loop
from certprune.models import ModelSpec
from certprune.progress import Listener, Step
from certprune.prune.hydra import Hydra
from certprune.prune.magnitude import Magnitude
from certprune.prune.registry import SCORERS
from certprune.prune.scorer import Scorer
from certprune.prune.verification_guided import VerificationGuided
from certprune.stages import read_images
from certprune.store import read_json
from certprune.train.fit import FitConfig
from certprune.train.initialise import Initialise
from certprune.train.objectives.cc_ibp import CcIbp
from certprune.train.objectives.crown_ibp import CrownIbp
from certprune.train.objectives.exp_ibp import ExpIbp
from certprune.train.objectives.fgsm import FgsmGradAlign
from certprune.train.objectives.gaussian import Gaussian
from certprune.train.objectives.ibp import Ibp
from certprune.train.objectives.mtl_ibp import MtlIbp
from certprune.train.objectives.registry import OBJECTIVES
from certprune.train.objectives.sabr import Sabr
from certprune.train.regularizers import NormalizedReluStability, Regularizer
from certprune.train.stability_distance import StabilityDistance
from certprune.train.warmup_regularizers import BoundTightness, ReluBalance
from verifier import VerifierError

EPS, WIDTH, SELECTION = 0.06, 0.125, 200
DENSE = FitConfig(20, EPS, FgsmGradAlign(share=0.25), batch=64, lr=5e-3, warmup=2, ramp=4)
TUNE = replace(DENSE, epochs=9, lr=3e-3, warmup=0, ramp=0)
"""Fine-tuning: eps is at its end from the start. An arm of several rounds parts these epochs among them."""
SLOW_RAMP = {"warmup": 1.0, "ramp": 10.0}
"""For losses over the whole eps box."""
GUIDING = 32
"""Images of the selection split from which verification-guided rounds learn; an arm of one round has nothing to choose or to learn there."""


@dataclass(frozen=True, slots=True)
class Method:
    """How the dense network is pruned, and what fine-tuning (and scores that are learned) add to the loss."""

    scorer: Scorer
    regularizers: tuple[Regularizer, ...] = ()
    rounds: int = 1
    feedback: Feedback = Feedback.NONE


def methods() -> dict[str, Method]:
    """Every scorer at its own settings, the guided one in rounds, and the combinations with terms of stability."""
    alone = {name: Method(scorer()) for name, scorer in SCORERS.items()}
    nrs, distance = (NormalizedReluStability(0.1),), (StabilityDistance(0.5),)
    return alone | {
        VerificationGuided.name: Method(VerificationGuided(), rounds=3, feedback=Feedback.SCORES_AND_IMAGES),
        "magnitude+nrs": Method(Magnitude(), nrs),
        "magnitude+distance": Method(Magnitude(), distance),
        "hydra+distance": Method(Hydra(), distance),
    }


def objectives() -> dict[str, FitConfig]:
    """Every objective, with settings for a short training."""
    over_boxes = replace(DENSE, **SLOW_RAMP)
    shi = (BoundTightness(0.5), ReluBalance(0.5))
    chosen = {
        "gaussian": replace(DENSE, objective=Gaussian(0.1)),
        "ibp": replace(over_boxes, objective=Ibp(), regularizers=shi, initialise=Initialise.IBP),
        "crown-ibp": replace(over_boxes, objective=CrownIbp(final_beta=1.0)),
        "sabr": replace(over_boxes, objective=Sabr(0.1)),
        "mtl-ibp": replace(over_boxes, objective=MtlIbp(0.1)),
        "cc-ibp": replace(over_boxes, objective=CcIbp(0.1)),
        "exp-ibp": replace(over_boxes, objective=ExpIbp(0.1)),
        "fgsm-gradalign": DENSE,
    }
    return {name: chosen.get(name, replace(DENSE, objective=kind())) for name, kind in OBJECTIVES.items()}


@dataclass(frozen=True, slots=True)
class Cell:
    """One network of the tables: `table` is method or objective, `sparsity` the one aimed at, 0 for a dense network."""

    table: str
    name: str
    sparsity: float
    config: LoopConfig


def config_of(fit: FitConfig, arms: Mapping[str, Arm], verify: VerifyConfig, seed: int) -> LoopConfig:
    """All runs have one name, and so share a folder."""
    data = DataConfig("digits", selection=SELECTION)
    return LoopConfig("methods", data, fit, verify, ModelSpec("paper7", width=WIDTH), arms, seed, device="cpu")


def method_cells(names: Iterable[str], sparsities: Sequence[float], verify: VerifyConfig, seed: int) -> list[Cell]:
    """Each method at each sparsity, sparsity by sparsity, so that the cells done so far compare."""
    known = methods()
    return [
        Cell("method", name, removed, config_of(DENSE, {name.replace("+", "-"): arm_of(known[name], removed)}, _asked(verify, known[name]), seed))
        for removed in sparsities for name in names
    ]  # fmt: skip


def arm_of(method: Method, removed: float) -> Arm:
    """Whatever the rounds, the epochs of fine-tuning are the same in sum."""
    tune = replace(TUNE, epochs=TUNE.epochs // method.rounds, regularizers=method.regularizers)
    return Arm(method.scorer, removed, tune, rounds=method.rounds, feedback=method.feedback)


def _asked(verify: VerifyConfig, method: Method) -> VerifyConfig:
    return replace(verify, selection=1 if method.feedback is Feedback.NONE else GUIDING)


def objective_cells(names: Iterable[str], verify: VerifyConfig, seed: int) -> list[Cell]:
    """Each objective's dense network."""
    known = objectives()
    return [Cell("objective", name, 0.0, config_of(known[name], {}, replace(verify, selection=1), seed)) for name in names]


@dataclass(frozen=True, slots=True)
class Row:
    """A network's file on the first test images; `error` is the sentence where there is none, and numbers are then missing.

    `sparsity` is the one found, `wanted` the one aimed at: whole channels do not always reach it. `certified_upper` counts the undecided too.
    `config`: the digest of the cell's settings.
    """

    table: str
    name: str
    wanted: float
    sparsity: float | None
    clean: float | None
    pgd: float | None
    certified: float | None
    certified_upper: float | None
    unstable_ibp: float | None
    unstable_crown: float | None
    seconds_per_image: float | None
    domains_per_image: float | None
    nonzero: int | None
    max_difference: float | None
    error: str
    images: int
    eps: float
    timeout_s: float
    seed: int
    commit: str
    device: str
    threads: int
    machine: str
    date: str
    config: str


def row_of(cell: Cell, runs: Path, threads: int, tell: Listener) -> Row:
    """The cell's row: its last round's file on the test images, whichever round the loop would have picked."""
    try:
        result = run_loop(cell.config, runs, tell)
        last = [row for row in result.rows if row.split == "selection"][-1]
        measured = on_test(result, cell.config, last.name, tell) | {"sparsity": last.sparsity, "max_difference": last.max_difference}
        error = ""
    except VerifierError as failed:
        measured, error = {}, str(failed)
    asked, named = cell.config.verify, circumstances("cpu", threads)
    about = {"table": cell.table, "name": cell.name, "wanted": cell.sparsity, "error": error, "images": measured.get("images", asked.test)}
    about |= {"eps": asked.eps, "timeout_s": asked.timeout_s, "seed": cell.config.seed} | asdict(named)
    about["config"] = digest(cell.config)
    numbers = {f.name: _short(measured.get(f.name)) for f in fields(Row) if f.name not in about}
    return Row(**numbers, **about)


def on_test(result: Result, config: LoopConfig, name: str, tell: Listener) -> dict[str, Any]:
    """What was measured of a network on the test images, now if the loop did not."""
    found = [row for row in result.rows if (row.name, row.split) == (name, "test")]
    if found:
        return found[0].model_dump()
    onnx = result.folder / next(row.onnx for row in result.rows if row.name == name)
    folder = result.folder / "last" / f"{onnx.parent.name}-{digest(config.verify)}"
    if not (folder / "measured.json").exists():
        images = read_images(config.data, config.seed)
        evaluate_file(onnx, config, images, "test", folder, lambda done, of: tell(Step(f"{name}-verify-test", done, of)))
    return read_json(folder / "measured.json")


def _short(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value


def run_cells(cells: Iterable[Cell], runs: Path, out: Path, threads: int, tell: Listener) -> None:
    """Appends a row for each cell that has none yet under the same question and settings."""
    _add_column(out)
    for cell in cells:
        if not any(_answers(row, cell) for row in read_table(out)):
            append_row(out, row_of(cell, runs, threads, tell))


def _answers(row: Mapping[str, str], cell: Cell) -> bool:
    """Whether the row is the cell's; one without a digest of its settings counts for any: its commit tells them."""
    asked = cell.config.verify
    wanted = (cell.table, cell.name, cell.sparsity, asked.test, asked.eps, asked.timeout_s, cell.config.seed)
    found = tuple(row[key] for key in ("table", "name", "wanted", "images", "eps", "timeout_s", "seed"))
    return found == tuple(str(v) for v in wanted) and row["config"] in ("", digest(cell.config))


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of the file; none where there is no file yet. Older files have no column `config`: it is empty then."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [row if "config" in row else row | {"config": ""} for row in csv.DictReader(file)]


def _add_column(path: Path) -> None:
    """Writes an older file with the column `config`, so that what is appended has its place."""
    rows = read_table(path)
    if rows and "config" not in path.read_text().splitlines()[0].split(","):
        path.unlink()
        for row in rows:
            append_row(path, Row(**row))


COLUMNS: tuple[tuple[str, str, Callable[[str], str]], ...] = (
    ("sparsity", "sparsity", lambda v: f"{float(v):.3f}"),
    ("clean %", "clean", lambda v: f"{100 * float(v):.1f}"),
    ("PGD %", "pgd", lambda v: f"{100 * float(v):.1f}"),
    ("certified %", "certified", lambda v: f"{100 * float(v):.1f}"),
    ("undecided too %", "certified_upper", lambda v: f"{100 * float(v):.1f}"),
    ("unstable, IBP", "unstable_ibp", lambda v: f"{float(v):.0f}"),
    ("unstable, CROWN", "unstable_crown", lambda v: f"{float(v):.0f}"),
    ("s an image", "seconds_per_image", lambda v: f"{float(v):.2f}"),
)


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """The rows as a table in Markdown, in the order of their sparsities; failures tell what was wrong."""
    lines = ["| | " + " | ".join(title for title, _, _ in COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for row in sorted(map(limited, rows), key=lambda r: float(r["wanted"])):
        shown = [row["error"]] + [""] * (len(COLUMNS) - 1) if row["error"] else [form(row[key]) for _, key, form in COLUMNS]
        lines.append(f"| {row['name']} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def chosen(text: str, known: Iterable[str], what: str) -> list[str]:
    """The names between commas: all of them for "all", none for "none"."""
    names = list(known)
    wanted = {"all": names, "none": []}.get(text, [name.strip() for name in text.split(",")])
    wrong = [name for name in wanted if name not in names]
    if wrong:
        raise typer.BadParameter(f"there is no {what} {wrong[0]!r}; there are {', '.join(names)}.")
    return wanted


@dataclass(frozen=True, kw_only=True)
class Options:
    runs: Annotated[Path, typer.Option(help="Folder of networks and whatever else a later run uses again.", file_okay=False)]
    methods: Annotated[str, typer.Option(help="Which methods, with commas between; or all, or none.")] = "all"
    sparsities: Annotated[str, typer.Option(help="Fractions of the convolutions' weights to remove, with commas between.")] = "0.5,0.8,0.9,0.95"
    objectives: Annotated[str, typer.Option(help="Which objectives, with commas between; or all, or none.")] = "all"
    images: Annotated[int, typer.Option(help="Test images, from the first on.", min=1, max=360)] = 360
    timeout: Annotated[float, typer.Option(help="Seconds an image.")] = 2.0
    seed: Annotated[int, typer.Option(help="Of initialisation, batches and attacks.")] = 0
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 1
    out: Annotated[Path, typer.Option(help="CSV file of the rows.")] = Path(__file__).parent / "results" / "methods.csv"
    print: Annotated[bool, typer.Option("--print", help="Only print the tables of the rows there are.")] = False


@verifier.takes(Options)
def main(options: Options) -> None:
    """Train, prune, export and certify on digits, one row a network."""
    import torch

    torch.set_num_threads(options.threads)
    verify = VerifyConfig(EPS, test=options.images, timeout_s=options.timeout)
    removed = [float(part) for part in options.sparsities.split(",") if part]
    cells = objective_cells(chosen(options.objectives, objectives(), "objective"), verify, options.seed)
    cells += method_cells(chosen(options.methods, methods(), "method"), removed, verify, options.seed)
    if not options.print:
        run_cells(cells, options.runs, options.out, options.threads, told)
    rows = read_table(options.out)
    for name in ("objective", "method"):
        print(f"\n{table([row for row in rows if row['table'] == name])}")


def told(step: Step) -> None:
    if step.finished and not step.reused:
        print(f"{step.stage}: {step.note}", flush=True)


if __name__ == "__main__":
    typer.run(main)
