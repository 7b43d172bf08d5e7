"""A whole run as one frozen value: data, network, training, arms of pruning, verification; read from TOML by config_file.py.

    [train]           dense training, and what fine-tuning starts from
    [finetune]        what differs after pruning (eps and its ramp: at once, unless said otherwise)
    [prune]           settings that every arm shares
    [prune.NAME]      one arm: its method (NAME, if there is one of this name) and what is its own
    [verify]          what is certified, and on how many images
"""
from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from typing import Any

from certprune.models import ModelSpec
from certprune.prune.mask import Layers, Scope
from certprune.prune.scorer import Scorer
from certprune.train.fit import OPTIMIZERS, FitConfig
from verifier import VerifierError

NORMS = ("linf", "l2", "l1")


class After(str, Enum):
    """What follows a round of pruning: training on from the weights as they are, or from those of an early epoch under the new mask."""

    FINE_TUNE = "fine-tune"
    REWIND = "rewind"


class Feedback(str, Enum):
    """What a round learns from the last verification: nothing; which weights to score low; or that, and the images it failed on once more.

    Those images are of the selection split. Training on them flatters the later rounds' selection rows a little; the test rows stay honest.
    """

    NONE = "none"
    SCORES = "scores"
    SCORES_AND_IMAGES = "scores-and-images"


@dataclass(frozen=True, slots=True)
class DataConfig:
    """`selection` images are parted from the training images to choose by; of the rest the first `train_limit` are trained on (default all)."""

    name: str
    data_dir: str | None = None
    train_limit: int | None = None
    selection: int = 500

    def __post_init__(self) -> None:
        check(self.selection >= 1, "selection", self.selection, "at least 1")
        check(self.train_limit is None or self.train_limit >= 2, "train_limit", self.train_limit, "at least 2")


@dataclass(frozen=True, slots=True)
class VerifyConfig:
    """The property: no input within `eps` (pixels in [0, 1]) has another label. `selection`, `test`: how many images of each split are certified.

    `timeout_s`: for each image. Of these images, `stability`: over how many unstable neurons are averaged, `tightness`: on how many bound
    engines are compared with branch and bound, `strong_attack`: how many of the certified ones are attacked by 200 steps and 50 restarts (the
    last two of the test split only).
    """

    eps: float
    norm: str = "linf"
    selection: int = 200
    test: int = 1000
    timeout_s: float = 10.0
    stability: int = 100
    tightness: int = 0
    strong_attack: int = 0

    def __post_init__(self) -> None:
        check(0 < self.eps <= 1, "eps", self.eps, "above 0, at most 1: pixels lie in [0, 1]")
        check(self.norm in NORMS, "norm", self.norm, f"one of {', '.join(NORMS)}")
        check(self.selection >= 1, "selection", self.selection, "at least 1")
        check(self.test >= 1, "test", self.test, "at least 1")
        check(0 < self.timeout_s <= 1e7, "timeout_s", self.timeout_s, "seconds above 0, at most 1e7")
        check(self.stability >= 1, "stability", self.stability, "at least 1")
        check(self.tightness >= 0, "tightness", self.tightness, "at least 0")
        check(self.strong_attack >= 0, "strong_attack", self.strong_attack, "at least 0")


@dataclass(frozen=True, slots=True)
class Arm:
    """One way of pruning. `sparsity`: the fraction of prunable weights removed after the last of `rounds`.

    `rewind_epoch`: of the dense training (0 is the initialisation). `repeats`: how often an image that verification failed on is added to an
    epoch of the next round, with feedback of images.
    """

    method: Scorer
    sparsity: float
    finetune: FitConfig
    layers: Layers = Layers.CONV
    scope: Scope = Scope.LAYER
    rounds: int = 1
    after: After = After.FINE_TUNE
    rewind_epoch: int = 0
    feedback: Feedback = Feedback.NONE
    repeats: int = 1

    def __post_init__(self) -> None:
        check(0 <= self.sparsity < 1, "sparsity", self.sparsity, "the fraction of weights to remove, from 0 up to but not including 1")
        check(1 <= self.rounds <= 100, "rounds", self.rounds, "from 1 to 100")
        check(self.rewind_epoch >= 0, "rewind_epoch", self.rewind_epoch, "at least 0")
        check(1 <= self.repeats <= 100, "repeats", self.repeats, "from 1 to 100")


@dataclass(frozen=True, slots=True)
class LoopConfig:
    """`name`: of the folder under the runs' folder. `device`: auto, cpu, cuda or cuda:1; it is not part of what a stage is known by."""

    name: str
    data: DataConfig
    train: FitConfig
    verify: VerifyConfig
    model: ModelSpec = field(default_factory=lambda: ModelSpec("paper7"))
    prune: Mapping[str, Arm] = field(default_factory=dict)
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        check(_names_a_folder(self.name), "name", self.name, "letters, digits, '.', '_' and '-': it names a folder")
        for arm in self.prune:
            check(_names_a_folder(arm) and arm != "dense", "the name of an arm", arm, "letters, digits, '.', '_' and '-', and not dense")
        check(0 <= self.seed < 2**31, "seed", self.seed, "from 0 to 2147483647")
        check(re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device) is not None, "device", self.device, "auto, cpu, cuda, or one as cuda:1")
        early = max((arm.rewind_epoch for arm in self.prune.values() if arm.after is After.REWIND), default=0)
        check(early <= self.train.epochs, "prune.rewind_epoch", early, f"at most the {self.train.epochs} epochs of [train]")


def _names_a_folder(name: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) is not None


def check(holds: bool, key: str, value: object, expected: str) -> None:
    """Raises the sentence that says what `key` may be, unless `holds`."""
    if not holds:
        raise VerifierError(f"{key} is {value!r}: give {expected}.")


def check_fit(config: FitConfig) -> None:
    """The ranges of a training's settings."""
    check(config.epochs >= 0, "epochs", config.epochs, "at least 0")
    check(0 <= config.eps <= 1, "eps", config.eps, "from 0 to 1: pixels lie in [0, 1]")
    check(config.batch >= 2, "batch", config.batch, "at least 2: BatchNorm knows no variance of one image")
    check(0 < config.lr < 1e3, "lr", config.lr, "above 0, below 1000")
    check(0 <= config.final_lr <= 1, "final_lr", config.final_lr, "a share of lr, from 0 to 1")
    check(config.optimizer in OPTIMIZERS, "optimizer", config.optimizer, f"one of {', '.join(OPTIMIZERS)}")
    check(config.clip > 0, "clip", config.clip, "above 0")
    for key in ("weight_decay", "warmup", "ramp", "shift"):
        check(0 <= getattr(config, key) < math.inf, key, getattr(config, key), "at least 0")


def plain(value: Any) -> Any:
    """Settings as what JSON holds; what is known by a name (an objective, a method) with its name."""
    if isinstance(value, Enum):
        return value.value
    if is_dataclass(value):
        named = {"name": value.name} if "name" not in {f.name for f in fields(value)} and hasattr(value, "name") else {}
        return named | {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value


def digest(value: Any) -> str:
    """Twelve hexadecimal letters that differ where the settings do."""
    return hashlib.sha256(json.dumps(plain(value), sort_keys=True).encode()).hexdigest()[:12]
