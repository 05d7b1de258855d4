"""Quantised checkpoints: which of them run, on which engine, and how a loader gets plain weights from them.

Formats whose definition is known here are dequantised while they are read, for both engines alike, so that transformers
sees a checkpoint that is not quantised. Its own dequantisation is not used: in 5.23 it takes the size of an FP8 block
from the number of scales (an error or wrong where blocks do not divide the weight, as in DeepSeek-V3), leaves out the
global scales of NVFP4 experts, multiplies MXFP8 experts by the bytes of their exponents, and fails on zero points.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from moetool.capture import quantized_formats as formats
from moetool.capture.dequantize import Layout, dequantize
from moetool.capture.quantized_formats import StoredTensors, StoredWeight
from moetool.checkpoint.types import Checkpoint, TensorInfo
from moetool.errors import MoetoolError
from moetool.model.families import find

PACKED_DTYPES = frozenset({*formats.FLOAT8, "F8_E8M0", "F4", "F6_E2M3", "F6_E3M2", "I8", "U8"})
"""Stored types that mean nothing without scales."""
FORMATS: Mapping[str, formats.Format] = {
    "compressed-tensors": formats.compressed,
    "fp8": formats.deepseek_fp8,
    "modelopt": formats.modelopt,
    "mxfp4": formats.gpt_oss_mxfp4,
    "mxfp8": formats.deepseek_fp8,
}
"""``quant_method`` of what is dequantised here."""
PACKAGES = {
    "aqlm": ("aqlm", "'aqlm[gpu,cpu]'"),
    "auto-round": ("auto_round", "auto-round"),
    "awq": ("gptqmodel", "gptqmodel"),
    "bitsandbytes": ("bitsandbytes", "'moetool[quantize]'"),
    "fbgemm_fp8": ("fbgemm_gpu", "fbgemm-gpu-genai"),
    "gptq": ("gptqmodel", "gptqmodel optimum"),
    "hqq": ("hqq", "hqq"),
    "quark": ("quark", "amd-quark"),
    "torchao": ("torchao", "torchao"),
    "vptq": ("vptq", "vptq"),
}
"""``quant_method`` of what transformers runs, as a whole, with another package: its module, and what to install."""


_BLOCK = 64
"""Weights of one scale in bitsandbytes' 4 bits."""


