"""Reports of every command that together have all of its tables, with values wherever there can be any."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from moetool.commands import capture, compare, compare_reports, generate, route_stats, specialize, specialize_ablation
from moetool.commands.generate_cli import LoadingOptions, WatchingOptions, WritingOptions
from moetool.commands.generate_run import write_texts
from moetool.commands.memory import report_memory
from moetool.commands.memory_section import MemorySettings
from moetool.commands.models import report_models
from moetool.progress import SilentProgress
from moetool.report.formats import FORMATS, Page
from moetool.report.report import Report, Table
from tests.statistics.domains import planted_trace
from tests.statistics.traces import random_trace

OPTIONS = {"text": ["a.txt", "b=c.txt"], "max_tokens": None, "seed": 0}


def as_json(report: Report) -> dict:
    return json.loads(str(FORMATS["json"].render(report, Page())))


def _small_trace(seed: int = 0):
    return random_trace(seed, 8, 2, (400,) * 6, layers=3, special=[0])


def _memory() -> list[Report]:
    every = MemorySettings(gpu_memory="80GiB", gpus=8, ep=8, training="adamw", compare="deepseek-v3")
    offloaded = MemorySettings(gpu_memory="48GiB")
    parts = MemorySettings(by=("tensor", "expert"))
    return [
        report_memory("mixtral-8x7b", None, every),
        report_memory("mixtral-8x7b", None, offloaded),
        report_memory("demo", None, parts),
    ]


def _specialize() -> list[Report]:
    report = specialize.build_report(planted_trace(0, lifts={(0, 3, 1): 4.0}), OPTIONS)
    ablation = Table("ablation", "Without the specialists", specialize_ablation.COLUMNS, ())
    ablated = [ablation if table.key == ablation.key else table for table in report.tables]
    return [report, replace(report, tables=tuple(ablated))]


def _generate() -> list[Report]:
    written = write_texts(
        "demo", None, ["a", "b"], WritingOptions(max_new_tokens=3), WatchingOptions(), LoadingOptions(device="cpu"),
        True, SilentProgress(),
    )  # fmt: skip
    return [generate.build_report(written, OPTIONS)]


def _compare() -> list[Report]:
    first, second = _small_trace(), _small_trace()
    layers = tuple(replace(layer, chosen=7 - layer.chosen) for layer in second.layers)
    traces = compare.build_report(first, replace(second, layers=layers), OPTIONS)
    with TemporaryDirectory() as folder:
        paths = [Path(folder, name) for name in ("a.json", "b.json")]
        for path, trace in zip(paths, (first, _small_trace(1)), strict=True):
            path.write_text(json.dumps(as_json(route_stats.build_report(trace, OPTIONS))))
        return [traces, compare_reports.build_report(*paths, OPTIONS)]


def _captured(command: str) -> list[Report]:
    return [capture.build_report(_small_trace(), Path(__file__).parent, OPTIONS, command=command)]


REPORTS: dict[str, Callable[[], list[Report]]] = {
    "memory": cache(_memory),
    "route-stats": cache(lambda: [route_stats.build_report(_small_trace(), OPTIONS)]),
    "specialize": cache(_specialize),
    "capture": cache(lambda: _captured("capture")),
    "generate": cache(_generate),
    "import": cache(lambda: _captured("import")),
    "compare": cache(_compare),
    "models": cache(lambda: [report_models()]),
}
