"""Both engines against each other and against what the experts receive in plain transformers."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch

from moetool.capture.choices import wanted_layers
from moetool.capture.engine import CaptureOptions, capture
from moetool.checkpoint.locate import locate
from moetool.corpus.documents import read_corpus
from moetool.errors import MoetoolError
from moetool.model.families import family_of
from tests.checkpoints import edit_config, save_checkpoint, write_corpus


def run(folder, corpus, engine, **options):
    options = {"device": "cpu", "batch_tokens": 160, **options}
    return capture(locate(str(folder)), read_corpus(corpus), CaptureOptions(engine=engine, **options))


def plain_choices(model, trace):
    """Per MoE layer the ``[T, K]`` choice and weights that the experts modules receive, one document at a time."""
    received: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}

    def hook(name):
        return lambda module, args: received.setdefault(name, []).append((args[1], args[2]))

    handles = [m.register_forward_pre_hook(hook(n)) for n, m in model.named_modules() if n.endswith(".experts")]
    with torch.no_grad():
        for document in trace.documents:
            tokens = trace.tokens[document.start : document.start + document.tokens]
            model(input_ids=torch.from_numpy(tokens.astype(np.int64))[None], use_cache=False)
    for handle in handles:
        handle.remove()
    return [
        (torch.cat([c.flatten(0, -2) for c, _ in calls]), torch.cat([w.flatten(0, -2) for _, w in calls]))
        for calls in received.values()
    ]


def assert_same(a, b):
    assert [layer.layer for layer in a.layers] == [layer.layer for layer in b.layers]
    np.testing.assert_array_equal(a.tokens, b.tokens)
    for one, other in zip(a.layers, b.layers, strict=True):
        np.testing.assert_array_equal(one.chosen, other.chosen)
        np.testing.assert_array_equal(one.weight, other.weight)
        np.testing.assert_array_equal(one.scores, other.scores)
        np.testing.assert_array_equal(one.probability, other.probability)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3"])
def test_dtypes(family, dtype, tmp_path):
    save_checkpoint(tmp_path / "model", family, dtype=getattr(torch, dtype))
    corpus = write_corpus(tmp_path / "corpus")
    streamed = run(tmp_path / "model", corpus, "stream")
    assert streamed.settings["dtype"] == dtype
    assert_same(streamed, run(tmp_path / "model", corpus, "resident"))


def test_sharded_checkpoint_and_tied_embeddings(tmp_path):
    save_checkpoint(tmp_path / "model", "mixtral", max_shard_size="60KB", tie_word_embeddings=True)
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 3
    corpus = write_corpus(tmp_path / "corpus")
    assert_same(run(tmp_path / "model", corpus, "stream"), run(tmp_path / "model", corpus, "resident"))


def test_custom_name_of_a_known_architecture(tmp_path):
    save_checkpoint(tmp_path / "model", "deepseek_v3")
    corpus = write_corpus(tmp_path / "corpus")
    expected = run(tmp_path / "model", corpus, "stream")
    edit_config(
        tmp_path / "model",
        model_type="kimi_k2",
        auto_map={
            "AutoConfig": "configuration_deepseek.DeepseekV3Config",
            "AutoModelForCausalLM": "modeling_deepseek.X",
        },
    )
    (tmp_path / "model" / "configuration_deepseek.py").write_text("raise SystemExit('remote code ran')")
    assert_same(run(tmp_path / "model", corpus, "stream"), expected)
    assert_same(run(tmp_path / "model", corpus, "resident"), expected)


def test_batches_do_not_change_the_choice(tmp_path):
    save_checkpoint(tmp_path / "model", "qwen2_moe")
    corpus = write_corpus(tmp_path / "corpus")
    one = run(tmp_path / "model", corpus, "stream", batch_tokens=1)
    many = run(tmp_path / "model", corpus, "stream", batch_tokens=4096)
    for a, b in zip(one.layers, many.layers, strict=True):
        np.testing.assert_array_equal(a.chosen, b.chosen)


def test_distribution_by_hand(tmp_path):
    """Entropy, top-1 probability, logsumexp and the mean distribution from logits that a plain router hook saw."""
    model = save_checkpoint(tmp_path / "model", "mixtral", num_hidden_layers=1)
    trace = run(tmp_path / "model", write_corpus(tmp_path / "corpus"), "stream")
    logits = []
    model.model.layers[0].mlp.gate.register_forward_hook(lambda module, args, output: logits.append(output[0]))
    plain_choices(model, trace)
    z = torch.cat(logits).double().numpy()
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    top = np.sort(p, axis=1)[:, ::-1]
    expected = np.stack([-(p * np.log(p)).sum(1), top[:, 0], top[:, 1] - top[:, 2], np.log(np.exp(z).sum(1))], axis=1)
    np.testing.assert_allclose(trace.layers[0].scores, expected, rtol=2e-3, atol=2e-3)
    domain = np.repeat(trace.domain_of_document(), [d.tokens for d in trace.documents])
    for d in range(2):
        mean = p[(domain == d) & ~trace.special].mean(0)
        np.testing.assert_allclose(trace.layers[0].probability[d], mean, rtol=1e-4)


def test_special_tokens_are_marked_and_padding_never_counts(tmp_path):
    save_checkpoint(tmp_path / "model")
    trace = run(tmp_path / "model", write_corpus(tmp_path / "corpus"), "stream", batch_tokens=4096)
    starts = [document.start for document in trace.documents]
    assert sorted(np.flatnonzero(trace.special)) == starts
    assert len(trace.tokens) == sum(document.tokens for document in trace.documents)
    assert trace.vocabulary[1] == "<s>"


def test_layers_option(tmp_path):
    save_checkpoint(tmp_path / "model")
    corpus = write_corpus(tmp_path / "corpus")
    whole = run(tmp_path / "model", corpus, "stream")
    part = run(tmp_path / "model", corpus, "stream", layers="1")
    assert [layer.layer for layer in part.layers] == [1]
    np.testing.assert_array_equal(part.layers[0].chosen, whole.layers[1].chosen)
    assert wanted_layers("0-2,5", [0, 1, 2, 5]) == [0, 1, 2, 5]
    for wrong in ("7", "x", "2-", "", "2-1"):
        with pytest.raises(MoetoolError, match="--layers"):
            wanted_layers(wrong, [0, 1, 2])


def drop_tensor(folder, part):
    """Rewrite a checkpoint without the tensors whose names contain ``part``."""
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    save_file({k: v for k, v in load_file(path).items() if part not in k}, path, {"format": "pt"})


@pytest.mark.parametrize("engine", ["stream", "resident"])
@pytest.mark.parametrize(
    "part", ["layers.1.block_sparse_moe.gate", "experts.3.w2", "embed_tokens", "layers.2.self_attn.q_proj"]
)
def test_missing_tensors_are_an_error_not_random_weights(engine, part, tmp_path):
    save_checkpoint(tmp_path / "model")
    drop_tensor(tmp_path / "model", part)
    with pytest.raises(MoetoolError):
        run(tmp_path / "model", write_corpus(tmp_path / "corpus"), engine)


@pytest.mark.parametrize("engine", ["stream", "resident"])
def test_other_shapes_than_the_config_says(engine, tmp_path):
    save_checkpoint(tmp_path / "model")
    edit_config(tmp_path / "model", num_key_value_heads=4)
    with pytest.raises(MoetoolError, match="shape"):
        run(tmp_path / "model", write_corpus(tmp_path / "corpus"), engine)


@pytest.mark.parametrize("engine", ["stream", "resident"])
def test_nan_routing_is_an_error(engine, tmp_path):
    from safetensors.torch import load_file, save_file

    save_checkpoint(tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if "layers.1" in name and "gate" in name)
    tensors[name][:] = float("nan")
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(MoetoolError, match=r"layer 1.*NaN"):
        run(tmp_path / "model", write_corpus(tmp_path / "corpus"), engine)


def test_dense_model_is_named_as_such(tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM

    from tests.checkpoints import COMMON, make_tokenizer

    AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3", **COMMON, head_dim=8)).save_pretrained(
        tmp_path / "model"
    )
    make_tokenizer().save_pretrained(tmp_path / "model")
    with pytest.raises(MoetoolError, match="no MoE layer"):
        run(tmp_path / "model", write_corpus(tmp_path / "corpus"), "auto")


def test_hooks_are_removed_and_layers_restored(tmp_path):
    from moetool.capture.routers import find_decoder
    from moetool.capture.seams import tap
    from moetool.model.meta import build_meta_model, native_config

    save_checkpoint(tmp_path / "model")
    config = locate(str(tmp_path / "model")).config
    model = build_meta_model(native_config(config))
    stack = find_decoder(model, family_of(config))
    with pytest.raises(RuntimeError), tap(stack.moe_layers, lambda moe, routing: None):
        raise RuntimeError
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_a_router_that_never_fires_is_an_error(tmp_path, monkeypatch):
    from moetool.capture import stream

    save_checkpoint(tmp_path / "model")
    monkeypatch.setattr(stream, "tap", lambda *args: nullcontext())
    with pytest.raises(MoetoolError, match=r"0 of .* tokens reached its experts"):
        run(tmp_path / "model", write_corpus(tmp_path / "corpus"), "stream")


def test_tokenizer_of_another_model(tmp_path):
    save_checkpoint(tmp_path / "model", vocab_size=64)
    with pytest.raises(MoetoolError, match="embeds 64 tokens"):
        run(tmp_path / "model", write_corpus(tmp_path / "corpus"), "stream")


def test_no_tokenizer(tmp_path):
    save_checkpoint(tmp_path / "model")
    for file in (tmp_path / "model").glob("*token*"):
        file.unlink()
    with pytest.raises(MoetoolError, match="tokenizer"):
        run(tmp_path / "model", write_corpus(tmp_path / "corpus"), "stream")


def test_limits_of_tokens(tmp_path):
    save_checkpoint(tmp_path / "model")
    corpus = write_corpus(tmp_path / "corpus")
    cut = run(tmp_path / "model", corpus, "stream", max_length=20)
    assert max(document.tokens for document in cut.documents) == 20
    few = run(tmp_path / "model", corpus, "stream", max_tokens=90)
    per_domain = {d: sum(doc.tokens for doc in few.documents if doc.domain == d) for d in few.domains}
    assert per_domain == {"d0": 90, "d1": 90}


def test_quantised_weights_without_their_scales(tmp_path):
    from safetensors.torch import load_file, save_file

    save_checkpoint(tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    tensors = {k: v.to(torch.float8_e4m3fn) if "w1" in k else v for k, v in load_file(path).items()}
    save_file(tensors, path, {"format": "pt"})
    corpus = write_corpus(tmp_path / "corpus")
    for engine in ("stream", "resident"):
        with pytest.raises(MoetoolError, match=r"F8_E4M3, and config\.json has no quantization_config"):
            run(tmp_path / "model", corpus, engine)
    edit_config(tmp_path / "model", quantization_config={"quant_method": "fp8"})
    for engine in ("stream", "resident"):
        with pytest.raises(MoetoolError, match=r"the checkpoint lacks .*w1\.weight_scale_inv"):
            run(tmp_path / "model", corpus, engine)


@pytest.mark.parametrize("engine", ["stream", "resident"])
def test_what_a_model_raises_is_told_as_its_own(engine, tmp_path, monkeypatch):
    from transformers.models.mixtral.modeling_mixtral import MixtralAttention

    def broken(*args, **kwargs):
        raise TypeError("no such kernel")

    save_checkpoint(tmp_path / "model")
    monkeypatch.setattr(MixtralAttention, "forward", broken)
    with pytest.raises(MoetoolError, match=f"does not run with the {engine} engine: TypeError: no such kernel"):
        run(tmp_path / "model", write_corpus(tmp_path / "corpus"), engine)
