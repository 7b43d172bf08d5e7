"""ONNX bytes -> model, read once: what is hashed is what is computed with. Nothing is opened outside of the model's own folder.

A model is its file (unpacked where it is gzip) and the files that its tensors point to: initializers, sparse ones, attributes of nodes, of the
nodes of functions and of inner graphs. All are read here, once, into the model that is returned; its digest is taken of the same bytes.
"""
from __future__ import annotations

import gzip
import hashlib
import math
import os
import stat
import zlib
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path

import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from onnx import ModelProto, NodeProto, TensorProto, helper

from verifier.errors import ModelError

# A protobuf holds at most 2 GiB; so may a model with all that it points to.
MOST_BYTES = 2**31 - 1
# What a gzip file may unpack to: weights that are nearly all zero shrink to a hundredth, a bomb to a thousandth.
_UNPACKED_FREE, _UNPACKED_RATIO = 2**26, 200
_PIECE = 2**20
_MOST_NODES = 2**20
_DATA = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data", "external_data")
_EXTERNAL_KEYS = frozenset({"location", "offset", "length", "checksum"})


def read_model_bytes(path: str | Path) -> bytes:
    """The file's bytes, decompressed where it is gzip.

    Raises:
        ModelError: there is no such file, it cannot be read, it is empty, or it is or unpacks to more than a model can be.
    """
    path = Path(path)
    if path.is_dir():
        raise ModelError(f"{path} is a folder: give the .onnx file in it.")
    try:
        with open(path, "rb") as file:
            data = file.read(min(MOST_BYTES, os.fstat(file.fileno()).st_size or MOST_BYTES) + 1)  # room is made for as much as is asked for
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}.") from None
    if len(data) > MOST_BYTES:
        raise ModelError(f"{path} is larger than 2 GiB, the most that an ONNX file can be.")
    data = _decompressed(data, path) if data[:2] == b"\x1f\x8b" else data
    if not data:
        raise ModelError(f"{path} is empty.")
    return data


def _decompressed(data: bytes, path: Path) -> bytes:
    """The unpacked bytes, piece by piece, so that no more than the limit is ever made."""
    cut = f"{path} is a damaged gzip file: it cannot be decompressed to its end."
    most = min(MOST_BYTES, _UNPACKED_FREE + _UNPACKED_RATIO * len(data))
    whole = bytearray()
    try:
        with gzip.GzipFile(fileobj=BytesIO(data)) as file:
            while piece := file.read(_PIECE):
                whole += piece
                if len(whole) > most:
                    raise ModelError(f"{path} has {len(data):,} bytes and unpacks to more than {most:,}: unpack it yourself if you trust it.")
    except (EOFError, OSError, zlib.error):
        raise ModelError(cut) from None
    return bytes(whole)


def decoded(data: bytes, path: str | Path) -> ModelProto:
    """The model as its bytes say it, what it points to not read."""
    try:
        return onnx.load_model_from_string(data)
    except DecodeError:
        raise ModelError(f"{path} is not an ONNX file: its bytes cannot be decoded; is it cut, or of another format?") from None


def read_model(path: str | Path) -> tuple[ModelProto, str]:
    """The model with everything it points to, its local functions written out; and its digest, of the very bytes that made it.

    The digest is the SHA-256, in hexadecimal, of the file's bytes (unpacked). Where tensors lie in other files it is the SHA-256 of `external`, the
    32 bytes of that one and, for each of these files in order of their names, the SHA-256 of the name and that of the file.

    Raises:
        ModelError: the bytes are no ONNX model, or what it points to is not there, or not in its folder.
    """
    data = read_model_bytes(path)
    model = decoded(data, path)
    if not model.graph.node:
        raise ModelError(f"{path} is not an ONNX network: it holds no operation.")
    files = _embed(model, Path(path), MOST_BYTES - len(data))
    digest = hashlib.sha256(data)
    if files:
        parts = [b"external", digest.digest(), *(hashlib.sha256(part).digest() for name in sorted(files) for part in (name.encode(), files[name]))]
        digest = hashlib.sha256(b"".join(parts))
    return _inlined(model, path), digest.hexdigest()


def runnable_bytes(path: str | Path) -> bytes:
    """The file's bytes for a runtime; where tensors lie in other files, those of a model that holds them.

    Raises:
        ModelError: as `read_model`.
    """
    data = read_model_bytes(path)
    model = decoded(data, path)
    return model.SerializeToString() if _embed(model, Path(path), MOST_BYTES - len(data)) else data


def tensors_of(message: Message) -> Iterator[TensorProto]:
    """Every tensor within a message, at any depth: nothing that a runtime could compute with is left out."""
    open_ = [message]
    while open_:
        here = open_.pop()
        if isinstance(here, TensorProto):
            yield here
            continue
        for field, value in here.ListFields():
            if field.type == FieldDescriptor.TYPE_MESSAGE:
                open_.extend([value] if isinstance(value, Message) else value)


