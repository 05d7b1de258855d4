"""The page of a generation: texts, their routing, weights and the report enter, one self-contained HTML file leaves.

The file loads nothing: styles, script and data are in it, and its content security policy allows these only. Texts
reach the page as JSON in which nothing can end a script, and the script writes them as text, never as HTML.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moetool.report.page.about import about_section
from moetool.report.page.palette import tint_of
from moetool.report.report import Report
from moetool.report.values import inert

if TYPE_CHECKING:
    from moetool.capture.generation import Generation
    from moetool.capture.generation_steps import Preferences
    from moetool.capture.trace import TraceLayer

_SCRIPTS = ("data.js", "drawing.js", "side.js", "page.js")
"""In the order in which they are joined."""
_FULL = 65534
"""A share of 1 as uint16; one more stands for undefined."""


@dataclass(frozen=True, slots=True)
class Weights:
    """What of a model is in memory, and what a token needs of it."""

    parameters: int
    """Without multi-token prediction."""
    loaded_bytes: int
    active_share: float | None
    """Of the parameters, those that one token uses; None where the config does not tell K."""
    routed_share: tuple[float, ...]
    """``[L]`` of the parameters, those of the routed experts of each MoE layer."""


@dataclass(frozen=True, slots=True)
class CacheHits:
    """How well a cache would serve the new tokens."""

    size: int
    """Experts of each layer that it holds."""
    rates: tuple[NDArray[np.float64], ...]
    """Per text ``[T]``: the share of hits up to each token; NaN before the first new one."""


def falling_weight(layer: TraceLayer) -> NDArray[np.intp]:
    """``[N, K]`` places of a token's choices by falling weight; as they are where there are no weights."""
    weight = np.zeros(layer.chosen.shape) if layer.weight is None else np.abs(layer.weight.astype(np.float64))
    return np.argsort(-weight, axis=1, kind="stable")


def weight_shares(layer: TraceLayer) -> NDArray[np.float64]:
    """``[N, K]`` of a token's weights; equal ones where there are no weights."""
    weight = np.ones(layer.chosen.shape) if layer.weight is None else np.abs(layer.weight.astype(np.float64))
    shares: NDArray[np.float64] = weight / np.maximum(weight.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    return shares


def render_page(
    generations: Sequence[Generation],
    weights: Weights,
    layer: int,
    report: Report | None = None,
    cache: CacheHits | None = None,
) -> str:
    """The page of one text, or of two side by side; ``layer`` is the number of the one that is selected at first.

    With ``report`` it says what the run was, with ``cache`` how that would have served it. The same texts and routing
    give the same bytes.
    """
    folder = Path(__file__).parent
    style = (folder / "page.css").read_text(encoding="utf-8")
    script = "".join((folder / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    model = generations[0].trace.model
    data = {
        "model": {"name": inert(str(model.get("name"))), "family": inert(str(model.get("family")))},
        "layer": [one.layer for one in generations[0].trace.layers].index(layer),
        "weights": asdict(weights),
        "cache": None if cache is None else cache.size,
        "palette": [tint_of(expert) for expert in range(max(one.experts for one in generations[0].trace.layers))],
        "runs": [
            {**_describe(generation), "hits": None if cache is None else _pack(_shares(cache.rates[place]))}
            for place, generation in enumerate(generations)
        ],
    }
    parts = {
        "title": escape(f"moetool generate: {data['model']['name']}"),  # type: ignore[index]
        "policy": f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; base-uri 'none'",
        "style": style,
        "about": "" if report is None else about_section(report),
        "data": json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
        "script": script,
    }
    page = (folder / "page.html").read_text(encoding="utf-8")
    head, *rest = page.split("{{")
    return head + "".join(parts[name] + text for name, _, text in (part.partition("}}") for part in rest))


def _hash(content: str) -> str:
    """How a content security policy names an inline style or script that it allows."""
    return f"'sha256-{b64encode(sha256(content.encode('utf-8')).digest()).decode()}'"


def _describe(generation: Generation) -> dict[str, Any]:
    trace = generation.trace
    layers = zip(trace.layers, generation.preferences, strict=True)
    return {
        "name": trace.documents[0].id,
        "promptTokens": generation.prompt_tokens,
        "stopped": generation.stopped,
        "texts": ["\n".join(map(inert, text.split("\n"))) for text in generation.texts],
        "special": _pack(trace.special.astype(np.uint8)),
        "probability": _pack(_shares(generation.probability)),
        "layers": [_describe_layer(layer, preferences) for layer, preferences in layers],
    }


def _describe_layer(layer: TraceLayer, preferences: Preferences | None) -> dict[str, Any]:
    """The arrays of a layer in base64, the experts of a token by falling weight."""
    order, share = falling_weight(layer), weight_shares(layer)
    entropy = margin = None
    if layer.scores is not None:
        entropy = layer.scores[:, 0].astype(np.float64) / max(np.log(layer.experts), 1e-9)
        margin = layer.scores[:, 2].astype(np.float32)
    return {
        "layer": layer.layer,
        "part": layer.part,
        "experts": layer.experts,
        "computing": layer.experts - layer.zero_experts,
        "perToken": layer.experts_per_token,
        "refusedCount": 0 if preferences is None else preferences.refused.shape[1],
        "chosen": _pack(np.take_along_axis(layer.chosen, order, axis=1)),
        "weight": _pack(_shares(np.take_along_axis(share, order, axis=1))),
        "given": None if preferences is None else _pack(_shares(np.take_along_axis(preferences.chosen, order, axis=1))),
        "refused": None if preferences is None else _pack(preferences.refused),
        "refusedGiven": None if preferences is None else _pack(_shares(preferences.refused_probability)),
        "entropy": None if entropy is None else _pack(_shares(entropy)),
        "margin": None if margin is None else _pack(margin),
    }


def _shares(values: NDArray[Any]) -> NDArray[np.uint16]:
    """Numbers from 0 to 1 as uint16; NaN as the largest."""
    scaled = np.round(np.clip(values.astype(np.float64), 0, 1) * _FULL)
    return np.where(np.isnan(scaled), _FULL + 1, scaled).astype(np.uint16)


def _pack(array: NDArray[Any]) -> str:
    """The array's values, little-endian and row by row, in base64."""
    return b64encode(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"))).tobytes()).decode("ascii")
