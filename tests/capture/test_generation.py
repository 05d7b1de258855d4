"""Text that a model writes: against transformers' own generate, and against one pass over the whole text."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moetool.capture.batches import make_batches
from moetool.capture.generation import Generator, Sampling
from moetool.capture.generation_text import TextStream, encode_prompt
from moetool.capture.job import CaptureOptions
from moetool.capture.resident import run_resident
from moetool.capture.routers import find_decoder
from moetool.capture.store import write_trace
from moetool.capture.tokens import EncodedCorpus, load_tokenizer
from moetool.capture.trace import SCORE_COLUMNS, open_trace
from moetool.checkpoint.locate import locate
from moetool.commands.route_stats import build_report
from moetool.errors import MoetoolError
from moetool.progress import SilentProgress
from tests import families
from tests.checkpoints import edit_config, make_tokenizer

PROMPT = "the quick brown fox"
FAMILIES = ("mixtral", "qwen2_moe", "deepseek_v3", "jamba", "llama4_text")
"""A softmax, layers without experts, groups and a bias, states instead of a cache, a seam of its own."""


def open_generator(folder, prompts=(PROMPT,), chat="auto"):
    options = CaptureOptions(device="cpu", dtype="float32")
    return Generator(locate(str(folder), None, weights="files"), prompts, chat, options, SilentProgress())


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory):
    """A loaded generator of two prompts."""
    folder = tmp_path_factory.mktemp("mixtral")
    families.save(folder, "mixtral")
    generator = open_generator(folder, (PROMPT, "zwölf"))
    generator.load(SilentProgress())
    return generator


def ignore(step):
    """Watch nothing."""


def write(generator, number=0, watch=ignore, **sampling):
    return generator.write(number, Sampling(**{"max_new_tokens": 12, **sampling}), watch)


def plain_ids(generator, **arguments):
    """What transformers' generate gives for the first prompt."""
    ids = torch.tensor([generator.prompts[0]])
    with torch.inference_mode():
        return generator.model.generate(ids, attention_mask=torch.ones_like(ids), **arguments)[0].tolist()


def one_pass(generator, trace):
    """The layers of a capture of the same tokens at once."""
    stack = find_decoder(generator.model, generator.job.family)
    corpus = EncodedCorpus(trace.documents, trace.tokens, trace.special, {}, ())
    batches, counted = make_batches(corpus, [[0]], 0), trace.counted_tokens_of_domain()
    return list(run_resident(stack, stack.moe_layers, batches, len(trace.tokens), counted, SilentProgress()))


@pytest.mark.parametrize("name", FAMILIES)
def test_writes_as_transformers_does_and_routes_as_one_pass_does(name, tmp_path):
    if name not in families.names():
        pytest.skip(f"this version of transformers has no {name}")
    families.save(tmp_path, name)
    generator = open_generator(tmp_path)
    generator.load(SilentProgress())
    generation = write(generator)
    trace = generation.trace
    assert trace.tokens.tolist() == plain_ids(generator, do_sample=False, max_new_tokens=12)
    assert (generation.prompt_tokens, len(trace.tokens)) == (len(PROMPT) + 1, len(PROMPT) + 13)
    assert trace.special.tolist() == (trace.tokens < 3).tolist()
    for cached, whole in zip(trace.layers, one_pass(generator, trace), strict=True):
        np.testing.assert_array_equal(np.sort(cached.chosen), np.sort(whole.chosen))
        np.testing.assert_allclose(np.sort(cached.weight), np.sort(whole.weight), atol=2e-3)
        np.testing.assert_allclose(cached.scores, whole.scores, atol=4e-3, equal_nan=True)
        np.testing.assert_allclose(cached.probability, whole.probability, atol=1e-5)
    logits = families.run(generator.model, torch.from_numpy(trace.tokens.astype(np.int64))[None])[0].double()
    given_to = logits.softmax(-1)[torch.arange(len(logits) - 1), torch.from_numpy(trace.tokens[1:]).long()]
    new = generation.prompt_tokens
    np.testing.assert_allclose(generation.probability[new:], given_to[new - 1 :], rtol=1e-3)
    assert np.isnan(generation.probability[:new]).all()


@pytest.mark.parametrize("name", ["mixtral", "deepseek_v3"])
def test_preferences_are_the_routers_distribution(name, tmp_path):
    families.save(tmp_path, name)
    generator = open_generator(tmp_path)
    generator.load(SilentProgress())
    generation = write(generator)
    for layer, preferences in zip(generation.trace.layers, generation.preferences, strict=True):
        experts = np.concatenate([layer.chosen, preferences.refused], axis=1)
        assert (np.sort(experts) == np.arange(8)).all()
        assert (np.diff(preferences.refused_probability) <= 0).all()
        total = preferences.chosen.sum(axis=1) + preferences.refused_probability.sum(axis=1)
        np.testing.assert_allclose(total, 1, atol=1e-5)
        highest = np.maximum(preferences.chosen.max(axis=1), preferences.refused_probability[:, 0])
        column = SCORE_COLUMNS.index("top1_probability")
        np.testing.assert_allclose(highest, layer.scores[:, column].astype(float), atol=1e-3)


