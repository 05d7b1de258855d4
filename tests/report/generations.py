"""Made-up generations of any size, for the report, the page and the live view."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from moetool.capture.generation import Generation
from moetool.capture.generation_steps import Preferences, RoutedLayer, Step
from moetool.capture.trace import TraceLayer, chosen_dtype
from moetool.commands.generate import build_report
from moetool.commands.generate_run import Written
from moetool.commands.generate_usage import running_hit_rate
from moetool.report.page import CacheHits, Weights, render_page
from moetool.report.report import Report
from tests.statistics.traces import random_trace

HOSTILE = (
    "</script><script>document.title='broken'</script>",
    "<!--",
    "\x1b[2J\x07",
    "\u202eabc\u2067",
    "\U0001f469\u200d\U0001f4bb",
    "line\nline",
    "&lt;b>",
    "\ufeff\x00",
    "\u05e9\u05dc\u05d5\u05dd",
    "x" * 10_000,
)
"""Texts of tokens that would do harm if they were taken for HTML, JSON or terminal controls."""


def make_weights(layers: int) -> Weights:
    """Half of a model is experts, spread over its layers."""
    return Weights(1_000_000, 2_000_000, 0.6, (0.5 / layers,) * layers)


def make_layer(chosen, experts: int, weight=None, layer: int = 0, **changes) -> TraceLayer:
    """A layer of chosen experts, token by token."""
    array = np.array(chosen, dtype=chosen_dtype(experts))
    return TraceLayer(layer, experts, array.shape[1], "softmax", array, weight, **changes)


def make_generation(
    tokens: int, layers: int, experts: int, per_token: int, *, prompt_tokens: int = 2, texts: Sequence[str] = (),
    name: str = "prompt", seed: int = 0,
) -> Generation:  # fmt: skip
    """Random routing; ``texts`` are those of the first tokens."""
    random = np.random.default_rng(seed)
    trace = random_trace(seed, experts, per_token, [tokens], layers=layers, special=[0])
    document = replace(trace.documents[0], id=name, domain=name, prompt_tokens=prompt_tokens)
    preferences = []
    for layer in trace.layers:
        refused = min(12, experts - per_token)
        others = random.random((tokens, experts))
        np.put_along_axis(others, layer.chosen.astype(int), -1, axis=1)
        ids = np.argsort(-others, axis=1)[:, :refused].astype(chosen_dtype(experts))
        falling = -np.sort(-random.random((tokens, refused)), axis=1) / experts
        preferences.append(Preferences(layer.weight.astype(np.float32), ids, falling.astype(np.float32)))
    probability = random.random(tokens).astype(np.float32)
    probability[:prompt_tokens] = np.nan
    words = [*texts, *(f" word{token}" for token in range(len(texts), tokens))]
    return Generation("a prompt", replace(trace, documents=(document,)), tuple(words), probability,
                      tuple(preferences), "length")  # fmt: skip


def make_full_page(generations: Sequence[Generation], cache: int = 4) -> tuple[str, Report]:
    """The page as the command writes it, and its report."""
    weights = make_weights(len(generations[0].trace.layers))
    report = build_report(Written(generations, weights, 1, cache), {"seed": 7, "temperature": 0.5})
    hits = CacheHits(cache, tuple(running_hit_rate(generation, cache) for generation in generations))
    return render_page(generations, weights, 1, report, hits), report


def make_steps(generation: Generation) -> list[Step]:
    """The forward passes of a generation."""
    trace, steps = generation.trace, []
    bounds = [0, *range(generation.prompt_tokens, len(trace.tokens) + 1)]
    for start, stop in pairwise(bounds):
        layers = tuple(
            RoutedLayer(
                replace(layer, chosen=layer.chosen[start:stop], weight=layer.weight[start:stop]),
                Preferences(one.chosen[start:stop], one.refused[start:stop], one.refused_probability[start:stop]),
            )
            for layer, one in zip(trace.layers, generation.preferences, strict=True)
        )
        steps.append(
            Step(
                start, trace.tokens[start:stop], generation.texts[start:stop], trace.special[start:stop],
                generation.probability[start:stop], layers, generation.texts[stop % len(generation.texts)], 0.5,
            )
        )  # fmt: skip
    return steps
