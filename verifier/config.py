"""Every setting of a verification run, as frozen values passed as arguments; `load_config` reads them from TOML."""
from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class AttackConfig:
    """PGD: `restarts` random starts a polytope, `steps` sign steps each."""

    restarts: int = 30
    steps: int = 60


@dataclass(frozen=True, slots=True)
class BabConfig:
    """Branch and bound: `batch` domains a round, `steps` multiplier updates a domain, `candidates` looked at by filtered smart branching."""

    batch: int = 256
    steps: int = 8
    candidates: int = 3
    max_domains: int = 1_000_000


@dataclass(frozen=True, slots=True)
class Config:
    """`attack` None skips the search for counterexamples by PGD; `device` is auto, cpu, cuda or a torch device name."""

    timeout_s: float = 120.0
    device: str = "auto"
    memory_bytes: int = 4 * 2**30
    seed: int = 0
    attack: AttackConfig | None = field(default_factory=AttackConfig)
    bab: BabConfig = field(default_factory=BabConfig)
