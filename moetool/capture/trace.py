"""The routing of every token of a corpus: enters as a folder of numpy files, leaves as a RoutingTrace (no torch here).

Shape suffixes used throughout moetool: ``T`` tokens, ``L`` MoE layers, ``E`` experts, ``K`` chosen per token,
``D`` domains, ``G`` groups of documents, ``V`` vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetool.errors import MoetoolError

SCHEMA = "moetool.trace/1.0"
SCORE_COLUMNS = ("router_entropy", "top1_probability", "boundary_margin", "logsumexp")
"""Columns of ``scores``: entropy of the router's distribution in nats, its largest probability, the lowest chosen minus
the highest refused score in the score used for selecting (NaN where unknown), and logsumexp of the logits."""


@dataclass(frozen=True, slots=True)
class TraceDocument:
    """A run of tokens that was one input sequence."""

    id: str
    domain: str
    group: str
    """The independent unit: documents of one group are not resampled apart."""
    start: int
    """Index of the first token."""
    tokens: int
    sha256: str
    """Of the text's UTF-8 bytes; empty where an imported trace has no text."""


@dataclass(frozen=True, slots=True)
class TraceLayer:
    """Routing of all tokens in one MoE layer."""

    layer: int
    """Decoder layer number (dense layers leave gaps)."""
    experts: int
    experts_per_token: int
    scoring: str | None
    """``softmax`` or ``sigmoid``: how the router's distribution comes from its logits; None where unknown."""
    chosen: NDArray[np.unsignedinteger[Any]]
    """``[T, K]`` experts that ran, in the router's order."""
    weight: NDArray[np.floating[Any]] | None = None
    """``[T, K]`` weights as applied."""
    scores: NDArray[np.floating[Any]] | None = None
    """``[T, 4]``, see SCORE_COLUMNS."""
    probability: NDArray[np.floating[Any]] | None = None
    """``[D, E]`` mean router probability over the counted tokens of each domain."""


@dataclass(frozen=True, slots=True)
class RoutingTrace:
    """Per-token routing of a corpus, layer by layer; arrays may be memory-mapped and are read-only."""

    model: Mapping[str, Any]
    """``name``, ``revision``, ``family``, ``config_sha256``."""
    documents: tuple[TraceDocument, ...]
    """In token order, without gaps."""
    tokens: NDArray[np.int32]
    """``[T]`` token ids."""
    special: NDArray[np.bool_]
    """``[T]`` True for tokens that statistics leave out: special tokens and masked templates."""
    vocabulary: Mapping[int, str]
    """Text of the token ids that occur; may be empty for imported traces."""
    layers: tuple[TraceLayer, ...]
    settings: Mapping[str, Any]
    versions: Mapping[str, Any]

    @property
    def domains(self) -> tuple[str, ...]:
        """Domain names in the order of their first document; axis ``D`` of ``probability``."""
        return tuple(dict.fromkeys(document.domain for document in self.documents))

    @property
    def counted(self) -> NDArray[np.bool_]:
        """``[T]`` True for the tokens that statistics count."""
        return ~self.special

    def document_of_token(self) -> NDArray[np.int32]:
        """``[T]`` index of the document of each token."""
        lengths = [document.tokens for document in self.documents]
        return np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)

    def domain_of_document(self) -> NDArray[np.int32]:
        """Index of the domain of each document."""
        index = {domain: i for i, domain in enumerate(self.domains)}
        return np.array([index[document.domain] for document in self.documents], dtype=np.int32)

    def group_of_document(self) -> NDArray[np.int32]:
        """Index of the group of each document; a group name belongs to its domain (two domains never share one)."""
        names = [(document.domain, document.group) for document in self.documents]
        index = {name: i for i, name in enumerate(dict.fromkeys(names))}
        return np.array([index[name] for name in names], dtype=np.int32)

    def counted_tokens_of_domain(self) -> NDArray[np.int64]:
        """``[D]`` tokens that statistics count, per domain."""
        domain = np.repeat(self.domain_of_document(), [document.tokens for document in self.documents])
        return np.bincount(domain[self.counted], minlength=len(self.domains)).astype(np.int64)


def layer_file(layer: int, part: str) -> str:
    """File name of one array of one layer: ``layer-007.chosen.npy``."""
    return f"layer-{layer:03d}.{part}.npy"


