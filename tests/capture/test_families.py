"""Every MoE family that transformers has: what runs, in which engine, and that it is exact.

Three oracles: what the experts receive in plain transformers, which tokens change when one expert's weights do, and
that applied weights are proportional to the scores that the router is said to choose by.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch

from moetool.capture.routers import find_decoder
from moetool.capture.scores import correction_bias, distribution, router_scores
from moetool.capture.seams import tap
from moetool.errors import MoetoolError
from moetool.model.families import FAMILIES, family_of
from tests import families
from tests.capture.test_engines import assert_same, run
from tests.checkpoints import write_corpus

NAMES = families.names()
"""Every family, and variants of some."""


def family_named(name):
    return family_of(families.make_config(name).to_dict())


ENGINE = {name: family_named(name).engine for name in NAMES}
RUNNING = [name for name in NAMES if ENGINE[name] != "refused"]


def test_every_family_of_the_installed_transformers_is_here():
    """A new family of a later transformers has to be looked at: build a tiny one, and give it a row in the table."""
    found = set(families.moe_families())
    built = {families.directory(families.settings(name)[0]) for name in NAMES}
    assert found <= built or not families.TESTED, f"no tiny checkpoint of {sorted(found - built)}"
    assert len(found) >= 60
    unnamed = {name for name in NAMES if not family_named(name).checked}
    assert not unnamed, f"not in the table of families: {sorted(unnamed)}"


def test_the_table_names_no_family_that_nobody_checks():
    built = {
        name for name in NAMES for name in (families.settings(name)[0], families.directory(families.settings(name)[0]))
    }
    assert FAMILIES.keys() <= built or not families.TESTED


def test_at_least_55_families_are_exact_in_both_engines():
    exact = {families.directory(families.settings(name)[0]) for name in NAMES if ENGINE[name] == "any"}
    assert len(exact) >= 55


def received(model, family, trace):
    """Per MoE layer the ``[T, K]`` choice and weights that the experts get, one document at a time."""
    calls: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}

    def hook(name):
        return lambda module, args: calls.setdefault(name, []).append((args[1], args[2]))

    experts = {name: module for name, module in model.named_modules() if name.endswith(".experts")}
    stacked = {name: module for name, module in experts.items() if family.stack in name}
    handles = [module.register_forward_pre_hook(hook(name)) for name, module in (stacked or experts).items()]
    for document in trace.documents:
        tokens = trace.tokens[document.start : document.start + document.tokens]
        families.run(model, torch.from_numpy(tokens.astype(np.int64))[None])
    for handle in handles:
        handle.remove()
    for layer in calls.values():
        chosen, weight = (
            torch.cat([tensor.flatten(0, -2) for tensor in column]) for column in zip(*layer, strict=True)
        )
        if chosen.is_floating_point():
            chosen, weight = weight, chosen
        yield chosen.numpy(), weight.numpy()


@pytest.mark.parametrize("name", RUNNING)
def test_exact_in_its_engines_and_as_plain_transformers(name, tmp_path):
    model_class = type(families.save(tmp_path / "model", name))
    family, corpus = family_named(name), write_corpus(tmp_path / "corpus")
    trace = run(tmp_path / "model", corpus, "resident")
    if family.engine == "any":
        assert_same(run(tmp_path / "model", corpus, "stream"), trace)
    else:
        with pytest.raises(MoetoolError, match=family.reason):
            run(tmp_path / "model", corpus, "stream")
    for layer in trace.layers:
        assert len(np.unique(layer.chosen)) > 1, "routing that never varies would prove nothing"
    if family.seam not in ("experts", "skipping"):
        return
    plain = list(received(model_class.from_pretrained(tmp_path / "model").eval(), family, trace))
    assert len(plain) == len(trace.layers) > 0
    for layer, (chosen, weight) in zip(trace.layers, plain, strict=True):
        skipped = (weight == 0) & (family.seam == "skipping")
        np.testing.assert_array_equal(layer.chosen, np.where(skipped, layer.experts - 1, chosen))
        # rounding that depends on the batch may turn an indexer's choice of positions where two score alike
        np.testing.assert_allclose(layer.weight, weight, rtol=2e-3 if family.padding else 1e-2, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in NAMES if ENGINE[name] == "refused"])
def test_refused_with_a_reason(name, tmp_path):
    families.save(tmp_path / "model", name)
    with pytest.raises(MoetoolError, match="cannot be captured: "):
        run(tmp_path / "model", write_corpus(tmp_path / "corpus"), "auto")


@pytest.mark.parametrize("name", RUNNING)
def test_known_scores_explain_choices_and_weights(name):
    """The margin is NaN where the rule that we assume would have chosen others; weights are proportional to scores."""
    model = families.build(name)
    family = family_named(name)
    stack = find_decoder(model, family)
    seen = {}
    ids = torch.randint(3, 259, (2, 24), generator=torch.Generator().manual_seed(0))
    with tap(stack.moe_layers, lambda moe, routing: seen.setdefault(moe, routing)):
        families.run(model, ids)
    assert seen
    for moe, routing in seen.items():
        if routing.logits is None and not families.TESTED:
            continue  # a router of an older version hands out its choice only
        assert routing.logits is not None
        margin = router_scores(moe, routing.logits, routing.chosen)[0][:, 2]
        assert (margin.isnan() if moe.scoring == "hash" else margin >= 0).all()
        score, probability = distribution(moe, routing.logits)
        torch.testing.assert_close(probability.sum(-1), torch.ones(len(probability)))
        applied, expected = routing.weight.float(), score.gather(1, routing.chosen)
        if hasattr(moe.router, "per_expert_scale"):  # Gemma 4 weights experts by a learned number too
            expected = expected * moe.router.per_expert_scale.detach()[routing.chosen]
        if family.name == "phimoe":  # each choice is weighted among the logits that are close to it (SparseMixer-v2)
            continue
        ran = applied > 0
        expected, applied = expected * ran, applied * ran
        ratio = applied.sum(-1, keepdim=True) / expected.sum(-1, keepdim=True).clamp_min(1e-9)
        torch.testing.assert_close(applied, expected * ratio, rtol=1e-3, atol=1e-4)


BIASED = (
    "deepseek_v3", "glm4_moe", "dots1", "minimax_m2", "ernie4_5_moe", "lfm2_moe", "nemotron_h", "kimi_linear", "afmoe",
    "hy_v3", "longcat_flash", "mimo_v2_flash", "zaya", "inkling_text", "step3p7", "deepseek_v4",
)  # fmt: skip
"""Every way to keep and to use a bias that the families have."""


@pytest.mark.parametrize("name", [name for name in RUNNING if name in BIASED])
def test_what_the_bias_changed_is_what_changes_without_it(name):
    """``rerouted`` against the model's own choice with the bias of one layer set to zero."""
    model = families.build(name)
    moes = find_decoder(model, family_named(name)).moe_layers
    biased = [moe for moe in moes if correction_bias(moe) is not None and moe.scoring != "hash"]
    moe = biased[-1]
    ids = torch.randint(3, 259, (2, 24), generator=torch.Generator().manual_seed(0))
    seen = []
    with tap([moe], lambda moe, routing: seen.append(routing)), torch.no_grad():
        families.run(model, ids)
        bias = correction_bias(moe)
        bias.copy_(torch.randn(bias.shape, generator=torch.Generator().manual_seed(1)) * 0.2)
        families.run(model, ids)
        rerouted = router_scores(moe, seen[1].logits, seen[1].chosen)[2]
        bias.zero_()
        families.run(model, ids)
    changed = [len(set(a) - set(b)) for a, b in zip(seen[1].chosen.tolist(), seen[2].chosen.tolist(), strict=True)]
    assert rerouted.tolist() == changed
    assert sum(changed) > 0


