"""Watching a model write: the report, the options, the files beside it and the picture in a terminal."""

from __future__ import annotations

import io
import json
import re
import signal
import sys
from dataclasses import replace

import numpy as np
import pytest

from moetool import cli
from moetool.capture.trace import open_trace
from moetool.commands.generate import build_report
from moetool.commands.generate_columns import SUMMARY_COLUMNS
from moetool.commands.generate_run import Written, _until_interrupted
from moetool.errors import MoetoolError
from moetool.report.formats import FORMATS, Page
from tests.report.generations import HOSTILE, make_generation, make_weights

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
    assert {key: value for key, value in summary.items() if key.startswith(("against_", "shared_"))} == {
        "against_new_tokens": None, "against_distinct_share": None, "against_cache_hit_rate": None,
        "against_router_entropy": None, "against_perplexity": None, "shared_share": None,
    }  # fmt: skip
    assert (tables["text_against"], tables["tokens_against"]) == ([], [])
    assert report["findings"][0]["code"] == "stopped_length"
    content = page.read_text(encoding="utf-8")
    assert content.startswith("<!doctype html>")
    assert "About this run" in content
    assert f"dtype {report['environment']['dtype']}" in content
    row, weight = tables["choices"][2 * 12 + 7], middle.weight[7].astype(float)
    assert (row["prompt"], row["index"], row["layer"]) == ("prompt", 7, 2)
    assert row["experts"].split() == [str(expert) for expert in middle.chosen[7][np.argsort(-weight)]]
    assert [float(part) for part in row["weights"].split()] == pytest.approx(
        sorted(weight / weight.sum())[::-1], abs=1e-3
    )
    assert len(tables["choices"]) == 12 * 4


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
    assert "is of the first prompt; keys that begin with against_ are of the second" in " ".join(out.split())
    for title, tokens in (("", ("<s>", "On", "ce")), (", of --against", ("<s>", "def", " main"))):
        start = out.index(f"Tokens, experts of layer 0{title}\n")
        indices = [line.split()[:2] for line in out[start:].splitlines()[3:6]]
        assert indices == [[str(place), token.strip()] for place, token in enumerate(tokens)]
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
        (
            ("demo", "hi", "--max-new-tokens", "3000"),
            "the prompt has 3 tokens, and with 3000 new ones that is more than the 2048",
        ),
        (("demo", "hi", "--cache", "1"), "--cache 1: a token needs its 2 experts at once"),
        (("demo", "hi", "--overwrite"), "--overwrite goes with --save-trace, which is not given"),
        (("demo", "-", "--against", "-"), "PROMPT and --against are both -"),
        (("nothing", "hi"), "hint: MODEL is demo, a folder with config.json and safetensors files, or a hub id"),
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
    assert err.count("\n") <= 2
    assert [path.name for path in tmp_path.iterdir()] == ["tests"]


def test_a_trace_is_no_model_and_is_not_overwritten_unasked(run, tmp_path):
    folder = tmp_path / "trace"
    assert run("demo", "hi", *SHORT, "--save-trace", folder)[0] == 0
    assert "moetool generate runs the model, and a trace has none" in run(folder, "hi")[2]
    assert "holds a trace" in run("demo", "hi", *SHORT, "--save-trace", folder)[2]


def test_the_report_is_printed_even_if_a_file_beside_it_fails(run, tmp_path, monkeypatch):
    def fail(option, target, content):
        if content is not None:
            raise MoetoolError(f"{option} {target} cannot be written: the disk is full")

    monkeypatch.setattr("moetool.commands.run.write_file", fail)
    files = ("--save", tmp_path / "page.html", "--save-trace", tmp_path / "trace")
    code, out, err = run("demo", "hi", *SHORT, *files, "--fail-if", "new_tokens > 0")
    assert code == 2
    assert "Generated text" in out
    assert "the disk is full" in err
    assert open_trace(tmp_path / "trace").documents[0].tokens == 9


def test_a_trace_that_cannot_be_written_is_told_before_the_model_is_loaded(run, tmp_path):
    for folder in ("/proc/x", "/proc/x/y", "/proc"):
        code, out, err = run("demo", "hi", *SHORT, "--save-trace", folder)
        assert (code, out) == (2, "")
        assert "--save-trace /proc" in err


def test_html_is_the_interactive_page_wherever_it_goes(run, tmp_path):
    page = tmp_path / "page.html"
    code, out, _ = run("demo", "hi", *SHORT, "--format", "html", "--save", page)
    assert code == 0
    assert "<canvas" in out
    assert page.read_text(encoding="utf-8") == out


