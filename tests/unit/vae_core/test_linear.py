from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from vae_core.linear import PixelSums, ProbabilisticPCA


def data(count: int = 400, size: int = 9, far: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(size, size, dtype=torch.float64, generator=generator)
    scales = torch.linspace(2.0, 0.1, size, dtype=torch.float64)
    drawn = torch.randn(count, size, dtype=torch.float64, generator=generator)
    return (drawn * scales) @ mixing + far


def sums_of(x: Tensor, parts: int = 1) -> PixelSums:
    total = PixelSums.zeros(x[0])
    for piece in x.chunk(parts):
        one = PixelSums.zeros(x[0])
        one.add(piece)
        total.merge(one)
    return total


@pytest.mark.parametrize("far", [0.0, 1e6])
def test_sums_add_up_over_workers_and_equal_numpy(far: float) -> None:
    x = data(far=far)
    whole, merged = sums_of(x), sums_of(x, 7)
    for sums in (whole, merged):
        np.testing.assert_allclose(sums.mean(), x.numpy().mean(0), rtol=1e-12)
        np.testing.assert_allclose(sums.covariance(), np.cov(x.T, bias=True), rtol=1e-6, atol=1e-8)
    with pytest.raises(ValueError, match="different origins"):
        whole.merge(PixelSums.zeros(x[1]))


def test_pca_is_the_singular_value_decomposition_of_the_centred_data() -> None:
    x = data()
    fitted = ProbabilisticPCA.fit(sums_of(x, 3), 4)
    centred = (x - x.mean(0)).numpy()
    _, singular, vectors = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(fitted.variances_D, (singular**2 / len(x))[:4])
    # Components up to their sign.
    np.testing.assert_allclose(
        np.abs(vectors[:4] @ fitted.components_PD.numpy()), np.eye(4), atol=1e-8
    )
    best = (centred @ vectors[:4].T) @ vectors[:4] + x.mean(0).numpy()
    np.testing.assert_allclose(fitted.reconstruct(x), best, atol=1e-8)


def test_the_likelihood_is_that_of_the_full_gaussian() -> None:
    x = data()
    fitted = ProbabilisticPCA.fit(sums_of(x), 3)
    covariance = fitted.weight_PD @ fitted.weight_PD.T + fitted.sigma2 * torch.eye(9)
    expected = MultivariateNormal(fitted.mean_P, covariance).log_prob(x)
    torch.testing.assert_close(fitted.log_prob(x), expected)


def test_no_other_parameters_are_more_likely() -> None:
    x = data()
    fitted = ProbabilisticPCA.fit(sums_of(x), 3)
    best = fitted.log_prob(x).mean()
    generator = torch.Generator().manual_seed(1)
    for _ in range(30):
        change = 0.03 * torch.randn(9, 3, dtype=torch.float64, generator=generator)
        shift = 0.03 * torch.randn(9, dtype=torch.float64, generator=generator)
        factor = 1.0 + 0.05 * torch.randn((), dtype=torch.float64, generator=generator)
        weight = fitted.weight_PD + change
        covariance = weight @ weight.T + fitted.sigma2 * factor * torch.eye(9)
        other = MultivariateNormal(fitted.mean_P + shift, covariance)
        assert other.log_prob(x).mean() < best


def test_the_posterior_makes_the_elbo_exact() -> None:
    """E_q[log p(x|z)] − KL(q ‖ prior) = log p(x) at the exact posterior, all in closed form."""
    x = data()[:20]
    fitted = ProbabilisticPCA.fit(sums_of(data()), 3)
    mean, variance = fitted.posterior(x)
    weight = fitted.weight_PD
    residual = (x - fitted.mean_P - mean @ weight.T).square().sum(1)
    spread = (weight.square().sum(0) * variance).sum()
    log_2pi_sigma2 = torch.log(torch.tensor(2 * torch.pi * fitted.sigma2, dtype=torch.float64))
    expected_log_prob = -0.5 * ((residual + spread) / fitted.sigma2 + 9 * log_2pi_sigma2)
    kl = 0.5 * (mean.square() + variance - 1.0 - variance.log()).sum(1)
    torch.testing.assert_close(expected_log_prob - kl, fitted.log_prob(x))


def test_samples_have_the_models_moments() -> None:
    fitted = ProbabilisticPCA.fit(sums_of(data()), 4)
    drawn = fitted.sample(200_000, torch.Generator().manual_seed(0))
    covariance = fitted.weight_PD @ fitted.weight_PD.T + fitted.sigma2 * torch.eye(9)
    assert (drawn.mean(0) - fitted.mean_P).abs().max() < 0.05
    assert (torch.cov(drawn.T) - covariance).abs().max() < 0.02 * covariance.abs().max()


@pytest.mark.parametrize("dim", [0, 9, 12])
def test_a_number_of_components_that_cannot_be_is_refused(dim: int) -> None:
    with pytest.raises(ValueError, match=f"{dim} components of 9 pixels; choose from 1 to 8"):
        ProbabilisticPCA.fit(sums_of(data()), dim)


def test_data_without_noise_has_no_density_and_says_so() -> None:
    flat = data()
    flat[:, 2:] = 0.0
    fitted = ProbabilisticPCA.fit(sums_of(flat), 2)
    torch.testing.assert_close(fitted.reconstruct(flat), flat)
    exact = ProbabilisticPCA(fitted.mean_P, fitted.components_PD, fitted.variances_D, 0.0)
    with pytest.raises(ValueError, match="degenerate"):
        exact.log_prob(flat)
