"""Scores on codes whose disentanglement is known by construction, and on a trained model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import mutual_info_score

from tests import sprites
from vae_core.stats.disentanglement import (
    dci,
    discretise,
    entropy,
    factor_vae,
    mig,
    mutual_information,
    sap,
)

RNG = np.random.default_rng(0)
FACTORS = sprites.random_factors(4000, RNG)
ROTATION = np.linalg.qr(RNG.normal(size=(4, 4)))[0]


def perfect(factors: np.ndarray) -> np.ndarray:
    """One code for each factor, in another order and scale, and two of noise."""
    noise = 0.01 * np.random.default_rng(1).normal(size=(len(factors), 2))
    return np.concatenate([factors[:, ::-1] * [1.0, -2.0, 0.5, 3.0], noise], axis=1)


def mixed(factors: np.ndarray) -> np.ndarray:
    scaled = factors / np.array(sprites.SIZES)
    return (scaled - 0.5) @ ROTATION


def voter(codes_of):
    def encode(count: int, generator: np.random.Generator) -> tuple[np.ndarray, int]:
        factors = sprites.random_factors(count, generator)
        held = int(generator.integers(0, 4))
        factors[:, held] = factors[0, held]
        return codes_of(factors), held

    return encode


def test_perfect_codes_have_perfect_scores() -> None:
    codes = perfect(FACTORS)
    assert mig(codes, FACTORS) > 0.97
    assert sap(codes, FACTORS) > 0.97
    found = dci(codes, FACTORS)
    assert min(found.disentanglement, found.completeness, found.informativeness) > 0.97
    assert factor_vae(voter(perfect), codes) == 1.0


def test_rotated_codes_hold_the_same_and_score_lower() -> None:
    codes = mixed(FACTORS)
    found = dci(codes, FACTORS)
    assert found.informativeness > 0.97
    assert found.disentanglement < 0.6
    assert found.completeness < 0.6
    assert mig(codes, FACTORS) < 0.3
    assert sap(codes, FACTORS) < 0.5
    assert factor_vae(voter(mixed), codes) < 1.0


def test_noise_scores_nothing() -> None:
    codes = RNG.normal(size=(4000, 5))
    assert mig(codes, FACTORS) < 0.02
    assert sap(codes, FACTORS) < 0.02
    assert dci(codes, FACTORS).informativeness < 0.02

    def encode(count: int, generator: np.random.Generator) -> tuple[np.ndarray, int]:
        return generator.normal(size=(count, 5)), int(generator.integers(0, 4))

    assert factor_vae(encode, codes) < 0.4


def test_information_is_scikit_learn_s_and_bins_hold_their_ends() -> None:
    a, b = RNG.integers(0, 5, 500), RNG.integers(0, 7, 500)
    assert mutual_information(a, b) == pytest.approx(mutual_info_score(a, b))
    assert mutual_information(a, a) == pytest.approx(entropy(a))
    found = discretise(np.array([[0.0, 1.0], [0.5, 1.0], [1.0, 1.0]]), bins=4)
    assert found.tolist() == [[0, 0], [2, 0], [3, 0]]


def test_sprites_differ_in_each_factor_and_in_nothing_else() -> None:
    factors = sprites.everything()
    pictures = sprites.draw(factors)
    assert len(np.unique(pictures.reshape(len(pictures), -1), axis=0)) > 0.98 * len(pictures)
    same = sprites.draw(np.array([[0, 1, 2, 3], [0, 1, 2, 3]]))
    assert (same[0] == same[1]).all()


@pytest.mark.slow
def test_a_trained_vae_separates_position_better_than_an_untrained_one() -> None:
    from vae_core.autoencoder import Autoencoder
    from vae_core.config import LikelihoodConfig, ModelConfig, NetworkConfig, ObjectiveConfig
    from vae_core.noise import StepNoise
    from vae_core.objectives.objectives import Objective
    from vae_core.training.step import train_step

    torch.manual_seed(0)
    factors = sprites.everything()
    x = torch.from_numpy(sprites.draw(factors))
    model = Autoencoder(
        ModelConfig(
            image_shape=(sprites.SIDE, sprites.SIDE, 1),
            latent_dim=5,
            network=NetworkConfig(kind="mlp", widths=(64, 64)),
            likelihood=LikelihoodConfig(kind="bernoulli"),
        )
    )

    def scores() -> tuple[float, float]:
        codes = model.encode(x).mean_ND.detach().numpy()
        return mig(codes, factors), dci(codes, factors).informativeness

    before = scores()
    settings = ObjectiveConfig(kind="beta_tc", beta=4.0, kl_warmup_steps=200)
    objective = Objective(model, settings, dataset_size=len(x))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for step in range(1200):
        rows = torch.randint(0, len(x), (64,), generator=generator)
        noise = StepNoise(seed=0, step=step, batch=64)
        train_step(objective, optimizer, x[rows], noise, step=step)
    after = scores()
    assert after[0] > before[0] + 0.05
    assert after[1] > before[1]


def test_too_few_codes_or_a_factor_that_never_changes_are_refused() -> None:
    codes = RNG.normal(size=(50, 1))
    factors = sprites.random_factors(50, RNG)
    for score in (mig, sap, dci):
        with pytest.raises(ValueError, match="1 code dimensions and 4 factors"):
            score(codes, factors)
        with pytest.raises(ValueError, match="factor 2 is the same in all images"):
            score(perfect(factors), factors * np.array([1, 1, 0, 1]))
