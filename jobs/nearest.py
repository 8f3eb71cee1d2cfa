"""Exact search among vectors in memory: nearest ones, pairs nearer than a threshold, outliers."""

from __future__ import annotations

import numpy as np

METRICS = ("cosine", "euclidean")
CHUNK = 1 << 24  # distances at once
ROUNDING = 6e-8  # of a float32 product, relative


def prepared(matrix_ND: np.ndarray, metric: str) -> np.ndarray:
    """float32 vectors whose Euclidean order is that of the metric: of unit length for cosine."""
    if metric == "euclidean":
        return matrix_ND
    lengths_N = np.linalg.norm(matrix_ND, axis=1, keepdims=True)
    return matrix_ND / np.where(lengths_N > 0, lengths_N, 1.0)


def distances(matrix_ND: np.ndarray, vector_D: np.ndarray, metric: str) -> np.ndarray:
    """(N,) in float64: |a − b|, or 1 − cos(a, b), which is 1 where either has no length."""
    wide_ND, wide_D = matrix_ND.astype(np.float64), vector_D.astype(np.float64)
    if metric == "euclidean":
        return np.linalg.norm(wide_ND - wide_D, axis=1)
    lengths_N = np.linalg.norm(wide_ND, axis=1) * np.linalg.norm(wide_D)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.nan_to_num(1.0 - wide_ND @ wide_D / lengths_N, nan=1.0)


