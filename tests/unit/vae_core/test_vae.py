from __future__ import annotations

import itertools

import pytest
import torch
from torch.distributions import MultivariateNormal

from vae_core.config import LikelihoodConfig, ModelConfig, NetworkConfig
from vae_core.likelihoods import LIKELIHOODS
from vae_core.vae import VAE, to_unit_range

SHAPES = [(28, 28, 1), (17, 23, 3), (9, 8, 4), (8, 13, 2)]


def small(shape=(12, 12, 1), kind="conv", likelihood="gaussian", latent_dim=3) -> ModelConfig:
    return ModelConfig(
        image_shape=shape,
        latent_dim=latent_dim,
        network=NetworkConfig(kind=kind, widths=(8, 6), hidden=16),
        likelihood=LikelihoodConfig(kind=likelihood),
    )


@pytest.mark.parametrize(
    ("shape", "kind", "likelihood"),
    list(itertools.product(SHAPES, ["mlp", "conv"], LIKELIHOODS)),
)
def test_any_size_goes_through_and_every_image_has_its_elbo(shape, kind, likelihood) -> None:
    model = VAE(small(shape, kind, likelihood))
    x = to_unit_range(torch.randint(0, 256, (5, *shape), dtype=torch.uint8))
    output = model(x, torch.randn(5, 3))
    height, width, channels = shape
    per_value = model.likelihood.params_per_value
    assert output.params_NCHW.shape == (5, channels * per_value, height, width)
    assert model.reconstruct(x).shape == x.shape
    terms = model.terms(output, x)
    assert terms.recon_nll_N.shape == (5,)
    assert terms.kl_ND.shape == (5, 3)
    assert (terms.kl_ND >= 0).all()
    (terms.recon_nll_N.sum() + terms.kl_ND.sum()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    assert model.reconstruct(x).min() >= 0.0


def test_an_image_has_the_same_terms_alone_and_in_a_batch() -> None:
    model, eps = VAE(small()).double(), torch.randn(6, 3, dtype=torch.float64)
    x = torch.rand(6, 1, 12, 12, dtype=torch.float64)
    together = model.terms(model(x, eps), x)
    for i in range(6):
        alone = model.terms(model(x[i : i + 1], eps[i : i + 1]), x[i : i + 1])
        torch.testing.assert_close(alone.recon_nll_N[0], together.recon_nll_N[i])
        torch.testing.assert_close(alone.kl_ND[0], together.kl_ND[i])


def test_the_elbo_of_a_linear_gaussian_model_is_exact_at_the_true_posterior() -> None:
    """With p(x|z) = N(Wz + b, σ²) and q the exact posterior, ELBO = log p(x) (Kingma & Welling
    2014, eq. 1), whatever z is sampled: the ELBO's mean over samples is the likelihood."""
    torch.manual_seed(0)
    latent, pixels, sigma = 2, 4, 0.3
    config = ModelConfig(
        image_shape=(2, 2, 1),
        latent_dim=latent,
        likelihood=LikelihoodConfig(kind="gaussian", sigma=sigma),
        network=NetworkConfig(kind="mlp", widths=(1,)),
    )
    model = VAE(config).double()
    # Orthogonal columns make the exact posterior's covariance diagonal.
    weight = torch.linalg.qr(torch.randn(pixels, latent, dtype=torch.float64))[0]
    weight = weight * torch.tensor([0.7, 0.4], dtype=torch.float64)
    bias = torch.rand(pixels, dtype=torch.float64)
    x = torch.rand(3, 1, 2, 2, dtype=torch.float64)
    flat = x.flatten(1)
    precision = torch.eye(latent, dtype=torch.float64) + weight.T @ weight / sigma**2
    covariance = torch.linalg.inv(precision)
    mean = (flat - bias) @ weight @ covariance / sigma**2
    log_var = covariance.diagonal().log().expand(3, latent)
    likelihood = model.likelihood
    log_sigma = likelihood.scale().double()

    from vae_core.gaussian import kl_to_standard_normal, reparameterise

    total = torch.zeros(3, dtype=torch.float64)
    draws = 20_000
    eps = torch.randn(draws, 3, latent, dtype=torch.float64)
    for chunk in eps.split(1000):
        z = reparameterise(mean, log_var, chunk)
        params = (z @ weight.T + bias).reshape(-1, 1, 2, 2)
        repeated = x.expand(len(chunk), 3, 1, 2, 2).reshape(-1, 1, 2, 2)
        total += likelihood.log_prob(params, log_sigma, repeated).reshape(-1, 3).sum(0)
    elbo = total / draws - kl_to_standard_normal(mean, log_var).sum(1)
    marginal = MultivariateNormal(
        bias, weight @ weight.T + sigma**2 * torch.eye(pixels, dtype=torch.float64)
    )
    torch.testing.assert_close(elbo, marginal.log_prob(flat), rtol=0.0, atol=0.05)


def test_staged_pixels_become_floats_from_zero_to_one() -> None:
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 1, 1, 3)
    x = to_unit_range(pixels)
    assert x.shape == (1, 3, 1, 1)
    torch.testing.assert_close(x.flatten(), torch.tensor([0.0, 0.2, 1.0]))
