"""Top-K mass: read from the trace only where the weights tell it."""

import numpy as np
import pytest
from numpy.typing import NDArray

from moetool.statistics import router

Floats = NDArray[np.float64]


@pytest.fixture
def routing() -> tuple[Floats, Floats, float]:
    """Probabilities of the four chosen of 16 ``[T, 4]`` in no order, float16 scores ``[T, 4]``, and their mean mass."""
    random = np.random.default_rng(0)
    logits = random.normal(size=(500, 16))
    probability = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    chosen = random.permuted(np.sort(probability, axis=1)[:, -4:], axis=1)
    scores = np.zeros((500, 4))
    scores[:, router.TOP1] = probability.max(axis=1)
    return chosen, scores.astype(np.float16), float(chosen.sum(axis=1).mean())


@pytest.mark.parametrize("scale", [1.0, 0.3, 16.0])
@pytest.mark.parametrize("normalised", [True, False])
def test_mass_from_scores(routing: tuple[Floats, Floats, float], normalised: bool, scale: float) -> None:
    chosen, scores, mass = routing
    weight = scale * (chosen / chosen.sum(axis=1, keepdims=True) if normalised else chosen)
    assert router.topk_mass(weight.astype(np.float16), scores, "softmax") == pytest.approx(mass, rel=2e-3)


def test_mass_from_unnormalised_weights_alone(routing: tuple[Floats, Floats, float]) -> None:
    chosen, _, mass = routing
    assert router.topk_mass(chosen.astype(np.float16), None, "softmax") == pytest.approx(mass, rel=2e-3)


def test_mass_is_unknown_where_the_weights_do_not_tell(routing: tuple[Floats, Floats, float]) -> None:
    chosen, scores, _ = routing
    normalised = chosen / chosen.sum(axis=1, keepdims=True)
    per_expert = chosen * np.random.default_rng(1).uniform(0.5, 1.5, chosen.shape)
    assert router.topk_mass(normalised, None, "softmax") is None
    assert router.topk_mass(16 * chosen, None, "softmax") is None
    assert router.topk_mass(per_expert, scores, "softmax") is None
    assert router.topk_mass(chosen, scores, "sigmoid") is None
    assert router.topk_mass(chosen, scores, None) is None
    assert router.topk_mass(None, scores, "softmax") is None
    assert router.topk_mass(chosen, np.full_like(scores, np.nan), "softmax") is None


def test_z_loss_is_for_softmax_routers_only() -> None:
    scores = np.full((3, 4), 2.0, np.float16)
    assert router.z_loss(scores, "softmax") == 4.0
    assert router.z_loss(scores, "sigmoid") is None
    assert router.z_loss(None, "softmax") is None


def test_zero_logits_have_the_documented_baselines() -> None:
    """Of 8 equal experts: entropy 1, z loss (ln 8)^2."""
    scores = np.tile([np.log(8), 1 / 8, 0.0, np.log(8)], (5, 1))
    assert router.router_entropy(scores, 8) == pytest.approx(1)
    assert router.z_loss(scores, "softmax") == pytest.approx(np.log(8) ** 2)


def test_float16_sums_do_not_overflow() -> None:
    scores = np.full((100_000, 4), 40.0, np.float16)
    assert router.boundary_margin(scores) == 40.0
    assert router.z_loss(scores, "softmax") == 1600.0
