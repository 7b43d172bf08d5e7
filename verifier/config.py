"""Every setting of a verification run, as frozen values passed as arguments; `load_config` reads them from TOML."""
from __future__ import annotations

import re
from dataclasses import dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from verifier.errors import VerifierError


@dataclass(frozen=True, slots=True)
class AttackConfig:
    """PGD: `restarts` random starts a polytope, `steps` sign steps each."""

    restarts: int = 30
    steps: int = 60

    def __post_init__(self) -> None:
        _at_least(self, restarts=1, steps=1)


@dataclass(frozen=True, slots=True)
class BabConfig:
    """Branch and bound: `batch` domains a round, `steps` multiplier updates a domain, `candidates`
    looked at by filtered smart branching, `frontier_bytes` for the open domains of one problem and for the record of its closed ones."""

    batch: int = 256
    steps: int = 3
    candidates: int = 3
    frontier_bytes: int = 2 * 2**30

    def __post_init__(self) -> None:
        _at_least(self, batch=1, steps=0, candidates=1, frontier_bytes=2**20)


@dataclass(frozen=True, slots=True)
class CertificateConfig:
    """A proof of `unsat` is kept in the file `path`; it is about the property in the file `property`.

    `overwrite`: also where a certificate of another model or property lies there.
    """

    path: Path
    property: Path
    overwrite: bool = False


ARITHMETICS = ("auto", "real", "float32", "float64", "float16")


LONGEST_S = 1e7
"""The longest time-out: four months, and less than what a timer thread can hold."""


@dataclass(frozen=True, slots=True)
class Config:
    """`attack` None skips the search for counterexamples by PGD; `device` is auto, cpu, cuda or one of several as cuda:1.

    `arithmetic`: what a proof must be about; auto is the model's own arithmetic or, where that fails, the reals.
    """

    timeout_s: float = 120.0
    device: str = "auto"
    arithmetic: str = "auto"
    memory_bytes: int = 4 * 2**30
    seed: int = 0
    attack: AttackConfig | None = field(default_factory=AttackConfig)
    bab: BabConfig = field(default_factory=BabConfig)

    def __post_init__(self) -> None:
        _at_least(self, memory_bytes=2**20, seed=0)
        if not 0 < self.timeout_s <= LONGEST_S:
            raise VerifierError(f"timeout_s is {self.timeout_s:g}: give a number of seconds above 0, at most {LONGEST_S:g}.")
        if self.seed >= 2**63:
            raise VerifierError(f"seed is {self.seed}: give a number below 2**63.")
        if self.arithmetic not in ARITHMETICS:
            raise VerifierError(f"arithmetic is {self.arithmetic!r}: give {', '.join(ARITHMETICS[:-1])} or {ARITHMETICS[-1]}.")
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise VerifierError(f"device is {self.device!r}: give auto, cpu, cuda, or one of several as cuda:1.")


def load_config(path: str | Path) -> Config:
    """The settings of a TOML file; what the file leaves out keeps its default, and `attack = false` switches the attack off.

    Raises:
        VerifierError: the file cannot be read, a key is unknown (the nearest valid one is named), or a value has the wrong type or range.
    """
    tables = _read_toml(path)
    if tables.get("attack") is False:
        tables["attack"] = None
    _refuse_unknown_keys(tables, Config, "", path)
    import json

    from pydantic import TypeAdapter, ValidationError

    try:  # through JSON, the only form in which pydantic is strict about values and still builds dataclasses
        return TypeAdapter(Config).validate_json(json.dumps(tables, default=str), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise VerifierError(f"{path}: key {key!r} has the value {first['input']!r}: {first['msg']}.") from None
    except VerifierError as error:
        raise VerifierError(f"{path}: {error}") from None


def _at_least(config: Any, **smallest: int) -> None:
    for name, value in smallest.items():
        if getattr(config, name) < value:
            raise VerifierError(f"{name} is {getattr(config, name)}: give at least {value}.")


def _read_toml(path: str | Path) -> dict[str, Any]:
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        import tomli as tomllib
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise VerifierError(f"Cannot read the configuration {path}: {error.strerror}.") from None
    except ValueError as error:
        raise VerifierError(f"{path} is not valid TOML: {error}.") from None


def _refuse_unknown_keys(table: dict[str, Any], kind: type, prefix: str, path: str | Path) -> None:
    """Every key of the table is a field of the dataclass `kind`, tables inside it likewise."""
    known = {f.name: f for f in fields(kind)}
    for key, value in table.items():
        if key not in known:
            near = get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"did you mean {prefix + near[0]!r}?" if near else f"valid keys are {', '.join(known)}."
            raise VerifierError(f"{path}: key {prefix + key!r} is not a setting: {hint}")
        nested = known[key].default_factory
        if isinstance(value, dict) and is_dataclass(nested):
            _refuse_unknown_keys(value, nested, f"{prefix}{key}.", path)
