"""``generate``: what a model wrote and how it was routed enter, the Report of it leaves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from moetool.commands.generate_columns import (
    AGAINST_COLUMNS,
    CHOICE_COLUMNS,
    PROMPT_COLUMNS,
    ROW_COLUMNS,
    SHARED_COLUMN,
    SHARED_STATISTICS,
    SUMMARY_COLUMNS,
    TEXT_COLUMNS,
    TOKEN_COLUMNS,
    layer_columns,
)
from moetool.commands.provenance import made_with
from moetool.report.report import Finding, Report, Table, Value

if TYPE_CHECKING:
    from moetool.capture.generation import Generation
    from moetool.commands.generate_run import Written
    from moetool.commands.generate_usage import Usage
    from moetool.report.page import Weights
    from moetool.statistics.sample import LayerSample

Row = Mapping[str, Value]

_STOPS = {
    "length": Finding("info", "stopped_length", "The text ends at --max-new-tokens."),
    "end": Finding("info", "stopped_end", "The model ended the text."),
    "interrupted": Finding("warning", "interrupted", "Interrupted: the report is of what was written until then."),
}
_LEFT_OUT = Finding("warning", "left_out", "The text of --against was not begun.")
_FIRST_PROMPT = Finding(
    "info", "first_prompt",
    "The summary, and with it --fail-if, is of the first prompt; keys that begin with against_ are of the second.",
)  # fmt: skip
_SHOWN_TOKENS = 24
"""Of both texts together."""


def build_report(written: Written, options: Mapping[str, object]) -> Report:
    """What one or two prompts became; ``options`` are repeated in the report."""
    generations, weights, layer, cache = written.generations, written.weights, written.layer, written.cache
    rows = [_prompt_rows(generation, weights, cache) for generation in generations]
    prompts = tuple(row for row, _ in rows)
    layers = tuple(row for _, per_layer in rows for row in per_layer)
    common = _common_pairs(*generations) if len(generations) > 1 else None
    first, several = generations[0], len(generations) > 1
    shown = _SHOWN_TOKENS // len(generations)
    tokens = Table("tokens", f"Tokens, experts of layer {layer}", TOKEN_COLUMNS, (), text_rows=shown)
    return Report(
        command="generate",
        model={key: cast(Value, first.trace.model.get(key)) for key in ("name", "revision", "family")},
        options=cast(Mapping[str, Value], {**options, "layer": layer, "cache": cache}),
        summary_columns=SUMMARY_COLUMNS,
        summary=_summary(prompts, weights, common),
        tables=(
            Table("prompts", "Prompts", (*ROW_COLUMNS, *PROMPT_COLUMNS), prompts, for_scripts=not several),
            *_by_prompt(Table("text", "Generated text", TEXT_COLUMNS, ()), [_text_rows(one) for one in generations]),
            Table("layers", "Layers", layer_columns(several), layers),
            *_by_prompt(tokens, [_token_rows(one, layer) for one in generations]),
            Table("choices", "Choices", CHOICE_COLUMNS, tuple(_choice_rows(generations)), for_scripts=True),
        ),
        findings=_findings(written, common),
        environment=made_with(first.trace),
    )


def _summary(prompts: Sequence[Row], weights: Weights, common: tuple[int, int] | None) -> Row:
    """The numbers of the first prompt; those that compare it with a second one are undefined without that."""
    second: Row = prompts[1] if len(prompts) > 1 else {}
    return {
        "loaded_parameters": weights.parameters,
        "loaded_bytes": weights.loaded_bytes,
        "active_share": weights.active_share,
        **{column.key: prompts[0][column.key] for column in PROMPT_COLUMNS},
        **{column.key: second.get(column.key.removeprefix("against_")) for column in AGAINST_COLUMNS},
        SHARED_COLUMN.key: None if common is None else common[0] / common[1],
    }


def _by_prompt(table: Table, rows: Sequence[Sequence[Row]]) -> tuple[Table, Table]:
    """One table for each text, so that a page has the beginnings of both; without --against the second is empty."""
    first, second = [*map(tuple, rows), ()][:2]
    other = replace(table, key=f"{table.key}_against", title=f"{table.title}, of --against", optional=True)
    return replace(table, rows=first), replace(other, rows=second)


def _prompt_rows(generation: Generation, weights: Weights, cache: int) -> tuple[Row, list[Row]]:
    """The row of a prompt, and the rows of its layers."""
    import numpy as np

    from moetool.commands.generate_usage import measure_usage
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


def _layer_row(sample: LayerSample, usage: Usage, place: int) -> Row:
    from moetool.statistics.registry import LAYER_STATISTICS, defined

    shared = {item.key: defined(item.compute(sample)) for item in LAYER_STATISTICS if item.key in SHARED_STATISTICS}
    return {
        "layer": sample.layer.layer,
        "experts": sample.layer.experts,
        "experts_per_token": sample.layer.experts_per_token,
        "distinct_experts": usage.distinct[place],
        "distinct_share": usage.distinct[place] / usage.experts[place],
        "cache_hit_rate": usage.hit_rate_of(place),
        **shared,
    }


def _mean(rows: Sequence[Row], key: str) -> float | None:
    known = [float(value) for row in rows if isinstance(value := row[key], float | int)]
    return sum(known) / len(known) if known else None


def _text_rows(generation: Generation) -> list[Row]:
    lines = [*enumerate(generation.text.splitlines(), start=1)]
    filled = [number for number, line in lines if line.strip()]
    kept = lines[filled[0] - 1 : filled[-1]] if filled else []
    return [{"prompt": generation.trace.documents[0].id, "line": number, "text": line} for number, line in kept]


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


def _choice_rows(generations: Sequence[Generation]) -> Iterator[Row]:
    import numpy as np

    from moetool.report.page import falling_weight, weight_shares

    for generation in generations:
        for layer in generation.trace.layers:
            order = falling_weight(layer)
            experts = np.take_along_axis(layer.chosen, order, axis=1).tolist()
            shares = np.take_along_axis(weight_shares(layer), order, axis=1).tolist()
            for index, (chosen, parts) in enumerate(zip(experts, shares, strict=True)):
                yield {
                    "prompt": generation.trace.documents[0].id,
                    "index": index,
                    "layer": layer.layer,
                    "experts": " ".join(map(str, chosen)),
                    "weights": None if layer.weight is None else " ".join(f"{part:.4g}" for part in parts),
                }


def _findings(written: Written, common: tuple[int, int] | None) -> tuple[Finding, ...]:
    generations = written.generations
    findings = []
    for generation in generations:
        name = f"{generation.trace.documents[0].id}: " if len(generations) > 1 else ""
        stop = _STOPS[generation.stopped]
        findings.append(Finding(stop.level, stop.code, f"{name}{stop.message}"))
    if written.left_out:
        findings.append(_LEFT_OUT)
    if common is not None:
        both, either = common
        message = f"Of the {either:,} pairs of layer and expert that either text used, both used {both:,}."
        findings += [Finding("info", "shared_experts", message), _FIRST_PROMPT]
    message = "One text never shows a dead expert: route-stats on a corpus tells which ones are not used."
    return (*findings, Finding("info", "one_text", message))


def _common_pairs(one: Generation, other: Generation) -> tuple[int, int]:
    """Pairs of layer and expert that both texts used, and that either used."""
    pairs = [
        {(layer.layer, expert) for layer in generation.trace.layers for expert in set(layer.chosen.ravel().tolist())}
        for generation in (one, other)
    ]
    return len(pairs[0] & pairs[1]), len(pairs[0] | pairs[1])
