"""The page of a generation: what is in it, that nothing in it acts, and in Chromium that it works and is quick."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html import unescape

import numpy as np
import pytest

from moetool.report.page import render_page
from tests.report.generations import HOSTILE, make_generation, make_weights

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
BROWSER = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--window-size=1200,1000",
    "--dump-dom",
)


def make_page(tokens=20, layers=3, experts=8, per_token=2, **options):
    return render_page([make_generation(tokens, layers, experts, per_token, **options)], make_weights(layers), 1)


def data_of(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


def unpack(text, dtype, width=1):
    return np.frombuffer(base64.b64decode(text), dtype).reshape(-1, width)


@pytest.mark.parametrize("experts", [8, 300])
def test_the_data_are_the_arrays(experts):
    generation = make_generation(20, 3, experts, 2)
    data = data_of(render_page([generation], make_weights(3), 1))
    run = data["runs"][0]
    assert (data["layer"], run["promptTokens"], run["texts"]) == (1, 2, list(generation.texts))
    assert unpack(run["special"], "u1").ravel().tolist() == [1] + [0] * 19
    probability = unpack(run["probability"], "<u2").ravel()
    assert (probability[:2] == 65535).all()
    np.testing.assert_allclose(probability[2:] / 65534, generation.probability[2:], atol=1e-5)
    for row, layer, preferences in zip(run["layers"], generation.trace.layers, generation.preferences, strict=True):
        chosen = unpack(row["chosen"], "u1" if experts == 8 else "<u2", 2)
        weight, given = (unpack(row[name], "<u2", 2) / 65534 for name in ("weight", "given"))
        assert (np.diff(weight) <= 0).all()
        np.testing.assert_allclose(weight.sum(axis=1), 1, atol=1e-4)
        order = np.argsort(-layer.weight, axis=1)
        np.testing.assert_array_equal(chosen, np.take_along_axis(layer.chosen, order, 1))
        np.testing.assert_allclose(given, np.take_along_axis(preferences.chosen, order, 1), atol=1e-5)
        entropy = unpack(row["entropy"], "<u2").ravel() / 65534
        np.testing.assert_allclose(entropy, layer.scores[:, 0].astype(float) / np.log(experts), atol=1e-5)


def test_a_layer_without_weights_or_scores_is_drawn_too():
    generation = make_generation(5, 1, 4, 2)
    layers = (replace(generation.trace.layers[0], weight=None, scores=None),)
    bare = replace(generation, trace=replace(generation.trace, layers=layers), preferences=(None,))
    layer = data_of(render_page([bare], make_weights(1), 0))["runs"][0]["layers"][0]
    assert (unpack(layer["weight"], "<u2") == 32767).all()
    assert [layer[name] for name in ("given", "refused", "refusedGiven", "entropy", "margin")] == [None] * 5


def test_hostile_texts_stay_text():
    page = make_page(texts=HOSTILE)
    assert page.count("<script") == page.count("</script>") == 2
    assert "<!--" not in page
    texts = data_of(page)["runs"][0]["texts"]
    assert texts[0] == HOSTILE[0]
    assert texts[2:4] == ["\\x1b[2J\\x07", "\\u202eabc\\u2067"]
    assert texts[5] == "line\nline"
    assert all(character.isprintable() or character == "\n" for character in page)


def test_the_page_may_load_nothing():
    page = make_page()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)[1]
    assert policy.startswith("default-src 'none'; ")
    for tag, directive in (("style", "style-src"), ("script", "script-src")):
        content = re.search(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)[1]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy
    assert not re.search(r"https?:|src=|href=|url\(|@import|fetch\(|innerHTML", page)


def test_the_same_generation_gives_the_same_bytes_and_not_too_many():
    pages = [make_page(512, 32, 64, 8) for _ in range(2)]
    assert pages[0] == pages[1]
    assert len(pages[0].encode()) < 3_000_000


def test_keyboard_and_screen_readers_are_thought_of():
    page = make_page()
    assert 'lang="en"' in page
    for needed in (":focus-visible", "prefers-reduced-motion", "prefers-color-scheme: dark", 'aria-live="polite"'):
        assert needed in page
    assert all("aria-label" in tag or ">Play<" in tag for tag in re.findall(r"<button.*?</button>", page))


def browse(tmp_path, page, script):
    """Open a page in Chromium, run a script after its own; what the script returns."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here")
    loose = re.sub(r'content="default-src[^"]*"', "content=\"default-src 'unsafe-inline'\"", page)
    probe = f"<script>document.body.dataset.result = JSON.stringify((() => {{{script}}})());</script>"
    path = tmp_path / "page.html"
    path.write_text(loose.replace("</body>", f"{probe}</body>"), encoding="utf-8")
    command = [CHROMIUM, *BROWSER, f"--user-data-dir={tmp_path / 'profile'}", path.as_uri()]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r'data-result="([^"]*)"', result.stdout)
    assert found, result.stderr[-2000:]
    return json.loads(unescape(found[1]))


