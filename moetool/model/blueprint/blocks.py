"""Building blocks of decoder layers: enters a config, leave the names and shapes of the parameters of each block.

Shapes are those of transformers 5.23: a projection ``[outputs, inputs]``, experts fused with a leading expert axis.
Token mixers are in ``mixers``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from moetool.model.blueprint.schedules import Choice, shares_keys
from moetool.model.blueprint.settings import NEVER, Flag, Settings, UnknownSizeError

Shape = tuple[int, ...]
Part = tuple[str, Shape]
"""A parameter's name, below the decoder layer, and its shape in elements."""
Block = Callable[[Settings, int], Iterator[Part]]
"""What a layer of a given number holds."""


def linear(name: str, inputs: int, outputs: int, bias: bool = False) -> Iterator[Part]:
    """A projection, ``[outputs, inputs]``."""
    yield f"{name}.weight", (outputs, inputs)
    if bias:
        yield f"{name}.bias", (outputs,)


def choose(choice: Choice, yes: Block, no: Block) -> Block:
    """One block in the layers that ``choice`` names, another one in the others."""
    return lambda settings, layer: (yes if choice(settings, layer) else no)(settings, layer)


def by_kind(kind_of: Callable[[Settings, int], str], blocks: Mapping[str, Block]) -> Block:
    """The block of each layer's kind; an unknown kind raises UnknownSizeError."""

    def parts(settings: Settings, layer: int) -> Iterator[Part]:
        kind = kind_of(settings, layer)
        if kind not in blocks:
            raise UnknownSizeError(kind)
        return blocks[kind](settings, layer)

    return parts


def norms(*names: str, bias: bool = False) -> Block:
    """Norms over the residual stream, one weight (and bias) per channel."""

    def parts(settings: Settings, layer: int) -> Iterator[Part]:
        for name in names:
            yield f"{name}.weight", (settings.hidden,)
            if bias:
                yield f"{name}.bias", (settings.hidden,)

    return parts


def gated(name: str, hidden: int, width: int, bias: bool = False) -> Iterator[Part]:
    """A gated feed-forward network (Shazeer 2020, arXiv:2002.05202): three matrices."""
    yield from linear(f"{name}.gate_proj", hidden, width, bias)
    yield from linear(f"{name}.up_proj", hidden, width, bias)
    yield from linear(f"{name}.down_proj", width, hidden, bias)


def plain(name: str, hidden: int, width: int, bias: bool = False) -> Iterator[Part]:
    """A feed-forward network without a gate: two matrices."""
    yield from linear(f"{name}.up_proj", hidden, width, bias)
    yield from linear(f"{name}.down_proj", width, hidden, bias)


def fused(
    name: str, experts: int, hidden: int, width: int, transposed: bool = False, bias: bool = False
) -> Iterator[Part]:
    """Gated networks of all experts; ``transposed``: matrices are ``[experts, inputs, outputs]``."""
    for matrix, inputs, outputs in (("gate_up_proj", hidden, 2 * width), ("down_proj", width, hidden)):
        yield f"{name}.{matrix}", (experts, inputs, outputs) if transposed else (experts, outputs, inputs)
        if bias:
            yield f"{name}.{matrix}_bias", (experts, outputs)


def dense(name: str = "mlp", width: str = "intermediate_size", bias: Flag = NEVER) -> Block:
    """The feed-forward network of a layer without experts; ``width`` is a config key."""
    return lambda settings, layer: gated(name, settings.hidden, settings.size(width), settings.flag(bias))


@dataclass(frozen=True, slots=True)
class Shared:
    """Experts that every token uses, beside the routed ones."""

    name: str
    width: str
    """Config key of their width, of one expert where ``count`` is given."""
    count: str | None = None
    """Config key of their number: transformers makes one network of them, so many times as wide."""
    bias: Flag = NEVER
    gate: bool = False
    """A projection to one number per token scales their output."""
    left_out: bool = False
    """Nothing is built where their number is 0; else a network of width 0."""

    def parts(self, settings: Settings, block: str) -> Iterator[Part]:
        """Their parameters, below the name of the whole block."""
        count = 1 if self.count is None else settings.size(self.count, zero=True)
        if count or not self.left_out:
            width = count * settings.size(self.width, zero=self.count is None)
            yield from gated(f"{block}.{self.name}", settings.hidden, width, settings.flag(self.bias))
        if self.gate:
            yield from linear(f"{block}.{self.name}_gate", settings.hidden, 1)