def nearest(
    matrix_ND: np.ndarray, queries_QD: np.ndarray, k: int, metric: str, allowed_N: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each query the k nearest rows, nearest first, of equal ones the first; and how far.

    matrix_ND: float32. allowed_N: rows that may be found. Candidates are ranked in float32 and
    settled in float64.
    """
    rows = np.flatnonzero(allowed_N)
    k = min(k, len(rows))
    ready_ND, ready_QD = prepared(matrix_ND, metric), prepared(queries_QD, metric)
    # Distances do not know where zero is, but digits do.
    centre_D = ready_ND.mean(axis=0, dtype=np.float64).astype(np.float32)
    ready_ND, ready_QD = ready_ND - centre_D, ready_QD - centre_D
    squares_N = np.einsum("nd,nd->n", ready_ND, ready_ND)[rows]
    found = []
    step = max(1, CHUNK // max(1, len(rows)))
    everything = len(rows) == len(matrix_ND)
    held_ND = ready_ND if everything else ready_ND[rows]
    for start in range(0, len(queries_QD), step):
        near_QN = squares_N - 2.0 * (ready_QD[start : start + step] @ held_ND.T)
        for query_D, near_N in zip(queries_QD[start : start + step], near_QN, strict=True):
            picked = rows[_candidates(near_N, k, squares_N, matrix_ND.shape[1])]
            far = distances(matrix_ND[picked], query_D, metric)
            best = np.argsort(far, kind="stable")[:k]
            found.append((picked[best], far[best]))
    return found


def _candidates(near_N: np.ndarray, k: int, squares_N: np.ndarray, dim: int) -> np.ndarray:
    """All that may be among the k nearest, whatever single precision did to their order."""
    if not k:
        return np.zeros(0, np.int64)
    kth = np.partition(near_N, k - 1)[k - 1]
    longest = float(squares_N.max()) + float(np.abs(near_N).max())
    return np.flatnonzero(near_N <= kth + 4.0 * (dim + 8) * ROUNDING * longest)


def close_pairs(
    matrix_ND: np.ndarray, threshold: float, metric: str
) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of rows (P, 2), i < j, at a distance of at most the threshold, nearest first; (P,).

    Along any direction two vectors are no farther apart than they are: sorted along the one of the
    largest spread, each is held against those within the threshold only.
    """
    if len(matrix_ND) < 2:
        return np.zeros((0, 2), np.int64), np.zeros(0)
    ready_ND = prepared(matrix_ND, metric)
    ready_ND = ready_ND - ready_ND.mean(axis=0, dtype=np.float64).astype(np.float32)
    # Of unit vectors |a − b|² = 2 (1 − cos).
    reach = float(np.sqrt(2.0 * threshold)) if metric == "cosine" else threshold
    reach = reach * (1.0 + 1e-5) + 1e-6  # float32 may err so much
    along_N = ready_ND @ _direction(ready_ND)
    order = np.argsort(along_N, kind="stable")
    along_N, sorted_ND = along_N[order], ready_ND[order]
    ends_N = np.searchsorted(along_N, along_N + reach, side="right")
    pairs, far = [np.zeros((0, 2), np.int64)], [np.zeros(0)]
    start = 0
    while start < len(order):
        stop = start + 1
        while stop < len(order) and (stop - start) * (ends_N[stop] - start) < CHUNK:
            stop += 1
        here_ND, there_ND = sorted_ND[start:stop], sorted_ND[start : ends_N[stop - 1]]
        squares = (
            np.einsum("nd,nd->n", here_ND, here_ND)[:, None]
            + np.einsum("nd,nd->n", there_ND, there_ND)
            - 2.0 * here_ND @ there_ND.T
        )
        # A difference of squares loses digits where vectors are long: what it lets by is judged.
        slack = 1e-5 * float(np.abs(squares).max(initial=0.0) + np.square(here_ND).sum(1).max())
        a, b = np.nonzero(squares <= reach**2 + slack)
        a, b = a[b > a], b[b > a]
        i, j = order[start + a], order[start + b]
        exact = _between(matrix_ND, i, j, metric)
        kept = exact <= threshold
        pairs.append(np.sort(np.stack([i, j], axis=1)[kept], axis=1))
        far.append(exact[kept])
        start = stop
    found, distance = np.concatenate(pairs), np.concatenate(far)
    nearest_first = np.lexsort((found[:, 1], found[:, 0], distance))
    return found[nearest_first], distance[nearest_first]


def _direction(matrix_ND: np.ndarray) -> np.ndarray:
    """The first principal axis, of a sample."""
    sample = matrix_ND[:: max(1, len(matrix_ND) // 10_000)].astype(np.float64)
    _, axes = np.linalg.eigh(np.cov(sample.T).reshape(matrix_ND.shape[1], -1))
    return axes[:, -1].astype(np.float32)


def _between(matrix_ND: np.ndarray, i: np.ndarray, j: np.ndarray, metric: str) -> np.ndarray:
    a, b = matrix_ND[i].astype(np.float64), matrix_ND[j].astype(np.float64)
    if metric == "euclidean":
        return np.linalg.norm(a - b, axis=1)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.nan_to_num(1.0 - np.einsum("nd,nd->n", a, b) / lengths, nan=1.0)


def mahalanobis(matrix_ND: np.ndarray) -> np.ndarray:
    """Distance of each row from the mean of all, in standard deviations, (N,).

    The covariance is shrunk towards its own mean variance as Ledoit & Wolf 2004, "A
    well-conditioned estimator for large-dimensional covariance matrices", find best, so that a
    label of few images, fewer than dimensions even, has one that can be inverted.
    """
    count, dim = matrix_ND.shape
    centred_ND = matrix_ND.astype(np.float64) - matrix_ND.mean(axis=0, dtype=np.float64)
    cov_DD = centred_ND.T @ centred_ND / count
    mean_variance = np.trace(cov_DD) / dim
    target_DD = mean_variance * np.eye(dim)
    spread = np.sum((cov_DD - target_DD) ** 2)
    # The mean over images of |x xᵀ − S|², without an image's matrix.
    error = (np.sum(np.einsum("nd,nd->n", centred_ND, centred_ND) ** 2) / count) - np.sum(cov_DD**2)
    shrunk = min(1.0, error / count / spread) if spread > 0 else 1.0
    held_DD = shrunk * target_DD + (1.0 - shrunk) * cov_DD
    if mean_variance == 0:
        return np.zeros(count)
    solved_DN = np.linalg.solve(held_DD, centred_ND.T)
    return np.sqrt(np.einsum("nd,dn->n", centred_ND, solved_DN))
