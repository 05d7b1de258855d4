"""Headers of safetensors files: enters a file, leaves its tensors; only the header is read, and nothing is trusted.

The format (https://huggingface.co/docs/safetensors): eight bytes with the header's length, little-endian; the header, a
JSON object from tensor name to ``{"dtype", "shape", "data_offsets": [begin, end]}``; then the data, without holes.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain, repeat
from math import prod
from operator import itemgetter, sub
from pathlib import Path
from typing import Any

from moetool.checkpoint.dtypes import BITS
from moetool.checkpoint.files import open_regular
from moetool.checkpoint.types import TensorInfo
from moetool.errors import MoetoolError

MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""
MAX_AXES, MAX_EXTENT = 64, 2**63 - 1
"""No framework has tensors beyond these; without a limit, multiplying the extents of one shape could take days."""
DAMAGED = "the file is damaged, or its download was cut short: fetch it again"


def read_headers(folder: Path, files: Iterable[str]) -> tuple[TensorInfo, ...]:
    """The tensors of several files of one folder; MoetoolError as ``read_header``, and for a tensor that is in two."""
    enabled = gc.isenabled()
    gc.disable()  # 90,000 tensors are a million new objects, none of them garbage: looking for some takes half the time
    try:
        tensors = tuple(chain.from_iterable(read_header(folder / file, file) for file in files))
    finally:
        if enabled:
            gc.enable()
    refuse_duplicates(str(folder), tensors)
    return tensors


def refuse_duplicates(where: str, tensors: Sequence[TensorInfo]) -> None:
    """Raise MoetoolError where two files of one checkpoint hold a tensor of the same name."""
    if len(set(map(itemgetter(0), tensors))) == len(tensors):
        return
    first: dict[str, str | None] = {tensor.name: tensor.file for tensor in reversed(tensors)}
    again = next(tensor for tensor in tensors if first[tensor.name] != tensor.file)
    raise MoetoolError(
        f"{where}: tensor {again.name!r} is in {first[again.name]} and in {again.file}",
        "leave the files of one checkpoint only in the folder",
    )


def read_header(path: Path, file: str | None = None) -> tuple[TensorInfo, ...]:
    """The tensors of one safetensors file, in the order of its header.

    ``file`` is the name to give in results (default: the path's own). Raises MoetoolError, which names the file and the
    tensor, for anything that the format forbids.
    """
    file = file or path.name
    try:
        with open_regular(path) as stream:
            size = stream.seek(0, 2)
            stream.seek(0)
            length = header_length(str(path), stream.read(8), size)
            raw = stream.read(length)
    except OSError as error:
        raise MoetoolError(f"{path} cannot be read: {error.strerror or error}") from None
    return check_tensors(str(path), file, parse_header(str(path), raw), size - 8 - length)


def header_length(where: str, prefix: bytes, size: int) -> int:
    """The header's length, by the first bytes of a file of ``size`` bytes; MoetoolError where it cannot be true."""
    length = int.from_bytes(prefix[:8], "little")
    if len(prefix) < 8 or length > min(size - 8, MAX_HEADER_BYTES):
        raise MoetoolError(
            f"{where}: no safetensors file: it says that its header has {length} bytes, the file has {size}", DAMAGED
        )
    return length


def parse_header(where: str, raw: bytes) -> dict[str, Any]:
    """The JSON object of a header, without ``__metadata__``; ``where`` names the file in messages."""
    if not raw.startswith(b"{"):
        raise MoetoolError(f"{where}: no safetensors file: its header is not a JSON object", DAMAGED)
    try:
        # decoded here: by itself json.loads would take UTF-16 too, and half characters, which can never be printed
        header = json.loads(raw.decode(), parse_constant=_refuse_constant)
        if _may_repeat_names(raw, len(header) - ("__metadata__" in header)):
            json.loads(raw, object_pairs_hook=_refuse_repetition)
    except _RepeatedNameError as error:
        raise MoetoolError(f"{where}: {error.args[0]!r} occurs twice in the header", DAMAGED) from None
    except (ValueError, RecursionError) as error:
        raise MoetoolError(f"{where}: the header is no valid JSON: {str(error)[:200]}", DAMAGED) from None
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not _all_are(str, metadata.values()):
        raise MoetoolError(f"{where}: __metadata__ in the header is not an object of texts", DAMAGED)
    return dict(header)


class _RepeatedNameError(Exception):
    """A JSON object has the same key twice."""


def _may_repeat_names(raw: bytes, tensors: int) -> bool:
    """Whether keys may repeat, told without parsing again: where nothing is escaped, keys can be counted."""
    keys = b'"dtype"', b'"shape"', b'"data_offsets"'
    return b"\\" in raw or raw.count(b'"__metadata__"') > 1 or any(raw.count(key) != tensors for key in keys)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _refuse_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        for text in chain(found, found.values()):
            if isinstance(text, str):
                text.encode()  # half a character could never be printed; UnicodeEncodeError is a ValueError
        return found
    seen: set[str] = set()
    raise _RepeatedNameError(next(key for key, _ in pairs if key in seen or seen.add(key)))  # type: ignore[func-returns-value]


def check_tensors(where: str, file: str, entries: Mapping[str, Any], data_bytes: int) -> tuple[TensorInfo, ...]:
    """Turn a header's entries into tensors, refusing whatever contradicts itself.

    ``data_bytes`` is the size of the file after its header.
    """
    try:
        dtypes, shapes, begins, ends = _columns(entries.values())
    except (KeyError, TypeError, ValueError):
        name, fault = next((name, fault) for name, entry in entries.items() if (fault := _fault(entry)))
        raise MoetoolError(f"{where}: tensor {name!r}: {fault}", DAMAGED) from None
    position = ends[-1] if ends else 0
    if begins != [0, *ends][:-1]:
        position = _check_spans(where, entries)
    if position > data_bytes:
        raise MoetoolError(
            f"{where}: its tensors end at byte {position} of {data_bytes}: the file is cut short", DAMAGED
        )
    if position < data_bytes:
        raise MoetoolError(f"{where}: {data_bytes - position} bytes after the last tensor belong to none", DAMAGED)
    columns = zip(entries, dtypes, shapes, map(sub, ends, begins), repeat(file), strict=False)
    return tuple(map(TensorInfo._make, columns))


def _columns(entries: Collection[Any]) -> tuple[list[str], list[tuple[int, ...]], list[int], list[int]]:
    """Types, shapes, begins and ends of entries without any ``_fault``; KeyError, TypeError or ValueError for others.

    Whole columns are checked at once: entry by entry takes twice as long.
    """
    dtypes = [entry["dtype"] for entry in entries]
    lists = [entry["shape"] for entry in entries]
    offsets = [entry["data_offsets"] for entry in entries]
    begins, ends = [begin for begin, _ in offsets], [end for _, end in offsets]
    shapes = [tuple(shape) for shape in lists]
    extents = list(chain.from_iterable(shapes))
    sound = (
        _all_are(str, dtypes)
        and _all_are(list, chain(lists, offsets))
        and _all_are(int, chain(extents, begins, ends))
        and min(chain(extents, begins), default=0) >= 0
        and max(extents, default=0) <= MAX_EXTENT
        and max(map(len, shapes), default=0) <= MAX_AXES
        and all(_fits(*kind) for kind in set(zip(dtypes, shapes, map(sub, ends, begins), strict=True)))
    )
    if not sound:
        raise ValueError
    return dtypes, shapes, begins, ends


def _all_are(kind: type, values: Iterable[Any]) -> bool:
    """Exactly of this type: True and False are no integers here."""
    return {kind}.issuperset(map(type, values))


def _fits(dtype: str, shape: tuple[int, ...], size_bytes: int) -> bool:
    """Whether a shape has this size; of an unknown type, whether an element could have a bit at least."""
    bits = size_bytes * 8
    return bits >= 0 and (prod(shape) * BITS[dtype] == bits if dtype in BITS else prod(shape) <= bits)


def _fault(entry: Any) -> str | None:
    """Says what is wrong with an entry; None for a sound one."""
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]}:
            if not _all_are(int, shape) or len(shape) > MAX_AXES or not all(0 <= e <= MAX_EXTENT for e in shape):
                return f"its shape is {str(shape)[:80]}"
            if not _all_are(int, (begin, end)) or not 0 <= begin <= end:
                return f"its data_offsets are [{begin}, {end}]"
            if _fits(dtype, tuple(shape), end - begin):
                return None
            return f"{dtype} {str(shape)[:80]} does not fill exactly its {end - begin} bytes"
    return "its entry lacks dtype, shape or data_offsets"


def _check_spans(where: str, entries: Mapping[str, Any]) -> int:
    """Check that the tensors' bytes follow one another, from 0, in some order; the end of the last one."""
    position = 0
    for (begin, end), name in sorted((entry["data_offsets"], name) for name, entry in entries.items()):
        if begin != position:
            what = "overlaps the one before it" if begin < position else "leaves a hole before it"
            raise MoetoolError(f"{where}: tensor {name!r}: {what}: it begins at byte {begin}, not {position}", DAMAGED)
        position = end
    return position
