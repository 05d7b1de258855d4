"""The resident engine: the whole model is loaded, every batch passes once through all layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from moetool.capture.batches import Batch
from moetool.capture.halving import Halving
from moetool.capture.loading import DTYPES, TensorFiles, mismatched_tensors, missing_tensors
from moetool.capture.quantized import (
    check_unpacked,
    needs_quantizer,
    open_weight,
    plain_config,
    quantization_of,
    stored_weights,
    unknown_layout,
)
from moetool.capture.record import LayerRecorder, one_batch
from moetool.capture.routers import DecoderStack, MoELayer
from moetool.capture.seams import tap
from moetool.capture.trace import TraceLayer
from moetool.checkpoint.types import Checkpoint
from moetool.errors import MoetoolError
from moetool.progress import Progress


def load_model(
    checkpoint: Checkpoint,
    config: Any,
    model_class: type[Any],
    dtype: str,
    device: torch.device,
    quantizer: Any = None,
) -> Any:
    """The model with all its weights; MoetoolError where the checkpoint lacks one or it does not load.

    ``quantizer`` is transformers' settings for quantising plain weights at load.
    """
    files = TensorFiles(checkpoint)
    try:
        model, info = model_class.from_pretrained(
            dtype=DTYPES[dtype],
            device_map="auto" if device.type == "cuda" and device.index is None else {"": device},
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            quantization_config=quantizer,
            **_weights(checkpoint, config, files),
        )
    except (OSError, ValueError, RuntimeError, ImportError, KeyError, AttributeError) as error:
        detail = str(error).strip().split("\n")[0]
        raise MoetoolError(f"{checkpoint.name} does not load: {detail}", "MOETOOL_DEBUG=1 shows where") from error
    finally:
        files.close()
    if info["mismatched_keys"]:
        raise mismatched_tensors(info["mismatched_keys"])
    if info["missing_keys"] and needs_quantizer(checkpoint):
        raise unknown_layout(checkpoint, sorted(info["missing_keys"]))
    if info["missing_keys"]:
        raise missing_tensors(sorted(info["missing_keys"]))
    check_unpacked(model)
    return model.eval()


def _weights(checkpoint: Checkpoint, config: Any, files: TensorFiles) -> dict[str, Any]:
    """Where ``from_pretrained`` gets the weights: from the folder, or from us where they are dequantised on the way."""
    if quantization_of(checkpoint) is None or needs_quantizer(checkpoint):
        return {"pretrained_model_name_or_path": checkpoint.folder, "config": config}
    weights = {name: open_weight(weight, files.read) for name, weight in stored_weights(checkpoint).items()}
    return {"pretrained_model_name_or_path": None, "config": plain_config(config), "state_dict": weights}


@torch.inference_mode()
def run_resident(
    stack: DecoderStack,
    wanted: Sequence[MoELayer],
    batches: list[Batch],
    tokens: int,
    counted: NDArray[np.int64],
    progress: Progress,
) -> Iterator[TraceLayer]:
    """Yield the routing of the wanted MoE layers after every batch has passed; ``counted`` as for LayerRecorder."""
    device = next(stack.owner.parameters()).device
    recorders = {moe: LayerRecorder(moe, tokens, counted) for moe in wanted}
    current: list[Batch] = []

    def run(batch: Batch, state: None) -> None:
        current[:] = [batch.to(device)]
        with one_batch(recorders.values()):
            stack.owner(**_inputs(stack.owner, current[0]), use_cache=False)

    halving = Halving(progress)
    sink = lambda moe, routing: recorders[moe].add(current[0], routing)  # noqa: E731
    with tap(wanted, sink), progress.step("batches", len(batches)) as advance:
        for batch in batches:
            for _ in halving.run(run, batch):
                pass
            advance(1)
    for moe in wanted:
        yield recorders.pop(moe).finish()


def _inputs(owner: Any, batch: Batch) -> dict[str, torch.Tensor]:
    """What the model is called with. A decoder behind an encoder reads the same text, after its start token."""
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    if owner.config.is_encoder_decoder:
        config = owner.config
        token = next(
            value
            for place in (config, owner.generation_config)
            for name in ("decoder_start_token_id", "pad_token_id", "bos_token_id")
            if isinstance(value := getattr(place, name, None), int)
        )
        start = batch.input_ids.new_full((len(batch.input_ids), 1), token)
        inputs["decoder_input_ids"] = torch.cat([start, batch.input_ids], dim=1)
        inputs["decoder_attention_mask"] = torch.cat([torch.ones_like(start), batch.attention_mask], dim=1)
    return inputs
