"""Capture: enters a checkpoint and a corpus, leaves the RoutingTrace of every token, by either engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moetool.capture.batches import Batch, make_batches
from moetool.capture.hidden import HiddenStates
from moetool.capture.job import CaptureOptions, Job, make_header, prepare
from moetool.capture.pieces import PieceLoader
from moetool.capture.resident import run_resident
from moetool.capture.routers import DecoderStack, MoELayer, find_decoder
from moetool.capture.running import load_resident, one_kind_of_error
from moetool.capture.store import TraceFolder
from moetool.capture.stream import Streamer
from moetool.capture.tokens import EncodedCorpus
from moetool.capture.trace import RoutingTrace, TraceLayer, counted_tokens_of_domain, open_trace
from moetool.checkpoint.types import Checkpoint
from moetool.corpus.documents import Document
from moetool.progress import Progress, SilentProgress

__all__ = ["CaptureOptions", "capture", "fill"]


def capture(
    checkpoint: Checkpoint,
    documents: Sequence[Document],
    options: CaptureOptions | None = None,
    *,
    folder: Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> RoutingTrace:
    """Run a checkpoint over documents and return where every token went.

    With ``folder`` the trace is written there layer by layer and an unfinished one of the same capture is resumed.
    Raises MoetoolError for a model without routers, a corpus without tokens, NaN routing, or a folder that holds
    anything else.
    """
    progress = progress or SilentProgress()
    job = prepare(checkpoint, documents, options or CaptureOptions(), progress)
    header, corpus = make_header(job), job.corpus
    if folder is None:
        layers = tuple(sorted(_run(job, job.wanted, None, progress), key=lambda layer: layer.layer))
        return RoutingTrace(
            header.model,
            corpus.documents,
            corpus.tokens,
            corpus.special,
            corpus.vocabulary,
            layers,
            header.settings,
            header.versions,
            job.shard,
        )
    fill(TraceFolder(folder, header, corpus, overwrite), job, progress)
    return open_trace(folder)


def fill(store: TraceFolder, job: Job, progress: Progress) -> None:
    """Capture the layers that a folder lacks."""
    missing = store.missing_layers(job.wanted)
    if len(missing) < len(job.wanted):
        progress.note(f"{len(job.wanted) - len(missing)} of {len(job.wanted)} layers are captured already")
    if missing and job.settings["engine"] == "resident":
        progress.note("the resident engine has nothing to resume from before its last batch; --shard divides the work")
    try:
        for layer in _run(job, missing, store, progress) if missing else ():
            store.save_layer(layer)
    except Exception:
        raise
    except BaseException:  # interrupted or terminated
        kept = len(job.wanted) - len(store.missing_layers(job.wanted))
        progress.note(f"{kept} of {len(job.wanted)} layers are kept in {store.folder}: the same command goes on")
        raise
    else:
        store.finish()
    finally:
        store.unlock()


def _run(job: Job, wanted: list[int], store: TraceFolder | None, progress: Progress) -> Iterator[TraceLayer]:
    """The routing of the wanted layers; whatever the model's own code raises becomes a MoetoolError."""
    batches = make_batches(job.corpus, job.rows, job.padding_id)
    with one_kind_of_error(job, "finished layers are kept"):
        yield from (_stream if job.settings["engine"] == "stream" else _resident)(job, batches, wanted, store, progress)


def _stream(
    job: Job, batches: list[Batch], wanted: list[int], store: TraceFolder | None, progress: Progress
) -> Iterator[TraceLayer]:
    loader = PieceLoader(job.model, job.checkpoint, job.settings["dtype"], job.device)
    hidden = HiddenStates(store.folder if store else None, job.host_memory_bytes, job.device)
    try:
        streamer = Streamer(job.stack, job.family, loader, batches, hidden, progress)
        yield from streamer.run(_routers(job.stack, wanted), *_sizes(job.corpus))
    finally:
        loader.close()
        hidden.close()


def _resident(
    job: Job, batches: list[Batch], wanted: list[int], store: TraceFolder | None, progress: Progress
) -> Iterator[TraceLayer]:
    stack = find_decoder(load_resident(job, progress), job.family)
    yield from run_resident(stack, _routers(stack, wanted), batches, *_sizes(job.corpus), progress)


def _routers(stack: DecoderStack, layers: list[int]) -> list[MoELayer]:
    return [moe for moe in stack.moe_layers if moe.layer in layers]


def _sizes(corpus: EncodedCorpus) -> tuple[int, NDArray[np.int64]]:
    """Tokens, and those of each domain that are not special."""
    return len(corpus.tokens), counted_tokens_of_domain(corpus.documents, corpus.special)
