"""Reports of every command that together have all of its tables, with values wherever there can be any.

They are of made-up routing and of configs in the package. No model is run, so that they are the same with every version
of torch and on every machine.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from moetool.capture.trace import RoutingTrace
from moetool.commands import capture, compare, compare_reports, generate, memory, models, route_stats, specialize
from moetool.commands.generate_run import Written
from moetool.commands.memory_section import MemorySettings
from moetool.commands.specialize_ablation import COLUMNS, LOSS_COLUMNS, Ablation, ablation_tables
from moetool.report.checks import evaluate, parse
from moetool.report.formats import FORMATS, Page
from moetool.report.report import Report
from tests.report.generations import make_generation, make_weights
from tests.statistics.domains import planted_trace
from tests.statistics.traces import random_trace

Names = Callable[[str], str]
"""What something is called, from a harmless name of it: ``str``, or one that puts hostile names there."""
Pages = dict[str, Report]

PAGES = {
    **{page: page for page in ("memory", "route-stats", "specialize", "capture", "generate", "import", "models")},
    **{"memory-parts": "memory", "generate-against": "generate"},
    **{"compare-traces": "compare", "compare-reports": "compare"},
}
"""Every page, and its command."""
WORDS = (" the", " of", " model", " 的", " 10", "1", "2", "7")
_DIGITS = 5
"""From here on, words are digits."""


def as_json(report: Report) -> dict:
    return json.loads(str(FORMATS["json"].render(report, Page())))


def _options(name: Names) -> dict[str, object]:
    return {"text": [name("a.txt"), f"b={name('c.txt')}"], "max_tokens": None, "seed": 0}


def _named(trace: RoutingTrace, name: Names, **settings: str) -> RoutingTrace:
    documents = tuple(
        replace(one, id=name(one.id), domain=name(one.domain), group=name(one.group), prompt_tokens=one.tokens // 2)
        for one in trace.documents
    )
    model = {**trace.model, "name": name("org/model"), "revision": name("main"), "family": name("test")}
    versions = {"torch": name("2.11.0"), "transformers": name("5.17.0")}
    told = {key: name(value) for key, value in settings.items()}
    return replace(trace, model=model, documents=documents, settings=told, versions=versions)


def _trace(name: Names, seed: int = 0, layers: int = 2, **settings: str) -> RoutingTrace:
    return _named(random_trace(seed, 6, 2, (100,) * 16, layers=layers, special=[0]), name, **settings)


def _memory(name: Names) -> Pages:
    def page(model: str, settings: MemorySettings, other: str | None = None) -> Report:
        found = [replace(memory.find_model(each), name=name(each)) for each in (model, other) if each]
        subjects = [memory.make_subject(each, settings) for each in found]
        options = {"gpu_memory": settings.gpu_memory, "by": list(settings.by)}
        return memory.build_report(subjects[0], options, *subjects[1:], *([name(other)] if other else []))

    every = MemorySettings(context=4096, gpu_memory="80GiB", gpus=8, ep=8, training="adamw")
    parts = MemorySettings(gpu_memory="8MiB", by=("tensor", "expert"))
    return {"memory": page("mixtral-8x7b", every, "deepseek-v3"), "memory-parts": page("demo", parts)}


def _route_stats(name: Names) -> Pages:
    report = route_stats.build_report(_trace(name), _options(name), by_expert=True, figures=True)
    checks = [parse(text) for text in ("dead_experts > 0", "max_violation >= 1", "z_loss > 1")]
    return {"route-stats": report.with_checks(evaluate(report, checks))}


def _told_apart(name: Names) -> RoutingTrace:
    """Expert 3 of the first layer prefers a domain, and expert 6 there digits."""
    trace = planted_trace(0, 3, 16, 150, 2, 8, lifts={(0, 3, 1): 2.4})
    words = np.random.default_rng(0).integers(len(WORDS), size=len(trace.tokens)).astype(np.int32)
    first = trace.layers[0]
    digits = (words >= _DIGITS) & (first.chosen != 6).all(axis=1)
    chosen = np.where(digits[:, None] & [True, False], 6, first.chosen).astype(np.uint8)
    documents = tuple(replace(one, task=name(f"task {i % 2}")) for i, one in enumerate(trace.documents))
    layers = (replace(first, chosen=chosen), *trace.layers[1:])
    vocabulary = {number: name(word) for number, word in enumerate(WORDS)}
    return _named(replace(trace, documents=documents, layers=layers, tokens=words, vocabulary=vocabulary), name)


def _specialize(name: Names) -> Pages:
    trace, options = _told_apart(name), _options(name)
    domain, other = trace.domains[1], trace.domains[0]
    row = [domain, "1:3", "confirmed", 0.21, 0.15, 0.27, 0.2, 0.12, 0.28, 0.19, 0.1, 0.3]
    losses = [["1:3", domain, domain, 0.21, 0.15, 0.27], ["1:3", domain, other, 0.01, -0.01, 0.03]]
    keys, loss_keys = ([column.key for column in columns] for columns in (COLUMNS, LOSS_COLUMNS))
    tables = ablation_tables(
        [dict(zip(keys, row, strict=True))], [dict(zip(loss_keys, each, strict=True)) for each in losses]
    )
    ablation = Ablation(tables, {(domain, 1, 3): "confirmed"})
    study = specialize.study(trace, options)
    return {"specialize": specialize.make_report(trace, study, options, ablation)}


def _generate(name: Names) -> Pages:
    texts = [name(word) for word in ("<s>", "The", *WORDS)]
    one = make_generation(10, 3, 8, 2, texts=texts)
    other = make_generation(8, 3, 8, 2, texts=texts[:8], name="against", seed=1)
    model = {**one.trace.model, "name": name("org/model")}
    one = replace(one, prompt=name("The"), trace=replace(one.trace, model=model))
    alone = Written([one], make_weights(3), 1, 2)
    both = Written([one, replace(other, stopped="end")], make_weights(3), 1, 2)
    written = {"generate": alone, "generate-against": both}
    return {page: generate.build_report(each, {"max_new_tokens": 8}) for page, each in written.items()}


def _compare(name: Names) -> Pages:
    first, second = _trace(name, dtype="float32", engine="stream"), _trace(name, dtype="bfloat16", engine="stream")
    changed = [np.where(np.arange(len(layer.chosen))[:, None] % 3, layer.chosen, 5 - layer.chosen)
               for layer in second.layers]  # fmt: skip
    layers = tuple(replace(layer, chosen=each) for layer, each in zip(second.layers, changed, strict=True))
    options = {"sources": [name("a"), name("b")]}
    pages = {"compare-traces": compare.build_report(first, replace(second, layers=layers), options)}
    with TemporaryDirectory() as folder:
        paths = [Path(folder, f"{side}.json") for side in "ab"]
        for seed, path in enumerate(paths):
            report = route_stats.build_report(_trace(name, seed, layers=1), _options(name))
            path.write_text(json.dumps(as_json(report)), encoding="utf-8")
        return {**pages, "compare-reports": compare_reports.build_report(*paths, options)}


def _captured(command: str, name: Names) -> Pages:
    with TemporaryDirectory() as folder:
        Path(folder, "trace").write_bytes(b"0" * 123_456)
        return {command: capture.build_report(_trace(name), Path(folder), _options(name), command=command)}


BUILDERS: dict[str, Callable[[Names], Pages]] = {
    "memory": _memory,
    "route-stats": _route_stats,
    "specialize": _specialize,
    "capture": lambda name: _captured("capture", name),
    "generate": _generate,
    "import": lambda name: _captured("import", name),
    "compare": _compare,
    "models": lambda name: {"models": models.report_models()},
}


@cache
def pages_of(command: str) -> Pages:
    """Its reports by name, with one version of moetool for all time."""
    pages = BUILDERS[command](str)
    return {
        page: replace(report, environment={**report.environment, "moetool": "1.2.3"}) for page, report in pages.items()
    }


REPORTS: dict[str, Callable[[], list[Report]]] = {
    command: cache(lambda command=command: list(pages_of(command).values())) for command in BUILDERS
}