@dataclass(frozen=True, slots=True)
class Experts:
    """A router and its experts: gated networks, fused with a leading expert axis."""

    experts: tuple[str, ...]
    """Spellings of the config key of their number."""
    width: str = "moe_intermediate_size"
    name: str = "mlp"
    router: str = "gate"
    correction: str | None = None
    """Where the bias is that only steers the choice."""
    shared: Shared | None = None
    transposed: bool = False
    """Matrices are ``[experts, inputs, outputs]``."""
    bias: bool = False
    """Router and experts have biases."""

    def __call__(self, settings: Settings, layer: int) -> Iterator[Part]:
        """The parameters of one layer."""
        hidden, width, experts = settings.hidden, settings.size(self.width), settings.size(*self.experts)
        yield from linear(f"{self.name}.{self.router}", hidden, experts, self.bias)
        if self.correction:
            # ERNIE keeps room for several groups of experts
            shape = (1, experts) if "statics" in self.correction else (experts,)
            yield f"{self.name}.{self.correction}", shape
        yield from fused(f"{self.name}.experts", experts, hidden, width, self.transposed, self.bias)
        if self.shared:
            yield from self.shared.parts(settings, self.name)


def dbrx_experts(settings: Settings, layer: int) -> Iterator[Part]:
    """Experts lie below each other in three matrices."""
    experts = settings.size("num_local_experts")
    yield from linear("ffn.router.layer", settings.hidden, experts)
    for name in ("w1", "v1", "w2"):
        yield f"ffn.experts.mlp.{name}", (experts * settings.size("intermediate_size"), settings.hidden)


def nemotron_experts(settings: Settings, layer: int) -> Iterator[Part]:
    """Networks without gates, which may work in a narrower space than the residual stream."""
    hidden, width = settings.hidden, settings.size("moe_intermediate_size")
    experts = settings.size("n_routed_experts", "num_local_experts")
    inputs, bias = settings.size_or("moe_latent_size", hidden), settings.flag(("mlp_bias", False))
    yield from linear("mixer.gate", hidden, experts)
    yield "mixer.gate.e_score_correction_bias", (experts,)
    yield "mixer.experts.up_proj", (experts, width, inputs)
    yield "mixer.experts.down_proj", (experts, inputs, width)
    shared = settings.size("moe_shared_expert_intermediate_size", zero=True) or settings.size("intermediate_size")
    yield from plain("mixer.shared_experts", hidden, shared, bias)
    if settings.config.get("moe_latent_size") is not None:
        yield from linear("mixer.fc1_latent_proj", hidden, inputs, bias)
        yield from linear("mixer.fc2_latent_proj", inputs, hidden, bias)


def nemotron_mlp(settings: Settings, layer: int) -> Iterator[Part]:
    """A dense network without a gate."""
    return plain("mixer", settings.hidden, settings.size("intermediate_size"), settings.flag(("mlp_bias", False)))


def gemma_ffn(settings: Settings, layer: int) -> Iterator[Part]:
    """A dense network in every layer, and experts beside it."""
    hidden = settings.hidden
    wide = settings.flag(("use_double_wide_mlp", False)) and shares_keys(settings, layer)
    yield from gated("mlp", hidden, settings.size("intermediate_size") * (2 if wide else 1))
    if not settings.flag(("enable_moe_block", False)):
        return
    experts = settings.size("num_experts")
    yield from linear("router.proj", hidden, experts)
    yield "router.scale", (hidden,)
    yield "router.per_expert_scale", (experts,)
    yield from fused("experts", experts, hidden, settings.size("moe_intermediate_size"))
    for name in ("post_feedforward_layernorm_1", "post_feedforward_layernorm_2", "pre_feedforward_layernorm_2"):
        yield f"{name}.weight", (hidden,)


def gemma_layer_inputs(settings: Settings, layer: int) -> Iterator[Part]:
    """What a layer does with its own embedding of the token, where there is one."""
    yield "layer_scalar", (1,)
    width = settings.size("hidden_size_per_layer_input", zero=True)
    if width:
        yield from linear("per_layer_input_gate", settings.hidden, width)
        yield from linear("per_layer_projection", width, settings.hidden)
        yield "post_per_layer_input_norm.weight", (settings.hidden,)


def gemma_layer_embeddings(settings: Settings, layer: int) -> Iterator[Part]:
    """An embedding of the token for every layer, where there is one."""
    width = settings.size("hidden_size_per_layer_input", zero=True)
    if width:
        all_layers = settings.size("num_hidden_layers") * width
        yield "embed_tokens_per_layer.weight", (settings.size("vocab_size_per_layer_input"), all_layers)
        yield from linear("per_layer_model_projection", settings.hidden, all_layers)
        yield "per_layer_projection_norm.weight", (width,)