def chosen_dtype(experts: int) -> type[np.uint8] | type[np.uint16]:
    """The smallest unsigned type that holds an expert id."""
    return np.uint8 if experts <= 256 else np.uint16


def is_trace(path: Path) -> bool:
    """Whether a folder is a trace, finished or not."""
    return (path / "trace.json").is_file()


def read_header(folder: Path) -> dict[str, Any]:
    """``trace.json``, checked for its schema's major version."""
    path = folder / "trace.json"
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MoetoolError(
            f"{folder} is not a trace: it has no trace.json", "moetool capture MODEL --text FILE --out TRACE writes one"
        ) from None
    except (OSError, ValueError) as error:
        raise MoetoolError(f"{path} cannot be read: {error}") from None
    schema = header.get("schema", "") if isinstance(header, dict) else ""
    if not isinstance(schema, str) or schema.split(".")[:2] != SCHEMA.split(".")[:2] or "/1." not in schema:
        raise MoetoolError(f"{path} has schema {schema!r}; this moetool reads {SCHEMA}")
    return dict(header)


def open_trace(folder: Path) -> RoutingTrace:
    """Map a finished trace into memory; MoetoolError names what is missing or wrong."""
    header = read_header(folder)
    try:
        documents = tuple(_read_document(document) for document in header["documents"])
        layers_wanted = [
            (int(row["layer"]), int(row["experts"]), int(row["experts_per_token"]), row.get("scoring"))
            for row in header["layers"]
        ]
        model, settings, versions = header["model"], header["settings"], header["versions"]
    except (KeyError, TypeError, ValueError) as error:
        raise MoetoolError(f"{folder / 'trace.json'} lacks or misspells a field: {error}") from None
    tokens = _load(folder, "tokens.npy", (sum(document.tokens for document in documents),))
    special = _load(folder, "special.npy", tokens.shape)
    vocabulary = _read_vocabulary(folder)
    domains = len({document.domain for document in documents})
    layers = tuple(_open_layer(folder, *row, tokens=len(tokens), domains=domains) for row in layers_wanted)
    if not layers:
        raise MoetoolError(f"{folder} has no layers")
    _check_documents(folder, documents)
    return RoutingTrace(
        model,
        documents,
        tokens.astype(np.int32, copy=False),
        special.astype(bool),
        vocabulary,
        layers,
        settings,
        versions,
    )


def _read_document(fields: Mapping[str, Any]) -> TraceDocument:
    document = TraceDocument(**fields)
    for name in ("id", "domain", "group", "sha256"):
        if not isinstance(getattr(document, name), str):
            raise TypeError(f"{name} of a document is no string")
    if type(document.start) is not int or type(document.tokens) is not int or document.tokens < 0:
        raise TypeError(f"start or tokens of document {document.id!r} is no whole number")
    return document


def _check_documents(folder: Path, documents: Sequence[TraceDocument]) -> None:
    start = 0
    for document in documents:
        if document.start != start or document.tokens < 0:
            raise MoetoolError(f"{folder}: document {document.id!r} starts at token {document.start}, not {start}")
        start += document.tokens


def _read_vocabulary(folder: Path) -> dict[int, str]:
    path = folder / "vocabulary.json"
    if not path.is_file():
        return {}
    try:
        return {int(key): str(text) for key, text in json.loads(path.read_text(encoding="utf-8")).items()}
    except (ValueError, AttributeError) as error:
        raise MoetoolError(f"{path} is no map from token id to text: {error}") from None


def _open_layer(
    folder: Path, layer: int, experts: int, experts_per_token: int, scoring: str | None, *, tokens: int, domains: int
) -> TraceLayer:
    chosen = _load(folder, layer_file(layer, "chosen"), (tokens, experts_per_token))
    if chosen.dtype.kind not in "ui":
        raise MoetoolError(f"{folder}: layer {layer}: chosen experts are {chosen.dtype}, not integers")
    if tokens and int(chosen.max()) >= experts:
        raise MoetoolError(f"{folder}: layer {layer} chose expert {int(chosen.max())} of {experts}")
    return TraceLayer(
        layer,
        experts,
        experts_per_token,
        scoring,
        chosen,
        _load(folder, layer_file(layer, "weight"), (tokens, experts_per_token), optional=True),
        _load(folder, layer_file(layer, "scores"), (tokens, len(SCORE_COLUMNS)), optional=True),
        _load(folder, layer_file(layer, "probability"), (domains, experts), optional=True),
    )


