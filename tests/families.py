"""Tiny random checkpoints of every Mixture-of-Experts family that transformers has, and a list of those families."""

from __future__ import annotations

import ast
import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from moetool.model.meta import native_class
from tests.checkpoints import COMMON, FAMILIES, make_tokenizer
from tests.families_tiny import DEEPER, NESTED, TEXT, VARIANTS

TESTED = transformers.__version__ == "5.23.0"
NOT_IN_OLDER = {
    "aria_text": "its experts choose inside: a clear error",
    "inkling_mm_model": "the whole model embeds tokens otherwise than its text part",
    "switch_transformers": "its router hands its mask on in another shape: a clear error",
    "zaya": "its experts skip differently when grouped",
}
"""What transformers 5.17 does differently, by model type."""
MODELS = Path(transformers.__file__).parent / "models"
CHOOSING = frozenset({"topk", "argmax", "max", "sparsemixer"})
"""How a router of transformers picks experts; the last is phimoe's own."""
COMPOSED = re.compile(r'(?:model_type=|CONFIG_MAPPING\[)"([^"]+)"')
"""How the source of a config names the type of a part."""
NOT_MOE = {"gemma4_assistant": "its config refuses a gemma4_text that has experts"}
TINY: dict[str, dict[str, Any]] = {
    **FAMILIES,
    **TEXT,
    **NESTED,
    **DEEPER,
}
"""Settings of a tiny model by ``model_type``; models of several towers are whole, as they are published."""


def moe_families() -> dict[str, str]:
    """The directories of transformers' models that route tokens to experts, each with what says so.

    Either a class of its modeling file names experts and calls one of CHOOSING (ViTPose's experts belong to data sets,
    so nothing is chosen there); or its config composes, by default, the causal language model of such a directory.
    """
    own: dict[str, str] = {}
    for path in sorted(MODELS.glob("*/modeling_*.py")):
        source = path.read_text(encoding="utf-8")
        if "expert" in source.lower():
            for name in _choosing_classes(ast.parse(source)):
                own.setdefault(path.parent.name, name)
    decoders = {name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if name in CONFIG_MAPPING and directory(name) in own}
    composed = {}
    for path in sorted(MODELS.glob("*/configuration_*.py")):
        parts = set(COMPOSED.findall(path.read_text(encoding="utf-8"))) & decoders
        if parts and path.parent.name not in own:
            composed[path.parent.name] = f"composes {', '.join(sorted(parts))}"
    return {name: reason for name, reason in sorted((own | composed).items()) if name not in NOT_MOE}


def _choosing_classes(tree: ast.Module) -> Iterator[str]:
    for definition in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        nodes = list(ast.walk(definition))
        calls = {_name(node.func) for node in nodes if isinstance(node, ast.Call)}
        if calls & CHOOSING and any("expert" in _name(node).lower() for node in nodes):
            yield definition.name


def _name(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def directory(model_type: str) -> str:
    """The directory of transformers' models that a model type is of: ``nllb_moe`` for ``nllb-moe``."""
    return str(CONFIG_MAPPING[model_type].__module__.split(".")[-2])


def names() -> list[str]:
    """The keys of TINY and VARIANTS that the installed transformers has; what an older one cannot build is left out."""
    return [name for name in (*TINY, *VARIANTS) if _usable(name)]


def _usable(name: str) -> bool:
    if TESTED or settings(name)[0] not in CONFIG_MAPPING or settings(name)[0] in NOT_IN_OLDER:
        return TESTED and settings(name)[0] in CONFIG_MAPPING
    try:
        build(name)
    except Exception:  # whatever a version does not know yet of a config
        return False
    return True


def settings(name: str) -> tuple[str, dict[str, Any]]:
    """Model type and tiny config of a key of TINY or VARIANTS."""
    return VARIANTS[name] if name in VARIANTS else (name, TINY[name])


ROUTER = re.compile(r"(?:^|\.)(?:gate|router|router_gate)\.(?:\w+\.)*weight$")
"""Every matrix of a router; ``shared_expert_gate`` is none."""
CORRECTION = re.compile(r"(?:correction_bias|expert_bias|router\.bias)$")


def make_config(name: str, **changes: Any) -> Any:
    """The config of a key of TINY or VARIANTS."""
    model_type, own = settings(name)
    wanted = {**({} if model_type in NESTED else COMMON), **own, **changes}
    return AutoConfig.for_model(model_type, **copy.deepcopy(wanted))


def build(name: str, dtype: torch.dtype = torch.float32, seed: int = 0, **changes: Any) -> Any:
    """A random model of the class that moetool takes for a key of TINY or VARIANTS.

    Routers have standard deviation 1 and correction biases are not zero. Whatever transformers fills with one value
    (norms, scales, biases) gets noise, so that mixing two of them up cannot go unnoticed.
    """
    config = make_config(name, **changes)
    torch.manual_seed(seed)
    model = native_class(config)._from_config(config, dtype=dtype)
    _keep_in_float32(model)
    with torch.no_grad():
        for path, tensor in model.state_dict().items():
            if path.endswith("tid2eid"):
                tensor.copy_(torch.rand(len(tensor), config.n_routed_experts).argsort(-1)[:, : tensor.shape[1]])
            elif ROUTER.search(path) and tensor.dim() > 1:
                tensor.normal_(0, 1)
            elif path.endswith("balancing_biases"):
                tensor.normal_(-1, 0.3)
                tensor[-1] = -1  # what transformers sets the bias of skipping to, whatever a checkpoint says
            elif CORRECTION.search(path):
                tensor.normal_(0, 0.3)
            elif tensor.is_floating_point() and tensor.numel() and (tensor == (value := tensor.flatten()[0])).all():
                tensor.add_(torch.randn_like(tensor), alpha=0.1 if value else 0.01)
    return model.eval()


def _keep_in_float32(model: Any) -> None:
    """What loading a checkpoint does and making a model does not: some modules never run in a smaller type."""
    if kept := model._keep_in_fp32_modules_strict:
        pattern = re.compile(rf"(?:^|\.)(?:{'|'.join(re.escape(name) for name in sorted(kept))})(?:\.|$)")
        for path, tensor in model.state_dict(keep_vars=True).items():
            if pattern.search(path) and tensor.is_floating_point():
                tensor.data = tensor.data.float()


def save(folder: Path, name: str, **options: Any) -> Any:
    """Save a tiny model with its tokenizer and return it; ``max_shard_size`` splits it into several files."""
    shard_size = options.pop("max_shard_size", "5GB")
    model = build(name, **options)
    model.save_pretrained(folder, max_shard_size=shard_size)
    make_tokenizer().save_pretrained(folder)
    return model


def run(model: Any, input_ids: torch.Tensor) -> torch.Tensor:
    """Logits, or hidden states where there is no head, of a model of ``build`` for tokens ``[B, S]``."""
    inputs = {"input_ids": input_ids, "use_cache": False}
    if model.config.is_encoder_decoder or hasattr(model.config, "canvas_length"):
        inputs["decoder_input_ids"] = input_ids.flip(-1)[:, : getattr(model.config, "canvas_length", None)]
    with torch.inference_mode():
        output = getattr(model, "thinker", model)(**inputs)
    return output.logits if "logits" in output else output.last_hidden_state
