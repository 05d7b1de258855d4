"""The trace folder while it is being written: every finished layer is whole, an interrupted one resumes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from moetool.capture.tokens import EncodedCorpus
from moetool.capture.trace import SCHEMA, TraceLayer, is_trace, layer_file, read_header
from moetool.errors import MoetoolError

PARTS = ("weight", "scores", "probability", "chosen")
"""``chosen`` is written last: a layer that has it is complete."""
STATE_FILE = "hidden.safetensors"
"""Hidden states between two layers, while a streamed capture is unfinished."""


@dataclass(frozen=True, slots=True)
class TraceHeader:
    """What ``trace.json`` says; equal headers are the same capture, so one may resume the other."""

    model: Mapping[str, Any]
    layers: Sequence[Mapping[str, Any]]
    settings: Mapping[str, Any]
    versions: Mapping[str, Any]

    def to_json(self, corpus: EncodedCorpus) -> dict[str, Any]:
        """The JSON object of ``trace.json``."""
        return {
            "schema": SCHEMA,
            "model": dict(self.model),
            "layers": [dict(layer) for layer in self.layers],
            "documents": [asdict(document) for document in corpus.documents],
            "settings": dict(self.settings),
            "versions": dict(self.versions),
        }


class TraceFolder:
    """A trace that is being captured. MoetoolError where the folder holds anything else."""

    def __init__(self, folder: Path, header: TraceHeader, corpus: EncodedCorpus, overwrite: bool) -> None:
        self.folder = folder
        wanted = header.to_json(corpus)
        encoded = _encode(wanted, indent=1)
        try:
            if overwrite and is_trace(folder):
                self._clear()
            self._check(wanted)
            folder.mkdir(parents=True, exist_ok=True)
            if not is_trace(folder):
                self._save_array("tokens.npy", corpus.tokens)
                self._save_array("special.npy", corpus.special)
                texts = {str(key): text for key, text in corpus.vocabulary.items()}
                self._replace("vocabulary.json", _encode(texts, indent=0))
                self._replace("trace.json", encoded)
        except OSError as error:
            raise MoetoolError(f"the trace {folder} cannot be written: {error.strerror or error}") from None

    def _check(self, wanted: Mapping[str, Any]) -> None:
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
        for part in ("model", "documents", "settings", "layers", "versions"):
            if found.get(part) != json.loads(json.dumps(wanted[part])):
                raise MoetoolError(f"{self.folder} holds a trace with other {part}", hint)
        if not self.state.exists() and not self.missing_layers([row["layer"] for row in found["layers"]]):
            raise MoetoolError(f"{self.folder} already holds this trace, finished", hint)

    def _clear(self) -> None:
        """Remove every file of a trace, beginning with the one that makes the folder a trace."""
        (self.folder / "trace.json").unlink()
        for entry in self.folder.iterdir():
            if _is_ours(entry.name):
                entry.unlink()

    def missing_layers(self, layers: Sequence[int]) -> list[int]:
        """Which of the decoder layer numbers are not complete yet."""
        return [layer for layer in layers if not (self.folder / layer_file(layer, "chosen")).is_file()]

    def save_layer(self, layer: TraceLayer) -> None:
        """Write one finished layer, each file by atomic rename."""
        for part in PARTS:
            array = getattr(layer, part)
            if array is not None:
                self._save_array(layer_file(layer.layer, part), array)

    def save_state(self, write: Any) -> None:
        """Replace the hidden states by what ``write(path)`` writes."""
        partial = self.folder / (STATE_FILE + ".partial")
        try:
            write(partial)
            partial.replace(self.folder / STATE_FILE)
        except BaseException as error:
            partial.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise self._cannot_write(STATE_FILE, error) from None
            raise

    @property
    def state(self) -> Path:
        """Where the hidden states of an unfinished streamed capture lie."""
        return self.folder / STATE_FILE

    def finish(self) -> None:
        """Drop what only resuming needs, and what an interrupted write left; the state last, as it tells of them."""
        for leftover in self.folder.glob(".tmp*"):  # safetensors' own, where a save was killed
            leftover.unlink()
        for partial in self.folder.glob("*.partial"):
            if _is_ours(partial.name):
                partial.unlink()
        self.state.unlink(missing_ok=True)

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


def _encode(content: Any, indent: int) -> bytes:
    """JSON in UTF-8; half of a surrogate pair (in a path that is no UTF-8) becomes its escape."""
    return json.dumps(content, ensure_ascii=False, indent=indent).encode("utf-8", "backslashreplace")


class _Whole:
    """A file that numpy sees as a plain stream: its fast path reports a full disk without saying why."""

    def __init__(self, file: BinaryIO) -> None:
        self.write = file.write


def _is_ours(name: str) -> bool:
    stem = name.removesuffix(".partial")
    return stem in ("trace.json", "tokens.npy", "special.npy", "vocabulary.json", STATE_FILE) or (
        stem.startswith("layer-") and stem.endswith(".npy")
    )