def outputs(model, moe, ids):
    """Routing of a layer, and the outputs ``[N, H]`` of its block (of its attention, where that holds the experts)."""
    seen, routings = [], []
    owner = moe.parent
    if moe.part == "attention":
        owner = next(m for m in model.modules() if getattr(m, "experts", None) is moe.parent)

    def keep(module, args, output):
        seen.append((output if isinstance(output, torch.Tensor) else output[0]).clone())

    handle = owner.register_forward_hook(keep)
    with tap([moe], lambda moe, routing: routings.append(routing)):
        families.run(model, ids)
    handle.remove()
    return routings[0], seen[0].reshape(-1, seen[0].shape[-1])[-len(routings[0].chosen) :]


@contextmanager
def changed(module, expert, experts):
    """One expert of a module has other weights, wherever its layout keeps them."""
    if isinstance(module, torch.nn.ModuleDict):
        slices = [parameter.data for parameter in module[f"expert_{expert}"].parameters()]
    else:
        stacks = [p for n, p in module.named_parameters() if "router" not in n and (p.dim() == 3 or len(p) > experts)]
        slices = [p.data.view(experts, -1)[expert] for p in stacks if p.dim() > 1 and len(p) % experts == 0]
    assert slices
    kept = [part.clone() for part in slices]
    for part in slices:
        part.add_(torch.randn_like(part))
    yield
    for part, before in zip(slices, kept, strict=True):
        part.copy_(before)


ABLATED = [name for name in RUNNING if family_named(name).seam != "experts"] + ["mixtral", "dbrx", "deepseek_v4"]


@pytest.mark.parametrize("name", ABLATED)
def test_the_tokens_that_chose_an_expert_are_those_that_its_weights_change(name):
    """No seam is trusted: an expert's weights are changed, and the outputs of its block show who used it."""
    model = families.build(name)
    stack = find_decoder(model, family_named(name))
    ids = torch.randint(3, 259, (2, 20), generator=torch.Generator().manual_seed(0))
    for moe in (replace(moe, lead=0) for moe in stack.moe_layers):
        routing, before = outputs(model, moe, ids)
        ran = torch.ones_like(routing.chosen, dtype=torch.bool) if routing.dropped is None else ~routing.dropped
        for expert in range(moe.experts - moe.zero_experts):
            with changed(moe.experts_module, expert, moe.experts - moe.zero_experts):
                _, after = outputs(model, moe, ids)
            used = ((routing.chosen == expert) & ran).any(-1)
            assert ((after != before).any(-1) == used).all()
