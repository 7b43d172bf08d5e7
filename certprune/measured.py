"""The stages that leave the network for its file: export it, and measure the file as a stranger's would be.

What is measured is the *masked* file: it has the shapes of the network in training, so that a neuron that branch and bound split there is known
here. The compact and the sparse file are the same function (checked at export), are told of by their bytes, and may not contradict it.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import verifier
from certprune.checkpoint import Saved
from certprune.config import VerifyConfig
from certprune.export import Form, check_export, export_model
from certprune.prune.mask import Layers, full, sparsity
from certprune.store import make_folder, read_json, write_json

MEASURE = 2
"""Raised when a measurement counts otherwise than it did: older ones are not used again then."""
PIECE = 64
"""Images that are decided together; the results of each piece are kept, and a run that was cut goes on with the next."""
CHECKED = 256
"""Real images on which a file is compared with the network."""
COMPARED, COMPARED_S = 3, 0.3
"""Images on which the verdicts of the other two forms are compared with the masked file's, and the seconds for each."""


def export(saved: Saved, images: np.ndarray, folder: Path) -> dict[str, Any]:
    """Writes the three forms, each checked against the network on `images (N, C, H, W)`; what is known of them."""
    model, found = saved.model(), {}
    mask = saved.mask or full(model, Layers.ALL)
    for form in Form:
        path = folder / f"{form.value}.onnx"
        report = export_model(model, saved.architecture.input_shape, path, form)
        checked = check_export(path, model, images[:CHECKED], mask)
        found[form.value] = {"bytes": report.bytes, "max_difference": checked.max_difference, "sparsity": checked.sparsity}
    note = "{:,} bytes, compact {:,}, sparse {:,}".format(*(found[form.value]["bytes"] for form in Form))
    return {"files": [f"{form.value}.onnx" for form in Form], "forms": found, "sparsity": sparsity(mask), "note": note}


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """What is asked of a file: the first `count` images of a split, under the property of `verify`."""

    split: verifier.Split
    count: int
    verify: VerifyConfig
    seed: int
    device: str

    @property
    def around(self) -> verifier.Perturbation:
        return verifier.Perturbation(self.verify.eps, self.verify.norm, (0.0, 1.0))

    @property
    def config(self) -> verifier.Config:
        return verifier.Config(self.verify.timeout_s, self.device, seed=self.seed)


def measure(onnx: Path, question: Question, folder: Path, listener: Callable[[int, int], None]) -> dict[str, Any]:
    """Everything of a results row that the file and the images tell, and what the next round may learn from.

    Each piece of images is kept in `folder` as it is decided. `listener(done, count)` hears of images.
    """
    graph = verifier.load_onnx(onnx)
    count = min(question.count, len(question.split))
    pieces: list[dict[str, Any]] = []
    make_folder(folder / "pieces")
    for start in range(0, count, PIECE):
        path = folder / "pieces" / f"{start}.json"
        if not path.exists():
            write_json(_piece(graph, question, range(start, min(start + PIECE, count))), path)
        pieces += read_json(path)
        listener(min(start + PIECE, count), count)
    row = _shares(pieces) | _network(onnx, graph, question, count) | {"survived_attack": _survives(onnx, graph, question, pieces)}
    note = f"clean {row['clean']:.1%}, certified {row['certified']:.1%}" + (
        f" to {row['certified_upper']:.1%}" if row["certified_upper"] > row["certified"] else "")
    return {"files": [], "row": row, "findings": _findings(graph, pieces), "note": note}


def _piece(graph: verifier.Graph, question: Question, which: range) -> list[dict[str, Any]]:
    """The outcomes of some images, as plain values."""
    part = question.split.of(slice(which.start, which.stop))
    found = list(verifier.measure_accuracy(graph, part.x[:], part.y, question.around, question.config))
    if any(one.row.verdict.reason is verifier.Reason.INTERRUPTED for one in found):
        raise KeyboardInterrupt
    return [_plain(one, which.start) for one in found]


def _plain(one: Any, first: int) -> dict[str, Any]:
    row, verdict = one.row, one.row.verdict
    return {
        "index": first + row.index, "label": row.label, "predicted": row.predicted, "verdict": verdict.status.value, "survives": one.survives,
        "margin": one.margin if one.margin is not None and np.isfinite(one.margin) else None,
        "domains": verdict.domains, "seconds": round(verdict.seconds, 6),
        "counterexample": None if verdict.counterexample is None else [float(v) for v in verdict.counterexample.x],
        "splits": [list(split) for split in verdict.splits],
    }


