"""The bytes of a certificate: records in, records out. See docs/certificate.md, "The bytes".

A reader holds one record at a time, unpacks no more than it declares, and allocates nothing that is only declared. numpy and the standard library.
"""
from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
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
TYPES = ("u1", "i4", "u4", "f2", "f4", "f8")
_FRAME = struct.Struct("<4sQQI")
_CHUNK = 2**20
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
        array = self.arrays.get(name)
        if array is None:
            raise CertificateError(f"{self.place} has no array '{name}'.")
        fits = array.ndim == len(shape) and all(want in (None, seen) for seen, want in zip(array.shape, shape))
        if not fits or array.dtype.str[1:] not in types.split():
            raise CertificateError(f"{self.place} has '{name}' as {array.dtype.str[1:]} {array.shape}, but {types} {shape} is needed.")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise CertificateError(f"{self.place} has '{name}' with a number that is not finite.")
        return array


def write_header(file: BinaryIO) -> None:
    """What stands before the first record."""
    file.write(MAGIC + struct.pack("<I", VERSION))


def write_record(file: BinaryIO, record: Record) -> None:
    """Appends one record.

    Raises:
        CertificateError: the record is larger than readers take.
    """
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
    """The file, opened for `read_records`.

    Raises:
        CertificateError: it cannot be opened.
    """
    try:
        return open(path, "rb")
    except OSError as error:
        raise CertificateError(f"{path} cannot be read: {error.strerror or error}.") from None
    except ValueError as error:
        raise CertificateError(f"{str(path)!r} is not a path: {error}.") from None


def read_records(file: BinaryIO, name: str) -> Iterator[Record]:
    """The records one by one, HEAD first and DONE last; `name` stands for the file in errors.

    Raises:
        CertificateError: the bytes are not a certificate, or it is cut, damaged or too large.
    """
    _check_start(_read(file, len(MAGIC) + 4, name), name)
    number = 0
    while frame := _read(file, _FRAME.size, name):
        number += 1
        place = f"{name}, record {number}"
        if len(frame) < _FRAME.size:
            raise _cut(place)
        kind, packed, size, crc = _FRAME.unpack(frame)
        if kind.decode("latin-1") not in KINDS:
            raise CertificateError(f"{place} is of an unknown kind, {kind!r}: is the file damaged?")
        kind = kind.decode()
        place += f" ({kind})"
        if (kind == "HEAD") != (number == 1):
            raise CertificateError(f"{place} is out of its place: HEAD comes first, and once.")
        if max(packed, size) > MOST_BYTES:
            raise CertificateError(f"{place} declares {max(packed, size) / 1e9:.1f} GB for one record, more than 256 MiB.")
        record = _record(kind, _unpacked(file, (packed, size, crc), place), place)
        if kind == "DONE" and _read(file, 1, name):
            raise CertificateError(f"{name} goes on after its DONE record: is it two files in one?")
        yield record
        if kind == "DONE":
            return
        del record  # not held while the next is read
    raise CertificateError(f"{name} was cut: it ends after {number} records without DONE.")


def _read(file: BinaryIO, count: int, place: str) -> bytes:
    try:
        return file.read(count)
    except OSError as error:
        raise CertificateError(f"{place} cannot be read: {error.strerror or error}.") from None


def _check_start(start: bytes, name: str) -> None:
    if not start:
        raise CertificateError(f"{name} is empty.")
    if start[: len(MAGIC)] != MAGIC[: len(start)]:
        raise CertificateError(f"{name} is not a certificate: it does not begin with {MAGIC!r}.")
    if len(start) < len(MAGIC) + 4:
        raise _cut(name)
    version = int.from_bytes(start[len(MAGIC) :], "little")
    if version != VERSION:
        raise CertificateError(f"{name} is of version {version}; this checker reads {VERSION}: use a newer verifier.")


def _cut(place: str) -> CertificateError:
    return CertificateError(f"{place} was cut: the file ends in the middle of it.")


def _unpacked(file: BinaryIO, frame: tuple[int, int, int], place: str) -> memoryview:
    """The payload, read and unpacked piece by piece; never more than one byte above the declared size."""
    left, size, crc = frame
    unpacker, payload, sum_ = zlib.decompressobj(), bytearray(), 0
    while left:
        piece = _read(file, min(left, _CHUNK), place)
        if not piece:
            raise _cut(place)
        left -= len(piece)
        sum_ = zlib.crc32(piece, sum_)
        try:
            payload += unpacker.decompress(piece, size + 1 - len(payload))
        except zlib.error:
            raise CertificateError(f"{place} is damaged: it cannot be unpacked.") from None
        if len(payload) > size:
            raise CertificateError(f"{place} unpacks to more than the {size:,} bytes that it declares.")
    if sum_ != crc:
        raise CertificateError(f"{place} is damaged: its checksum is wrong.")
    if len(payload) != size or not unpacker.eof or unpacker.unused_data:
        raise CertificateError(f"{place} declares {size:,} bytes, but unpacks to {len(payload):,}, or other bytes follow.")
    return memoryview(payload).toreadonly()


def _record(kind: str, payload: memoryview, place: str) -> Record:
    """The record of an unpacked payload; its arrays are views of it, which cannot be written to."""
    start = 4 + int.from_bytes(payload[:4], "little")
    if not 4 < start <= min(len(payload), MOST_JSON + 4):
        raise CertificateError(f"{place} declares {start - 4:,} bytes of JSON, which it does not have or which are more than {MOST_JSON:,}.")
    try:
        fields = json.loads(bytes(payload[4:start]).decode(), parse_constant=_refuse)
    except ValueError:
        raise CertificateError(f"{place} holds no valid JSON: is the file damaged?") from None
    except RecursionError:
        raise CertificateError(f"{place} holds JSON that is nested too deeply.") from None
    declared = fields.pop("arrays", None) if isinstance(fields, dict) else None
    if not isinstance(declared, list) or len(declared) > MOST_ARRAYS:
        raise CertificateError(f"{place} does not list its arrays: its JSON must be an object with 'arrays', at most {MOST_ARRAYS} of them.")
    arrays: dict[str, np.ndarray] = {}
    for entry in declared:
        name, kind_of, shape = _declared(entry, arrays, place)
        count = prod(shape)
        if start + count * int(kind_of[1]) > len(payload):
            raise CertificateError(f"{place} declares {name!r:.40} as {kind_of} {shape}, more than the bytes that are there.")
        arrays[name] = np.frombuffer(payload, "<" + kind_of, count, start).reshape(shape)
        start += count * int(kind_of[1])
    if start != len(payload):
        raise CertificateError(f"{place} has {len(payload) - start:,} bytes after its arrays.")
    return Record(kind, fields, arrays, place)


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _declared(entry: Any, seen: dict[str, np.ndarray], place: str) -> tuple[str, str, list[int]]:
    """An array's name, type and shape as declared."""
    match entry:
        case [str(name), str(kind), list(shape)] if name not in seen and kind in TYPES and len(shape) <= MOST_AXES:
            if all(type(n) is int and 0 <= n <= MOST_BYTES for n in shape) and prod(max(n, 1) for n in shape) <= MOST_BYTES:
                return name, kind, shape
    raise CertificateError(f"{place} declares an array as {entry!r:.80}: expected a new name, one of {', '.join(TYPES)}, and a shape.")
