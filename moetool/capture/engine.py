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
from moetool.capture.loading import DTYPES, PACKED_DTYPES, PieceLoader, compute_dtype, prepare_libraries
from moetool.capture.resident import load_model, run_resident
from moetool.capture.routers import DecoderStack, find_decoder
from moetool.capture.store import TraceFolder, TraceHeader
from moetool.capture.stream import Streamer
from moetool.capture.tokens import EncodedCorpus, encode_corpus, load_tokenizer
from moetool.capture.trace import RoutingTrace, TraceLayer, open_trace
from moetool.checkpoint.types import Checkpoint
from moetool.corpus.documents import Document
from moetool.errors import MoetoolError
from moetool.model.families import Family, family_of, find
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
    options, progress = options or CaptureOptions(), progress or SilentProgress()
    prepare_libraries()
    family = family_of(checkpoint.config)
    if family.engine == "refused":
        raise MoetoolError(
            f"{checkpoint.name}: routing of the family {family.name} cannot be captured: {family.reason}"
        )
    if checkpoint.folder is None or not checkpoint.tensors:
        raise MoetoolError(
            f"{checkpoint.name} has no weights to run", "give a folder with config.json and *.safetensors"
        )
    config = native_config(checkpoint.config, checkpoint.name)
    model_class = native_class(config, checkpoint.name)
    device, dtype = pick_device(options.device), compute_dtype(checkpoint, options.dtype)
    engine = pick_engine(options.engine, family, checkpoint)
    with progress.step("tokenizing"):
        tokenizer = load_tokenizer(checkpoint.folder)
        length = min(options.max_length, _longest(config) or options.max_length)
        corpus = encode_corpus(
            documents, tokenizer, max_tokens=options.max_tokens, max_length=length, seed=options.seed
        )
    for note in corpus.notes:
        progress.note(note)
    model = build_meta_model(config, checkpoint.name, DTYPES[dtype])
    model.train(False)
    stack = find_decoder(model, family)
    _check_vocabulary(corpus, stack)
    wanted = wanted_layers(options.layers, [moe.layer for moe in stack.moe_layers])
    batch_tokens = options.batch_tokens or BATCH_TOKENS[device.type]
    settings = {
        "engine": engine,
        "device": device.type,
        "dtype": dtype,
        "max_tokens": options.max_tokens,
        "max_length": length,
        "batch_tokens": batch_tokens,
        "seed": options.seed,
    }
    header = _header(checkpoint, family, stack, wanted, settings)
    store = TraceFolder(folder, header, corpus, overwrite) if folder else None
    batches = make_batches(corpus, batch_tokens, tokenizer.pad_token_id or 0)
    missing = store.missing_layers(wanted) if store else wanted
    if store and len(missing) < len(wanted):
        progress.note(f"{len(wanted) - len(missing)} of {len(wanted)} layers are captured already")
    domains = len({document.domain for document in corpus.documents})
    source = _Source(checkpoint, config, model_class, family, dtype, device, model, stack)
    layers = []
    finished = _run(engine, source, batches, missing, len(corpus.tokens), domains, store, progress)
    for layer in finished if missing else ():
        if store:
            store.save_layer(layer)
        else:
            layers.append(layer)
    if store:
        store.finish()
        return open_trace(store.folder)
    return RoutingTrace(
        header.model,
        corpus.documents,
        corpus.tokens,
        corpus.special,
        corpus.vocabulary,
        tuple(layers),
        settings,
        header.versions,
    )


@dataclass(frozen=True, slots=True)
class _Source:
    """A model on the meta device and where its weights are."""

    checkpoint: Checkpoint
    config: Any
    model_class: type[Any]
    family: Family
    dtype: str
    device: torch.device
    model: Any
    stack: DecoderStack


