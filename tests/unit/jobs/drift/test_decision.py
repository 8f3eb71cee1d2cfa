"""The decision: false alarms and power by simulation, through the functions that the job uses."""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from scipy import ndimage, stats

from jobs.drift.decision import Decision, decide
from jobs.drift.features import pixel_columns
from jobs.drift.samples import Refusals, Sample, Sides, runs
from jobs.drift.settings import DriftRule
from jobs.errors import InputError
from jobs.settings import build
from tests.helpers import image_bytes, labels
from tests.rounds import sampled

NIGHTS = sampled(240)
LEVEL = 0.1
SIDE = 8  # of synthetic images
LATENT = 3


def rule(**settings) -> DriftRule:
    """One night, few relabellings."""
    told = {"alpha": LEVEL, "nights": 1, "relabellings": 99, "least_images": 10}
    return DriftRule(**told | settings)


def pixels(images_NHW: np.ndarray) -> dict[str, np.ndarray]:
    height, width = images_NHW.shape[1:]
    data = [image.tobytes() for image in images_NHW]
    column = pa.chunked_array([pa.array(data, pa.binary(height * width))])
    return pixel_columns(column, (height, width, 1))


def sides(
    arrivals_NHW: np.ndarray,
    reference_NHW: np.ndarray,
    encode: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    block: int,
    refusals: Refusals | None = None,
) -> Sides:
    """What the job makes of images. encode: to embeddings and scores."""
    pairs = [(*encode(x), pixels(x)) for x in (arrivals_NHW, reference_NHW)]
    (z, s, looks), (z0, s0, looks0) = pairs
    tables = [np.column_stack(list(each.values())) for each in (looks, looks0)]
    samples = {
        "embeddings": Sample([str(d) for d in range(z.shape[1])], z, z0),
        "scores": Sample([str(d) for d in range(s.shape[1])], s, s0),
        "pixels": Sample(list(looks), *tables),
    }
    blocks = [runs(len(x), block) for x in (arrivals_NHW, reference_NHW)]
    return Sides(len(z), len(z0), samples, *blocks, refusals)


def synthetic(
    generator: np.random.Generator, latents_ND: np.ndarray, light_N: np.ndarray
) -> np.ndarray:
    """Smooth pictures of a few directions, with a light and noise."""
    across = np.linspace(-1, 1, SIDE)
    basis = np.stack([np.outer(np.cos(d * across), np.sin(d + across)) for d in range(LATENT)])
    clean_NHW = np.tensordot(latents_ND, basis, axes=1) + light_N[:, None, None]
    noise_NHW = generator.standard_normal(clean_NHW.shape)
    return np.clip(128 + 30 * clean_NHW + 8 * noise_NHW, 0, 255).astype(np.uint8)


