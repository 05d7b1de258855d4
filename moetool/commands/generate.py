"""``generate``: what a model wrote and how it was routed enter, the Report of it leaves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from moetool import __version__
from moetool.report.report import Column, Finding, Report, Table, Value

if TYPE_CHECKING:
    from moetool.capture.generation import Generation
    from moetool.commands.generate_run import Written
    from moetool.commands.generate_usage import Usage
    from moetool.report.page import Weights
    from moetool.statistics.sample import LayerSample

Row = Mapping[str, Value]

WEIGHT_COLUMNS = (
    Column("loaded_parameters", "Loaded parameters", "parameters", help="All that the model has in memory."),
    Column("loaded_bytes", "Loaded", "bytes", help="Weights and buffers in memory."),
    Column("active_share", "Active per token", "share", help="Of the parameters, those that one token uses."),
)
PROMPT_COLUMNS = (
    Column("prompt_tokens", "Prompt tokens", "count", help="Read at once, those of a chat template included."),
    Column("new_tokens", "New tokens", "count", help="Written one by one."),
    Column("touched_share", "Touched", "share", help="Of the parameters, those that some token of the text used."),
    Column("distinct_experts", "Distinct experts", "count", help="Pairs of layer and expert that some token chose."),
    Column("distinct_share", "Distinct share", "share", help="Of all pairs of layer and expert."),
    Column(
        "cache_hit_rate", "Cache hits", "share",
        help="Choices of new tokens that are among the last C distinct experts of their layer (--cache C, LRU).",
    ),
    Column("repeat_rate", "Repeats", "share", help="Neighbours with the same first expert, mean over layers."),
    Column("repeat_rate_matched", "Repeats, matched", "share", help="The same for independent tokens of these loads."),
    Column("router_entropy", "Router entropy", "ratio", help="Over ln E, mean over layers: 1 if no preference."),
    Column("perplexity", "Perplexity", "number", help="Of the new tokens: exp of minus their mean log probability."),
)  # fmt: skip
SUMMARY_COLUMNS = (*PROMPT_COLUMNS[:2], *WEIGHT_COLUMNS, *PROMPT_COLUMNS[2:])
_NAME = Column("prompt", "Prompt", "text", help="prompt, or against for the text of --against.")
_ROW_COLUMNS = (
    _NAME,
    Column("prompt_text", "Prompt text", "text", detail=True),
    Column("text", "Text", "text", detail=True, help="What was written, without special tokens."),
    Column(
        "stopped", "Stopped", "text", help="length: --max-new-tokens; end: the model ended it; interrupted: Ctrl-C."
    ),
)
_TEXT_COLUMNS = (_NAME, Column("line", "Line", "count", detail=True), Column("text", "Text", "text"))
_TOKEN_COLUMNS = (
    _NAME,
    Column("index", "Index", "count", help="Place in prompt and text, from 0."),
    Column("token", "Token", "text", help="What it adds to the text."),
    Column("phase", "Phase", "text", help="prefill: of the prompt; decode: written."),
    Column("expert", "Expert", "number", help="The expert of the largest weight in the layer of --layer."),
    Column("entropy", "Entropy", "nats", help="Of that layer's router."),
    Column("margin", "Margin", "number", help="Last chosen minus first refused score of that layer's router."),
    Column("probability", "Probability", "share", help="That the model gave a written token, at temperature 1."),
)
_SHARED_STATISTICS = ("router_entropy", "top1_probability", "boundary_margin", "first_repeat", "first_repeat_matched")
"""Columns of the table of layers that are those of route-stats."""
_STOPS = {
    "length": Finding("info", "stopped_length", "The text ends at --max-new-tokens."),
    "end": Finding("info", "stopped_end", "The model ended the text."),
    "interrupted": Finding("warning", "interrupted", "Interrupted: the report is of what was written until then."),
}
_SHOWN_TOKENS = 24


def build_report(written: Written, options: Mapping[str, object]) -> Report:
    """What one or two prompts became; ``options`` are repeated in the report."""
    generations, weights, layer, cache = written.generations, written.weights, written.layer, written.cache
    rows = [_prompt_rows(generation, weights, cache) for generation in generations]
    known = {
        "loaded_parameters": weights.parameters,
        "loaded_bytes": weights.loaded_bytes,
        "active_share": weights.active_share,
    }
    first, several = generations[0], len(generations) > 1
    summary = {**known, **{column.key: rows[0][0][column.key] for column in PROMPT_COLUMNS}}
    prompts = tuple(row for row, _ in rows)
    layers = tuple(row for _, per_layer in rows for row in per_layer)
    tables = (
        Table("prompts", "Prompts", (*_ROW_COLUMNS, *PROMPT_COLUMNS), prompts, for_scripts=not several),
        Table("text", "Generated text", _named(_TEXT_COLUMNS, several), _text_rows(generations)),
        Table("layers", "Layers", _named(_layer_columns(), several), layers),
        Table(
            "tokens", f"Tokens, experts of layer {layer}", _named(_TOKEN_COLUMNS, several),
            tuple(row for one in generations for row in _token_rows(one, layer)), text_rows=_SHOWN_TOKENS,
        ),
    )  # fmt: skip
    return Report(
        command="generate",
        model={key: cast(Value, first.trace.model.get(key)) for key in ("name", "revision", "family")},
        options=cast(Mapping[str, Value], {**options, "layer": layer, "cache": cache}),
        summary_columns=SUMMARY_COLUMNS,
        summary=summary,
        tables=tables,
        findings=_findings(generations),
        environment={"moetool": __version__},
    )


def _named(columns: tuple[Column, ...], several: bool) -> tuple[Column, ...]:
    """Pages for people name the prompt of a row only where there are two."""
    return columns if several else (replace(columns[0], detail=True), *columns[1:])


def _prompt_rows(generation: Generation, weights: Weights, cache: int) -> tuple[Row, list[Row]]:
    """The row of a prompt, and the rows of its layers."""
    import numpy as np

    from moetool.statistics.sample import count_tokens, sample_layers

    usage = measure_usage(generation, cache)
    samples = sample_layers(generation.trace, count_tokens(generation.trace))
    layers = [_layer_row(sample, usage, place) for place, sample in enumerate(samples)]
    new = generation.probability[generation.prompt_tokens :].astype(float)
    row: dict[str, Value] = {
        "prompt": generation.trace.documents[0].id,
        "prompt_text": generation.prompt,
        "text": generation.text,
        "stopped": generation.stopped,
        "prompt_tokens": generation.prompt_tokens,
        "new_tokens": len(new),
        "touched_share": usage.touched_share(weights),
        "distinct_experts": sum(usage.distinct),
        "distinct_share": usage.distinct_share,
        "cache_hit_rate": usage.hit_rate,
        "repeat_rate": _mean(layers, "first_repeat"),
        "repeat_rate_matched": _mean(layers, "first_repeat_matched"),
        "router_entropy": _mean(layers, "router_entropy"),
        "perplexity": float(np.exp(-np.log(np.maximum(new, np.finfo(np.float32).tiny)).mean())) if len(new) else None,
    }
    return row, [{"prompt": row["prompt"], **layer} for layer in layers]


def measure_usage(generation: Generation, cache: int) -> Usage:
    """What prompt and text have used."""
    from moetool.commands.generate_usage import Usage

    layers, prompt = generation.trace.layers, generation.prompt_tokens
    usage = Usage(layers, cache)
    usage.add([layer.chosen[:prompt] for layer in layers], decode=False)
    usage.add([layer.chosen[prompt:] for layer in layers], decode=True)
    return usage


def _layer_row(sample: LayerSample, usage: Usage, place: int) -> Row:
    from moetool.statistics.registry import LAYER_STATISTICS, defined

    shared = {item.key: defined(item.compute(sample)) for item in LAYER_STATISTICS if item.key in _SHARED_STATISTICS}
    return {
        "layer": sample.layer.layer,
        "experts": sample.layer.experts,
        "experts_per_token": sample.layer.experts_per_token,
        "distinct_experts": usage.distinct[place],
        "distinct_share": usage.distinct[place] / usage.experts[place],
        "cache_hit_rate": usage.hit_rate_of(place),
        **shared,
    }


def _layer_columns() -> tuple[Column, ...]:
    from moetool.statistics.registry import LAYER_STATISTICS

    shared = [item for item in LAYER_STATISTICS if item.key in _SHARED_STATISTICS]
    return (
        _NAME,
        Column("layer", "Layer", "number", help="Decoder layer; dense layers leave gaps."),
        Column("experts", "Experts", "count", detail=True, help="Routed experts E of the layer."),
        Column("experts_per_token", "Per token", "count", detail=True, help="Experts K that each token chooses."),
        Column("distinct_experts", "Distinct", "count", help="Experts that some token of prompt and text chose."),
        Column("distinct_share", "Distinct share", "share", help="Of the experts of the layer."),
        Column("cache_hit_rate", "Cache hits", "share", help="As in the summary, of this layer."),
        *(Column(item.key, item.title, item.unit, item.detail, item.help) for item in shared),
    )


def _mean(rows: Sequence[Row], key: str) -> float | None:
    known = [float(value) for row in rows if isinstance(value := row[key], float | int)]
    return sum(known) / len(known) if known else None


def _text_rows(generations: Sequence[Generation]) -> tuple[Row, ...]:
    return tuple(
        {"prompt": generation.trace.documents[0].id, "line": number, "text": line}
        for generation in generations
        for number, line in enumerate(generation.text.splitlines(), start=1)
    )


def _token_rows(generation: Generation, number: int) -> list[Row]:
    import numpy as np

    from moetool.capture.trace import SCORE_COLUMNS
    from moetool.statistics.locality import first_choice

    layer = next(layer for layer in generation.trace.layers if layer.layer == number)
    scores = np.full((len(generation.texts), len(SCORE_COLUMNS)), np.nan) if layer.scores is None else layer.scores
    columns = zip(
        generation.texts,
        first_choice(layer.chosen, layer.weight).tolist(),
        scores[:, SCORE_COLUMNS.index("router_entropy")].tolist(),
        scores[:, SCORE_COLUMNS.index("boundary_margin")].tolist(),
        generation.probability.tolist(),
        strict=True,
    )
    return [
        {
            "prompt": generation.trace.documents[0].id,
            "index": index,
            "token": text,
            "phase": "prefill" if index < generation.prompt_tokens else "decode",
            "expert": expert,
            "entropy": _finite(entropy),
            "margin": _finite(margin),
            "probability": _finite(probability),
        }
        for index, (text, expert, entropy, margin, probability) in enumerate(columns)
    ]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _findings(generations: Sequence[Generation]) -> tuple[Finding, ...]:
    findings = []
    for generation in generations:
        name = f"{generation.trace.documents[0].id}: " if len(generations) > 1 else ""
        stop = _STOPS[generation.stopped]
        findings.append(Finding(stop.level, stop.code, f"{name}{stop.message}"))
    if len(generations) > 1:
        findings.append(_overlap(*generations))
    message = "One text never shows a dead expert: route-stats on a corpus tells which ones are not used."
    return (*findings, Finding("info", "one_text", message))


def _overlap(one: Generation, other: Generation) -> Finding:
    """How far two texts use the same experts, over all layers."""
    pairs = [
        {(layer.layer, expert) for layer in generation.trace.layers for expert in set(layer.chosen.ravel().tolist())}
        for generation in (one, other)
    ]
    common, either = len(pairs[0] & pairs[1]), len(pairs[0] | pairs[1])
    message = f"Of the {either} pairs of layer and expert that either text used, both used {common}."
    return Finding("info", "shared_experts", message)
