"""Capture: enters a checkpoint and a corpus, leaves the RoutingTrace of every token, by either engine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

import moetool
from moetool.capture.batches import Batch, make_batches
from moetool.capture.choices import pick_device, pick_engine, wanted_layers
from moetool.capture.loading import DTYPES, PieceLoader, compute_dtype, prepare_libraries
from moetool.capture.resident import load_model, run_resident
from moetool.capture.routers import DecoderStack, find_decoder
from moetool.capture.store import TraceFolder, TraceHeader
from moetool.capture.stream import Streamer
from moetool.capture.tokens import EncodedCorpus, encode_corpus, load_tokenizer
from moetool.capture.trace import RoutingTrace, TraceLayer, open_trace
from moetool.checkpoint.types import Checkpoint
from moetool.corpus.documents import Document
from moetool.errors import MoetoolError
from moetool.model.families import Family, family_of
from moetool.model.meta import build_meta_model, native_class, native_config
from moetool.progress import Progress, SilentProgress

BATCH_TOKENS = {"cpu": 2048, "mps": 4096, "cuda": 16384}
"""A CPU gains nothing from larger batches, and what a batch needs in passing counts against two layers of weights."""


@dataclass(frozen=True, slots=True)
class CaptureOptions:
    """How to run the model."""

    device: str = "auto"
    dtype: str = "auto"
    engine: Literal["auto", "stream", "resident"] = "auto"
    max_tokens: int | None = None
    """Per domain; None for all."""
    max_length: int = 2048
    """Tokens of one document."""
    batch_tokens: int | None = None
    """Tokens of one batch, padding included; None for what suits the device (BATCH_TOKENS)."""
    seed: int = 0
    layers: str | None = None
    """Decoder layers to capture, such as ``0-3,7``; None for all MoE layers."""


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
    job = _prepare(checkpoint, documents, options or CaptureOptions(), progress)
    header, corpus = _header(job), job.corpus
    if folder is None:
        layers = tuple(_run(job, job.wanted, None, progress))
        return RoutingTrace(
            header.model,
            corpus.documents,
            corpus.tokens,
            corpus.special,
            corpus.vocabulary,
            layers,
            header.settings,
            header.versions,
        )
    store = TraceFolder(folder, header, corpus, overwrite)
    missing = store.missing_layers(job.wanted)
    if len(missing) < len(job.wanted):
        progress.note(f"{len(job.wanted) - len(missing)} of {len(job.wanted)} layers are captured already")
    for layer in _run(job, missing, store, progress) if missing else ():
        store.save_layer(layer)
    store.finish()
    return open_trace(folder)


@dataclass(frozen=True, slots=True)
class _Job:
    """A model on the meta device, the corpus that it will read, and how."""

    checkpoint: Checkpoint
    family: Family
    config: Any
    model_class: type[Any]
    model: Any
    stack: DecoderStack
    corpus: EncodedCorpus
    padding_id: int
    device: torch.device
    wanted: list[int]
    settings: dict[str, Any]
    """What the result depends on beside model and corpus: ``engine``, ``dtype``, ``batch_tokens`` and limits."""


def _prepare(
    checkpoint: Checkpoint, documents: Sequence[Document], options: CaptureOptions, progress: Progress
) -> _Job:
    """Everything that can go wrong before weights are read goes wrong here."""
    prepare_libraries()
    family = family_of(checkpoint.config)
    if family.engine == "refused":
        raise MoetoolError(f"{checkpoint.name}: {family.reason}", "moetool memory works on it")
    if checkpoint.folder is None or not checkpoint.tensors:
        raise MoetoolError(
            f"{checkpoint.name} has no weights to run", "give a folder with config.json and *.safetensors"
        )
    config = native_config(checkpoint.config, checkpoint.name)
    device, dtype = pick_device(options.device), compute_dtype(checkpoint, options.dtype)
    settings: dict[str, Any] = {
        "engine": pick_engine(options.engine, family, checkpoint),
        "device": device.type,
        "dtype": dtype,
        "max_tokens": options.max_tokens,
        "max_length": min(options.max_length, _longest(config) or options.max_length),
        "batch_tokens": options.batch_tokens or BATCH_TOKENS[device.type],
        "seed": options.seed,
    }
    with progress.step("tokenizing"):
        tokenizer = load_tokenizer(checkpoint.folder)
        limits = {name: settings[name] for name in ("max_tokens", "max_length", "seed")}
        corpus = encode_corpus(documents, tokenizer, **limits)
    for note in corpus.notes:
        progress.note(note)
    model = build_meta_model(config, checkpoint.name, DTYPES[dtype])
    model.train(False)
    stack = find_decoder(model, family)
    _check_vocabulary(corpus, stack)
    return _Job(
        checkpoint,
        family,
        config,
        native_class(config, checkpoint.name),
        model,
        stack,
        corpus,
        tokenizer.pad_token_id or 0,
        device,
        wanted_layers(options.layers, [moe.layer for moe in stack.moe_layers]),
        settings,
    )


def _run(job: _Job, wanted: list[int], store: TraceFolder | None, progress: Progress) -> Iterator[TraceLayer]:
    """The routing of the wanted layers; whatever the model's own code raises becomes a MoetoolError."""
    engine, name = job.settings["engine"], job.checkpoint.name
    batches = make_batches(job.corpus, job.settings["batch_tokens"], job.padding_id, job.family.padding)
    try:
        yield from (_stream if engine == "stream" else _resident)(job, batches, wanted, store, progress)
    except MoetoolError:
        raise
    except torch.OutOfMemoryError:
        raise MoetoolError(
            f"{job.device.type} memory does not suffice for {name} with the {engine} engine",
            "use a smaller --batch-tokens" + ("" if engine == "stream" else ", or --engine stream"),
        ) from None
    except Exception as error:  # the model's code is not ours, and may raise anything
        detail = (str(error).strip().splitlines() or [""])[0]
        raise MoetoolError(
            f"{name} does not run with the {engine} engine: {type(error).__name__}: {detail[:300]}",
            "try --engine resident" if engine == "stream" else "MOETOOL_DEBUG=1 shows where",
        ) from error


