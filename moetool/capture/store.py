"""The trace folder while it is being written: every finished layer is whole, an interrupted one resumes."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from moetool.capture.hidden import PREFIX
from moetool.capture.shards import Shard
from moetool.capture.tokens import EncodedCorpus
from moetool.capture.trace import (
    SCHEMA,
    RoutingTrace,
    TraceLayer,
    TraceShard,
    describe_document,
    describe_layer,
    is_trace,
    layer_file,
    read_header,
)
from moetool.errors import MoetoolError

PARTS = ("weight", "scores", "probability", "dropped", "rerouted", "chosen")
"""``chosen`` is written last: a layer that has it is complete."""
SHARD_PARTS = (*PARTS[:-1], "probability_sum", PARTS[-1])
"""A shard keeps the sums too, so that joining is exact."""
RANK_FOLDER = re.compile(r"rank-\d+-of-\d+")
"""Names of the folders in which the processes of one capture write their shards, until these are joined."""


@dataclass(frozen=True, slots=True)
class TraceHeader:
    """What ``trace.json`` says; equal headers are the same capture, so one may resume the other."""

    model: Mapping[str, Any]
    layers: Sequence[Mapping[str, Any]]
    settings: Mapping[str, Any]
    versions: Mapping[str, Any]
    shard: TraceShard | None = None

    def to_json(self, corpus: EncodedCorpus | RoutingTrace) -> dict[str, Any]:
        """The JSON object of ``trace.json``; only that of a shard has a key ``shard``."""
        content = {
            "schema": SCHEMA,
            "model": dict(self.model),
            "layers": [dict(layer) for layer in self.layers],
            "documents": [describe_document(document) for document in corpus.documents],
            "settings": dict(self.settings),
            "versions": dict(self.versions),
        }
        return content if self.shard is None else {**content, "shard": asdict(self.shard)}


_SAFETENSORS_LEFTOVER = re.compile(r"\.tmp[A-Za-z0-9]{6}")


class TraceFolder:
    """A trace that is being captured. MoetoolError where the folder holds anything else.

    A finished trace is refused too, unless ``finished`` says that it is welcome.
    """

    def __init__(
        self,
        folder: Path,
        header: TraceHeader,
        corpus: EncodedCorpus | RoutingTrace,
        overwrite: bool = False,
        finished: bool = False,
    ) -> None:
        self.folder = folder
        self.lock: int | None = None
        self.parts = PARTS if header.shard is None else SHARD_PARTS
        wanted = header.to_json(corpus)
        encoded = _encode(wanted, indent=1)
        try:
            if overwrite and is_trace(folder):
                self._clear_files()
                self._remove_rank_folders()
            self._check(wanted, finished)
            folder.mkdir(parents=True, exist_ok=True)
            self.lock = _lock(folder)
            if not is_trace(folder):
                self._clear_files()  # layers without a header, where a replacement was interrupted, may be any trace's
                self._save_array("tokens.npy", corpus.tokens)
                self._save_array("special.npy", corpus.special)
                texts = {str(key): text for key, text in corpus.vocabulary.items()}
                self._replace("vocabulary.json", _encode(texts, indent=0))
                self._replace("trace.json", encoded)
        except OSError as error:
            self.unlock()
            raise MoetoolError(f"the trace {folder} cannot be written: {error.strerror or error}") from None

    def _check(self, wanted: Mapping[str, Any], finished: bool) -> None:
        """Refuse a folder that holds anything but an unfinished trace of the same capture."""
        if not self.folder.exists():
            return
        if not self.folder.is_dir():
            raise MoetoolError(f"{self.folder} is a file, not a folder for a trace")
        if not is_trace(self.folder):
            leftovers = [entry for entry in self.folder.iterdir() if not _is_ours(entry.name)]
            if leftovers:
                raise MoetoolError(
                    f"{self.folder} is not empty and no trace ({leftovers[0].name} is in it)", "give a new folder"
                )
            return
        found = read_header(self.folder)
        hint = "give a new folder, or --overwrite to replace the trace"
        for part in ("model", "shard", "documents", "settings", "layers", "versions"):
            theirs, ours = found.get(part), json.loads(json.dumps(wanted.get(part)))
            if theirs != ours:
                raise MoetoolError(f"{self.folder} holds a trace with other {part}{_difference(theirs, ours)}", hint)
        complete = not self.missing_layers([row["layer"] for row in found["layers"]])
        if complete and not (finished or self._states() or self.rank_folders()):
            raise MoetoolError(
                f"{self.folder} already holds this trace, finished",
                f"moetool route-stats {self.folder} reads it; --overwrite replaces it",
            )

    def _clear_files(self) -> None:
        """Remove every file of a trace, beginning with the one that makes the folder a trace."""
        (self.folder / "trace.json").unlink(missing_ok=True)
        for entry in self.folder.iterdir():
            if _is_ours(entry.name) and entry.is_file():
                entry.unlink()
        for state in self._states():
            shutil.rmtree(state)

    def rank_folders(self) -> list[Path]:
        """Folders of shards that are being captured here, or were joined and not removed yet."""
        return sorted(entry for entry in self.folder.glob("rank-*") if RANK_FOLDER.fullmatch(entry.name))

    def _remove_rank_folders(self) -> None:
        """Remove the shards of all ranks, each beginning with the file that makes it a trace."""
        for folder in self.rank_folders():
            (folder / "trace.json").unlink(missing_ok=True)
            shutil.rmtree(folder)

    def missing_layers(self, layers: Sequence[int]) -> list[int]:
        """Which of the decoder layer numbers are not complete yet."""
        return missing_layers(self.folder, layers)

    def save_layer(self, layer: TraceLayer) -> None:
        """Write one finished layer, each file by atomic rename."""
        for part in self.parts:
            array = getattr(layer, part)
            if array is not None:
                self._save_array(layer_file(layer.layer, part), array)

    def finish(self) -> None:
        """Drop what only resuming needs, and what an interrupted write left; the state last, as it tells of them."""
        for leftover in self.folder.glob(".tmp*"):  # safetensors' own, where a save was killed
            if _SAFETENSORS_LEFTOVER.fullmatch(leftover.name) and leftover.is_file():
                leftover.unlink()
        for partial in self.folder.glob("*.partial"):
            if _is_ours(partial.name) and partial.is_file():
                partial.unlink()
        self._remove_rank_folders()
        for state in self._states():
            shutil.rmtree(state)
        self.unlock()

    def unlock(self) -> None:
        """Let other processes write here."""
        if self.lock is not None:
            os.close(self.lock)
        self.lock = None

    def _states(self) -> list[Path]:
        """Hidden states between two layers, while a streamed capture is unfinished."""
        return list(self.folder.glob(PREFIX + "*"))

    def _save_array(self, name: str, array: Any) -> None:
        self._atomic(name, lambda file: np.save(file, array, allow_pickle=False))

    def _replace(self, name: str, data: bytes) -> None:
        self._atomic(name, lambda file: file.write(data))

    def _atomic(self, name: str, write: Any) -> None:
        partial = self.folder / (name + ".partial")
        try:
            with open(partial, "wb") as file:
                write(_Whole(file))
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self.folder / name)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise self._cannot_write(name, error) from None

    def _cannot_write(self, name: str, error: OSError) -> MoetoolError:
        return MoetoolError(
            f"{self.folder / name} cannot be written: {error.strerror or error}",
            "make room and run the same command again: finished layers are kept",
        )


def _lock(folder: Path) -> int | None:
    """Hold a folder until it is unlocked; MoetoolError where somebody else does. Not every file system knows locks."""
    try:
        import fcntl
    except ImportError:
        return None
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise MoetoolError(f"another capture is writing into {folder}", "wait for it, or give a new folder") from None
    except OSError:
        pass
    return handle


def _difference(theirs: Any, ours: Any) -> str:
    """The first of two sets of named values that differs, in words; nothing where there are no names."""
    if not isinstance(theirs, dict) or not isinstance(ours, dict):
        return ""
    name = next(name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name))
    return f": {name} is {theirs.get(name)} there, {ours.get(name)} here"


def write_trace(trace: RoutingTrace, folder: Path, overwrite: bool = False) -> None:
    """Write a trace that is in memory, such as a joined one, into a folder."""
    layers = [describe_layer(layer) for layer in trace.layers]
    header = TraceHeader(trace.model, layers, trace.settings, trace.versions, trace.shard)
    store = TraceFolder(folder, header, trace, overwrite)
    missing = store.missing_layers([layer.layer for layer in trace.layers])
    for layer in trace.layers:
        if layer.layer in missing:
            store.save_layer(layer)
    store.finish()


def missing_layers(folder: Path, layers: Sequence[int]) -> list[int]:
    """Which of the decoder layer numbers are not complete in a trace folder, or in one that is none yet."""
    return [layer for layer in layers if not (folder / layer_file(layer, "chosen")).is_file()]


def rank_folder(folder: Path, shard: Shard) -> Path:
    """Where one of the processes that capture into a folder together writes its shard; ranks are counted from 0."""
    return folder / f"rank-{shard.index - 1}-of-{shard.count}"


def _encode(content: Any, indent: int) -> bytes:
    """JSON in UTF-8; half of a surrogate pair (in a path that is no UTF-8) becomes its escape."""
    return json.dumps(content, ensure_ascii=False, indent=indent).encode("utf-8", "backslashreplace")


class _Whole:
    """A file that numpy sees as a plain stream: its fast path reports a full disk without saying why."""

    def __init__(self, file: BinaryIO) -> None:
        self.write = file.write


def _is_ours(name: str) -> bool:
    stem = name.removesuffix(".partial")
    known = stem in ("trace.json", "tokens.npy", "special.npy", "vocabulary.json") or stem.startswith(PREFIX)
    return known or (stem.startswith("layer-") and stem.endswith(".npy")) or bool(RANK_FOLDER.fullmatch(name))
