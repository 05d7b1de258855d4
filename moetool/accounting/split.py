"""How a model may be divided over GPUs: enters ModelFacts and the sizes asked for, leaves a Split that can be run."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

from moetool.errors import MoetoolError
from moetool.model.facts import ModelFacts

MAX_GPUS = 100_000
"""More are refused: the table of devices has one row per GPU."""


@dataclass(frozen=True, slots=True)
class Split:
    """How a model is divided over GPUs."""

    gpus: int
    tp: int = 1
    """Tensor parallelism: shards of every matrix."""
    pp: int = 1
    """Pipeline parallelism: stages of layers."""
    dp: int = 1
    """Data parallelism: replicas of all but what ep divides."""
    ep: int = 1
    """Expert parallelism: ranks of a stage that share out its experts; 1 for none."""
    redundant_experts: int = 0
    """Further replicas of experts per layer."""

    @property
    def expert_tp(self) -> int:
        """Ranks that shard the matrices of one expert."""
        return max(1, self.tp // self.ep)


def make_split(
    facts: ModelFacts,
    gpus: int,
    tp: int | None = None,
    pp: int | None = None,
    dp: int | None = None,
    ep: int = 1,
    redundant_experts: int = 0,
) -> Split:
    """A checked split; of what is not given, the first of tp, dp and pp takes the GPUs that are left.

    Raises MoetoolError where the split is impossible for the model.
    """
    given = (tp or 1) * (pp or 1) * (dp or 1)
    rest = gpus // given if given > 0 and gpus % given == 0 else 1
    if tp is None:
        tp, rest = rest, 1
    if dp is None:
        dp, rest = rest, 1
    split = Split(gpus, tp, rest if pp is None else pp, dp, ep, redundant_experts)
    check_split(facts, split)
    return split


def check_split(facts: ModelFacts, split: Split) -> None:
    """Raise MoetoolError, with the reason and what would do, where no engine could divide the model so."""
    sizes = {"gpus": split.gpus, "tp": split.tp, "pp": split.pp, "dp": split.dp, "ep": split.ep}
    for name, size in sizes.items():
        if size < 1:
            raise MoetoolError(f"--{name} {size}: it must be at least 1", f"leave --{name} out, or give 1 or more")
    if split.gpus > MAX_GPUS:
        raise MoetoolError(f"--gpus {split.gpus}: at most {MAX_GPUS} can be planned")
    product = split.tp * split.pp * split.dp
    if product != split.gpus:
        raise MoetoolError(
            f"--tp {split.tp} x --pp {split.pp} x --dp {split.dp} are {product} GPUs, not --gpus {split.gpus}",
            f"give --gpus {product}, or leave one of --tp, --pp and --dp out" if product <= MAX_GPUS else None,
        )
    _check_tensors(facts, split)
    _check_experts(facts, split)


def _check_tensors(facts: ModelFacts, split: Split) -> None:
    heads, layers = facts.heads, len(decoder_layers(facts))
    if heads and heads % split.tp:
        fitting = [size for size in range(1, min(heads, 64) + 1) if heads % size == 0]
        tp = gcd(split.tp * split.pp, heads)
        pp = min(split.tp * split.pp // tp, layers)
        replicas = f" --dp {split.dp}" if split.dp > 1 else ""
        raise MoetoolError(
            f"--tp {split.tp} does not divide the {heads} attention heads; {', '.join(map(str, fitting))} do",
            f"try --gpus {tp * pp * split.dp} --tp {tp} --pp {pp}{replicas}",
        )
    if split.pp > max(layers, 1):
        raise MoetoolError(f"--pp {split.pp}: the model has {layers} layers", f"give --pp {max(layers, 1)} or less")


def _check_experts(facts: ModelFacts, split: Split) -> None:
    redundant, ep = split.redundant_experts, split.ep
    if redundant < 0:
        raise MoetoolError(f"--redundant-experts {redundant}: it must not be negative")
    if redundant and ep == 1:
        raise MoetoolError(
            f"--redundant-experts {redundant} needs expert parallelism: a rank gains nothing from a second copy",
            f"add --ep {split.tp * split.dp}" if split.tp * split.dp > 1 else "add --gpus N --ep N",
        )
    if ep == 1:
        return
    experts = min((layer.experts for layer in facts.moe_layers), default=0)
    if not experts:
        raise MoetoolError(f"--ep {ep}: the model has no routed experts", "leave --ep out")
    if split.tp % ep and (ep % split.tp or split.tp * split.dp % ep):
        ranks = split.tp * split.dp
        fitting = [n for n in range(1, ranks + 1) if split.tp % n == 0 or (n % split.tp == 0 and ranks % n == 0)]
        raise MoetoolError(
            f"--ep {ep} does not divide the {ranks} ranks of a stage (--tp {split.tp} x --dp {split.dp}) evenly",
            f"give --ep {' or '.join(map(str, fitting[-4:]))}",
        )
    if ep > experts + redundant:
        raise MoetoolError(
            f"--ep {ep}: {experts} experts and {redundant} redundant ones leave ranks without any",
            f"give --ep {experts + redundant} or less, or --redundant-experts {ep - experts}",
        )
    if redundant > experts * (ep - 1):
        raise MoetoolError(
            f"--redundant-experts {redundant}: with {experts * (ep - 1)} every rank has all {experts} experts already"
        )


def decoder_layers(facts: ModelFacts) -> range:
    """Numbers of the decoder layers, without multi-token prediction."""
    numbers = {group.layer for group in facts.groups if group.layer is not None and group.owner != "mtp"}
    return range(min(numbers, default=0), max(numbers, default=-1) + 1)
