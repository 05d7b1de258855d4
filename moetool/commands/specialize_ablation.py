"""``specialize --ablate N``: whether domains need their specialists; an analysis and a model enter, rows leave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moetool.capture.trace import RoutingTrace
from moetool.progress import Progress
from moetool.report.report import Column, Table, Value
from moetool.statistics.causal import CausalEffect, Estimate, causal_effect, group_rises, pick_controls
from moetool.statistics.specialization import Specialists, Specialization

if TYPE_CHECKING:
    from moetool.capture.job import CaptureOptions
    from moetool.checkpoint.types import Checkpoint
    from moetool.corpus.documents import Document

Row = dict[str, Value]
Place = tuple[int, int]
"""Decoder layer and expert."""
CONTROLS = 8
"""Experts of the same layer and of like load that each specialist is held against."""

COLUMNS: tuple[Column, ...] = (
    Column("domain", "Domain", "text", help="The domain that the experts prefer."),
    Column("experts", "Masked", "text", help="layer:expert, alone or together; the router cannot choose them."),
    Column("verdict", "Verdict", "text", help="confirmed: all three surely above 0; refuted: not its own; or unclear."),
    Column("rise_nats", "Rise", "nats", help="Rise of the loss of the domain, per predicted token."),
    Column("rise_low", "from", "nats", True, help="Lower end of its 95 % interval over documents."),
    Column("rise_high", "to", "nats", True, help="Upper end."),
    Column("beyond_others", "Beyond others", "nats", help="The rise minus the mean rise of the other domains."),
    Column("beyond_others_low", "from", "nats", help="Lower end of its 95 % interval."),
    Column("beyond_others_high", "to", "nats", True, help="Upper end."),
    Column("beyond_controls", "Beyond controls", "nats", help="The rise minus that without others of like load."),
    Column("beyond_controls_low", "from", "nats", help="Lower end of its 99 % interval."),
    Column("beyond_controls_high", "to", "nats", True, help="Upper end."),
)
LOSS_COLUMNS: tuple[Column, ...] = (
    Column("experts", "Masked", "text", help="layer:expert, alone or together."),
    Column("domain", "Domain", "text", help="The domain that they prefer."),
    Column("other", "Loss of", "text", help="The domain whose loss this is."),
    Column("rise_nats", "Rise", "nats", help="Rise of that loss, per predicted token."),
    Column("rise_low", "from", "nats", help="Lower end of its 95 % interval over documents."),
    Column("rise_high", "to", "nats", help="Upper end."),
)
NOTE = "Loss of the next token without an expert, beside other domains and other experts of the layer with a like load."


@dataclass(frozen=True, slots=True)
class Ablation:
    """What masking the specialists does."""

    tables: tuple[Table, Table]
    """Verdicts, and the rise of every domain's loss."""
    verdicts: dict[tuple[str, Value, Value], str]
    """By domain, layer and expert, of those that were masked alone."""


@dataclass(frozen=True, slots=True)
class _Trial:
    """A set of experts of one domain, and sets of controls."""

    domain: int
    masked: frozenset[Place]
    controls: tuple[frozenset[Place], ...]


