"""Routing watched in training: numbers against an independent count, and what a Trainer does around them."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

import moetool
from moetool import RouterMonitor
from moetool.capture.monitor import RoutingCounter
from moetool.errors import MoetoolError
from tests.checkpoints import make_model
from tests.families import build

MOE_LAYERS = {"mixtral": [0, 1, 2], "qwen2_moe": [0, 2], "deepseek_v3": [1, 2]}
OLD_NAME = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
"""Of what transformers before 5.23 knows under no other."""
NAMES = {
    "max_violation": max,
    "load_entropy": min,
    "dead_experts": max,
    "unused_experts": max,
    "router_entropy": min,
}


def rows(lengths, width=12, seed=0):
    """Token ids and mask ``[B, width]`` of rows of random tokens, padded on the right."""
    ids = torch.randint(3, 300, (len(lengths), width), generator=torch.Generator().manual_seed(seed))
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    return ids * mask, mask


def independent(model, family, batches):
    """The metrics of each layer, from what its experts are called with and its router's weights, row by row."""
    counts = {layer: np.zeros(8, dtype=int) for layer in MOE_LAYERS[family]}
    entropies = {layer: [] for layer in MOE_LAYERS[family]}

    def watch(layer, block, mask):
        gate = block.gate

        def on_gate(module, args):
            logits = args[0].reshape(-1, args[0].shape[-1]).double() @ gate.weight.double().T
            p = torch.sigmoid(logits) if family == "deepseek_v3" else torch.exp(logits)
            p = (p / p.sum(-1, keepdim=True)).detach().numpy()[mask]
            entropies[layer].extend(-(p * np.log(p)).sum(1))

        def on_experts(module, args):
            for chosen in args[1].numpy()[mask]:
                counts[layer][chosen] += 1

        return gate.register_forward_pre_hook(on_gate), block.experts.register_forward_pre_hook(on_experts)

    model.eval()
    for ids, mask in batches:
        real = mask.flatten().bool().numpy()
        hooks = [hook for layer in counts for hook in watch(layer, model.model.layers[layer].mlp, real)]
        with torch.no_grad():
            model(input_ids=ids, attention_mask=mask)
        for hook in hooks:
            hook.remove()
    return {layer: by_hand(counts[layer], entropies[layer]) for layer in counts}


def by_hand(counts, entropies):
    share = counts[counts > 0] / counts.sum()
    unused = (counts == 0).sum()
    mean_load = counts.sum() / len(counts)
    return {
        "max_violation": counts.max() * len(counts) / counts.sum() - 1,
        "load_entropy": -(share * np.log(share)).sum() / math.log(len(counts)),
        "dead_experts": unused if 3 / mean_load < 0.05 else 0,
        "unused_experts": unused,
        "router_entropy": np.mean(entropies) / math.log(len(counts)),
    }


def assert_same(found, layers):
    expected = {f"router/layer_{layer}/{name}": value for layer, row in layers.items() for name, value in row.items()}
    for name, worst in NAMES.items():
        values = [row[name] for row in layers.values() if name in row]
        expected[f"router/mean/{name}"] = np.mean(values)
        expected[f"router/worst/{name}"] = worst(values)
    assert found == pytest.approx(expected, rel=1e-5)


class Wrapper(nn.Module):
    """As adapters wrap a model: with its config, and calling its forward directly."""

    def __init__(self, model):
        super().__init__()
        self.base_model = model
        self.config = model.config

    def forward(self, *args, **kwargs):
        return self.base_model.forward(*args, **kwargs)


def hooks_of(model):
    hooks = [
        hook
        for module in model.modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    ]
    return sum(hook.__module__.startswith("moetool.") for hook in hooks)


@pytest.fixture(scope="module")
def models():
    return {family: make_model(family) for family in MOE_LAYERS}


@pytest.mark.parametrize("family", MOE_LAYERS)
def test_numbers_equal_an_independent_count(models, family):
    model = models[family].train()
    batches = [rows([12, 3, 7]), rows([1, 12], seed=1)]
    with RouterMonitor(model) as monitor:
        for ids, mask in batches:
            model(input_ids=ids, attention_mask=mask, labels=ids).loss.backward()
        found = monitor.metrics()
        model(batches[0][0], batches[0][1])
        second = monitor.metrics()
    assert hooks_of(model) == 0
    assert_same(found, independent(model, family, batches))
    assert_same(second, independent(model, family, batches[:1]))


