"""On a linear Gaussian model everything is known: log p(x), the posterior, the best bound."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from vae_core.autoencoder import Autoencoder
from vae_core.bounds import importance_weighted_bound, log_likelihood, log_weights, normal_log_prob
from vae_core.config import LikelihoodConfig, ModelConfig, NetworkConfig
from vae_core.noise import image_keys, image_noise
from vae_core.normal import LOG_VAR_LIMIT

SIGMA = 0.3


def linear_model(shift: float = 0.0) -> tuple[Autoencoder, MultivariateNormal]:
    """A VAE of two linear maps whose encoder is the exact posterior, moved by `shift`.

    And the exact distribution of its images: N(b, W Wᵀ + σ² I) (Tipping & Bishop 1999, eq. 6).
    """
    torch.manual_seed(0)
    config = ModelConfig(
        image_shape=(2, 2, 1),
        latent_dim=2,
        network=NetworkConfig(kind="mlp", widths=(1,)),
        likelihood=LikelihoodConfig(kind="gaussian", sigma=SIGMA),
    )
    model = Autoencoder(config).double()
    columns = torch.linalg.qr(torch.randn(4, 2, dtype=torch.float64))[0]
    weight = columns * torch.tensor([0.7, 0.4], dtype=torch.float64)
    bias = torch.rand(4, dtype=torch.float64)
    covariance = torch.linalg.inv(torch.eye(2, dtype=torch.float64) + weight.T @ weight / SIGMA**2)
    decoder, encoder = torch.nn.Linear(2, 4).double(), torch.nn.Linear(4, 4).double()
    with torch.no_grad():
        model.likelihood.get_parameter("raw_log_sigma").fill_(math.log(SIGMA))
        decoder.weight.copy_(weight)
        decoder.bias.copy_(bias)
        to_mean = covariance @ weight.T / SIGMA**2
        log_var = covariance.diagonal().log() + shift
        raw = LOG_VAR_LIMIT * torch.atanh(log_var / LOG_VAR_LIMIT)
        encoder.weight.copy_(torch.cat([to_mean, torch.zeros(2, 4, dtype=torch.float64)]))
        encoder.bias.copy_(torch.cat([shift - to_mean @ bias, raw]))
    model.encoder = torch.nn.Sequential(torch.nn.Flatten(), encoder)
    model.decoder = torch.nn.Sequential(decoder, torch.nn.Unflatten(1, (1, 2, 2)))
    marginal = MultivariateNormal(
        bias, weight @ weight.T + SIGMA**2 * torch.eye(4, dtype=torch.float64)
    )
    return model, marginal


def images(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(count, 1, 2, 2, dtype=torch.float64, generator=generator)


def noise(samples: int, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randn(samples, count, 2, dtype=torch.float64, generator=generator)


def test_normal_log_prob_agrees_with_torch_distributions() -> None:
    x, mean, log_var = torch.randn(3, 7, 2, dtype=torch.float64)
    expected = torch.distributions.Normal(mean, (0.5 * log_var).exp()).log_prob(x).sum(-1)
    torch.testing.assert_close(normal_log_prob(x, mean, log_var), expected)


def test_with_the_exact_posterior_every_weight_is_the_likelihood() -> None:
    """So the bound is constant in K and exact, whatever is drawn."""
    model, marginal = linear_model()
    x = images(5)
    with torch.no_grad():
        weights = log_weights(model, x, noise(20, 5))
    expected = marginal.log_prob(x.flatten(1))
    torch.testing.assert_close(weights, expected.expand(20, 5), rtol=1e-9, atol=1e-9)
    for k in (1, 3, 20):
        torch.testing.assert_close(importance_weighted_bound(weights[:k]), expected)


def test_away_from_it_the_bound_rises_with_k_and_stays_below() -> None:
    model, marginal = linear_model(shift=0.6)
    x = images(4)
    draws = 3000
    with torch.no_grad():
        weights = log_weights(model, x.repeat(draws, 1, 1, 1), noise(50, 4 * draws)).reshape(
            50, draws, 4
        )
    exact = marginal.log_prob(x.flatten(1))
    means, errors = [], []
    for k in (1, 2, 5, 50):
        bound = importance_weighted_bound(weights[:k])
        means.append(bound.mean(0))
        errors.append(bound.std(0) / math.sqrt(draws))
    for low, high, error in zip(means[:-1], means[1:], errors[:-1], strict=True):
        assert (high - low > 3 * error).all()
    assert (means[-1] < exact + 3 * errors[-1]).all()
    assert (exact - means[-1] < 0.2 * (exact - means[0])).all()


def test_one_sample_is_the_elbo_of_the_model() -> None:
    """In expectation; here with the analytic KL against its estimate."""
    model, _ = linear_model(shift=0.4)
    x = images(2).repeat(40_000, 1, 1, 1)
    eps = noise(1, len(x))
    with torch.no_grad():
        weights = log_weights(model, x, eps)[0].reshape(-1, 2)
        posterior = model.encode(x)
        params = model.decode(model.draw(posterior, eps[0]))
        log_prob = model.likelihood.log_prob(params, model.likelihood.scale(), x)
        elbo = (log_prob - model.kl(posterior).sum(1)).reshape(-1, 2)
    error = (weights.std(0) + elbo.std(0)) / math.sqrt(40_000)
    assert ((weights.mean(0) - elbo.mean(0)).abs() < 4 * error).all()


@pytest.mark.slow
def test_the_estimate_does_not_depend_on_the_chunk_and_nears_the_truth() -> None:
    model, marginal = linear_model(shift=0.6)
    x = images(6)
    keys = torch.from_numpy(image_keys([f"{i:016x}" for i in range(6)]))

    def draw(k: int) -> Tensor:
        return image_noise(keys, seed=0, k=k, dim=2).double()

    found = [log_likelihood(model, x, draw, samples=4000, chunk=chunk) for chunk in (1, 7, 4000)]
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])
    torch.testing.assert_close(found[0], marginal.log_prob(x.flatten(1)), rtol=0.0, atol=0.1)


def test_the_bound_is_over_samples_not_over_images() -> None:
    weights = torch.tensor([[0.0, 10.0, -3.0], [1.0, 10.0, -3.0]], dtype=torch.float64)
    expected = [math.log((1 + math.e) / 2), 10.0, -3.0]
    assert importance_weighted_bound(weights).tolist() == pytest.approx(expected)


def test_its_gradient_reaches_encoder_and_decoder() -> None:
    model, _ = linear_model(shift=0.3)
    importance_weighted_bound(log_weights(model, images(3), noise(5, 3))).sum().backward()
    for part in (model.encoder, model.decoder):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())
