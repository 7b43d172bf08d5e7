"""A complete verifier of neural networks: does a network keep a property on every input of a region?

>>> import verifier
>>> graph = verifier.load_onnx("examples/digits/digits.onnx")
>>> x, label = verifier.load_images("examples/digits/images.npz")
>>> spec = verifier.robustness(x[0], int(label[0]), eps=0.01, n_out=10, clip=(0.0, 1.0))
>>> verifier.verify(graph, spec).status
<Status.VERIFIED: 'verified'>

>>> verifier.bounds(graph, spec, engine="crown").layers[0]
Layer(name='relu_1', neurons=512, unstable=10, active=346, inactive=156)

A property may also come from a file, `verifier.load_vnnlib(path, n_in, n_out)`, and a network from a `torch.nn.Module`:
`verifier.load_torch`.

Letters used for shapes, always in this order: B problems (the batch, first), S specification rows, N open domains, D split depth;
P problems of one size in the reduced form, U their unstable neurons, R the rows of a polytope.

Names are imported when first used: `import verifier` alone loads neither torch nor any other large package.
"""
from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any

import verifier.bounds

__version__ = "0.1.0"

_HOME = {
    "AttackConfig": "verifier.config",
    "BabConfig": "verifier.config",
    "BoundRequest": "verifier.bounds.engine",
    "BoundResult": "verifier.bounds.engine",
    "Box": "verifier.box",
    "CertificateConfig": "verifier.config",
    "Config": "verifier.config",
    "Counterexample": "verifier.verdict",
    "Dataset": "verifier.data.dataset",
    "Graph": "verifier.graph.ir",
    "IbpOnly": "verifier.bounds.crown",
    "Node": "verifier.graph.ir",
    "OnnxRunner": "verifier.graph.onnx_run",
    "Reason": "verifier.verdict",
    "Spec": "verifier.spec.spec",
    "Status": "verifier.verdict",
    "TorchTrace": "verifier.graph.torch_load",
    "UnsupportedError": "verifier.errors",
    "Verdict": "verifier.verdict",
    "VerifierError": "verifier.errors",
    "crown": "verifier.bounds.crown",
    "ibp": "verifier.bounds.ibp",
    "execute": "verifier.graph.execute",
    "execute_all": "verifier.graph.execute",
    "load_config": "verifier.config",
    "load_dataset": "verifier.data.load",
    "load_images": "verifier.measure.certified",
    "load_onnx": "verifier.graph.load",
    "load_torch": "verifier.graph.torch_load",
    "load_vnnlib": "verifier.spec.normal",
    "robustness": "verifier.spec.robustness",
    "trace_torch": "verifier.graph.torch_load",
    "simplify": "verifier.graph.passes",
    "certify": "verifier.measure.certified",
    "ImageRow": "verifier.measure.certified",
    "MeanStability": "verifier.measure.stability",
    "NetworkSize": "verifier.measure.networks",
    "network_size": "verifier.measure.networks",
    "NeuronSplit": "verifier.verdict",
    "stability_of_images": "verifier.measure.stability",
    "Summary": "verifier.measure.certified",
    "settled": "verifier.measure.certified",
    "survives_attack": "verifier.measure.strong",
    "Tightness": "verifier.measure.tightness",
    "tightness": "verifier.measure.tightness",
    "verify": "verifier.solve",
    "verify_many": "verifier.solve",
    "takes": "verifier.options",
    "measure_accuracy": "verifier.measure.accuracy",
    "device_of": "verifier.solve",
    "Split": "verifier.data.dataset",
    "Perturbation": "verifier.measure.certified",
    "ProofFolder": "verifier.measure.proofs",
}

__all__ = sorted([*_HOME, "bounds"])


class _Bounds(ModuleType):
    """The package of bound engines, which is a public function too: importing one of its modules must not hide `verifier.bounds(...)`."""

    def __call__(self, graph: Any, spec: Any, engine: str = "crown") -> Any:
        """See `verifier.measure.outputs.output_bounds`."""
        return import_module("verifier.measure.outputs").output_bounds(graph, spec, engine)


verifier.bounds.__class__ = _Bounds


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'verifier' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
