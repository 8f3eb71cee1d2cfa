"""False alarms where the two sides' neighbours are not alike, at levels as a night spends them.

Numbers stand for images, so that thousands of nights take seconds; the benchmark `level` does the
same of images at the default level.
"""

from __future__ import annotations

import numpy as np
import pytest

from jobs.drift.decision import decide
from jobs.drift.samples import Sample, Sides, runs
from jobs.drift.settings import DriftRule
from tests.rounds import ROUNDS, sampled
from tests.unit.jobs.drift.test_decision import interval
from vae_core.stats import two_sample

NIGHTS = sampled(2600, 0.4)
LEVEL = 0.02
BLOCK = 8
FEWEST = 14  # blocks a side that a night's default level takes
RULE = DriftRule(alpha=LEVEL, nights=1, relabellings=99, least_images=10)


def side(
    generator: np.random.Generator, blocks: int, together: int
) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scores, (images, 2) each, of images of which as many share their light. One score
    is of squares, which are skewed: a few lights tell little of their mean."""
    count = blocks * BLOCK
    light_N = np.repeat(generator.standard_normal(-(-count // together)), together)[:count]
    codes_ND = 2.5 * light_N[:, None] + generator.standard_normal((count, 2))
    other_N = np.square(generator.standard_normal(count))
    return codes_ND, np.column_stack([np.square(codes_ND).mean(axis=1), other_N])


def alarms(blocks: tuple[int, int], together: tuple[int, int], nights: int = NIGHTS) -> float:
    """The share of nights without drift in which it was found."""
    found = 0
    for night in range(nights):
        generator = np.random.default_rng(night)
        (x, s), (x0, s0) = (side(generator, *of) for of in zip(blocks, together, strict=True))
        samples = {
            "embeddings": Sample(["0", "1"], x, x0),
            "scores": Sample(["0", "1"], s, s0),
        }
        own = [runs(len(z), BLOCK) for z in (x, x0)]
        rule = RULE.model_copy(update={"seed": night})
        found += bool(decide(Sides(len(x), len(x0), samples, *own), rule).drifted)
    return found / nights


@pytest.fixture
def few_waves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the classifier: they are most of the time, and say nothing about the level."""
    monkeypatch.setattr(two_sample, "WAVES", 10)


@pytest.mark.slow
def test_the_fewest_blocks_alarm_as_often_as_was_said(few_waves) -> None:
    """Also where neighbours of arrivals share their light, and those of the reference do not."""
    low, high = interval(LEVEL, NIGHTS)
    assert high < (1.5 if ROUNDS > 1 else 2.0) * LEVEL
    assert low <= alarms((FEWEST, FEWEST), (BLOCK, 1)) <= high


@pytest.mark.slow
def test_more_blocks_of_the_side_that_is_more_alike_alarm_no_more_often(few_waves) -> None:
    """As where a night brings more than the reference has."""
    nights = NIGHTS // 4
    assert alarms((3 * FEWEST, FEWEST), (BLOCK, 1), nights) <= interval(LEVEL, nights)[1]


@pytest.mark.parametrize(
    ("blocks", "needed"), [((13, 13), FEWEST), ((3, 12), FEWEST), ((14, 14), None), ((7, 40), None)]
)
def test_too_few_blocks_for_a_night_s_level_say_how_many_it_takes(blocks, needed) -> None:
    generator = np.random.default_rng(1)
    pair = [side(generator, count, 1)[0] for count in blocks]
    own = [runs(len(x), BLOCK) for x in pair]
    rule = DriftRule(block_images=BLOCK, least_images=10)
    told = decide(Sides(*map(len, pair), {"embeddings": Sample(["0", "1"], *pair)}, *own), rule)
    if needed is None:
        assert told.drifted is False
    else:
        assert told.drifted is None
        assert f"it takes {needed * BLOCK} images of each, in blocks of {BLOCK}" in told.note


def test_the_fewest_blocks_can_find_a_change() -> None:
    generator = np.random.default_rng(2)
    (x, _), (y, _) = (side(generator, FEWEST, 1) for _ in range(2))
    own = runs(len(x), BLOCK)
    samples = {"embeddings": Sample(["0", "1"], x + 20.0, y)}
    rule = DriftRule(block_images=BLOCK, least_images=10)
    assert decide(Sides(len(x), len(y), samples, own, own), rule).drifted
