"""Figures of every kind as route-stats draws them, of made-up routing of any size."""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from moetool.report.report import Figure, Panel

Numbers = NDArray[np.float64]


def plain(values: Numbers) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def matrix(values: Numbers) -> tuple[tuple[str, tuple[float | None, ...]], ...]:
    return tuple((str(row), plain(cells)) for row, cells in enumerate(values))


def make_figures(layers: int, experts: int) -> tuple[Figure, ...]:
    random = np.random.default_rng(0)
    numbers = tuple(map(str, range(experts)))
    depth = tuple(map(str, range(layers)))
    load = random.gamma(4.0, size=(layers, experts))
    load[-1, :2] = 0.0
    load *= experts / load.sum(axis=1, keepdims=True)
    usage = [Panel(f"layer {layer}", numbers, (("utilization", plain(load[layer])),), 1.0) for layer in range(layers)]
    ranked = -np.sort(-load, axis=1)
    ranks = Panel("", tuple(str(rank + 1) for rank in range(experts)), matrix(ranked), 1.0)
    return (
        Figure("usage", "Expert usage per layer", "bars", "", tuple(usage), "expert", "utilization"),
        Figure("ranks", "Experts ordered by use", "heatmap", "", (ranks,), "rank", "utilization"),
        _load_curve(ranked),
        _coactivation(random, layers, experts),
        _repeats(random, depth),
        _flows(random, load),
    )


def _load_curve(ranked: Numbers) -> Figure:
    experts = ranked.shape[1]
    own = np.pad(np.cumsum(ranked, axis=1) / experts, ((0, 0), (1, 0)))
    percent = np.linspace(0.0, 1.0, 101)
    shares = [np.interp(percent, np.linspace(0.0, 1.0, experts + 1), curve) for curve in own]
    x = tuple(f"{number} %" for number in range(101))
    names = {"most even layer": 0.0, "median layer": 0.5, "least even layer": 1.0}
    series = [(name, plain(np.quantile(shares, level, axis=0))) for name, level in names.items()]
    series.append(("uniform", plain(percent)))
    return Figure(
        "load_curve", "Load that the busiest experts carry", "lines", "", (Panel("", x, tuple(series)),),
        "share of experts", "share of load",
    )  # fmt: skip


def _coactivation(random: np.random.Generator, layers: int, experts: int) -> Figure:
    panels = []
    for layer in range(layers):
        lift = np.exp(0.4 * random.standard_normal((experts, experts)))
        lift[0, 1] = 6.0 + layer
        upper = np.triu(lift, 1)
        rows = [[None if i == j else value for j, value in enumerate(row)] for i, row in enumerate(upper + upper.T)]
        series = tuple((str(i), tuple(row)) for i, row in enumerate(rows))
        panels.append(Panel(f"layer {layer}", tuple(map(str, range(experts))), series, 1.0))
    return Figure("coactivation", "Pairs of experts over chance", "heatmap", "", tuple(panels), "expert", "lift")


def _repeats(random: np.random.Generator, depth: tuple[str, ...]) -> Figure:
    observed = 0.4 + 0.2 * random.random(len(depth))
    series = (("observed", plain(observed)), ("uniform", (0.34,) * len(depth)), ("matched", plain(observed * 0.8)))
    return Figure(
        "repeats", "Tokens that share an expert with the one before", "lines", "", (Panel("", depth, series),),
        "layer", "share of tokens",
    )  # fmt: skip


def _flows(random: np.random.Generator, load: Numbers) -> Figure:
    panels = []
    for layer, (left, right) in enumerate(pairwise(load)):
        flow = np.outer(left, right) * random.gamma(0.3, size=(len(left), len(right)))
        title = f"layer {layer} to {layer + 1}"
        panels.append(Panel(title, tuple(map(str, range(len(right)))), matrix(flow / flow.sum())))
    return Figure("flows", "Paths between neighbouring layers", "flows", "", tuple(panels), "", "share of choices")