def _shares(pieces: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The accuracies and the effort, and the images' rows; certified <= certified_upper <= pgd <= clean."""
    count, correct = len(pieces), [image["predicted"] == image["label"] for image in pieces]
    stands = [right and image["survives"] for right, image in zip(correct, pieces)]
    found = [verifier.settled(verifier.Status(image["verdict"]), stood) for image, stood in zip(pieces, stands)]
    certified = found.count(verifier.Status.VERIFIED)
    return {
        "images": count,
        "clean": sum(correct) / count,
        "pgd": sum(stands) / count,
        "certified": certified / count,
        "certified_upper": (certified + found.count(verifier.Status.UNKNOWN)) / count,
        "seconds_per_image": sum(image["seconds"] for image in pieces) / count,
        "domains_per_image": sum(image["domains"] for image in pieces) / count,
        "image_rows": [{key: value for key, value in image.items() if key not in ("survives", "splits")} for image in pieces],
    }


def _network(onnx: Path, graph: verifier.Graph, question: Question, count: int) -> dict[str, Any]:
    """Size, stability over the first images of all, and the tightness of engines on the first few."""
    asked, size = question.verify, verifier.network_size(onnx)
    part = question.split.of(slice(min(count, asked.stability)))
    ibp, crown = (verifier.stability_of_images(graph, part.x[:], question.around, engine) for engine in ("ibp", "crown"))
    layers = [
        {"name": name, "neurons": int(neurons), "ibp": _mean(ibp, k), "crown": _mean(crown, k)}
        for k, (name, neurons) in enumerate(zip(ibp.names, ibp.neurons))
    ]
    return {
        "parameters": size.parameters, "nonzero": size.nonzero_parameters, "flops": size.flops, "flops_nonzero": size.nonzero_flops,
        "unstable_ibp": float(ibp.unstable.sum()), "unstable_crown": float(crown.unstable.sum()), "layers": layers,
        "tightness": _tightness(graph, question, min(count, asked.tightness)),
    }


def _mean(stability: verifier.MeanStability, k: int) -> dict[str, float]:
    return {key: float(getattr(stability, key)[k]) for key in ("unstable", "active", "inactive")}


def _tightness(graph: verifier.Graph, question: Question, count: int) -> list[dict[str, Any]]:
    """Each engine's mean distance to what branch and bound proved, of the images where it proved anything."""
    if count == 0:
        return []
    part = question.split.of(slice(count))
    gaps = verifier.tightness(graph, part.x[:], part.y, question.around, question.config).gaps()
    finite = {engine: gap[np.isfinite(gap)] for engine, gap in gaps.items()}
    return [{"engine": engine, "gap": float(gap.mean()) if len(gap) else None} for engine, gap in finite.items()]


def _survives(onnx: Path, graph: verifier.Graph, question: Question, pieces: Sequence[dict[str, Any]]) -> bool | None:
    """That the first `strong_attack` certified images survive the strong attack; None where there is none.

    Raises:
        VerifierError: one does not: its proof is wrong.
    """
    certified = [image["index"] for image in pieces if image["verdict"] == "verified"][: question.verify.strong_attack]
    if not certified:
        return None
    part = question.split.of(certified)
    survives = verifier.survives_attack(graph, part.x[:], part.y, question.around, seed=question.seed)
    fallen = [image for image, stands in zip(certified, survives) if not stands]
    if fallen:
        raise verifier.VerifierError(
            f"{onnx}: image {fallen[0]} was proved to keep its label within eps {question.verify.eps:g} ({question.verify.norm}), but an attack "
            "finds a counterexample: the proof is wrong, so trust no row of this network, and report it.")
    return True


def check_forms(masked: Path, question: Question, image_rows: Sequence[dict[str, Any]]) -> None:
    """No image is verified in one form of a network and falsified in another, of the first `COMPARED` that the masked file's `image_rows` decide.

    Raises:
        VerifierError: one is; the forms are then not the same function, or a proof is wrong.
    """
    decided = {image["index"]: image["verdict"] for image in [image for image in image_rows if image["verdict"] != "unknown"][:COMPARED]}
    if not decided:
        return
    part = question.split.of(list(decided))
    config = replace(question.config, timeout_s=min(COMPARED_S, question.verify.timeout_s))
    for form in (Form.COMPACT, Form.SPARSE):
        other = masked.with_name(f"{form.value}.onnx")
        for index, row in zip(decided, verifier.certify(verifier.load_onnx(other), part.x[:], part.y, question.around, config), strict=True):
            if row.verdict.reason is verifier.Reason.INTERRUPTED:
                raise KeyboardInterrupt
            if {decided[index], row.verdict.status.value} == {"verified", "falsified"}:
                raise verifier.VerifierError(
                    f"Image {index} is {decided[index]} in {masked} but {row.verdict.status.value} in {other}: they are not the same network, or a "
                    "proof is wrong; trust neither, and report it.")


def _findings(graph: verifier.Graph, pieces: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """`splits`: for each activation that was split, its neurons and how often, over all images; `relus`: the ReLUs in the network's order."""
    total: dict[str, dict[int, int]] = {}
    for image in pieces:
        for node, neuron, times in image["splits"]:
            neurons = total.setdefault(node, {})
            neurons[neuron] = neurons.get(neuron, 0) + times
    return {
        "relus": [node.name for node in graph.nodes if node.op == "Relu"],
        "splits": {node: sorted(neurons.items()) for node, neurons in total.items()},
        "undecided": [image["index"] for image in pieces if image["verdict"] == "unknown"],
        "falsified": [image["index"] for image in pieces if image["counterexample"] is not None],
    }
