"""The rows of results.json: what is known of one network on one split of the data, checked when it is written and when it is read.

Fractions are in 0..1, eps in pixel units, times in seconds. None is "not measured", never zero.

    rows = read_rows("runs/digits/results.json")
    text = dump_rows(rows)
"""
from __future__ import annotations

import json
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from verifier import VerifierError

Fraction = Annotated[float, Field(ge=0, le=1)]
Amount = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]


class _Checked(BaseModel):
    """Frozen, with no key beside the named ones and no number that is NaN or infinite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Stability(_Checked):
    """ReLUs of one layer by their sign over the region, averaged over the images: unstable + active + inactive = neurons."""

    unstable: Amount
    active: Amount
    inactive: Amount


class LayerRow(_Checked):
    """One layer of ReLUs under interval bounds and under CROWN."""

    name: str
    neurons: Count
    ibp: Stability | None
    crown: Stability | None


class Bytes(_Checked):
    """Size on disk of the three export forms."""

    masked: Count | None
    compact: Count | None
    sparse: Count | None


class TightnessRow(_Checked):
    """`gap`: the bound of branch and bound minus this engine's, on average over images; 0 is as tight as complete."""

    engine: str
    gap: float | None


class ImageResult(_Checked):
    """One image of the split; `index` is its place there, `verdict` verified, falsified or unknown; pixels of `counterexample` flattened."""

    index: Count
    label: Count
    predicted: Count
    verdict: Annotated[str, Field(pattern="^(verified|falsified|unknown)$")]
    margin: float | None
    domains: Count | None
    seconds: Amount | None
    counterexample: tuple[float, ...] | None


class Row(_Checked):
    """One network on one split. `certified` and `certified_upper` differ by the images that were neither proved nor falsified.

    An image whose label PGD took cannot be certified, so `certified_upper` is at most `pgd`: rows of runs that did not count so are read so.

    `sparsity` is the mask's; `sparsity_file` is counted in the exported files, the smallest of the three forms, and never below it.
    """

    name: Annotated[str, Field(min_length=1)]
    method: Annotated[str, Field(min_length=1)]
    round: Count
    sparsity: Fraction
    sparsity_file: Fraction | None
    seed: int
    split: str
    images: Count
    eps: Amount
    norm: str
    clean: Fraction | None
    pgd: Fraction | None
    certified: Fraction | None
    certified_upper: Fraction | None
    unstable_ibp: Amount | None
    unstable_crown: Amount | None
    layers: tuple[LayerRow, ...]
    seconds_per_image: Amount | None
    domains_per_image: Amount | None
    parameters: Count | None
    nonzero: Count | None
    flops: Count | None
    flops_nonzero: Count | None
    bytes: Bytes | None
    max_difference: Amount | None
    survived_attack: bool | None
    tightness: tuple[TightnessRow, ...]
    image_rows: tuple[ImageResult, ...]
    onnx: str | None

    @model_validator(mode="after")
    def _limits_in_order(self) -> Row:
        if self.certified is not None and self.certified_upper is not None and self.certified > self.certified_upper:
            raise ValueError(f"certified {self.certified:g} is above certified_upper {self.certified_upper:g}")
        if self.certified is not None and self.pgd is not None and self.certified > self.pgd:
            raise ValueError(f"certified {self.certified:g} is above pgd {self.pgd:g}: an attack took the label of an image that is proved")
        return self


def read_rows(path: str | Path) -> tuple[Row, ...]:
    """The rows of a results.json.

    Raises:
        VerifierError: the file cannot be read, is not JSON, or a key is missing, unknown or of an impossible value.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise VerifierError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error}): give the results.json of a run.") from None
    return _parse(text, str(path))


def check_rows(rows: Sequence[dict[str, Any]], where: str = "the rows") -> tuple[Row, ...]:
    """The same check of rows that are in memory; `where` names them in the error."""
    return _parse(json.dumps(rows), where)


def dump_rows(rows: Sequence[Row]) -> str:
    """The text of results.json: the same rows give the same bytes."""
    return json.dumps([row.model_dump(mode="json") for row in rows], indent=1, allow_nan=False) + "\n"


def _parse(text: str, where: str) -> tuple[Row, ...]:
    try:
        return tuple(map(_limited, TypeAdapter(tuple[Row, ...]).validate_json(text, strict=True)))
    except ValidationError as error:
        raise VerifierError(f"{where}: {_sentence(error)}") from None


def _limited(row: Row) -> Row:
    """The row with `certified_upper` at most `pgd`."""
    if row.certified is None or row.certified_upper is None or row.pgd is None or row.certified_upper <= row.pgd:
        return row
    return row.model_copy(update={"certified_upper": row.pgd})


def _sentence(error: ValidationError) -> str:
    """The first complaint, an unknown key before all others: a misspelt key is missing under its right name too."""
    first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "json_invalid":
        return f"it is not JSON ({first['ctx']['error']}): is the file cut?"
    if first["type"] == "missing":
        return f"key {key!r} is missing: write null where nothing was measured."
    if first["type"] == "extra_forbidden":
        near = get_close_matches(str(first["loc"][-1]), _names(), n=1, cutoff=0.5)
        return f"key {key!r} is not one of the schema" + (f": did you mean {near[0]!r}?" if near else ".")
    if first["type"] == "value_error":
        return f"row {key}: {first['ctx']['error']}."
    value = repr(first["input"])
    what = f"key {key!r} has the value {value if len(value) < 60 else value[:57] + '...'}" if key else "it does not hold a list of rows"
    return f"{what}: {first['msg']}."


def _names() -> list[str]:
    kinds = (Row, LayerRow, Stability, Bytes, TightnessRow, ImageResult)
    return sorted({name for kind in kinds for name in kind.model_fields})