def ablate(
    checkpoint: Checkpoint,
    documents: Sequence[Document],
    options: CaptureOptions,
    trace: RoutingTrace,
    result: Specialization,
    number: int,
    seed: int,
    progress: Progress,
) -> Ablation:
    """Mask the ``number`` surest specialists of every domain, each alone and all of a domain together.

    ``options`` and ``documents`` are those of the trace. Raises MoetoolError as ``capture.ablation.losses`` does.
    """
    from moetool.capture.ablation import losses

    if result.specialists is None or not len(result.specialists.cell):
        return Ablation(ablation_tables([], []), {})
    trials = _trials(trace, result, result.specialists, number, np.random.default_rng([seed, 10]))
    variants = list(dict.fromkeys(each for trial in trials for each in (trial.masked, *trial.controls)))
    with progress.step(f"masking experts, {len(variants)} ways"):
        measured = losses(checkpoint, documents, options, variants, _Bars(progress), counted=trace.counted)
    rises = group_rises(measured.domains, measured.groups, measured.tokens, measured.baseline, measured.variant)
    index = {variant: place for place, variant in enumerate(variants)}
    rows: list[Row] = []
    every: list[Row] = []
    verdicts: dict[tuple[str, Value, Value], str] = {}
    for trial in trials:
        name = trace.domains[trial.domain]
        controls = [index[control] for control in trial.controls]
        effect = causal_effect(rises, index[trial.masked], controls, rises.domains.index(name))
        rows.append(_row(name, trial, effect, rises.domains.index(name)))
        for other, rise in zip(rises.domains, effect.rises, strict=True):
            found = {"rise_nats": rise.value, "rise_low": rise.low, "rise_high": rise.high}
            every.append({"experts": rows[-1]["experts"], "domain": name, "other": other, **found})
        if len(trial.masked) == 1:
            layer, expert = next(iter(trial.masked))
            verdicts[name, layer, expert] = str(effect.verdict)
    return Ablation(ablation_tables(rows, every), verdicts)


def _trials(
    trace: RoutingTrace, result: Specialization, found: Specialists, number: int, rng: np.random.Generator
) -> list[_Trial]:
    trials = []
    for domain in range(len(result.counts.domains)):
        alone = [
            _trial(trace, result, found, domain, int(cell), rng) for cell in found.cell[found.domain == domain][:number]
        ]
        trials += alone
        if len(alone) > 1:
            together = frozenset().union(*(trial.masked for trial in alone))
            draws = zip(*(trial.controls for trial in alone), strict=False)
            trials.append(_Trial(domain, together, tuple(frozenset().union(*draw) for draw in draws)))
    return trials


def _trial(
    trace: RoutingTrace, result: Specialization, found: Specialists, domain: int, cell: int, rng: np.random.Generator
) -> _Trial:
    """One specialist, and experts of its layer that the domain does not prefer."""
    place = int(np.searchsorted(result.counts.starts, cell, side="right")) - 1
    cells, layer = result.counts.layers[place], trace.layers[place]
    load = np.bincount(np.asarray(layer.chosen)[trace.counted].ravel(), minlength=layer.experts)
    own = found.cell[found.domain == domain] - cells.start
    preferred = set(own[(own >= 0) & (own < cells.experts)].tolist())
    controls = pick_controls(load, cell - cells.start, CONTROLS, rng, preferred)
    masked = frozenset({(cells.layer, cell - cells.start)})
    return _Trial(domain, masked, tuple(frozenset({(cells.layer, int(control))}) for control in controls))


def _row(name: str, trial: _Trial, effect: CausalEffect, domain: int) -> Row:
    parts = {
        "rise": effect.rises[domain], "beyond_others": effect.beyond_others, "beyond_controls": effect.beyond_controls,
    }  # fmt: skip
    row: Row = {
        "domain": name,
        "experts": ", ".join(f"{layer}:{expert}" for layer, expert in sorted(trial.masked)),
        "verdict": str(effect.verdict),
    }
    for key, estimate in parts.items():
        known = estimate or Estimate(float("nan"))
        value = None if estimate is None else known.value
        row |= {"rise_nats" if key == "rise" else key: value, f"{key}_low": known.low, f"{key}_high": known.high}
    return row


def ablation_tables(rows: Sequence[Row], every: Sequence[Row]) -> tuple[Table, Table]:
    """Verdicts, and the rise of every domain's loss."""
    return (
        Table("ablation", "Without the specialists", COLUMNS, tuple(rows), NOTE, optional=True),
        Table("losses", "Losses of all domains", LOSS_COLUMNS, tuple(every), text_rows=0, optional=True),
    )


class _Bars:
    """Bars of a progress that has told its notes once already."""

    def __init__(self, progress: Progress) -> None:
        self.step = progress.step

    def note(self, message: str) -> None:
        """Told when the text was read for the first time."""
