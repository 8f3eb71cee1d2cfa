from __future__ import annotations

import pytest
import torch

from tests.unit.vae_core.models import images, model_of
from vae_core.model import to_unit_range
from vae_core.moments import LatentMoments, LatentSums


def test_an_image_has_the_same_terms_alone_and_in_a_batch() -> None:
    model, eps = model_of("conv").double(), torch.randn(6, 3, dtype=torch.float64)
    x = images(6).double()

    def terms(rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        posterior = model.encode(model.observe(x[rows]))
        params = model.decode(model.draw(posterior, eps[rows]))
        kl = model.kl(posterior)
        assert kl is not None
        return model.likelihood.log_prob(params, model.likelihood.scale(), x[rows]), kl

    together = terms(slice(0, 6))
    for i in range(6):
        for alone, whole in zip(terms(slice(i, i + 1)), together, strict=True):
            torch.testing.assert_close(alone[0], whole[i])


def test_the_embedding_is_the_posterior_mean_and_never_a_sample() -> None:
    model, x = model_of(), images(4)
    first, again = model.encode(model.observe(x)), model.encode(model.observe(x))
    assert torch.equal(first.mean_ND, again.mean_ND)
    eps = torch.ones(4, 3)
    spread = torch.exp(0.5 * first.log_variance_ND)
    torch.testing.assert_close(model.draw(first, eps) - first.mean_ND, spread)


def test_samples_of_a_vae_come_from_its_prior_and_are_seeded() -> None:
    model = model_of("mlp", "bernoulli")
    drawn = model.sample(5, torch.Generator().manual_seed(1))
    assert drawn.shape == (5, 1, 8, 9)
    z = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(drawn, torch.sigmoid(model.decode(z)))


def test_a_deterministic_autoencoder_has_no_prior_and_says_what_to_do() -> None:
    model, x = model_of(posterior="deterministic"), images(50)
    posterior = model.encode(model.observe(x))
    assert posterior.log_var_ND is None
    assert model.kl(posterior) is None
    with pytest.raises(ValueError, match="no prior to sample; give the moments of its codes"):
        model.sample(3)
    with pytest.raises(ValueError, match="no variance"):
        _ = posterior.log_variance_ND
    sums = LatentSums.zeros(3)
    sums.add(posterior.mean_ND, None)
    codes = LatentMoments.fit(sums)
    assert model.sample(3, codes=codes).shape == (3, 1, 8, 9)
    drawn = codes.sample(50_000, torch.Generator().manual_seed(0))
    expected = torch.cov(posterior.mean_ND.detach().double().T, correction=0)
    torch.testing.assert_close(torch.cov(drawn.T), expected, rtol=0.05, atol=1e-4)
    torch.testing.assert_close(codes.covariance(), expected, rtol=1e-4, atol=1e-9)


def test_staged_pixels_become_floats_from_zero_to_one() -> None:
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 1, 1, 3)
    x = to_unit_range(pixels)
    assert x.shape == (1, 3, 1, 1)
    torch.testing.assert_close(x.flatten(), torch.tensor([0.0, 0.2, 1.0]))