def test_a_second_prompt_that_was_not_begun_is_told_of():
    report = build_report(Written([make_generation(5, 2, 4, 2)], make_weights(2), 1, 2, left_out=1), {})
    assert [finding.code for finding in report.findings if finding.level == "warning"] == ["left_out"]


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
    assert report.table("choices").rows[0]["experts"].count(" ") == 1
    assert (report.findings[0].level, report.findings[0].code) == ("warning", "interrupted")
    assert report.summary["perplexity"] is None
    assert report.summary["cache_hit_rate"] is None
    text = FORMATS["text"].render(report, Page(width=80))
    assert all(character.isprintable() or character == "\n" for character in text)


def test_a_prompt_that_is_too_long_was_not_cut(run):
    code, out, err = run("demo", "word " * 3000, *SHORT)
    assert (code, out) == (2, "")
    assert err.startswith("moetool: error: the prompt has ")
    assert err.endswith("that the model reads\nhint: shorten the prompt\n")


@pytest.mark.parametrize(
    ("given", "terminal", "words"),
    [
        (b"Once upon a time\n", False, ""),
        ("\ufeffOnce upon a time\r\n".encode(), False, ""),
        (b" \n", False, "the prompt is -, and standard input is empty"),
        (b"\xff\xfe", False, "the prompt is -, and standard input is no text in UTF-8"),
        (b"", True, "the prompt is -, and standard input is a terminal"),
    ],
)
def test_a_prompt_from_standard_input(run, monkeypatch, given, terminal, words):
    stream = io.TextIOWrapper(io.BytesIO(given))
    monkeypatch.setattr(stream, "isatty", lambda: terminal, raising=False)
    monkeypatch.setattr(sys, "stdin", stream)
    code, out, err = run("demo", "-", *SHORT, "--json", "--quiet")
    if words:
        assert (code, out) == (2, "")
        assert words in err
    else:
        assert json.loads(out)["tables"]["prompts"][0]["prompt_text"] == "Once upon a time"


def test_a_second_text_can_be_checked(run):
    checks = ("--fail-if", "against_perplexity > 0", "--fail-if", "shared_share > 1", "--cache", "20")
    code, out, err = run("demo", "Once upon a time", "--against", "def main():", *SHORT, "--json", *checks)
    assert code == 1
    report = json.loads(out)
    prompt, against = report["tables"]["prompts"]
    summary = report["summary"]
    for key in ("new_tokens", "distinct_share", "cache_hit_rate", "router_entropy", "perplexity"):
        assert (summary[key], summary[f"against_{key}"]) == (prompt[key], against[key])
    used = [{(row["layer"], expert) for row in report["tables"]["choices"] if row["prompt"] == name
             for expert in row["experts"].split()} for name in ("prompt", "against")]  # fmt: skip
    assert summary["shared_share"] == len(used[0] & used[1]) / len(used[0] | used[1])
    assert "check failed: against_perplexity is " in err
    assert "--cache 20: no layer has more than 8 experts, and the cache holds all of them" in err
    assert report["options"]["cache"] == 8


def test_nobody_waits_for_a_view_that_is_not_shown(run, monkeypatch):
    waits = []
    monkeypatch.setattr("time.sleep", waits.append)
    assert run("demo", "hi", *SHORT, "--delay", "9")[0] == 0
    assert 9 not in waits


def test_empty_lines_around_a_text_are_left_out():
    texts = ("<s>", "a", "\n", "\n  one", "\n\n", "two\n", "\n")
    report = build_report(Written([make_generation(7, 1, 4, 2, texts=texts)], make_weights(1), 0, 2), {})
    assert report.table("prompts").rows[0]["text"] == "".join(texts[2:])
    rows = [(row["line"], row["text"]) for row in report.table("text").rows]
    assert rows == [(3, "  one"), (4, ""), (5, "two")]


def test_weights_that_are_not_known_are_not_made_up():
    generation = make_generation(3, 1, 4, 2)
    trace = replace(generation.trace, layers=(replace(generation.trace.layers[0], weight=None),))
    report = build_report(Written([replace(generation, trace=trace)], make_weights(1), 0, 2), {})
    (row, *_) = report.table("choices").rows
    assert row == {"prompt": "prompt", "index": 0, "layer": 0, "weights": None,
                   "experts": " ".join(map(str, trace.layers[0].chosen[0]))}  # fmt: skip
