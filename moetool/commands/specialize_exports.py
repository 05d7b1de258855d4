"""What ``specialize`` found, for other tools: a trace and what was computed from it enter, bytes of JSON leave.

Imported when the command line starts, so the statistics are imported inside the functions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from moetool.errors import MoetoolError
from moetool.model.families import family_of, indices, role_of, template
from moetool.report.report import Value

if TYPE_CHECKING:
    from moetool.capture.trace import RoutingTrace, TraceLayer
    from moetool.statistics.specialization import Specialization

Selected = Mapping[int, Sequence[int]]
"""Experts by decoder layer, as ``selection.select_experts`` gives them."""
Row = Mapping[str, Value]

ATLAS_SCHEMA = "moetool.atlas/1.0"
PREFERENCE_KEYS = ("domain", "lift", "lift_low", "lift_high", "q_value", "kind")
"""What the atlas takes from a row of the table ``specialists``."""

LORA_NOTE = (
    "The experts of a layer are one 3-D parameter each for their projections, which target_modules cannot name. "
    "target_parameters of PEFT's LoraConfig (with target_modules=[] and lora_dropout=0) adapts all experts of a listed "
    "layer, with a pair of matrices for each. To train only the listed ones, zero the gradient of "
    "lora_B.weight.view(outputs, rank, experts)[..., others] before every step: it starts at 0, so the others stay as "
    "they are. Names are matched by their ends: where a model has several stacks of layers, put the path of one before."
)
_UNGATED = ("nemo_speechlm", "nemotron_h", "nemotron_h_omni")
"""Families whose experts have no gate projection."""
_BLOCKS = {
    **dict.fromkeys(("inkling_mm_model", "kimi_k25"), "mlp."),
    **dict.fromkeys(("diffusion_gemma", "gemma4"), ""),
    **dict.fromkeys(("jamba", "lfm2_moe", "llama4"), "feed_forward."),
    **dict.fromkeys(("granitemoe", "granitemoe_swa", "granitemoehybrid", "granitemoeshared"), "block_sparse_moe."),
    **dict.fromkeys(_UNGATED, "mixer."),
    "ernie4_5_vl_moe": "mlp.text_moe.",
}
"""Where the experts are in a decoder layer of transformers 5, where that is not ``mlp`` or the family only wraps the
decoder of another one."""
_NOT_FUSED = frozenset({"dbrx", "doge", "jetmoe", "nllb-moe", "switch_transformers"})
"""Families whose experts are no 3-D parameters with a leading axis of experts."""


def esft_config(selected: Selected) -> bytes:
    """The experts to train as ESFT's code reads them (``expert_cfg.json``): nothing but these experts is trained.

    ESFT looks up every MoE layer of the model, so the trace should have all of them.
    """
    experts = {str(layer): list(experts) for layer, experts in selected.items()}
    return _encode({"experts": experts, "shared_experts": False, "non_expert_modules": False})


def lora_targets(family: str | None, selected: Selected, tensor_names: Sequence[str] = ()) -> bytes:
    """The experts to adapt, and the names of their weights in transformers 5 and in the checkpoint.

    ``layers`` are the selected experts; ``target_modules`` and ``target_parameters`` are what PEFT's LoraConfig takes;
    ``checkpoint_tensors`` are those of ``tensor_names`` that hold a selected expert, alone or among others; ``note``
    says what a fused parameter allows. Raises MoetoolError for a family whose names are not known or whose experts are
    not fused.
    """
    layers = [layer for layer, experts in selected.items() if experts]
    return _encode(
        {
            "layers": {str(layer): sorted(selected[layer]) for layer in layers},
            "target_modules": [],
            "target_parameters": list(_target_parameters(family, layers)),
            "checkpoint_tensors": [name for name in tensor_names if _holds(name, selected)],
            "note": LORA_NOTE,
        }
    )


def _target_parameters(family: str | None, layers: Sequence[int]) -> Iterator[str]:
    found = family_of({"model_type": family})
    name = found.name.removesuffix("_text")
    known = found.checked or name in _BLOCKS
    if not known or name in _NOT_FUSED:
        why = "are not fused" if known else "have no known names"
        raise MoetoolError(
            f"no list of LoRA targets: the experts of the family {family!r} {why}", "export an expert config instead"
        )
    first = "up_proj" if name in _UNGATED else "gate_up_proj"
    for layer in layers:
        for projection in (first, "down_proj"):
            yield f"layers.{layer}.{_BLOCKS.get(name, 'mlp.')}experts.{projection}"


def _holds(name: str, selected: Selected) -> bool:
    """Whether a tensor holds weights of a selected expert."""
    if role_of(template(name)) != "routed_experts":
        return False
    numbers = list(indices(name))
    experts = selected.get(numbers[0], ()) if numbers else ()
    return bool(experts) and (len(numbers) == 1 or numbers[-1] in experts)


def atlas(
    trace: RoutingTrace,
    result: Specialization,
    specialists: Sequence[Row],
    tokens: Mapping[tuple[int, int], Sequence[str]] | None = None,
) -> bytes:
    """All that is known of every expert; ``specialists`` are rows of the report's table.

    On top ``schema``, ``model``, ``domains`` and ``tested`` (False: too few groups, so no expert has ``domains``), and
    ``layers`` with ``layer``, ``experts_per_token`` and ``experts``, each of which has

    - ``expert``, its number;
    - ``use``: ``utilization`` (E/K times the mean token share, 1 at perfect balance) and ``token_share`` by domain;
    - ``kinds``: what its preferences are for, sorted, without those not told apart;
    - ``domains``: its confirmed preferences, the surest first, with the columns PREFERENCE_KEYS of the table;
    - ``tokens``: those of ``tokens``, by layer and expert; null without that mapping;
    - ``importance``: its share of the sum of weights; null where the trace has no weights.

    Shares and importance are over the tokens that the comparison of domains counts.
    """
    preferences: dict[tuple[Value, Value], list[Row]] = {}
    for row in specialists:
        if row["q_value"] is not None:
            preferences.setdefault((row["layer"], row["expert"]), []).append(row)
    layers: list[dict[str, Any]] = []
    for layer, cells in zip(trace.layers, result.counts.layers, strict=True):
        places = [(layer.layer, expert) for expert in range(layer.experts)]
        experts = [
            {
                "expert": place[1],
                "use": _use(result, cells.start + place[1], layer.experts / layer.experts_per_token),
                **_tastes(preferences.get(place, [])),
                "tokens": None if tokens is None else list(tokens.get(place, ())),
                "importance": importance,
            }
            for place, importance in zip(places, _importance(layer, result), strict=True)
        ]
        layers.append({"layer": layer.layer, "experts_per_token": layer.experts_per_token, "experts": experts})
    return _encode({**_head(trace, result), "layers": layers})


def _head(trace: RoutingTrace, result: Specialization) -> dict[str, Any]:
    return {
        "schema": ATLAS_SCHEMA,
        "model": {key: trace.model.get(key) for key in ("name", "revision", "family")},
        "domains": list(result.counts.domains),
        "tested": result.specialists is not None,
    }


def _use(result: Specialization, cell: int, balance: float) -> dict[str, Any]:
    shares = result.shares[:, cell]
    return {
        "utilization": float(shares.mean() * balance),
        "token_share": dict(zip(result.counts.domains, shares.tolist(), strict=True)),
    }


def _tastes(rows: Sequence[Row]) -> dict[str, Any]:
    return {
        "kinds": sorted({str(row["kind"]) for row in rows if row["kind"] is not None}),
        "domains": [{key: row[key] for key in PREFERENCE_KEYS} for row in rows],
    }


def _importance(layer: TraceLayer, result: Specialization) -> Sequence[float | None]:
    from moetool.statistics.load import weight_share

    keep = result.sample.keep
    weight = None if layer.weight is None else layer.weight[keep]
    share = weight_share(layer.chosen[keep], weight, layer.experts)
    return [None] * layer.experts if share is None else share.tolist()


def _encode(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, allow_nan=False) + "\n").encode()
