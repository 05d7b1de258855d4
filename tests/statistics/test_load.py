"""The balance loss against transformers' own function."""

import numpy as np
import pytest

from moetool.statistics import load


@pytest.mark.parametrize("layers", [1, 3])
def test_balance_loss_hf_is_what_transformers_computes(layers: int) -> None:
    torch = pytest.importorskip("torch")
    mixtral = pytest.importorskip("transformers.models.mixtral.modeling_mixtral")
    torch.manual_seed(0)
    logits = tuple(torch.randn(50, 8) + 2 * torch.randn(8) for _ in range(layers))
    expected = float(mixtral.load_balancing_loss_func(logits, num_experts=8, top_k=2, attention_mask=None))
    probabilities = [torch.softmax(layer, -1).double() for layer in logits]
    counts = [np.bincount(p.topk(2).indices.flatten().numpy(), minlength=8) for p in probabilities]
    means = [p.mean(0).numpy() for p in probabilities]
    assert load.balance_loss_hf(list(zip(counts, means, strict=True)), 50) == pytest.approx(expected, rel=1e-5)


def test_pooling_layers_hides_imbalance() -> None:
    """Two collapsed layers whose experts are opposite: each costs E/K, pooled they look balanced."""
    layers = [(np.array([10, 0]), np.array([1.0, 0.0])), (np.array([0, 10]), np.array([0.0, 1.0]))]
    assert [load.balance_loss(counts, probability) for counts, probability in layers] == [2.0, 2.0]
    assert load.balance_loss_hf(layers, 10) == 1.0


def test_balance_loss_hf_is_undefined_where_layers_cannot_be_pooled() -> None:
    counts, probability = np.array([5, 5]), np.array([0.5, 0.5])
    assert load.balance_loss_hf([(counts, probability), (counts, None)], 10) is None
    assert load.balance_loss_hf([(counts, probability), (np.array([10]), np.array([1.0]))], 10) is None
    assert load.balance_loss_hf([], 10) is None


def test_cv_uniform_is_the_cv_of_uniform_choices() -> None:
    random = np.random.default_rng(0)
    measured = []
    for _ in range(200):
        chosen = random.random((64, 16)).argsort(axis=1)[:, :4]
        measured.append(load.cv(np.bincount(chosen.ravel(), minlength=16)) or 0.0)
    assert np.sqrt(np.mean(np.square(measured))) == pytest.approx(load.cv_uniform(16, 4, 64), rel=0.05)
