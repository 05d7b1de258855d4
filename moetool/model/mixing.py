"""Token mixers from tensors: the names and sizes of a layer's tensors and the config enter, its Mixers leave.

What a layer is, its tensors show: a checkpoint that stores ``kv_a_proj_with_mqa`` caches a latent, one with ``A_log``
keeps a state. Sizes are parameters divided by the hidden size, so that they are right for packed weights and for layers
that differ. The config adds what no tensor shows: windows, heads, and the type of states.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from math import prod
from typing import Any

from moetool.model.caches import Mixer, Pool, State
from moetool.model.families import HEADS, encoder_layers, find, per_layer
from moetool.model.mixer_parts import Module, Weight, sort_modules
from moetool.model.windows import Window, layer_windows

_STEPS = re.compile(r"compressor\.(?:position_bias|ape)$")
_LINEAR_NAMES = re.compile(r"linear_attn|linear_attention|in_proj_qkv|attn_qkv|delta_net")
STATE_DTYPE = "F32"
"""Recurrent states are kept in float32 unless the config names another type: sums over the whole context lose bits."""
_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "kv_n_heads")
_GROUPS = ("mamba_n_groups", "n_groups", "mamba_ngroups", "ssm_n_groups")


def read_mixers(
    config: Mapping[str, Any], hidden_size: int | None, weights: Mapping[int, Iterable[Weight]], layers: int
) -> tuple[Mixer, ...]:
    """The mixers of every decoder layer, in order; a layer whose tensors show none has none.

    ``weights``: those of attention and its like, by decoder layer; ``layers``: the number of decoder layers.
    """
    if not hidden_size:
        return ()
    reader = _Reader(config, hidden_size, layers)
    return tuple(
        mixer
        for layer, members in sorted(weights.items())
        for module in sort_modules(layer, members)
        for mixer in reader.read(module)
    )


class _Reader:
    """Reads modules of one model."""

    def __init__(self, config: Mapping[str, Any], hidden_size: int, layers: int) -> None:
        self.config, self.hidden = config, hidden_size
        self.first_decoder = encoder_layers(config)
        decoder = max(layers - self.first_decoder, 0)
        self.windows: list[Window] = [*([None] * self.first_decoder), *layer_windows(config, decoder)]
        shared = per_layer(find(config, "num_kv_shared_layers"), 0) or 0
        self.first_shared = layers - shared
        named = find(config, "mamba_ssm_cache_dtype", "mamba_ssm_dtype")
        self.state_dtype = {"bfloat16": "BF16", "float16": "F16"}.get(str(named), STATE_DTYPE)

    def read(self, module: Module) -> list[Mixer]:
        """The mixers of one module: one, or two where attention is both to a window and to compressed entries."""
        layer, parts = module.layer, module.parts
        if layer < self.first_decoder:
            return []
        if module.is_cross:
            return [self._attention(module, None, "cross")]
        if "latent" in parts:
            return [self._latent(module)]
        if "key_value" in parts and "latent_norm" in parts:
            return self._compressed(module)
        if any("time_decay" in name for name in module.names):
            return []  # RWKV calls parts of its recurrence key and value; its state is not known here
        if "decay" in parts:
            return [self._recurrent(module)]
        if "key" in parts or "key_value" in parts:
            return [self._attention(module, self._window(layer))]
        if "fused" in parts:
            linear = "linear" in str(per_layer_value(find(self.config, "layer_types"), layer))
            return [self._lightning(module) if linear else self._attention(module, self._window(layer))]
        if "convolution" in parts:
            return [Mixer(layer, "convolution", states=self._convolutions(module))]
        return [self._attention(module, self._window(layer))] if "query" in parts else []

    def _window(self, layer: int) -> Window:
        return self.windows[layer] if layer < len(self.windows) else None

    def _rows(self, module: Module, part: str) -> int:
        return module.parameters(part) // self.hidden

    def _heads(self, layer: int, keys: tuple[str, ...] = HEADS) -> int | None:
        attention = find(self.config, "attn_config")
        nested = find(attention, *keys) if isinstance(attention, Mapping) else None
        return per_layer(nested or find(self.config, *keys), layer) or None

    def _attention(self, module: Module, window: Window, kind: str = "full") -> Mixer:
        layer = module.layer
        output = self._rows(module, "output")
        if "fused" in module.parts:
            keys = values = (self._rows(module, "fused") - output) // 2
        elif "key_value" in module.parts:
            keys = values = self._rows(module, "key_value") // 2
        else:
            keys = self._rows(module, "key")
            values = self._rows(module, "value") or keys  # Gemma 4 makes both from one projection and keeps both
        if layer >= self.first_shared or not keys:
            return Mixer(layer, "shared", (), (), 2 * output, 2 * output, window and window[1])
        heads = self._key_heads(module, keys)
        if not output and heads:  # JetMoe's output projections are experts
            output = (self._heads(layer) or heads) * values // heads
        products = output + (output * keys // values if values else 0)
        if window:
            kind = window[0]
        return Mixer(
            layer,
            kind,  # type: ignore[arg-type]
            (Pool("keys and values", keys + values, _terms(keys, values, heads), 1, window and window[1], heads),
             *self._index(module)),
            self._convolutions(module),
            prefill_products=products,
            decode_products=products,
            window=window and window[1],
            **self._sparse(module),
        )  # fmt: skip

    def _key_heads(self, module: Module, keys: int) -> int | None:
        """Key-value heads: by the size of a head's norm where there is one, else by the config."""
        named = per_layer(find(self.config, "head_dim", "attention_head_dim"), module.layer)
        # A norm as wide as all keys together may be that of the only head or, as in OLMoE, of all.
        widest = max(keys - 1, self._rows(module, "output") // (self._heads(module.layer) or 1))
        norms = [weight.shape[0] for weight in module.parts.get("key_norm", ())]
        for size in (*(size for size in norms if size <= widest), named):
            if size and keys % size == 0:
                return keys // size
        heads = self._heads(module.layer, _KV_HEADS) or self._heads(module.layer)
        return heads if heads and keys % heads == 0 else None

    def _latent(self, module: Module) -> Mixer:
        layer, copies = module.layer, sum(weight.count for weight in module.parts["latent"])
        latent = self._rows(module, "latent") // copies
        norms = module.parts.get("latent_norm")
        rank = norms[0].shape[0] if norms else per_layer(find(self.config, "kv_lora_rank"), layer) or latent
        rope = latent - rank
        values = self._rows(module, "output") // copies
        heads = self._heads(layer) or 1
        inner = module.parameters("expand") // copies // rank - values
        window = self._window(layer)
        terms = f"({rank} + {rope})" if rope else str(rank)
        return Mixer(
            layer,
            "latent",
            (Pool("latent", copies * latent, f"{copies} x {terms}" if copies > 1 else terms, 1, window and window[1]),
             *self._index(module)),
            prefill_products=copies * (inner + heads * rope + values),
            decode_products=copies * heads * (2 * rank + rope),
            window=window and window[1],
            **self._sparse(module),
        )  # fmt: skip

    def _index(self, module: Module) -> tuple[Pool, ...]:
        """Keys by which a sparse attention chooses; layers that take over the choice of another one keep none."""
        width = self._rows(module, "index")
        if not width or per_layer_value(find(self.config, "indexer_types"), module.layer) == "shared":
            return ()
        return (Pool("index keys", width, str(width), per_layer(find(self.config, "index_kpool"), 0) or 1),)

    def _sparse(self, module: Module) -> dict[str, Any]:
        width = sum(pool.elements for pool in self._index(module))
        if "index" not in module.parts:
            return {}
        heads = per_layer(find(self.config, "index_n_heads"), module.layer) or 1
        # Every head's product with the key, then their weighted sum.
        return {
            "index_products": heads * (width + 1) if width else 0,
            "chosen": per_layer(find(self.config, "index_topk"), 0),
        }

    def _compressed(self, module: Module) -> list[Mixer]:
        """DeepSeek-V4: a window of latents, and in most layers one latent for every so many tokens."""
        layer, window = module.layer, self._window(module.layer)
        size = window and window[1]
        width = self._rows(module, "key_value")
        products = 2 * width * (self._heads(layer) or 1)
        pools = (Pool("latents", width, str(width), 1, size),)
        near = Mixer(layer, "sliding" if size else "full", pools, (), products, products, size)
        steps = [weight.shape for weight in module.parts.get("compressor", ()) if _STEPS.search(weight.name)]
        if not steps:
            return [near]
        every, step = steps[0]
        index = self._rows(module, "index") * width // step
        entry = Pool("compressed latents", width, str(width), every)
        chooser = (Pool("index keys", index, str(index), every),) if index else ()
        # Keys and gates wait until their entry is complete; where entries overlap, so does the half of the one before.
        waiting = (width + index) * (3 if step > width else 1)
        heads = per_layer(find(self.config, "index_n_heads"), 0) or 1
        far = Mixer(
            layer, "compressed", (entry, *chooser),
            (State("buffer", 2 * every * waiting, None, f"2 x {every} x {waiting}"),), products, products, None, every,
            heads * (index + 1) if index else 0, per_layer(find(self.config, "index_topk"), 0) if index else None,
        )  # fmt: skip
        return [near, far]

    def _convolutions(self, module: Module) -> tuple[State, ...]:
        """Causal convolutions keep the inputs of the tokens before: all but one of their kernel."""
        states = []
        for weight in module.parts.get("convolution", ()):
            channels, kernel = weight.shape[0] * weight.count, weight.shape[-1]
            states.append((channels, kernel))
        if not states:
            return ()
        elements = sum(channels * (kernel - 1) for channels, kernel in states)
        channels, kernel = sum(channels for channels, _ in states), states[0][1]
        return (State("convolution", elements, None, f"{channels} x ({kernel} - 1)", channels),)

    def _recurrent(self, module: Module) -> Mixer:
        """Mamba, Mamba-2, gated delta net or Kimi delta attention, by what is stored beside the decay."""
        layer, inner = module.layer, self._rows(module, "output")
        decay = module.parts["decay"][0]
        convolutions = self._convolutions(module)
        if "select" in module.parts:
            terms = " x ".join(map(str, decay.shape))
            state = State("recurrent", prod(decay.shape), self.state_dtype, terms, decay.shape[0])
            return Mixer(layer, "mamba", states=(state, *convolutions), state_products=2 * prod(decay.shape))
        heads = prod(decay.shape)
        channels = sum(weight.shape[0] * weight.count for weight in module.parts.get("convolution", ()))
        linear = "key" in module.parts or any(_LINEAR_NAMES.search(name) for name in module.names)
        if "key" in module.parts:
            width = self._rows(module, "key") // heads
        elif linear:
            key_heads = per_layer(find(self.config, "linear_num_key_heads"), layer) or heads
            width = (channels - inner) // 2 // key_heads
        else:
            width = (channels - inner) // 2 // (per_layer(find(self.config, *_GROUPS), layer) or 1)
        terms = f"{heads} x {inner // heads} x {width}"
        state = State("recurrent", inner * width, self.state_dtype, terms, heads)
        # The delta rule reads the state once more than it writes it.
        return Mixer(
            layer, "linear" if linear else "mamba", states=(state, *convolutions),
            state_products=(3 if linear else 2) * inner * width,
        )  # fmt: skip

    def _lightning(self, module: Module) -> Mixer:
        inner, heads = self._rows(module, "output"), self._heads(module.layer) or 1
        head = inner // heads
        state = State("recurrent", inner * head, self.state_dtype, f"{heads} x {head} x {head}", heads)
        return Mixer(module.layer, "linear", states=(state,), state_products=2 * inner * head)


def per_layer_value(value: Any, layer: int) -> Any:
    """The value of a layer in a list with one per layer; None elsewhere."""
    return value[layer] if isinstance(value, list) and 0 <= layer < len(value) else None


def _terms(keys: int, values: int, heads: int | None) -> str:
    if not heads:
        return f"({keys} + {values})"
    if keys == values:
        return f"2 x {heads} x {keys // heads}"
    return f"{heads} x ({keys // heads} + {values // heads})"
