"""`verifier check`: words, JSON, exit codes, what it imports, an interruption; and the digests that tie a certificate to its files."""
from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import verifier
from tests.small_certificates import as_bytes, case, done, head
from tests.small_models import IN_UNIT, absolute_value, vnnlib
from verifier.certificate.check import Report
from verifier.certificate.property import property_digest
from verifier.cli import run
from verifier.errors import ModelError
from verifier.graph.onnx_file import model_digest


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """A network, a property of two disjuncts, and its certificate, as command-line arguments."""
    model, prop = absolute_value(tmp_path / "abs.onnx"), vnnlib(tmp_path / "p.vnnlib", *IN_UNIT, "(or (<= Y_0 -0.5) (>= Y_0 2.5))")
    cert = tmp_path / "p.cert"
    cert.write_bytes(as_bytes(head(model, prop), case([-1], [1], [[1], [-1]], [-0.5, -2.5]), done(1)))
    return [str(model), str(prop), str(cert)]


@pytest.mark.parametrize("exact", [[], ["--exact"]])
def test_accepted(files, capsys, exact: list[str]) -> None:
    assert run(["check", *files, *exact]) == 0
    shown = capsys.readouterr()
    assert shown.out == "accepted\n" and len(shown.err.splitlines()) == 1
    assert "proved in real arithmetic" in shown.err


def test_rejected(files, capsys) -> None:
    model, prop, cert = map(Path, files)
    cert.write_bytes(as_bytes(head(model, prop), case([-1], [1], [[1], [-1]], [-0.5, -0.75]), done(1)))
    assert run(["check", *files]) == 1
    shown = capsys.readouterr()
    assert shown.out == "rejected\n" and len(shown.err.splitlines()) == 1
    assert "Case 0, polytope 1" in shown.err


@pytest.mark.parametrize("accepted", [True, False])
def test_json_has_exactly_the_promised_keys(files, capsys, accepted: bool) -> None:
    if not accepted:
        vnnlib(Path(files[1]), *IN_UNIT, "(<= Y_0 0.5)")
    assert run(["check", *files, "--json"]) == (0 if accepted else 1)
    shown = json.loads(capsys.readouterr().out)
    assert set(shown) == {"accepted", "reason", "compared", "arithmetic", "cases", "leaves", "seconds", "version"}
    assert shown["accepted"] is accepted and (shown["reason"] is None) == accepted
    assert (shown["compared"] is not None and shown["compared"] > 0) == accepted
    assert shown["arithmetic"] == "real" and shown["cases"] == (1 if accepted else 0) and shown["version"] == verifier.__version__


def test_float32_is_said(files, capsys) -> None:
    model, prop, cert = map(Path, files)
    cert.write_bytes(as_bytes(head(model, prop, "float32"), case([-1], [1], [[1], [-1]], [-0.5, -2.5]), done(1)))
    assert run(["check", *files]) == 0
    assert "proved in float32 arithmetic" in capsys.readouterr().err


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_missing_file_is_bad_input(files, capsys, missing: int) -> None:
    files[missing] += ".none"
    assert run(["check", *files]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and len(shown.err.splitlines()) == 1 and ".none" in shown.err


def test_an_interruption_is_one_line(files, capsys, monkeypatch) -> None:
    def interrupted(*_: object) -> Report:
        raise KeyboardInterrupt

    monkeypatch.setattr("verifier.certificate.check.check", interrupted)
    assert run(["check", *files]) == 130
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.splitlines() == ["verifier: interrupted."]


def test_a_lack_of_memory_is_one_line(files, capsys, monkeypatch) -> None:
    def greedy(*_: object) -> Report:
        raise MemoryError

    monkeypatch.setattr("verifier.certificate.check.check", greedy)
    assert run(["check", *files]) == 2
    assert "memory" in capsys.readouterr().err


def test_a_bar_is_shown_on_a_terminal_only(files, capsys, monkeypatch) -> None:
    from verifier import check_cli

    seen = []
    monkeypatch.setattr(check_cli.sys.stderr, "isatty", lambda: True, raising=False)
    with check_cli._bar() as advance:
        seen.append(advance(0.5))
    assert "checking" in capsys.readouterr().err and seen == [None]


def test_without_onnxruntime_nothing_is_compared_and_it_is_said(files, capsys, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert run(["check", *files]) == 0
    assert "not compared with onnxruntime" in capsys.readouterr().err
    assert run(["check", *files, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["compared"] is None


def test_a_network_that_onnxruntime_computes_otherwise_is_refused(files, capsys, monkeypatch) -> None:
    """The certificate is right of what the loader reads, which here lacks the runtime's Relus."""
    from verifier.graph import onnx_elementwise

    model, prop, cert = map(Path, files)
    monkeypatch.setattr(onnx_elementwise.Lowering, "relu", lambda self, x: x)
    cert.write_bytes(as_bytes(head(model, prop), case([-1], [1], [[1], [-1]], [-0.5, -2.5]), done(1)))
    assert run(["check", *files]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and "differ at" in shown.err and len(shown.err.splitlines()) == 1


def test_the_checker_needs_no_torch(files) -> None:
    code = (
        "import sys; sys.modules.update(onnxruntime=None, torch=None); from verifier.cli import run; code = run(['check', *sys.argv[1:]]); "
        "print(code, sorted({'scipy', 'verifier.spec.normal', 'verifier.bab.driver', 'verifier.reduced'} & set(sys.modules)))"
    )
    root = Path(verifier.__file__).parent.parent
    shown = subprocess.run([sys.executable, "-c", code, *files], capture_output=True, text=True, cwd=root, check=True)
    assert shown.stdout == "accepted\n0 []\n"


def test_the_digests_are_of_the_unpacked_files(files, tmp_path) -> None:
    model, prop, cert = map(Path, files)
    for path, digest in ((model, model_digest), (prop, property_digest)):
        packed = tmp_path / f"{path.name}.gz"
        packed.write_bytes(gzip.compress(path.read_bytes()))
        assert digest(path) == digest(packed) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert run(["check", f"{model}.gz", f"{prop}.gz", str(cert)]) == 0


def test_the_digest_includes_external_data_by_name(files, tmp_path) -> None:
    proto = onnx.load(files[0])
    for tensor, name in zip(proto.graph.initializer, ("z.bin", "b.bin"), strict=True):
        onnx.external_data_helper.set_external_data(tensor, name)
        (tmp_path / name).write_bytes(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
    path = tmp_path / "external.onnx"
    path.write_bytes(proto.SerializeToString())
    parts = [path.read_bytes(), b"b.bin", (tmp_path / "b.bin").read_bytes(), b"z.bin", (tmp_path / "z.bin").read_bytes()]
    whole = b"external" + b"".join(hashlib.sha256(part).digest() for part in parts)
    assert model_digest(path) == hashlib.sha256(whole).hexdigest()
    (tmp_path / "b.bin").write_bytes(np.ones(2, np.float32).tobytes()[:-1] + b"\1")
    assert model_digest(path) != hashlib.sha256(whole).hexdigest()
    (tmp_path / "b.bin").unlink()
    with pytest.raises(ModelError, match=r"'b\.bin', which is not there"):
        model_digest(path)


@pytest.mark.parametrize("data", [b"", b"no onnx", b"\x1f\x8b\x08"])
def test_a_bad_model_has_no_digest(tmp_path, data: bytes) -> None:
    (tmp_path / "bad.onnx").write_bytes(data)
    for path in (tmp_path / "bad.onnx", tmp_path, tmp_path / "none.onnx"):
        with pytest.raises(ModelError) as caught:
            model_digest(path)
        assert "\n" not in str(caught.value)