def _run(
    engine: str,
    source: _Source,
    batches: list[Batch],
    wanted: list[int],
    tokens: int,
    domains: int,
    store: TraceFolder | None,
    progress: Progress,
) -> Iterator[TraceLayer]:
    try:
        if engine == "stream":
            loader = PieceLoader(source.model, source.checkpoint, source.dtype, source.device)
            try:
                yield from Streamer(source.stack, loader, batches, store, progress).run(wanted, tokens, domains)
            finally:
                loader.close()
        else:
            with progress.step("loading weights"):
                model = load_model(source.checkpoint, source.config, source.model_class, source.dtype, source.device)
            stack = find_decoder(model, source.family)
            yield from run_resident(stack, wanted, batches, tokens, domains, progress)
    except MoetoolError:
        raise
    except torch.OutOfMemoryError:
        raise MoetoolError(
            f"{source.device.type} memory does not suffice for {source.checkpoint.name} with the {engine} engine",
            "use a smaller --batch-tokens" + ("" if engine == "stream" else ", or --engine stream"),
        ) from None
    except Exception as error:  # the model's code is not ours, and may raise anything
        detail = (str(error).strip().splitlines() or [""])[0]
        raise MoetoolError(
            f"{source.checkpoint.name} does not run with the {engine} engine: {type(error).__name__}: {detail[:300]}",
            "try --engine resident" if engine == "stream" else "MOETOOL_DEBUG=1 shows where",
        ) from error


def pick_device(wanted: str) -> torch.device:
    """``auto`` is the first of CUDA, MPS and CPU that is there."""
    kind, colon, number = wanted.partition(":")
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return torch.device(next(name for name, there in available.items() if there))
    known = not colon or (kind == "cuda" and number.isdecimal() and int(number) < torch.cuda.device_count())
    if not available.get(kind, False) or not known:
        raise MoetoolError(f"--device {wanted}: not available here", "use --device cpu, or auto")
    return torch.device(wanted)


def pick_engine(wanted: str, family: Family, checkpoint: Checkpoint) -> str:
    """``stream`` wherever the family and the stored types allow it."""
    quantised = quantization_of(checkpoint)
    reason = family.reason if family.engine == "resident" else "its weights are quantised" if quantised else ""
    if wanted == "auto":
        return "resident" if reason else "stream"
    if wanted == "stream" and reason:
        raise MoetoolError(
            f"--engine stream: {checkpoint.name} cannot be streamed yet: {reason}", "use --engine resident"
        )
    return wanted


def quantization_of(checkpoint: Checkpoint) -> bool:
    """Whether the config says that weights are quantised; MoetoolError where only the weights are.

    Without their scales such weights are other numbers, and nothing else would show it.
    """
    if find(checkpoint.config, "quantization_config", "compression_config"):
        return True
    packed = next((tensor for tensor in checkpoint.tensors if tensor.dtype in PACKED_DTYPES), None)
    if packed is not None:
        raise MoetoolError(
            f"{checkpoint.name}: {packed.name} is stored as {packed.dtype}, and config.json has no quantization_config",
            "take the config.json that belongs to these weights",
        )
    return False


def wanted_layers(selection: str | None, available: list[int]) -> list[int]:
    """Parse ``0-3,7``; MoetoolError for a layer that has no router."""
    if selection is None:
        return available
    wanted: set[int] = set()
    for part in selection.split(","):
        low, dash, high = part.strip().partition("-")
        try:
            first, last = int(low), int(high if dash else low)
        except ValueError:
            raise MoetoolError(
                f"--layers {selection}: {part!r} is no layer number or range", "for example 0-3,7"
            ) from None
        unknown = next((layer for layer in range(first, last + 1) if layer not in available), None)
        if unknown is not None or last < first:
            problem = f"{part.strip()} selects no layer" if unknown is None else f"layer {unknown} has no router"
            raise MoetoolError(f"--layers {selection}: {problem}", f"MoE layers: {', '.join(map(str, available))}")
        wanted.update(range(first, last + 1))
    return sorted(wanted)


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


def _header(
    checkpoint: Checkpoint, family: Family, stack: DecoderStack, wanted: list[int], settings: dict[str, Any]
) -> TraceHeader:
    import transformers

    config = json.dumps(checkpoint.config, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")
    model = {
        "name": checkpoint.name,
        "revision": checkpoint.revision,
        "family": family.name,
        "config_sha256": hashlib.sha256(config).hexdigest(),
    }
    layers = [
        {
            "layer": moe.layer,
            "experts": moe.experts,
            "experts_per_token": moe.experts_per_token,
            "scoring": moe.family.scoring,
        }
        for moe in stack.moe_layers
        if moe.layer in wanted
    ]
    versions = {"moetool": moetool.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    return TraceHeader(model, layers, settings, versions)