def test_a_router_that_prefers_nobody():
    """Equal scores: three of eight experts take every token, and the router is as undecided as can be."""
    model = make_model("qwen2_moe").train()
    for layer in (0, 2):
        nn.init.zeros_(model.model.layers[layer].mlp.gate.weight)
    with RouterMonitor(model) as monitor:
        model(input_ids=rows([12, 12])[0])
        found = monitor.metrics()
    for place in ("layer_0", "layer_2", "mean", "worst"):
        assert found[f"router/{place}/max_violation"] == pytest.approx(8 / 3 - 1)
        assert found[f"router/{place}/load_entropy"] == pytest.approx(math.log(3) / math.log(8))
        assert found[f"router/{place}/unused_experts"] == 5
        assert found[f"router/{place}/router_entropy"] == pytest.approx(1)


@pytest.mark.parametrize(("tokens", "dead"), [(159, 0), (161, 5)])
def test_an_expert_that_few_tokens_did_not_choose_is_not_dead(tokens, dead):
    """Three of eight experts are chosen: after 3 x 8 / (0.05 x 3) = 160 tokens the other five are dead."""
    model = make_model("qwen2_moe").train()
    for layer in (0, 2):
        nn.init.zeros_(model.model.layers[layer].mlp.gate.weight)
    with RouterMonitor(model) as monitor:
        for length in (100, tokens - 100):
            model(input_ids=rows([length], width=length)[0])
        found = monitor.metrics()
    for place in ("layer_0", "layer_2", "mean", "worst"):
        assert found[f"router/{place}/dead_experts"] == dead
        assert found[f"router/{place}/unused_experts"] == 5


def test_a_forward_pass_that_raises_is_not_counted(models):
    """And what then runs outside of one neither is nor has its rows compared with the old mask."""
    model = models["mixtral"].train()
    (ids, mask), (aborted, _), (other, _) = rows([12, 5]), rows([9, 9], width=9), rows([7, 7, 7], width=7)

    def fail(module, args):
        raise RuntimeError("out of memory")

    with RouterMonitor(model) as monitor:
        model(input_ids=ids, attention_mask=mask)
        handle = model.model.layers[2].register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            model(input_ids=aborted, attention_mask=torch.ones_like(aborted))
        handle.remove()
        model.model(input_ids=other)
        found = monitor.metrics()
    assert_same(found, independent(model, "mixtral", [(ids, mask)]))


def test_padding_on_the_left_and_what_a_cache_holds(models):
    model = models["mixtral"].train()
    ids, mask = rows([12, 12])
    mask[1, :4] = 0
    with RouterMonitor(model) as monitor:
        cache = model(input_ids=ids[:, :8], attention_mask=mask[:, :8], use_cache=True).past_key_values
        model(input_ids=ids[:, 8:], attention_mask=mask, past_key_values=cache)
        found = monitor.metrics()
    assert_same(found, independent(model, "mixtral", [(ids, mask)]))


def test_a_mask_of_other_rows_is_an_error(models):
    """As where a model joins the rows of a batch before it routes them."""
    block = models["mixtral"].train().model.layers[0].mlp
    states = torch.zeros(2, 12, 32)

    class Joining(Wrapper):
        def forward(self, attention_mask):
            block(states)

    wrapped = Joining(models["mixtral"])
    with RouterMonitor(wrapped), pytest.raises(MoetoolError, match=r"layer 0 routed 24 rows.*\[5, 12\]"):
        wrapped(attention_mask=torch.ones(5, 12))


def test_evaluation_is_not_counted(models):
    model = models["mixtral"].eval()
    ids, mask = rows([12, 5])
    with RouterMonitor(model) as monitor:
        model(input_ids=ids, attention_mask=mask)
        with pytest.raises(MoetoolError, match="no token was routed in training mode"):
            monitor.metrics()


