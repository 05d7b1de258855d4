"""Watches routing while a model trains: forward passes enter, metrics per MoE layer leave, to the Trainer's loggers."""

from __future__ import annotations

import math
from types import TracebackType
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.training_args import ParallelMode

from moetool.capture.monitor import LayerWindow, RoutingCounter
from moetool.errors import MoetoolError
from moetool.statistics.documents import tokens_needed
from moetool.statistics.load import load_entropy, max_violation

if TYPE_CHECKING:
    from transformers import Trainer

WORST = {"max_violation": max, "load_entropy": min, "dead_experts": max, "unused_experts": max, "router_entropy": min}
"""The metrics of a layer, and which of the layers is the worst."""


class RouterMonitor(TrainerCallback):
    """Logs how evenly the experts of every MoE layer are used while a model trains.

    ``RouterMonitor().add_to(trainer)`` logs with the training loss. Each metric is ``router/layer_N/NAME``, N the
    decoder layer, and ``router/mean/NAME`` and ``router/worst/NAME`` over the layers. It covers the tokens since the
    last log: those of all micro-batches and ranks, without padding and evaluation.

    - ``max_violation``: max n / mean n - 1 of the tokens n of each expert, 0 at balance (arXiv 2408.15664)
    - ``load_entropy``: H(f) / ln E of the load, 1 at balance; the worst is the lowest
    - ``unused_experts``: experts that no token chose
    - ``dead_experts``: those of them that more than 3 E / (0.05 K) tokens did not choose, else 0. By the rule of three
      their load is then below 5 % of the mean with 95 % confidence. Tokens count as independent, design effect 1:
      training shuffles its documents. Where it does not, or the window is a few long rows, an expert can be called
      dead too early
    - ``router_entropy``: mean over tokens of H(p) / ln E of the router's distribution, 0 where it is certain; left out
      where the router shows no logits; the worst is the lowest

    Without a Trainer: ``with RouterMonitor(model) as monitor:`` around the training, and ``monitor.metrics()`` in it.
    Where ``trainer.train()`` raises, the hooks stay until it trains again, ``detach()`` or the end of a ``with`` block.
    """

    def __init__(self, model: Any = None, every: int | None = None) -> None:
        """``model``: what to watch, None for the Trainer's own; ``every``: log at multiples of so many steps, and have
        the Trainer log its loss there too, None for whenever it does. Raises MoetoolError if ``every`` is something
        else than a whole number from 1."""
        if every is not None and (isinstance(every, bool) or not isinstance(every, int) or every < 1):
            raise MoetoolError(f"every={every!r} is no number of steps", "use a whole number from 1, or None")
        self.model = model
        self.every = every
        self.in_front = False
        self._counter: RoutingCounter | None = None

    def add_to(self, trainer: Trainer) -> RouterMonitor:
        """Become the first callback of a Trainer, so that all its loggers get the metrics."""
        callbacks = trainer.callback_handler.callbacks
        callbacks[:] = [self, *(callback for callback in callbacks if callback is not self)]
        self.in_front = True
        return self

    def attach(self, model: Any) -> RouterMonitor:
        """Begin to count the forward passes of a model in training mode.

        Raises MoetoolError for a model without MoE layers or of a family whose routing cannot be captured.
        """
        self.detach()
        self._counter = RoutingCounter(model)
        return self

    def detach(self) -> None:
        """Remove all hooks and forget what was counted."""
        if self._counter is not None:
            self._counter.close()
        self._counter = None

    def metrics(self) -> dict[str, float]:
        """The metrics of the tokens since the last call, by name; where torch.distributed runs, on every rank at once.

        Raises MoetoolError if no model is attached or no token was routed on any rank.
        """
        if self._counter is None:
            raise MoetoolError("RouterMonitor watches no model", "call attach(model) first")
        layers = {window.layer: _measure(window) for window in self._counter.take()}
        if not layers:
            raise MoetoolError(
                "no token was routed in training mode since the last metrics",
                "call model.train(): evaluation is not counted; nor are layers that fused kernels replace",
            )
        found = {f"router/layer_{layer}/{name}": value for layer, row in layers.items() for name, value in row.items()}
        for name, worst in WORST.items():
            if values := [row[name] for row in layers.values() if name in row]:
                found[f"router/mean/{name}"] = sum(values) / len(values)
                found[f"router/worst/{name}"] = worst(values)
        return found

    def __enter__(self) -> RouterMonitor:
        return self if self.model is None else self.attach(self.model)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Attach to the Trainer's model; MoetoolError where a logger would not get the metrics."""
        if args.report_to and not self.in_front:
            raise MoetoolError(
                f"a Trainer's own callbacks come after its loggers ({', '.join(args.report_to)}), which would not get "
                "what RouterMonitor adds",
                "make the Trainer without it, then call RouterMonitor().add_to(trainer)",
            )
        if args.parallel_mode is ParallelMode.NOT_DISTRIBUTED:
            raise MoetoolError("RouterMonitor cannot watch several GPUs in one process", "start with torchrun")
        self.attach(kwargs["model"] if self.model is None else self.model)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Have the Trainer log at every ``every`` steps."""
        if self.every and state.global_step % self.every == 0:
            control.should_log = True

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Add the metrics to a log of the training loss, and to the history that holds a copy of it."""
        logs = kwargs["logs"]
        if "loss" not in logs or (self.every and state.global_step % self.every):
            return
        found = self.metrics()
        logs.update(found)
        state.log_history[-1].update(found)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remove all hooks."""
        self.detach()


def _measure(window: LayerWindow) -> dict[str, float]:
    counts, experts = window.counts, len(window.counts)
    unused = int((counts == 0).sum())
    needed = tokens_needed(1.0, experts, window.experts_per_token)
    values = {
        "max_violation": max_violation(counts),
        "load_entropy": load_entropy(counts),
        "dead_experts": unused if needed is not None and window.tokens > needed else 0,
        "unused_experts": unused,
        "router_entropy": None
        if window.entropy_nats is None or experts < 2
        else window.entropy_nats / math.log(experts),
    }
    return {name: value for name, value in values.items() if value is not None}
