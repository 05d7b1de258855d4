"""What a reader of ``moetool memory`` should not miss: enters facts and ledger, leaves sentences."""

from __future__ import annotations

from collections.abc import Iterator

from moetool.accounting.ledger import Ledger
from moetool.model.facts import ModelFacts
from moetool.report.report import Finding


def findings_of(facts: ModelFacts, ledger: Ledger) -> tuple[Finding, ...]:
    """Warnings first, then notes on how the numbers were counted."""
    found = [*_doubts(facts), *_counting(facts, ledger), *_bytes(facts, ledger)]
    return tuple(sorted(found, key=lambda finding: finding.level != "warning"))


def _doubts(facts: ModelFacts) -> Iterator[Finding]:
    if facts.config_layers is not None and facts.layers != facts.config_layers:
        yield Finding(
            "warning",
            "layers_differ_from_config",
            f"The config names {facts.config_layers} layers, the checkpoint holds {facts.layers}: the checkpoint is "
            "what was counted.",
        )
    if not facts.moe_layers:
        yield Finding(
            "info", "dense_model", "The model has no routed experts: every parameter is active for every token."
        )
        return
    stored = sorted({layer.experts for layer in facts.moe_layers})
    if facts.config_experts is not None and stored != [facts.config_experts]:
        yield Finding(
            "warning",
            "experts_differ",
            f"The config names {facts.config_experts} experts per layer, the checkpoint holds {_range(stored)}: "
            "the checkpoint is what was counted.",
        )
    chosen = {layer.experts_per_token for layer in facts.moe_layers}
    if None in chosen:
        yield Finding(
            "warning",
            "experts_per_token_unknown",
            "The config does not say how many experts a token uses: active parameters are unknown.",
        )
    if len(stored) > 1 or len(chosen) > 1:
        yield Finding("info", "layers_differ", "Layers differ in their experts: the table of layers has the numbers.")


def _counting(facts: ModelFacts, ledger: Ledger) -> Iterator[Finding]:
    if facts.moe_layers and ledger.active_parameters is not None:
        yield Finding(
            "info",
            "active_conventions",
            "Publishers count active parameters in three ways: all (active_parameters; Mixtral, Qwen3, OLMoE), without "
            "the input embedding (DeepSeek-V3, gpt-oss), and without embedding and output head (GLM-4.5).",
        )
    if facts.zero_experts:
        yield Finding(
            "info",
            "zero_experts",
            f"{facts.zero_experts} more experts per layer compute nothing: active parameters are an upper bound.",
        )
    if facts.correction_biases:
        yield Finding(
            "info",
            "correction_biases",
            f"{facts.correction_biases:,} router correction biases are counted in bytes, not as parameters: they steer "
            "the choice of experts and are not trained by gradient.",
        )
    mtp = ledger.parameters("mtp")
    if mtp:
        yield Finding(
            "info", "mtp_apart", f"Multi-token prediction layers hold {mtp:,} more parameters, which no total includes."
        )
    if facts.copied_parameters:
        yield Finding(
            "info",
            "copies",
            f"{facts.copied_parameters:,} stored elements are second copies of embedding or head: no parameters.",
        )
    if facts.tied_head:
        yield Finding(
            "info",
            "tied_head",
            "The output head is the input embedding: one matrix, left out of both conventions without the embedding.",
        )
    vision = ledger.parameters("vision")
    if vision:
        yield Finding(
            "info",
            "towers_inactive",
            f"Towers beside the text decoder hold {vision:,} parameters: in the total, not active for a text token.",
        )


def _bytes(facts: ModelFacts, ledger: Ledger) -> Iterator[Finding]:
    if facts.source == "config":
        unknown = facts.quantization is not None and "quantization" not in ledger.components
        declared = f"in the layout of the quantisation that it declares ({facts.quantization})"
        plain = "of unquantised weights in its dtype (bfloat16 if it names none)"
        message = f"Only a config was read: bytes are those {declared if facts.quantization else plain}."
        if unknown:
            message = (
                f"Only a config was read: bytes are those {plain}. The published checkpoint is quantised "
                f"({facts.quantization}): it is smaller."
            )
        yield Finding("warning" if unknown else "info", "planned_bytes", message)
    scales = ledger.components.get("quantization")
    if scales:
        yield Finding(
            "info",
            "quantization_bytes",
            f"{scales.bytes:,} bytes are scales and other aids of quantisation: in the bytes, not in the parameters.",
        )
    if facts.unknown_dtypes:
        yield Finding(
            "warning",
            "unknown_dtypes",
            f"Unknown stored types ({', '.join(facts.unknown_dtypes)}): their bytes are exact, their parameters are "
            "taken from the shapes and may be packed.",
        )


def _range(numbers: list[int]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