def _stream(
    job: _Job, batches: list[Batch], wanted: list[int], store: TraceFolder | None, progress: Progress
) -> Iterator[TraceLayer]:
    loader = PieceLoader(job.model, job.checkpoint, job.settings["dtype"], job.device)
    try:
        yield from Streamer(job.stack, loader, batches, store, progress).run(wanted, *job.corpus.shape)
    finally:
        loader.close()


def _resident(
    job: _Job, batches: list[Batch], wanted: list[int], store: TraceFolder | None, progress: Progress
) -> Iterator[TraceLayer]:
    with progress.step("loading weights"):
        model = load_model(job.checkpoint, job.config, job.model_class, job.settings["dtype"], job.device)
    yield from run_resident(find_decoder(model, job.family), wanted, batches, *job.corpus.shape, progress)


def _longest(config: Any) -> int | None:
    longest = getattr(config.get_text_config(), "max_position_embeddings", None)
    return longest if isinstance(longest, int) and longest > 0 else None


def _check_vocabulary(corpus: EncodedCorpus, stack: DecoderStack) -> None:
    size = stack.owner.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    if int(corpus.tokens.max()) >= size:
        raise MoetoolError(
            f"the tokenizer gives token {int(corpus.tokens.max())}, but the model embeds {size} tokens",
            "tokenizer and weights are from different models",
        )


def _header(job: _Job) -> TraceHeader:
    import transformers

    checkpoint = job.checkpoint
    config = json.dumps(checkpoint.config, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")
    model = {
        "name": checkpoint.name,
        "revision": checkpoint.revision,
        "family": job.family.name,
        "config_sha256": hashlib.sha256(config).hexdigest(),
    }
    layers = [
        {
            "layer": moe.layer,
            "experts": moe.experts,
            "experts_per_token": moe.experts_per_token,
            "scoring": moe.family.scoring,
        }
        for moe in job.stack.moe_layers
        if moe.layer in job.wanted
    ]
    versions = {"moetool": moetool.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    return TraceHeader(model, layers, job.settings, versions)
