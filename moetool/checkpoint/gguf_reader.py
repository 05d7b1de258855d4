"""The gguf library's reader, made safe and quick: enters a GGUF file, leaves its metadata and tensors, no tensor data.

The library looks nowhere whether a read ends inside the file (a count of 2**60 keeps it busy for ever), and makes every
token of a vocabulary an array of its own (for 200,000 tokens: 13 seconds and a gigabyte). Only this module imports it.
"""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType
from gguf.gguf_reader import ReaderField

MAX_HEADER_BYTES = 100_000_000
"""Published headers reach 30 MB, most of them vocabulary."""

FAULTS = (ValueError, LookupError, ArithmeticError, OSError)
"""What the library and numpy raise for damaged files."""


class StoredTensor(NamedTuple):
    """One tensor as the file describes it."""

    name: str
    type_name: str
    """GGML's name of its type."""
    shape: tuple[int, ...]
    """Slowest axis first, as torch writes it."""
    begin: int
    """First byte of its data, counted from the start of the data."""
    size_bytes: int


class Header(NamedTuple):
    """What a file says before its data."""

    metadata: dict[str, Any]
    """Numbers, text and lists of numbers by key; lists of texts (vocabularies) are left out."""
    tensors: list[StoredTensor]
    data_bytes: int
    """Bytes of the file behind its header."""


def read_header(path: Path, size_bytes: int) -> Header:
    """Metadata and tensors of a file of that size; raises one of ``FAULTS`` where it is damaged."""
    with np.errstate(over="raise"):
        reader = _Reader(path, size_bytes)
    tensors = []
    for tensor in reader.tensors:
        shape = tuple(reversed(tensor.shape.tolist()))
        if prod(shape) != tensor.n_elements:
            raise ValueError(f"tensor {tensor.name!r} has the shape {str(shape)[:80]}")
        begin = int(tensor.data_offset) - int(reader.data_offset)
        tensors.append(StoredTensor(tensor.name, tensor.tensor_type.name, shape, begin, tensor.n_bytes))
    metadata = {key: value for key, field in reader.fields.items() if (value := field.contents()) != []}
    return Header(metadata, tensors, size_bytes - int(reader.data_offset))


class _Reader(GGUFReader):
    """Refuses to read beyond the end, and steps over lists of texts."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.limit = min(size_bytes, MAX_HEADER_BYTES)
        super().__init__(path)

    def _get(
        self,
        offset: int,
        dtype: npt.DTypeLike,
        count: int = 1,
        override_order: Literal["I", "S", "<"] | None = None,
    ) -> npt.NDArray[Any]:
        if int(offset) + np.dtype(dtype).itemsize * int(count) > self.limit:
            raise ValueError(f"something at byte {offset} ends beyond byte {self.limit}, which is the last it may use")
        return super()._get(offset, dtype, count, override_order)

    def _get_field_parts(
        self, orig_offs: int, raw_type: int
    ) -> tuple[int, list[npt.NDArray[Any]], list[int], list[GGUFValueType]]:
        if raw_type != GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, int(raw_type))
        kind = GGUFValueType(int(self._get(orig_offs, np.uint32)[0]))
        count = int(self._get(orig_offs + 4, np.uint64)[0])
        types = [GGUFValueType.ARRAY, kind]
        if kind == GGUFValueType.STRING:
            return self._skip_texts(orig_offs + 12, count) - orig_offs, [], [], types
        if kind == GGUFValueType.ARRAY:
            raise ValueError("a list of lists, which no reader knows")
        values = self._get(orig_offs + 12, self.gguf_scalar_to_np[kind], count)
        return 12 + values.nbytes, [values], [0], types

    def _skip_texts(self, offset: int, count: int) -> int:
        """The byte after so many texts, each of which is its length in eight bytes and as many bytes more."""
        raw = self.data.data
        for _ in range(count):
            offset += 8
            if offset <= self.limit:
                offset += int.from_bytes(raw[offset - 8 : offset], "little")
            if offset > self.limit:
                raise ValueError(f"a list of texts ends beyond byte {self.limit}, which is the last it may use")
        return offset

    def _build_tensors(self, start_offs: int, fields: list[ReaderField]) -> None:
        known = set(GGMLQuantizationType)
        for field in fields:
            number = int(field.parts[4][0])
            if number not in known:
                raise ValueError(f"tensor {field.name!r} has the type {number}, which the gguf library does not know")
        self.limit = self.size_bytes
        super()._build_tensors(start_offs, fields)
