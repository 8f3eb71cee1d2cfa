"""Drift: what one judgement of a night costs, and which changes it finds at the level of one night.

cost: numbers of 64 latent dimensions, 8 scores and 4 of pixels, by images a side. power: shares of
nights in which a change of Fashion-MNIST is found, by principal components and their scores, each
night drawn anew. Writes `.bench/drift.json`.

    python -m tests.benchmarks.bench_drift [--rounds 5] [--only cost]
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from jobs.drift_decision import decide
from jobs.drift_samples import Sample, Sides, runs
from jobs.judge_config import DriftRule
from tests.benchmarks.rounds import Round, main
from tests.unit.jobs.test_drift_decision import blurred, brighter, real_night, with_a_dead_column

WIDTHS = {"embeddings": 64, "scores": 8, "pixels": 4}
NIGHTS = 10  # a round
SEEDS = iter(range(10**6))
CHANGES: dict[str, Callable[[np.ndarray], np.ndarray] | None] = {
    "nothing": None,
    "brightness +5%": brighter,
    "blur": blurred,
    "a dead column": with_a_dead_column,
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
    told["a new kind, 10% of 1,000"] = found_in(None, 1000, 100)
    told["a new kind, 5% of 1,000"] = found_in(None, 1000, 50)
    told["a new kind, 5% of 3,000"] = found_in(None, 3000, 150)
    return told


SECTIONS: dict[str, Round] = {"cost": cost_round, "power": power_round}


if __name__ == "__main__":
    main("drift", __doc__, SECTIONS)
