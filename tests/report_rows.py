"""Rows of an imaginary run for the tests of the report: every number is chosen, so that what a page shows can be told apart."""
from __future__ import annotations

from typing import Any


def layer(name: str, neurons: int, unstable: float) -> dict[str, Any]:
    ibp = {"unstable": unstable, "active": 1.0, "inactive": neurons - unstable - 1.0}
    return {"name": name, "neurons": neurons, "ibp": ibp, "crown": None}


def image(index: int, verdict: str, **more: Any) -> dict[str, Any]:
    row = {"index": index, "label": 1, "predicted": 1, "verdict": verdict, "margin": 0.25, "domains": 3, "seconds": 0.5, "counterexample": None}
    return row | more


def network(name: str, **more: Any) -> dict[str, Any]:
    """A network with two images, one verified and one falsified by the 2x2 counterexample 0.5, 0.5, 0.5, 0.5."""
    row = {
        "name": name, "method": "dense", "round": 0, "sparsity": 0.0, "sparsity_file": 0.0, "seed": 0, "split": "test", "images": 2, "eps": 0.1,
        "norm": "linf", "clean": 0.875, "pgd": 0.75, "certified": 0.5, "certified_upper": 0.625, "unstable_ibp": 41.5, "unstable_crown": 17.25,
        "layers": [layer("relu_1", 64, 8.0), layer("relu_2", 16, 4.0)], "seconds_per_image": 1.75, "domains_per_image": 123.0,
        "parameters": 1000, "nonzero": 900, "flops": 2000, "flops_nonzero": 1800, "bytes": {"masked": 4096, "compact": 2048, "sparse": None},
        "max_difference": 1.5e-06, "survived_attack": True, "tightness": [{"engine": "crown", "gap": 0.375}],
        "image_rows": [image(0, "verified"), image(1, "falsified", margin=-0.125, counterexample=[0.5, 0.5, 0.5, 0.5])], "onnx": "dense.onnx",
    }  # fmt: skip
    return row | more
