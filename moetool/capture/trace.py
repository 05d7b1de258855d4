"""The routing of every token of a corpus: enters as a folder of numpy files, leaves as a RoutingTrace (no torch here).

Shape suffixes used throughout moetool: ``T`` tokens, ``L`` MoE layers, ``E`` experts, ``K`` chosen per token,
``D`` domains, ``G`` groups of documents, ``V`` vocabulary.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetool.errors import MoetoolError

SCHEMA = "moetool.trace/1.0"
PROBABILITY_BITS = 36
"""``probability_sum`` counts in units of 2**-36: whole numbers add up to the same sum in any order and number of parts.

Scaling float32 by a power of two is exact. A probability of 2**-12 or more is a whole number of units; smaller ones are
rounded by half a unit at most, and so is a mean: by 7.3e-12, less than float32 rounds a mean of 2**-12 itself."""
MOST_COUNTED_TOKENS = 2 ** (62 - PROBABILITY_BITS)
"""Of one domain: int64 holds the sums of as many probabilities, rounded up or a little above 1 as they may be."""
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
    prompt_tokens: int | None = None
    """How many tokens, from the first, were read at once (prefill), the rest one by one (decode); None where all were
    read at once, or where the recording does not tell."""
    task: str = ""
    """What was asked of the text; empty where the corpus has no tasks."""


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
    dropped: NDArray[np.bool_] | None = None
    """``[T, K]`` True where the chosen expert did not run, its capacity used up (Switch); None without capacity."""
    rerouted: NDArray[np.uint8] | None = None
    """``[T]`` how many of the chosen experts only the router's correction bias brought in; None without a bias."""
    probability_sum: NDArray[np.int64] | None = None
    """``[D, E]`` the sum behind ``probability`` in units of 2**-PROBABILITY_BITS, with which parts are joined exactly;
    written for shards only."""
    zero_experts: int = 0
    """The last so many experts compute nothing."""
    expert_groups: int = 0
    """How many groups of neighbouring experts there are, of which a token may choose from a few only; else 0."""
    part: str = ""
    """``attention`` or ``decoder`` where the number goes on after the last layer; else empty."""


