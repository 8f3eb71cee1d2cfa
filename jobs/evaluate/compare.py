"""compare: two bundles on the same test images, in pairs, with intervals.

Of what `evaluate` published; nothing is computed by a model, so it needs no torch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

from jobs.evaluate.paired_rows import Side, sides
from jobs.evaluate.results import MEANS, METRICS, few_note, is_by_measure
from jobs.lake.paths import LakePaths
from vae_core.scores.names import SCORES
from vae_core.stats.aggregate_posterior import active_units
from vae_core.stats.bootstrap import Interval, Statistic, difference, intervals, mean
from vae_core.stats.ranking import Ranking


@dataclasses.dataclass(frozen=True)
class Difference:
    """difference: second - first, on the images of both; low, high: its interval, None without.

    comparable: whether both numbers mean the same; else the note says why not. rarer: of AUROC,
    how many images are of the kind that fewer are of, anomalous or normal.
    """

    metric: str
    of: str | None
    first: float | None
    second: float | None
    difference: float | None
    low: float | None
    high: float | None
    unit: str
    better: str
    images: int
    note: str | None
    comparable: bool = True
    rarer: int | None = None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """first, second: MODEL@VERSION. images: of the test split of the dataset, that both have."""

    first: str
    second: str
    dataset: str
    images: int
    differences: list[Difference]


def compare(
    lake: LakePaths,
    first: str,
    second: str,
    dataset: str | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Each metric that either bundle has, of the test images that both were evaluated on.

    first, second: NAME[@VERSION|@ALIAS]. dataset: if None, the one that both were evaluated on.
    Raises InputError where one has not been evaluated, or they share no image.
    """
    one, other = sides(lake, first, second, dataset)
    pairs = list(_pairs(one, other))
    statistics: dict[tuple[int, int], Statistic] = {}
    for number, pair in enumerate(pairs):
        both = [s for s in (pair.first, pair.second) if s is not None]
        statistics |= {
            (number, place): statistic
            for place, statistic in enumerate((pair.first, pair.second))
            if statistic is not None
        }
        if len(both) == 2:
            statistics[number, 2] = difference(*both)
    found = intervals(
        statistics, len(one.rows), resamples=resamples, confidence=confidence, seed=seed
    )
    differences = [
        _difference(pair, [found.get((number, place)) for place in range(3)], one, other)
        for number, pair in enumerate(pairs)
    ]
    return Comparison(one.name, other.name, one.dataset, len(one.rows), differences)


@dataclasses.dataclass(frozen=True)
class _Pair:
    """The same metric of both; None where one has no such number. images: that it stands on."""

    metric: str
    of: str | None
    first: Statistic | None
    second: Statistic | None
    images: int
    rarer: int | None = None


def _pairs(first: Side, second: Side) -> Iterator[_Pair]:
    yield from _means(first, second, MEANS)
    one, other = active_units(first.codes_ND), active_units(second.codes_ND)
    yield _Pair("active_units", None, one, other, len(first.rows))
    yield from _means(first, second, ["probe_right"])
    anomalous = _anomalous(first, second)
    known = anomalous[~np.isnan(anomalous)]
    if len(set(known)) < 2:
        return
    rarer = int(min(known.sum(), (1.0 - known).sum()))
    for score in SCORES:
        if score in first.judged or score in second.judged:
            one, other = (
                Ranking.of(side.numbers(score), anomalous).auroc if score in side.judged else None
                for side in (first, second)
            )
            yield _Pair("auroc", score, one, other, len(known), rarer)


def _means(first: Side, second: Side, columns: list[str] | tuple[str, ...]) -> Iterator[_Pair]:
    for column in columns:
        values = [side.numbers(column) for side in (first, second)]
        has = [~np.isnan(one) for one in values]
        if not any(mask.any() for mask in has):
            continue
        if all(mask.any() for mask in has):
            shared = has[0] & has[1]
            values = [np.where(shared, one, np.nan) for one in values]
        one, other = (mean(v) if mask.any() else None for v, mask in zip(values, has, strict=True))
        images = int((~np.isnan(values[0]) | ~np.isnan(values[1])).sum())
        if column == "probe_right":
            yield _Pair("probe_accuracy", second.label or first.label, one, other, images)
        else:
            yield _Pair(column, None, one, other, images)


def _anomalous(first: Side, second: Side) -> np.ndarray:
    """1, 0 or NaN: as the second one's evaluation tells; the first one's, where that has not both
    kinds."""
    labels = second.numbers("is_anomaly")
    both = {0.0, 1.0} <= set(labels.tolist())
    return labels if both else first.numbers("is_anomaly")


def _difference(pair: _Pair, found: list[Interval | None], first: Side, second: Side) -> Difference:
    one, other, gap = found
    # A count of dimensions moves in jumps: resamples tell little of it.
    ends = gap if pair.metric != "active_units" else None
    return Difference(
        metric=pair.metric,
        of=pair.of,
        first=_value(one and one.value),
        second=_value(other and other.value),
        difference=_value(gap and gap.value),
        low=_value(ends and ends.low),
        high=_value(ends and ends.high),
        unit=METRICS[pair.metric].unit,
        better=METRICS[pair.metric].better,
        images=pair.images,
        note="; ".join(_notes(pair, first, second)) or None,
        comparable=first.measure == second.measure or not is_by_measure(pair.metric),
        rarer=pair.rarer,
    )


def _notes(pair: _Pair, first: Side, second: Side) -> Iterator[str]:
    metric = pair.metric
    if pair.first is None or pair.second is None:
        yield f"{(first if pair.first is None else second).name} has none"
    if is_by_measure(metric) and first.measure != second.measure:
        measures = f"{first.measure} against {second.measure}"
        yield f"of different likelihoods ({measures}): the numbers cannot be compared"
    if metric == "log_likelihood" and first.each("samples") != second.each("samples"):
        yield "of different numbers of samples, of which more tighten the bound"
    if metric == "probe_accuracy" and first.label != second.label:
        yield f"of different columns: {first.label} and {second.label}"
    if metric == "auroc" and not first.rows["is_anomaly"].equals(second.rows["is_anomaly"]):
        yield "evaluated by different anomaly columns: by one of them for both"
    if first.each("images_version") != second.each("images_version"):
        yield "evaluated on different snapshots: of the images that both have"
    few = few_note(pair.images)
    if few is not None and metric != "active_units":  # which has no interval
        yield few


def _value(value: np.ndarray | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