class LazyWeight:
    """Stands for a weight in a state dict, and is dequantised when the loader moves it to its device and dtype.

    So the stored tensors travel to the device, not the larger result.
    """

    def __init__(self, parts: Mapping[str, torch.Tensor], layout: Layout) -> None:
        self.parts, self.layout = parts, layout

    def __getitem__(self, key: Any) -> LazyWeight:
        """The loader asks for ``[...]``, which reads a tensor that lies in a file."""
        return self

    def to(self, device: Any = None, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The weight itself."""
        parts = {role: tensor.to(device) for role, tensor in self.parts.items()}
        return dequantize(parts, self.layout, dtype or torch.float32)


def open_weight(weight: StoredWeight, read: Callable[[str], torch.Tensor]) -> Any:
    """What transformers' loader takes for a tensor; ``read`` maps a stored one without reading it."""
    if weight.layout is None:
        return read(weight.parts["weight"])
    return LazyWeight({role: read(name) for role, name in weight.parts.items()}, weight.layout)


def stored_weights(checkpoint: Checkpoint) -> dict[str, StoredWeight]:
    """Every weight of a checkpoint, by the name that it has, or would have, in one that is not quantised.

    Raises MoetoolError for missing scales, for shapes that do not belong together, and for packed weights that the
    format of the config does not explain.
    """
    settings = quantization_of(checkpoint)
    make = FORMATS.get(method_of(settings)) if settings is not None else None
    if settings is None or make is None:
        return {tensor.name: _plain(tensor) for tensor in checkpoint.tensors}
    tensors = StoredTensors(checkpoint)
    made = [weight for tensor in checkpoint.tensors if (weight := make(tensors, settings, tensor)) is not None]
    used = {name for weight in made for name in weight.parts.values()}
    for tensor in checkpoint.tensors:
        if tensor.name in used:
            continue
        if tensor.dtype in PACKED_DTYPES:
            raise MoetoolError(
                f"{tensor.name} is stored as {tensor.dtype}, which {method_of(settings)} does not explain",
                "take the config.json that belongs to these weights",
            )
        made.append(_plain(tensor))
    return {weight.name: weight for weight in made}


def _plain(tensor: TensorInfo) -> StoredWeight:
    return StoredWeight(tensor.name, {"weight": tensor.name}, tuple(tensor.shape))


def quantization_of(checkpoint: Checkpoint) -> Mapping[str, Any] | None:
    """What the config says of quantised weights, None where it says nothing; MoetoolError where only the weights tell.

    Without their scales such weights are other numbers, and nothing else would show it.
    """
    settings = find(checkpoint.config, "quantization_config", "compression_config")
    if settings:
        return settings if isinstance(settings, Mapping) else {}
    packed = next((tensor for tensor in checkpoint.tensors if tensor.dtype in PACKED_DTYPES), None)
    if packed is not None:
        raise MoetoolError(
            f"{checkpoint.name}: {packed.name} is stored as {packed.dtype}, and config.json has no quantization_config",
            "take the config.json that belongs to these weights",
        )
    return None


def method_of(settings: Mapping[str, Any]) -> str:
    """The name of the format; the oldest checkpoints of bitsandbytes do not give it."""
    if settings.get("load_in_8bit") or settings.get("load_in_4bit"):
        return "bitsandbytes"
    return str(settings.get("quant_method") or "unnamed")


def needs_quantizer(checkpoint: Checkpoint) -> bool:
    """Whether transformers must run the weights as they are stored, which only the resident engine does.

    Raises MoetoolError for a format that cannot be run here.
    """
    settings = quantization_of(checkpoint)
    if settings is None:
        return False
    method = method_of(settings)
    if method in FORMATS:
        _check_variant(checkpoint, settings)
        return False
    if method not in PACKAGES:
        raise MoetoolError(
            f"{checkpoint.name} is quantised as {method}, which cannot be run",
            f"what can be run: {', '.join(sorted([*FORMATS, *PACKAGES]))}",
        )
    module, package = PACKAGES[method]
    if find_spec(module) is None:
        raise MoetoolError(
            f"{checkpoint.name} is quantised as {method}, which needs {module}", f"pip install {package}"
        )
    return True


def _check_variant(checkpoint: Checkpoint, settings: Mapping[str, Any]) -> None:
    """MoetoolError for what compressed-tensors has beside plain quantisation."""
    if method_of(settings) != "compressed-tensors":
        return
    groups = settings.get("config_groups") or {}
    names = {settings.get("format"), *(group.get("format") for group in groups.values())} - {None}
    names |= {"sparse " + str(settings["sparsity_config"].get("format"))} if _sparse(settings) else set()
    names |= {"rotated weights"} if (settings.get("transform_config") or {}).get("config_groups") else set()
    unknown = sorted(names - formats.COMPRESSED_FORMATS)
    if unknown:
        raise MoetoolError(
            f"{checkpoint.name} is quantised as {unknown[0]} of compressed-tensors, which cannot be run",
            f"what can be run: {', '.join(sorted(formats.COMPRESSED_FORMATS))}",
        )


def check_quantize(quantize: str, checkpoint: Checkpoint) -> None:
    """MoetoolError where a checkpoint cannot be quantised at load."""
    settings = quantization_of(checkpoint)
    if settings is not None:
        raise MoetoolError(
            f"--quantize {quantize}: {checkpoint.name} is quantised already, as {method_of(settings)}",
            "leave --quantize out",
        )
    from transformers.utils.import_utils import is_bitsandbytes_available

    if not is_bitsandbytes_available():
        raise MoetoolError(f"--quantize {quantize} needs bitsandbytes", "pip install 'moetool[quantize]'")


def pick_linear(
    quantize: str, model: Any, routers: Iterable[nn.Module], device: torch.device
) -> tuple[list[str], float]:
    """Modules that ``--quantize`` leaves as they are, routers and head among them, and the share of the parameters that
    it takes: those of the other linear layers. The model may be on the meta device.

    MoetoolError where no linear layer is left that it could take.
    """
    kept = {id(part) for router in routers for part in router.modules()} | {id(model.get_output_embeddings())}
    # Its CPU kernel reads rows in whole blocks: another width is an error in the first forward pass.
    width = _BLOCK if quantize == "4bit" and device.type == "cpu" else 1
    skipped, taken = [], 0
    for path, module in model.named_modules():
        linear = isinstance(module, nn.Linear)
        if id(module) in kept or (linear and module.in_features % width):
            skipped.append(path)
        elif linear:
            taken += module.weight.numel()
    if not taken:
        told = f": on a CPU it takes widths that are multiples of {width}" if width > 1 else ""
        message = f"--quantize {quantize}: bitsandbytes can take no linear layer of this model{told}"
        raise MoetoolError(message, "--quantize 8bit takes any width" if told else None)
    return skipped, taken / sum(part.numel() for part in model.parameters())


def bitsandbytes_settings(
    quantize: str, dtype: str, model: Any, routers: Iterable[nn.Module], device: torch.device
) -> Any:
    """The quantiser for ``--quantize``: LLM.int8(), or NF4 that computes in ``dtype``; see ``pick_linear``."""
    from transformers import BitsAndBytesConfig

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it tells of every layer what 8 bits mean
    make: Any = BitsAndBytesConfig
    skipped, _ = pick_linear(quantize, model, routers, device)
    if quantize == "8bit":
        return make(load_in_8bit=True, llm_int8_skip_modules=skipped)
    return make(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=skipped,
    )


def quantized_note(model: Any, quantize: str) -> str:
    """How much of a model bitsandbytes has quantised: linear layers, but not experts that are one tensor per layer."""
    nn_of: Any = import_module("bitsandbytes.nn")
    kinds = (nn_of.Linear8bitLt, nn_of.Linear4bit)
    linear = [module for module in model.modules() if isinstance(module, kinds)]
    quantised = sum(module.in_features * module.out_features for module in linear)
    packed = {id(module.weight) for module in linear}
    share = quantised / (quantised + sum(part.numel() for part in model.parameters() if id(part) not in packed))
    return (
        f"--quantize {quantize}: {100 * share:.1f} % of the parameters are quantised; bitsandbytes takes linear layers"
        " only, not experts that are merged into one tensor"
    )


def unknown_layout(checkpoint: Checkpoint, missing: list[str]) -> MoetoolError:
    """The error for weights that transformers does not find in a checkpoint that it loads through another package."""
    method = method_of(quantization_of(checkpoint) or {})
    return MoetoolError(
        f"{checkpoint.name}: transformers finds no weights for {missing[0]} in this {method} checkpoint"
        + (f", nor for {len(missing) - 1} more" if missing[1:] else ""),
        f"take one in a format of which the experts can be read: {', '.join(sorted(FORMATS))}",
    )


def check_unpacked(model: Any) -> None:
    """MoetoolError where a module of the model itself got packed numbers as if they were weights.

    transformers quantises modules of torch, and merges what is stored of experts into tensors of its own.
    """
    for path, module in model.named_modules():
        if type(module).__module__.startswith(("transformers.models.", "torch.nn.")):
            for name, parameter in module._parameters.items():
                if parameter is not None and parameter.dtype.itemsize == 1:
                    raise MoetoolError(
                        f"transformers loads {path}.{name} as {str(parameter.dtype).removeprefix('torch.')},"
                        " without the scales that it needs",
                        f"take a checkpoint that is not quantised, or is in one of {', '.join(sorted(FORMATS))}",
                    )


def _sparse(settings: Mapping[str, Any]) -> bool:
    return bool((settings.get("sparsity_config") or {}).get("format", "dense") != "dense")


def plain_config(config: Any) -> Any:
    """A transformers config that says nothing of quantisation, for weights that are dequantised already."""
    config = copy.deepcopy(config)
    for part in {id(part): part for part in (config, config.get_text_config())}.values():
        for key in ("quantization_config", "compression_config"):
            part.__dict__.pop(key, None)
    return config
