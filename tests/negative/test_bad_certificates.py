"""Bad certificates: one sentence each, in bounded memory; exit code 2 where a file cannot be read, 1 where it proves nothing of these files."""
from __future__ import annotations

import io
import json
import os
import random
import re
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.small_certificates import as_bytes, case, done, from_bytes, head
from tests.small_models import IN_UNIT, absolute_value, dense_relu, vnnlib
from verifier.certificate.check import check
from verifier.certificate.schema import MAGIC, MOST_ARRAYS, MOST_JSON, CertificateError, Record, read_records
from verifier.cli import run
from verifier.errors import VerifierError


class Proof:
    """A network, a property and a certificate in one folder; `whole` is the certificate's content."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.model = folder, absolute_value(folder / "abs.onnx")
        self.prop, self.cert = vnnlib(folder / "p.vnnlib", *IN_UNIT, "(<= Y_0 -0.5)"), folder / "p.cert"
        self.records = [head(self.model, self.prop), *every_kind(), done(1)]
        self.whole = as_bytes(*self.records)
        self.cert.write_bytes(self.whole)

    def answer(self, data: bytes, capsys: pytest.CaptureFixture[str], code: int) -> str:
        """What the command says of a certificate of these bytes, on one line of stderr."""
        self.cert.write_bytes(data)
        assert run(["check", str(self.model), str(self.prop), str(self.cert)]) == code
        shown = capsys.readouterr()
        assert len(shown.err.splitlines()) == 1 and shown.out == {0: "accepted\n", 1: "rejected\n", 2: ""}[code]
        return shown.err


def every_kind() -> list[Record]:
    """One case with a lemma, a step, a tree and boxes; none of them is needed."""
    begin = case([-1], [1], [[1]], [-0.5])
    begin = Record("CASE", begin.fields | {"nodes": ["a"]}, begin.arrays | {"neuron": np.int32([[0, 0], [0, 1]]), "kept": np.uint32([0])})
    columns, leaf = {"columns": np.uint32([0, 1])}, {"alpha": np.full((2, 2), 255, np.uint8), "beta": np.zeros(2, np.float32)}
    split = {"tree": np.int32([0, -1, -1])}
    lemma = {"target": np.int32([[1, 1]]), "tree": np.int32([-1])} | columns
    tree = Record("TREE", {"target": "polytopes"}, {"target": np.int32([[0]])} | columns | split)
    boxes = Record("BOXS", {}, split | {"point": np.array([0.25, 0.0, 0.0]), "weight": np.ones((2, 1), np.float32)})
    neurons = [Record("TREE", {"target": "neurons"}, lemma), Record("LEAF", {}, {"nu": np.zeros((1, 2), np.float32)})]
    return [begin, *neurons, Record("STEP", {}, {}), tree, Record("LEAF", {}, leaf), boxes]


@pytest.fixture
def proof(tmp_path: Path) -> Proof:
    return Proof(tmp_path)


def framed(kind: bytes, payload: bytes, **declared: int) -> bytes:
    """A record of these bytes; `packed`, `size` and `crc` as they are, or as `declared`."""
    packed = zlib.compress(payload)
    true = {"packed": len(packed), "size": len(payload), "crc": zlib.crc32(packed)} | declared
    return kind + struct.pack("<QQI", true["packed"], true["size"], true["crc"]) + packed


def with_json(text: bytes | str, tail: bytes = b"", **declared: int) -> bytes:
    text = text.encode() if isinstance(text, str) else text
    return START + framed(b"HEAD", struct.pack("<I", declared.pop("length", len(text))) + text + tail, **declared)


START = MAGIC + struct.pack("<I", 1)


def one_array(kind: str, shape: str, tail: bytes = b"") -> bytes:
    """A HEAD that declares one array so, in JSON."""
    return with_json(f'{{"arrays":[["a",{kind},{shape}]]}}', tail)


BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "cannot be read: it is empty."),
    "a text": (b"unsat\n", "cannot be read: it is not a certificate: it begins with b'unsat\\n'."),
    "another kind of file": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "not a certificate"),
    "a part of the magic": (MAGIC[:3], "the file was cut"),
    "a part of the version": (MAGIC + b"\7\0", "the file was cut"),
    "line ends converted": (MAGIC.replace(b"\r\n", b"\n") + START, "not a certificate"),
    "future": (MAGIC + struct.pack("<I", 9), "cannot be read: it is of version 9; this checker reads 1: use a newer verifier."),
    "no record": (START, "was cut: it ends without DONE"),
    "unknown kind": (START + framed(b"EVIL", b"\0" * 4), "unknown kind"),
    "unprintable kind": (START + framed(b"\n\x1b[2", b"\0" * 4), "unknown kind"),
    "not HEAD first": (START + framed(b"CASE", struct.pack("<I", 13) + b'{"arrays":[]}'), "out of its place"),
    "10 GB declared": (START + framed(b"HEAD", b"", size=10**10), "record 1 cannot be read: it declares 10.0 GB, more than 256 MiB."),
    "10 GB packed": (START + framed(b"HEAD", b"", packed=10**10), "more than 256 MiB"),
    "most declared": (START + framed(b"HEAD", b"", size=2**64 - 1), "more than 256 MiB"),
    "as much as may be": (START + framed(b"HEAD", b"\0" * 9, packed=2**28, size=2**28), "was cut"),
    "smaller than declared": (START + framed(b"HEAD", b"\0" * 4, size=5), "does not unpack to the 5 bytes"),
    "larger than declared": (START + framed(b"HEAD", b"\0" * 4000, size=5), "does not unpack to the 5 bytes"),
    "bomb": (START + framed(b"HEAD", bytes(2**26), size=1000), "does not unpack to the 1,000 bytes"),
    "bytes after the stream": (START + framed(b"HEAD", b"\0" * 4, packed=99) + b"x" * 99, "checksum"),
    "wrong checksum": (START + framed(b"HEAD", b"\0" * 4, crc=1), "checksum"),
    "not packed": (START + b"HEAD" + struct.pack("<QQI", 4, 4, zlib.crc32(b"abcd")) + b"abcd", "while decompressing"),
    "no payload": (START + framed(b"HEAD", b""), "of JSON"),
    "JSON longer than the payload": (with_json("{}", length=3), "of JSON"),
    "JSON of 4 GB": (with_json("{}", length=2**32 - 1), "of JSON"),
    "large JSON": (with_json(b" " * (MOST_JSON + 1)), "of JSON"),
    "no JSON": (with_json("abc"), "Expecting value"),
    "JSON in another encoding": (with_json(b'{"arrays":[],"a":"\xff"}'), "codec"),
    "deep JSON": (with_json("[" * 100_000 + "]" * 100_000), "recursion"),
    "deep object": (with_json('{"a":' * 100_000 + "1" + "}" * 100_000), "recursion"),
    "a huge integer": (with_json('{"arrays":[],"a":' + "9" * 100_000 + "}"), "integer"),
    "not a number": (with_json('{"arrays":[],"a":NaN}'), "NaN"),
    "a list": (with_json("[]"), "must be an object"),
    "no arrays": (with_json("{}"), "a list 'arrays'"),
    "arrays of another type": (with_json('{"arrays":{}}'), "a list 'arrays'"),
    "many arrays": (with_json(json.dumps({"arrays": [[f"a{i}", "u1", [0]] for i in range(MOST_ARRAYS + 1)]})), "at most 64"),
    "one name twice": (with_json('{"arrays":[["a","u1",[0]],["a","u1",[0]]]}'), "new name"),
    "an array that is short": (one_array('"f8"', "[3]", b"\0" * 23), "buffer is smaller"),
    "bytes after the arrays": (one_array('"f8"', "[2]", b"\0" * 23), "7 bytes after"),
    "a huge shape": (one_array('"u1"', "[268435456, 268435456]"), "expected a new name"),
    "a huge empty shape": (one_array('"u1"', "[0, 268435456, 268435456, 268435456]"), "expected a new name"),
    "a shape that overflows": (one_array('"u1"', "[4294967296, 4294967296]"), "expected a new name"),
    "256 MiB declared": (one_array('"u1"', "[268435456]"), "buffer is smaller"),
    "a lone surrogate": (one_array('"\\ud800\\n"', "[1]"), "expected a new name"),
    "a HEAD without fields": (with_json('{"arrays":[]}'), "needs 'arithmetic'"),
}
SHAPES = ("[-1]", "[1.0]", "[true]", '["1"]', "3", "null", "[[1]]", "[0,0,0,0,0]")
KINDS = ('"O"', '"f16"', '">f8"', '"V8"', '"u1,u1"', '"i8"', '"M8"', "[]", "8")
ENTRIES = ("1", "[]", '["a","u1"]', '["a","u1",[0],0]', '{"a":1}')
BAD |= {f"shape {shape}": (one_array('"u1"', shape), "new name") for shape in SHAPES}
BAD |= {f"type {kind}": (one_array(kind, "[1]", b"\0" * 8), "new name") for kind in KINDS}
BAD |= {f"entry {entry}": (with_json(f'{{"arrays":[{entry}]}}'), "new name") for entry in ENTRIES}
ONLY_DECLARED = ("10 GB declared", "10 GB packed", "most declared", "as much as may be", "bomb", "256 MiB declared", "a huge empty shape")


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_one_sentence(proof: Proof, capsys: pytest.CaptureFixture[str], name: str) -> None:
    data, said = BAD[name]
    sentence = proof.answer(data, capsys, 2)
    assert said in sentence and sentence.startswith(f"verifier: {proof.cert}") and len(sentence) < 400 + len(str(proof.cert))


@pytest.mark.parametrize("name", ONLY_DECLARED)
def test_what_is_only_declared_takes_no_memory(name: str) -> None:
    tracemalloc.start()
    with pytest.raises(CertificateError):
        from_bytes(BAD[name][0])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**22


def test_records_are_held_one_at_a_time(tmp_path: Path) -> None:
    """Forty records of a megabyte, read in the memory of a few."""
    many = [Record("LEAF", {}, {"alpha": np.zeros(2**20, np.uint8)})] * 40
    (tmp_path / "long.cert").write_bytes(as_bytes(Record("HEAD", {}, {}), *many, done(0)))
    tracemalloc.start()
    with open(tmp_path / "long.cert", "rb") as file:
        count = sum(1 for _ in read_records(file, "long.cert"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 42 and peak < 2**23


def test_the_whole_file_is_accepted(proof: Proof, capsys: pytest.CaptureFixture[str]) -> None:
    assert "proved in real arithmetic" in proof.answer(proof.whole, capsys, 0)


def test_every_cut_is_seen(proof: Proof, capsys: pytest.CaptureFixture[str]) -> None:
    for size in range(len(proof.whole)):
        with pytest.raises(CertificateError) as caught:
            from_bytes(proof.whole[:size])
        assert "cut" in str(caught.value) or size == 0
        assert str(caught.value).endswith(".") and "\n" not in str(caught.value)
    for size in range(1, len(proof.whole), 97):
        assert "cut" in proof.answer(proof.whole[:size], capsys, 2)


@pytest.mark.parametrize("rest", [b"\0", as_bytes(done(1)), b"x" * 99])
def test_bytes_after_the_end_are_seen(proof: Proof, capsys: pytest.CaptureFixture[str], rest: bytes) -> None:
    assert "goes on after" in proof.answer(proof.whole + rest, capsys, 2)


def content(data: bytes) -> list[tuple]:
    return [(r.kind, r.fields, {k: (a.dtype.str, a.shape, a.tobytes()) for k, a in r.arrays.items()}) for r in from_bytes(data)]


def damaged(rng: random.Random, data: bytes) -> bytes:
    """One to three bytes changed, a piece removed, doubled or moved."""
    result = bytearray(data)
    at, end = sorted(rng.choices(range(len(data)), k=2))
    match rng.randrange(5):
        case 0:
            del result[at : min(end, at + 40)]
        case 1:
            result[at:at] = data[at : min(end, at + 40)]
        case 2:
            result[at:at] = rng.randbytes(rng.randrange(1, 9))
        case _:
            for _ in range(rng.randrange(1, 4)):
                result[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(result)


@pytest.mark.parametrize("tries", [500, pytest.param(40_000, marks=pytest.mark.slow)])
def test_damage_is_seen_or_changes_nothing(proof: Proof, tries: int) -> None:
    rng, whole, seen = random.Random(tries), content(proof.whole), 0
    for _ in range(tries):
        data = damaged(rng, proof.whole)
        try:
            assert content(data) == whole
        except CertificateError as error:
            seen += 1
            assert "\n" not in str(error)
    assert seen > 0.9 * tries


NUMBERS = [np.nan, np.inf, -np.inf, 1e308, -1e308, 5e-324, -0.0, -1, 2**31 - 1, 255, 7]


def nonsense(rng: random.Random, records: list[Record]) -> list[Record]:
    """One thing of one record changed, the frame being right."""
    at = rng.randrange(len(records))
    record = records[at]
    name = rng.choice(sorted(record.arrays) or ["a"])
    array = record.arrays.get(name, np.zeros(3)).copy()
    field = rng.choice(sorted(record.fields) or ["b"])
    values: list = [None, True, -1, 0, 10**30, 1.5, "", "neurons", "x\n", [], [0], [-1], [2**40], ["a", 1], {}, [[]]]
    if array.size:
        with np.errstate(all="ignore"):
            spoiled = array.copy()
            spoiled.reshape(-1)[rng.randrange(array.size)] = np.float64(rng.choice(NUMBERS)).astype(array.dtype)
    else:
        spoiled = array.reshape(array.shape[::-1])
    other = rng.choice(["u1", "i4", "u4", "f4", "f8"])
    with np.errstate(all="ignore"):
        retyped = array.astype(other)
    changes: list[Callable[[], list[Record]]] = [
        lambda: [*records[:at], *records[at + 1 :]],
        lambda: [*records[:at], record, *records[at:]],
        lambda: [*records[:1], *rng.sample(records[1:], len(records) - 1)],
        lambda: [*records[:at], replace(record, kind=rng.choice(records).kind), *records[at + 1 :]],
        *(lambda new=new: [*records[:at], replace(record, arrays=record.arrays | {name: new}), *records[at + 1 :]]
          for new in (spoiled, spoiled, spoiled, retyped, array.reshape(-1)[:-1], array[None], array[:0], np.repeat(array[None], 2, 0))),
        lambda: [*records[:at], replace(record, arrays={k: v for k, v in record.arrays.items() if k != name}), *records[at + 1 :]],
        lambda: [*records[:at], replace(record, fields=record.fields | {field: rng.choice(values)}), *records[at + 1 :]],
        lambda: [*records[:at], replace(record, fields={k: v for k, v in record.fields.items() if k != field}), *records[at + 1 :]],
    ]  # fmt: skip
    return rng.choice(changes)()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("tries", [250, pytest.param(10_000, marks=pytest.mark.slow)])
def test_nonsense_in_a_right_frame_is_answered(proof: Proof, tries: int) -> None:
    """Whatever the records hold, the checker answers, or says in one sentence what it does not understand."""
    rng, outcomes = random.Random(tries), {"accepted": 0, "rejected": 0, "refused": 0}
    for _ in range(tries):
        records = proof.records
        for _ in range(rng.choice((1, 1, 2, 4))):
            records = nonsense(rng, records)
        proof.cert.write_bytes(as_bytes(*records))
        try:
            report = check(proof.model, proof.prop, proof.cert)
            outcomes["accepted" if report.accepted else "rejected"] += 1
            assert "\n" not in report.sentence
        except VerifierError as error:
            outcomes["refused"] += 1
            assert "\n" not in str(error) and str(error)
    assert min(outcomes.values()) > 0


def test_another_model_is_named(proof: Proof, capsys: pytest.CaptureFixture[str]) -> None:
    dense_relu(proof.model, np.array([[1.0], [-1.0]]), np.array([[1.0, 1.25]]))
    assert "another model than" in (said := proof.answer(proof.whole, capsys, 1))
    assert re.search(r"its SHA-256 begins with '[0-9a-f]{12}', not '[0-9a-f]{12}' \(", said)


def test_another_property_is_named(proof: Proof, capsys: pytest.CaptureFixture[str]) -> None:
    proof.prop.write_text(proof.prop.read_text() + "; a comment\n")
    assert "another property than" in (said := proof.answer(proof.whole, capsys, 1))
    assert re.search(r"its SHA-256 begins with '[0-9a-f]{12}', not '[0-9a-f]{12}' \(", said)


def test_a_property_of_another_network_is_refused(proof: Proof, capsys: pytest.CaptureFixture[str]) -> None:
    for sizes in ({"n_in": 2}, {"n_out": 2}):
        vnnlib(proof.prop, *IN_UNIT, "(>= X_1 0)" if "n_in" in sizes else "(>= Y_1 0)", "(<= Y_0 -0.5)", **sizes)
        assert "another network" in proof.answer(as_bytes(head(proof.model, proof.prop), *proof.records[1:]), capsys, 2)


def test_a_part_of_the_property_is_not_enough(proof: Proof, capsys: pytest.CaptureFixture[str]) -> None:
    vnnlib(proof.prop, *IN_UNIT, "(or (<= Y_0 -0.5) (<= Y_0 0.5))")
    assert "disjunct 2 of 2" in proof.answer(as_bytes(head(proof.model, proof.prop), *proof.records[1:]), capsys, 1)


def test_what_is_false_is_not_proved(proof: Proof, capsys: pytest.CaptureFixture[str]) -> None:
    vnnlib(proof.prop, *IN_UNIT, "(<= Y_0 0.5)")
    data = as_bytes(head(proof.model, proof.prop), case([-1], [1], [[1]], [0.5]), done(1))
    assert "Case 0, polytope 0 is not proved" in proof.answer(data, capsys, 1)


def test_a_folder_and_nothing_are_no_files(proof: Proof, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (proof.folder, proof.folder / "none.cert"):
        with pytest.raises(CertificateError) as caught:
            check(proof.model, proof.prop, path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
        assert run(["check", str(proof.model), str(proof.prop), str(path)]) == 2
        shown = capsys.readouterr()
        assert shown.out == "" and len(shown.err.splitlines()) == 1 and str(path.name) in shown.err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read(proof: Proof) -> None:
    proof.cert.chmod(0)
    with pytest.raises(CertificateError, match="cannot be read"):
        check(proof.model, proof.prop, proof.cert)


def test_a_file_that_fails_while_it_is_read(proof: Proof) -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > 100:
                raise OSError(5, "Input/output error")
            return super().read(size)

    with pytest.raises(CertificateError, match=r"small\.cert.* cannot be read: Input/output error"):
        list(read_records(Failing(proof.whole), "small.cert"))
