"""Bootstrap over images: percentile intervals of any statistic, many of them on one set of draws.

Efron & Tibshirani 1993, "An introduction to the bootstrap", chapters 6 and 13. A resample is a row
of counts, how often it has each image, so that a statistic of all resamples is a few products of
matrices, and two statistics of the same counts are paired.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import TypeVar

import numpy as np

K = TypeVar("K", bound=Hashable)
# Counts (R, N) to values (R,) or (R, M); NaN where a resample has none.
Statistic = Callable[[np.ndarray], np.ndarray]
# Of two samples: counts (R, N) and (R, M) to values (R,).
OfTwo = Callable[[np.ndarray, np.ndarray], np.ndarray]

COUNTS_AT_ONCE = 1 << 21


@dataclasses.dataclass(frozen=True)
class Interval:
    """value: of the images themselves. Each of the shape of the statistic: () or (M,)."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def split(self) -> list[Interval]:
        """One of each of M values."""
        return [Interval(*one) for one in zip(self.value, self.low, self.high, strict=True)]


def intervals(
    statistics: Mapping[K, Statistic],
    images: int,
    *,
    resamples: int,
    confidence: float,
    seed: int,
) -> dict[K, Interval]:
    """Return the statistics of N images with their percentile intervals; NaN where there is no
    value.

    The same draws for all statistics, and for every call with as many images and the same seed.
    """
    drawn: dict[K, list[np.ndarray]] = {name: [] for name in statistics}
    with np.errstate(invalid="ignore", divide="ignore"):
        for counts_RN in _counts(images, resamples, seed):
            for name, statistic in statistics.items():
                drawn[name].append(statistic(counts_RN))
        ones = np.ones((1, images))
        values = {name: statistic(ones)[0] for name, statistic in statistics.items()}
    tail = (1.0 - confidence) / 2.0
    found = {}
    for name, parts in drawn.items():
        low, high = _quantiles(np.concatenate(parts), [tail, 1.0 - tail])
        found[name] = Interval(np.asarray(values[name]), low, high)
    return found


def interval_of_two(
    statistic: OfTwo, first: int, second: int, *, resamples: int, confidence: float, seed: int
) -> Interval:
    """Return the statistic of two samples, of so many each, where both are drawn anew, each by
    itself.

    For a number that would be another one with another second sample, too. Efron & Tibshirani
    1993, section 8.3.
    """
    at_once = max(1, COUNTS_AT_ONCE // max(1, first, second))
    both = zip(
        _counts(first, resamples, seed, at_once),
        _counts(second, resamples, [seed, 1], at_once),
        strict=True,
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        drawn_R = np.concatenate([statistic(*counts) for counts in both])
        value = statistic(np.ones((1, first)), np.ones((1, second)))[0]
    tail = (1.0 - confidence) / 2.0
    return Interval(np.asarray(value), *_quantiles(drawn_R, [tail, 1.0 - tail]))


def _counts(
    images: int, resamples: int, seed: int | list[int], at_once: int | None = None
) -> Iterator[np.ndarray]:
    generator = np.random.default_rng(seed)
    at_once = at_once or max(1, COUNTS_AT_ONCE // max(1, images))
    for start in range(0, resamples, at_once):
        rows = min(at_once, resamples - start)
        drawn = generator.integers(0, images, (rows, images))
        flat = drawn + images * np.arange(rows)[:, None]
        counts = np.bincount(flat.ravel(), minlength=rows * images)
        yield counts.reshape(rows, images).astype(np.float64)


def _quantiles(values_R: np.ndarray, shares: list[float]) -> tuple[np.ndarray, np.ndarray]:
    known = ~np.isnan(values_R).all(axis=0)
    low, high = np.full((2, *values_R.shape[1:]), np.nan)
    if known.ndim == 0:
        return tuple(np.nanquantile(values_R, shares)) if known else (low, high)  # type: ignore[return-value]
    if known.any():
        low[known], high[known] = np.nanquantile(values_R[:, known], shares, axis=0)
    return low, high


def mean(values: np.ndarray) -> Statistic:
    """Of (N,) or (N, M); NaN is no value, and left out."""
    known = ~np.isnan(values)
    filled, present = np.where(known, values, 0.0), known.astype(np.float64)
    return lambda counts_RN: (counts_RN @ filled) / (counts_RN @ present)


def median(values_N: np.ndarray) -> Statistic:
    """NaN is no value, and left out."""
    kept = np.flatnonzero(~np.isnan(values_N))
    order = kept[np.argsort(values_N[kept], kind="stable")]
    sorted_N = values_N[order]

    def statistic(counts_RN: np.ndarray) -> np.ndarray:
        upto_RN = np.cumsum(counts_RN[:, order], axis=1)
        if not len(order):
            return np.full(len(counts_RN), np.nan)
        total_R = upto_RN[:, -1]
        middle = [np.floor((total_R - 1) / 2), np.floor(total_R / 2)]
        places = [(upto_RN <= rank[:, None]).sum(axis=1) for rank in middle]
        halves = [sorted_N[np.minimum(place, len(order) - 1)] for place in places]
        return np.where(total_R > 0, (halves[0] + halves[1]) / 2.0, np.nan)

    return statistic


def difference(first: Statistic, second: Statistic) -> Statistic:
    """second - first, of the same resampled images: a paired difference."""
    return lambda counts_RN: second(counts_RN) - first(counts_RN)