def _embed(model: ModelProto, path: Path, room: int) -> dict[str, bytes]:
    """Puts the data of every external tensor into the model; returns the files that it lay in, by the name that the model has for them."""
    files: dict[str, bytes] = {}
    taken = 0
    for tensor in tensors_of(model):
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        name = entries.get("location", "")
        if len(entries) != len(tensor.external_data) or not entries.keys() <= _EXTERNAL_KEYS or not name:
            raise ModelError(f"{path}: tensor {tensor.name!r} says in no clear way where its data lies: {sorted(entries)}.")
        if name not in files:
            files[name] = _beside(path, name, room - sum(map(len, files.values())))
        part = _part(tensor, entries, files[name], path)
        taken += len(part)
        if taken > room:
            raise ModelError(f"{path} has tensors of more than 2 GiB in other files, the most that is read.")
        for kind in _DATA:
            tensor.ClearField(kind)
        tensor.raw_data, tensor.data_location = bytes(part), TensorProto.DEFAULT
    return files


def _part(tensor: TensorProto, entries: dict[str, str], data: bytes, path: Path) -> memoryview:
    """A tensor's part of a file's bytes: `length` of them, or what its shape needs, from `offset` on."""
    try:
        begin, length = int(entries.get("offset", "0")), int(entries.get("length", "-1"))
        needed = math.prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    except (KeyError, ValueError):
        raise ModelError(f"{path}: tensor {tensor.name!r} has an offset, length or type that is none.") from None
    length = min(needed, len(data) - begin) if "length" not in entries else length
    if begin < 0 or not 0 <= length <= len(data) - begin:
        raise ModelError(f"{path} keeps tensor {tensor.name!r} in {entries['location']!r}, which has no {length} bytes from {begin} on: is it cut?")
    return memoryview(data)[begin:begin + length]


def _beside(path: Path, name: str, room: int) -> bytes:
    """The bytes of a file in the model's folder or below it, whatever links say.

    Raises:
        ModelError: the name leads out of the folder, or there is no such file, or it is too large.
    """
    parts = name.replace("\\", "/").split("/")
    folder = os.path.realpath(path.parent)
    where = os.path.realpath(os.path.join(folder, name))
    if os.path.isabs(name) or ".." in parts or ":" in name or "\0" in name or os.path.commonpath([folder, where]) != folder:
        raise ModelError(f"{path} keeps weights in {name!r}, which is not in its own folder: nothing else is opened.")
    missing = f"{path} keeps weights in another file, {name!r}, which"
    try:
        if not os.path.isfile(where):
            raise ModelError(f"{missing} is not there: keep the two files together.")
        with open(where, "rb", opener=_unlinked) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ModelError(f"{missing} is no file.")
            data = file.read(min(max(room, 0), os.fstat(file.fileno()).st_size) + 1)
    except OSError as error:
        raise ModelError(f"{missing} cannot be read: {error.strerror or error}.") from None
    if len(data) > room:
        raise ModelError(f"{missing} makes it larger than 2 GiB, the most that is read.")
    return data


def _unlinked(path: str, flags: int) -> int:
    """Opens a file that is no link and does not block."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))


def _inlined(model: ModelProto, path: str | Path) -> ModelProto:
    """The model with its local functions written out."""
    if not model.functions:
        return model
    for function in model.functions:
        if _is_a_runtimes_own(function.domain):
            name = f"{function.domain or 'ai.onnx'}.{function.name}"
            raise ModelError(f"{path} has a function with a name of the standard, {name}: a runtime computes the standard's operation instead.")
    size = _written_out(model)
    if size > _MOST_NODES:
        raise ModelError(f"{path} has functions that write out to more than {_MOST_NODES:,} operations, or call themselves.")
    from onnx import inliner

    try:
        return inliner.inline_local_functions(model)
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"{path} has functions that cannot be written out: {str(error).splitlines()[:1]}.") from None


def _is_a_runtimes_own(domain: str) -> bool:
    """Whether onnxruntime has operations in the domain: a function of the same name would not be called."""
    return not domain or domain.split(".")[:2] in (["ai", "onnx"], ["com", "microsoft"], ["com", "ms"], ["org", "pytorch"])


def _written_out(model: ModelProto) -> float:
    """How many nodes the graph has once its functions are written out, those of inner graphs counted; infinite for one that calls itself."""
    bodies = {(f.domain, f.name, _overload(f)): f.node for f in model.functions}
    sizes: dict[tuple[str, str, str], float] = {}

    def size(nodes: Iterable[NodeProto]) -> float:
        total, open_ = 0.0, list(nodes)
        while open_:
            node = open_.pop()
            key = (node.domain, node.op_type, _overload(node))
            total += of(key) if key in bodies else 1
            open_.extend(inner for a in node.attribute for graph in ([a.g] if a.HasField("g") else [*a.graphs]) for inner in graph.node)
        return total

    def of(key: tuple[str, str, str]) -> float:
        if key not in sizes:
            sizes[key] = math.inf  # while it is counted: a function that calls itself stays there
            sizes[key] = size(bodies[key])
        return sizes[key]

    try:
        return size(model.graph.node)
    except RecursionError:
        return math.inf


def _overload(message: Message) -> str:
    return getattr(message, "overload", "")
