"""What a user can do wrong with a run's configuration and files: one sentence each, exit code 2, no traceback."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from certprune import checkpoint, cli, store
from certprune.config import After, Feedback, digest
from certprune.config_file import load, load_preset, presets, read
from certprune.train.objectives.registry import OBJECTIVES
from tests.loop_runs import TINY
from verifier import VerifierError

BAD = {
    "train.epoch=3": "key 'train.epoch' is not a setting: did you mean 'train.epochs'",
    "train.epochs=-1": "train.epochs is -1: give at least 0",
    "train.epochs=2.5": "key 'train.epochs' has the value 2.5",
    "train.eps=8": "train.eps is 8.0: give from 0 to 1",
    "train.lr='fast'": "key 'train.lr' has the value 'fast'",
    "train.optimizer=adagrad": "train.optimizer is 'adagrad': give one of adam, sgd",
    "train.batch=1": "train.batch is 1: give at least 2",
    "train.seed=1": "key 'train.seed' is not a setting: a run has one seed",
    "train.objective=pgdd": "there is no objective 'pgdd' (did you mean 'pgd'?)",
    "train.objective={name='pgd', stepss=3}": "key 'train.objective.stepss' is not a setting: did you mean 'train.objective.steps'",
    "train.objective=3": "key 'train.objective' has the value 3: give a name",
    "train.regularizers=nrs": "key 'train.regularizers' has the value 'nrs': give a list",
    "train.regularizers=[{name='nrs'}]": "key 'train.regularizers[0].weight' is missing",
    "train.regularizers=[{name='nsr', weight=1.0}]": "there is no regularizer 'nsr' (did you mean 'nrs'?)",
    "train.regularizers=[{name='nrs', weight=1.0, engine='lp'}]": "key 'train.regularizers[0].engine' has the value 'lp'",
    "prune.magnitude.method={name='hydra', optimizer='adagrad'}": "key 'prune.magnitude.method.optimizer' has the value 'adagrad'",
    "train.objective={name='sabr', small_box=-4.0}": "key 'train.objective.small_box' has the value -4.0",
    "train.objective={name='pgd', steps=-1}": "key 'train.objective.steps' has the value -1",
    "train.objective={name='mtl-ibp', alpha=7.0}": "key 'train.objective.alpha' has the value 7.0",
    "train.objective={name='gaussian', sigma=nan}": "key 'train.objective.sigma' has the value nan",
    "train.regularizers=[{name='nrs', weight=-1.0}]": "key 'train.regularizers[0].weight' has the value -1.0",
    "prune.magnitude.method={name='snip', images=0}": "key 'prune.magnitude.method.images' has the value 0",
    "prune.magnitude.method={name='hydra', epochs=-1}": "key 'prune.magnitude.method.epochs' has the value -1",
    "train.ramp=inf": "train.ramp is inf: give at least 0",
    "train.initialise=shi": "key 'train.initialise' has the value 'shi'",
    "train.initialize=ibp": "did you mean 'train.initialise'",
    "finetune.initialise=ibp": "key 'finetune.initialise' is not a setting: fine-tuning goes on from trained weights",
    "prune.early.finetune.initialise=ibp": "key 'prune.early.finetune.initialise' is not a setting",
    "finetune.epocs=3": "key 'finetune.epocs' is not a setting: did you mean 'finetune.epochs'",
    "prune.sparsty=0.5": "key 'prune.sparsty' is not a setting: did you mean 'prune.sparsity'",
    "prune.magnitude.sparsity=1.0": "prune.magnitude.sparsity is 1.0: give the fraction of weights to remove",
    "prune.magnitude.rounds=0": "prune.magnitude.rounds is 0: give from 1 to 100",
    "prune.magnitude.method=magnitud": "there is no pruning method 'magnitud' (did you mean 'magnitude'?)",
    "prune.magntude.rounds=1": "[prune.magntude] has no method, and there is none called 'magntude' (did you mean 'magnitude'?)",
    "prune.magnitude.after=later": "key 'prune.magnitude.after' has the value 'later'",
    "prune.magnitude.finetune.lrr=1": "key 'prune.magnitude.finetune.lrr' is not a setting: did you mean 'prune.magnitude.finetune.lr'",
    "prune.early.rewind_epoch=4": "prune.rewind_epoch is 4: give at most the 3 epochs",
    "prune=3": "key 'prune' has the value 3: it is a section, [prune]",
    "verify.eps=0": "verify.eps is 0.0: give above 0",
    "verify.norm=l3": "verify.norm is 'l3': give one of linf, l2, l1",
    "verify.timeout_s=0": "verify.timeout_s is 0.0: give seconds above 0",
    "verify=1": "key 'verify' has the value 1: it is a section",
    "data.selection=0": "data.selection is 0: give at least 1",
    "model.nam=mlp": "key 'model.nam' is not a setting: did you mean 'model.name'",
    "name='../up'": "name is '../up': give letters",
    "seed=-1": "seed is -1: give from 0",
    "device=gpu": "device is 'gpu': give auto",
    "verifi.eps=1": "key 'verifi' is not a setting: did you mean 'verify'",
    "epochs": "--set 'epochs': give KEY=VALUE",
    "seed.x=1": "--set 'seed.x=1': 'seed' is not a section",
}


@pytest.mark.parametrize("change", BAD)
def test_a_bad_setting_is_named(change: str) -> None:
    with pytest.raises(VerifierError) as caught:
        read(TINY, "tiny.toml", [change])
    assert BAD[change] in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name = ", "tiny.toml is not valid TOML"),
        ('name = "a"', "the section [train] is missing"),
        (TINY.replace("[verify]", "[verify_]"), "key 'verify_' is not a setting: did you mean 'verify'"),
        (TINY.replace("[prune.early]", "[prune.dense]"), "the name of an arm is 'dense'"),
        (TINY.replace("eps = 0.02", ""), "key 'verify.eps' is missing"),
    ],
)
def test_a_bad_file_is_named(text: str, said: str) -> None:
    with pytest.raises(VerifierError) as caught:
        read(text, "tiny.toml")
    assert said in str(caught.value)


def test_what_a_configuration_means() -> None:
    config = read(TINY, "tiny", ["train.warmup=1", "prune.magnitude.finetune={lr=0.5}"])
    assert config.train.warmup == 1 and config.train.objective == OBJECTIVES["pgd"](steps=2)
    arm = config.prune["magnitude"]
    assert (arm.finetune.lr, arm.finetune.epochs, arm.finetune.warmup, arm.finetune.batch) == (0.5, 2, 0.0, 32)
    assert config.prune["early"].finetune.lr == config.train.lr and config.prune["early"].after is After.REWIND
    assert config.prune["verification-guided"].feedback is Feedback.SCORES_AND_IMAGES
    assert list(config.prune) == ["magnitude", "early", "verification-guided"]


def test_a_digest_changes_with_every_setting_and_with_nothing_else() -> None:
    same = read(TINY + "\n# a remark\n", "elsewhere")
    assert digest(same) == digest(read(TINY, "tiny"))
    changes = ["train.lr=2e-2", "train.objective.steps=3", "seed=4", "model.hidden=[13]", "prune.early.rewind_epoch=2"]
    assert len({digest(read(TINY, "tiny", [change])) for change in changes} | {digest(same)}) == len(changes) + 1


@pytest.mark.parametrize("name", ["digits", "fashion-mnist", "cifar10"])
def test_presets_are_read(name: str) -> None:
    assert name in presets()
    config = load_preset(name, ["train.epochs=3"])
    assert config.name == name and config.train.epochs == 3 and "magnitude" in config.prune


def test_a_preset_that_is_not_there_is_named() -> None:
    with pytest.raises(VerifierError, match="There is no preset 'digit' \\(did you mean 'digits'\\?\\)"):
        load_preset("digit")


def test_a_configuration_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(VerifierError, match="not a text file"):
        load(tmp_path / "binary.toml")
    with pytest.raises(VerifierError, match="Cannot read the configuration"):
        load(tmp_path / "none.toml")


def exit_code(*arguments: object) -> int:
    return cli.run([str(argument) for argument in arguments])


@pytest.fixture()
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


def test_commands_answer_bad_input_with_one_sentence(tiny: Path, tmp_path: Path, capfd: Any) -> None:
    (tmp_path / "no.pt").write_bytes(b"no checkpoint")
    (tmp_path / "no.onnx").write_bytes(b"no network")
    (tmp_path / "empty").mkdir()
    lines = {
        ("loop",): "Give a configuration file or --preset",
        ("loop", tiny, "--preset", "digits"): "one of both",
        ("loop", tmp_path / "none.toml"): "does not exist",
        ("loop", tiny, "--set", "train.epoch=1"): "did you mean 'train.epochs'",
        ("loop", tiny, "--set", "data.name=mnist", "--data-dir", tmp_path / "empty"): "mnist",
        ("loop", tiny, "--set", "data.selection=5000"): "which has 1437 training images",
        ("loop", tiny, "--set", "model.name=mpl"): "There is no network 'mpl'",
        ("prune", tmp_path / "no.pt", "--config", tiny): "no.pt is no checkpoint",
        ("prune", tmp_path / "no.pt", "--config", tiny, "--arm", "hydra"): "no [prune.hydra]",
        ("evaluate", tmp_path / "no.onnx", "--config", tiny, "--out", tmp_path / "m"): "no.onnx",
        ("report", tmp_path / "empty"): "has no results.json",
        ("polish",): "No such command",
    }
    for arguments, said in lines.items():
        assert exit_code(*arguments, *(["--runs", tmp_path / "runs"] if arguments[0] == "loop" else [])) == 2
        told = capfd.readouterr().err.strip()
        assert said in told and told.count("\n") == 0 and "Traceback" not in told


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path: Path) -> None:
    architecture = checkpoint.Architecture(read(TINY, "tiny").model, (1, 8, 8), 10, (0.0,), (1.0,))
    state = architecture.build().state_dict()
    other = {name: torch.zeros(5, *tensor.shape[1:]) if name.endswith("1.weight") else tensor for name, tensor in state.items()}
    other = {name: torch.zeros(5, 7) if tensor.ndim == 2 else tensor for name, tensor in other.items()}
    checkpoint.save(checkpoint.Saved(architecture, other), tmp_path / "other.pt")
    with pytest.raises(VerifierError, match="do not fit the architecture"):
        checkpoint.load(tmp_path / "other.pt")


def test_a_network_of_other_images_is_refused(tiny: Path, tmp_path: Path, capfd: Any) -> None:
    wide = checkpoint.Architecture(read(TINY, "tiny").model, (1, 16, 16), 10, (0.0,), (1.0,))
    fewer = checkpoint.Architecture(read(TINY, "tiny").model, (1, 8, 8), 4, (0.0,), (1.0,))
    for architecture in (wide, fewer):
        checkpoint.save(checkpoint.Saved(architecture, architecture.build().state_dict()), tmp_path / "other.pt")
        for command in ("prune", "finetune", "export"):
            assert exit_code(command, tmp_path / "other.pt", "--config", tiny, "--out", tmp_path / command) == 2
            told = capfd.readouterr().err.strip()
            assert "but the data set has images (1, 8, 8) of 10" in told and told.count("\n") == 0


@pytest.mark.parametrize("content", [b"", b"hello\n", b"no checkpoint", b"PK\x03\x04", bytes(range(256)), b"\x80\x02}q\x00."])
def test_what_is_no_checkpoint_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "no.pt").write_bytes(content)
    with pytest.raises(VerifierError, match="no checkpoint") as caught:
        checkpoint.load(tmp_path / "no.pt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("left", [0.02, 0.5, 0.99])
def test_a_checkpoint_that_was_cut_is_said_to_be(tmp_path: Path, left: float) -> None:
    path = tmp_path / "cut.pt"
    checkpoint.write_tensors({"state": torch.rand(100, 100)}, path)
    path.write_bytes(path.read_bytes()[: int(left * path.stat().st_size)])
    with pytest.raises(VerifierError, match="it is cut"):
        checkpoint.load(path)


def test_a_mask_of_another_network_is_refused(tmp_path: Path) -> None:
    architecture = checkpoint.Architecture(read(TINY, "tiny").model, (1, 8, 8), 10, (0.0,), (1.0,))
    mask = {"7.weight": torch.ones(2, 2, dtype=torch.bool)}
    checkpoint.save(checkpoint.Saved(architecture, architecture.build().state_dict(), mask), tmp_path / "masked.pt")
    with pytest.raises(VerifierError, match=r"its mask does not fit its weights: '7\.weight'"):
        checkpoint.load(tmp_path / "masked.pt")


def test_a_folder_that_no_run_wrote_is_refused(tmp_path: Path, capfd: Any) -> None:
    for rows, said in (('[{"a": 1}]', "'0.a' is not one of the schema"), ("[]", "is not the configuration of a run")):
        (tmp_path / "results.json").write_text(rows)
        (tmp_path / "config.json").write_text("{}")
        assert exit_code("report", tmp_path) == 2
        told = capfd.readouterr().err.strip()
        assert said in told and told.count("\n") == 0


def test_a_full_disk_says_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "done.json"
    store.write_json({"a": 1}, path)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(VerifierError, match=r"No space left on device.*is kept; make room"):
        store.write_json({"a": 2}, path)
    monkeypatch.undo()
    assert store.read_json(path) == {"a": 1} and [p.name for p in tmp_path.iterdir()] == ["done.json"]


def test_a_full_disk_leaves_the_older_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "network.pt"
    checkpoint.write_tensors({"a": torch.ones(2)}, path)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(VerifierError, match=r"No space left on device.*older file is kept; make room"):
        checkpoint.write_tensors({"a": torch.zeros(2)}, path)
    assert checkpoint.read_tensors(path)["a"].sum() == 2 and [p.name for p in tmp_path.iterdir()] == ["network.pt"]


def test_a_run_in_a_place_that_cannot_be_written_is_refused(tiny: Path, tmp_path: Path, capfd: Any) -> None:
    (tmp_path / "file").write_text("")
    assert exit_code("loop", tiny, "--runs", tmp_path / "file" / "runs") == 2
    assert "Cannot make the folder" in capfd.readouterr().err
