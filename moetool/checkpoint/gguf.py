"""GGUF checkpoints: enters a file of llama.cpp or a folder of them, leaves a Checkpoint; only headers are read.

The format (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md): magic, version and two counts; metadata; names,
shapes, types and offsets of the tensors; then the data, aligned. A large model is split into parts, each a file of its
own kind, of which only the first holds all the metadata.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moetool.checkpoint.files import open_regular
from moetool.checkpoint.gguf_config import translate
from moetool.checkpoint.headers import DAMAGED, refuse_duplicates
from moetool.checkpoint.types import Checkpoint, TensorInfo
from moetool.errors import MoetoolError

if TYPE_CHECKING:
    from moetool.checkpoint.gguf_reader import Header, StoredTensor

SUFFIX = ".gguf"
VERSIONS = (2, 3)
MOST_ENTRIES = 20_000
"""Tensors of a file, and keys: published files have up to 3,000."""
_PREFIX_BYTES = 24
_LEAST_BYTES = 13
"""A key takes at least so many bytes (length, no name, type, one byte), a tensor more."""
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)
_TOWER = "mmproj"
"""What llama.cpp calls the file with the towers beside a text decoder."""


def read_gguf(path: Path, name: str) -> Checkpoint:
    """The checkpoint in a GGUF file (with its other parts, where it is split) or in a folder with those of one model.

    Tensors have the file's own names and GGML's type names, shapes are in torch's order and count parameters, whatever
    the type; sizes are stored bytes. The config is translated to transformers' keys. The file of a tower (``mmproj``)
    beside a model in a folder is read with it. Raises MoetoolError where the gguf library is missing, a part is, a
    folder holds several models, or a file is damaged or no GGUF file.
    """
    folder, files = (path, _files_of_folder(path)) if path.is_dir() else (path.parent, _parts(path))
    headers = {file: _read_file(folder / file) for file in files}
    tensors = tuple(
        TensorInfo(tensor.name, tensor.type_name, tensor.shape, tensor.size_bytes, file)
        for file, header in headers.items()
        for tensor in header.tensors
    )
    refuse_duplicates(str(folder), tensors)
    where, metadata = str(folder / files[0]), headers[files[0]].metadata
    decoder = [file for file in files if not _is_tower(file)] or files
    _check_split(where, metadata, len(decoder), sum(len(headers[file].tensors) for file in decoder))
    if metadata.get("general.type", "model") not in ("model", _TOWER):
        raise MoetoolError(f"{where} is no model, but {str(metadata['general.type'])[:80]!r}", "name a model's file")
    if not tensors:
        raise MoetoolError(f"{where} holds no tensors", DAMAGED)
    return Checkpoint(name, None, translate(where, metadata, tensors), tensors, folder)


def holds_gguf_only(folder: Path) -> bool:
    """Whether a folder's weights are GGUF files: publishers put the original's config.json beside them."""
    names = [path.name for path in folder.iterdir()]
    others = any(name.endswith((".safetensors", ".safetensors.index.json", ".bin")) for name in names)
    return not others and any(name.endswith(SUFFIX) for name in names)


def _files_of_folder(folder: Path) -> list[str]:
    """The files of the one model in a folder, its tower last."""
    models: dict[str, list[str]] = {}
    for name in sorted(path.name for path in folder.glob(f"*{SUFFIX}")):
        part = _PART.fullmatch(name)
        models.setdefault(f"{part[1]} in {int(part[3])} parts" if part else name, []).append(name)
    kinds = {tower: [model for model in models if _is_tower(model) is tower] for tower in (False, True)}
    many = next((found for found in kinds.values() if len(found) > 1), None)
    if many:
        listed = ", ".join(many[:8]) + (", ..." if len(many) > 8 else "")
        raise MoetoolError(f"{folder} holds {len(many)} models: {listed}", "name one of the files")
    return [file for found in kinds.values() for model in found for file in _parts(folder / models[model][0])]


def _is_tower(name: str) -> bool:
    return _TOWER in name.lower()


def _parts(path: Path) -> list[str]:
    """The names of all parts of a file, in order; the file itself where it is whole."""
    part = _PART.fullmatch(path.name)
    if part is None:
        return [path.name]
    number, count = int(part[2]), int(part[3])
    if not 0 < number <= count:
        raise MoetoolError(
            f"{path} says that it is part {number} of {count}", "use the name that it was published with"
        )
    for index in range(1, count + 1):
        name = f"{part[1]}-{index:05d}-of-{count:05d}{SUFFIX}"
        if not (path.parent / name).exists():
            raise MoetoolError(
                f"{path.parent}: {name} is missing, one of {count} parts",
                "the download is incomplete: fetch the missing files",
            )
    return [f"{part[1]}-{index:05d}-of-{count:05d}{SUFFIX}" for index in range(1, count + 1)]


def _check_split(where: str, metadata: dict[str, Any], files: int, tensors: int) -> None:
    """Parts under names of their own, or of another split, are found out by what the first one says."""
    parts, total = metadata.get("split.count", 0), metadata.get("split.tensors.count")
    if type(parts) is not int or max(parts, 1) != files:
        raise MoetoolError(
            f"{where} says that it is one of {str(parts)[:80]} parts, {files} are there",
            "keep the parts under the names that they were published with: NAME-00001-of-00003.gguf",
        )
    if files > 1 and total is not None and total != tensors:
        raise MoetoolError(f"{where} says that its parts hold {str(total)[:80]} tensors, they hold {tensors}", DAMAGED)


def _read_file(path: Path) -> Header:
    """What one file says, after the checks that the library does not do."""
    try:
        with open_regular(path) as stream:
            size_bytes = stream.seek(0, 2)
            stream.seek(0)
            prefix = stream.read(_PREFIX_BYTES)
    except OSError as error:
        raise MoetoolError(f"{path} cannot be read: {error.strerror or error}") from None
    _check_prefix(str(path), prefix, size_bytes)
    try:
        from moetool.checkpoint import gguf_reader
    except ImportError as error:
        if error.name != "gguf":
            raise
        raise MoetoolError(
            f"{path}: reading GGUF files takes the gguf library", "pip install 'moetool[gguf]'"
        ) from None
    try:
        header = gguf_reader.read_header(path, size_bytes)
    except gguf_reader.FAULTS as error:
        said = str(error.args[0] if error.args else error)[:200]
        raise MoetoolError(f"{path}: no valid GGUF file: {said}", DAMAGED) from None
    _check_spans(str(path), header.tensors, header.data_bytes)
    return header


def _check_prefix(where: str, prefix: bytes, size_bytes: int) -> None:
    """Check magic, version and counts: none may stand for more than the file has room for."""
    if not prefix.startswith(b"GGUF"):
        raise MoetoolError(f"{where}: no GGUF file: it does not begin with GGUF", DAMAGED)
    if len(prefix) < _PREFIX_BYTES:
        raise MoetoolError(f"{where}: no GGUF file: it has {size_bytes} bytes only", DAMAGED)
    version = int.from_bytes(prefix[4:8], "little")
    if version & 0xFFFF == 0:
        raise MoetoolError(
            f"{where} is big-endian, which is not read", "gguf-convert-endian (of the gguf library) turns it"
        )
    if version not in VERSIONS:
        raise MoetoolError(f"{where} has version {version} of the format; 2 and 3 are read", DAMAGED)
    for what, begin in (("tensors", 8), ("keys", 16)):
        count = int.from_bytes(prefix[begin : begin + 8], "little")
        if count > MOST_ENTRIES or count * _LEAST_BYTES > size_bytes:
            raise MoetoolError(f"{where}: it says that it has {count} {what}, in {size_bytes} bytes", DAMAGED)


def _check_spans(where: str, tensors: Iterable[StoredTensor], data_bytes: int) -> None:
    """Check that no two tensors share bytes and that all end inside the file; what lies between them is alignment."""
    position = 0
    for tensor in sorted(tensors, key=lambda tensor: (tensor.begin, tensor.size_bytes)):
        if tensor.begin < position:
            raise MoetoolError(f"{where}: tensor {tensor.name!r} overlaps the one before it", DAMAGED)
        position = tensor.begin + tensor.size_bytes
        if position > data_bytes:
            raise MoetoolError(
                f"{where}: tensor {tensor.name!r} ends at byte {position} of {data_bytes}: the file is cut short",
                DAMAGED,
            )
