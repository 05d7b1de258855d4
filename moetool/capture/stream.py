"""The streaming engine: the whole corpus passes through one decoder layer, then the next.

Any size of model fits one small machine.

The model's own forward runs for every batch and layer, so masks, rotary tables and per-layer arguments are its own: the
layer before the current one returns what it returned for that batch, the earlier ones return what is remembered of
them, or else nothing that could be used unnoticed, and the run stops after the current one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from moetool.capture.batches import Batch, split_like
from moetool.capture.halving import Halving
from moetool.capture.handover import change, poison
from moetool.capture.hidden import HiddenStates
from moetool.capture.pieces import PieceLoader
from moetool.capture.pipeline import in_turn
from moetool.capture.record import LayerRecorder, one_batch
from moetool.capture.routers import DecoderStack, MoELayer
from moetool.capture.seams import tap
from moetool.capture.trace import TraceLayer
from moetool.errors import MoetoolError
from moetool.model.families import Family
from moetool.progress import Progress

STATE_COST_SHARE = 0.05
"""Hidden states are saved for resuming when writing them costs less than this share of the time since the last save."""
DISK_BYTES_PER_SECOND = 500e6
"""A cautious guess of what a disk writes, used only for that decision."""


class _Stop(Exception):  # noqa: N818 - not an error: the forward has done what was wanted of it
    """Ends a forward where its result is known."""


class Streamer:
    """Runs a corpus through a model layer by layer."""

    def __init__(
        self,
        stack: DecoderStack,
        family: Family,
        loader: PieceLoader,
        batches: list[Batch],
        hidden: HiddenStates,
        progress: Progress,
    ) -> None:
        self.stack, self.family, self.loader, self.batches = stack, family, loader, batches
        self.hidden, self.progress, self.device = hidden, progress, loader.device
        self.halving = Halving(progress)
        self.given: Any = None
        """What the batch that is running was handed by the layer before, on the device."""

    def run(self, wanted: Sequence[MoELayer], tokens: int, counted: NDArray[np.int64]) -> Iterator[TraceLayer]:
        """Yield the routing of the wanted MoE layers in order; stops after the last of them."""
        resumed, last = self._restore(min(moe.block for moe in wanted)), max(moe.block for moe in wanted)
        embedding = self._embedding_path()
        needs_ids = self.family.token_ids
        self._load_outer(without=[embedding] if resumed and not needs_ids else [])
        if not resumed:
            self._embed()
        if not resumed and not needs_ids:
            self.loader.release(embedding)
        first = self.hidden.next_layer
        saved = time.monotonic()
        paths = [f"{self.stack.layers_path}.{number}" for number in range(first, last + 1)]
        self.loader.check(paths)
        with in_turn(self.loader, paths, self.progress) as pieces, self.progress.step("layers", len(paths)) as advance:
            for number, _ in enumerate(pieces, start=first):
                here = [moe for moe in wanted if moe.block == number]
                recorders = [LayerRecorder(moe, tokens, counted) for moe in here]
                self._run_layer(number, recorders)
                yield from (recorder.finish() for recorder in recorders)
                self.hidden.forget_older()
                advance(1)
                if number < last:
                    saved = self._save(saved)

    def _restore(self, first_wanted: int) -> bool:
        """Take over what an earlier run left between two layers; False where it left nothing."""
        every = sum(len(batch.input_ids) for batch in self.batches)
        rows = self.hidden.restore(first_wanted, every, self.progress)
        if not rows:
            return False
        self.batches = split_like(self.batches, rows)
        self.progress.note(f"resuming at layer {self.hidden.next_layer}")
        return True

    def _save(self, saved: float) -> float:
        """Save the hidden states for resuming where that is cheap; returns the time of the last save."""
        if self.hidden.nbytes / DISK_BYTES_PER_SECOND > STATE_COST_SHARE * (time.monotonic() - saved):
            return saved
        self.hidden.save()
        return time.monotonic()

    def _embedding_path(self) -> str:
        embedding = self.stack.owner.get_input_embeddings()  # type: ignore[operator]
        for path, module in self.stack.owner.named_modules():
            if module is embedding:
                return _join(self.stack.owner_path, path)
        raise MoetoolError(f"{type(self.stack.owner).__name__} does not tell its token embedding")

    def _load_outer(self, without: list[str]) -> None:
        """Everything of the decoder but its layers; the output head is not needed."""
        self.loader.load(self.stack.owner_path, without=[self.stack.layers_path, *self._heads(), *without])
        self.loader.buffers.arrived()

    def _heads(self) -> list[str]:
        try:
            head = self.loader.model.get_output_embeddings()
        except NotImplementedError:  # models that speak have several
            return []
        return [path for path, module in self.loader.model.named_modules() if head is not None and module is head]

    @torch.inference_mode()
    def _embed(self) -> None:
        """What the first layer of every batch is called with."""
        with self.progress.step("embedding", len(self.batches)) as advance:
            for batch in self.batches:
                device_batch = batch.to(self.device)
                with _first_input(self.stack.layers[0]) as caught:
                    self._forward(device_batch, with_ids=True)
                self.hidden.put({"input": caught[0]}, len(batch.input_ids))
                advance(1)
        self.hidden.turn()

    def _run_layer(self, number: int, recorders: list[LayerRecorder]) -> None:
        """All batches through one layer; a batch that does not fit the device's memory goes in parts from here on."""
        current: list[Batch] = []
        of_moe = {recorder.moe: recorder for recorder in recorders}

        def run(batch: Batch, given: Any) -> Any:
            current[:] = [batch.to(self.device)]
            with one_batch(recorders):
                return self._through(number, given, current[0])

        passed: list[Batch] = []
        title = f"layer {number}" if recorders else f"layer {number} (dense)"
        with (
            tap(of_moe, lambda moe, routing: of_moe[moe].add(current[0], routing)),
            self._bypassed(number),
            self.progress.step(title, len(self.batches)) as advance,
        ):
            for batch, given in zip(self.batches, self.hidden, strict=True):
                for part, output in self.halving.run(run, batch, given):
                    passed.append(part)
                    self.hidden.put(output, len(part.input_ids))
                advance(1)
        self.batches = passed
        self.hidden.turn()

    @torch.inference_mode()
    def _through(self, number: int, given: Any, batch: Batch) -> Any:
        """One batch through one layer, inside the model's own forward; returns what it hands on."""
        self.given = change(given, lambda tensor: tensor.to(self.device, non_blocking=True))
        earlier = given.get("earlier") or {}
        result: list[Any] = []
        shared: list[Any] = []

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if self.family.shared_states:
                shared.append(kwargs[self.family.shared_states])
                shared[0].update(self.given.get("shared") or {})
            if "input" not in self.given:
                return None
            if args:
                return (self.given["input"], *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": self.given["input"]}

        def after(module: nn.Module, args: Any, output: Any) -> None:
            result.append(output)
            raise _Stop

        layer = self.stack.layers[number]
        handles = [
            layer.register_forward_pre_hook(before, with_kwargs=True),
            layer.register_forward_hook(after),
        ]
        try:
            self._forward(batch)
        finally:
            self.given = None
            for handle in handles:
                handle.remove()
        if self._is_remembered(number):
            earlier = {**earlier, str(number): result[0]}
        return {"output": result[0], "shared": dict(shared[0]) if shared else None, "earlier": earlier}

    def _is_remembered(self, number: int) -> bool:
        """Whether more layers than the next one read what this one returns."""
        attribute, following = self.family.remembers_before, list(self.stack.layers)[number + 1 : number + 2]
        return bool(attribute) and any(getattr(layer, attribute) for layer in following)

    def _forward(self, batch: Batch, with_ids: bool = False) -> None:
        """The model's own forward, with placeholders for embeddings that nobody reads."""
        owner = self.stack.owner
        inputs: dict[str, torch.Tensor] = {"input_ids": batch.input_ids}
        if not (with_ids or self.family.token_ids):
            weight = owner.get_input_embeddings().weight  # type: ignore[operator]
            shape = (*batch.input_ids.shape, weight.shape[-1])
            inputs = {"inputs_embeds": torch.zeros(shape, dtype=self.loader.dtype, device=self.device)}
        try:
            owner(**inputs, attention_mask=batch.attention_mask, use_cache=False)
        except _Stop:
            return
        raise MoetoolError(f"{type(owner).__name__} does not run its layers one after another", "use --engine resident")

    @contextmanager
    def _bypassed(self, number: int) -> Iterator[None]:
        """The layers before one return what they are given; the later ones are never reached."""
        layers = list(self.stack.layers)[:number]
        for index, layer in enumerate(layers):
            layer.forward = partial(self._hand_on, index == number - 1, str(index))
        try:
            yield
        finally:
            for layer in layers:
                layer.__dict__.pop("forward", None)

    def _hand_on(self, is_last: bool, number: str, *args: Any, **kwargs: Any) -> Any:
        """What the layer before the current one returned for this batch, and of earlier ones what is remembered."""
        if is_last:
            return self.given["output"]
        remembered = self.given["earlier"] or {}
        return remembered[number] if number in remembered else change(self.given["output"], poison)


@contextmanager
def _first_input(layer: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Catches the hidden states that a layer is called with, and stops the forward there."""
    caught: list[torch.Tensor] = []

    def catch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caught.append(args[0] if args else kwargs["hidden_states"])
        raise _Stop

    handle = layer.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        yield caught
    finally:
        handle.remove()


def _join(*paths: str) -> str:
    return ".".join(path for path in paths if path)
