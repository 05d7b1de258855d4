"""Families, the only package that knows names: a config enters, what capturing must know and cannot see leaves.

A family that calls ``experts(hidden, index, weights)`` beside a ``gate`` or ``router`` needs its name here only to say
that it was checked. Names of config keys are in ``configs``, names of tensors in ``tensors``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from moetool.model.families.configs import (
    EXPERTS,
    EXPERTS_PER_TOKEN,
    HEADS,
    HIDDEN_SIZE,
    LAYERS,
    MAX_CONTEXT,
    SHARED_EXPERTS,
    TOP1_FAMILIES,
    TOP2_FAMILIES,
    ZERO_EXPERTS,
    canonical,
    depth_of,
    encoder_layers,
    experts_per_token_of,
    find,
    per_layer,
    text_config,
    to_native,
)
from moetool.model.families.tensors import (
    BUFFER,
    COPY_IN_MTP,
    CORRECTION_BIAS,
    MTP,
    MTP_LIKE_LAST_LAYER,
    MTP_PART,
    ROLE_PATTERNS,
    Role,
    fill,
    indices,
    role_of,
    template,
)

__all__ = [
    "BUFFER",
    "COPY_IN_MTP",
    "CORRECTION_BIAS",
    "ENGINES",
    "EXPERTS",
    "EXPERTS_PER_TOKEN",
    "FAMILIES",
    "HEADS",
    "HIDDEN_SIZE",
    "LAYERS",
    "MAX_CONTEXT",
    "MTP",
    "MTP_LIKE_LAST_LAYER",
    "MTP_PART",
    "ROLE_PATTERNS",
    "SHARED_EXPERTS",
    "TOP1_FAMILIES",
    "TOP2_FAMILIES",
    "ZERO_EXPERTS",
    "Family",
    "Role",
    "canonical",
    "depth_of",
    "encoder_layers",
    "experts_per_token_of",
    "family_of",
    "fill",
    "find",
    "indices",
    "per_layer",
    "role_of",
    "template",
    "text_config",
    "to_native",
]

Scoring = Literal["softmax", "sigmoid", "sqrtsoftplus", "unknown"]
"""How a router turns logits into scores: the softmax, or element by element (DeepSeek-V4: square root of softplus)."""
Seam = Literal["experts", "skipping", "scattered", "sorted", "dispatched"]
"""Where the choice is read. ``experts``: from the call of the experts; ``skipping``: there too, and a slot of weight 0
chose the expert that computes nothing (ZAYA). The others from what the router returns: ``scattered`` scores ``[N, E]``
that are 0 where not chosen (Llama 4), tokens ``sorted`` by expert (JetMoE), or a ``dispatched`` mask ``[B, S, E]`` that
lacks tokens beyond an expert's capacity (Switch)."""


@dataclass(frozen=True, slots=True)
class Family:
    """What capturing needs to know about a family and cannot see in the running model."""

    name: str
    """transformers' name of the architecture (``kimi_k2`` is ``deepseek_v3``)."""
    engine: Literal["any", "resident", "refused"] = "any"
    """``any``: checked in both engines, bit for bit, against plain transformers."""
    reason: str = ""
    """Why the engine is restricted; a sentence for people."""
    scoring: Scoring = "softmax"
    scoring_key: str = ""
    """The config key that names the scoring, where checkpoints of the family differ."""
    group_score: Literal["top2", "max"] = "top2"
    """How a group of experts is scored where experts are chosen in groups: sum of its two best, or its best."""
    group_fill: float = float("-inf")
    """The selecting score of experts outside the chosen groups."""
    selects_by: Literal["scores", "logits"] = "scores"
    """What the correction bias is added to."""
    router_output: Literal["logits", "probabilities"] = "logits"
    """What the router module returns in the slot of the logits."""
    seam: Seam = "experts"
    padding: bool = True
    """False: padding changes what real tokens attend to (sparse attention picks a number of positions)."""
    token_ids: bool = False
    """Layers read the token ids (hash routing, embeddings per layer), so streaming keeps the embedding loaded."""
    shared_states: str = ""
    """The argument of every layer that holds a dictionary in which layers leave tensors for later ones."""
    remembers_before: str = ""
    """The attribute of layers whose input all later layers read (Inkling 2 attends to its earlier blocks)."""
    stack: str = ""
    """Which of several stacks of MoE layers reads the text, by a part of its path."""
    checked: bool = True
    """Whether transformers' implementation of the family was run by the tests; False for names that are not here."""


