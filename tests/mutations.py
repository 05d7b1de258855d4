"""Damage to safetensors files: enters a random generator and a valid file or checkpoint, leaves one that may lie.

Files are small: their data is zeros that are really there, so that the safetensors library can judge the same bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from copy import deepcopy
from math import prod
from pathlib import Path
from random import Random
from typing import Any

from safetensors import SafetensorError, deserialize

from moetool.checkpoint.types import TensorInfo
from tests.stored import MIXTRAL, Tensors, make_header, mixtral_tensors, write_checkpoint

MIXTRAL_TENSORS = mixtral_tensors()
OUTSIDE_EXPERTS = {name: kind for name, kind in MIXTRAL_TENSORS.items() if ".experts." not in name}
KINDS: dict[str, Tensors] = {
    "no tensor": {},
    "scalar": {"scale": ("F32", [])},
    "empty": {"none": ("F16", [0, 7]), "all": ("BF16", [2, 2]), "nothing": ("U8", [3, 0])},
    "odd types": {
        "a": ("F4", [4]), "b": ("F6_E2M3", [4]), "c": ("F8_E8M0", [3]), "d": ("BOOL", [2]), "e": ("C64", [1]),
        "f": ("U16", [2]),
    },
    "unicode": {
        "ünïcode.重み": ("F16", [2]), "tab\tand \"quotes\"": ("I64", [1]), "": ("F32", [1]), "\u202e": ("U8", [1]),
    },
    "per expert": {name: kind for name, kind in MIXTRAL_TENSORS.items() if ".layers.1." not in name},
    "fused": {
        **{name: kind for name, kind in OUTSIDE_EXPERTS.items() if ".layers.0." in name},
        "model.layers.0.mlp.experts.gate_up_proj": ("BF16", [4, 8, 8]),
        "model.layers.0.mlp.experts.down_proj": ("BF16", [4, 4, 8]),
    },
    "packed": {
        "model.layers.0.mlp.experts.gate_up_proj_blocks": ("U8", [4, 8, 1, 16]),
        "model.layers.0.mlp.experts.gate_up_proj_scales": ("U8", [4, 8, 1]),
        "model.layers.0.mlp.experts.0.w1.qweight": ("I32", [4, 2]),
        "model.layers.0.mlp.experts.0.w1.g_idx": ("I32", [4]),
    },
}  # fmt: skip
"""Layouts that occur, and corners of the format."""


def join(header: bytes, data_bytes: int, length: int | None = None) -> bytes:
    """The content of a file; ``length`` is what it claims of its header (default: the truth)."""
    return (len(header) if length is None else length).to_bytes(8, "little") + header + bytes(data_bytes)


def split(content: bytes) -> tuple[bytes, int]:
    """Header and number of data bytes of a valid file."""
    end = 8 + int.from_bytes(content[:8], "little")
    return content[8:end], len(content) - end


def _valid(tensors: Tensors) -> bytes:
    header, data_bytes = make_header(tensors)
    return join(json.dumps(header).encode(), data_bytes)


VALID = {kind: _valid(tensors) for kind, tensors in KINDS.items()}
SOURCES = tuple(VALID.values())


def flip_bytes(random: Random, content: bytes) -> bytes:
    damaged = bytearray(content)
    for _ in range(random.randint(1, 4)):
        damaged[_position(random, content)] = random.choice((random.randrange(256), *b'"{}[]:,-0189eE\\. '))
    return bytes(damaged)


def truncate(random: Random, content: bytes) -> bytes:
    return content[: _position(random, content)]


def insert_bytes(random: Random, content: bytes) -> bytes:
    at, piece = _position(random, content), random.choice((b'"', b"{", b"]", b"\\u0000", b"\xff", random.randbytes(9)))
    return content[:at] + piece + content[at:]


def remove_bytes(random: Random, content: bytes) -> bytes:
    at = _position(random, content)
    return content[:at] + content[at + random.randint(1, 40) :]


def _position(random: Random, content: bytes) -> int:
    """Mostly inside length and header, where all the meaning is."""
    return random.randrange(min(len(content), 8 + int.from_bytes(content[:8], "little")) + 2) % len(content)


def splice(random: Random, content: bytes) -> bytes:
    """The begin of one file and the end of another, cut anywhere or between two tensors."""
    header, data_bytes = split(content)
    other, other_bytes = split(random.choice(SOURCES))
    if random.random() < 0.5:
        return content[: _position(random, content)] + other[random.randrange(len(other)) :] + bytes(other_bytes)
    between = b", " if len(header) > 2 and len(other) > 2 else b""
    return join(header[:-1] + between + other[1:], data_bytes + random.choice((0, other_bytes)))


def lie_about_length(random: Random, content: bytes) -> bytes:
    header, data_bytes = split(content)
    near = len(header) + random.randint(-20, 20)
    far = random.choice((0, 1, len(content), len(content) - 8, 100_000_000, 2**31, 2**32 + near, 2**63, 2**64 - 1))
    return join(header, data_bytes, max(random.choice((near, far)), 0))


def change_data(random: Random, content: bytes) -> bytes:
    """Bytes that belong to no tensor, or too few of them."""
    header, data_bytes = split(content)
    return join(header, max(data_bytes + random.choice((-8, -1, 1, 2, 8, 4096)), 0))


def encode_otherwise(random: Random, content: bytes) -> bytes:
    """Other encodings and spellings of the same JSON, some of which the format allows."""
    header, data_bytes = split(content)
    text = header.decode()
    spellings: tuple[Callable[[], bytes], ...] = (
        lambda: text.encode("utf-16-le"),
        lambda: text.encode("utf-32-be"),
        lambda: text.encode("utf-8-sig"),
        lambda: b" " * random.randint(1, 9) + header,
        lambda: header + random.choice((b" " * 9, b"\n", b"\0", b"{}")),
        lambda: json.dumps(json.loads(text), ensure_ascii=False, separators=(",", ":")).encode(),
        lambda: text.replace("e", "\\u0065").encode(),
        lambda: text.replace("t", "\\ud800", 1).encode(),
        lambda: header.replace(b"a", b"\xed\xa0\x80", 1),
        lambda: json.dumps(list(json.loads(text).items())).encode(),
        lambda: re.sub(rb"(\d)", rb"\1.0", header, count=1),
    )
    return join(random.choice(spellings)(), data_bytes)


RAW = {
    "~nested": "[" * 5000 + "]" * 5000, "~open": '{"a":' * 3000, "~digits": "9" * 4400, "~many digits": "9" * 4200,
    "~-0": "-0", "~1e999": "1e999", "~NaN": "NaN", "~-Infinity": "-Infinity", "~1E1": "1E1",
    "~long": "[" + "9, " * 300 + "9]", "~surrogate": '"\\ud800"',
}  # fmt: skip
"""What ``json.dumps`` does not write, by the string that holds its place."""
WEIRD: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 3, 2**31, 2**53 + 1, 2**63, 2**64, 10**30, -(2**63), 2.0, 0.5, "", "F32", "I4", "BF16",
    "\0", [], {}, [[]], [0], [2, 2], [-1, -2], [0, 2**62, 2**62], [1] * 40, {"dtype": "U8"}, *RAW,
)  # fmt: skip


def change_json(random: Random, content: bytes) -> bytes:
    """Lies in valid JSON: other values, missing and additional keys, swapped offsets, tensors twice."""
    header, data_bytes = split(content)
    return join(change_json_text(random, header.decode(), LIES).encode(), data_bytes)


def change_json_text(random: Random, text: str, lies: tuple[Callable[[Random, dict[str, Any]], None], ...]) -> str:
    content = json.loads(text)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        random.choice(lies)(random, content)
    text = json.dumps(content)
    for place, raw in RAW.items():
        text = text.replace(json.dumps(place), raw)
    if random.random() < 0.1:
        name = random.choice([*content, "__metadata__"])
        text = f"{text[:-1]}, {json.dumps(name)}: {json.dumps(content.get(name, {}))}}}"
    return text


def _replace_value(random: Random, content: dict[str, Any]) -> None:
    """Put something strange at a random place, however deep."""
    place: Any = content
    while place:
        keys = list(place) if isinstance(place, dict) else range(len(place))
        key = random.choice(keys)
        if not isinstance(place[key], dict | list) or not place[key] or random.random() < 0.2:
            place[key] = deepcopy(random.choice(WEIRD))
            return
        place = place[key]


def _remove_key(random: Random, content: dict[str, Any]) -> None:
    place = random.choice([content, *(value for value in content.values() if isinstance(value, dict))])
    if place:
        place.pop(random.choice(list(place)))


def _add_key(random: Random, content: dict[str, Any]) -> None:
    place = random.choice([content, *(value for value in content.values() if isinstance(value, dict))])
    place[random.choice(("dtype", "shape", "x", "__metadata__", "__metadata__", "model.norm"))] = deepcopy(
        random.choice(WEIRD)
    )


def _entries(content: dict[str, Any]) -> list[dict[str, Any]]:
    return [value for value in content.values() if isinstance(value, dict) and "data_offsets" in value]


def _nudge(random: Random, content: dict[str, Any]) -> None:
    """Change an offset or extent by little, so that it may still be plausible."""
    entries = _entries(content)
    numbers = random.choice(entries).get(random.choice(("shape", "data_offsets"))) if entries else None
    if isinstance(numbers, list) and numbers and isinstance(numbers[-1], int):
        numbers[-1] = random.choice((numbers[-1] + 1, numbers[-1] - 1, numbers[-1] * 2, numbers[-1] + 2**64))


def _swap(random: Random, content: dict[str, Any]) -> None:
    """Swap offsets, shapes or types of two tensors, or begin and end of one."""
    entries = _entries(content)
    if entries:
        key, one, other = random.choice(("dtype", "shape", "data_offsets")), *random.choices(entries, k=2)
        if one is other:
            one["data_offsets"] = one["data_offsets"][::-1] if isinstance(one["data_offsets"], list) else None
        else:
            one[key], other[key] = other.get(key), one.get(key)


def _add_empty_tensor(random: Random, content: dict[str, Any]) -> None:
    at = random.choice((0, 2, 8, 10**6))
    shape = random.choice(([0], [2**64, 0], [0, 2**62, 2**62], [2**40, 0], []))
    content[f"added {at}"] = {"dtype": random.choice(("U8", "I4")), "shape": shape, "data_offsets": [at, at]}


def _reorder(random: Random, content: dict[str, Any]) -> None:
    """The one that is no lie: the order of a header is free."""
    items = list(content.items())
    random.shuffle(items)
    content.clear()
    content.update(items)


LIES = (_replace_value, _replace_value, _remove_key, _add_key, _nudge, _swap, _add_empty_tensor, _reorder)
DAMAGES = (
    flip_bytes, truncate, insert_bytes, remove_bytes, splice, lie_about_length, change_data, encode_otherwise,
    change_json, change_json,
)  # fmt: skip


def refused_by_safetensors(content: bytes, tensors: tuple[TensorInfo, ...] | None = None) -> str | None:
    """Why the safetensors library refuses a file, numbers and names cut out; None where it takes it.

    AssertionError where it finds other tensors than ``tensors``.
    """
    try:
        found = deserialize(content)
    except SafetensorError as error:
        message = str(error).removeprefix("Error while deserializing: ")
        return re.sub(
            r"(?s)( variant| field) `.*|`[^`]*`|\"[^\"]*\"|-?\d[\d.e+]*|, expected.*| at line.*", r"\1", message
        )
    if tensors is not None:
        theirs = {name: (entry["dtype"], tuple(entry["shape"]), len(entry["data"])) for name, entry in found}
        assert theirs == {tensor.name: (tensor.dtype, tensor.shape, tensor.size_bytes) for tensor in tensors}
    return None


def check_accepted(content: bytes, tensors: tuple[TensorInfo, ...]) -> None:
    """What holds of every file that is accepted: its tensors are its data, and every number is a plausible one."""
    _, data_bytes = split(content)
    assert data_bytes >= 0
    assert sum(tensor.size_bytes for tensor in tensors) == data_bytes
    assert len({tensor.name for tensor in tensors}) == len(tensors)
    for tensor in tensors:
        assert all(type(extent) is int and 0 <= extent < 2**63 for extent in tensor.shape)
        assert prod(tensor.shape) <= 8 * tensor.size_bytes
        tensor.name.encode()


CONFIG, INDEX = "config.json", "model.safetensors.index.json"


class Folder:
    """A sharded checkpoint, one file of which is damaged at a time."""

    def __init__(self, path: Path) -> None:
        write_checkpoint(path, MIXTRAL, MIXTRAL_TENSORS, shards=3)
        self.path = path
        self.valid: Mapping[str, bytes] = {file.name: file.read_bytes() for file in sorted(path.iterdir())}
        self.shards = [name for name in self.valid if name.endswith(".safetensors")]
        self.damaged = ""

    def damage(self, random: Random, file: str) -> str:
        """Repair the file of the call before, damage ``file`` and say how."""
        if self.damaged:
            (self.path / self.damaged).write_bytes(self.valid[self.damaged])
        self.damaged = file
        if random.random() < 0.02:
            (self.path / file).unlink()
            return "remove"
        damage = random.choice(TEXT_DAMAGES if file in (CONFIG, INDEX) else DAMAGES)
        (self.path / file).write_bytes(damage(random, self.valid[file]))
        return damage.__name__.removeprefix("_")

    def data_bytes(self) -> int:
        """Bytes of data in all shards as they are now."""
        return sum(split((self.path / shard).read_bytes())[1] for shard in self.shards)


def _change_object(random: Random, content: bytes) -> bytes:
    return change_json_text(random, content.decode(), (_replace_value, _remove_key, _add_key, _reorder)).encode()


def _rename_file(random: Random, content: bytes) -> bytes:
    """Another name for a shard wherever the index has one."""
    names = (
        "../x.safetensors",
        "/x.safetensors",
        "a.bin",
        "",
        ".",
        "\0",
        CONFIG,
        "model-00002-of-00003.safetensors",
        "c:x",
    )
    return content.replace(b"model-00001-of-00003.safetensors", random.choice(names).encode(), random.choice((1, -1)))


def _flip_text(random: Random, content: bytes) -> bytes:
    at = random.randrange(len(content))
    return content[:at] + random.randbytes(1) + content[at + 1 :]


def _cut_text(random: Random, content: bytes) -> bytes:
    return content[: random.randrange(len(content))]


TEXT_DAMAGES = (_change_object, _rename_file, _flip_text, _cut_text)