@dataclass(frozen=True, slots=True)
class TraceShard:
    """Which part of a whole corpus a trace holds."""

    index: int
    """1 to ``count``."""
    count: int
    whole: str
    """SHA-256 of how the whole corpus was dealt out; equal for all shards of one whole."""
    documents: tuple[int, ...]
    """Index in the whole corpus of each document of the trace, in rising order."""


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
    shard: TraceShard | None = None
    """None for the trace of a whole corpus."""

    @property
    def domains(self) -> tuple[str, ...]:
        """Domain names in the order of their first document; axis ``D`` of ``probability``."""
        return tuple(dict.fromkeys(document.domain for document in self.documents))

    @property
    def load_only(self) -> bool:
        """Whether only the number of tokens per document and expert was recorded: which token chose what is not
        known then, and ``chosen`` deals each document's counts out to its tokens in an arbitrary way."""
        return bool(self.settings.get("load_only"))

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

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks in the order of their first document; empty where the corpus has none."""
        return tuple(dict.fromkeys(document.task for document in self.documents if document.task))

    def counted_tokens_of_domain(self) -> NDArray[np.int64]:
        """``[D]`` tokens that statistics count, per domain."""
        return counted_tokens_of_domain(self.documents, self.special)


def counted_tokens_of_domain(documents: Sequence[TraceDocument], special: NDArray[np.bool_]) -> NDArray[np.int64]:
    """``[D]`` tokens that are not special, by domain in the order of its first document."""
    index = {domain: i for i, domain in enumerate(dict.fromkeys(document.domain for document in documents))}
    own = np.array([index[document.domain] for document in documents], dtype=np.int64)
    domain = np.repeat(own, [document.tokens for document in documents])
    return np.bincount(domain[~special], minlength=len(index)).astype(np.int64)


def mean_probability(total: NDArray[np.int64], counted: NDArray[np.int64]) -> NDArray[np.float32]:
    """``[D, E]`` mean router probability from ``probability_sum`` and the counted tokens ``[D]`` of each domain."""
    return (total / 2.0**PROBABILITY_BITS / np.maximum(counted, 1)[:, None]).astype(np.float32)


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
    except (OSError, ValueError, RecursionError) as error:
        raise MoetoolError(f"{path} cannot be read: {error}") from None
    schema = header.get("schema", "") if isinstance(header, dict) else ""
    if not isinstance(schema, str) or schema.split(".")[:2] != SCHEMA.split(".")[:2] or "/1." not in schema:
        raise MoetoolError(f"{path} has schema {schema!r}; this moetool reads {SCHEMA}")
    return dict(header)


def open_trace(folder: Path | str) -> RoutingTrace:
    """Map a finished trace into memory; MoetoolError names what is missing or wrong."""
    folder = Path(folder)
    header = read_header(folder)
    try:
        documents = tuple(_read_document(document) for document in header["documents"])
        layers_wanted = [_read_layer(row) for row in header["layers"]]
        model, settings, versions = header["model"], header["settings"], header["versions"]
        shard = _read_shard(header["shard"], len(documents)) if "shard" in header else None
        if not all(isinstance(mapping, dict) for mapping in (model, settings, versions)):
            raise TypeError("model, settings or versions are no mappings")
        numbers = [fields["layer"] for fields in layers_wanted]
        if any(after <= before for before, after in pairwise(numbers)):
            raise ValueError("layers do not rise")
        if not isinstance(settings.get("load_only", False), bool):
            raise TypeError("load_only is neither true nor false")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise MoetoolError(f"{folder / 'trace.json'} lacks or misspells a field: {error}") from None
    tokens = _load(folder, "tokens.npy", (sum(document.tokens for document in documents),))
    special = _load(folder, "special.npy", tokens.shape)
    _check_tokens(folder, tokens, special)
    vocabulary = _read_vocabulary(folder)
    domains = len({document.domain for document in documents})
    layers = tuple(_open_layer(folder, fields, len(tokens), domains) for fields in layers_wanted)
    if not layers:
        raise MoetoolError(f"{folder} has no layers")
    _check_documents(str(folder), documents)
    return RoutingTrace(
        model,
        documents,
        tokens.astype(np.int32, copy=False),
        special.astype(bool),
        vocabulary,
        layers,
        settings,
        versions,
        shard,
    )


def check_trace(trace: RoutingTrace, where: str) -> None:
    """Refuse what ``open_trace`` would, before a trace is written; ``where`` names it in the MoetoolError."""
    try:
        for document in trace.documents:
            _read_document(describe_document(document))
        for layer in trace.layers:
            _read_layer(describe_layer(layer))
    except (TypeError, ValueError) as error:
        raise MoetoolError(f"{where} makes no trace: {error}") from None
    _check_documents(where, trace.documents)
    for layer in trace.layers:
        _check_choices(where, layer)


def _read_document(fields: Mapping[str, Any]) -> TraceDocument:
    document = TraceDocument(**fields)
    for name in ("id", "domain", "group", "sha256", "task"):
        if not isinstance(getattr(document, name), str):
            raise TypeError(f"{name} of a document is no string")
    if type(document.start) is not int or type(document.tokens) is not int or document.tokens < 0:
        raise TypeError(f"start or tokens of document {document.id!r} is no whole number")
    prompt = document.prompt_tokens
    if prompt is not None and (type(prompt) is not int or not 0 <= prompt <= document.tokens):
        raise TypeError(f"prompt_tokens of document {document.id!r} is no number of its tokens")
    return document


def _read_shard(fields: Mapping[str, Any], documents: int) -> TraceShard:
    shard = TraceShard(fields["index"], fields["count"], fields["whole"], tuple(fields["documents"]))
    numbers = (shard.index, shard.count, *shard.documents)
    if not all(type(number) is int for number in numbers) or not isinstance(shard.whole, str):
        raise TypeError("index, count or documents of the shard are no whole numbers, or whole is no string")
    if not 1 <= shard.index <= shard.count or len(shard.documents) != documents:
        raise ValueError(f"shard {shard.index} of {shard.count} has {len(shard.documents)} documents, not {documents}")
    if any(after <= before for before, after in zip((-1, *shard.documents), shard.documents, strict=False)):
        raise ValueError("documents of the shard do not rise")
    return shard


def _check_tokens(folder: Path, tokens: NDArray[Any], special: NDArray[Any]) -> None:
    if tokens.dtype.kind not in "iu":
        raise MoetoolError(f"{folder / 'tokens.npy'} holds {tokens.dtype}, not integers")
    if special.dtype != np.bool_ and not (special.dtype.kind in "iu" and np.isin(special, (0, 1)).all()):
        raise MoetoolError(f"{folder / 'special.npy'} holds {special.dtype}, and not only 0 and 1")


def _check_documents(where: str, documents: Sequence[TraceDocument]) -> None:
    start = 0
    for document in documents:
        if document.start != start or document.tokens < 0:
            raise MoetoolError(f"{where}: document {document.id!r} starts at token {document.start}, not {start}")
        start += document.tokens


def _read_vocabulary(folder: Path) -> dict[int, str]:
    path = folder / "vocabulary.json"
    if not path.is_file():
        return {}
    try:
        return {int(key): str(text) for key, text in json.loads(path.read_text(encoding="utf-8")).items()}
    except (ValueError, AttributeError, RecursionError) as error:
        raise MoetoolError(f"{path} is no map from token id to text: {error}") from None


def describe_document(document: TraceDocument) -> dict[str, Any]:
    """The row of ``trace.json`` for a document; what is rarely known is left out where it is not."""
    row = asdict(document)
    if document.prompt_tokens is None:
        del row["prompt_tokens"]
    if not document.task:
        del row["task"]
    return row


def describe_layer(layer: Any) -> dict[str, Any]:
    """The row of ``trace.json`` for a layer of a trace or of a model."""
    rare = {name: getattr(layer, name) for name in ("zero_experts", "expert_groups", "part") if getattr(layer, name)}
    return {name: getattr(layer, name) for name in ("layer", "experts", "experts_per_token", "scoring")} | rare


def _read_layer(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields of a TraceLayer that a row of ``trace.json`` has, checked."""
    names = ("layer", "experts", "experts_per_token", "zero_experts", "expert_groups")
    numbers = {name: row.get(name, 0) for name in names}
    if not all(type(number) is int for number in numbers.values()):
        raise TypeError(f"{numbers} are not all whole numbers")
    scoring, part = row.get("scoring"), row.get("part", "")
    if not isinstance(scoring, str | None) or not isinstance(part, str):
        raise TypeError("scoring or part of a layer is no string")
    if numbers["layer"] < 0 or not 1 <= numbers["experts_per_token"] <= numbers["experts"]:
        raise ValueError(f"{numbers} are impossible")
    if not 0 <= numbers["zero_experts"] < numbers["experts"] or numbers["expert_groups"] < 0:
        raise ValueError(f"{numbers} are impossible")
    if numbers["expert_groups"] and numbers["experts"] % numbers["expert_groups"]:
        raise ValueError(f"{numbers} are impossible")
    return {**numbers, "scoring": scoring, "part": part}


