"""Recordings of other tools: the name of a format enters, its reader leaves (one module each, imported when needed)."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from moetool.capture.imports.recording import Reader

FORMATS: Mapping[str, str] = {
    "esft": "a folder of expert_weights_N.txt as ESFT's scripts write them: a line per document",
    "vllm": ".npy or .npz of routed_experts arrays [tokens, layers, experts per token]; in .npz a number "
    "NAME.prompt_tokens tells the length of the prompt of the array NAME, else it is unknown",
    "sglang": ".pt dumps of the expert distribution recorder, .json/.jsonl responses with routed_experts, or .json "
    "with logical_count",
    "llamacpp": ".csv of the moe-trace example (layer,expert), or a route trace with a header that names step, layer, "
    "expert and more (turn,phase,slot,weight,dropped)",
}
"""What a recording of each format is; the module of that name has a function ``read``."""


def reader_of(name: str) -> Reader:
    """The function that reads one source of a format of FORMATS."""
    return cast("Reader", import_module(f"{__name__}.{name}").read)
