"""A small report with everything in it that a format has to cope with, made by hand."""

from moetool.report.report import Check, Column, Figure, Finding, Panel, Report, Table

HOSTILE = ("[red]python", "\x1b[31mterminal", "a|b`c`<script>\n# x", "中文")

SUMMARY = (
    Column("tokens", "Tokens", "count", help="Counted tokens; special ones are left out."),
    Column("dead_experts", "Dead experts", "count", help="Experts that never ran; 0 is healthy."),
    Column("total_parameters", "Parameters", "parameters"),
    Column("total_bytes", "Weights", "bytes"),
    Column("sparsity", "Active share", "share", help="Active over all parameters."),
    Column("router_entropy", "Router entropy", "nats"),
    Column("balance_loss", "Balance loss", "ratio", detail=True),
    Column("z_loss", "Z loss", "number", help="Undefined without logits."),
)
LAYERS = (
    Column("layer", "Layer", "number"),
    Column("experts", "Experts", "count"),
    Column("experts_per_token", "Experts per token", "count"),
    Column("max_violation", "Max violation", "ratio"),
    Column("min_violation", "Min violation", "ratio"),
    Column("gini", "Gini", "ratio"),
    Column("entropy", "Load entropy", "ratio"),
    Column("dead", "Dead", "count"),
    Column("router_entropy", "Router entropy", "nats"),
    Column("top1_probability", "Top-1 probability", "share"),
    Column("z_loss", "Z loss", "number"),
    Column("any_repeat", "Any repeat", "share"),
    Column("balance_loss_hf", "Balance loss, transformers", "ratio", detail=True),
)
SPECIALISTS = (
    Column("layer", "Layer", "number"),
    Column("expert", "Expert", "number"),
    Column("domain", "Domain", "text"),
    Column("lift", "Lift", "ratio"),
    Column("p_value", "p-value", "number"),
    Column("tokens", "Typical tokens", "text"),
)


def _layer(layer: int) -> dict[str, int | float | None]:
    ratios = {"max_violation": 0.31 + layer, "min_violation": -0.2, "gini": 0.125, "entropy": 0.98, "any_repeat": 0.034}
    rest = {"router_entropy": 2.0143, "top1_probability": 0.123456, "balance_loss_hf": 2.04}
    counts = {"layer": layer, "experts": 64, "experts_per_token": 8, "dead": 3 * (layer == 1)}
    return {**counts, **ratios, **rest, "z_loss": None if layer == 1 else 13.5}


def _loads(layer: int) -> tuple[float | None, ...]:
    return tuple(0.0 if expert == 5 else (expert * 7 + layer * 3) % 11 / 700 for expert in range(64))


def make_report() -> Report:
    specialists = [
        {
            "layer": i,
            "expert": 7 * i,
            "domain": name,
            "lift": 4.2 - i,
            "p_value": 10.0 ** -(3 * i + 2),
            "tokens": "' def' ' 的'",
        }
        for i, name in enumerate(HOSTILE)
    ]
    experts = tuple(str(expert) for expert in range(64))
    loads = tuple(Panel(f"layer {i}", experts, (("load", _loads(i)),), 1 / 64) for i in range(3))
    domains = Panel("", HOSTILE, (("tokens", (1200.0, 333.0, 50.5, None)),))
    entropy = Panel("", ("0", "1", "2"), (("english", (2.0, 1.5, None)), ("code", (1.0, 0.5, 0.25))), 2.0)
    overlap = tuple((name, tuple(1.0 if i == j else 0.1 * (i + j) for j in range(4))) for i, name in enumerate(HOSTILE))
    return Report(
        command="route-stats",
        model={"name": "org/model", "revision": "4f1c2ab", "family": "olmoe"},
        options={"text": ["a.txt", "code=b.jsonl"], "max_tokens": None, "seed": 0},
        summary_columns=SUMMARY,
        summary={
            "tokens": 123456,
            "dead_experts": 3,
            "total_parameters": 46_702_792_704,
            "total_bytes": 93_405_585_408,
            "sparsity": 0.2761,
            "router_entropy": 2.0143,
            "balance_loss": 1.02,
            "z_loss": None,
        },
        tables=(
            Table("layers", "MoE layers", LAYERS, tuple(_layer(i) for i in range(3)), "Violation 0 is balance."),
            Table("specialists", "Specialists", SPECIALISTS, tuple(specialists), text_rows=3),
            Table("coactivation", "Co-activation", (Column("layer", "Layer"),), ()),
        ),
        findings=(
            Finding("warning", "few_documents", f"Only 3 documents of the domain '{HOSTILE[1]}' were read, so that the "
                    "intervals are wide: no single expert should be called a specialist."),
            Finding("info", "streamed", "The model was read layer by layer."),
        ),
        checks=(Check("dead_experts > 0", "dead_experts", 3, True, "dead_experts is 3"),
                Check("sparsity > 50 %", "sparsity", 0.2761, False, "sparsity is 0.2761 (27.6 %)")),
        figures=(
            Figure("load", "Load of every expert", "bars", "Three layers of even load.", loads, "expert", "share",
                   in_text=True),
            Figure("domains", "Tokens by domain", "bars", "Most are code.", (domains,), "domain", "tokens",
                   in_text=True),
            Figure("entropy", "Router entropy", "lines", "It falls.", (entropy,), "layer", "nats", in_text=True),
            Figure("overlap", "Overlap of domains", "heatmap", "Little.", (Panel("layer 1", HOSTILE, overlap),),
                   in_text=True),
        ),
        environment={"moetool": "0.1.0"},
    )  # fmt: skip
