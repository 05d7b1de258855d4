"""What a capture is, settled before any weight is read: a checkpoint, documents and options enter, a Job leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

import moetool
from moetool.capture.batches import deal_documents
from moetool.capture.choices import default_host_memory, longrope_boundary, pick_device, pick_engine, wanted_layers
from moetool.capture.loading import DTYPES, compute_dtype, prepare_libraries
from moetool.capture.quantized import pick_linear
from moetool.capture.record import check_size
from moetool.capture.routers import DecoderStack, find_decoder
from moetool.capture.shards import Shard, parse_shard, take_shard
from moetool.capture.store import TraceHeader
from moetool.capture.tokens import EncodedCorpus, encode_corpus, load_tokenizer
from moetool.capture.trace import TraceShard, describe_layer
from moetool.checkpoint.types import Checkpoint
from moetool.corpus.documents import Document
from moetool.errors import MoetoolError
from moetool.model.families import Family, family_of
from moetool.model.meta import build_meta_model, native_class, native_config
from moetool.progress import Progress

EXPERTS_IMPLEMENTATION = {"cpu": "eager", "cuda": "grouped_mm", "mps": "eager"}
"""How transformers computes experts: what ``tests/benchmarks/experts_implementations.py`` found fastest on a CPU, and
on CUDA the one that never waits for the device; both engines take the same, as results differ in the last bits."""
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
    config, device = native_config(checkpoint.config, checkpoint.name), pick_device(options.device)
    settings = _settings(checkpoint, options, family, config, device)
    config._experts_implementation = settings["experts_implementation"]
    corpus, padding_id = _read(checkpoint.folder, documents, settings, progress)
    model = build_meta_model(config, checkpoint.name, DTYPES[settings["dtype"]])
    model.train(False)
    stack = find_decoder(model, family)
    _check_vocabulary(corpus, stack)
    if options.quantize is not None:
        routers = [moe.router for moe in stack.moe_layers]
        settings["quantized_share"] = round(pick_linear(options.quantize, model, routers, device)[1], 4)
    job = Job(
        checkpoint,
        family,
        config,
        native_class(config, checkpoint.name),
        model,
        stack,
        corpus,
        deal_documents(corpus, settings["batch_tokens"], family.padding, longrope_boundary(checkpoint.config)),
        padding_id,
        device,
        wanted_layers(options.layers, [moe.layer for moe in stack.moe_layers]),
        options.host_memory_bytes or default_host_memory(),
        settings,
    )
    return job if shard is None or shard.count == 1 else job.take(shard)


def _settings(
    checkpoint: Checkpoint, options: CaptureOptions, family: Family, config: Any, device: torch.device
) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "engine": pick_engine(options.engine, family, checkpoint, options.quantize),
        "device": device.type,
        "dtype": compute_dtype(checkpoint, options.dtype),
        "experts_implementation": EXPERTS_IMPLEMENTATION[device.type],
        "max_tokens": options.max_tokens,
        "max_length": min(options.max_length, _longest(config) or options.max_length),
        "batch_tokens": options.batch_tokens or BATCH_TOKENS[device.type],
        "seed": options.seed,
    }
    return settings if options.quantize is None else {**settings, "quantize": options.quantize}


def _read(
    folder: Path, documents: Sequence[Document], settings: Mapping[str, Any], progress: Progress
) -> tuple[EncodedCorpus, int]:
    """The corpus in tokens, and the token for padding."""
    with progress.step("tokenizing"):
        tokenizer = load_tokenizer(folder)
        limits = {name: settings[name] for name in ("max_tokens", "max_length", "seed")}
        corpus = encode_corpus(documents, tokenizer, **limits)
    check_size(corpus)
    for note in corpus.notes:
        progress.note(note)
    return corpus, tokenizer.pad_token_id or 0


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
    model = {
        "name": checkpoint.name,
        "revision": checkpoint.revision,
        "family": job.family.name,
        "config_sha256": checkpoint.config_sha256,
    }
    layers = [describe_layer(moe) for moe in job.stack.moe_layers if moe.layer in job.wanted]
    versions = {"moetool": moetool.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    return TraceHeader(model, layers, job.settings, versions, job.shard)