def _open_layer(folder: Path, fields: Mapping[str, Any], tokens: int, domains: int) -> TraceLayer:
    layer, experts = fields["layer"], fields["experts"]
    by_slot, by_domain = (tokens, fields["experts_per_token"]), (domains, experts)
    found = TraceLayer(
        **fields,
        chosen=_load(folder, layer_file(layer, "chosen"), by_slot),
        weight=_load_floats(folder, layer_file(layer, "weight"), by_slot),
        scores=_load_floats(folder, layer_file(layer, "scores"), (tokens, len(SCORE_COLUMNS))),
        probability=_load_floats(folder, layer_file(layer, "probability"), by_domain),
        dropped=_load_typed(folder, layer_file(layer, "dropped"), by_slot, np.bool_),
        rerouted=_load_typed(folder, layer_file(layer, "rerouted"), (tokens,), np.uint8),
        probability_sum=_load_typed(folder, layer_file(layer, "probability_sum"), by_domain, np.int64),
    )
    _check_choices(str(folder), found)
    forget_pages(found.chosen)
    return found


def _check_choices(where: str, layer: TraceLayer) -> None:
    """Choices must be of experts that exist; that no token has one twice would take too long to see."""
    chosen, rerouted = layer.chosen, layer.rerouted
    if chosen.dtype.kind not in "ui" or chosen.dtype.itemsize > 4:
        raise MoetoolError(f"{where}: layer {layer.layer}: chosen experts are {chosen.dtype}, not integers of 32 bits")
    if chosen.size and not 0 <= int(chosen.min()) <= int(chosen.max()) < layer.experts:
        wrong = int(chosen.min() if chosen.min() < 0 else chosen.max())
        raise MoetoolError(f"{where}: layer {layer.layer} chose expert {wrong} of {layer.experts}")
    if rerouted is not None and int(rerouted.max(initial=0)) > layer.experts_per_token:
        most = f"{int(rerouted.max())} of {layer.experts_per_token}"
        raise MoetoolError(f"{where}: layer {layer.layer} rerouted {most} experts of a token")


def forget_pages(array: NDArray[Any] | None) -> None:
    """Let go of the memory of a mapped array, which comes back from its file when it is read again."""
    mapped = getattr(array, "_mmap", None)
    if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def _load_floats(folder: Path, name: str, shape: tuple[int, ...]) -> Any:
    array = _load(folder, name, shape, optional=True)
    if array is not None and (array.dtype.kind not in "fiu" or array.dtype.itemsize > 8):
        raise MoetoolError(f"{folder / name} holds {array.dtype}, not numbers")
    return array


def _load_typed(folder: Path, name: str, shape: tuple[int, ...], dtype: type[np.generic]) -> Any:
    array: NDArray[Any] | None = _load(folder, name, shape, optional=True)
    if array is not None and array.dtype != dtype:
        raise MoetoolError(f"{folder / name} holds {array.dtype}, not {np.dtype(dtype)}")
    return array


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
    except Exception as error:  # a damaged header raises whatever its bytes happen to mean
        raise MoetoolError(f"{path} cannot be read: {error}") from None
    if array.shape != shape:
        raise MoetoolError(f"{path} has shape {list(array.shape)}, not {list(shape)} as trace.json says")
    return array
