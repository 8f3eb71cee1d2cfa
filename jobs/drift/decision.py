"""Whether a night's images come from elsewhere: one decision of all tests, and where it lies.

A function of two sides' numbers and of the rule alone. Nothing is read or written.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np

from jobs.drift.samples import Refusals, Sample, Sides
from jobs.drift.settings import DriftRule
from vae_core.stats.tails import fisher_exact, labellings, smallest_shift
from vae_core.stats.two_sample import TESTS, TwoSample, two_sample

OF_IMAGES = 0.9  # of a night's alpha for the tests of images, where refusals have one of their own
TOLD = 20  # dimensions at most
TOLD_P = 0.05  # adjusted, of a dimension that is reported
ENOUGH = 10  # images of a side a dimension, for the chi-square to stand for Hotelling's F
POWER = 0.8
LEAST_WAYS = 8.0  # labellings in a night's level, at least: permutations are drawn with repetition
UNITS = {
    "hotelling": "standard deviations",
    "mmd": "kernel norm",
    "classifier": "AUROC",
    "ks": "share of images",
    "fisher": "share of blocks",
}


@dataclasses.dataclass(frozen=True)
class Decision:
    """p_value, drifted: null where nothing was tested. rows: of the table, the combined one first,
    without whose they are."""

    p_value: float | None
    drifted: bool | None
    note: str
    rows: list[dict[str, Any]]


def decide(sides: Sides, rule: DriftRule) -> Decision:
    """Hold arrivals against the reference; drifted where p_value ≤ rule.level.

    One p-value of all tests of images (see vae_core.stats.two_sample) and one of the refusals are
    combined by Bonferroni's inequality, in unequal shares; and so are the nights: each may
    spend rule.level = alpha / nights, so that among that many nights in a row any false alarm at
    all has a chance of at most alpha. At defaults: at most one month in twenty has one.
    """
    samples = {name: _varying(sample) for name, sample in sides.samples.items()}
    samples = {name: sample for name, sample in samples.items() if sample.columns}
    share = OF_IMAGES if sides.refusals is not None else 1.0
    why_not = _why_not(sides, samples, rule, share)
    if why_not is not None:
        return _told(sides, rule, None, " ".join([why_not, *_sentences(sides.notes)]), [])
    found = two_sample(
        {name: (sample.arrivals_ND, sample.reference_ND) for name, sample in samples.items()},
        seed=rule.seed,
        arrival_blocks_N=sides.arrival_blocks_N,
        reference_blocks_N=sides.reference_blocks_N,
        relabellings=max(rule.relabellings, math.ceil(1.0 / (share * rule.level))),
    )
    rows = _rows_of_tests(found) + _rows_of_dimensions(found, samples)
    p_value = found.p_value / share
    if sides.refusals is not None:
        refusals = _row_of_refusals(sides.refusals)
        p_value = min(p_value, refusals["p_value"] / (1.0 - share))
        rows.append(refusals)
    notes = [*sides.notes, _power(sides, samples, rule.level * share)]
    return _told(sides, rule, min(1.0, p_value), " ".join(_sentences(notes)), rows)


def _sentences(notes: list[str]) -> list[str]:
    return [f"{note[0].upper()}{note[1:]}." for note in notes if note]


def _why_not(sides: Sides, samples: dict[str, Sample], rule: DriftRule, share: float) -> str | None:
    """Why nothing is tested; None where it can be."""
    few = min(sides.arrivals, sides.reference)
    if few < rule.least_images:
        return (
            f"Not tested: {sides.arrivals:,} images have arrived, and the reference (the test "
            f"split of the model's snapshot) has {sides.reference:,}, without those that both "
            f"have; a test takes {rule.least_images:,} of each."
        )
    if not samples:
        return "Not tested: all numbers of the images are the same on both sides."
    ours, theirs = (len(np.unique(b)) for b in (sides.arrival_blocks_N, sides.reference_blocks_N))
    level = share * rule.level
    if _can_tell(ours, theirs, level):
        return None
    each = next(count for count in itertools.count(2) if _can_tell(count, count, level))
    way = (
        f"{each * rule.block_images:,} images of each, in blocks of {rule.block_images}, or "
        "smaller blocks (--block-images)"
        if rule.block_by is None
        else f"{each} values of {rule.block_by} on each side, or another --block-by"
    )
    return (
        f"Not tested: {ours} blocks of arrivals and {theirs} of the reference give no p-value that "
        f"is surely below the {level:.2g} that a night may spend: it takes {way}."
    )


def _can_tell(ours: int, theirs: int, level: float) -> bool:
    """Whether the strongest labelling there is stays below the level though it is drawn again."""
    return min(ours, theirs) > 1 and labellings(ours, theirs) * level >= LEAST_WAYS


def _varying(sample: Sample) -> Sample:
    both_ND = np.concatenate([sample.arrivals_ND, sample.reference_ND])
    if not len(both_ND):
        return Sample([], sample.arrivals_ND, sample.reference_ND)
    kept_D = both_ND.min(axis=0) < both_ND.max(axis=0)
    names = [name for name, kept in zip(sample.columns, kept_D, strict=True) if kept]
    return Sample(names, sample.arrivals_ND[:, kept_D], sample.reference_ND[:, kept_D])


def _power(sides: Sides, samples: dict[str, Sample], level: float) -> str:
    """Return what the least favoured of the tests finds, were the images independent."""
    name = "embeddings" if "embeddings" in samples else next(iter(samples))
    dimensions = len(samples[name].columns)
    if min(sides.arrivals, sides.reference) < ENOUGH * dimensions:
        return f"what so few images of {name} of {dimensions} dimensions show is not known"
    each = level / (len(samples) * len(TESTS))
    shift = smallest_shift(sides.arrivals, sides.reference, dimensions, each, POWER)
    return (
        f"a shift of the mean of {name} by about {shift:.2f} standard deviations is found in "
        f"{POWER:.0%} of nights with so many independent images"
    )


def _told(
    sides: Sides, rule: DriftRule, p_value: float | None, note: str, rows: list[dict[str, Any]]
) -> Decision:
    drifted = None if p_value is None else p_value <= rule.level
    combined = {"test": "combined", "p_value": p_value, "drifted": drifted, "note": note}
    common = {"arrivals": sides.arrivals, "reference": sides.reference, "alpha": rule.level}
    return Decision(p_value, drifted, note, [row | common for row in [combined, *rows]])


def _rows_of_tests(found: TwoSample) -> list[dict[str, Any]]:
    return [
        {
            "test": test,
            "sample": name,
            "p_value": p_value,
            "effect": family.effects[test],
            "effect_unit": UNITS[test],
        }
        for name, family in found.families.items()
        for test, p_value in family.tests.items()
    ]


def _rows_of_dimensions(found: TwoSample, samples: dict[str, Sample]) -> list[dict[str, Any]]:
    rows = [
        {
            "test": "ks",
            "sample": name,
            "of": column,
            "p_value": float(p_value),
            "effect": float(effect),
            "effect_unit": UNITS["ks"],
        }
        for name, family in found.families.items()
        for column, p_value, effect in zip(
            samples[name].columns, family.ks_p_D, family.ks_D, strict=True
        )
        if p_value <= TOLD_P
    ]
    return sorted(rows, key=lambda row: -row["effect"])[:TOLD]


def _row_of_refusals(refusals: Refusals) -> dict[str, Any]:
    now = refusals.refused / refusals.blocks
    before = refusals.refused_before / refusals.blocks_before
    p_value = fisher_exact(
        refusals.refused, refusals.blocks, refusals.refused_before, refusals.blocks_before
    )
    return {
        "test": "fisher",
        "sample": "source",
        "of": "refused",
        "p_value": p_value,
        "effect": now - before,
        "effect_unit": UNITS["fisher"],
        "note": f"{now:.1%} of blocks of source rows have a refused one, {before:.1%} before",
    }
