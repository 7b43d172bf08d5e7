"""Records come back as they were written, and say in one sentence what they lack."""
from __future__ import annotations

import hashlib
import io
import struct
import zlib

import numpy as np
import pytest

from tests.small_certificates import as_bytes, done, from_bytes
from verifier.certificate import schema
from verifier.certificate.schema import CertificateError, Record, write_record

HEAD = Record("HEAD", {"arithmetic": "real", "prover": "zwölf \n"}, {})


@pytest.mark.parametrize("kind", schema.TYPES)
@pytest.mark.parametrize("shape", [(0,), (3,), (2, 0, 4), (2, 3), (1, 2, 3, 2), ()])
def test_arrays_come_back(kind: str, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(len(shape))
    array = rng.integers(0, 200, shape).astype(kind)
    again = from_bytes(as_bytes(HEAD, Record("LEAF", {"x": [1, {"y": None}]}, {"a": array, "b": array.T}), done(0)))
    assert [record.kind for record in again] == ["HEAD", "LEAF", "DONE"]
    assert again[0].fields == HEAD.fields and again[1].fields == {"x": [1, {"y": None}]}
    for seen, wanted in ((again[1].arrays["a"], array), (again[1].arrays["b"], array.T)):
        assert seen.dtype == wanted.dtype and seen.shape == wanted.shape and (seen == wanted).all()
        assert not seen.flags.writeable


def test_the_bytes_are_those_of_the_page() -> None:
    """docs/certificate.md, "The bytes", written out by hand."""
    text = b'{"cases":0,"arrays":[["a","f4",[2]]]}'
    payload = struct.pack("<I", len(text)) + text + struct.pack("<2f", 1.5, -2.0)
    packed = zlib.compress(payload, 3)
    record = b"DONE" + struct.pack("<QQI", len(packed), len(payload), zlib.crc32(packed)) + packed
    whole = as_bytes(HEAD, Record("DONE", {"cases": 0}, {"a": np.array([1.5, -2.0], np.float32)}))
    assert whole.startswith(b"\x89CERT\r\n\x1a\x01\x00\x00\x00HEAD") and whole.endswith(record)


def test_foreign_byte_order_is_written_little_endian() -> None:
    again = from_bytes(as_bytes(HEAD, Record("DONE", {}, {"a": np.array([1.0, 2.0], ">f8")})))
    assert (again[1].arrays["a"] == [1.0, 2.0]).all()


def test_the_same_records_are_the_same_bytes() -> None:
    whole = [as_bytes(HEAD, done(3)) for _ in range(2)]
    assert hashlib.sha256(whole[0]).digest() == hashlib.sha256(whole[1]).digest()


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (Record("LEAF", {}, {"a": np.zeros(2, np.int64)}), "types are"),
        (Record("LEAF", {}, {"a": np.array([None])}), "types are"),
        (Record("LEAF", {"text": "x" * schema.MOST_JSON}, {}), "split it"),
        (Record("LEAF", {}, {"a": np.zeros(2**18, np.float32)}), "split it"),
    ],
)
def test_what_no_reader_takes_is_not_written(monkeypatch: pytest.MonkeyPatch, record: Record, said: str) -> None:
    monkeypatch.setattr(schema, "MOST_BYTES", 2**20)
    file = io.BytesIO()
    with pytest.raises(CertificateError, match=said):
        write_record(file, record)
    assert file.getvalue() == b""


FIELDS = {"n": 3, "text": "a", "flag": True, "less": -1, "names": ["a", 2]}
RECORD = Record("LEAF", FIELDS, {"a": np.array([[1.0, np.nan]]), "b": np.zeros(3, np.int32)}, "p")


@pytest.mark.parametrize(
    ("name", "kind"), [("n", str), ("text", int), ("flag", int), ("less", int), ("none", int), ("n", list), ("none", list), ("none", str)]
)
def test_fields_of_another_type_are_refused(name: str, kind: type) -> None:
    with pytest.raises(CertificateError, match=f"p needs '{name}' of type {kind.__name__}"):
        RECORD.field(name, kind)


@pytest.mark.parametrize(("name", "kind"), [("names", str), ("names", int), ("n", int), ("none", str)])
def test_lists_of_other_things_are_refused(name: str, kind: type) -> None:
    with pytest.raises(CertificateError, match=f"p needs '{name}'"):
        RECORD.items(name, kind)


@pytest.mark.parametrize(
    ("name", "types", "shape", "said"),
    [
        ("c", "f8", (1, 2), "no array 'c'"),
        ("a", "f8", (1, 2), "not finite"),
        ("b", "i4", (4,), r"as i4 \(3,\), but i4 \(4,\)"),
        ("b", "i4", (3, 1), r"\(3, 1\) is needed"),
        ("b", "i4", (None, None), "is needed"),
        ("b", "f4 f8", (3,), "f4 f8"),
    ],
)
def test_arrays_of_another_form_are_refused(name: str, types: str, shape: tuple, said: str) -> None:
    with pytest.raises(CertificateError, match=said):
        RECORD.array(name, types, shape)


def test_what_fits_is_given() -> None:
    assert RECORD.field("n", int) == 3 and RECORD.field("text", str) == "a"
    assert RECORD.array("b", "u1 i4", (None,)).shape == (3,)
