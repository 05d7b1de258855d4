"""The weights of a model piece by piece: a module path enters, its parameters are there, and go again.

Parameters that are stored tensors under other names, or stacks of experts, are copied straight to their place (on a CPU
not even that, where a tensor can be used as it lies in the file). transformers' own loader converts the rest, so each
layout that it can load loads here in the same way.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import nn

from moetool.capture.assembly import Assembly, assemblies
from moetool.capture.buffers import BufferPool
from moetool.capture.loading import DTYPES, TensorFiles, mismatched_tensors, missing_tensors
from moetool.capture.quantized import open_weight, stored_weights
from moetool.checkpoint.types import Checkpoint
from moetool.errors import MoetoolError


class PieceLoader:
    """Loads the weights under one module path at a time into a model on the meta device, and releases them again."""

    def __init__(self, model: Any, checkpoint: Checkpoint, dtype: str, device: torch.device) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter

        self.model, self.device, self.dtype = model, device, DTYPES[dtype]
        self.mapping = get_model_conversion_mapping(model)
        self.files = TensorFiles(checkpoint)
        self.weights = stored_weights(checkpoint)
        self.shapes = {name: weight.shape for name, weight in self.weights.items()}
        self.converters = {
            pattern: entry
            for entry in self.mapping
            if isinstance(entry, WeightConverter)
            for pattern in entry.source_patterns
        }
        self.state = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in model.state_dict().items()}
        self.sources = self._match()
        self._tie()
        self.targets = sorted(self.sources)
        self.dtype_plan = model._get_dtype_plan(self.dtype) or {}
        self.buffers = BufferPool(device)
        self.stopping = False

    @property
    def only_copies(self) -> bool:
        """Whether loading is copying in the memory of the host, which one thread does as fast as several."""
        return self.device.type == "cpu" and all(weight.layout is None for weight in self.weights.values())

    def _match(self) -> dict[str, list[tuple[str, str | None]]]:
        """By parameter: the stored weights that it is made of, in their natural order, and the converter of each."""
        from transformers.core_model_loading import WeightRenaming, dot_natural_key, rename_source_key

        renamings = [entry for entry in self.mapping if isinstance(entry, WeightRenaming)]
        converters = list(dict.fromkeys(self.converters.values()))
        prefix = self.model.base_model_prefix
        sources: dict[str, list[tuple[str, str | None]]] = {}
        for name in sorted(self.weights, key=dot_natural_key):
            target, pattern = rename_source_key(name, renamings, converters, prefix, self.state)
            if target not in self.state and name in self.state:
                target, pattern = name, None
            sources.setdefault(target, []).append((name, pattern))
        return sources

    def _tie(self) -> None:
        """Parameters that are one in the model are stored once, under the name of any of them."""
        together: dict[int, list[str]] = {}
        for name, tensor in self.model.state_dict(keep_vars=True).items():
            together.setdefault(id(tensor), []).append(name)
        for names in together.values():
            stored = next((self.sources[name] for name in names if name in self.sources), None)
            for name in names if stored else ():
                self.sources.setdefault(name, stored)  # type: ignore[arg-type]

    def load(self, prefix: str, without: Iterable[str] = ()) -> None:
        """Fill every parameter and buffer of the module at ``prefix``, leaving out the given sub-paths.

        Raises MoetoolError where the checkpoint lacks a tensor or has it in another shape.
        """
        skipped = tuple(without)
        sources = {target: self.sources[target] for target in self._targets(prefix, skipped)}
        shapes = {target: self.state[target][0] for target in sources if target in self.state}
        self.buffers.begin()
        straight, rest = assemblies(sources, self.converters, self.shapes, shapes)
        for assembly in straight:
            if self.stopping:
                return
            self._set(assembly.target, self._assemble(assembly))
        if rest:
            self._convert(rest)
        self.buffers.end()
        self._make_buffers(prefix, skipped)
        self._check_complete(prefix, skipped)

    def check(self, prefixes: Sequence[str]) -> None:
        """Raise MoetoolError where the checkpoint lacks tensors of these modules: known from the headers, at once."""
        for prefix in prefixes:
            made = {target: self.sources[target] for target in self._targets(prefix, ())}
            used = {pattern for names in made.values() for _, pattern in names if pattern is not None}
            if any(len(self.converters[pattern].target_patterns) > 1 for pattern in used):
                continue  # one tensor makes several parameters, of which only the first is known here
            lacking = [name for name in self.state if _under(name, prefix) and name not in made]
            if lacking:
                raise missing_tensors(lacking)
            for target, names in made.items():
                if target in self.state:
                    _check_stack(target, names, self.converters, self.state[target][0])

    def size_of(self, prefix: str) -> int:
        """Bytes of the parameters and buffers of a module once it is loaded."""
        sizes = (self.state[target] for target in self._targets(prefix, ()) if target in self.state)
        return sum(prod(shape) * dtype.itemsize for shape, dtype in sizes)

    def _targets(self, prefix: str, skipped: tuple[str, ...]) -> Iterator[str]:
        start = bisect_left(self.targets, prefix + "." if prefix else "")
        for target in self.targets[start:]:
            if not _under(target, prefix):
                return
            if not any(_under(target, path) for path in skipped):
                yield target

    def _assemble(self, assembly: Assembly) -> torch.Tensor:
        """One parameter on the device, in the type that the model wants there."""
        shape, dtype = self.state[assembly.target]
        dtype = self._wanted_dtype(assembly.target, dtype)
        weights = [(open_weight(self.weights[name], self.files.read), index) for name, index in assembly.parts]
        only = weights[0][0]
        if len(weights) == 1 and self.device.type == "cpu" and isinstance(only, torch.Tensor) and only.dtype == dtype:
            return only
        on_device = self.device.type != "cpu" and not isinstance(only, torch.Tensor)  # dequantised there
        buffer = torch.empty(shape, dtype=dtype, device=self.device) if on_device else self.buffers.take(shape, dtype)
        for weight, index in weights:
            part = weight if isinstance(weight, torch.Tensor) else weight.to(buffer.device, dtype)
            if part.shape != buffer[index].shape:
                raise MoetoolError(
                    f"{assembly.target} needs a part of shape {list(buffer[index].shape)}, not {list(part.shape)}"
                )
            buffer[index].copy_(part)
        return buffer if on_device else self.buffers.to_device(buffer)

    def _wanted_dtype(self, target: str, dtype: torch.dtype) -> torch.dtype:
        for pattern, planned in self.dtype_plan.items():
            if re.search(pattern.replace("*", ".*"), target):  # as transformers reads it
                return planned  # type: ignore[no-any-return]
        return dtype

    def _set(self, target: str, tensor: torch.Tensor) -> None:
        path, _, name = target.rpartition(".")
        module = self.model.get_submodule(path)
        if name in module._parameters:
            tensor = module._parameters[name] = nn.Parameter(tensor, requires_grad=False)
        else:
            module._buffers[name] = tensor
        tensor._is_hf_initialized = True  # type: ignore[attr-defined] # else _init_weights would fill it anew

    def _convert(self, names: Sequence[str]) -> None:
        """Load some weights by transformers' own loader."""
        from transformers.core_model_loading import convert_and_load_state_dict_in_model
        from transformers.modeling_utils import LoadStateDictConfig

        load_config = LoadStateDictConfig(
            dtype=self.dtype,
            dtype_plan=self.dtype_plan,
            device_map={"": self.device},
            weight_mapping=self.mapping,  # type: ignore[arg-type]
        )
        weights = {name: open_weight(self.weights[name], self.files.read) for name in names}
        result = convert_and_load_state_dict_in_model(self.model, weights, load_config, None)
        info = result[0] if isinstance(result, tuple) else result
        if info.mismatched_keys:
            raise mismatched_tensors(info.mismatched_keys)
        if info.conversion_errors:
            raise MoetoolError(f"tensors could not be converted: {sorted(info.conversion_errors)[0]}")

    def _make_buffers(self, prefix: str, skipped: tuple[str, ...]) -> None:
        """Compute the buffers that no checkpoint stores (rotary frequencies), by the model's own rule.

        That rule sees every module with buffers, as when transformers loads: some families set a stored one anew.
        """
        for path, module in self.model.get_submodule(prefix).named_modules(prefix=prefix):
            names = module._non_persistent_buffers_set
            if not module._buffers or any(_under(path + ".", skip) for skip in skipped):
                continue
            for name in names:
                if module._buffers.get(name) is not None:
                    module._buffers[name] = torch.empty_like(module._buffers[name], device=self.device)
            self._nearest_model(path)._init_weights(module)

    def _nearest_model(self, path: str) -> Any:
        from transformers import PreTrainedModel

        while path:
            path = path.rpartition(".")[0]
            module = self.model.get_submodule(path)
            if isinstance(module, PreTrainedModel):
                return module
        return self.model

    def _check_complete(self, prefix: str, skipped: tuple[str, ...]) -> None:
        module = self.model.get_submodule(prefix)
        state = module.state_dict(keep_vars=True, prefix=prefix + "." if prefix else "")
        missing = [
            name
            for name, tensor in state.items()
            if tensor is not None and tensor.is_meta and not any(_under(name, skip) for skip in skipped)
        ]
        if missing:
            raise missing_tensors(missing)

    def release(self, prefix: str) -> None:
        """Put the module at ``prefix`` back on the meta device; its memory is used for the next piece, or freed."""
        for module in self.model.get_submodule(prefix).modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    self.buffers.give(parameter.data)
                    module._parameters[name] = nn.Parameter(
                        torch.empty_like(parameter, device="meta"), requires_grad=False
                    )
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = torch.empty_like(buffer, device="meta")

    def stop(self) -> None:
        """End a load that runs in the background."""
        self.stopping = True

    def close(self) -> None:
        """Unmap the files."""
        self.files.close()


def _check_stack(
    target: str, names: Sequence[tuple[str, str | None]], converters: Mapping[str, Any], shape: Sequence[int]
) -> None:
    """Raise MoetoolError where experts are missing from a stack, or there are more than the config says."""
    pattern = names[0][1]
    if pattern is None or type(converters[pattern].operations[0]).__name__ != "MergeModulelist":
        return
    for one in converters[pattern].source_patterns:
        found = sum(own == one for _, own in names)
        if found and found != shape[0]:
            raise MoetoolError(
                f"the checkpoint lacks parts of {target}: it has {found} of {shape[0]} ({one})",
                "download it again: a shard may be missing or from another model",
            )


def _under(name: str, prefix: str) -> bool:
    return not prefix or name.startswith(prefix + ".")
