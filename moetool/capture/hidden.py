"""Hidden states between two layers: wait in memory or, beyond a limit, in files; saved ones let a run resume.

A folder ``hidden-012`` has what layer 12 will get, a file per batch. It appears under its name when it is complete.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from moetool.capture.handover import change, flatten, rebuild, to_host
from moetool.errors import MoetoolError
from moetool.progress import Progress

PREFIX = "hidden-"


@dataclass(frozen=True, slots=True)
class _Waiting:
    """One batch: in memory, or in a file."""

    value: Any
    rows: int
    nbytes: int


class HiddenStates:
    """What every batch hands to the next layer; batch by batch read and replaced.

    ``limit_bytes`` of host memory are used, then files in ``folder`` (a temporary one where that is None).
    """

    def __init__(self, folder: Path | None, limit_bytes: int, device: torch.device) -> None:
        self.kept, self.limit_bytes, self.device = folder is not None, limit_bytes, device
        self.folder = folder
        self.now: list[_Waiting] = []
        self.next: list[_Waiting] = []
        self.next_layer = -1
        """The layer that gets what waits now; -1 before anything waits."""
        self.spilled = False
        self.put_bytes = 0

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors that wait for the next layer."""
        return sum(waiting.nbytes for waiting in self.now)

    def __iter__(self) -> Iterator[Any]:
        """What each batch was handed, in order, on the host; it is forgotten once the next is asked for."""
        for index, waiting in enumerate(self.now):
            value = waiting.value
            yield _read(value) if isinstance(value, Path) else value
            self.now[index] = _Waiting(None, waiting.rows, waiting.nbytes)

    def put(self, value: Any, rows: int) -> None:
        """Keep what one batch hands to the layer after the one that is running."""
        tensors: list[torch.Tensor] = []
        flatten(value, tensors)
        waiting = _Waiting(change(value, to_host), rows, sum(tensor.nbytes for tensor in tensors))
        self.next.append(waiting)
        self.put_bytes += waiting.nbytes
        if self.spilled:
            self._spill(len(self.next) - 1)
        elif self.put_bytes > self.limit_bytes:
            self.spilled = True
            for index in range(len(self.next)):
                self._spill(index)

    def turn(self) -> None:
        """All batches have passed a layer: what it handed on is what the next one gets."""
        self.now, self.next, self.put_bytes = self.next, [], 0
        partial = self._name(self.next_layer + 1, ".partial")
        self.next_layer += 1
        if self.spilled:
            final = _replace(partial, self._name(self.next_layer))
            self.now = [_Waiting(final / w.value.name, w.rows, w.nbytes) for w in self.now]

    def forget_older(self) -> None:
        """The routing of all layers before is written: of what is saved, only the newest is needed to go on."""
        found = sorted(saved_layers(self.folder)) if self.folder else []
        for _, older in found[:-1]:
            _remove(older)

    def save(self) -> None:
        """Write what waits in memory, so that a run can resume with the next layer."""
        if self.spilled or self.folder is None:
            return
        partial = self._name(self.next_layer, ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        self._wait_for_device()
        for index, waiting in enumerate(self.now):
            _write(partial / _file(index), waiting)
        _replace(partial, self._name(self.next_layer))
        self.forget_older()

    def restore(self, first_wanted: int, rows: int, progress: Progress) -> list[int]:
        """Take over what an earlier run saved for a layer that is not beyond the first wanted one.

        Returns the rows of every batch, of all ``rows``, or nothing where there is nothing to take over. Damaged or
        missing files count as nothing.
        """
        for number, folder in sorted(saved_layers(self.folder), reverse=True) if self.folder else ():
            if number > first_wanted:
                continue
            if self._take_over(number, folder, rows):
                return [waiting.rows for waiting in self.now]
            progress.note("saved hidden states are damaged: starting at an earlier layer")
        return []

    def _take_over(self, number: int, folder: Path, rows: int) -> bool:
        from safetensors import SafetensorError

        try:
            waiting = [_Waiting(file, *_measure(file)) for file in sorted(folder.iterdir())]
            if sum(one.rows for one in waiting) != rows:
                return False
            spilled = sum(one.nbytes for one in waiting) > self.limit_bytes
            if not spilled:
                waiting = [_Waiting(change(_read(w.value), torch.clone), w.rows, w.nbytes) for w in waiting]
        except (SafetensorError, OSError, ValueError, KeyError, TypeError):
            return False
        self.now, self.next_layer, self.spilled = waiting, number, spilled
        return True

    def close(self) -> None:
        """Remove what no later run can use."""
        if self.folder and not self.kept:
            shutil.rmtree(self.folder, ignore_errors=True)
        elif self.folder:
            shutil.rmtree(self._name(self.next_layer + 1, ".partial"), ignore_errors=True)

    def _wait_for_device(self) -> None:
        """Copies to the host go on in the background; only their readers on the device are in line behind them."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _name(self, layer: int, suffix: str = "") -> Path:
        if self.folder is None:
            return Path(f"{PREFIX}{layer:03d}{suffix}")
        return self.folder / f"{PREFIX}{layer:03d}{suffix}"

    def _spill(self, index: int) -> None:
        if self.folder is None:
            self.folder = Path(tempfile.mkdtemp(prefix="moetool-"))
        partial = self._name(self.next_layer + 1, ".partial")
        if index == 0:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
        waiting = self.next[index]
        self._wait_for_device()
        _write(partial / _file(index), waiting)
        self.next[index] = _Waiting(partial / _file(index), waiting.rows, waiting.nbytes)


def _replace(partial: Path, folder: Path) -> Path:
    """Give a complete folder its name, which a damaged one may have."""
    if folder.exists():
        _remove(folder)
    return partial.rename(folder)


def _remove(folder: Path) -> None:
    """Remove a complete folder; it loses its name first, so that none is ever half there under it."""
    doomed = folder.with_name(folder.name + ".old")
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed)


def saved_layers(folder: Path) -> Iterator[tuple[int, Path]]:
    """Number and place of the complete states in a folder."""
    for path in folder.glob(PREFIX + "*"):
        number = path.name.removeprefix(PREFIX)
        if number.isdecimal() and path.is_dir():
            yield int(number), path


def _file(index: int) -> str:
    return f"batch-{index:06d}.safetensors"


def _write(path: Path, waiting: _Waiting) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors: list[torch.Tensor] = []
    shape = flatten(waiting.value, tensors)
    content = {str(index): tensor.contiguous().clone() for index, tensor in enumerate(tensors)}
    try:
        save_file(content, path, {"shape": json.dumps(shape), "rows": str(waiting.rows)})
    except SafetensorError as error:  # this is how it tells of a full disk
        raise MoetoolError(f"{path} cannot be written: {error}", "make room: hidden states wait there") from None


def _read(path: Path) -> Any:
    """The nested value of a file; its tensors are views of the mapped file."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        shape = json.loads(file.metadata()["shape"])
        return rebuild(shape, [file.get_tensor(str(index)) for index in range(len(list(file.keys())))])


def _measure(path: Path) -> tuple[int, int]:
    """Rows and bytes of a file."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return int(file.metadata()["rows"]), path.stat().st_size
