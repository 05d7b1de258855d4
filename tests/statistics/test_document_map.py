"""The map of documents: by hand, what turns and orders leave alone, planted and published domains."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from moetool.statistics.counts import GroupCounts, LayerCells
from moetool.statistics.document_map import map_documents
from tests.statistics.domains import counts_of, esft_trace, planted_trace


def counts_by_hand(hits, experts):
    """Groups of one domain with these hits ``[G, C]``, K = 1 in layers of ``experts`` each."""
    hits = np.asarray(hits, dtype=np.float32)
    groups, cells = hits.shape
    layers = tuple(LayerCells(i, i * experts, experts, 1) for i in range(cells // experts))
    ones = np.ones(groups, dtype=np.int64)
    return GroupCounts(
        ("text",), tuple(map(str, range(groups))), 0 * ones, ones, hits[:, :experts].sum(axis=1), hits, layers
    )


def distances(points):
    return np.linalg.norm(points[:, None] - points[None], axis=2)


def test_map_by_hand():
    """Disjoint in one of two layers and equal in the other: mean squared Hellinger distance 1/2, all on one axis."""
    found = map_documents(counts_by_hand([[4, 0, 2, 2], [0, 2, 1, 1]], 2))
    np.testing.assert_allclose(found.points, [[0.5**0.5 / 2, 0], [-(0.5**0.5) / 2, 0]], atol=1e-7)
    np.testing.assert_allclose(found.explained_share, [1, 0], atol=1e-12)


def test_three_disjoint_documents_are_a_triangle():
    """Both axes explain half of the variance, and every distance is the largest there is."""
    found = map_documents(counts_by_hand(np.eye(3), 3))
    np.testing.assert_allclose(found.explained_share, 0.5)
    np.testing.assert_allclose(distances(found.points), 1 - np.eye(3), atol=1e-7)


def test_documents_that_are_all_equal_lie_in_one_point():
    for hits in ([[1, 2, 1]], [[1, 2, 1], [2, 4, 2], [3, 6, 3]]):
        found = map_documents(counts_by_hand(hits, 3))
        np.testing.assert_array_equal(found.points, 0)
        assert np.isnan(found.explained_share).all()


def random_counts(seed, groups=9, layers=2, experts=5):
    rng = np.random.default_rng(seed)
    taste = rng.dirichlet(np.full(experts, 0.5), (groups, layers))
    hits = np.stack([[rng.multinomial(50, row) for row in group] for group in taste])
    return counts_by_hand(hits.reshape(groups, -1), experts)


@settings(deadline=None)
@given(st.integers(0, 10_000))
def test_equal_documents_coincide_and_length_does_not_matter(seed):
    counts = random_counts(seed)
    hits = np.concatenate([counts.hits, 3 * counts.hits[:1]])
    found = map_documents(counts_by_hand(hits, 5))
    np.testing.assert_allclose(found.points[-1], found.points[0], atol=1e-6)


@settings(deadline=None)
@given(st.integers(0, 10_000))
def test_the_numbers_of_experts_and_the_order_of_layers_do_not_matter(seed):
    counts = random_counts(seed)
    rng = np.random.default_rng(seed)
    order = np.concatenate([layer * 5 + rng.permutation(5) for layer in (1, 0)])
    found, turned = map_documents(counts), map_documents(counts_by_hand(counts.hits[:, order], 5))
    np.testing.assert_allclose(turned.explained_share, found.explained_share, atol=1e-9)
    np.testing.assert_allclose(np.abs(turned.points), np.abs(found.points), atol=1e-5)


@settings(deadline=None)
@given(st.integers(0, 10_000))
def test_axes_are_centred_and_ordered_and_their_signs_are_settled(seed):
    found = map_documents(random_counts(seed))
    np.testing.assert_allclose(found.points.mean(axis=0), 0, atol=1e-9)
    assert found.explained_share[0] >= found.explained_share[1] >= 0
    assert found.explained_share.sum() <= 1 + 1e-9
    for axis in found.points.T:
        far = axis[np.abs(axis) >= np.abs(axis).max() / 2]
        assert far[0] > 0


def test_points_are_the_singular_vectors_of_the_profiles():
    counts = random_counts(3)
    profile = np.sqrt(counts.hits.astype(float) / counts.tokens[:, None] / 4)
    left, values, _ = np.linalg.svd(profile - profile.mean(axis=0))
    found = map_documents(counts)
    np.testing.assert_allclose(np.abs(found.points), np.abs(left[:, :2] * values[:2]), atol=1e-9)
    np.testing.assert_allclose(found.explained_share, values[:2] ** 2 / (values**2).sum())


def test_planted_domains_lie_apart():
    lifts = {(0, 0, 0): 3.0, (0, 1, 0): 3.0, (1, 2, 1): 3.0, (1, 3, 1): 3.0}
    counts = counts_of(planted_trace(0, domains=3, lifts={key: min(lift, 2.9) for key, lift in lifts.items()}))
    points = map_documents(counts).points
    centres = np.stack([points[counts.domain == index].mean(axis=0) for index in range(3)])
    nearest = np.linalg.norm(points[:, None] - centres, axis=2).argmin(axis=1)
    assert (nearest == counts.domain).mean() > 0.9


def test_published_tasks_lie_apart_on_the_first_axis():
    counts = counts_of(esft_trace())
    first = map_documents(counts).points[:, 0]
    law, intent = first[counts.domain == 0], first[counts.domain == 1]
    assert law.min() > intent.max() or law.max() < intent.min()
