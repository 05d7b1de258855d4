"""Where a model is: enters what the user calls it, leaves a Checkpoint with config and tensors."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from moetool.checkpoint.folder import PICKLES, Weights, read_folder, read_json
from moetool.checkpoint.gguf import SUFFIX, holds_gguf_only, read_gguf
from moetool.checkpoint.types import Checkpoint
from moetool.errors import MoetoolError

DEMO = Path(__file__).parents[1] / "demo" / "model"
KINDS = (
    "MODEL is demo, a folder with config.json and safetensors files, a config.json, a .gguf file, or a hub id such as "
    "org/name"
)

_HUB_ID = re.compile(r"(?!\.)[\w.-]{1,96}/(?!\.)[\w.-]{1,96}", re.ASCII)


def locate(model: str, revision: str | None = None, *, weights: Weights = "headers") -> Checkpoint:
    """Find a model: ``demo``, a folder, a cache of the hub (``models--org--name``), a JSON config, a GGUF file or a hub
    id.

    ``weights``: ``headers`` reads the tensors' names and shapes (over the network a few hundred kilobytes per file),
    ``files`` also makes sure that the weight files are in a local folder (downloads them), ``none`` reads the config
    only. A model without any weight file gives a Checkpoint without tensors, unless ``files`` were asked for.
    Raises MoetoolError where the model, its config or its weights are missing, damaged, pickled or not accessible.
    """
    if model == "demo":
        return _local(DEMO, model, revision, weights)
    if exists(model):
        try:
            return _local(Path(model).expanduser(), model, revision, weights)
        except OSError as error:  # of looking around: names that are too long, folders that may not be listed
            raise MoetoolError(f"{model} cannot be read: {error.strerror or error}") from None
    if is_hub_id(model):
        from moetool.checkpoint import hub

        return hub.locate(model, revision, weights)
    raise MoetoolError(f"there is no model {model!r}: no such file or folder", KINDS)


def is_hub_id(model: str) -> bool:
    """Whether ``locate`` would ask the hub for it: ``owner/name``, and no file or folder of this machine."""
    return bool(_HUB_ID.fullmatch(model)) and not exists(model)


def exists(name: str) -> bool:
    """Whether there is such a file or folder; names that cannot be of one, as they are too long, are of none."""
    try:
        return Path(name).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # the last: of a home that is not there
        return False


def _local(path: Path, model: str, revision: str | None, weights: Weights) -> Checkpoint:
    if (path / "snapshots").is_dir():
        path = snapshot_of(path, revision)
    elif revision is not None:
        raise MoetoolError(f"{model} is local: it has no revision {revision!r}", "--revision goes with a hub id")
    if holds_gguf_only(path) if path.is_dir() else path.suffix == SUFFIX:
        return _gguf(path, model, weights)
    if path.is_dir():
        return read_folder(path, model, weights)
    if path.suffix == ".json":
        if weights == "files":
            raise MoetoolError(
                f"{model} is only a config: it has no weights", "name the folder that holds the weights too"
            )
        return Checkpoint(model, None, read_json(path), (), None)
    what = "a pickle, which can run code" if path.suffix in PICKLES else "no folder and no config.json"
    raise MoetoolError(f"{model} is {what}", "name the folder of the checkpoint: config.json and safetensors files")


def _gguf(path: Path, model: str, weights: Weights) -> Checkpoint:
    if weights == "files":
        raise MoetoolError(
            f"{model} holds GGUF weights, which moetool can count but not run",
            "moetool memory reads them; to run the model, name the safetensors checkpoint that they were made from",
        )
    checkpoint = read_gguf(path, model)
    revision = path.name if path.parent.name == "snapshots" else None
    return replace(checkpoint, revision=revision, tensors=() if weights == "none" else checkpoint.tensors)


def snapshot_of(cache: Path, revision: str | None) -> Path:
    """The snapshot folder of a revision (default ``main``) in a ``models--org--name`` folder of the hub's cache."""
    revision = revision or "main"
    snapshots = {path.name: path for path in (cache / "snapshots").iterdir() if path.is_dir()}
    reference = cache / "refs" / revision
    inside = ".." not in reference.parts and not Path(revision).is_absolute()
    commit = reference.read_text("utf-8", "replace").strip() if inside and reference.is_file() else revision
    if commit not in snapshots and revision == "main" and len(snapshots) == 1:
        commit = next(iter(snapshots))
    if commit not in snapshots:
        known = ", ".join(sorted(snapshots)) or "none"
        raise MoetoolError(f"{cache} holds no revision {revision!r}", f"revisions that are there: {known}")
    return snapshots[commit]
