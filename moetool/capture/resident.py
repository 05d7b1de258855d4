"""The resident engine: the whole model is loaded, every batch passes once through all layers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from moetool.capture.batches import Batch
from moetool.capture.loading import DTYPES, missing_tensors
from moetool.capture.record import LayerRecorder
from moetool.capture.routers import DecoderStack, MoELayer, Routing, tap
from moetool.capture.trace import TraceLayer
from moetool.checkpoint.types import Checkpoint
from moetool.errors import MoetoolError
from moetool.progress import Progress


def load_model(checkpoint: Checkpoint, config: Any, model_class: type[Any], dtype: str, device: torch.device) -> Any:
    """The model with all its weights; MoetoolError where the checkpoint lacks one or it does not load."""
    try:
        model, info = model_class.from_pretrained(
            checkpoint.folder,
            config=config,
            dtype=DTYPES[dtype],
            device_map={"": device},
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, ImportError, KeyError, AttributeError) as error:
        detail = str(error).strip().split("\n")[0]
        raise MoetoolError(f"{checkpoint.name} does not load: {detail}", "MOETOOL_DEBUG=1 shows where") from error
    if info["mismatched_keys"]:
        name, found, expected = sorted(info["mismatched_keys"])[0]
        raise MoetoolError(f"{name} has shape {list(found)} in the checkpoint, not {list(expected)} as the config says")
    if info["missing_keys"]:
        raise missing_tensors(sorted(info["missing_keys"]))
    return model.eval()


@torch.inference_mode()
def run_resident(
    stack: DecoderStack, wanted: list[int], batches: list[Batch], tokens: int, domains: int, progress: Progress
) -> Iterator[TraceLayer]:
    """Yield the routing of the wanted MoE layers after every batch has passed."""
    moe_layers = [moe for moe in stack.moe_layers if moe.layer in wanted]
    device = next(stack.owner.parameters()).device
    recorders = {moe.layer: LayerRecorder(moe, tokens, domains, device) for moe in moe_layers}
    current: list[Batch] = []

    def sink(moe: MoELayer, routing: Routing) -> None:
        recorders[moe.layer].add(current[-1], routing)

    with tap(moe_layers, sink), progress.step("batches", len(batches)) as advance:
        for batch in batches:
            device_batch = batch.to(device)
            current[:] = [device_batch]
            stack.owner(input_ids=device_batch.input_ids, attention_mask=device_batch.attention_mask, use_cache=False)
            for recorder in recorders.values():
                recorder.flush()
            advance(1)
    for moe in moe_layers:
        yield recorders.pop(moe.layer).finish()
