"""Losses without experts: both engines against each other and against plain transformers, masked by hand."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from moetool.capture import head as head_module
from moetool.capture.ablation import losses
from moetool.capture.engine import CaptureOptions, capture
from moetool.capture.halving import Halving
from moetool.capture.hidden import HiddenStates
from moetool.capture.masking import masked
from moetool.capture.pieces import PieceLoader
from moetool.capture.routers import find_decoder
from moetool.capture.seams import tap
from moetool.checkpoint.locate import locate
from moetool.corpus.documents import read_corpus
from moetool.errors import MoetoolError
from moetool.model.families import family_of
from tests import families
from tests.checkpoints import write_corpus

NAMES = [name for name in families.names() if family_of(families.make_config(name).to_dict()).engine != "refused"]
CAUSAL = [name for name in NAMES if name not in ("switch_transformers", "switch_transformers, drops")]
IDS = torch.randint(3, 259, (2, 24), generator=torch.Generator().manual_seed(0))
HARD = ["deepseek_v4", "dots3_note", "gemma4_text, shared KV and per-layer inputs", "inkling2", "jetmoe", "llama4"]
"""Token ids, sparse attention, states that later layers read, several routers, a head inside of a larger model."""

ADDING = ["ernie4_5_moe", "longcat_flash", "zaya", "mistral4"]
"""Routers that choose by a softmax with something added: a bias, or the best two experts of a group."""


def options(engine="stream", **changes):
    return CaptureOptions(**{"device": "cpu", "engine": engine, "batch_tokens": 160, "max_length": 60, **changes})


@pytest.fixture
def measure(tmp_path):
    """Save a tiny model and a corpus; measure losses of variants on it, by either engine."""

    corpus = write_corpus(tmp_path / "corpus")

    def run(engine, variants, counted=None, **changes):
        return losses(
            locate(str(tmp_path / "model")),
            read_corpus(corpus),
            options(engine, **changes),
            variants,
            counted=counted,
        )

    return run


def read_trace(tmp_path):
    return capture(locate(str(tmp_path / "model")), read_corpus(write_corpus(tmp_path / "corpus")), options())


def favourite(layer, rank=0):
    """The layer and its expert that is chosen most often."""
    return layer.layer, int(np.argsort(-np.bincount(layer.chosen.ravel(), minlength=layer.experts))[rank])


def assert_equal(one, other):
    np.testing.assert_array_equal(one.baseline, other.baseline)
    np.testing.assert_array_equal(one.variant, other.variant)


def plain_losses(model, trace):
    """Mean nats per document, each read alone, the first token and special ones not predicted."""
    means = []
    for document in trace.documents:
        where = slice(document.start, document.start + document.tokens)
        tokens = torch.from_numpy(trace.tokens[where].astype(np.int64))
        logits = families.run(model, tokens[None])[0, :-1].double()
        nats = -logits.log_softmax(-1)[torch.arange(len(logits)), tokens[1:]]
        means.append(nats[torch.from_numpy(~trace.special[where][1:])].mean().item())
    return np.array(means)


@pytest.mark.parametrize("name", CAUSAL)
def test_only_the_masked_expert_is_replaced(name):
    """Tokens that did not choose it keep their choice, the others keep the rest of theirs; all choose K experts."""
    model = families.build(name)
    moes = find_decoder(model, family_of(model.config.to_dict())).moe_layers
    moe = next((moe for moe in reversed(moes) if moe.scoring != "hash"), None)
    if moe is None:
        return
    seen = []
    with tap([moe], lambda moe, routing: seen.append(routing)):
        families.run(model, IDS)
        before = seen[0].chosen.sort(-1).values
        for expert in range(moe.experts - moe.zero_experts) if name in ADDING else [popular(before, moe.experts)]:
            with masked({moe: frozenset({expert})}):
                families.run(model, IDS)
            after = seen[-1].chosen.sort(-1).values
            used = (before == expert).any(-1)
            assert (after != expert).all()
            assert torch.equal(before[~used], after[~used])
            assert (after[:, 1:] > after[:, :-1]).all(), "K different experts"
            assert seen[-1].weight.isfinite().all()
            if moe.family.group_fill != 0:  # else experts of no chosen group are taken at random
                kept = (before[used][:, :, None] == after[used][:, None, :]).any(-1)
                assert torch.equal(kept, before[used] != expert)


def popular(chosen, experts):
    """The expert that is closest to being chosen by a third of the tokens."""
    users = (chosen[:, :, None] == torch.arange(experts)).any(1).sum(0)
    expert = int((users - len(chosen) // 3).abs().argmin())
    assert 0 < users[expert] < len(chosen)
    return expert


def test_an_error_inside_of_a_router_leaves_torch_as_it_was(monkeypatch):
    model = families.build("mixtral")
    moe = find_decoder(model, family_of(model.config.to_dict())).moe_layers[0]
    monkeypatch.setattr(type(moe.router), "forward", lambda *args: torch.zeros(3) @ torch.zeros(4))
    with pytest.raises(RuntimeError), masked({moe: frozenset({1})}):
        families.run(model, IDS)
    assert torch.equal(torch.zeros(8).softmax(-1), torch.full((8,), 1 / 8))
    assert not moe.router._forward_hooks
    assert not moe.router._forward_pre_hooks


def test_layers_that_write_into_their_input(measure, tmp_path, monkeypatch):
    from transformers.models.mixtral.modeling_mixtral import MixtralDecoderLayer

    forward = MixtralDecoderLayer.forward
    monkeypatch.setattr(
        MixtralDecoderLayer,
        "forward",
        lambda self, states, *args, **kwargs: forward(self, states.mul_(2), *args, **kwargs),
    )
    families.save(tmp_path / "model", "mixtral")
    variants = [frozenset({(1, 0)}), frozenset({(1, 1)})]
    assert_equal(measure("stream", variants), measure("resident", variants))


def by_hand(name, config, router, hidden, expert):
    """Choice and weights of each token, with numbers rather than tensors, of the experts but one."""
    rows = hidden.reshape(-1, hidden.shape[-1]).double().numpy()
    logits = rows @ router.weight.detach().double().numpy().T
    chosen, weights = [], []
    for row in logits:
        others = [e for e in range(len(row)) if e != expert]
        if name == "deepseek_v3":
            score = 1 / (1 + np.exp(-row))
            selecting = score + router.e_score_correction_bias.double().numpy()
            pairs = selecting.reshape(config.n_group, -1)
            best = np.argsort(-np.sort(pairs, axis=1)[:, -2:].sum(1))[: config.topk_group]
            others = [e for e in others if e // pairs.shape[1] in best]
            picked = sorted(others, key=lambda e: -selecting[e])[: config.num_experts_per_tok]
            weight = score[picked] / score[picked].sum() * config.routed_scaling_factor
        else:
            picked = sorted(others, key=lambda e: -row[e])[: config.num_experts_per_tok]
            weight = np.exp(row[picked]) / np.exp(row[others]).sum()
            weight = weight / weight.sum() if name == "mixtral" else weight
        chosen.append(picked)
        weights.append(weight)
    return torch.tensor(np.array(chosen)), torch.tensor(np.array(weights), dtype=torch.float32)


@pytest.mark.parametrize("name", ["mixtral", "olmoe", "deepseek_v3"])
def test_losses_are_those_of_plain_transformers_routed_by_hand(name, measure, tmp_path):
    model = families.save(tmp_path / "model", name)
    trace = read_trace(tmp_path)
    layer, expert = favourite(trace.layers[1])
    found = measure("stream", [frozenset({(layer, expert)})])
    assert_equal(found, measure("resident", [frozenset({(layer, expert)})]))
    np.testing.assert_allclose(found.baseline, plain_losses(model, trace), atol=1e-5)
    block = model.model.layers[layer].mlp
    block.experts.register_forward_pre_hook(
        lambda module, args: (args[0], *by_hand(name, model.config, block.gate, args[0], expert))
    )
    np.testing.assert_allclose(found.variant[0], plain_losses(model, trace), atol=1e-5)
    assert abs(found.variant[0] - found.baseline).max() > 1e-4


@pytest.mark.parametrize("name", HARD)
def test_engines_agree_bit_for_bit(name, measure, tmp_path):
    model = families.save(tmp_path / "model", name)
    trace = read_trace(tmp_path)
    first, *_, last = [layer for layer in trace.layers if layer.scoring != "hash"]
    variants = [
        frozenset({favourite(last)}),
        frozenset({favourite(first), favourite(last)}),
        frozenset({favourite(first, 1)}),
    ]
    streamed = measure("stream", variants)
    assert_equal(streamed, measure("resident", variants))
    np.testing.assert_allclose(streamed.baseline, plain_losses(model, trace), atol=1e-5)
    assert (abs(streamed.variant - streamed.baseline).max(axis=1) > 0).all()


def test_the_result_is_in_the_order_of_a_trace(measure, tmp_path):
    families.save(tmp_path / "model", "mixtral")
    trace, found = read_trace(tmp_path), measure("stream", [])
    assert found.variant.shape == (0, len(trace.documents))
    rows = [(document.id, document.domain, document.group) for document in trace.documents]
    assert list(zip(found.documents, found.domains, found.groups, strict=True)) == rows
    assert found.tokens.tolist() == [document.tokens - 1 for document in trace.documents], "each begins with <s>"


def test_documents_that_never_chose_an_expert_keep_their_loss(measure, tmp_path):
    families.save(tmp_path / "model", "mixtral", num_local_experts=64)
    trace = read_trace(tmp_path)
    last = trace.layers[-1]
    document = trace.document_of_token()
    users = [set(document[(last.chosen == expert).any(-1)].tolist()) for expert in range(64)]
    expert = next(e for e in range(64) if 0 < len(users[e]) < len(trace.documents))
    found = measure("stream", [frozenset({(last.layer, expert)})])
    changed = np.flatnonzero(np.abs(found.variant[0] - found.baseline) > 1e-6)  # threads may round the rest anew
    assert len(changed)
    assert set(changed.tolist()) <= users[expert]


def test_only_counted_tokens_are_predicted(measure, tmp_path):
    model = families.save(tmp_path / "model", "mixtral")
    trace = read_trace(tmp_path)
    counted = np.zeros(len(trace.tokens), dtype=bool)
    first = trace.documents[0]
    counted[[first.start, first.start + 3, first.start + 7]] = True
    found = measure("stream", [], counted)
    assert found.tokens.tolist() == [2, *[0] * (len(trace.documents) - 1)], "nothing predicts a first token"
    tokens = torch.from_numpy(trace.tokens[: first.tokens].astype(np.int64))
    logits = families.run(model, tokens[None])[0].double().log_softmax(-1)
    expected = -(logits[2, tokens[3]] + logits[6, tokens[7]]) / 2
    assert found.baseline[0] == pytest.approx(expected.item(), abs=1e-5)
    assert np.isnan(found.baseline[1:]).all()
    with pytest.raises(MoetoolError, match="which of 5 count"):
        measure("stream", [], np.ones(5, dtype=bool))
    with pytest.raises(MoetoolError, match="nothing to predict"):
        measure("stream", [], np.zeros(len(counted), dtype=bool))


@pytest.mark.parametrize("engine", ["stream", "resident"])
def test_logits_in_parts(engine, measure, tmp_path, monkeypatch):
    families.save(tmp_path / "model", "mixtral", output_router_logits=True)
    whole = measure(engine, [frozenset({(1, 2)})])
    monkeypatch.setattr(head_module, "LOGITS_BYTES", 300 * 4 * 2 * 5)
    parts = measure(engine, [frozenset({(1, 2)})])
    np.testing.assert_allclose(parts.baseline, whole.baseline, atol=1e-6)
    np.testing.assert_allclose(parts.variant, whole.variant, atol=1e-6)


def test_weights_are_read_once_and_runs_share_what_is_alike(measure, tmp_path, monkeypatch):
    families.save(tmp_path / "model", "mixtral")
    loaded, put, load, put_one = Counter(), Counter(), PieceLoader.load, HiddenStates.put
    monkeypatch.setattr(
        PieceLoader, "load", lambda self, prefix, without=(): (loaded.update([prefix]), load(self, prefix, without))[1]
    )
    monkeypatch.setattr(
        HiddenStates,
        "put",
        lambda self, value, rows: (put.update({self.next_layer + 1: rows}), put_one(self, value, rows))[1],
    )
    found = measure("stream", [frozenset({(1, 0)}), frozenset({(2, 0)}), frozenset({(2, 1), (1, 1)})])
    assert [loaded[f"model.layers.{number}"] for number in range(3)] == [1, 1, 1]
    documents = len(found.documents)
    assert put == {0: documents, 1: documents, 2: 3 * documents, 3: 4 * documents}


def test_hidden_states_in_files_and_halved_batches_change_nothing(measure, tmp_path, monkeypatch):
    families.save(tmp_path / "model", "gpt_oss")
    variants = [frozenset({(1, 2), (2, 3)}), frozenset({(0, 1)})]
    expected = measure("stream", variants)
    assert_equal(measure("stream", variants, host_memory_bytes=1), expected)
    monkeypatch.setattr(Halving, "run", fails_on_several_rows(Halving.run))
    for engine in ("stream", "resident"):
        found = measure(engine, variants)
        np.testing.assert_allclose(found.variant, expected.variant, atol=1e-5)
        np.testing.assert_allclose(found.baseline, expected.baseline, atol=1e-5)


def fails_on_several_rows(run):
    """Batches of more than two rows do not fit the memory."""

    def wrapped(self, function, batch, state=None):
        def limited(part, own):
            result = function(part, own)
            if len(part.input_ids) > 2:
                raise RuntimeError("not enough memory")
            return result

        return run(self, limited, batch, state)

    return wrapped


@pytest.mark.parametrize("name", ["openai_privacy_filter", "diffusion_gemma", "qwen3_vl_moe_text"])
def test_models_that_do_not_predict_next_tokens(name, measure, tmp_path):
    families.save(tmp_path / "model", name)
    with pytest.raises(MoetoolError, match="no head that predicts"):
        measure("auto", [frozenset({(0, 0)})])


def test_what_cannot_be_masked_is_told_before_weights_are_read(measure, tmp_path, monkeypatch):
    families.save(tmp_path / "model", "deepseek_v4")
    monkeypatch.setattr(PieceLoader, "load", lambda *args, **kwargs: pytest.fail("weights were read"))
    for variant, reason in (
        ({(0, 1)}, "chooses by token"),
        ({(3, 8)}, "no expert 8"),
        ({(3, e) for e in range(7)}, "fewer than 2"),
        ({(9, 0)}, r"layers \[9\]"),
        (set(), r"layers \[\]"),
    ):
        with pytest.raises(MoetoolError, match=f"cannot mask .*{reason}"):
            measure("stream", [frozenset(variant)])


@pytest.mark.parametrize("engine", ["stream", "resident"])
def test_a_choice_that_ignores_the_mask_is_an_error(engine, measure, tmp_path, monkeypatch):
    from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter

    def sorting(self, hidden):
        logits = hidden.reshape(-1, hidden.shape[-1]) @ self.weight.T
        weight, chosen = logits.sort(-1, descending=True)
        return logits, weight[:, :2].sigmoid(), chosen[:, :2]

    monkeypatch.setattr(MixtralTopKRouter, "forward", sorting)
    families.save(tmp_path / "model", "mixtral")
    expert = favourite(read_trace(tmp_path).layers[1])
    with pytest.raises(MoetoolError, match=r"cannot mask experts of layer 1 \(mixtral\): .* chosen all the same"):
        measure(engine, [frozenset({expert})])
    assert torch.equal(torch.zeros(8).softmax(-1), torch.full((8,), 1 / 8)), "functions are torch's own again"


def test_nan_losses_are_an_error(measure, tmp_path):
    from safetensors.torch import load_file, save_file

    families.save(tmp_path / "model", "mixtral")
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"][:] = float("nan")
    save_file(tensors, path, {"format": "pt"})
    for engine in ("stream", "resident"):
        with pytest.raises(MoetoolError, match=r"loss of document .* is NaN"):
            measure(engine, [])
