"""The output head of a language model: what its decoder returned enters, the loss of every next token leaves."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from moetool.capture.batches import Batch
from moetool.capture.routers import DecoderStack
from moetool.errors import MoetoolError

LOGITS_BYTES = 2**27
"""Of float32 logits at once: those of a whole batch would take more memory than the layers do."""


def target_tokens(batch: Batch) -> torch.Tensor:
    """``[n]`` which real tokens are predicted: those that count and have a token of their document before them."""
    return batch.counted & (batch.real % batch.input_ids.shape[1] > 0)


class Head:
    """The causal language model around a decoder: its own forward turns what the decoder returned into logits.

    Raises MoetoolError for a model that does not predict next tokens, or cannot do so for some positions only.
    """

    def __init__(self, model: Any, stack: DecoderStack) -> None:
        self.owner: Any = stack.owner
        path = _causal_path(model, stack.owner_path)
        self.causal = model.get_submodule(path)
        config = self.causal.config.get_text_config()
        config.output_router_logits = False  # a loss for training, of layers that may not run beside the head
        self.vocabulary: int = config.vocab_size
        branch = stack.owner_path.removeprefix(path).lstrip(".").partition(".")[0]
        names = [name for name, _ in self.causal.named_children() if name != branch]
        self.paths = [f"{path}.{name}".lstrip(".") for name in names]
        """Of the modules beside the one that holds the decoder."""

    def losses(self, batch: Batch) -> torch.Tensor:
        """Run the decoder on a batch; returns the cross entropies ``[n]`` of its target tokens, in nats.

        Logits are made for some positions of all sequences at a time, and compared in float32.
        """
        rows, length = batch.input_ids.shape
        target = batch.real[target_tokens(batch)]
        row, source = target // length, target % length - 1
        nats = torch.zeros(len(target), device=target.device)
        step = max(1, LOGITS_BYTES // (4 * self.vocabulary * rows))
        output = self.owner(**_inputs(batch))
        for start in range(0, length - 1, step):
            positions = torch.arange(start, min(start + step, length - 1), device=target.device)
            here = (source >= start) & (source < start + step)
            logits = self._logits(output, batch, positions).to(target.device)
            wanted = logits[row[here], source[here] - start].float()
            nats[here] = cross_entropy(wanted, batch.input_ids.flatten()[target[here]], reduction="none")
        return nats

    def _logits(self, output: Any, batch: Batch, positions: torch.Tensor) -> torch.Tensor:
        with _returning(self.owner, output):
            logits: torch.Tensor = self.causal(**_inputs(batch), logits_to_keep=positions).logits
        if logits.shape[:2] != (len(batch.input_ids), len(positions)):
            raise MoetoolError(f"{type(self.causal).__name__} gives logits of shape {list(logits.shape)}")
        return logits


def _inputs(batch: Batch) -> dict[str, Any]:
    return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "use_cache": False}


def _causal_path(model: Any, path: str) -> str:
    """The nearest module around the decoder that takes ``logits_to_keep``, as causal language models do."""
    while path:
        path = path.rpartition(".")[0]
        if "logits_to_keep" in inspect.signature(model.get_submodule(path).forward).parameters:
            return path
    raise MoetoolError(
        f"{type(model).__name__} has no head that predicts the next token of a text",
        "the loss without an expert can be measured for causal language models only",
    )


@contextmanager
def _returning(module: Any, output: Any) -> Iterator[None]:
    """Forwards of a module return what it returned before."""
    own = module.__dict__.get("forward")  # accelerate's, where it spreads a model over devices
    module.forward = lambda *args, **kwargs: output
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own
