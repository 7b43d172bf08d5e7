"""Writes operations.md from the registries: python -m docs.operations."""
from __future__ import annotations

from pathlib import Path

from verifier.graph.ir import Node
from verifier.graph.onnx_load import supported_operations
from verifier.ops import AffineOp, ElementwiseOp, registered_ops, rule_for

PAGE = Path(__file__).with_name("operations.md")
COLUMNS = 6


def page() -> str:
    """The text of operations.md."""
    onnx = list(supported_operations())
    rows = [onnx[i : i + COLUMNS] for i in range(0, len(onnx), COLUMNS)]
    rows[-1] += [""] * (COLUMNS - len(rows[-1]))
    return "\n".join(
        [
            "# Supported operations",
            "",
            "Written by `python -m docs.operations` from the registries; a test compares.",
            "",
            f"## {len(onnx)} ONNX operations",
            "",
            "Read and lowered exactly. Any other operation is fine where it does not depend on the input: it is then computed once, at",
            "loading. Everything else is refused at loading, with the names of all nodes that are in the way.",
            "",
            "|" + " |" * COLUMNS,
            "|" + "---|" * COLUMNS,
            *("| " + " | ".join(row) + " |" for row in rows),
            "",
            f"## The {len(registered_ops())} operations they become",
            "",
            "| operation | kind |",
            "|---|---|",
            *(f"| {op} | {_kind(op)} |" for op in registered_ops()),
            "",
        ]
    )


def _kind(op: str) -> str:
    rule = rule_for(Node(op, op, (), ()))
    if isinstance(rule, AffineOp):
        return "affine"
    return "elementwise" if isinstance(rule, ElementwiseOp) else "nonlinear in several inputs"


if __name__ == "__main__":
    PAGE.write_text(page())
