"""Drift: what one judgement of a night costs, and which changes it finds at the level of one night.

cost: numbers of 64 latent dimensions, 8 scores and 4 of pixels, by images a side. power: shares of
nights in which a change of Fashion-MNIST is found, by principal components and their scores, each
night drawn anew. level: false alarms of synthetic images where those of a block of arrivals share
their light and those of the reference do not; counts, so one round tells all (ten minutes of two
cores). Writes `.bench/drift.json`.

    python -m tests.benchmarks.bench_drift [--rounds 5] [--only cost]
    python -m tests.benchmarks.bench_drift --rounds 1 --only level
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from multiprocessing import Pool

import numpy as np

from jobs.drift.decision import decide
from jobs.drift.samples import Sample, Sides, runs
from jobs.drift.settings import DriftRule
from tests.benchmarks.rounds import Round, main
from tests.unit.jobs.drift.test_decision import (
    LATENT,
    blurred,
    brighter,
    encoder,
    real_night,
    side,
    sides,
    synthetic,
    with_a_dead_column,
)

WIDTHS = {"embeddings": 64, "scores": 8, "pixels": 4}
NIGHTS = 10  # a round
SEEDS = iter(range(10**6))
CHANGES: dict[str, Callable[[np.ndarray], np.ndarray] | None] = {
    "nothing": None,
    "brightness +5%": brighter,
    "blur": blurred,
    "a dead column": with_a_dead_column,
}
CLEAN_NIGHTS = 1500  # of a shape
BLOCK = 8  # images
LEVELS = (DriftRule().level, 0.005, 0.01, 0.02, 0.1)
# By name: images of arrivals and of the reference, and whether their lights are skewed.
SHAPES = {
    "14 blocks a side": (112, 112, False),
    "20 blocks a side": (160, 160, False),
    "60 blocks of arrivals, 14 of the reference": (480, 112, False),
    "20 blocks a side, skewed light": (160, 160, True),
}


def cost_round() -> dict[str, float]:
    """Wall seconds, on the cores that numpy takes."""
    generator = np.random.default_rng(next(SEEDS))
    found = {}
    for count in (1000, DriftRule().max_images):
        samples = {
            name: Sample(
                [str(d) for d in range(width)], *generator.standard_normal((2, count, width))
            )
            for name, width in WIDTHS.items()
        }
        sides = Sides(count, count, samples, runs(count, 16), runs(count, 16))
        started = time.perf_counter()
        decide(sides, DriftRule())
        found[f"{count:,} images a side, s"] = time.perf_counter() - started
    return found


def found_in(change: Callable | None, count: int, unseen: int = 0) -> float:
    nights = [real_night(next(SEEDS), count, change, unseen) for _ in range(NIGHTS)]
    return float(np.mean([decide(night, DriftRule()).drifted for night in nights]))


def power_round() -> dict[str, float]:
    """Shares of ten nights."""
    told = {f"{name}, 300 a side": found_in(change, 300) for name, change in CHANGES.items()}
    told["a new kind, 15% of 300"] = found_in(None, 300, 45)
    told["a new kind, 10% of 1,000"] = found_in(None, 1000, 100)
    told["a new kind, 5% of 1,000"] = found_in(None, 1000, 50)
    told["a new kind, 5% of 3,000"] = found_in(None, 3000, 150)
    return told


def in_skewed_light(generator: np.random.Generator, count: int) -> np.ndarray:
    """As `side`, but of many dark blocks and a few very bright ones."""
    light_N = 1.5 * (np.repeat(generator.exponential(size=-(-count // BLOCK)), BLOCK)[:count] - 1.0)
    return synthetic(generator, generator.standard_normal((count, LATENT)), light_N)


def clean_p_value(night: tuple[str, int]) -> float:
    """Of a night without drift, its training images, reference and arrivals drawn anew."""
    shape, seed = night
    arrivals, reference, skewed = SHAPES[shape]
    generator = np.random.default_rng([len(shape), seed])
    draw = in_skewed_light if skewed else functools.partial(side, block=BLOCK)
    pair = draw(generator, arrivals), apart(draw, generator, reference)
    told = sides(*pair, encoder(generator), BLOCK)
    p_value = decide(told, DriftRule(relabellings=599, seed=seed)).p_value
    assert p_value is not None
    return p_value


def apart(
    draw: Callable[..., np.ndarray], generator: np.random.Generator, count: int
) -> np.ndarray:
    """One image of each of as many blocks."""
    return draw(generator, count * BLOCK)[::BLOCK]


def level_round() -> dict[str, float]:
    """Alarms at some levels, counted."""
    found = {}
    with Pool(2) as pool:
        for shape in SHAPES:
            nights = [(shape, seed) for seed in range(CLEAN_NIGHTS)]
            p_values = np.array(pool.map(clean_p_value, nights, chunksize=10))
            for level in LEVELS:
                name = f"{shape}, alarms of {CLEAN_NIGHTS:,} at {level:.2g}"
                found[name] = float(np.sum(p_values <= level))
    return found


SECTIONS: dict[str, Round] = {"cost": cost_round, "power": power_round, "level": level_round}


if __name__ == "__main__":
    main("drift", __doc__, SECTIONS)