@OLD_NAME
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_counts_once(reentrant):
    model = make_model("deepseek_v3").train()
    ids, mask = rows([12, 5])
    runs = []
    model.model.layers[1].mlp.experts.register_forward_pre_hook(lambda *_: runs.append(1))
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    counter = RoutingCounter(model)
    model(input_ids=ids, attention_mask=mask, labels=ids, use_cache=False).loss.backward()
    assert len(runs) == 2, "the layer runs a second time in the backward pass"
    windows = list(counter.take())
    counter.close()
    assert [(window.layer, window.counts.sum()) for window in windows] == [(1, 3 * 17), (2, 3 * 17)]


@pytest.mark.parametrize("wrap", [Wrapper, nn.DataParallel])
def test_wrapped_models(models, wrap):
    model = models["mixtral"].train()
    ids, mask = rows([12, 5])
    wrapped = wrap(model)
    with RouterMonitor(wrapped) as monitor:
        wrapped(input_ids=ids, attention_mask=mask)
        found = monitor.metrics()
    assert_same(found, independent(model, "mixtral", [(ids, mask)]))


def test_a_compiled_model(models):
    model = models["mixtral"].train()
    batches = [rows([12, 5]), rows([7, 2], seed=1)]
    compiled = torch.compile(model, backend="eager")
    with RouterMonitor(model) as monitor:
        for ids, mask in batches:
            compiled(input_ids=ids, attention_mask=mask)
        found = monitor.metrics()
    torch.compiler.reset()
    assert_same(found, independent(model, "mixtral", batches))


class Logger(TrainerCallback):
    """What a reporting integration would send."""

    def __init__(self):
        self.sent = []

    def on_log(self, args, state, control, logs, **kwargs):
        self.sent.append({**logs, "step": state.global_step})


def collate(items):
    ids, mask = (torch.stack([item[name] for item in items]) for name in ("input_ids", "attention_mask"))
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def make_trainer(folder: Path, model, callbacks=(), **options):
    """Four steps of two micro-batches of two rows each, padded; the learning rate is 0, so that routing stays."""
    data = []
    for n in range(16):
        ids, mask = rows([3 + n % 9], seed=n)
        data.append({"input_ids": ids[0], "attention_mask": mask[0]})
    settings = {"learning_rate": 0.0, "logging_steps": 2, "report_to": "none", "disable_tqdm": True, "use_cpu": True}
    settings |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "save_strategy": "no"}
    arguments = TrainingArguments(
        str(folder), num_train_epochs=1, train_sampling_strategy="sequential", **{**settings, **options}
    )
    trainer = Trainer(model, arguments, collate, data, data[:2], callbacks=list(callbacks))
    batches = [collate(data[at : at + 2]) for at in range(0, 16, 2)]
    return trainer, [(batch["input_ids"], batch["attention_mask"]) for batch in batches]


@OLD_NAME
def test_a_trainer_logs_every_micro_batch_once(tmp_path, capsys):
    model, logger = make_model("deepseek_v3"), Logger()
    options = {"gradient_checkpointing": True, "eval_strategy": "steps", "eval_steps": 1}
    trainer, batches = make_trainer(tmp_path, model, [logger], **options)
    RouterMonitor().add_to(trainer)
    trainer.train()
    assert hooks_of(model) == 0
    history = [record for record in trainer.state.log_history if "loss" in record]
    assert [record["step"] for record in history] == [2, 4]
    assert history == [sent for sent in logger.sent if "loss" in sent]
    for record, part in zip(history, (batches[:4], batches[4:]), strict=True):
        found = {name: value for name, value in record.items() if name.startswith("router/")}
        assert_same(found, independent(model, "deepseek_v3", part))
    others = [record for record in trainer.state.log_history if "loss" not in record]
    assert any("eval_loss" in record for record in others)
    assert not any(name.startswith("router/") for record in others for name in record)


def test_every_so_many_steps(models, tmp_path, capsys):
    """Its own steps are logged too; a log between them goes without, and the window goes on."""
    trainer, batches = make_trainer(tmp_path, models["mixtral"], [RouterMonitor(every=3)], logging_steps=2)
    trainer.train()
    history = {record["step"]: record for record in trainer.state.log_history if "loss" in record}
    watched = [step for step, record in history.items() if "router/mean/max_violation" in record]
    assert (list(history), watched) == ([2, 3, 4], [3])
    found = {name: value for name, value in history[3].items() if name.startswith("router/")}
    assert_same(found, independent(models["mixtral"], "mixtral", batches[:6]))


