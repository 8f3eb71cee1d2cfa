"""Tails of distributions in closed form: what a test can find, and counts in a two-by-two table.

With numpy and the standard library alone.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np

TERMS = 2000  # of a series, at most
NEGLIGIBLE = 1e-15


def chi_square_below(x: float, degrees: float, shift: float = 0.0) -> float:
    """P(X ≤ x) of a chi-square with that non-centrality (Johnson, Kotz & Balakrishnan 1995,
    "Continuous univariate distributions 2", 29.3): central ones, weighted as Poisson counts."""
    if x <= 0:
        return 0.0
    total, seen = 0.0, 0.0
    mean = shift / 2.0
    for j in range(TERMS):
        weight = math.exp(j * math.log(mean) - mean - math.lgamma(j + 1)) if mean else float(j == 0)
        seen += weight
        if weight:
            total += weight * _gamma_below(degrees / 2.0 + j, x / 2.0)
        if j >= mean and 1.0 - seen < 1e-12:
            break
    return total


def _gamma_below(a: float, x: float) -> float:
    """Regularised lower incomplete gamma function, by its series (Abramowitz & Stegun 6.5.29)."""
    term = total = 1.0
    for n in range(1, TERMS):
        term *= x / (a + n)
        total += term
        if term < NEGLIGIBLE * total:
            break
    return min(1.0, total * math.exp(a * math.log(x) - x - math.lgamma(a + 1.0)))


@functools.lru_cache(maxsize=64)  # a simulation asks the same of each night
def smallest_shift(
    arrivals: int, reference: int, dimensions: int, level: float, power: float = 0.8
) -> float:
    """Return the shift of a mean, in standard deviations of one direction of the whitened space,
    that Hotelling's test of so many independent images finds with that power.

    T² of a shift δ is near a chi-square with D degrees of freedom and the non-centrality
    n₁n₂/(n₁ + n₂) δ² (Anderson 2003, "An introduction to multivariate statistical analysis", 5.4).
    """
    threshold = _root(lambda x: chi_square_below(x, dimensions) - (1.0 - level))
    wanted = _root(lambda s: (1.0 - power) - chi_square_below(threshold, dimensions, s))
    return math.sqrt(wanted * (1.0 / arrivals + 1.0 / reference))


def _root(rises: Callable[[float], float]) -> float:
    """Where a function that rises from below 0 crosses it, on the positive axis."""
    high = 1.0
    while rises(high) < 0 and high < 1e6:
        high *= 2.0
    low = 0.0
    for _ in range(60):
        middle = (low + high) / 2.0
        low, high = (middle, high) if rises(middle) < 0 else (low, middle)
    return high


def fisher_exact(hits: int, tries: int, other_hits: int, other_tries: int) -> float:
    """Two-sided p-value that both shares are one (Fisher 1935): of all tables with the same
    margins, those that are at most as likely as this one."""
    total = hits + other_hits
    k_K = np.arange(max(0, total - other_tries), min(total, tries) + 1)
    log_K = _log_choose(tries, k_K) + _log_choose(other_tries, total - k_K)
    likelihood_K = np.exp(log_K - log_K.max())
    own = likelihood_K[hits - k_K[0]]
    return float(likelihood_K[likelihood_K <= own * (1.0 + 1e-7)].sum() / likelihood_K.sum())


def _log_choose(n: int, k_K: np.ndarray) -> np.ndarray:
    terms = [math.lgamma(k + 1) + math.lgamma(n - k + 1) for k in k_K.tolist()]
    return math.lgamma(n + 1) - np.array(terms)


def labellings(ours: int, theirs: int) -> float:
    """How many permutations of as many blocks there are that a two-sided test can tell apart, where
    one block of the side that has fewer, and an even share of the other's, change places; infinite
    where that is beyond all use. In pairs a labelling and its opposite are one."""
    fewer, more = sorted((ours, theirs))
    if fewer < 1:
        return 1.0
    share, rest = divmod(more, fewer)
    log = (fewer - rest) * math.log(1 + share) + rest * math.log(2 + share)
    return math.exp(log) / (2.0 if ours == theirs else 1.0) if log < 700 else math.inf