_TABLE = (
    Family("afmoe", scoring="sigmoid"),
    Family("aria"),
    Family("axk1", scoring="sigmoid"),
    Family("axk2", scoring="sigmoid", group_fill=0.0),
    Family("bailing_hybrid", scoring="sigmoid"),
    Family("beam", scoring="sigmoid"),
    Family("cohere2_moe", scoring_key="expert_selection_fn"),
    Family("dbrx"),
    Family("deepseek_ocr2", group_score="max"),
    Family("deepseek_v2", group_score="max"),
    Family("deepseek_v3", scoring="sigmoid"),
    Family("deepseek_v32", scoring="sigmoid", padding=False),
    Family("deepseek_v4", scoring="sqrtsoftplus", scoring_key="scoring_func", token_ids=True),
    Family("diffusion_gemma", router_output="probabilities", stack="encoder"),
    Family(
        "doge",
        engine="refused",
        reason="its routing mixes the tokens of a batch (in transformers), so it depends on what else is in the batch",
    ),
    Family("dots1", scoring="sigmoid"),
    Family("dots3_note", scoring="sigmoid"),
    Family("ernie4_5_moe"),
    Family("ernie4_5_vl_moe"),
    Family("exaone_moe", scoring="sigmoid"),
    Family("flex_olmo"),
    Family("flint", scoring="sigmoid"),
    Family("gemma4", router_output="probabilities", token_ids=True, shared_states="shared_kv_states"),
    Family("glm4_moe", scoring="sigmoid"),
    Family("glm4_moe_lite", scoring="sigmoid"),
    Family("glm4v_moe", scoring="sigmoid"),
    Family("glm5_next", scoring="sigmoid", padding=False),
    Family("glm_moe_dsa", scoring="sigmoid", padding=False),
    Family("gpt_oss"),
    Family("granitemoe"),
    Family("granitemoe_swa"),
    Family("granitemoehybrid"),
    Family("granitemoeshared"),
    Family("hunyuan_v1_moe"),
    Family("hy_v3", scoring="sigmoid"),
    Family("hy_v4", scoring="sigmoid", padding=False),
    Family("inkling", scoring="sigmoid"),
    Family(
        "inkling2", scoring="sigmoid", scoring_key="scoring_func", token_ids=True, remembers_before="is_block_boundary"
    ),
    Family("jamba"),
    Family("jetmoe", seam="sorted"),
    Family("kimi_linear", scoring="sigmoid"),
    Family("kolibri1", scoring="sigmoid", selects_by="logits"),
    Family("laguna", scoring="sigmoid"),
    Family("lfm2_moe", scoring="sigmoid"),
    Family("llama4", scoring="sigmoid", seam="scattered"),
    Family("longcat_flash"),
    Family("mellum"),
    Family("mimo_v2_flash", scoring="sigmoid"),
    Family("minimax"),
    Family("minimax_m2", scoring="sigmoid"),
    Family("minimax_m3_vl", scoring="sigmoid"),
    Family("mistral4"),
    Family("mistral_large4", padding=False, shared_states="shared_kv_states"),
    Family("mixtral"),
    Family("muse_spark", scoring="sigmoid"),
    Family("nemotron_h", scoring="sigmoid"),
    Family(
        "nllb-moe",
        engine="refused",
        reason="transformers takes the mask of its experts for their numbers, and runs the first two only",
    ),
    Family("olmoe"),
    Family("openai_privacy_filter"),
    Family("phimoe"),
    Family("qwen2_moe"),
    Family("qwen3_5_moe"),
    Family("qwen3_moe"),
    Family("qwen3_next"),
    Family("qwen3_omni_moe", stack="thinker"),
    Family("qwen3_vl_moe"),
    Family("qwen4_exp", token_ids=True),
    Family("solar_open", scoring="sigmoid"),
    Family("step3p7", scoring="sigmoid"),
    Family(
        "switch_transformers",
        engine="resident",
        reason="it has an encoder and a decoder",
        seam="dispatched",
    ),
    Family("unlimited_ocr", group_score="max"),
    Family("zaya", seam="skipping"),
)
_SCORINGS: Mapping[str, Scoring] = {"softmax": "softmax", "sigmoid": "sigmoid", "sqrtsoftplus": "sqrtsoftplus"}
_PARTS = {"qwen3_omni_moe_thinker": "qwen3_omni_moe", "step3p5": "step3p7"}
"""Text decoders that have names of their own."""
FAMILIES: Mapping[str, Family] = {family.name: family for family in _TABLE}
"""Every MoE family of transformers 5.23 by name, with what its tests showed."""
ENGINES = {"refused": "none", "resident": "resident", "any": "stream, resident"}
"""For people: what runs a family, the most restricted first."""


def family_of(config: Mapping[str, Any]) -> Family:
    """What is special about the family of a ``config.json``; an unknown name gets the defaults.

    The name is that of the whole model, the rest is looked up for it and, failing that, for its text decoder.
    """
    name = canonical(str(config.get("model_type") or "unknown"))
    text = canonical(str(text_config(config).get("model_type") or name))
    candidates = [one for full in (name, text) for one in (full, full.removesuffix("_text"), _PARTS.get(full, full))]
    family = next((FAMILIES[key] for key in candidates if key in FAMILIES), Family(name, checked=False))
    configured = find(config, family.scoring_key) if family.scoring_key else None
    reason = family.reason
    if family.engine == "refused":
        reason = f"routing of the family {name} cannot be captured: {reason}"
    return replace(
        family,
        name=name,
        reason=reason,
        scoring=family.scoring if configured is None else _SCORINGS.get(str(configured), "unknown"),
        padding=family.padding and find(config, "index_topk") is None,
    )
