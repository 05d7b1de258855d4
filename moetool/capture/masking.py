"""Experts that routers must not choose: layers and their masked experts enter, routing without them leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from moetool.capture.routers import MoELayer
from moetool.capture.scores import correction_bias
from moetool.capture.seams import Routing, tap
from moetool.errors import MoetoolError

Masks = Mapping[MoELayer, frozenset[int]]
"""The experts that each layer must not choose; other layers choose freely."""
_CHOOSING = frozenset({"topk", "argmax", "max"})
"""How routers of transformers choose among all their experts."""


@contextmanager
def masked(experts: Masks) -> Iterator[None]:
    """Forwards inside never choose the given experts: each token gets the best K of the others.

    A softmax is taken over the others too, except where a bias is added to it or groups of experts are chosen by it:
    there it would change what tokens choose that did not choose a masked expert. Raises MoetoolError, inside, where a
    layer chooses a masked expert all the same.
    """
    handles: list[Any] = []
    try:
        for moe, without in experts.items():
            handles += _hook(moe, without)
        with tap(experts, lambda moe, routing: _check_choice(moe, routing, experts[moe])):
            yield
    finally:
        for handle in handles:
            handle.remove()


def check_maskable(moe: MoELayer, without: frozenset[int]) -> None:
    """Raise MoetoolError where the router of a layer cannot do without these experts."""
    unknown = [expert for expert in without if not 0 <= expert < moe.experts]
    if unknown:
        raise _cannot(moe, f"it has {moe.experts} of them, and no expert {unknown[0]}")
    if moe.experts - len(without) < moe.experts_per_token:
        raise _cannot(moe, f"{len(without)} of {moe.experts} leave fewer than {moe.experts_per_token} to choose")
    if moe.scoring == "hash":
        raise _cannot(moe, "it chooses by token, not by score")


class _Without(TorchFunctionMode):
    """Where a router compares all of its experts, the masked ones count as -inf."""

    def __init__(self, moe: MoELayer, without: frozenset[int]) -> None:
        super().__init__()
        self.experts, self.without = moe.experts, torch.tensor(sorted(without))
        apart = correction_bias(moe) is None and not moe.expert_groups
        self.functions = _CHOOSING | {"softmax"} if apart else _CHOOSING

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call a function of torch, with masked scores where it is one of those that compare experts."""
        if args and getattr(func, "__name__", "") in self.functions:
            args = (self.mask(args[0]), *args[1:])
        return func(*args, **(kwargs or {}))

    def mask(self, value: Any) -> Any:
        """A floating tensor ``[..., E]`` without the masked experts; anything else as it is."""
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            return value
        if not value.dim() or value.shape[-1] != self.experts:
            return value
        return value.index_fill(-1, self.without.to(value.device), float("-inf"))


def _hook(moe: MoELayer, without: frozenset[int]) -> list[Any]:
    mode = _Without(moe, without)

    def enter(module: torch.nn.Module, args: Any) -> None:
        mode.__enter__()  # type: ignore[no-untyped-call]

    def leave(module: torch.nn.Module, args: Any, output: Any) -> Any:
        mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        return mode.mask(output)  # a router that returns nothing but its logits leaves the choice to its block

    return [moe.router.register_forward_pre_hook(enter), moe.router.register_forward_hook(leave, always_call=True)]


def _check_choice(moe: MoELayer, routing: Routing, without: frozenset[int]) -> None:
    chosen = torch.isin(routing.chosen, torch.tensor(sorted(without), device=routing.chosen.device))
    if chosen.any():
        raise _cannot(moe, f"expert {int(routing.chosen[chosen][0])} was chosen all the same")


def _cannot(moe: MoELayer, reason: str) -> MoetoolError:
    return MoetoolError(f"cannot mask experts of layer {moe.layer} ({moe.family.name}): {reason}")
