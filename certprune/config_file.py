"""TOML -> LoopConfig: every key is checked against the settings' own fields, so that a misspelt one is named and not passed over.

What is known by a name (an objective, a regulariser, a method of pruning) is a table {name = "sabr", small_box = 0.4}, or the name alone.
"""
from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass, replace
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args, get_type_hints

from certprune.config import Arm, LoopConfig, check_fit
from certprune.prune.registry import SCORERS
from certprune.prune.scorer import Scorer
from certprune.train.fit import FitConfig
from certprune.train.objectives.objective import Objective
from certprune.train.objectives.registry import OBJECTIVES, REGULARIZERS
from certprune.train.regularizers import Regularizer
from verifier import VerifierError

Table = dict[str, Any]
KINDS: dict[Any, tuple[str, Mapping[str, type]]] = {
    Objective: ("objective", OBJECTIVES), Regularizer: ("regularizer", REGULARIZERS), Scorer: ("pruning method", SCORERS),
}
AFTER_PRUNING: Table = {"warmup": 0.0, "ramp": 0.0}
"""What fine-tuning does not take over from [train]: the network is used to eps."""


def load(path: str | Path, changes: Sequence[str] = ()) -> LoopConfig:
    """The run of a TOML file, with changes such as "train.epochs=3" laid over it.

    Raises:
        VerifierError: the file cannot be read, a key is unknown (the nearest valid one is named), or a value has the wrong type or range.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise VerifierError(f"Cannot read the configuration {path}: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise VerifierError(f"{path} is not a text file in UTF-8: is it a configuration?") from None
    return read(text, str(path), changes)


def presets() -> list[str]:
    """The names of the configurations that come with the package."""
    return sorted(Path(str(file)).stem for file in (files("certprune") / "presets").iterdir() if file.name.endswith(".toml"))


def load_preset(name: str, changes: Sequence[str] = ()) -> LoopConfig:
    """As `load`, of a configuration that comes with the package."""
    if name not in presets():
        raise VerifierError(f"There is no preset {name!r}{_near(name, presets())}; there are {', '.join(presets())}.")
    return read((files("certprune") / "presets" / f"{name}.toml").read_text(encoding="utf-8"), f"preset {name}", changes)


def read(text: str, source: str, changes: Sequence[str] = ()) -> LoopConfig:
    """As `load`, from the text itself; `source` is what errors call it."""
    tables = _toml(text, source)
    for change in changes:
        _set(tables, change)
    try:
        return _config(tables)
    except VerifierError as error:
        raise VerifierError(f"{source}: {error}") from None


def _config(tables: Table) -> LoopConfig:
    """[finetune] lies over [train], and each [prune.NAME] over [prune], before anything is built."""
    tables = dict(tables)
    train = _section(tables, "train")
    later, shared = _section(tables, "finetune", required=False), _section(tables, "prune", required=False)
    tables.pop("finetune", None)
    tables.pop("prune", None)
    seed = {"seed": tables.get("seed", 0)}
    base = {k: v for k, v in train.items() if k != "initialise"} | AFTER_PRUNING | later
    for name, section in (("train", train), ("finetune", later)):
        if "seed" in section:
            raise VerifierError(f"key '{name}.seed' is not a setting: a run has one seed, at the top of the file.")
    _refuse_a_start(later, "finetune")
    _refuse_unknown(tables, [f.name for f in fields(LoopConfig)] + ["finetune"], "")
    config = build(LoopConfig, tables | {"train": train | seed}, "")
    _fit(base | seed, "finetune")
    _refuse_unknown({k: v for k, v in shared.items() if not isinstance(v, dict)}, [f.name for f in fields(Arm)], "prune.")
    common = {k: v for k, v in shared.items() if not isinstance(v, dict)}
    arms = {name: _arm(name, common, own, base | seed) for name, own in shared.items() if isinstance(own, dict)}
    return replace(config, prune=arms)


def _section(tables: Table, name: str, required: bool = True) -> Table:
    found = tables.get(name, {})
    if not isinstance(found, dict):
        raise VerifierError(f"key {name!r} has the value {found!r}: it is a section, [{name}].")
    if required and name not in tables:
        raise VerifierError(f"the section [{name}] is missing.")
    return found


def _arm(name: str, common: Table, own: Table, base: Table) -> Arm:
    where = f"prune.{name}."
    if "method" not in own and name not in SCORERS:
        raise VerifierError(f"[prune.{name}] has no method, and there is none called {name!r}{_near(name, SCORERS)}: say method = \"...\".")
    table = common | {"method": name} | own
    later = _section(own, "finetune", required=False)
    _refuse_a_start(later, f"{where}finetune")
    table["finetune"] = base | later
    return build(Arm, table, where)


def _refuse_a_start(section: Table, where: str) -> None:
    if "initialise" in section:
        raise VerifierError(f"key '{where}.initialise' is not a setting: fine-tuning goes on from trained weights; say it in [train].")


def _fit(table: Table, where: str) -> FitConfig:
    return build(FitConfig, table, f"{where}.")


def build(kind: type, table: Table, where: str) -> Any:
    """A value of the dataclass `kind` from a table; `where` is the path of the table, ending in a dot.

    Raises:
        VerifierError: a key is not a field or is missing, or a value does not fit.
    """
    known = {f.name: f for f in fields(kind)}
    _refuse_unknown(table, known, where)
    hints = get_type_hints(kind, include_extras=True)
    for name, f in known.items():
        if name not in table and f.default is MISSING and f.default_factory is MISSING:
            raise VerifierError(f"key {where + name!r} is missing.")
    values = {name: _value(hints[name], given, where + name) for name, given in table.items()}
    try:
        made = kind(**values)
        if isinstance(made, FitConfig):
            check_fit(made)
    except VerifierError as error:
        raise VerifierError(f"{where}{error}") from None
    return made


def _value(hint: Any, given: Any, where: str) -> Any:
    if hint in KINDS:
        return _named(hint, given, where)
    if get_args(hint)[:1] == (Regularizer,):
        if not isinstance(given, list):
            raise VerifierError(f"key {where!r} has the value {given!r}: give a list, [{{name = \"nrs\", weight = 0.1}}].")
        return tuple(_named(Regularizer, one, f"{where}[{k}]") for k, one in enumerate(given))
    if is_dataclass(hint):
        if not isinstance(given, dict):
            raise VerifierError(f"key {where!r} has the value {given!r}: it is a section, [{where}].")
        return build(hint, given, f"{where}.")
    return _leaf(hint, given, where)


def _leaf(hint: Any, given: Any, where: str) -> Any:
    from pydantic import TypeAdapter, ValidationError

    try:  # through JSON, the only form in which pydantic is strict about values and still makes tuples and enumerations
        return TypeAdapter(hint).validate_json(json.dumps(given, default=str), strict=True)
    except ValidationError as error:
        raise VerifierError(f"key {where!r} has the value {given!r}: {error.errors()[0]['msg']}.") from None


def _named(kind: Any, given: Any, where: str) -> Any:
    """What a registry holds under `given`, or under its key `name`, with the other keys as its settings."""
    what, registry = KINDS[kind]
    table = {"name": given} if isinstance(given, str) else given
    if not isinstance(table, dict) or not isinstance(table.get("name"), str):
        raise VerifierError(f"key {where!r} has the value {given!r}: give a name, or {{name = \"...\"}} with settings.")
    name = table["name"]
    if name not in registry:
        raise VerifierError(f"key {where!r}: there is no {what} {name!r}{_near(name, registry)}; there are {', '.join(sorted(registry))}.")
    return build(registry[name], {k: v for k, v in table.items() if k != "name"}, f"{where}.")


def _refuse_unknown(table: Table, known: Sequence[str] | Mapping[str, Any], where: str) -> None:
    for key in table:
        if key not in known:
            near = get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"did you mean {where + near[0]!r}?" if near else f"valid keys are {', '.join(known)}."
            raise VerifierError(f"key {where + key!r} is not a setting: {hint}")


def _near(name: str, names: Sequence[str] | Mapping[str, Any]) -> str:
    near = get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _toml(text: str, source: str) -> Table:
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        import tomli as tomllib
    try:
        return tomllib.loads(text)
    except ValueError as error:
        raise VerifierError(f"{source} is not valid TOML: {error}.") from None


def _set(tables: Table, change: str) -> None:
    """Lays one "a.b=value" over the tables, in place; a value that is not TOML is a string."""
    path, equals, text = change.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise VerifierError(f"--set {change!r}: give KEY=VALUE, for example --set train.epochs=3.")
    try:
        value = _toml(f"value = {text}", "--set")["value"]
    except VerifierError:
        value = text.strip()
    at = tables
    for key in keys[:-1]:
        at = at.setdefault(key, {})
        if not isinstance(at, dict):
            raise VerifierError(f"--set {change!r}: {key!r} is not a section.")
    at[keys[-1]] = value
