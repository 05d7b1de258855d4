"""A capture by several processes: every rank enters with its shard, one trace folder leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from moetool.capture.choices import default_host_memory
from moetool.capture.engine import fill
from moetool.capture.job import CaptureOptions, make_header, prepare
from moetool.capture.join import join_shards
from moetool.capture.ranks import RankGroup
from moetool.capture.shards import Shard
from moetool.capture.store import TraceFolder, missing_layers, rank_folder
from moetool.capture.trace import layer_file, open_trace
from moetool.checkpoint.types import Checkpoint
from moetool.corpus.documents import Document
from moetool.progress import Progress, SilentProgress


def capture_together(
    checkpoint: Checkpoint,
    documents: Sequence[Document],
    options: CaptureOptions,
    group: RankGroup,
    *,
    folder: Path,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> None:
    """One rank's part of a capture by several processes, all of which call this; the first rank joins the parts.

    The folder is the same as after ``capture`` by one process, byte for byte, whatever the number of ranks. Until the
    end it has a folder for every shard, where the same number of ranks resumes. Raises MoetoolError as ``capture``
    does, and where the ranks do not see the same folder.
    """
    progress, rank = progress or SilentProgress(), group.rank
    memory = options.host_memory_bytes or default_host_memory() // rank.neighbours
    options = replace(options, device=group.pick_device(options.device), host_memory_bytes=memory)
    whole = prepare(checkpoint, documents, options, progress)
    shards = [Shard(index, rank.count) for index in range(1, rank.count + 1)]
    job, folders = whole.take(shards[rank.index]), [rank_folder(folder, shard) for shard in shards]
    store = TraceFolder(folder, make_header(whole), whole.corpus, overwrite) if rank.first else None
    try:
        if store is not None:
            _tell(store, folders, progress)
        group.meet("opened", progress)
        group.wait_for_files([folder / "trace.json"])
        if missing_layers(folder, whole.wanted):
            fill(TraceFolder(folders[rank.index], make_header(job), job.corpus, finished=True), job, progress)
        group.meet("captured", progress)
        if store is not None:
            if store.missing_layers(whole.wanted):
                group.wait_for_files([path / layer_file(layer, "chosen") for path in folders for layer in whole.wanted])
                with progress.step("joining shards"):
                    join_shards([open_trace(path) for path in folders], store, whole.corpus.documents)
            store.finish()
        group.meet("joined", progress)
    finally:
        if store is not None:
            store.unlock()


def _tell(store: TraceFolder, folders: Sequence[Path], progress: Progress) -> None:
    """Say how the work is divided, and what of an earlier run goes unused."""
    progress.note(f"{len(folders)} processes share the batches; progress is that of the first")
    others = [folder.name for folder in store.rank_folders() if folder not in folders]
    if others:
        progress.note(
            f"{', '.join(others)}: left by an interrupted run with another number of processes, which resumes them;"
            f" {len(folders)} processes begin anew"
        )
