"""Exact search among vectors in memory: nearest ones, pairs nearer than a threshold, outliers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

METRICS = ("cosine", "euclidean")
CHUNK = 1 << 24  # distances at once
BLOCK = 8192  # rows at once, so that what is computed of them stays in the cache
QUERIES = 1024  # at once
PAIRS_HELD = 64  # times as many pairs as are wanted
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
        # Not a matrix product, whose last digits hang on a row's place: equal rows are equally far.
        products_N = np.einsum("nd,d->n", wide_ND, wide_D)
        return _cosine_distance(products_N / lengths_N)


def _cosine_distance(cosine_N: np.ndarray) -> np.ndarray:
    """In [0, 2], whatever the last digits say: an image's distance from itself is no -0.0000."""
    return np.clip(np.nan_to_num(1.0 - cosine_N, nan=1.0), 0.0, 2.0)


def lengths(matrix_ND: np.ndarray) -> np.ndarray:
    """(N,) in float32."""
    return np.sqrt(np.einsum("nd,nd->n", matrix_ND, matrix_ND))


def nearest(
    matrix_ND: np.ndarray,
    lengths_N: np.ndarray,
    queries_QD: np.ndarray,
    k: int,
    metric: str,
    allowed_N: np.ndarray,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each query the k nearest rows, nearest first, of equal ones the first; and how far.

    matrix_ND: float32; lengths_N: of its rows. allowed_N: rows that may be found. One pass in
    single precision keeps all that may be among the k; double precision settles their order.
    """
    k = min(k, int(np.count_nonzero(allowed_N)))
    if not k:
        return [(np.zeros(0, np.int64), np.zeros(0)) for _ in queries_QD]
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for start in range(0, len(queries_QD), QUERIES):
        some_QD = np.ascontiguousarray(queries_QD[start : start + QUERIES], np.float32)
        candidates = _candidates(matrix_ND, lengths_N, some_QD, k, metric, allowed_N)
        for query_D, rows in zip(some_QD, candidates, strict=True):
            far = distances(matrix_ND[rows], query_D, metric)
            best = np.argsort(far, kind="stable")[:k]
            found.append((rows[best], far[best]))
    return found


def _candidates(
    matrix_ND: np.ndarray,
    lengths_N: np.ndarray,
    queries_QD: np.ndarray,
    k: int,
    metric: str,
    allowed_N: np.ndarray,
) -> list[np.ndarray]:
    """For each query the rows, ascending, that may be among its k nearest, whatever single
    precision did to their order.

    Rows go by in blocks. What is farther than the k nearest of all rows before is let go at once:
    as the bound is drawn tighter each time the rows seen have doubled, few others are kept.
    """
    nearest_so_far: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in queries_QD]
    bounds_Q = np.full(len(queries_QD), np.inf, np.float32)
    slack_Q = _slack(lengths_N, queries_QD, metric)
    done, tighten_at = 0, 0
    while done < len(matrix_ND):
        stop = min(done + max(BLOCK, k), len(matrix_ND))
        near_BQ = _near(matrix_ND[done:stop], lengths_N[done:stop], queries_QD, metric)
        near_BQ[~allowed_N[done:stop]] = np.inf
        rows_H, queries_H = np.nonzero((near_BQ <= bounds_Q) & np.isfinite(near_BQ))
        for query, rows in _by_query(rows_H, queries_H):
            nearest_so_far[query].append((rows + done, near_BQ[rows, query]))
        done = stop
        if done >= tighten_at or done == len(matrix_ND):
            tighten_at = 2 * done
            for query, parts in enumerate(nearest_so_far):
                nearest_so_far[query], bounds_Q[query] = _tightened(parts, k, float(slack_Q[query]))
    return [np.concatenate([rows for rows, _ in parts]) for parts in nearest_so_far]


def _near(
    block_BD: np.ndarray, lengths_B: np.ndarray, queries_QD: np.ndarray, metric: str
) -> np.ndarray:
    """(B, Q): what is in the order of the distances from each query; not the distances."""
    near_BQ = block_BD @ queries_QD.T
    if metric == "euclidean":
        near_BQ *= -2.0
        near_BQ += np.square(lengths_B)[:, None]
    else:
        near_BQ /= -np.where(lengths_B > 0, lengths_B, 1.0)[:, None]
    return near_BQ


def _slack(lengths_N: np.ndarray, queries_QD: np.ndarray, metric: str) -> np.ndarray:
    """(Q,): how far apart two values of `_near` may be and yet in the wrong order."""
    # A row that is not finite is nobody's neighbour, and spoils no bound.
    longest = float(lengths_N.max(initial=0.0, where=np.isfinite(lengths_N)))
    dim = queries_QD.shape[1]
    lengths_Q = lengths(queries_QD).astype(np.float64)
    size_Q = lengths_Q if metric == "cosine" else longest * (longest + 2.0 * lengths_Q)
    return 4.0 * (dim + 8) * ROUNDING * size_Q


def _by_query(rows_H: np.ndarray, queries_H: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    order = np.argsort(queries_H, kind="stable")
    queries, counts = np.unique(queries_H, return_counts=True)
    ends = np.cumsum(counts)
    for query, start, end in zip(queries, ends - counts, ends, strict=True):
        yield int(query), rows_H[order[start:end]]


def _tightened(
    parts: list[tuple[np.ndarray, np.ndarray]], k: int, slack: float
) -> tuple[list[tuple[np.ndarray, np.ndarray]], float]:
    """Return what is left of a query's candidates, and the bound for further ones."""
    if sum(len(rows) for rows, _ in parts) < k:
        return parts, np.inf
    rows_H = np.concatenate([rows for rows, _ in parts])
    near_H = np.concatenate([near for _, near in parts])
    bound = float(np.partition(near_H, k - 1)[k - 1]) + slack
    kept = near_H <= bound
    return [(rows_H[kept], near_H[kept])], bound


def close_pairs(
    matrix_ND: np.ndarray, threshold: float, metric: str, top: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of rows (P, 2), i < j, at a distance of at most the threshold, nearest first; (P,).

    top: only the nearest ones, and no more than a few times as many in memory at once.

    Along any direction two vectors are no farther apart than they are: sorted along the one of the
    largest spread, each is compared with those within the threshold only.
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
        if top is not None and sum(map(len, far)) > PAIRS_HELD * top:
            closest, distance = _nearest_pairs(pairs, far, top)
            pairs, far = [closest], [distance]
        start = stop
    return _nearest_pairs(pairs, far, top)


def _nearest_pairs(
    pairs: list[np.ndarray], far: list[np.ndarray], top: int | None
) -> tuple[np.ndarray, np.ndarray]:
    found, distance = np.concatenate(pairs), np.concatenate(far)
    nearest_first = np.lexsort((found[:, 1], found[:, 0], distance))[:top]
    return found[nearest_first], distance[nearest_first]


def _direction(matrix_ND: np.ndarray) -> np.ndarray:
    """Return the first principal axis, of a sample."""
    sample = matrix_ND[:: max(1, len(matrix_ND) // 10_000)].astype(np.float64)
    _, axes = np.linalg.eigh(np.cov(sample.T).reshape(matrix_ND.shape[1], -1))
    return axes[:, -1].astype(np.float32)


def _between(matrix_ND: np.ndarray, i: np.ndarray, j: np.ndarray, metric: str) -> np.ndarray:
    a, b = matrix_ND[i].astype(np.float64), matrix_ND[j].astype(np.float64)
    if metric == "euclidean":
        return np.linalg.norm(a - b, axis=1)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return _cosine_distance(np.einsum("nd,nd->n", a, b) / lengths)


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
