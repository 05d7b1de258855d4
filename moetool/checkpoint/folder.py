"""Checkpoint folders: enters a folder, leaves its config, the names of its weight files and the tensors in them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal

from moetool.checkpoint.files import open_regular
from moetool.checkpoint.headers import DAMAGED, read_headers
from moetool.checkpoint.types import Checkpoint, TensorInfo
from moetool.errors import MoetoolError

Weights = Literal["headers", "files", "none"]
"""What to get of the weights: their headers, the files themselves, or nothing."""

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
MAX_JSON_BYTES = 100_000_000
"""Published configs reach 3 MB, indices 10 MB."""
_COMMIT = re.compile(r"[0-9a-f]{40}")
CONVERT = "convert it to safetensors, or name its config.json to count parameters without the weights"


def read_folder(folder: Path, name: str, weights: Weights) -> Checkpoint:
    """The checkpoint in a folder; its revision is known where the folder is a snapshot of the hub's cache."""
    if not folder.is_dir():
        raise MoetoolError(f"{name}: {folder} does not exist")
    config = read_config(folder)
    tensors = () if weights == "none" else read_tensors(folder)
    if weights == "files" and not tensors:
        raise MoetoolError(
            f"{name}: {folder} holds no weights", "this needs model.safetensors, or shards with their index"
        )
    snapshot = folder.resolve()
    known = snapshot.parent.name == "snapshots" and _COMMIT.fullmatch(snapshot.name)
    return Checkpoint(name, snapshot.name if known else None, config, tensors, folder)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object; MoetoolError says what is wrong with any other."""
    try:
        with open_regular(path) as stream:
            size = stream.seek(0, 2)
            stream.seek(0)
            raw = stream.read(min(size, MAX_JSON_BYTES))
        if size > MAX_JSON_BYTES:
            raise MoetoolError(f"{path} has more than {MAX_JSON_BYTES:,} bytes, which no config or index has")
        content = json.loads(raw)
    except OSError as error:
        raise MoetoolError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise MoetoolError(f"{path} is no valid JSON: {str(error)[:200]}") from None
    if not isinstance(content, dict):
        raise MoetoolError(f"{path} holds no JSON object, but a {type(content).__name__}")
    return content


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of a checkpoint folder."""
    path = folder / CONFIG
    if not path.is_file():
        empty = not any(folder.iterdir())
        raise MoetoolError(
            f"{folder} is empty" if empty else f"{folder} has no {CONFIG}",
            "name the folder that holds config.json and the safetensors files of one model",
        )
    return read_json(path)


def read_tensors(folder: Path) -> tuple[TensorInfo, ...]:
    """All tensors of a checkpoint folder, by the headers of its files; empty where it holds no weights.

    The single ``model.safetensors`` comes first, then the shards that the index names (both must agree on every
    tensor), then whatever safetensors files are there. Raises MoetoolError where files are missing, damaged or pickled.
    """
    files, expected = weight_files(folder)
    tensors = read_headers(folder, files)
    if files and not tensors:
        raise MoetoolError(f"{folder}: {files[0]} holds no tensors", DAMAGED)
    if expected is not None:
        check_index(str(folder), expected, tensors)
    return tensors


def weight_files(folder: Path) -> tuple[list[str], dict[str, str] | None]:
    """Names of the weight files of a folder, and the index's map from tensor to file where one exists."""
    if (folder / SINGLE).exists():
        return [SINGLE], None
    if (folder / INDEX).exists():
        expected = read_index(folder / INDEX)
        files = sorted(set(expected.values()))
        missing = [file for file in files if not (folder / file).is_file()]
        if missing:
            raise MoetoolError(
                f"{folder}: {missing[0]} is missing ({len(missing)} of {len(files)} files that {INDEX} names)",
                "the download is incomplete: fetch the missing files",
            )
        return files, expected
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    if not files:
        refuse_pickles(str(folder), (path.name for path in folder.iterdir()))
    return files, None


def read_index(path: Path) -> dict[str, str]:
    """The map from tensor to file of an index; every file is a relative path that stays inside the folder."""
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or set(map(type, weight_map.values())) != {str}:
        raise MoetoolError(f"{path} has no weight_map from tensor names to file names")
    for file in set(weight_map.values()):
        windows = PureWindowsPath(file)
        if (
            windows.anchor
            or PurePosixPath(file).is_absolute()
            or ".." in windows.parts
            or "\0" in file
            or not windows.parts
        ):
            raise MoetoolError(
                f"{path} names {file!r}, which is not inside its folder",
                "do not use this checkpoint: it reaches for other files",
            )
        if not file.endswith(".safetensors"):
            refuse_pickles(str(path), [file])
            raise MoetoolError(f"{path} names {file!r}, which is no safetensors file", CONVERT)
    return weight_map


def refuse_pickles(where: str, files: Iterable[str]) -> None:
    """Raise MoetoolError where one of ``files`` is a pickle, which could run code when it is loaded."""
    pickled = next((file for file in sorted(files) if file.endswith(PICKLES)), None)
    if pickled:
        raise MoetoolError(
            f"{where}: {pickled} is a pickle, which can run code: moetool reads safetensors only", CONVERT
        )


def check_index(where: str, expected: Mapping[str, str], tensors: Sequence[TensorInfo]) -> None:
    """Raise MoetoolError where the index and the headers of the shards name different tensors."""
    found = dict(map(itemgetter(0, 4), tensors))  # name and file
    if found == expected:
        return
    hint = "index and shards come from different versions: fetch the checkpoint again"
    for name, file in expected.items():
        if found.get(name) != file:
            raise MoetoolError(f"{where}: {INDEX} says that tensor {name!r} is in {file}, but it is not", hint)
    name = next(name for name in found if name not in expected)
    raise MoetoolError(f"{where}: tensor {name!r} in {found[name]} is not in {INDEX}", hint)