def test_a_logger_that_would_get_nothing_is_an_error(models, tmp_path, capsys):
    trainer, _ = make_trainer(tmp_path, models["mixtral"], [RouterMonitor()])
    trainer.args.report_to = ["tensorboard"]
    with pytest.raises(MoetoolError, match=r"loggers \(tensorboard\)") as caught:
        trainer.train()
    assert "add_to(trainer)" in caught.value.hint


def test_an_error_in_training_leaves_no_hooks(models, tmp_path, capsys):
    model = models["mixtral"]

    class Failing(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            assert hooks_of(model) > 0
            raise KeyboardInterrupt

    with RouterMonitor() as monitor:
        trainer, _ = make_trainer(tmp_path, model, [Failing()])
        monitor.add_to(trainer)
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
    assert hooks_of(model) == 0


def metrics_of_ranks(monitors, monkeypatch):
    """What each monitor answers as a process of its own would; one that waits for another in vain fails."""
    rank = threading.local()

    def answer(number):
        group = torch.distributed.ProcessGroupGloo(store, number, len(monitors), timeout=timedelta(seconds=5))
        rank.all_reduce = lambda tensor: group.allreduce([tensor]).wait()
        try:
            return monitors[number].metrics()
        except MoetoolError as error:
            return error

    store = torch.distributed.HashStore()
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: rank.all_reduce(tensor))
    with ThreadPoolExecutor(len(monitors)) as pool:
        return list(pool.map(answer, range(len(monitors))))


def test_ranks_count_together(models, monkeypatch):
    """A rank that routed nothing takes part, and knows as well as the others which router shows no logits."""
    parts = [rows([12, 5]), rows([12, 6], seed=1)]
    ranks = [make_model("mixtral").train() for _ in parts]
    with RouterMonitor(ranks[0]) as first, RouterMonitor(ranks[1]) as second:
        for model, (ids, mask) in zip(ranks, parts, strict=True):
            model(input_ids=ids, attention_mask=mask)
        both = metrics_of_ranks([first, second], monkeypatch)
        assert both[0] == both[1]
        assert_same(both[0], independent(models["mixtral"], "mixtral", parts))

        for nothing in metrics_of_ranks([first, second], monkeypatch):
            assert "no token was routed" in str(nothing)
        with hide_logits(ranks[1], 0):
            ranks[1](input_ids=parts[0][0], attention_mask=parts[0][1])
        idle, busy = metrics_of_ranks([first, second], monkeypatch)
    assert idle == busy
    assert_same(busy, without_entropy(independent(models["mixtral"], "mixtral", parts[:1]), 0))


@contextmanager
def hide_logits(model, layer):
    """Have a router hand out its choice only."""
    gate = model.model.layers[layer].mlp.gate
    handle = gate.register_forward_hook(lambda module, args, output: (None, *output[1:]), prepend=True)
    yield
    handle.remove()


def without_entropy(layers, layer):
    return layers | {layer: {name: value for name, value in layers[layer].items() if name != "router_entropy"}}


def test_what_cannot_be_watched_is_an_error():
    dense = LlamaForCausalLM(
        LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    )
    with pytest.raises(MoetoolError, match="no MoE layer found in LlamaForCausalLM"):
        RouterMonitor().attach(dense)
    with pytest.raises(MoetoolError, match="has an encoder and a decoder"):
        RouterMonitor().attach(build("switch_transformers"))
    with pytest.raises(MoetoolError, match="Linear is not a model of transformers"):
        RouterMonitor().attach(nn.Linear(1, 1))
    with pytest.raises(MoetoolError, match="watches no model"):
        RouterMonitor().metrics()


@pytest.mark.parametrize("every", [0, -1, True, 1.5, "2"])
def test_steps_that_are_no_number_are_an_error(every):
    with pytest.raises(MoetoolError, match=f"every={every!r} is no number of steps"):
        RouterMonitor(every=every)


def test_the_package_imports_it_when_asked():
    script = "import sys, moetool; assert not {'torch', 'transformers', 'numpy'} & set(sys.modules); moetool.open_trace"
    subprocess.run([sys.executable, "-c", script], check=True)
    with pytest.raises(AttributeError, match="no attribute 'RouterMonitors'"):
        moetool.RouterMonitors  # noqa: B018
