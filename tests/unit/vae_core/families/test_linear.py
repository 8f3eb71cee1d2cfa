from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor
from torch.distributions import MultivariateNormal

from vae_core.autoencoder import Autoencoder
from vae_core.bounds import importance_weighted_bound, log_weights
from vae_core.config import LikelihoodConfig, ModelConfig, NetworkConfig, ObjectiveConfig
from vae_core.families.linear import PixelSums, ProbabilisticPCA, solve, sums_for
from vae_core.noise import StepNoise
from vae_core.objectives.objectives import Objective
from vae_core.training.step import learning_rate, train_step


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


def planar(count: int = 400, pixels: int = 12, dim: int = 2) -> torch.Tensor:
    """Images (count, 1, 3, 4) of a known two-dimensional Gaussian structure, and noise."""
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(pixels, dim, dtype=torch.float64))[0]
    z = torch.randn(count, dim, dtype=torch.float64) * torch.tensor([1.0, 0.5])
    noise = 0.1 * torch.randn(count, pixels, dtype=torch.float64)
    return (z @ basis.T + noise + 0.5).reshape(count, 1, 3, 4)


def linear_model(posterior: str = "gaussian", fit: str = "gradient", **likelihood) -> Autoencoder:
    torch.manual_seed(1)
    config = ModelConfig(
        image_shape=(3, 4, 1),
        latent_dim=2,
        network=NetworkConfig(kind="linear"),
        likelihood=LikelihoodConfig(kind="gaussian", **likelihood),
        posterior=posterior,
        fit=fit,
    )
    return Autoencoder(config).double()


def trained(model: Autoencoder, x: torch.Tensor, steps: int, **objective) -> Autoencoder:
    module = Objective(model, ObjectiveConfig(**objective))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, total_steps=steps, base=0.05, warmup_steps=10)
        train_step(module, optimizer, x, StepNoise(seed=0, step=step, batch=len(x)), step=step)
    return model


def angle_to_pca(model: Autoencoder, x: torch.Tensor) -> float:
    """Largest principal angle in radians between the decoder's columns and scikit-learn's PCA."""
    weight = model.decoder.get_parameter("0.weight").detach()
    theirs = torch.from_numpy(PCA(2).fit(x.flatten(1).numpy()).components_.T)
    cosines = torch.linalg.svdvals(torch.linalg.qr(weight)[0].T @ theirs).clamp(max=1.0)
    return float(torch.arccos(cosines.min()))


def test_the_closed_form_is_scikit_learn_s_pca_and_its_likelihood() -> None:
    x = planar()
    sums = PixelSums.zeros(torch.full((12,), 0.5))
    sums.add(x.flatten(1))
    ours = ProbabilisticPCA.fit(sums, 2)
    theirs = PCA(2).fit(x.flatten(1).numpy())
    torch.testing.assert_close(
        ours.components_PD.abs(), torch.from_numpy(theirs.components_.T).abs()
    )
    # scikit-learn divides the covariance by N - 1, the maximum of the likelihood by N.
    unbiased = dataclasses.replace(
        ours, variances_D=ours.variances_D * 400 / 399, sigma2=ours.sigma2 * 400 / 399
    )
    expected = torch.from_numpy(theirs.score_samples(x.flatten(1).numpy()))
    torch.testing.assert_close(unbiased.log_prob(x.flatten(1)), expected)


def solved(x: torch.Tensor, **options) -> Autoencoder:
    model = linear_model(fit="closed_form", **options)
    sums = sums_for(model)
    sums.add(x.flatten(1))
    solve(model, sums)
    return model


def test_at_the_optimum_the_linear_vae_s_elbo_is_the_likelihood_of_ppca() -> None:
    """And the importance-weighted bound is constant in K, whatever noise is drawn."""
    x = planar()
    sums = PixelSums.zeros(torch.full((12,), 0.5))
    sums.add(x.flatten(1))
    exact = ProbabilisticPCA.fit(sums, 2).log_prob(x.flatten(1))
    model = solved(x)
    weights = log_weights(model, x, torch.randn(50, 400, 2, dtype=torch.float64))
    # To what the bound on log-variances and float32's log σ leave.
    torch.testing.assert_close(weights, exact.expand(50, 400), rtol=0.0, atol=2e-5)
    for k in (1, 7, 50):
        torch.testing.assert_close(
            importance_weighted_bound(weights[:k]), exact, rtol=0.0, atol=2e-5
        )
    assert angle_to_pca(model, x) < 1e-6
    columns = model.decoder.get_parameter("0.weight")
    off_diagonal = (columns.T @ columns)[0, 1].item()
    assert abs(off_diagonal) < 1e-9


