"""One forward pass of a model that writes: what its routers did with the tokens it read enters, a Step leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from moetool.capture.batches import Batch
from moetool.capture.generation_text import TextStream
from moetool.capture.handover import to_host
from moetool.capture.record import LayerRecorder
from moetool.capture.routers import DecoderStack, MoELayer
from moetool.capture.scores import distribution
from moetool.capture.seams import Routing, tap
from moetool.capture.tokens import token_texts
from moetool.capture.trace import TraceLayer, chosen_dtype

REFUSED = 12
"""How many of the experts that a router refused are kept, the most probable ones."""


@dataclass(frozen=True, slots=True)
class Preferences:
    """What a router thought of the experts that it chose, and of the likeliest ones that it refused; ``R`` of these."""

    chosen: NDArray[np.float32]
    """``[N, K]`` probabilities of the chosen experts, in the order of ``TraceLayer.chosen``."""
    refused: NDArray[np.unsignedinteger[Any]]
    """``[N, R]`` experts, the likeliest first."""
    refused_probability: NDArray[np.float32]
    """``[N, R]``"""


@dataclass(frozen=True, slots=True)
class RoutedLayer:
    """One MoE layer in one forward pass."""

    routing: TraceLayer
    preferences: Preferences | None
    """None where the router shows no distribution."""


@dataclass(frozen=True, slots=True)
class Step:
    """A forward pass: ``N`` tokens were read, of which the last ones decided what comes next."""

    start: int
    """Tokens before it."""
    tokens: NDArray[np.int32]
    """``[N]`` ids; all of the prompt in the first step, one in the others."""
    texts: tuple[str, ...]
    """``[N]`` what each adds to the text."""
    special: NDArray[np.bool_]
    """``[N]``"""
    probability: NDArray[np.float32]
    """``[N]`` that the model gave the token before it was read; NaN for the prompt."""
    layers: tuple[RoutedLayer, ...]
    next_text: str
    """The token that was picked."""
    next_probability: float


class StepRecorder:
    """Collects steps while ``generate`` runs; a step counts once its next token is picked.

    Attributes: ``steps`` so far, and why the text ``stopped``.
    """

    def __init__(
        self,
        stack: DecoderStack,
        tokenizer: Any,
        prompt: list[int],
        max_new_tokens: int,
        ends: frozenset[int],
        watch: Callable[[Step], None],
    ) -> None:
        self.moe_layers, self.tokenizer, self.prompt = stack.moe_layers, tokenizer, prompt
        self.max_new_tokens, self.ends, self.watch = max_new_tokens, ends, watch
        self.steps: list[Step] = []
        self.stopped: Literal["length", "end", "interrupted"] = "interrupted"
        self._special_ids = np.array(sorted(tokenizer.all_special_ids), dtype=np.int32)
        self._text = TextStream(tokenizer)
        self._ids = list(prompt)
        self._read = 0
        self._recorders: dict[MoELayer, LayerRecorder] = {}
        self._preferences: dict[MoELayer, tuple[torch.Tensor, ...] | None] = {}
        self._batch: Batch | None = None
        self._logits: torch.Tensor | None = None
        self._next_probability = float("nan")

    @contextmanager
    def attached(self, model: Any) -> Iterator[None]:
        """Record every forward pass inside."""
        handle = model.register_forward_hook(self._on_output)
        try:
            with tap(self.moe_layers, self._on_routing):
                yield
        finally:
            handle.remove()

    def special(self, tokens: NDArray[np.int32]) -> NDArray[np.bool_]:
        """``[N]`` whether the tokenizer calls a token special."""
        return np.isin(tokens, self._special_ids)

    def _on_output(self, module: Any, args: Any, output: Any) -> None:
        self._logits = output.logits[:, -1].float()

    def _on_routing(self, moe: MoELayer, routing: Routing) -> None:
        if self._batch is None:
            self._batch = self._make_batch(len(routing.chosen))
        self._preferences[moe] = _preferences(moe, routing)
        counted = np.array([int(self._batch.counted.sum())])
        self._recorders[moe] = LayerRecorder(moe, len(self._batch.slots), counted)
        self._recorders[moe].add(self._batch, routing)

    def _make_batch(self, count: int) -> Batch:
        """The tokens of this forward pass as a batch of one row; all are real."""
        tokens = np.array(self._ids[self._read : self._read + count], dtype=np.int32)
        places, ids = torch.arange(count), torch.from_numpy(tokens.astype(np.int64))[None]
        counted = torch.from_numpy(~self.special(tokens))
        return Batch(ids, torch.ones_like(ids), places, places, counted, torch.zeros_like(places))

    def stop(self, input_ids: torch.Tensor, scores: Any, **others: Any) -> torch.Tensor:
        """Called by ``generate`` once a token is picked: the step is through; whether the text is over."""
        if self.stopped == "interrupted":  # on MPS transformers runs once more before it looks at the answer
            self._finish_step(int(input_ids[0, -1]))
        return torch.full((1,), self.stopped != "interrupted", device=input_ids.device)

    def _finish_step(self, picked: int) -> None:
        assert self._logits is not None
        tokens = np.array(self._ids[self._read :], dtype=np.int32)
        probability = np.full(len(tokens), np.nan, dtype=np.float32)
        probability[-1] = self._next_probability  # of the prompt it is NaN still
        self._next_probability = float(self._logits.softmax(-1)[0, picked])
        step = Step(
            self._read,
            tokens,
            tuple(map(self._text.push, tokens.tolist())),
            self.special(tokens),
            probability,
            tuple(self._finish_layer(moe) for moe in self.moe_layers),
            token_texts(self.tokenizer, [picked])[picked],
            self._next_probability,
        )
        self.steps.append(step)
        self._read, self._batch = len(self._ids), None
        if self._read == len(self.prompt) + self.max_new_tokens:
            self.stopped = "length"
        elif len(self.steps) > 1 and self._ids[-1] in self.ends:
            self.stopped = "end"
        self._ids.append(picked)
        self.watch(step)

    def _finish_layer(self, moe: MoELayer) -> RoutedLayer:
        routing, found = self._recorders.pop(moe).finish(), self._preferences.pop(moe)
        if found is None:
            return RoutedLayer(routing, None)
        chosen, refused, probability = (part.numpy() for part in found)
        return RoutedLayer(routing, Preferences(chosen, refused.astype(chosen_dtype(moe.experts)), probability))


def _preferences(moe: MoELayer, routing: Routing) -> tuple[torch.Tensor, ...] | None:
    """Probabilities ``[N, K]`` of the chosen experts, the likeliest refused ones ``[N, R]`` and theirs, on the host."""
    if routing.logits is None or moe.family.scoring == "unknown":
        return None
    chosen = routing.chosen.long()
    probability = distribution(moe, routing.logits)[1]
    refused = probability.scatter(1, chosen, -1.0).topk(min(REFUSED, moe.experts - moe.experts_per_token), dim=-1)
    parts = (probability.gather(1, chosen), refused.indices, refused.values)
    return tuple(to_host(part) for part in parts)
