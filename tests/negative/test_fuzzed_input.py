"""Files damaged at random, for every command: an answer or one sentence, and no other exception than the program's own."""
from __future__ import annotations

import gzip
import random
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.small_models import IN_UNIT, dense_relu, vnnlib
from verifier.cli import run

ODD_WORDS = ["(", ")", "and", "or", "assert", "<=", ">=", "<", "=", "X_0", "Y_0", "X_1", "Y_99999999999", "1e400", "-1e-400", "nan", "inf", "1_0",
             "１", "\u202e", "\0", "\x1b[31m", "", "Real", "Int", "+", "-", "*", "!", "declare-const", "not", '"', "|", ";"]  # fmt: skip
CONFIG = "seed = 7\ntimeout_s = 3\ndevice = 'cpu'\n[attack]\nsteps = 5\nrestarts = 2\n[bab]\nbatch = 64\n"


def damaged(data: bytes, chance: random.Random) -> bytes:
    """Some bits turned, bytes set, cut, put in or repeated."""
    found = bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 4, 8])):
        if not found:
            break
        i, j = chance.randrange(len(found)), chance.randrange(len(found))
        change = chance.randrange(5)
        if change == 0:
            found[i] ^= 1 << chance.randrange(8)
        elif change == 1:
            found[i] = chance.choice([0, 127, 128, 255])
        elif change == 2:
            del found[i : i + chance.randrange(1, 9)]
        elif change == 3:
            found[i:i] = chance.randbytes(4)
        else:
            found[i:i] = found[j : j + chance.randrange(1, 40)]
    return bytes(found)


def reworded(data: bytes, chance: random.Random) -> bytes:
    """Some words of a text replaced, dropped, swapped or repeated."""
    words = re.findall(r"\s+|[()]|[^\s()]+", data.decode())
    for _ in range(chance.choice([1, 1, 2, 3])):
        i, j = chance.randrange(len(words)), chance.randrange(len(words))
        change = chance.randrange(4)
        if change == 0:
            words[i] = chance.choice(ODD_WORDS)
        elif change == 1 and len(words) > 1:
            del words[i]
        elif change == 2:
            words[i], words[j] = words[j], words[i]
        else:
            words[i:i] = words[j : j + chance.randrange(1, 12)]
    return "".join(words).encode()


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """A network of two inputs and two outputs, and a good file of each kind."""
    model = dense_relu(tmp_path / "good.onnx", np.array([[1.0, -1.0], [1.0, 0.5]]), np.array([[1.0, 0.0], [-1.0, 2.0]]))
    prop = vnnlib(tmp_path / "good.vnnlib", *IN_UNIT, "(>= X_1 -1)", "(<= X_1 1)", "(or (<= Y_0 -0.5) (>= Y_1 9))", n_in=2, n_out=2)
    (tmp_path / "good.toml").write_text(CONFIG)
    np.savez(tmp_path / "good.npz", x=np.array([[0.1, 0.2], [0.4, 0.3]], np.float32), y=np.array([0, 1]))
    assert run(["verify", str(model), str(prop), "--certificate", str(tmp_path / "good.cert")]) == 0
    for path in (model, prop):
        Path(f"{path}.gz").write_bytes(gzip.compress(path.read_bytes()))
    return {kind: tmp_path / f"good.{kind}" for kind in ("onnx", "vnnlib", "toml", "npz", "cert", "onnx.gz", "vnnlib.gz")}


Change = Callable[[bytes, random.Random], bytes]
RUNS: list[tuple[str, Change, list[str]]] = [
    ("onnx", damaged, ["info", "onnx"]),
    ("onnx", damaged, ["bounds", "onnx", "vnnlib"]),
    ("onnx", damaged, ["verify", "onnx", "vnnlib", "--timeout", "3"]),
    ("onnx", damaged, ["check", "onnx", "vnnlib", "cert"]),
    ("onnx.gz", damaged, ["info", "onnx.gz"]),
    ("vnnlib", reworded, ["bounds", "onnx", "vnnlib"]),
    ("vnnlib", reworded, ["verify", "onnx", "vnnlib", "--timeout", "3"]),
    ("vnnlib", reworded, ["check", "onnx", "vnnlib", "cert"]),
    ("vnnlib.gz", damaged, ["bounds", "onnx", "vnnlib.gz"]),
    ("toml", damaged, ["verify", "onnx", "vnnlib", "--timeout", "3", "--config", "toml"]),
    ("npz", damaged, ["robustness", "onnx", "npz", "--eps", "0.01", "--timeout", "1"]),
    ("npz", damaged, ["accuracy", "onnx", "--data", "npz", "--eps", "0.01", "--timeout", "1"]),
    ("cert", damaged, ["check", "onnx", "vnnlib", "cert"]),
]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("kind", "change", "command"), RUNS, ids=[f"{r[2][0]}-{r[0]}" for r in RUNS])
@pytest.mark.parametrize("tries", [12, pytest.param(200, marks=pytest.mark.slow)])
def test_damage_is_one_sentence_or_an_answer(files, tmp_path, capsys, kind: str, change: Change, command: list[str], tries: int) -> None:
    chance, good = random.Random(f"{command[0]} {kind} {tries}"), files[kind].read_bytes()
    bad = tmp_path / f"bad.{kind}"
    named = {**files, kind: bad}
    arguments = [str(named.get(word, word)) for word in command]
    for number in range(tries):
        bad.write_bytes(change(good, chance))
        code = run(arguments)
        shown = capsys.readouterr()
        case = f"try {number}: {bad.read_bytes()!r} gives {code}, {shown.err!r}"
        assert code in ((0, 1, 2) if command[0] == "check" else (0, 2)), case
        assert "Traceback" not in shown.err and "\x1b" not in shown.err, case
        assert code != 2 or (shown.out == "" and len(shown.err.splitlines()) == 1 and shown.err.startswith("verifier: ")), case
