"""The test of data-copying: fair models, smooth ones and copiers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vae_core.stats.memorisation import copying


def drawn(count: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(count, 6, generator=generator)


def test_z_is_that_of_relabellings_by_hand() -> None:
    """Which images are the held-out ones is drawn anew; the nearest of all stays the nearest."""
    generator = torch.Generator().manual_seed(0)
    train, held, samples = drawn(80, generator), drawn(40, generator), drawn(60, generator)
    nearest = torch.cdist(samples, torch.cat([train, held])).argmin(1).unique().numpy()
    relabelled = [
        np.isin(nearest, np.random.default_rng(n).permutation(120)[:40]).sum() for n in range(4000)
    ]
    known = ((nearest >= 80).sum() - np.mean(relabelled)) / np.std(relabelled)
    found = copying(samples, train, held)
    assert found.z == pytest.approx(known, abs=0.1)
    np.testing.assert_allclose(found.distances_S, torch.cdist(samples, train).amin(1), rtol=1e-5)


@pytest.mark.parametrize("shrunk", [1.0, 0.3])
def test_of_fair_models_z_is_standard_normal_however_smooth_their_samples(shrunk: float) -> None:
    """Means of a decoder are nearer to any image: that is not copying."""
    generator = torch.Generator().manual_seed(1)
    z = [
        copying(shrunk * drawn(150, generator), drawn(200, generator), drawn(40, generator)).z
        for _ in range(400)
    ]
    assert np.mean(z) == pytest.approx(0.0, abs=0.15)
    assert np.std(z) == pytest.approx(1.0, abs=0.12)
    assert np.mean(np.array(z) < -3) < 0.01


def test_a_copier_is_found_smooth_or_not() -> None:
    generator = torch.Generator().manual_seed(2)
    train, held = drawn(2000, generator), drawn(150, generator)
    copies = train[torch.randperm(2000, generator=generator)]
    assert copying(copies + 0.05 * drawn(2000, generator), train, held).z < -3
    assert copying(0.95 * copies, train, held).z < -3


def test_a_picture_that_is_in_both_tells_nothing() -> None:
    same = torch.eye(8)
    assert np.isnan(copying(same, same, same).z)
