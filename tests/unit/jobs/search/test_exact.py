"""Exact search against the naive one."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.covariance import LedoitWolf

from jobs.search import exact as search
from jobs.search.exact import METRICS, close_pairs, lengths, mahalanobis


def nearest(matrix, queries, k, metric, allowed):
    return search.nearest(matrix, lengths(matrix), queries, k, metric, allowed)


def vectors(count: int, dim: int, seed: int = 0) -> np.ndarray:
    """Clustered, of very different lengths, with some that come twice."""
    rng = np.random.default_rng(seed)
    centres = 3.0 * rng.normal(size=(5, dim))
    found = centres[rng.integers(5, size=count)] + rng.normal(size=(count, dim))
    found[count // 2] = found[0]
    return (found * rng.uniform(0.5, 20.0, (count, 1))).astype(np.float32)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dim", [1, 2, 64])
def test_the_nearest_are_those_of_scipy(metric: str, dim: int, monkeypatch) -> None:
    monkeypatch.setattr(search, "BLOCK", 16)
    monkeypatch.setattr(search, "QUERIES", 4)
    matrix = vectors(300, dim)
    allowed = np.random.default_rng(1).random(300) < 0.7
    queries = vectors(9, dim, seed=2)
    expected = cdist(queries.astype(np.float64), matrix.astype(np.float64), metric)
    expected[:, ~allowed] = np.inf
    for (rows, far), by_hand in zip(
        nearest(matrix, queries, 12, metric, allowed), expected, strict=True
    ):
        np.testing.assert_allclose(far, np.sort(by_hand)[:12], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(far, by_hand[rows], rtol=1e-9, atol=1e-12)
        assert allowed[rows].all()


@pytest.mark.parametrize("metric", METRICS)
def test_far_from_zero_the_nearest_are_the_same(metric: str) -> None:
    """As codes are that have collapsed, or were squashed into (0, 1)."""
    rng = np.random.default_rng(0)
    matrix = (5.0 + 1e-3 * rng.normal(size=(3000, 16))).astype(np.float32)
    ((rows, far),) = nearest(matrix, matrix[:1], 10, metric, np.ones(3000, bool))
    by_hand = cdist(matrix[:1].astype(np.float64), matrix.astype(np.float64), metric)[0]
    np.testing.assert_allclose(far, np.sort(by_hand)[:10], rtol=1e-6, atol=1e-12)
    assert rows[0] == 0


@pytest.mark.parametrize("metric", METRICS)
def test_of_equal_ones_the_first_are_found(metric: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        some = rng.normal(size=(7, 64)).astype(np.float32)
        matrix = some[rng.integers(7, size=300)]
        query = rng.normal(size=(1, 64)).astype(np.float32)
        ((rows, far),) = nearest(matrix, query, 20, metric, np.ones(300, bool))
        assert [tuple(x) for x in zip(far, rows, strict=True)] == sorted(
            zip(far, rows, strict=True)
        )
        (same,) = np.nonzero((matrix == matrix[rows[0]]).all(1))
        assert rows[: len(same)].tolist() == same[:20].tolist()


@pytest.mark.parametrize("metric", METRICS)
def test_a_row_that_is_not_finite_is_nobody_s_neighbour(metric: str) -> None:
    matrix = vectors(100, 8)
    query = vectors(1, 8, seed=3)
    ((rows, far),) = nearest(matrix, query, 10, metric, np.arange(100) != 40)
    matrix[40, 3] = np.nan
    ((found, near),) = nearest(matrix, query, 10, metric, np.ones(100, bool))
    assert found.tolist() == rows.tolist()
    assert near.tolist() == far.tolist()


def test_one_image_has_no_pair() -> None:
    for count in (0, 1):
        assert close_pairs(np.ones((count, 3), np.float32), 1.0, "euclidean")[0].shape == (0, 2)


def test_there_may_be_fewer_than_asked_for() -> None:
    matrix = vectors(6, 3)
    ((rows, _),) = nearest(matrix, matrix[:1], 50, "cosine", np.arange(6) > 2)
    assert sorted(rows.tolist()) == [3, 4, 5]
    ((rows, _),) = nearest(matrix, matrix[:1], 5, "cosine", np.zeros(6, bool))
    assert len(rows) == 0


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dim", [1, 3, 64])
@pytest.mark.parametrize("share", [0.0, 0.002, 0.05])
def test_close_pairs_are_all_of_them(metric: str, dim: int, share: float, monkeypatch) -> None:
    monkeypatch.setattr(search, "CHUNK", 2_000)
    matrix = vectors(250, dim)
    far = cdist(matrix.astype(np.float64), matrix.astype(np.float64), metric)
    i, j = np.triu_indices(250, 1)
    threshold = float(np.quantile(far[i, j], share)) + 1e-9
    expected = {(a, b) for a, b in zip(i, j, strict=True) if far[a, b] <= threshold}
    pairs, distance = close_pairs(matrix, threshold, metric)
    assert {tuple(pair) for pair in pairs.tolist()} == expected
    assert len(expected) >= 1
    assert (np.diff(distance) >= 0).all()


def test_mahalanobis_with_the_shrinkage_of_scikit_learn() -> None:
    for count, dim in ((500, 8), (20, 32)):
        matrix = vectors(count, dim)
        fitted = LedoitWolf().fit(matrix.astype(np.float64))
        expected = np.sqrt(fitted.mahalanobis(matrix.astype(np.float64)))
        np.testing.assert_allclose(mahalanobis(matrix), expected, rtol=1e-6)


def test_images_that_are_all_alike_have_no_outlier() -> None:
    assert (mahalanobis(np.ones((5, 3), np.float32)) == 0).all()


def test_the_nearest_pairs_of_many_are_the_first_of_all(monkeypatch) -> None:
    monkeypatch.setattr(search, "CHUNK", 500)
    monkeypatch.setattr(search, "PAIRS_HELD", 2)
    matrix = vectors(200, 3)
    pairs, far = close_pairs(matrix, 20.0, "euclidean")
    assert len(pairs) > 300
    some, near = close_pairs(matrix, 20.0, "euclidean", 7)
    assert some.tolist() == pairs[:7].tolist()
    assert near.tolist() == far[:7].tolist()


def test_nothing_is_nearer_than_itself() -> None:
    """1 - cos(a, a) is -1e-16 for some a, which was shown as -0.0000."""
    vectors = np.random.default_rng(0).normal(size=(500, 7)).astype(np.float32)
    found = [search.distances(vectors[[i]], vectors[i], "cosine")[0] for i in range(len(vectors))]
    assert min(found) == 0.0
    assert not np.signbit(found).any()
    assert not np.signbit(close_pairs(np.repeat(vectors, 2, 0), 1e-9, "cosine")[1]).any()
