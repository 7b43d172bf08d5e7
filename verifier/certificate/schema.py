"""The bytes of a certificate: records in, records out. See docs/certificate.md, "The bytes".

A reader holds one record at a time, unpacks no more than it declares, and allocates nothing that is only declared. numpy and the standard library.
"""
from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import SEEK_END
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from verifier.errors import VerifierError

MAGIC, VERSION = b"\x89CERT\r\n\x1a", 1
MOST_BYTES = 2**28  # of one record, packed or unpacked
MOST_JSON = 2**22  # of one record: parsed, it may take thirty times as much memory
MOST_ARRAYS, MOST_AXES = 64, 4
KINDS = ("HEAD", "CASE", "TREE", "LEAF", "STEP", "BOXS", "DONE")
TYPES = ("u1", "i4", "u4", "f4", "f8")
_START = MAGIC + VERSION.to_bytes(4, "little")
_FRAME = struct.Struct("<4sQQI")
_LEVEL = 3  # of zlib; 6 takes several times as long for files a twentieth smaller


class CertificateError(VerifierError):
    """The certificate cannot be read; the message names the file and the record."""


@dataclass(frozen=True, slots=True)
class Record:
    """One record: its kind, the fields of its JSON without "arrays", and its arrays. `place` names it in errors."""

    kind: str
    fields: dict[str, Any]
    arrays: dict[str, np.ndarray]
    place: str = "a record"

    def field(self, name: str, kind: type) -> Any:
        """The field `name`, of this type; integers are at least 0."""
        return self._checked(name, self.fields.get(name), kind)

    def items(self, name: str, kind: type) -> list[Any]:
        """The field `name`, a list of values of this type."""
        return [self._checked(name, item, kind) for item in self.field(name, list)]

    def _checked(self, name: str, value: Any, kind: type) -> Any:
        if type(value) is not kind or (kind is int and not 0 <= value < 2**31):
            raise CertificateError(f"{self.place} needs '{name}' of type {kind.__name__}, but has {value!r:.40}.")
        return value

    def array(self, name: str, types: str, shape: tuple[int | None, ...]) -> np.ndarray:
        """The array `name`, of finite numbers of one of `types` ("f4 f8"), of this shape; None stands for any size."""
        if name not in self.arrays:
            raise CertificateError(f"{self.place} has no array '{name}'.")
        array = self.arrays[name]
        fits = array.ndim == len(shape) and all(want in (None, seen) for seen, want in zip(array.shape, shape))
        if not fits or array.dtype.str[1:] not in types.split():
            raise CertificateError(f"{self.place} has '{name}' as {array.dtype.str[1:]} {array.shape}, but {types} {shape} is needed.")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise CertificateError(f"{self.place} has '{name}' with a number that is not finite.")
        return array


def write_header(file: BinaryIO) -> None:
    """What stands before the first record."""
    file.write(_START)


def write_record(file: BinaryIO, record: Record) -> None:
    """Appends one record; a CertificateError where it is larger than readers take."""
    shapes = [[name, array.dtype.str[1:], list(array.shape)] for name, array in record.arrays.items()]
    if not all(kind in TYPES for _, kind, _ in shapes):
        raise CertificateError(f"A {record.kind} record cannot hold {shapes}: the types are {', '.join(TYPES)}.")
    text = json.dumps(record.fields | {"arrays": shapes}, separators=(",", ":"), allow_nan=False).encode()
    parts = [array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes() for array in record.arrays.values()]
    payload = b"".join([struct.pack("<I", len(text)), text, *parts])
    if len(text) > MOST_JSON or len(payload) > MOST_BYTES:
        raise CertificateError(f"A {record.kind} record of {len(payload):,} bytes ({len(text):,} of JSON) is more than readers take: split it.")
    packed = zlib.compress(payload, _LEVEL)
    file.write(_FRAME.pack(record.kind.encode("ascii"), len(packed), len(payload), zlib.crc32(packed)) + packed)


def open_certificate(path: str | Path) -> BinaryIO:
    """The file, opened for `read_records`; a CertificateError where it cannot be."""
    try:
        return open(path, "rb")
    except (OSError, ValueError) as error:
        raise CertificateError(f"{str(path)!r} cannot be read: {getattr(error, 'strerror', None) or error}.") from None


