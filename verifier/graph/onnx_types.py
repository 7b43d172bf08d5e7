"""In which floating type a file computes what depends on its input, followed from the input on."""
from __future__ import annotations

import numpy as np

from verifier.errors import UnsupportedError

# Bits of the significand, and with them what a cast from one to the other loses.
_BITS = {"bfloat16": 8, "float16": 11, "float32": 24, "float64": 53}
# What computes nothing: no type counts.
_KEEPS = frozenset("""
    Cast Concat Dropout Expand Flatten Gather Identity MaxPool GlobalMaxPool Max Min Clip Neg Abs Pad Relu Reshape Resize Slice Split Squeeze Tile
    Transpose Unsqueeze Upsample
""".split())  # noqa: SIM905  (a list of words)
_OTHER_TYPES = frozenset({"Resize", "Upsample", "Dropout"})


class Types:
    """The type of each value that depends on the input, by its ONNX name, and where each type computes first."""

    def __init__(self, name: str, kind: str) -> None:
        self.of, self.first, self.source = {name: kind}, {}, kind

    def step(self, op: str, name: str, inputs: tuple[str, ...], constants: tuple[np.ndarray, ...], outputs: tuple[str, ...], to: str) -> None:
        """One operation on values that depend on the input (`inputs`) and constants; `to` is the type that a Cast asks for.

        Raises:
            UnsupportedError: a cast loses what is part of the function that the file is.
        """
        kinds = {self.of.get(given, self.source) for given in inputs}
        if op not in _OTHER_TYPES:
            kinds |= {value.dtype.name for value in constants if value.dtype.kind in "fV"}
        if op == "Cast":
            self._cast(name, min(kinds), to)
        if op not in _KEEPS or len(kinds) > 1:
            for kind in kinds:
                self.first.setdefault(kind, name)
        kind = to if op == "Cast" else max(kinds, key=lambda k: _BITS.get(k, 0))
        self.of.update((output, kind) for output in outputs if output)

    def _cast(self, name: str, kind: str, to: str) -> None:
        """Notes a cast that rounds; refuses one to a type that is narrower than any float in which the file gets its input."""
        if to not in _BITS:
            raise UnsupportedError(f"a cast of a value that depends on the input to {to}")
        if _BITS[to] >= _BITS.get(kind, 0) and (kind, to) != ("bfloat16", "float16"):
            return
        if to in ("float16", "bfloat16") and self.source != to:
            raise UnsupportedError(f"a cast of a value that depends on the input from {kind} to {to}, which rounds it and may overflow")
        self.first.setdefault(kind, name)
        self.first.setdefault(to, name)

    def arithmetic(self) -> tuple[str | None, str]:
        """The one type, or None and the reason: several, or one that nothing here knows."""
        found = self.first or {self.source: ""}
        if len(found) > 1:
            return None, "it computes in " + " and ".join(f"{kind} (first at {name!r})" for kind, name in found.items())
        kind = next(iter(found))
        return (kind, "") if kind in ("float16", "float32", "float64") else (None, f"it computes in {kind}")
