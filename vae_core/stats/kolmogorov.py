"""The Kolmogorov-Smirnov test of two samples."""

from __future__ import annotations

import math

import numpy as np

EXACT_STEPS = 10**8  # of the paths' lattice; beyond it the limit is as good
LEAST_EXACT = 1e-9  # a smaller p-value drowns in rounding: the limit's instead


def ks_two_sample(first_N: np.ndarray, second_M: np.ndarray) -> tuple[float, float]:
    """Return the largest difference of the two distribution functions, and its two-sided p-value.

    Exact for continuous samples, conservative with ties. Raises ValueError on an empty sample.
    """
    if not len(first_N) or not len(second_M):
        raise ValueError("two samples with values are needed")
    n, m = len(first_N), len(second_M)
    values = np.concatenate([first_N, second_M])
    counts = [
        np.searchsorted(np.sort(sample), values, side="right") for sample in (first_N, second_M)
    ]
    # In whole numbers, for equal differences are to be equal.
    steps = int(np.abs(counts[0] * m - counts[1] * n).max())
    statistic = steps / (n * m)
    p_value = _exact(steps, n, m) if n * m <= EXACT_STEPS else 0.0
    if p_value < LEAST_EXACT:
        p_value = kolmogorov_tail(math.sqrt(n * m / (n + m)) * statistic)
    return statistic, min(1.0, max(0.0, p_value))


def kolmogorov_tail(x: float) -> float:
    """P(K > x) of Kolmogorov's distribution, to which sqrt(nm/(n+m)) D converges.

    Smirnov 1948, "Table for estimating the goodness of fit": 2 Σ (-1)^(k-1) exp(-2 k² x²), and for
    a small x, where that converges slowly, the other series of the same function.
    """
    if x <= 0.0:
        return 1.0
    k = np.arange(1, 101)
    if x < 0.5:
        terms = np.exp(-np.square((2 * k - 1) * math.pi) / (8.0 * x * x))
        return float(1.0 - math.sqrt(2.0 * math.pi) / x * terms.sum())
    return float(2.0 * ((-1.0) ** (k - 1) * np.exp(-2.0 * np.square(k * x))).sum())


def _exact(steps: int, n: int, m: int) -> float:
    """P(n m D ≥ steps): of lattice paths from (0, 0) to (n, m), the share that touches |i m - j n|
    ≥ steps. Hodges 1958, "The significance probability of the Smirnov two-sample test"."""
    if steps == 0:
        return 1.0
    j = np.arange(m + 1)
    inside = (j * n < steps).astype(np.float64)  # paths to (0, j), straight up
    inside = np.cumprod(inside)
    scale = 0.0
    for i in range(1, n + 1):
        # Paths to (i, j) are those to (i - 1, j) and to (i, j - 1).
        first = max(0, -(-(i * m - steps + 1) // n))
        last = min(m, (i * m + steps - 1) // n)
        if first > last:
            return 1.0
        row = np.zeros(m + 1)
        row[first : last + 1] = np.cumsum(inside[first : last + 1])
        largest = row[last]
        if largest == 0.0:
            return 1.0
        if largest > 1e200:
            row /= largest
            scale += math.log(largest)
        inside = row
    all_paths = math.lgamma(n + m + 1) - math.lgamma(n + 1) - math.lgamma(m + 1)
    if inside[m] == 0.0:
        return 1.0
    return -math.expm1(math.log(inside[m]) + scale - all_paths)
