"""Columns of the report of ``generate``: what each number is."""

from __future__ import annotations

from dataclasses import replace

from moetool.report.report import Column

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
        help="Choices of new tokens that a cache of the C experts of each layer that were used last (--cache C) holds"
        " before the token; all its K then enter, the largest weight as the last. The prompt fills the cache.",
    ),
    Column("repeat_rate", "Repeats", "share", help="Neighbours with the same first expert, mean over layers."),
    Column("repeat_rate_matched", "Repeats, matched", "share", help="The same for independent tokens of these loads."),
    Column("router_entropy", "Router entropy", "ratio", help="Over ln E, mean over layers: 1 if no preference."),
    Column("perplexity", "Perplexity", "number", help="Of the new tokens: exp of minus their mean log probability."),
)  # fmt: skip
_COMPARED = ("new_tokens", "distinct_share", "cache_hit_rate", "router_entropy", "perplexity")
AGAINST_COLUMNS = tuple(
    replace(
        column, key=f"against_{column.key}", title=f"{column.title}, against", detail=True,
        help=f"{column.key} of the text of --against; undefined without it.",
    )
    for column in PROMPT_COLUMNS if column.key in _COMPARED
)  # fmt: skip
SHARED_COLUMN = Column(
    "shared_share", "Shared experts", "share", detail=True,
    help="Of the pairs of layer and expert that either text used, those that both used; undefined without --against.",
)  # fmt: skip
SUMMARY_COLUMNS = (
    *(replace(column, help=f"{column.help} Of the first prompt.") for column in PROMPT_COLUMNS[:2]),
    *WEIGHT_COLUMNS,
    *(replace(column, help=f"{column.help} Of the first prompt.") for column in PROMPT_COLUMNS[2:]),
    *AGAINST_COLUMNS,
    SHARED_COLUMN,
)

_NAME = Column("prompt", "Prompt", "text", help="prompt, or against for the text of --against.")
_NAMED = replace(_NAME, detail=True)
ROW_COLUMNS = (
    _NAME,
    Column("prompt_text", "Prompt text", "text", detail=True),
    Column("text", "Text", "text", detail=True, help="What was written, without special tokens."),
    Column(
        "stopped", "Stopped", "text", help="length: --max-new-tokens; end: the model ended it; interrupted: Ctrl-C."
    ),
)
TEXT_COLUMNS = (
    _NAMED,
    Column("line", "Line", "count", detail=True, help="From 1; empty lines at the beginning and end are left out."),
    Column("text", "Text", "text"),
)
TOKEN_COLUMNS = (
    _NAMED,
    Column("index", "Index", "count", help="Place in prompt and text, from 0."),
    Column("token", "Token", "text", help="What it adds to the text."),
    Column("phase", "Phase", "text", help="prefill: of the prompt; decode: written."),
    Column("expert", "Expert", "number", help="The expert of the largest weight in the layer of --layer."),
    Column("entropy", "Entropy", "nats", help="Of that layer's router."),
    Column("margin", "Margin", "number", help="Last chosen minus first refused score of that layer's router."),
    Column("probability", "Probability", "share", help="That the model gave a written token, at temperature 1."),
)
CHOICE_COLUMNS = (
    _NAME,
    Column("index", "Index", "count", help="Place of the token in prompt and text, from 0."),
    Column("layer", "Layer", "number", help="Decoder layer."),
    Column("experts", "Experts", "text", help="Chosen experts by falling weight, with spaces between."),
    Column("weights", "Weights", "text", help="Their shares of the token's weight, in the same order."),
)
SHARED_STATISTICS = ("router_entropy", "top1_probability", "boundary_margin", "first_repeat", "first_repeat_matched")
"""Columns of the table of layers that are those of route-stats."""


def layer_columns(several: bool) -> tuple[Column, ...]:
    """Of the table of layers; pages for people name the prompt of a row only where there are ``several``."""
    from moetool.statistics.registry import LAYER_STATISTICS

    shared = [item for item in LAYER_STATISTICS if item.key in SHARED_STATISTICS]
    return (
        _NAME if several else _NAMED,
        Column("layer", "Layer", "number", help="Decoder layer; dense layers leave gaps."),
        Column("experts", "Experts", "count", detail=True, help="Routed experts E of the layer."),
        Column("experts_per_token", "Per token", "count", detail=True, help="Experts K that each token chooses."),
        Column("distinct_experts", "Distinct", "count", help="Experts that some token of prompt and text chose."),
        Column("distinct_share", "Distinct share", "share", help="Of the experts of the layer."),
        Column("cache_hit_rate", "Cache hits", "share", help="As in the summary, of this layer."),
        *(Column(item.key, item.title, item.unit, item.detail, item.help) for item in shared),
    )