def test_draws_are_those_of_transformers_and_of_the_seed(mixtral):
    settings = {"temperature": 1.5, "top_k": 50, "top_p": 0.9}
    drawn = write(mixtral, seed=3, **settings).trace.tokens.tolist()
    torch.manual_seed(3)
    assert drawn == plain_ids(mixtral, do_sample=True, max_new_tokens=12, **settings)
    assert drawn == write(mixtral, seed=3, **settings).trace.tokens.tolist()
    assert drawn != write(mixtral, seed=4, **settings).trace.tokens.tolist()
    assert drawn != write(mixtral).trace.tokens.tolist()


def test_the_last_token_is_routed_too(mixtral):
    """A text ends after the token that ends it has been read, and after max_new_tokens otherwise."""
    whole = write(mixtral)
    assert whole.stopped == "length"
    end = int(whole.trace.tokens[whole.prompt_tokens + 2])
    mixtral.model.generation_config.eos_token_id, before = [end, 299], mixtral.model.generation_config.eos_token_id
    try:
        ended = write(mixtral)
    finally:
        mixtral.model.generation_config.eos_token_id = before
    assert ended.stopped == "end"
    length = 1 + whole.trace.tokens[whole.prompt_tokens :].tolist().index(end)
    assert ended.trace.tokens.tolist() == whole.trace.tokens[: whole.prompt_tokens + length].tolist()
    assert len(ended.trace.layers[0].chosen) == len(ended.trace.tokens)


def test_an_end_within_the_prompt_ends_nothing(tmp_path):
    """Chat templates put one behind every message."""
    families.save(tmp_path, "mixtral")
    generator = open_generator(tmp_path, [f"{PROMPT}</s>"])
    generator.load(SilentProgress())
    assert generator.prompts[0][-1] == generator.model.generation_config.eos_token_id == 2
    assert len(write(generator).trace.tokens) == len(generator.prompts[0]) + 12


def test_settings_of_a_checkpoint_that_would_write_in_another_way_are_left_out(tmp_path):
    """Of this generation config the suppressed token counts and nothing else; a config without cache writes as any."""
    families.save(tmp_path, "mixtral")
    plain = open_generator(tmp_path)
    plain.load(SilentProgress())
    first = plain_ids(plain, do_sample=False, max_new_tokens=1)[-1]
    expected = plain_ids(plain, do_sample=False, max_new_tokens=12, suppress_tokens=[first])
    odd = {
        "use_cache": False, "prefill_chunk_size": 4, "prompt_lookup_num_tokens": 3, "stop_strings": ["a"],
        "num_return_sequences": 3, "guidance_scale": 2.0, "max_time": 1e-4, "assistant_early_exit": 2,
        "num_beams": 4, "penalty_alpha": 0.6, "suppress_tokens": [first],
    }  # fmt: skip
    (tmp_path / "generation_config.json").write_text(json.dumps(odd))
    edit_config(tmp_path, use_cache=False)
    generator = open_generator(tmp_path)
    generator.load(SilentProgress())
    written = write(generator)
    assert (written.trace.tokens.tolist(), written.stopped) == (expected, "length")


def test_steps_add_up_to_the_generation(mixtral):
    steps = []
    generation = write(mixtral, 1, steps.append)
    assert [len(step.tokens) for step in steps] == [generation.prompt_tokens, *[1] * 12]
    assert [step.start for step in steps] == [0, *range(generation.prompt_tokens, generation.prompt_tokens + 12)]
    chosen = np.concatenate([step.layers[2].routing.chosen for step in steps])
    np.testing.assert_array_equal(chosen, generation.trace.layers[2].chosen)
    for step, after in pairwise(steps):
        assert step.next_probability == pytest.approx(after.probability[0])
    assert mixtral.documents[1].text in "".join(generation.texts)


def count_hooks(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_an_interrupt_keeps_what_was_read(mixtral):
    def watch(step):
        if step.start == len(PROMPT) + 4:
            raise KeyboardInterrupt

    whole, cut = write(mixtral), write(mixtral, watch=watch)
    assert cut.stopped == "interrupted"
    assert cut.trace.tokens.tolist() == whole.trace.tokens[: len(PROMPT) + 5].tolist()
    np.testing.assert_array_equal(cut.trace.layers[1].chosen, whole.trace.layers[1].chosen[: len(PROMPT) + 5])
    assert count_hooks(mixtral.model) == 0


def test_an_interrupt_within_a_forward_pass_drops_that_pass(mixtral):
    """Some layers have seen the token by then, others have not."""
    calls = []

    def interrupt(module, args):
        calls.append(1)
        if len(calls) == stop_at:
            raise KeyboardInterrupt

    handle = mixtral.model.model.layers[1].register_forward_pre_hook(interrupt)
    try:
        stop_at = 3
        assert len(write(mixtral).trace.tokens) == len(PROMPT) + 2
        calls.clear()
        stop_at = 1
        with pytest.raises(KeyboardInterrupt):
            write(mixtral)
    finally:
        handle.remove()


def test_the_trace_is_one_that_other_commands_read(mixtral, tmp_path):
    generation = write(mixtral)
    write_trace(generation.trace, tmp_path / "trace")
    trace = open_trace(tmp_path / "trace")
    assert trace.documents == generation.trace.documents
    assert trace.settings["generation"]["max_new_tokens"] == 12
    special = trace.special[generation.prompt_tokens :]
    assert build_report(trace, {}, phase="decode").summary["tokens"] == 12 - special.sum()
    assert build_report(trace, {}, phase="prefill").summary["tokens"] == len(PROMPT)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("switch_transformers", "encoder and a decoder"),
        ("glm4v_moe_text", "no head that predicts"),
        ("diffusion_gemma", "in a way of its own"),
    ],
)
def test_models_that_do_not_write_are_refused_before_weights_are_read(name, words, tmp_path):
    if name not in families.names():
        pytest.skip(f"this version of transformers has no {name}")
    families.save(tmp_path, name)
    with pytest.raises(MoetoolError, match=words) as caught:
        open_generator(tmp_path)
    assert caught.value.hint


