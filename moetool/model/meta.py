"""A model that only a config describes: built on torch's meta device, which holds shapes and no data.

Enters a config, leaves a Checkpoint of the tensors that transformers would save for it. This is the one file outside of
``capture`` that imports torch and transformers, and it does so in its functions. Remote code is never run: nobody looks
at ``auto_map``, the classes are transformers' own.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from typing import TYPE_CHECKING, Any

from moetool.checkpoint.dtypes import BITS, FROM_TORCH
from moetool.checkpoint.types import Checkpoint, TensorInfo
from moetool.errors import MoetoolError
from moetool.model.families import ZERO_EXPERTS, find, to_native

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

DEFAULT_DTYPE = "bfloat16"
"""What almost every published checkpoint is stored in; taken where the config names no dtype."""
_MAPPINGS = (
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_TEXT_TO_WAVEFORM_MAPPING_NAMES",
    "MODEL_MAPPING_NAMES",
)
MOST_LAYERS, MOST_EXPERTS = 1_000, 100_000
"""Several times what any published model has. A module is built per layer, so a slip of the pen would take hours."""
_COUNTED = re.compile(r"(?<!window)_(?:layers|n_layer|depths?|layer_types|block_type|pattern|experts)$")
_NO_LOGGING = 100
_ADVICE = (
    "moetool memory FOLDER counts any architecture by its safetensors headers; to run one, transformers must know it"
)


def plan_checkpoint(checkpoint: Checkpoint) -> Checkpoint:
    """The tensors of the model that ``checkpoint.config`` describes, in the config's dtype, tied ones once.

    The config of the result is completed with the defaults of its class. Raises MoetoolError for a ``model_type`` that
    transformers does not know, and for a config from which its class cannot build a model.
    """
    config = native_config(checkpoint.config, checkpoint.name)
    config._attn_implementation = "eager"  # the others have conditions that do not matter to counting
    model = build_meta_model(config, checkpoint.name)
    dtype = FROM_TORCH.get(_dtype_name(checkpoint.config), "BF16")
    completed = {**config.to_dict(), "model_type": checkpoint.config.get("model_type", config.model_type)}
    tensors = tuple(_tensors(model, dtype, find(completed, *ZERO_EXPERTS) or 0))
    return Checkpoint(checkpoint.name, checkpoint.revision, completed, tensors, None)


def native_config(config: Mapping[str, Any], name: str = "the config") -> PretrainedConfig:
    """transformers' own config object, with aliases such as ``kimi_k2`` resolved at every level."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    with _buildable(name):
        settings = _decode_floats(to_native(copy.deepcopy(dict(config))))
    model_type = settings.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        model_type = _type_of_architecture(settings)
    if model_type is None:
        raise MoetoolError(f"{name}: transformers knows no architecture {config.get('model_type')!r}", _ADVICE)
    settings["model_type"] = model_type
    _refuse_absurd(settings, name)
    with _silence(), _buildable(name):
        return CONFIG_MAPPING[model_type].from_dict(settings)


def _decode_floats(value: Any) -> Any:
    """Floats that JSON cannot write: transformers saves infinity as ``{"__float__": "Infinity"}``."""
    if isinstance(value, list):
        return [_decode_floats(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"__float__"}:
        return float(value["__float__"])
    return {key: _decode_floats(item) for key, item in value.items()}


def build_meta_model(
    config: PretrainedConfig, name: str = "the config", dtype: torch.dtype | None = None
) -> PreTrainedModel:
    """The model of a config on the meta device, in the config's dtype, or in ``dtype``."""
    import torch

    chosen = native_class(config, name)
    with _silence(), _buildable(name), torch.device("meta"):
        model: PreTrainedModel = chosen._from_config(  # type: ignore[no-untyped-call]
            config, **({} if dtype is None else {"dtype": dtype})
        )
    return model


def native_class(config: PretrainedConfig, name: str = "the config") -> type[PreTrainedModel]:
    """transformers' class for a config: the one in its ``architectures``, else the fullest one of its type."""
    import transformers

    chosen = _class_name(config)
    if chosen is None:
        raise MoetoolError(f"{name}: transformers has no model class for {config.model_type!r}", _ADVICE)
    found: type[PreTrainedModel] = getattr(transformers, chosen)
    return found


def _tensors(model: PreTrainedModel, dtype: str, zero_experts: int) -> Iterator[TensorInfo]:
    """Parameters and stored buffers; floating point ones are counted in ``dtype``, as they will be stored."""
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        kind = dtype if tensor.is_floating_point() else FROM_TORCH[str(tensor.dtype).removeprefix("torch.")]
        shape = tuple(tensor.shape)
        if zero_experts and name.endswith(".experts.gate_up_proj"):
            shape = (shape[0] - zero_experts, *shape[1:])  # transformers allocates what checkpoints do not have
        yield TensorInfo(name, kind, shape, prod(shape) * BITS[kind] // 8, None)


def _refuse_absurd(settings: Mapping[str, Any], name: str) -> None:
    """Raise MoetoolError where a config, or one nested in it, has more layers or experts than could be meant."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            _refuse_absurd(value, name)
        elif _COUNTED.search(f"_{key}"):
            count = len(value) if isinstance(value, list | str) else value if type(value) is int else 0
            most = MOST_EXPERTS if key.endswith("experts") else MOST_LAYERS
            if not 0 <= count <= most:
                raise MoetoolError(f"{name}: {key} stands for {count:,}; 0 to {most:,} are possible", _ADVICE)


def _type_of_architecture(settings: Mapping[str, Any]) -> str | None:
    """The model type of a known architecture under an unknown ``model_type``."""
    from transformers.models.auto import modeling_auto

    wanted = set(_names(settings.get("architectures")))
    for mapping in _MAPPINGS:
        for model_type, names in getattr(modeling_auto, mapping, {}).items():
            if wanted & set(names if isinstance(names, tuple | list) else [names]):
                return str(model_type)
    return None


def _class_name(config: PretrainedConfig) -> str | None:
    import transformers
    from transformers.models.auto import modeling_auto

    for architecture in _names(config.architectures):
        built_from = getattr(getattr(transformers, architecture, None), "config_class", None)
        if getattr(built_from, "model_type", None) == config.model_type:
            return architecture
    for mapping in _MAPPINGS:
        names = getattr(modeling_auto, mapping, {}).get(config.model_type)
        if names:
            return str(names if isinstance(names, str) else names[0])
    return None


def _names(value: Any) -> list[str]:
    """The strings in a list of a config, which may hold anything."""
    return [name for name in value if isinstance(name, str)] if isinstance(value, list | tuple) else []


def _dtype_name(config: Mapping[str, Any]) -> str:
    nested = config.get("text_config")
    for place in (config, nested if isinstance(nested, Mapping) else {}):
        for key in ("dtype", "torch_dtype"):
            if isinstance(place.get(key), str):
                return str(place[key])
    return DEFAULT_DTYPE


@contextmanager
def _silence() -> Iterator[None]:
    """transformers warns of what matters to running a model (kernels, rotary settings), not to counting it."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity(_NO_LOGGING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)


@contextmanager
def _buildable(name: str) -> Iterator[None]:
    """Whatever a model class raises about its config is the config's fault, and is told as such."""
    try:
        yield
    except MoetoolError:
        raise
    except Exception as error:
        raise MoetoolError(
            f"{name}: transformers cannot build a model of this config: {type(error).__name__}: {str(error)[:300]}",
            _ADVICE,
        ) from error
