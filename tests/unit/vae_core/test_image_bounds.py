"""Scorer.bounds: log p(x) of images by their ids, the same in any company."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.unit.vae_core.scores.test_per_image import ids, pixels, scorer
from vae_core.bounds import log_likelihood
from vae_core.likelihoods.registry import LIKELIHOODS
from vae_core.model import to_unit_range
from vae_core.noise import ImageNoise, image_keys
from vae_core.scores import per_image


@pytest.mark.parametrize("likelihood", list(LIKELIHOODS))
def test_an_image_has_the_same_bound_in_any_company(likelihood: str) -> None:
    one = scorer(likelihood)
    images, names = pixels(150), ids(150)
    bound, gap = one.bounds(images, names, samples=3, seed=5)
    order = np.random.default_rng(1).permutation(150)[:23]
    some = one.bounds(images[order], [names[n] for n in order], samples=3, seed=5)
    assert np.array_equal(some[0], bound[order])
    assert np.array_equal(some[1], gap[order])
    assert (gap >= 0).all()  # log-mean-exp is at least the mean
    other = one.bounds(images[:9], names[:9], samples=3, seed=6)[0]
    assert not np.array_equal(other, bound[:9])


def test_it_is_the_bound_of_the_model_with_the_noise_of_the_image() -> None:
    one = scorer("gaussian")
    images, names = pixels(12), ids(12)
    noise = ImageNoise(seed=5, keys_N2=torch.from_numpy(image_keys(names)))
    x = to_unit_range(torch.from_numpy(images))
    known = log_likelihood(one.model, x, lambda k: noise.sample(k, 4), samples=20)
    found, gap = one.bounds(images, names, samples=20, seed=5)
    np.testing.assert_allclose(found, known.numpy(), rtol=1e-6)
    assert (gap > 0).all()
    single = one.bounds(images, names, samples=1, seed=5)
    np.testing.assert_allclose(single[1], 0.0, atol=1e-9)


def test_large_images_are_decoded_a_few_at_a_time(monkeypatch) -> None:
    one = scorer("gaussian")
    known = one.bounds(pixels(12), ids(12), samples=9, seed=5)[0]
    monkeypatch.setitem(per_image.DECODED_AT_ONCE, "cpu", 14 * 11 * 2 * 10)
    assert one._decoded_at_once() == (10, 1)
    found = one.bounds(pixels(12), ids(12), samples=9, seed=5)[0]
    np.testing.assert_allclose(found, known, rtol=1e-5)