def test_hostile_texts_in_a_browser(tmp_path):
    script = """
      const tokens = [...document.querySelectorAll(".token")].map((one) => one.textContent);
      return {title: document.title, tokens, fits: document.documentElement.scrollWidth <= innerWidth};
    """
    found = browse(tmp_path, make_page(texts=HOSTILE), script)
    assert found["title"] == "moetool generate: synthetic"
    assert found["tokens"][0] == HOSTILE[0]
    assert found["tokens"][9] == HOSTILE[9]
    assert found["fits"]


def test_keys_and_pointer_in_a_browser(tmp_path):
    generation = make_generation(20, 3, 8, 2)
    other = make_generation(12, 3, 8, 2, name="against", seed=1)
    script = """
      const seen = [];
      const look = () => seen.push([state.position, state.layer, ...sides.map((side) => side.token)]);
      const press = (key, on = document.body) => {
        on.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true, cancelable: true}));
        look();
      };
      look();
      ["ArrowRight", "ArrowDown", "End", "ArrowRight", "Home", "ArrowLeft", "ArrowUp"].forEach((key) => press(key));
      const uses = () => sides[0].used.map((used) => [...used]);
      press("End");
      const all = uses();
      press("Home");
      const one = uses();
      sides[0].spans[7].click();
      look();
      const canvas = sides[0].find("canvas");
      canvas.focus();
      press("ArrowDown", canvas);
      const cell = sides[0].find(".cell").textContent;
      press("Enter", canvas);
      press(" ");
      return {seen, all, one, cell, now: sides[0].find(".now").textContent, playing: state.playing !== null,
        bars: sides[0].bars.filter((bar) => !bar.item.hidden).length,
        memory: sides[0].find("dl").textContent};
    """
    found = browse(tmp_path, render_page([generation, other], make_weights(3), 1), script)
    start, moved, ends = [[1, 1, 1, 1]], [[2, 1, 2, 2], [2, 2, 2, 2]], [[19, 2, 19, 11]] * 2 + [[0, 2, 0, 0]] * 2
    assert found["seen"][:8] == [*start, *moved, *ends, [0, 1, 0, 0]]
    layers = generation.trace.layers
    assert found["all"] == [np.bincount(layer.chosen.ravel(), minlength=8).tolist() for layer in layers]
    assert found["one"] == [np.bincount(layer.chosen[0], minlength=8).tolist() for layer in layers]
    assert found["seen"][10] == [7, 1, 7, 7]
    assert found["cell"].startswith("Layer 2, expert ")
    assert found["seen"][-1][:2] == [7, 2]
    assert found["playing"]
    assert found["now"].startswith("Token 8 of 20, “ word7” written, which the model gave a probability of ")
    assert found["bars"] == 8
    first = {(layer.layer, int(expert)) for layer in layers for expert in layer.chosen[:8].ravel()}
    assert f"{len(first)} of 24 in all layers" in found["memory"]


def test_a_step_is_drawn_in_less_than_50_milliseconds(tmp_path):
    """With what the browser has to lay out and paint for it, of 512 tokens, 32 layers and 64 experts."""
    script = """
      const times = {};
      const measure = (name, action) => {
        const taken = [];
        for (let turn = 0; turn < 15; turn += 1) {
          const start = performance.now();
          action(turn);
          document.body.getBoundingClientRect();
          sides[0].grid.paper.getImageData(0, 0, 1, 1);
          taken.push(performance.now() - start);
        }
        times[name] = taken.sort((one, other) => one - other)[7];
      };
      measure("step", () => go({token: state.position + 1}));
      measure("layer", (turn) => go({layer: turn}));
      measure("jump", (turn) => go({token: turn % 2 ? 0 : 511}));
      document.getElementById("mode").value = "use";
      measure("use", () => go({token: state.position + 1}));
      return times;
    """
    times = browse(tmp_path, make_page(512, 32, 64, 8), script)
    assert max(times["step"], times["use"]) < 50, times
