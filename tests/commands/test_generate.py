"""Watching a model write: the report, the options, the files beside it and the picture in a terminal."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from moetool import cli
from moetool.capture.trace import TraceLayer, open_trace
from moetool.checkpoint.locate import locate
from moetool.commands.generate import SUMMARY_COLUMNS, build_report
from moetool.commands.generate_live import LiveView
from moetool.commands.generate_live_grid import LABEL_WIDTH, draw_grid
from moetool.commands.generate_run import Written, _until_interrupted
from moetool.commands.generate_usage import LruCache, Usage, weigh
from moetool.errors import MoetoolError
from moetool.report.formats import FORMATS, Page
from moetool.report.page import Weights
from tests.report.generations import HOSTILE, make_generation, make_steps, make_weights

SHORT = ("--max-new-tokens", "6", "--device", "cpu")


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command line; exit code, standard output, standard error."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def run_main(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["moetool", "generate", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        streams = capsys.readouterr()
        return int(caught.value.code or 0), streams.out, streams.err

    yield run_main
    signal.signal(signal.SIGTERM, before)


def make_layer(chosen, experts, weight=None, layer=0, **changes):
    array = np.array(chosen, dtype=np.uint8)
    return TraceLayer(layer, experts, array.shape[1], "softmax", array, weight, **changes)


def test_a_cache_by_hand():
    """Of two: 1 and 2 fill it, 1 is there and becomes the newer one, 3 takes the place of 2, so 2 is gone."""
    cache = LruCache(2)
    assert [cache.look_up(expert) for expert in (1, 2, 1, 3, 2, 3)] == [False, False, True, False, False, True]


def test_usage_by_hand():
    """Layer 0 of 4 experts: the prompt leaves 0, 1 cached; of the lookups 1, 2, 1, 3, three of them new, 1 hits twice.
    Layer 1 of 3 and one that computes nothing: only its two lookups of 0 and 2 count, and 2 was there."""
    layers = [make_layer([[0, 1]], 4), make_layer([[2, 3]], 4, layer=1, zero_experts=1)]
    usage = Usage(layers, cache=2)
    usage.add([np.array([[0, 1]]), np.array([[2, 3]])], decode=False)
    assert (usage.distinct, usage.hit_rate) == ([2, 1], None)
    usage.add([np.array([[1, 2], [1, 3]]), np.array([[2, 3], [3, 0]])], decode=True)
    assert usage.distinct == [4, 2]
    assert usage.distinct_share == 6 / 7
    assert [usage.hit_rate_of(place) for place in (0, 1)] == [2 / 4, 1 / 2]
    assert usage.hit_rate == 3 / 6


def test_touched_weights_by_hand():
    """A token uses 0.5: 0.3 of it shared, and 2 of 4 experts of both layers, each a twentieth."""
    weights = Weights(100, 100, 0.5, (0.2, 0.2))
    layers = [make_layer([[0, 1]], 4), make_layer([[0, 1]], 4, layer=1)]
    usage = Usage(layers, cache=1)
    usage.add([layer.chosen for layer in layers], decode=True)
    assert usage.touched_share(weights) == pytest.approx(0.5)
    usage.add([np.array([[2, 3]]), np.array([[1, 2]])], decode=True)
    assert usage.touched_share(weights) == pytest.approx(0.5 + 2 * 0.05 + 0.05)
    assert usage.touched_share(replace(weights, active_share=None)) is None


def test_weights_of_the_demo_add_up():
    weights = weigh(locate("demo", None, weights="files"), [0, 1, 2, 3], 9)
    assert len(set(weights.routed_share)) == 1
    assert weights.routed_share[0] * weights.parameters == 3 * 8 * 160 * 240
    assert weights.active_share == pytest.approx(1 - sum(weights.routed_share) * 6 / 8)


def test_report_of_the_demo(run, tmp_path):
    page, trace = tmp_path / "page.html", tmp_path / "trace"
    files = ("--save", page, "--save", tmp_path / "report.json", "--save-trace", trace)
    code, out, err = run("demo", "Once upon a time", *SHORT, "--json", *files, "--quiet")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert report == json.loads((tmp_path / "report.json").read_text())
    assert report["schema"] == "moetool.generate/1.0"
    summary, tables = report["summary"], report["tables"]
    assert list(summary) == [column.key for column in SUMMARY_COLUMNS]
    assert (summary["prompt_tokens"], summary["new_tokens"]) == (6, 6)
    assert summary["loaded_parameters"] == 4_594_080
    tokens = tables["tokens"]
    assert "".join(row["token"] for row in tokens if row["phase"] == "decode") == tables["prompts"][0]["text"]
    assert "\n".join(row["text"] for row in tables["text"]) == tables["prompts"][0]["text"]
    assert [row["probability"] is None for row in tokens] == [True] * 6 + [False] * 6
    chances = [row["probability"] for row in tokens[6:]]
    assert summary["perplexity"] == pytest.approx(np.exp(-np.mean(np.log(chances))))
    assert summary["distinct_experts"] == sum(row["distinct_experts"] for row in tables["layers"])
    opened = open_trace(trace)
    assert opened.documents[0].prompt_tokens == 6
    middle = opened.layers[2]
    first = middle.chosen[np.arange(12), middle.weight.argmax(axis=1)]
    assert [row["expert"] for row in tokens] == first.tolist()
    assert summary["distinct_experts"] == sum(len(np.unique(layer.chosen)) for layer in opened.layers)
    assert report["findings"][0]["code"] == "stopped_length"
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_two_prompts_beside_each_other(run, tmp_path):
    arguments = ("demo", "Once upon a time", "--against", "def main():", *SHORT, "--layer", "0")
    pages = []
    for name in ("one.html", "two.html"):
        code, out, err = run(*arguments, "--save", tmp_path / name, "--save-trace", tmp_path / "trace", "--overwrite")
        assert (code, err) == (0, "")
        pages.append((tmp_path / name).read_bytes())
    assert pages[0] == pages[1]
    assert "\x1b" not in out
    assert "Tokens, experts of layer 0" in out
    assert re.search(r"^against +length +5 +6 ", out, re.MULTILINE)
    assert "both used" in out
    trace = open_trace(tmp_path / "trace")
    assert [(one.id, one.prompt_tokens, one.tokens) for one in trace.documents] == [
        ("prompt", 6, 12),
        ("against", 5, 11),
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("demo", "hi", "--layer", "9"), "--layer 9: the layer has no router"),
        (("demo", "hi", "--top-k", "3"), "--top-k has no effect at temperature 0"),
        (("demo", "hi", "--chat", "on"), "--chat on: the tokenizer has no chat template"),
        (("demo", ""), "the prompt is empty"),
        (("demo", "hi", "--max-new-tokens", "3000"), "more than the 2048"),
        (("mixtral-8x7b", "hi"), "is a preset, which has no weights to run"),
        (("demo", "hi", "--save", "missing/page.html"), "there is no folder missing"),
        (("demo", "hi", "--save", "picture.png"), "draws no pictures"),
        (("demo", "hi", "--save-trace", "tests"), "is there already, and no trace"),
    ],
)
def test_what_is_refused(run, arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "file").touch()
    code, out, err = run(*arguments, "--device", "cpu")
    assert (code, out) == (2, "")
    assert words in err
    assert [path.name for path in tmp_path.iterdir()] == ["tests"]


def test_a_trace_is_no_model_and_is_not_overwritten_unasked(run, tmp_path):
    folder = tmp_path / "trace"
    assert run("demo", "hi", *SHORT, "--save-trace", folder)[0] == 0
    assert "moetool generate runs the model, and a trace has none" in run(folder, "hi")[2]
    assert "holds a trace" in run("demo", "hi", *SHORT, "--save-trace", folder)[2]


def test_the_report_is_printed_even_if_a_file_beside_it_fails(run, tmp_path, monkeypatch):
    def fail(option, target, content):
        raise MoetoolError(f"{option} {target} cannot be written: the disk is full")

    monkeypatch.setattr("moetool.commands.generate_cli.write_file", fail)
    files = ("--save", tmp_path / "page.html", "--save-trace", tmp_path / "trace")
    code, out, err = run("demo", "hi", *SHORT, *files, "--fail-if", "new_tokens > 0")
    assert code == 2
    assert "Generated text" in out
    assert "the disk is full" in err
    assert open_trace(tmp_path / "trace").documents[0].tokens == 9


def test_an_interrupt_between_two_texts_keeps_the_first():
    first = make_generation(5, 1, 4, 2)

    def write(number, interrupted):
        if number == interrupted:
            raise KeyboardInterrupt
        return first

    assert len(_until_interrupted(2, lambda number: write(number, 1))) == 1
    assert len(_until_interrupted(2, lambda number: write(number, 2))) == 2
    assert len(_until_interrupted(2, lambda number: replace(first, stopped="interrupted"))) == 1
    with pytest.raises(KeyboardInterrupt):
        _until_interrupted(2, lambda number: write(number, 0))


def test_the_report_of_an_interrupted_and_hostile_text():
    """Nothing written, too: statistics of no new tokens are undefined."""
    generation = make_generation(len(HOSTILE), 2, 4, 2, texts=HOSTILE, prompt_tokens=len(HOSTILE))
    cut = replace(generation, stopped="interrupted")
    report = build_report(Written([cut], make_weights(2), 1, 2), {})
    report.verify()
    assert (report.findings[0].level, report.findings[0].code) == ("warning", "interrupted")
    assert report.summary["perplexity"] is None
    assert report.summary["cache_hit_rate"] is None
    text = FORMATS["text"].render(report, Page(width=80))
    assert all(character.isprintable() or character == "\n" for character in text)


def test_a_grid_by_hand():
    """The last token counts; the lighter of two experts has the lighter shade, and layers share lines if need be."""
    weight = np.array([[0.5, 0.5], [0.25, 0.75]])
    layers = [make_layer([[0, 1], [0, 3]], 4, weight, layer=number) for number in range(4)]
    wide = draw_grid(layers, 1, LABEL_WIDTH + 8, 4)
    assert [line.plain for line in wide[:2]] == ["      0 ▒ · · █ ", "▸     1 ▒ · · █ "]
    narrow = draw_grid(layers, 1, LABEL_WIDTH + 2, 4)
    assert narrow[0].plain == "      0 ▒█"
    halves = draw_grid([*layers[:3], make_layer([[0, 1], [2, 1]], 4, weight, layer=3)], 1, LABEL_WIDTH + 4, 2)
    assert [line.plain for line in halves] == ["▸   0-1 █··█", "    2-3 ▀▄▄▀"]
    window = draw_grid(layers, 3, LABEL_WIDTH + 4, 1)
    assert [line.plain for line in window] == ["▸   2-3 █··█"]


@pytest.mark.parametrize("size", [(80, 24), (160, 50), (40, 16)])
@pytest.mark.parametrize("shape", [(4, 8, 2), (32, 64, 8), (61, 256, 8)])
def test_the_picture_fills_the_screen(size, shape):
    width, height = size
    generation = make_generation(30, *shape, texts=HOSTILE)
    usage = Usage(generation.trace.layers, 4)
    view = LiveView("a model with a name that is far too long for this" * 3, make_weights(shape[0]), usage, 1, 28, 0.0)
    for step in make_steps(generation):
        view.add(step)
    lines = view.draw(step, width, height)
    output = io.StringIO()
    console = Console(file=output, width=width, height=height, force_terminal=False, _environ={})
    for line in lines:
        console.print(line, soft_wrap=True)
    printed = output.getvalue().splitlines()
    assert len(printed) == height
    assert max(map(len, printed)) <= width
    assert "".join(printed).isprintable()
    assert printed[0].endswith("token 28 of 28")
    assert "word29" in "".join(printed[1:])
    assert f"experts  {sum(usage.distinct):,} of {shape[0] * shape[1]:,}" in "\n".join(printed)


def test_a_terminal_shows_the_view_and_after_an_interrupt_the_report():
    """On a pseudo terminal: the alternate screen is taken and given back; the report follows on standard output."""
    leader, follower = pty.openpty()
    endless = ("--max-new-tokens", "900", "--delay", "0.05", "--device", "cpu")
    command = [sys.executable, "-m", "moetool", "generate", "demo", "Once upon a time", *endless]
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=follower, env=environment)
    os.close(follower)
    shown, interrupted = b"", False
    try:
        while part := os.read(leader, 65536):
            shown += part
            if not interrupted and re.search(rb"token [5-9] of 900", shown):
                process.send_signal(signal.SIGINT)
                interrupted = True
    except OSError:  # how Linux says that the other end was closed
        pass
    finally:
        os.close(leader)
    report, _ = process.communicate()
    assert process.returncode == 0
    assert shown.index(b"\x1b[?1049h") < shown.index(b"experts by layer") < shown.index(b"\x1b[?1049l")
    assert b"Interrupted: the report is of what was written until then." in report
    assert re.search(rb"New tokens +\d+\n", report)
    assert b"\x1b" not in report
