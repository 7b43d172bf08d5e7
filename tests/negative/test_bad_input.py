"""Every bad input: exit code 2, nothing on stdout, one sentence on stderr that names the thing."""
from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.small_models import IN_UNIT, absolute_value, dense_relu, vnnlib
from verifier.cli import run
from verifier.config import AttackConfig, BabConfig, Config
from verifier.errors import VerifierError
from verifier.streams import plain

UNSAFE = "(<= Y_0 -0.5)"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return absolute_value(tmp_path / "abs.onnx")


@pytest.fixture
def prop(tmp_path: Path) -> Path:
    return vnnlib(tmp_path / "p.vnnlib", *IN_UNIT, UNSAFE)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one sentence with which the command line refuses."""
    assert run([str(a) for a in arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert len(shown.err.splitlines()) == 1 and shown.err.startswith("verifier: ")
    return shown.err


def test_missing_files(model, prop, tmp_path, capsys) -> None:
    assert "nope.onnx" in refused(capsys, "verify", tmp_path / "nope.onnx", prop)
    assert "nope.vnnlib" in refused(capsys, "verify", model, tmp_path / "nope.vnnlib")
    assert "nope.toml" in refused(capsys, "verify", model, prop, "--config", tmp_path / "nope.toml")


def test_a_folder_is_no_file(model, prop, tmp_path, capsys) -> None:
    assert str(tmp_path) in refused(capsys, "verify", tmp_path, prop)
    assert str(tmp_path) in refused(capsys, "verify", model, tmp_path)


def test_empty_files(model, prop, tmp_path, capsys) -> None:
    empty = tmp_path / "empty"
    empty.write_bytes(b"")
    assert "empty" in refused(capsys, "verify", empty, prop)
    assert "empty" in refused(capsys, "verify", model, empty)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_truncated_model(digits, prop, tmp_path, capsys, share: float) -> None:
    whole = (digits / "digits.onnx").read_bytes()
    (tmp_path / "cut.onnx").write_bytes(whole[: int(share * len(whole))])
    assert "cut.onnx" in refused(capsys, "verify", tmp_path / "cut.onnx", prop)


def test_truncated_gzip(model, prop, tmp_path, capsys) -> None:
    (tmp_path / "cut.onnx.gz").write_bytes(gzip.compress(model.read_bytes())[:-20])
    (tmp_path / "cut.vnnlib.gz").write_bytes(gzip.compress(prop.read_bytes())[:-20])
    assert "cut.onnx.gz" in refused(capsys, "verify", tmp_path / "cut.onnx.gz", prop)
    assert "cut.vnnlib.gz" in refused(capsys, "verify", model, tmp_path / "cut.vnnlib.gz")


@pytest.mark.parametrize("command", ["verify", "bounds", "info"])
def test_unknown_operation_is_named(prop, tmp_path, capsys, command: str) -> None:
    made = dense_relu(tmp_path / "odd.onnx", np.ones((2, 1)), np.ones((1, 2)), op="Erf")
    sentence = refused(capsys, command, made, *([] if command == "info" else [prop]))
    assert "Erf" in sentence and "activation" in sentence


def test_property_of_another_network(model, tmp_path, capsys) -> None:
    wide = vnnlib(tmp_path / "wide.vnnlib", *IN_UNIT, "(>= X_1 0)", "(<= X_1 1)", UNSAFE, n_in=2)
    sentence = refused(capsys, "verify", model, wide)
    assert "wide.vnnlib" in sentence and "2" in sentence and "1" in sentence


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("(assert (<= X_0 1)", 3),
        ("(assert (<= X_0 one))", 3),
        ("(assert (<= X_9 1))", 3),
        ("(assert (! X_0 1))", 3),
        ("(assert (<= (* X_0 X_0) 1))", 3),
        (")", 3),
    ],
)
def test_syntax_errors_name_line_and_column(model, tmp_path, capsys, text: str, line: int) -> None:
    (tmp_path / "bad.vnnlib").write_text("(declare-const X_0 Real)\n(declare-const Y_0 Real)\n" + text + "\n")
    sentence = refused(capsys, "verify", model, tmp_path / "bad.vnnlib")
    assert "bad.vnnlib" in sentence and f"line {line}" in sentence and "column" in sentence


def test_unbounded_input(model, tmp_path, capsys) -> None:
    half = vnnlib(tmp_path / "half.vnnlib", "(<= X_0 1)", UNSAFE)
    sentence = refused(capsys, "verify", model, half)
    assert "X_0" in sentence and "lower" in sentence


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers(prop, tmp_path, capsys, value: float) -> None:
    made = dense_relu(tmp_path / "nan.onnx", np.array([[value], [1.0]]), np.ones((1, 2)))
    sentence = refused(capsys, "verify", made, prop)
    assert "nan.onnx" in sentence and ("first" in sentence or "layer1" in sentence)


def test_two_inputs(model, prop, capsys) -> None:
    two = onnx.load(model)
    two.graph.input.append(onnx.helper.make_tensor_value_info("other", onnx.TensorProto.FLOAT, (1, 1)))
    two.graph.node[0].input[1] = "other"
    onnx.save(two, model)
    assert "other" in refused(capsys, "verify", model, prop)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("timeout = 5", "timeout_s"),
        ("[bab]\nbtach = 5", "bab.batch"),
        ("[bab]\nbatch = 0", "batch"),
        ("timeout_s = -1", "timeout_s"),
        ("timeout_s = '5'", "timeout_s"),
        ("[attack]\nsteps = 1.5", "attack.steps"),
        ("seed = x", "line 1"),
    ],
)
def test_configuration(model, prop, tmp_path, capsys, text: str, named: str) -> None:
    (tmp_path / "c.toml").write_text(text)
    sentence = refused(capsys, "verify", model, prop, "--config", tmp_path / "c.toml")
    assert "c.toml" in sentence and named in sentence


@pytest.mark.parametrize(
    ("kind", "setting"),
    [(Config, {"timeout_s": 0}), (Config, {"timeout_s": float("nan")}), (BabConfig, {"batch": 0}), (AttackConfig, {"restarts": 0})],
)
def test_impossible_settings_in_python(kind: type, setting: dict[str, float]) -> None:
    with pytest.raises(VerifierError, match=next(iter(setting))):
        kind(**setting)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--timeout", "soon"], "--timeout"),
        (["--timeout", "-1"], "timeout"),
        (["--timeot", "1"], "--timeot"),
        (["--device", "gpu9"], "gpu9"),
        (["--results-file", "/nowhere/at/all.txt"], "/nowhere/at/all.txt"),
    ],
)
def test_options(model, prop, capsys, options: list[str], named: str) -> None:
    assert named in refused(capsys, "verify", model, prop, *options)


def test_engine_that_is_none(model, prop, capsys) -> None:
    assert "crown" in refused(capsys, "bounds", model, prop, "--engine", "crwn")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--eps", "much"], "much"),
        (["--eps", "-0.1"], "-0.1"),
        (["--eps", "1/0"], "1/0"),
        (["--eps", "0.1", "--norm", "l7"], "l7"),
        (["--eps", "0.1", "--index", "5:5"], "5:5"),
        (["--eps", "0.1", "--index", "99"], "99"),
        (["--eps", "0.1", "--index", "x"], "'x'"),
        (["--eps", "0.1", "--mean", "a"], "--mean"),
        (["--eps", "0.1", "--std", "0"], "std"),
        (["--eps", "0.1", "--mean", "1,2,3"], "mean"),
        ([], "--eps"),
    ],
)
def test_robustness_options(digits, capsys, options: list[str], named: str) -> None:
    assert named in refused(capsys, "robustness", digits / "digits.onnx", digits / "images.npz", *options)


@pytest.mark.parametrize(
    "arrays",
    [
        {"x": np.zeros((2, 64))},
        {"x": np.zeros((2, 64)), "y": np.zeros(3, int)},
        {"x": np.zeros((2, 64)), "y": np.zeros(2)},
        {"x": np.full((2, 64), np.nan), "y": np.zeros(2, int)},
        {"x": np.zeros((2, 63)), "y": np.zeros(2, int)},
        {"x": np.zeros((2, 64)), "y": np.array([0, 10])},
        {"x": np.zeros((0, 64)), "y": np.zeros(0, int)},
        {"x": np.array([["a"] * 64] * 2), "y": np.zeros(2, int)},
    ],
    ids=["no labels", "counts", "labels not integers", "nan", "size", "label 10", "empty", "text"],
)
def test_images(digits, tmp_path, capsys, arrays: dict[str, np.ndarray]) -> None:
    np.savez(tmp_path / "i.npz", **arrays)
    sentence = refused(capsys, "robustness", digits / "digits.onnx", tmp_path / "i.npz", "--eps", "0.1")
    assert any(word in sentence for word in ("i.npz", "shape", "Labels"))


def test_images_of_another_format(digits, tmp_path, capsys) -> None:
    np.save(tmp_path / "one.npy", np.zeros(3))
    np.savez(tmp_path / "pickled.npz", x=np.array([{}]), y=np.zeros(1, int))
    damaged = bytearray((digits / "images.npz").read_bytes())
    damaged[200:240] = bytes(40)
    (tmp_path / "damaged.npz").write_bytes(damaged)
    for name in ("one.npy", "pickled.npz", "damaged.npz"):
        assert name in refused(capsys, "robustness", digits / "digits.onnx", tmp_path / name, "--eps", "0.1")


def test_a_whole_process_says_one_sentence_and_no_traceback(prop, tmp_path) -> None:
    command = [sys.executable, "-m", "verifier.cli", "verify", str(prop), str(prop)]
    child = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert (child.returncode, child.stdout) == (2, "")
    assert len(child.stderr.splitlines()) == 1 and "p.vnnlib" in child.stderr


def test_contradictory_bounds_are_unsat_with_a_note(model, tmp_path, capsys) -> None:
    """No input at all: nothing is unsafe, which a person should know to be no proof of much."""
    empty = vnnlib(tmp_path / "empty.vnnlib", "(>= X_0 1)", "(<= X_0 -1)", "(<= Y_0 0)")
    assert run(["verify", str(model), str(empty)]) == 0
    shown = capsys.readouterr()
    assert shown.out == "unsat\n"
    assert "X_0" in shown.err and "Traceback" not in shown.err


NAMES = ["\x1b[2Jcleared", "two\nlines", "[bold]marked[red]", "a$\\frac$b", "\u202eright to left", "bell\a"]


@pytest.mark.parametrize("name", NAMES)
def test_a_layer_name_cannot_write_to_the_terminal(model, prop, tmp_path, capsys, name: str) -> None:
    odd = onnx.load(model)
    odd.graph.node[1].output[0] = odd.graph.node[2].input[0] = odd.graph.node[1].name = name
    onnx.save(odd, tmp_path / "odd.onnx")
    for command in (["info", "odd.onnx"], ["bounds", "odd.onnx", "p.vnnlib"]):
        assert run([command[0], *(str(tmp_path / file) for file in command[1:])]) == 0
        lines = capsys.readouterr().out.split("\n")
        assert all(line.isprintable() for line in lines) and any(plain(name) in line for line in lines)
    odd.graph.node[1].op_type = name
    onnx.save(odd, tmp_path / "odd.onnx")
    assert refused(capsys, "info", tmp_path / "odd.onnx").removesuffix("\n").isprintable()


@pytest.mark.parametrize("name", [*NAMES, "\udcff not of this encoding"])
@pytest.mark.parametrize("kind", ["missing", "damaged"])
def test_a_file_name_cannot_write_to_the_terminal(prop, tmp_path, capsys, name: str, kind: str) -> None:
    path = tmp_path / name
    if kind == "damaged":
        path.write_bytes(b"no model")
    assert refused(capsys, "verify", path, prop).removesuffix("\n").isprintable()


@pytest.mark.parametrize("engine", ["ibp", "crown", "alpha-crown"])
def test_a_network_of_one_number_without_axes(tmp_path, capsys, engine: str) -> None:
    """y = relu(x), both of rank 0, and the sum of three inputs, which has rank 0."""
    for name, op, shape, lowest in (("relu", "Relu", (), 0), ("sum", "ReduceSum", (1, 3), -3)):
        ends = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s) for n, s in (("x", shape), ("y", ()))]
        node = onnx.helper.make_node(op, ["x"], ["y"], **({"keepdims": 0} if op == "ReduceSum" else {}))
        proto = onnx.helper.make_model(onnx.helper.make_graph([node], name, ends[:1], ends[1:]), ir_version=8)
        del proto.opset_import[:]
        proto.opset_import.append(onnx.helper.make_opsetid("", 13))
        onnx.save(proto, tmp_path / f"{name}.onnx")
        count = int(np.prod(shape))
        sides = [f"({side} X_{i} {bound})" for i in range(count) for side, bound in ((">=", -1), ("<=", 1))]
        prop = vnnlib(tmp_path / f"{name}.vnnlib", *sides, "(<= Y_0 -9)", n_in=count)
        assert run(["info", str(tmp_path / f"{name}.onnx")]) == 0
        capsys.readouterr()
        assert run(["bounds", str(tmp_path / f"{name}.onnx"), str(prop), "--engine", engine]) == 0
        assert float(capsys.readouterr().out.splitlines()[1].split()[1]) == pytest.approx(lowest, abs=1e-5)
