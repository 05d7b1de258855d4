"""Capture: enters a checkpoint and a corpus, leaves the RoutingTrace of every token, by either engine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

import moetool
from moetool.capture.batches import Batch, deal_documents, make_batches
from moetool.capture.choices import default_host_memory, pick_device, pick_engine, wanted_layers
from moetool.capture.halving import is_out_of_memory
from moetool.capture.hidden import HiddenStates
from moetool.capture.loading import DTYPES, compute_dtype, prepare_libraries
from moetool.capture.pieces import PieceLoader
from moetool.capture.quantized import bitsandbytes_settings, quantized_note
from moetool.capture.record import check_size
from moetool.capture.resident import load_model, run_resident
from moetool.capture.routers import DecoderStack, MoELayer, find_decoder
from moetool.capture.shards import Shard, parse_shard, take_shard
from moetool.capture.store import TraceFolder, TraceHeader
from moetool.capture.stream import Streamer
from moetool.capture.tokens import EncodedCorpus, encode_corpus, load_tokenizer
from moetool.capture.trace import RoutingTrace, TraceLayer, TraceShard, open_trace
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
    quantize: Literal["8bit", "4bit"] | None = None
    """Quantise a checkpoint of plain weights at load, through bitsandbytes; resident engine only."""
    max_tokens: int | None = None
    """Per domain; None for all."""
    max_length: int = 2048
    """Tokens of one document."""
    batch_tokens: int | None = None
    """Tokens of one batch, padding included; None for what suits the device (BATCH_TOKENS)."""
    seed: int = 0
    host_memory_bytes: int | None = None
    """Host memory for hidden states of the stream engine, above which they wait in files; None: half of the free."""
    layers: str | None = None
    """Decoder layers to capture, such as ``0-3,7``; None for all MoE layers."""
    shard: str | None = None
    """``2/4`` for the second of four parts of the corpus; None for all of it."""


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
    for layer in _run(job, missing, store, progress) if missing else ():
        store.save_layer(layer)
    store.finish()


@dataclass(frozen=True, slots=True)
class Job:
    """A model on the meta device, the corpus that it will read, and how."""

    checkpoint: Checkpoint
    family: Family
    config: Any
    model_class: type[Any]
    model: Any
    stack: DecoderStack
    corpus: EncodedCorpus
    rows: list[list[int]]
    """The documents of every batch."""
    padding_id: int
    device: torch.device
    wanted: list[int]
    host_memory_bytes: int
    settings: dict[str, Any]
    """What the result depends on beside model and corpus: ``engine``, ``dtype``, ``batch_tokens`` and limits."""
    shard: TraceShard | None = None

    def take(self, shard: Shard) -> Job:
        """The same for one shard of the corpus."""
        corpus, rows, of_whole = take_shard(self.corpus, self.rows, shard)
        return replace(self, corpus=corpus, rows=rows, shard=of_whole)


def prepare(checkpoint: Checkpoint, documents: Sequence[Document], options: CaptureOptions, progress: Progress) -> Job:
    """Everything that can go wrong before weights are read goes wrong here."""
    shard = None if options.shard is None else parse_shard(options.shard)
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
        "engine": pick_engine(options.engine, family, checkpoint, options.quantize),
        "device": device.type,
        "dtype": dtype,
        "max_tokens": options.max_tokens,
        "max_length": min(options.max_length, _longest(config) or options.max_length),
        "batch_tokens": options.batch_tokens or BATCH_TOKENS[device.type],
        "seed": options.seed,
    }
    if options.quantize is not None:
        settings["quantize"] = options.quantize
    with progress.step("tokenizing"):
        tokenizer = load_tokenizer(checkpoint.folder)
        limits = {name: settings[name] for name in ("max_tokens", "max_length", "seed")}
        corpus = encode_corpus(documents, tokenizer, **limits)
    check_size(corpus)
    for note in corpus.notes:
        progress.note(note)
    model = build_meta_model(config, checkpoint.name, DTYPES[dtype])
    model.train(False)
    stack = find_decoder(model, family)
    _check_vocabulary(corpus, stack)
    job = Job(
        checkpoint,
        family,
        config,
        native_class(config, checkpoint.name),
        model,
        stack,
        corpus,
        deal_documents(corpus, settings["batch_tokens"], family.padding),
        tokenizer.pad_token_id or 0,
        device,
        wanted_layers(options.layers, [moe.layer for moe in stack.moe_layers]),
        options.host_memory_bytes or default_host_memory(),
        settings,
    )
    return job if shard is None or shard.count == 1 else job.take(shard)


def _run(job: Job, wanted: list[int], store: TraceFolder | None, progress: Progress) -> Iterator[TraceLayer]:
    """The routing of the wanted layers; whatever the model's own code raises becomes a MoetoolError."""
    engine, name = job.settings["engine"], job.checkpoint.name
    batches = make_batches(job.corpus, job.rows, job.padding_id)
    try:
        yield from (_stream if engine == "stream" else _resident)(job, batches, wanted, store, progress)
    except MoetoolError:
        raise
    except OSError as error:
        raise MoetoolError(f"{error.filename or name}: {error.strerror or error}", "finished layers are kept") from None
    except Exception as error:  # the model's code is not ours, and may raise anything
        if not is_out_of_memory(error):
            raise _failed(job, error) from error
        raise MoetoolError(
            f"{job.device.type} memory does not suffice for {name} with the {engine} engine",
            "use a smaller --batch-tokens" + ("" if engine == "stream" else ", or --engine stream"),
        ) from None


def _failed(job: Job, error: Exception) -> MoetoolError:
    engine, detail = job.settings["engine"], (str(error).strip().splitlines() or [""])[0]
    return MoetoolError(
        f"{job.checkpoint.name} does not run with the {engine} engine: {type(error).__name__}: {detail[:300]}",
        "try --engine resident" if engine == "stream" else "MOETOOL_DEBUG=1 shows where",
    )


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
    dtype, quantize = job.settings["dtype"], job.settings.get("quantize")
    routers = [moe.router for moe in job.stack.moe_layers]
    quantizer = bitsandbytes_settings(quantize, dtype, job.model, routers) if quantize else None
    with progress.step("loading weights"):
        model = load_model(job.checkpoint, job.config, job.model_class, dtype, job.device, quantizer)
    if quantize:
        progress.note(quantized_note(model, quantize))
    stack = find_decoder(model, job.family)
    yield from run_resident(stack, _routers(stack, wanted), batches, *_sizes(job.corpus), progress)


def _routers(stack: DecoderStack, layers: list[int]) -> list[MoELayer]:
    return [moe for moe in stack.moe_layers if moe.layer in layers]


def _sizes(corpus: EncodedCorpus) -> tuple[int, NDArray[np.int64]]:
    """Tokens, and those of each domain that are not special."""
    domains = list(dict.fromkeys(document.domain for document in corpus.documents))
    index = np.repeat(
        [domains.index(document.domain) for document in corpus.documents],
        [document.tokens for document in corpus.documents],
    )
    return len(corpus.tokens), np.bincount(index[~corpus.special], minlength=len(domains)).astype(np.int64)


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


def make_header(job: Job) -> TraceHeader:
    """What ``trace.json`` says of a capture."""
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
            "scoring": moe.scoring,
            **({"zero_experts": moe.zero_experts} if moe.zero_experts else {}),
            **({"part": moe.part} if moe.part else {}),
        }
        for moe in job.stack.moe_layers
        if moe.layer in job.wanted
    ]
    versions = {"moetool": moetool.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    return TraceHeader(model, layers, job.settings, versions, job.shard)