@pytest.mark.slow
def test_gradient_descent_brings_the_linear_vae_there() -> None:
    x = planar()
    sums = PixelSums.zeros(torch.full((12,), 0.5))
    sums.add(x.flatten(1))
    exact = ProbabilisticPCA.fit(sums, 2).log_prob(x.flatten(1)).mean().item()
    model = trained(linear_model(), x, 3000)
    with torch.no_grad():
        weights = log_weights(model, x, torch.randn(200, 400, 2, dtype=torch.float64))
    elbo, bound = weights.mean().item(), importance_weighted_bound(weights).mean().item()
    assert elbo <= bound + 1e-9
    assert bound <= exact + 1e-3
    assert elbo > exact - 0.05
    assert angle_to_pca(model, x) < 0.03
    columns = model.decoder.get_parameter("0.weight")
    gram = columns.T @ columns
    # Data-independent diagonal covariances favour orthogonal columns (Lucas et al. 2019).
    assert gram[0, 1].abs() / (gram[0, 0] * gram[1, 1]).sqrt() < 0.05


def test_a_fixed_sigma_stays_and_its_optimum_is_exact_too() -> None:
    x = planar()
    model = solved(x, sigma=0.3)
    assert model.likelihood.scale().exp().item() == pytest.approx(0.3)
    weights = log_weights(model, x, torch.randn(20, 400, 2, dtype=torch.float64))
    torch.testing.assert_close(weights, weights[:1].expand(20, 400), rtol=0.0, atol=1e-4)
    weight = model.decoder.get_parameter("0.weight")
    covariance = weight @ weight.T + 0.09 * torch.eye(12, dtype=torch.float64)
    marginal = torch.distributions.MultivariateNormal(x.flatten(1).mean(0), covariance)
    torch.testing.assert_close(weights[0], marginal.log_prob(x.flatten(1)), rtol=0.0, atol=1e-4)


@pytest.mark.slow
def test_the_linear_autoencoder_spans_pca_by_gradient_and_in_closed_form() -> None:
    """Baldi & Hornik 1989: the subspace, not the axes."""
    x = planar()
    by_gradient = trained(linear_model("deterministic", sigma=1.0), x, 1500, kind="reconstruction")
    closed = solved(x, posterior="deterministic")
    theirs = PCA(2).fit(x.flatten(1).numpy())
    expected = torch.from_numpy(theirs.inverse_transform(theirs.transform(x.flatten(1).numpy())))
    for model, tolerance in ((by_gradient, 2e-2), (closed, 1e-9)):
        assert angle_to_pca(model, x) < max(tolerance, 1e-6)
        found = model.decode(model.encode(x).mean_ND).flatten(1)
        torch.testing.assert_close(found, expected, rtol=0.0, atol=tolerance)
    torch.testing.assert_close(
        closed.encode(x).mean_ND.abs(),
        torch.from_numpy(theirs.transform(x.flatten(1).numpy())).abs(),
    )


def test_images_too_large_and_noise_that_is_nothing_are_refused() -> None:
    config = ModelConfig(
        image_shape=(65, 65, 1), network=NetworkConfig(kind="linear"), fit="closed_form"
    )
    with pytest.raises(ValueError, match="at most 4096 pixel values, these have 4225"):
        sums_for(Autoencoder(config))
    flat = torch.full((50, 1, 3, 4), 0.5, dtype=torch.float64)
    with pytest.raises(ValueError, match="no noise is left"):
        solved(flat)
    with pytest.raises(ValueError, match=r"sigma 0\.001 is too small beside components"):
        solved(planar(), sigma=1e-3)
    with pytest.raises(ValueError, match="closed_form needs network"):
        ModelConfig(image_shape=(8, 8, 1), fit="closed_form")


@pytest.mark.slow
def test_a_ring_is_learned_from_a_gaussian_prior() -> None:
    """Doersch 2016, "Tutorial on VAEs", figure 2: a decoder bends a Gaussian into a ring."""
    torch.manual_seed(0)
    angle = 2.0 * math.pi * torch.rand(2000)
    radius = 1.0 + 0.05 * torch.randn(2000)
    ring = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1).reshape(-1, 1, 1, 2)
    config = ModelConfig(
        image_shape=(1, 2, 1),
        latent_dim=2,
        network=NetworkConfig(kind="mlp", widths=(64, 64), activation="tanh"),
        likelihood=LikelihoodConfig(kind="gaussian"),
    )
    model = Autoencoder(config)
    objective = Objective(model, ObjectiveConfig())
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for step in range(3000):
        rate = learning_rate(step, total_steps=3000, base=3e-3, warmup_steps=50)
        optimizer.param_groups[0]["lr"] = rate
        rows = torch.randint(0, 2000, (128,), generator=generator)
        noise = StepNoise(seed=0, step=step, batch=128)
        train_step(objective, optimizer, ring[rows], noise, step=step)
    z = torch.randn(4000, 2, generator=generator)
    with torch.no_grad():
        drawn = model.likelihood.sample(model.decode(z), model.likelihood.scale(), generator)
    points = drawn.reshape(-1, 2)
    lengths = points.norm(dim=1)
    assert lengths.median().item() == pytest.approx(1.0, abs=0.05)
    assert ((lengths > 0.75) & (lengths < 1.25)).double().mean() > 0.85
    # All the way round: every twelfth of the circle has its share.
    sector = ((torch.atan2(points[:, 1], points[:, 0]) / (2 * math.pi) + 0.5) * 12).long() % 12
    assert torch.bincount(sector, minlength=12).min() > 4000 / 12 / 3
