"""The streaming engine for several runs at once: batches and masked experts enter, losses of every run leave."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from moetool.capture.batches import Batch
from moetool.capture.handover import change
from moetool.capture.head import Head
from moetool.capture.masking import Masks, masked
from moetool.capture.pipeline import in_turn
from moetool.capture.stream import Streamer

BASELINE = 0
"""The run with nothing masked."""
Sink = Callable[[int, Batch, torch.Tensor], None]
"""Gets the number of a run, a batch and the losses of its target tokens."""


class AblationStreamer(Streamer):
    """Reads the weights once for all runs; a run leaves the baseline at the first layer in which it masks experts."""

    def measure(self, runs: Sequence[Masks], sink: Sink) -> None:
        """Hand the losses of every run and batch to ``sink``; run BASELINE masks nothing."""
        head, embedding = Head(self.loader.model, self.stack), self._embedding_path()
        paths = [f"{self.stack.layers_path}.{number}" for number in range(len(self.stack.layers))]
        self._load_outer(without=[])
        self.loader.check([*head.paths, *paths])
        self._embed()
        if not self.family.token_ids:
            self.loader.release(embedding)
        self.run_of_batch = [BASELINE] * len(self.batches)
        with in_turn(self.loader, paths, self.progress) as pieces, self.progress.step("layers", len(paths)) as advance:
            for number, _ in enumerate(pieces):
                self._pass(number, runs)
                self.hidden.forget_older()
                advance(1)
            for path in (embedding, *head.paths):
                self.loader.load(path)
        self.loader.buffers.arrived()
        self._finish(head, sink)

    def _pass(self, number: int, runs: Sequence[Masks]) -> None:
        """All batches of all runs through one layer; runs that begin to differ there branch off."""
        here = [{moe: experts for moe, experts in masks.items() if moe.block == number} for masks in runs]
        begins = [run for run, masks in enumerate(runs) if min((moe.block for moe in masks), default=-1) == number]
        passed: list[tuple[Batch, int]] = []
        with self._bypassed(number), self.progress.step(f"layer {number}", len(self.batches)) as advance:
            for batch, run, given in zip(self.batches, self.run_of_batch, self.hidden, strict=True):
                branches = begins if run == BASELINE else []
                for one in [run, *branches]:
                    own = self._copy(given) if branches else given
                    with masked(here[one]):
                        for part, output in self.halving.run(
                            lambda part, state: self._through(number, state, part.to(self.device)), batch, own
                        ):
                            passed.append((part, one))
                            self.hidden.put(output, len(part.input_ids))
                advance(1)
        self.batches, self.run_of_batch = [batch for batch, _ in passed], [run for _, run in passed]
        self.hidden.turn()

    def _copy(self, given: Any) -> Any:
        """Layers may write into what they are given; off the CPU that is a copy already, which may still go on."""
        return change(given, torch.clone) if self.device.type == "cpu" else given

    @torch.inference_mode()
    def _finish(self, head: Head, sink: Sink) -> None:
        """What follows the last layer, for all batches of all runs."""

        def losses(batch: Batch, given: Any) -> torch.Tensor:
            self.given = change(given, lambda tensor: tensor.to(self.device))
            return head.losses(batch.to(self.device))

        with self._bypassed(len(self.stack.layers)), self.progress.step("losses", len(self.batches)) as advance:
            for batch, run, given in zip(self.batches, self.run_of_batch, self.hidden, strict=True):
                for part, nats in self.halving.run(losses, batch, given):
                    sink(run, part, nats)
                advance(1)
