"""The trusted way from a file to a graph: read, simplify, and run it against onnxruntime before anything is believed of it."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from verifier.graph.ir import Graph


def load_onnx(path: str | Path) -> Graph:
    """The network of an ONNX file (`.gz` too), simplified, after it agreed with onnxruntime on random inputs.

    Raises:
        ModelError: the file cannot be read, or the graph differs from what onnxruntime computes.
        UnsupportedError: operations that no rule covers, all of them listed.
    """
    from verifier.graph.onnx_load import load_onnx as read
    from verifier.graph.passes import simplify
    from verifier.graph.validate import check_against_onnxruntime

    raw = read(path)
    graph = replace(simplify(raw), raw=raw)
    check_against_onnxruntime(graph, path)
    return graph
