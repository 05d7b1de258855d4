"""From hook calls to the arrays of one layer: keeps real tokens only, reduces on the device, copies without waiting."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from moetool.capture.batches import Batch
from moetool.capture.handover import to_host
from moetool.capture.routers import MoELayer
from moetool.capture.scores import router_scores
from moetool.capture.seams import Routing
from moetool.capture.tokens import EncodedCorpus
from moetool.capture.trace import (
    MOST_COUNTED_TOKENS,
    PROBABILITY_BITS,
    SCORE_COLUMNS,
    TraceLayer,
    chosen_dtype,
    mean_probability,
)
from moetool.errors import MoetoolError

TOP1_PROBABILITY = SCORE_COLUMNS.index("top1_probability")


@dataclass(frozen=True, slots=True)
class _Queued:
    """The real tokens of one forward call, on their way to the host."""

    slots: torch.Tensor
    chosen: torch.Tensor
    weight: torch.Tensor
    scores: torch.Tensor | None
    probability: torch.Tensor | None
    """``[D, E]`` int64 sums over the counted tokens."""
    dropped: torch.Tensor | None
    rerouted: torch.Tensor | None
    arrived: Any
    """The CUDA event after the copies; None elsewhere."""


class LayerRecorder:
    """Collects one router's choices over a corpus of ``tokens``, of which ``counted`` ``[D]`` are not special.

    ``add`` only queues work on the device. ``keep`` says that the batch is through, and writes into the arrays what has
    arrived, the newest batch excepted, so that nobody waits for a device that is still at work; ``discard`` forgets the
    batch, as it did not fit the memory.
    """

    def __init__(self, moe: MoELayer, tokens: int, counted: NDArray[np.int64]) -> None:
        self.moe = moe
        self.chosen: NDArray[Any] = np.zeros((tokens, moe.experts_per_token), dtype=chosen_dtype(moe.experts))
        self.weight = np.zeros((tokens, moe.experts_per_token), dtype=np.float16)
        self.scores = np.zeros((tokens, len(SCORE_COLUMNS)), dtype=np.float16)
        self.dropped = np.zeros((tokens, moe.experts_per_token), dtype=bool)
        self.rerouted = np.zeros(tokens, dtype=np.uint8)
        self.counted = counted
        self.probability_sum = np.zeros((len(counted), moe.experts), dtype=np.int64)
        self.filled = 0
        self.has_logits, self.has_capacity, self.has_bias = True, False, False
        self.added: list[_Queued] = []
        self.kept: list[_Queued] = []

    def add(self, batch: Batch, routing: Routing) -> None:
        """Queue the real tokens of one forward call."""
        real = batch.real.to(routing.chosen.device)
        chosen = routing.chosen[real]
        scores = sums = rerouted = None
        if routing.logits is not None and self.moe.family.scoring != "unknown":
            scores, probability, rerouted = router_scores(self.moe, routing.logits[real], chosen)
            sums = self._sum(batch, probability)
        dropped = None if routing.dropped is None else routing.dropped[real]
        ids, weight = to_host(chosen.to(torch.int32)), to_host(routing.weight[real].float())
        parts = (scores, sums, dropped, rerouted)
        scores, sums, dropped, rerouted = (None if part is None else to_host(part) for part in parts)
        arrived: Any = None
        if chosen.device.type == "cuda":
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record(torch.cuda.current_stream(chosen.device))
        self.added.append(_Queued(batch.slots, ids, weight, scores, sums, dropped, rerouted, arrived))

    def _sum(self, batch: Batch, probability: torch.Tensor) -> torch.Tensor:
        """``[D, E]`` sums of probabilities over the counted tokens of each domain, as int64 multiples of 2**-36."""
        device = probability.device
        fixed = (probability * 2.0**PROBABILITY_BITS).round().to(torch.int64)
        fixed *= batch.counted.to(device)[:, None]
        sums = torch.zeros(self.probability_sum.shape, dtype=torch.int64, device=device)
        return sums.index_add_(0, batch.domain.to(device), fixed)

    def keep(self) -> None:
        """The batch is through; write those before it into the arrays."""
        self._write(self.kept)
        self.kept, self.added = self.added, []

    def discard(self) -> None:
        """The batch failed and will be given again, in parts."""
        self.added = []

    def _write(self, entries: list[_Queued]) -> None:
        for entry in entries:
            if entry.arrived is not None:
                entry.arrived.synchronize()
            rows = entry.slots.numpy()
            ids, weights = entry.chosen.numpy(), entry.weight.numpy()
            scores = None if entry.scores is None else entry.scores.numpy()
            self._check(ids, weights, None if scores is None else scores[:, TOP1_PROBABILITY])
            self.chosen[rows] = ids
            with np.errstate(over="ignore"):
                self.weight[rows] = weights
                if scores is not None:
                    self.scores[rows] = scores
            if entry.dropped is not None:
                self.has_capacity = True
                self.dropped[rows] = entry.dropped.numpy()
            if entry.rerouted is not None:
                self.has_bias = True
                self.rerouted[rows] = entry.rerouted.numpy()
            if entry.probability is None:
                self.has_logits = False
            else:
                self.probability_sum += entry.probability.numpy()
            self.filled += len(rows)

    def _check(self, ids: NDArray[Any], weights: NDArray[Any], highest: NDArray[Any] | None) -> None:
        if not np.isfinite(weights).all():
            raise MoetoolError(
                f"layer {self.moe.layer}: the router's weights are NaN or infinite",
                "the checkpoint may be broken, or float16 overflows: try --dtype float32",
            )
        if highest is not None and not (highest < 2).all():  # NaN too: as a whole number it would be any
            raise MoetoolError(
                f"layer {self.moe.layer}: the router's probabilities are NaN or far above 1",
                "the checkpoint may be broken, or float16 overflows: try --dtype float32",
            )
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < self.moe.experts:
            raise MoetoolError(f"layer {self.moe.layer} chose expert {int(ids.max())} of {self.moe.experts}")

    def finish(self) -> TraceLayer:
        """The router's part of the trace; a token that never reached the router is an error, not a zero."""
        self._write(self.kept + self.added)
        self.kept, self.added = [], []
        if self.filled != len(self.chosen):
            raise MoetoolError(
                f"layer {self.moe.layer}: {self.filled} of {len(self.chosen)} tokens reached its experts",
                "this model skips the layer for some tokens, which is not supported yet",
            )
        return TraceLayer(
            layer=self.moe.layer,
            experts=self.moe.experts,
            experts_per_token=self.moe.experts_per_token,
            scoring=self.moe.scoring,
            chosen=self.chosen,
            weight=self.weight,
            scores=self.scores if self.has_logits else None,
            probability=mean_probability(self.probability_sum, self.counted) if self.has_logits else None,
            dropped=self.dropped if self.has_capacity else None,
            rerouted=self.rerouted if self.has_bias else None,
            probability_sum=self.probability_sum if self.has_logits else None,
            zero_experts=self.moe.zero_experts,
            expert_groups=self.moe.expert_groups,
            part=self.moe.part,
        )


def check_size(corpus: EncodedCorpus) -> None:
    """Refuse a domain whose sums of probabilities could leave int64."""
    tokens: dict[str, int] = {}
    for document in corpus.documents:
        tokens[document.domain] = tokens.get(document.domain, 0) + document.tokens
    for domain, count in tokens.items():
        if count > MOST_COUNTED_TOKENS:
            raise MoetoolError(
                f"domain {domain!r} has {count:,} tokens, and the sums of their probabilities hold"
                f" {MOST_COUNTED_TOKENS:,} only",
                f"use --max-tokens {MOST_COUNTED_TOKENS}, or several domains",
            )


@contextmanager
def one_batch(recorders: Collection[LayerRecorder]) -> Iterator[None]:
    """A batch runs inside: recorders keep what they were given of it, or discard it where it fails."""
    try:
        yield
    except RuntimeError:
        for recorder in recorders:
            recorder.discard()
        raise
    for recorder in recorders:
        recorder.keep()
