"""Losses without some experts: a checkpoint, a corpus and sets of experts enter, the loss of every document leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from moetool.capture.ablation_stream import BASELINE, AblationStreamer
from moetool.capture.batches import Batch, make_batches
from moetool.capture.halving import Halving
from moetool.capture.head import Head, target_tokens
from moetool.capture.hidden import HiddenStates
from moetool.capture.job import CaptureOptions, Job, prepare
from moetool.capture.masking import Masks, check_maskable, masked
from moetool.capture.pieces import PieceLoader
from moetool.capture.routers import DecoderStack, find_decoder
from moetool.capture.running import load_resident, one_kind_of_error
from moetool.capture.tokens import EncodedCorpus
from moetool.checkpoint.types import Checkpoint
from moetool.corpus.documents import Document
from moetool.errors import MoetoolError
from moetool.progress import Progress, SilentProgress

Variant = frozenset[tuple[int, int]]
"""Pairs of layer number and expert that are masked together."""


@dataclass(frozen=True, slots=True)
class AblationLosses:
    """Mean cross entropy of the predicted tokens of every document, with all experts and without some."""

    documents: tuple[str, ...]
    """Ids, in the order of a trace of the same corpus."""
    domains: tuple[str, ...]
    """Of each document."""
    groups: tuple[str, ...]
    """Of each document; a group name belongs to its domain."""
    tokens: NDArray[np.int64]
    """``[documents]`` predicted tokens: those that count, but for the first of the document."""
    baseline: NDArray[np.float64]
    """``[documents]`` nats per predicted token; NaN for a document without any."""
    variant: NDArray[np.float64]
    """``[variants, documents]`` the same without the experts of each variant."""


def losses(
    checkpoint: Checkpoint,
    documents: Sequence[Document],
    options: CaptureOptions,
    variants: Sequence[Variant],
    progress: Progress | None = None,
    *,
    counted: NDArray[np.bool_] | None = None,
) -> AblationLosses:
    """Measure the loss of next tokens for the whole model, and for each variant with its experts masked.

    ``counted [T]`` says which tokens of the corpus, in the order of a trace of it, are predicted; None: all that are
    not special. Raises MoetoolError for a model without a causal head, an expert that cannot be masked, a corpus
    without predicted tokens, or a loss that is NaN.
    """
    progress = progress or SilentProgress()
    job = prepare(checkpoint, documents, options, progress)
    if counted is not None:
        job = replace(job, corpus=_count(job.corpus, counted))
    Head(job.model, job.stack)  # refuses a model without one before weights are read
    for masks in _masks(job.stack, variants):
        for moe, experts in masks.items():
            check_maskable(moe, experts)
    total = _Total(job.corpus, len(variants) + 1)
    with one_kind_of_error(job), torch.inference_mode():
        run = _stream if job.settings["engine"] == "stream" else _resident
        run(job, make_batches(job.corpus, job.rows, job.padding_id), variants, total, progress)
    return total.finish()


def _count(corpus: EncodedCorpus, counted: NDArray[np.bool_]) -> EncodedCorpus:
    if counted.shape != corpus.special.shape:
        raise MoetoolError(
            f"the corpus has {len(corpus.special)} tokens, and the trace says which of {len(counted)} count",
            "use the checkpoint, the text and the limits that the trace was captured with",
        )
    return replace(corpus, special=~counted)


def _masks(stack: DecoderStack, variants: Sequence[Variant]) -> list[Masks]:
    """The masked experts of each variant by the layers of a stack; MoetoolError for a layer without experts."""
    of_number = {moe.layer: moe for moe in stack.moe_layers}
    every: list[Masks] = []
    for variant in variants:
        layers = {layer for layer, _ in variant}
        if not layers or not layers <= of_number.keys():
            raise MoetoolError(
                f"cannot mask experts of layers {sorted(layers)}", f"MoE layers: {', '.join(map(str, of_number))}"
            )
        every.append({of_number[n]: frozenset(e for layer, e in variant if layer == n) for n in sorted(layers)})
    return every


class _Total:
    """Adds up losses by run and document."""

    def __init__(self, corpus: EncodedCorpus, runs: int) -> None:
        self.corpus = corpus
        lengths = [document.tokens for document in corpus.documents]
        self.document = np.repeat(np.arange(len(lengths)), lengths)
        predicted = ~corpus.special
        predicted[[document.start for document in corpus.documents]] = False
        self.tokens = np.bincount(self.document[predicted], minlength=len(lengths))
        self.nats = np.zeros((runs, len(lengths)))
        if not predicted.any():
            raise MoetoolError("the corpus has no token with another before it, so there is nothing to predict")

    def add(self, run: int, batch: Batch, nats: torch.Tensor) -> None:
        """The losses of the target tokens of a batch, which has documents as a whole."""
        document = self.document[batch.slots[target_tokens(batch)].numpy()]
        self.nats[run] += np.bincount(document, nats.cpu().double().numpy(), self.nats.shape[1])

    def finish(self) -> AblationLosses:
        """Means; MoetoolError where one is not finite."""
        documents = self.corpus.documents
        wrong = np.flatnonzero(~np.isfinite(self.nats).all(axis=0))
        if len(wrong):
            raise MoetoolError(
                f"the loss of document {documents[wrong[0]].id!r} is NaN or infinite",
                "the checkpoint may be broken, or float16 overflows: try --dtype float32",
            )
        mean = np.where(self.tokens > 0, self.nats / np.maximum(self.tokens, 1), np.nan)
        return AblationLosses(
            tuple(document.id for document in documents),
            tuple(document.domain for document in documents),
            tuple(document.group for document in documents),
            self.tokens.astype(np.int64),
            mean[BASELINE],
            mean[BASELINE + 1 :],
        )


def _resident(job: Job, batches: list[Batch], variants: Sequence[Variant], total: _Total, progress: Progress) -> None:
    """Every batch passes through the whole model once per run."""
    model = load_resident(job, progress)
    stack = find_decoder(model, job.family)
    head, device = Head(model, stack), next(stack.owner.parameters()).device
    halving, runs = Halving(progress), [{}, *_masks(stack, variants)]
    with progress.step("batches", len(batches) * len(runs)) as advance:
        for batch in batches:
            for run, masks in enumerate(runs):
                with masked(masks):
                    for part, nats in halving.run(lambda part, _: head.losses(part.to(device)), batch):
                        total.add(run, part, nats)
                advance(1)


def _stream(job: Job, batches: list[Batch], variants: Sequence[Variant], total: _Total, progress: Progress) -> None:
    """The corpus passes through one layer after another, all runs together."""
    loader = PieceLoader(job.model, job.checkpoint, job.settings["dtype"], job.device)
    hidden = HiddenStates(None, job.host_memory_bytes, job.device)
    try:
        streamer = AblationStreamer(job.stack, job.family, loader, batches, hidden, progress)
        streamer.measure([{}, *_masks(job.stack, variants)], total.add)
    finally:
        loader.close()
        hidden.close()
