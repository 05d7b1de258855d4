"""What one source of an import holds: arrays of a reader enter and are checked, a Recording leaves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import gcd
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from moetool.errors import MoetoolError
from moetool.model.facts import ModelFacts

MOST_EXPERTS = 2**16
"""A trace keeps expert ids in 16 bits."""
MOST_LAYERS = 100_000
"""No model has so many; a number above is that of something else."""
ASK_EXPERTS_PER_TOKEN = "give --experts-per-token N, or --model MODEL"


@dataclass(frozen=True, slots=True)
class KnownModel:
    """The model that was recorded, where it is known."""

    facts: ModelFacts
    identity: Mapping[str, Any]
    """As in a RoutingTrace: ``name``, ``revision``, ``family``, ``config_sha256``."""
    scoring: str | None


@dataclass(frozen=True, slots=True)
class Known:
    """What is known beside the recording."""

    model: KnownModel | None = None
    experts: int | None = None
    experts_per_token: int | None = None
    decoder_layers: int | None = None

    def experts_of(self, layer: int, recorded: int | None = None) -> int | None:
        """How many experts a router of a layer chooses from; MoetoolError where two of those who say it differ.

        ``recorded`` is what the recording says itself.
        """
        facts = None if self.model is None else self.model.facts
        by_model = None if facts is None else self._moe_layer(facts, layer).experts + facts.zero_experts
        return _agreed(
            f"experts in layer {layer}",
            {"--experts": self.experts, "--model": by_model, "the recording": recorded},
        )

    def experts_per_token_of(self, layer: int, recorded: int | None = None) -> int | None:
        """How many of them a token chooses, in the same way."""
        by_model = None if self.model is None else self._moe_layer(self.model.facts, layer).experts_per_token
        return _agreed(
            f"experts per token in layer {layer}",
            {"--experts-per-token": self.experts_per_token, "--model": by_model, "the recording": recorded},
        )

    @staticmethod
    def _moe_layer(facts: ModelFacts, layer: int) -> Any:
        for moe in facts.moe_layers:
            if moe.layer == layer:
                return moe
        raise MoetoolError(
            f"layer {layer} has routing in the recording, and no experts in {facts.name}",
            "name the model that was recorded",
        )


@dataclass(frozen=True, slots=True)
class RecordedDocument:
    """One input sequence of a recording."""

    id: str
    tokens: int
    prompt_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class RecordedLayer:
    """Routing of all tokens of a recording in one layer, checked."""

    experts: int | None
    """None where nobody says it."""
    chosen: NDArray[np.uint16]
    """``[T, K]``"""
    weight: NDArray[np.float16] | None = None
    """``[T, K]``"""
    dropped: NDArray[np.bool_] | None = None
    """``[T, K]``"""


@dataclass(frozen=True, slots=True)
class Recording:
    """What one source holds."""

    documents: tuple[RecordedDocument, ...]
    layers: Mapping[int, RecordedLayer]
    """By decoder layer number, in rising order."""
    token_ids: NDArray[np.int32] | None = None
    """``[T]``"""
    load_only: bool = False
    """Only counts were recorded, see RoutingTrace."""


class Reader(Protocol):
    """Reads one source; MoetoolError names the file and the record that is wrong."""

    def __call__(self, path: Path, known: Known, note: Callable[[str], None]) -> Recording:
        """``note`` is told what was left out or taken for granted."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the rows of arrays come from, for messages."""

    path: Path
    documents: Sequence[RecordedDocument]

    def token(self, row: int) -> str:
        """Document and token of a row of the arrays, both counted from 1."""
        ends = np.cumsum([document.tokens for document in self.documents])
        index = int(np.searchsorted(ends, row, side="right"))
        first = int(ends[index]) - self.documents[index].tokens
        return f"{self.path}: document {index + 1} ({self.documents[index].id}), token {row - first + 1}"


def record_layer(
    place: Place,
    layer: int,
    chosen: NDArray[Any],
    known: Known,
    *,
    recorded_experts: int | None = None,
    weight: NDArray[Any] | None = None,
    dropped: NDArray[np.bool_] | None = None,
) -> RecordedLayer:
    """Check the choices ``[T, K]`` and weights ``[T, K]`` of one layer.

    MoetoolError where a trace cannot hold so many experts; else it names the first token that chose an expert that does
    not exist, or one expert twice, or whose weight is no number that 16 bits hold.
    """
    known.experts_per_token_of(layer, chosen.shape[1])
    experts = known.experts_of(layer, recorded_experts)
    most = MOST_EXPERTS if experts is None else experts
    if not 1 <= most <= MOST_EXPERTS:
        raise MoetoolError(f"{place.path}: layer {layer}: there cannot be {most:,} experts, but 1 to {MOST_EXPERTS:,}")
    outside = (chosen.min(axis=1) < 0) | (chosen.max(axis=1) >= most)
    _refuse(place, layer, outside, f"expert ids must be 0 to {most - 1:,}")
    _refuse(place, layer, repeats(chosen), "an expert is chosen twice")
    if weight is not None:
        with np.errstate(over="ignore"):
            weight = weight.astype(np.float16)
        _refuse(place, layer, ~np.isfinite(weight).all(axis=1), "a weight is not finite, or too large for 16 bits")
    return RecordedLayer(experts, chosen.astype(np.uint16), weight, dropped)


def as_token_ids(what: str, ids: NDArray[Any]) -> NDArray[np.int32]:
    """Token ids in 32 bits; MoetoolError names the first that is negative or larger."""
    wrong = (ids < 0) | (ids > np.iinfo(np.int32).max)
    if wrong.any():
        raise MoetoolError(
            f"{what}: token {int(wrong.argmax()) + 1} has id {int(ids[wrong.argmax()])}", "ids are 0 to 2**31 - 1"
        )
    return ids.astype(np.int32)


def is_integer(array: NDArray[Any]) -> bool:
    """Whether an array holds whole numbers, all of which int64 holds too."""
    return array.dtype.kind in "iu" and np.can_cast(array.dtype, np.int64)


def repeats(rows: NDArray[Any]) -> NDArray[np.bool_]:
    """``[T]`` True for the rows of ``[T, K]`` that hold a number twice."""
    ordered = np.sort(rows, axis=1)
    found: NDArray[np.bool_] = (ordered[:, 1:] == ordered[:, :-1]).any(axis=1)
    return found


def possible_experts_per_token(ids: NDArray[Any], lengths: Sequence[int]) -> list[int]:
    """Every K by which all runs of ``lengths`` ids split into choices of different experts.

    With K all its divisors fit too, so that the ids alone never prove which it is.
    """
    common = gcd(*lengths)
    return [
        k
        for k in range(1, min(common, 64) + 1)
        if common % k == 0 and not repeats(np.asarray(ids).reshape(-1, k)).any()
    ]


def _refuse(place: Place, layer: int, wrong: NDArray[np.bool_], what: str) -> None:
    if wrong.any():
        raise MoetoolError(f"{place.token(int(wrong.argmax()))}, layer {layer}: {what}")


def _agreed(what: str, answers: Mapping[str, int | None]) -> int | None:
    said = {who: answer for who, answer in answers.items() if answer is not None}
    if len(set(said.values())) > 1:
        listed = ", ".join(f"{answer} by {who}" for who, answer in said.items())
        raise MoetoolError(f"{what}: {listed}", "give those of the model that was recorded")
    return next(iter(said.values()), None)
