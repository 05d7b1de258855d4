"""How decoder layers mix tokens and what they keep of the context: the types that a reader of tensors fills."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MixerKind = Literal[
    "full", "sliding", "chunked", "latent", "compressed", "linear", "mamba", "convolution", "shared", "cross"
]
"""``full`` attention sees the whole context; ``latent`` is multi-head latent attention (MLA); ``compressed`` keeps one
entry for several tokens; ``shared`` reads the cache of another layer; ``cross`` reads that of an encoder."""


@dataclass(frozen=True, slots=True)
class Pool:
    """A cache that grows with the context."""

    what: str
    """Of what: ``keys and values``, ``latent``, ``index keys``, ..."""
    elements: int
    """Numbers per entry, of one sequence."""
    terms: str
    """Where ``elements`` comes from, for people: ``2 x 8 x 128``."""
    every: int = 1
    """Tokens per entry."""
    window: int | None = None
    """Most entries that are kept; None for all."""
    heads: int | None = None
    """Key-value heads, which tensor parallelism can share out; None where every rank needs a whole copy."""

    def entries(self, context_tokens: int) -> int:
        """Entries of one sequence of that many tokens."""
        whole = context_tokens // self.every  # an entry is written when its last token is there
        return whole if self.window is None else min(whole, self.window)


@dataclass(frozen=True, slots=True)
class State:
    """Memory of a sequence that does not grow with the context."""

    what: str
    """``recurrent``, ``convolution`` or ``buffer``."""
    elements: int
    dtype: str | None
    """Header name of its type; None for that of the cache."""
    terms: str
    heads: int | None = None
    """Heads that tensor parallelism can share out; None where it cannot be told."""


@dataclass(frozen=True, slots=True)
class Mixer:
    """The token mixer of one decoder layer; a layer may have several."""

    layer: int
    kind: MixerKind
    pools: tuple[Pool, ...] = ()
    states: tuple[State, ...] = ()
    prefill_products: int = 0
    """Multiply-adds per pair of a token and one that it attends to, where keys and values are at hand."""
    decode_products: int = 0
    """The same where one token reads the cache: MLA then works on the latent (absorbed), which is wider."""
    window: int | None = None
    """Most tokens that a token attends to; None for all before it."""
    every: int = 1
    """Tokens behind one attended entry."""
    index_products: int = 0
    """Multiply-adds per pair to choose what is attended to (sparse attention)."""
    chosen: int | None = None
    """Entries that a sparse attention chooses at the most; None for all."""
    state_products: int = 0
    """Multiply-adds per token to update and read the recurrent state."""