def read_records(file: BinaryIO, name: str) -> Iterator[Record]:
    """The records one by one, HEAD first and DONE last; `name` stands for the file in errors.

    Raises:
        CertificateError: the bytes are not a certificate, or it is cut, damaged or too large.
    """
    kind, number = "", 0
    try:
        end = file.seek(0, SEEK_END)
        file.seek(0)
        if (start := file.read(len(_START))) != _START:
            raise ValueError(_no_start(start))
        while kind != "DONE":
            number += 1
            record = _record(file, end, f"{name}, record {number}")
            kind = record.kind
            if (kind == "HEAD") != (number == 1):
                raise ValueError(f"{kind} is out of its place: HEAD comes first, once")
            if kind == "DONE" and file.tell() < end:
                raise ValueError("the file goes on after its DONE")
            yield record
            del record  # not held while the next is read
    except (OSError, ValueError, RecursionError, zlib.error) as error:
        place = f"{name}, record {number}" if number else name
        raise CertificateError(f"{place} cannot be read: {getattr(error, 'strerror', None) or error}.") from None


def _no_start(start: bytes) -> str:
    """What is wrong with a file that begins so."""
    if not start:
        return "it is empty"
    if not MAGIC.startswith(start[:len(MAGIC)]):
        return f"it is not a certificate: it begins with {start[:len(MAGIC)]!r}"
    if len(start) < len(_START):
        return "the file was cut: it ends before its first record"
    return f"it is of version {int.from_bytes(start[len(MAGIC):], 'little')}; this checker reads {VERSION}: use a newer verifier"


def _payload(file: BinaryIO, end: int) -> tuple[str, bytes]:
    """The next record's kind and payload, unpacked; never more than one byte above the declared size."""
    frame = file.read(_FRAME.size)
    if len(frame) < _FRAME.size:
        raise ValueError("the file was cut: it ends without DONE")
    kind, packed, size, crc = _FRAME.unpack(frame)
    if kind.decode("latin-1") not in KINDS:
        raise ValueError(f"it is of an unknown kind, {kind!r}")
    if max(packed, size) > MOST_BYTES:
        raise ValueError(f"it declares {max(packed, size) / 1e9:,.1f} GB, more than {MOST_BYTES >> 20} MiB")
    if packed > end - file.tell():
        raise ValueError("the file was cut: it ends in the middle of the record")
    data, unpacker = file.read(packed), zlib.decompressobj()
    payload = unpacker.decompress(data, size + 1)
    if zlib.crc32(data) != crc or len(payload) != size or not unpacker.eof or unpacker.unused_data:
        raise ValueError(f"it is damaged: its checksum is wrong, or it does not unpack to the {size:,} bytes that it declares")
    return kind.decode(), payload


def _record(file: BinaryIO, end: int, place: str) -> Record:
    """The next record; its arrays are views of the payload, which cannot be written to."""
    kind, payload = _payload(file, end)
    start = 4 + int.from_bytes(payload[:4], "little")
    if start > min(len(payload), 4 + MOST_JSON):
        raise ValueError(f"it declares {start - 4:,} bytes of JSON, more than it has or than {MOST_JSON:,}")
    fields = json.loads(payload[4:start].decode(), parse_constant=int)  # int refuses NaN and Infinity
    declared = fields.pop("arrays", None) if isinstance(fields, dict) else None
    if not isinstance(declared, list) or len(declared) > MOST_ARRAYS:
        raise ValueError(f"its JSON must be an object with a list 'arrays', of at most {MOST_ARRAYS}")
    arrays: dict[str, np.ndarray] = {}
    for entry in declared:
        if not _is_new(entry, arrays):
            raise ValueError(f"it declares an array as {entry!r:.80}: expected a new name, one of {', '.join(TYPES)}, and a shape")
        name, type_, shape = entry
        arrays[name] = np.frombuffer(payload, "<" + type_, prod(shape), start).reshape(shape)  # ValueError where bytes are missing
        start += arrays[name].nbytes
    if start != len(payload):
        raise ValueError(f"it has {len(payload) - start:,} bytes after its arrays")
    return Record(kind, fields, arrays, f"{place} ({kind})")


def _is_new(entry: Any, arrays: dict[str, np.ndarray]) -> bool:
    """Whether it declares an array of a new name, a known type and a shape that an array can have."""
    match entry:
        case [str(name), str(kind), list(shape)] if name not in arrays and kind in TYPES and len(shape) <= MOST_AXES:
            return all(type(n) is int and n >= 0 for n in shape) and prod(max(n, 1) for n in shape) <= MOST_BYTES
    return False
