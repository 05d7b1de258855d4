"""The streaming engine: the whole corpus passes through one decoder layer, then the next.

Any size of model fits one small machine.

The model's own forward runs for every batch and layer, so masks, rotary tables and per-layer arguments are its own: the
layers before the current one hand their input on, the current one gets the stored hidden states, and the run
stops there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from moetool.capture.batches import Batch
from moetool.capture.loading import PieceLoader
from moetool.capture.record import LayerRecorder
from moetool.capture.routers import DecoderStack, tap
from moetool.capture.store import TraceFolder
from moetool.capture.trace import TraceLayer
from moetool.errors import MoetoolError
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
        loader: PieceLoader,
        batches: list[Batch],
        store: TraceFolder | None,
        progress: Progress,
    ) -> None:
        self.stack, self.loader, self.batches, self.store, self.progress = stack, loader, batches, store, progress
        self.device = loader.device
        self.hidden: list[torch.Tensor] = []
        self.output_length: int | None = None
        """None where a layer returns a tensor, else the length of its tuple."""

    def run(self, wanted: list[int], tokens: int, domains: int) -> Iterator[TraceLayer]:
        """Yield the routing of the wanted MoE layers in order; stops after the last of them."""
        moe_of_layer = {moe.layer: moe for moe in self.stack.moe_layers if moe.layer in wanted}
        last = max(wanted)
        first = self._restore(min(wanted))
        embedding = self._embedding_path()
        self._load_outer(without=[embedding] if first else [])
        if first == 0:
            self._embed()
            self.loader.release(embedding)
        saved = time.monotonic()
        steps = self.progress.step("layers", last + 1 - first)
        with ThreadPoolExecutor(1, thread_name_prefix="weights") as pool, self._bypassed(), steps as advance:
            load = self._begin_loading(first, pool)
            for number in range(first, last + 1):
                load()
                if number < last:
                    load = self._begin_loading(number + 1, pool)
                moe = moe_of_layer.get(number)
                recorder = LayerRecorder(moe, tokens, domains, self.device) if moe else None
                self._run_layer(number, recorder)
                self.loader.release(f"{self.stack.layers_path}.{number}")
                if recorder:
                    yield recorder.finish()
                advance(1)
                if number < last:
                    saved = self._save(number + 1, saved)

    def _begin_loading(self, number: int, pool: ThreadPoolExecutor) -> Callable[[], None]:
        """Begin to fetch a layer; the returned function ends when it is loaded.

        On a CPU only the disk reads ahead: converting would take the cores, and the memory, of the current layer.
        """
        path = f"{self.stack.layers_path}.{number}"
        if self.device.type == "cpu":
            self.loader.read_ahead(path)
            return lambda: self.loader.load(path)
        return pool.submit(self.loader.load, path).result

    def _embedding_path(self) -> str:
        embedding = self.stack.owner.get_input_embeddings()  # type: ignore[operator]
        for path, module in self.stack.owner.named_modules():
            if module is embedding:
                return _join(self.stack.owner_path, path)
        raise MoetoolError(f"{type(self.stack.owner).__name__} does not tell its token embedding")

    def _load_outer(self, without: list[str]) -> None:
        """Everything of the decoder but its layers; the output head is not needed."""
        self.loader.load(self.stack.owner_path, without=[self.stack.layers_path, *self._heads(), *without])

    def _heads(self) -> list[str]:
        head = self.loader.model.get_output_embeddings()
        return [path for path, module in self.loader.model.named_modules() if head is not None and module is head]

    @torch.inference_mode()
    def _embed(self) -> None:
        """Hidden states ``[B, S, H]`` of every batch as the first layer would receive them."""
        first = self.stack.layers[0]
        for batch in self.batches:
            device_batch = batch.to(self.device)
            with _first_input(first) as caught:
                self._forward(input_ids=device_batch.input_ids, attention_mask=device_batch.attention_mask)
            self.hidden.append(self._keep(caught[0]))

    def _run_layer(self, number: int, recorder: LayerRecorder | None) -> None:
        layer = self.stack.layers[number]
        current: list[Batch] = []
        taps = tap([recorder.moe], lambda moe, routing: recorder.add(current[-1], routing)) if recorder else _nothing()
        title = f"layer {number}" if recorder else f"layer {number} (dense)"
        with taps, self._current(layer), self.progress.step(title, len(self.batches)) as advance:
            for index, batch in enumerate(self.batches):
                device_batch = batch.to(self.device)
                current[:] = [device_batch]
                output = self._through(layer, self.hidden[index].to(self.device), device_batch)
                if recorder:
                    recorder.flush()
                self.hidden[index] = self._keep(output)
                advance(1)

    @torch.inference_mode()
    def _through(self, layer: nn.Module, hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
        """One batch through the current layer, inside the model's own forward."""
        result: list[Any] = []

        def substitute(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if args:
                return (hidden, *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": hidden}

        def stop(module: nn.Module, args: Any, output: Any) -> None:
            result.append(output)
            raise _Stop

        handles = [
            layer.register_forward_pre_hook(substitute, with_kwargs=True),
            layer.register_forward_hook(stop),
        ]
        try:
            self._forward(inputs_embeds=torch.zeros_like(hidden), attention_mask=batch.attention_mask)
        finally:
            for handle in handles:
                handle.remove()
        return self._first_output(result)

    def _forward(self, **inputs: torch.Tensor) -> None:
        try:
            self.stack.owner(**inputs, use_cache=False)
        except _Stop:
            return
        raise MoetoolError(
            f"{type(self.stack.owner).__name__} does not run its layers one after another", "use --engine resident"
        )

    def _first_output(self, result: list[Any]) -> torch.Tensor:
        output = result[0]
        if isinstance(output, torch.Tensor):
            self.output_length = None
            return output
        others = [item for item in output[1:] if item is not None]
        if others or not isinstance(output[0], torch.Tensor):
            raise MoetoolError(
                f"{type(self.stack.layers[0]).__name__} hands more than its hidden states to the next layer",
                "use --engine resident",
            )
        self.output_length = len(output)
        return output[0]

    @contextmanager
    def _bypassed(self) -> Iterator[None]:
        """All layers hand their input on."""
        for layer in self.stack.layers:
            layer.forward = self._hand_on
        try:
            yield
        finally:
            for layer in self.stack.layers:
                layer.__dict__.pop("forward", None)

    @contextmanager
    def _current(self, layer: nn.Module) -> Iterator[None]:
        """One layer is itself again."""
        layer.__dict__.pop("forward", None)
        try:
            yield
        finally:
            layer.forward = self._hand_on

    def _hand_on(self, *args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        return hidden if self.output_length is None else (hidden,) + (None,) * (self.output_length - 1)

    def _keep(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states wait on the host, so that the device needs memory for two layers only."""
        return hidden.cpu()

    def _save(self, next_layer: int, saved: float) -> float:
        """Save the hidden states for resuming where that is cheap; returns the time of the last save."""
        if self.store is None:
            return saved
        size_bytes = sum(hidden.nbytes for hidden in self.hidden)
        now = time.monotonic()
        if size_bytes / DISK_BYTES_PER_SECOND > STATE_COST_SHARE * (now - saved):
            return saved
        metadata = {"next_layer": str(next_layer), "output_length": str(self.output_length or 0)}
        self.store.save_state(lambda path: _write_state(path, self.hidden, metadata))
        return time.monotonic()

    def _restore(self, first_wanted: int) -> int:
        """The layer to begin with: where an earlier run left hidden states no later layer than is wanted, else 0."""
        if self.store is None or not self.store.state.is_file():
            return 0
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.store.state, framework="pt") as file:
                metadata = file.metadata()
                if int(metadata["next_layer"]) > first_wanted:
                    return 0
                self.hidden = [file.get_tensor(f"batch.{index}").clone() for index in range(len(self.batches))]
        except SafetensorError:
            self.hidden = []
            self.progress.note("the saved hidden states are damaged: starting at layer 0")
            return 0
        self.output_length = int(metadata["output_length"]) or None
        self.progress.note(f"resuming at layer {metadata['next_layer']}")
        return int(metadata["next_layer"])


def _write_state(path: Path, hidden: list[torch.Tensor], metadata: dict[str, str]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    content = {f"batch.{index}": tensor.contiguous() for index, tensor in enumerate(hidden)}
    try:
        save_file(content, path, metadata)
    except SafetensorError as error:  # this is how it tells of a full disk
        raise OSError(str(error)) from None


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


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def _join(*paths: str) -> str:
    return ".".join(path for path in paths if path)