def _load(folder: Path, name: str, shape: tuple[int, ...], optional: bool = False) -> Any:
    """Map one ``.npy`` file of a known shape; pickled objects are refused."""
    path = folder / name
    if not path.is_file():
        if optional:
            return None
        raise MoetoolError(
            f"the trace {folder} is unfinished: {name} is missing", "run the same moetool capture again: it resumes"
        )
    try:
        with path.open("rb") as file:
            np.lib.format.read_magic(file)  # np.load would open archives too
        array = np.load(path, mmap_mode="r" if int(np.prod(shape)) else None, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise MoetoolError(f"{path} cannot be read: {error}") from None
    if array.shape != shape:
        raise MoetoolError(f"{path} has shape {list(array.shape)}, not {list(shape)} as trace.json says")
    return array


def join_traces(traces: Sequence[RoutingTrace]) -> RoutingTrace:
    """One trace of the documents of several, which must come from the same model and layers.

    Raises MoetoolError where models or layers differ, or where a document occurs twice.
    """
    first = traces[0]
    if len(traces) == 1:
        return first
    for other in traces[1:]:
        if _identity(other) != _identity(first):
            raise MoetoolError(
                f"traces of different models or layers cannot be joined: {first.model.get('name')} "
                f"and {other.model.get('name')}",
                "give traces of one model: the same config, revision and --layers",
            )
    documents, start, seen = [], 0, set()
    for document in (document for trace in traces for document in trace.documents):
        key = (document.domain, document.id, document.sha256)
        if key in seen:
            raise MoetoolError(
                f"document {document.id!r} of domain {document.domain!r} is in two of the traces",
                "a document is counted once: join traces of different documents, with ids of their own",
            )
        seen.add(key)
        documents.append(TraceDocument(**{**asdict(document), "start": start}))
        start += document.tokens
    return RoutingTrace(
        first.model,
        tuple(documents),
        np.concatenate([trace.tokens for trace in traces]),
        np.concatenate([trace.special for trace in traces]),
        {key: text for trace in traces for key, text in trace.vocabulary.items()},
        tuple(_join_layer(traces, index) for index in range(len(first.layers))),
        first.settings,
        first.versions,
    )


def _identity(trace: RoutingTrace) -> tuple[Any, ...]:
    layers = tuple((layer.layer, layer.experts, layer.experts_per_token) for layer in trace.layers)
    return trace.model.get("config_sha256"), trace.model.get("revision"), trace.model.get("family"), layers


def _join_layer(traces: Sequence[RoutingTrace], index: int) -> TraceLayer:
    parts = [trace.layers[index] for trace in traces]
    first = parts[0]

    def concatenate(arrays: list[Any]) -> Any:
        return None if any(array is None for array in arrays) else np.concatenate(arrays)

    return TraceLayer(
        first.layer,
        first.experts,
        first.experts_per_token,
        first.scoring,
        np.concatenate([part.chosen for part in parts]),
        concatenate([part.weight for part in parts]),
        concatenate([part.scores for part in parts]),
        _join_probability(traces, [part.probability for part in parts]),
    )


def _join_probability(
    traces: Sequence[RoutingTrace], parts: Sequence[NDArray[np.floating[Any]] | None]
) -> NDArray[np.float32] | None:
    """Means per domain, weighted by the counted tokens of each trace."""
    domains = list(dict.fromkeys(domain for trace in traces for domain in trace.domains))
    total: NDArray[np.float64] | None = None
    weight = np.zeros(len(domains))
    for trace, part in zip(traces, parts, strict=True):
        if part is None:
            return None
        rows = [domains.index(domain) for domain in trace.domains]
        tokens = trace.counted_tokens_of_domain()
        if total is None:
            total = np.zeros((len(domains), part.shape[1]))
        total[rows] += np.where(tokens[:, None] > 0, part, 0.0) * tokens[:, None]
        weight[rows] += tokens
    assert total is not None
    return (total / np.maximum(weight, 1)[:, None]).astype(np.float32)