def test_prompts_that_do_not_fit_are_refused(mixtral):
    with pytest.raises(MoetoolError, match=r"20 tokens.*237 new ones.*the 256"):
        mixtral.check_length(237)
    mixtral.check_length(236)
    assert len(write(mixtral, max_new_tokens=236).trace.tokens) == 256


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"top_p": 0.5}, "--top-p has no effect"),
        ({"temperature": float("inf")}, "--temperature inf is not 0, nor from 0.01 to 100"),
        ({"temperature": float("nan")}, "--temperature nan"),
        ({"temperature": 1e-40}, "--temperature 1e-40"),
        ({"temperature": 1.0, "seed": 2**63}, "is too large"),
    ],
)
def test_sampling_that_cannot_be_done(settings, words):
    with pytest.raises(MoetoolError, match=words):
        Sampling(**settings)


def test_a_prompt_of_special_tokens_alone(tmp_path):
    """What a model writes of its own accord."""
    families.save(tmp_path, "mixtral")
    generator = open_generator(tmp_path, ["<s>"])
    generator.load(SilentProgress())
    generation = write(generator)
    assert generation.trace.special[: generation.prompt_tokens].all()
    assert build_report(generation.trace, {}).summary["tokens"] == 12


def test_a_template_that_gives_nothing():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{{ '' }}"
    with pytest.raises(MoetoolError, match="no token, in the tokenizer's chat template"):
        encode_prompt(tokenizer, PROMPT, "auto")


def test_a_prompt_of_other_bytes_than_text(mixtral, tmp_path):
    families.save(tmp_path, "mixtral")
    with pytest.raises(MoetoolError, match="no text in UTF-8"):
        open_generator(tmp_path, ["a\udcffb"])


def test_chat_templates():
    tokenizer = make_tokenizer()
    with pytest.raises(MoetoolError, match="no chat template"):
        encode_prompt(tokenizer, "hi", "on")
    plain = encode_prompt(tokenizer, "hi", "auto")
    assert plain == tokenizer("hi")["input_ids"]
    tokenizer.chat_template = (
        "{{ bos_token }}{% for message in messages %}[{{ message.role }}: {{ message.content }}]{% endfor %}"
        "{% if add_generation_prompt %}>{% endif %}"
    )
    templated = tokenizer("<s>[user: hi]>", add_special_tokens=False)["input_ids"]
    assert encode_prompt(tokenizer, "hi", "auto") == encode_prompt(tokenizer, "hi", "on") == templated
    assert encode_prompt(tokenizer, "hi", "off") == plain
    tokenizer.chat_template = "{{ raise_exception('no users here') }}"
    with pytest.raises(MoetoolError, match="template fails: no users here"):
        encode_prompt(tokenizer, "hi", "auto")


TOKENIZERS = (make_tokenizer(), load_tokenizer(locate("demo", None, weights="files").folder))


@given(st.text(st.characters(codec="utf-8"), max_size=40))
def test_pieces_of_text_are_the_text(text):
    for tokenizer in TOKENIZERS:
        ids = tokenizer(text)["input_ids"]
        stream = TextStream(tokenizer)
        assert "".join(map(stream.push, ids)) == tokenizer.decode(ids, clean_up_tokenization_spaces=False)


@given(st.lists(st.integers(3, 258), max_size=30))
def test_no_piece_is_held_back_for_ever(ids):
    """Bytes that make no character show up as such, at the latest after four tokens."""
    stream = TextStream(TOKENIZERS[0])
    pieces = [stream.push(token) for token in ids]
    assert all(any(pieces[start : start + 4]) for start in range(len(pieces) - 3))


def test_a_character_of_several_tokens_belongs_to_the_last():
    tokenizer = make_tokenizer()
    stream = TextStream(tokenizer)
    assert [stream.push(token) for token in tokenizer("aü☃")["input_ids"]] == ["<s>", "a", "", "ü", "", "", "☃"]