def side(generator: np.random.Generator, count: int, block: int) -> np.ndarray:
    """Images whose light is that of their block; each its own where a block is one."""
    light_N = 1.5 * np.repeat(generator.standard_normal(-(-count // block)), block)[:count]
    return synthetic(generator, generator.standard_normal((count, LATENT)), light_N)


def encoder(generator: np.random.Generator) -> Callable:
    """A model of training images that are drawn anew: their principal directions."""
    train_NP = side(generator, 60, 1).reshape(60, -1) / 255.0
    mean_P = train_NP.mean(axis=0)
    axes_DP = np.linalg.svd(train_NP - mean_P, full_matrices=False)[2][:4]

    def encode(images_NHW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x_NP = images_NHW.reshape(len(images_NHW), -1) / 255.0 - mean_P
        z_ND = x_NP @ axes_DP.T
        mse_N = np.square(x_NP - z_ND @ axes_DP).mean(axis=1)
        return z_ND, np.column_stack([mse_N, np.square(z_ND).sum(axis=1)])

    return encode


def clean_night(seed: int, block: int, length: int) -> Decision:
    """Training, reference, arrivals and refusals drawn anew. block: that images share their light
    in; length: that the rule takes together."""
    generator = np.random.default_rng(seed)
    refused, before = generator.binomial([30, 200], 0.05).tolist()
    drawn = (side(generator, count, block) for count in (48, 64))
    told = sides(*drawn, encoder(generator), length, Refusals(refused, 30, before, 200))
    return decide(told, rule(seed=seed))


def interval(rate: float, count: int) -> tuple[float, float]:
    """In which the share of `count` tries lies but once in a thousand."""
    low, high = stats.binom.interval(0.999, count, rate)
    return low / count, high / count


@pytest.mark.slow
@pytest.mark.parametrize("block", [1, 8])
def test_clean_nights_alarm_as_often_as_was_said(block: int) -> None:
    """The refusals' tenth of the level is rarely all spent: their counts are small."""
    alarms = [clean_night(seed, block, block).drifted for seed in range(NIGHTS)]
    low = interval(0.8 * LEVEL, NIGHTS)[0]
    assert low <= np.mean(alarms) <= interval(LEVEL, NIGHTS)[1]


@pytest.mark.slow
def test_images_that_share_their_light_alarm_where_they_are_not_moved_together() -> None:
    """So the test above would fail without blocks."""
    assert np.mean([clean_night(seed, 8, 1).drifted for seed in range(60)]) > 0.4


@functools.cache
def clothing() -> tuple[np.ndarray, np.ndarray]:
    """Pixels and kinds of the sample's images."""
    images = [np.array(Image.open(io.BytesIO(data))) for data in image_bytes(range(10_000))]
    return np.stack(images), np.array(labels(range(10_000)))


def brighter(x_NHW: np.ndarray) -> np.ndarray:
    return np.clip(np.round(x_NHW * 1.05), 0, 255).astype(np.uint8)


def blurred(x_NHW: np.ndarray) -> np.ndarray:
    return ndimage.gaussian_filter(x_NHW.astype(float), (0, 0.7, 0.7)).round().astype(np.uint8)


def with_a_dead_column(x_NHW: np.ndarray) -> np.ndarray:
    return np.concatenate(
        [x_NHW[:, :, :14], np.zeros_like(x_NHW[:, :, :1]), x_NHW[:, :, 15:]], axis=2
    )


UNSEEN = 9  # of the kinds
MODEL_IMAGES = 2500


@functools.cache
def principal() -> Callable:
    """A closed-form model of nine kinds, by sixteen principal directions."""
    images, kinds = clothing()
    seen = images[:MODEL_IMAGES][kinds[:MODEL_IMAGES] != UNSEEN]
    train_NP = seen.reshape(len(seen), -1) / 255.0
    mean_P = train_NP.mean(axis=0)
    axes_DP = np.linalg.svd(train_NP - mean_P, full_matrices=False)[2][:16]
    variance_D = ((train_NP - mean_P) @ axes_DP.T).var(axis=0)

    def encode(x_NHW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x_NP = x_NHW.reshape(len(x_NHW), -1) / 255.0 - mean_P
        z_ND = x_NP @ axes_DP.T
        mse_N = np.square(x_NP - z_ND @ axes_DP).mean(axis=1)
        return z_ND, np.column_stack([mse_N, (np.square(z_ND) / variance_D).sum(axis=1)])

    return encode


def real_night(seed: int, count: int, change: Callable | None, unseen: int = 0) -> Sides:
    """count: images a side, drawn anew. unseen: images of a kind that the model never saw."""
    generator = np.random.default_rng(seed)
    images, kinds = clothing()
    rest = np.arange(MODEL_IMAGES, len(images))
    rows = generator.choice(rest[kinds[rest] != UNSEEN], 2 * count, replace=False)
    new = generator.choice(rest[kinds[rest] == UNSEEN], unseen, replace=False)
    arrivals = images[generator.permutation(np.concatenate([rows[: count - unseen], new]))]
    arrivals = change(arrivals) if change is not None else arrivals
    return sides(arrivals, images[rows[count:]], principal(), 16)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "sample"),
    [(brighter, "pixels"), (blurred, "embeddings"), (with_a_dead_column, "embeddings")],
)
def test_a_changed_camera_is_found_at_the_level_of_one_night_in_thirty(
    change: Callable, sample: str
) -> None:
    """Power found: brightness +5% 0.9, blur 1.0, a dead column 1.0, of 300 images a side."""
    found = [decide(real_night(seed, 300, change), DriftRule()) for seed in range(8)]
    assert np.mean([one.drifted for one in found]) >= 0.7
    rows = [row for one in found if one.drifted for row in one.rows]
    assert sample in {row.get("sample") for row in rows if row["p_value"] <= 0.001}
    if change is brighter:
        named = {row["of"] for row in rows if row.get("of")}
        assert named & {"brightness", "bright", "contrast"}


@pytest.mark.slow
def test_a_new_kind_of_one_in_twenty_is_found_where_one_night_may_spend_it_all() -> None:
    """Power found: 0.8 at 5% a night, of 1,000 images a side; at the level of one night in thirty
    0.2, and of 3,000 a side (`max_images`) 1.0: 50 images of 1,000, many like others, are little.
    """
    told = rule(alpha=0.05, relabellings=199)
    found = [decide(real_night(seed, 1000, None, unseen=50), told) for seed in range(12)]
    assert np.mean([one.drifted for one in found]) >= 0.45
    half = [decide(real_night(seed, 300, None, unseen=60), told) for seed in range(8)]
    assert np.mean([one.drifted for one in half]) >= 0.6  # one in five


def small(seed: int = 0, shift: float = 0.0, refusals: Refusals | None = None) -> Sides:
    generator = np.random.default_rng(seed)
    x, y = generator.standard_normal((60, 3)) + shift, generator.standard_normal((80, 3))
    samples = {"embeddings": Sample(["0", "1", "2"], x, y)}
    return Sides(60, 80, samples, np.arange(60), np.arange(80), refusals)


def test_refusals_decide_alone_and_cost_the_images_a_tenth_of_the_level() -> None:
    clean = decide(small(), rule())
    usual = decide(small(refusals=Refusals(1, 20, 10, 200)), rule())
    assert usual.p_value is not None
    assert clean.p_value is not None
    assert usual.p_value == pytest.approx(min(1.0, clean.p_value / 0.9))
    (row,) = [row for row in usual.rows if row["test"] == "fisher"]
    assert row["p_value"] == pytest.approx(stats.fisher_exact([[1, 19], [10, 190]])[1])
    many = decide(small(refusals=Refusals(15, 20, 10, 200)), rule())
    assert many.drifted
    known = stats.fisher_exact([[15, 5], [10, 190]])[1]
    assert many.p_value == pytest.approx(known * 10.0)


def test_a_night_says_what_shift_it_could_show() -> None:
    told = r"by about 0\.\d\d standard deviations is found in 80% of nights"
    assert re.search(told, decide(small(), rule()).note)


def test_drift_can_be_found_with_the_fewest_relabellings_that_the_rule_allows() -> None:
    tight = DriftRule(alpha=0.05, nights=5, relabellings=99, least_images=10)
    found = decide(small(shift=2.0, refusals=Refusals(1, 20, 10, 200)), tight)
    assert found.p_value is not None
    assert found.p_value <= tight.level
    assert found.drifted


def test_dimensions_that_do_not_vary_drop_out() -> None:
    x, y = np.random.default_rng(1).standard_normal((2, 60, 2))
    still = np.ones((60, 1))
    blocks = np.arange(60)
    samples = {
        "embeddings": Sample(
            ["a", "still", "b"], *(np.c_[v[:, :1], still, v[:, 1:]] for v in (x, y))
        ),
        "scores": Sample(["still"], still, still),
        "source": Sample([], np.zeros((60, 0)), np.zeros((60, 0))),
    }
    found = decide(Sides(60, 60, samples, blocks, blocks), rule())
    alone = {"embeddings": Sample(["a", "b"], x, y)}
    assert found.p_value == decide(Sides(60, 60, alone, blocks, blocks), rule()).p_value
    assert {row.get("sample") for row in found.rows} == {None, "embeddings"}
    nothing = {"scores": Sample(["still"], still, still)}
    told = decide(Sides(60, 60, nothing, blocks, blocks), rule())
    assert told.drifted is None
    assert "the same on both sides" in told.note


def test_what_cannot_be_tested_is_told_in_a_sentence() -> None:
    told = decide(Sides(0, 0, notes=["the model has embedded no images"]), DriftRule())
    assert (told.p_value, told.drifted) == (None, None)
    assert told.note.startswith("Not tested: 0 images have arrived")
    assert told.note.endswith("The model has embedded no images.")
    (row,) = told.rows
    assert (row["test"], row["arrivals"], row["reference"]) == ("combined", 0, 0)
    emptied = decide(Sides(100, 0), DriftRule())
    assert "test split of the model's snapshot) has 0" in emptied.note
    few = decide(small(), DriftRule(least_images=70))
    assert "a test takes 70 of each" in few.note


def test_runs_are_even_neighbours() -> None:
    for count, length in ((0, 4), (3, 4), (7, 4), (1000, 16), (48, 16), (5, 1)):
        of_N = runs(count, length)
        assert len(of_N) == count
        assert (np.diff(of_N) >= 0).all()
        sizes = np.bincount(of_N) if count else np.array([], int)
        assert len(sizes) == (max(1, count // length) if count else 0)
        assert not count or sizes.max() - sizes.min() <= 1


def test_at_most_twenty_dimensions_are_told_the_most_changed_first() -> None:
    x, y = np.random.default_rng(2).standard_normal((2, 60, 30))
    samples = {"embeddings": Sample([str(d) for d in range(30)], x + np.arange(30) / 10, y)}
    rows = decide(Sides(60, 60, samples, np.arange(60), np.arange(60)), rule()).rows
    told = [row for row in rows if row.get("of")]
    assert len(told) == 20
    assert told[0]["effect"] == max(row["effect"] for row in told)
    assert min(row["effect"] for row in told) > 0.3


def test_permutations_are_what_configs_called_relabellings() -> None:
    named = build(DriftRule, {"permutations": 2500})
    assert named == build(DriftRule, {"relabellings": 2500})
    with pytest.raises(InputError, match="give one of them"):
        build(DriftRule, {"permutations": 2500, "relabellings": 2500})
