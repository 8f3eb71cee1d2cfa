"""Moving through latent space and repairing images, against what is known in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.unit.vae_core.models import images, model_of
from tests.unit.vae_core.test_bounds import SIGMA, linear_model
from vae_core.latent_space import (
    along,
    attribute_direction,
    denoise,
    impute,
    impute_weighted,
    interpolate,
    linear_path,
    spherical_path,
    traverse,
)


def test_both_paths_start_and_end_at_their_ends() -> None:
    a, b = torch.randn(2, 7, dtype=torch.float64)
    for path in (linear_path, spherical_path):
        found = path(a, b, 9)
        torch.testing.assert_close(found[0], a)
        torch.testing.assert_close(found[-1], b)
    torch.testing.assert_close(linear_path(a, b, 3)[1], (a + b) / 2)


def test_the_arc_keeps_to_the_sphere_and_turns_evenly() -> None:
    a = torch.tensor([2.0, 0.0, 0.0], dtype=torch.float64)
    b = torch.tensor([0.0, 2.0, 0.0], dtype=torch.float64)
    found = spherical_path(a, b, 7)
    torch.testing.assert_close(found.norm(dim=1), torch.full((7,), 2.0, dtype=torch.float64))
    angles = torch.atan2(found[:, 1], found[:, 0])
    torch.testing.assert_close(angles, torch.linspace(0, math.pi / 2, 7, dtype=torch.float64))
    # From a short to a long one the norm grows evenly, and parallel ends make a line.
    lengths = spherical_path(a, 3 * b, 5).norm(dim=1)
    torch.testing.assert_close(lengths, torch.linspace(2, 6, 5, dtype=torch.float64))
    torch.testing.assert_close(spherical_path(a, 2 * a, 3)[1], 1.5 * a)
    torch.testing.assert_close(spherical_path(0 * a, b, 3)[1], 0.5 * b)


def test_interpolation_goes_from_one_reconstruction_to_the_other() -> None:
    model, x = model_of("conv"), images(2)
    for path in ("linear", "spherical"):
        found = interpolate(model, x[0], x[1], 5, path)
        assert found.shape == (5, 1, 8, 9)
        torch.testing.assert_close(found[[0, -1]], model.reconstruct(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="known: linear, spherical"):
        interpolate(model, x[0], x[1], 5, "bezier")


def test_a_traversal_moves_one_dimension_only() -> None:
    model = model_of("linear")
    z, values = torch.randn(3), torch.tensor([-1.0, 0.0, 2.0])
    shown = torch.stack(
        [model.decode(z.index_fill(0, torch.tensor([1]), float(v)).unsqueeze(0))[0] for v in values]
    )
    torch.testing.assert_close(traverse(model, z, 1, values), shown.clamp(0, 1).detach())


def test_an_attribute_is_the_difference_of_means_and_is_moved_along_and_away() -> None:
    torch.manual_seed(0)
    direction = torch.tensor([1.0, -2.0, 0.5])
    has = torch.rand(4000) < 0.3
    means = torch.randn(4000, 3) + has.unsqueeze(1) * direction
    found = attribute_direction(means, has)
    torch.testing.assert_close(found, direction, rtol=0.0, atol=0.15)
    model, z = model_of("linear"), torch.randn(2, 3)
    shown = along(model, z, found, torch.tensor([-1.0, 0.0, 1.0]))
    torch.testing.assert_close(shown[1], model.show(z))
    torch.testing.assert_close(shown[0], model.show(z - found))
    with pytest.raises(ValueError, match="with it and images without"):
        attribute_direction(means, torch.ones(4000))


def known_mask(count: int) -> Tensor:
    """The first row of a 2×2 image is known."""
    mask = torch.zeros(count, 1, 2, 2)
    mask[:, :, 0] = 1.0
    return mask


def conditional(x: Tensor) -> tuple[Tensor, Tensor]:
    """E[missing | known] and log p(known) of the linear model, by Gaussian conditioning."""
    _, marginal = linear_model()
    mean, cov = marginal.mean, marginal.covariance_matrix
    known, missing = slice(0, 2), slice(2, 4)
    centred = x.flatten(1)[:, known] - mean[known]
    gain = cov[missing, known] @ torch.linalg.inv(cov[known, known])
    known_law = torch.distributions.MultivariateNormal(mean[known], cov[known, known])
    return mean[missing] + centred @ gain.T, known_law.log_prob(x.flatten(1)[:, known])


def plausible(count: int) -> Tensor:
    _, marginal = linear_model()
    torch.manual_seed(5)
    return marginal.sample((count,)).reshape(count, 1, 2, 2)


@pytest.mark.slow
def test_weighted_imputation_is_the_conditional_mean_whatever_the_encoder() -> None:
    x = plausible(4)
    expected, log_known = conditional(x)
    for shift, error in ((0.0, 0.03), (0.3, 0.1)):
        model, _ = linear_model(shift)
        spoiled = x.clone()
        spoiled[:, :, 1] = 9.0  # what is missing may hold anything
        found = impute_weighted(
            model,
            spoiled,
            known_mask(4),
            samples=2000,
            steps=20,
            generator=torch.Generator().manual_seed(0),
        )
        torch.testing.assert_close(found.mean_NCHW[:, :, 0], x[:, :, 0])
        torch.testing.assert_close(found.mean_NCHW[:, 0, 1], expected, rtol=0.0, atol=error)
        torch.testing.assert_close(found.log_known_N, log_known, rtol=0.0, atol=error)
        assert (found.effective_samples_N > 400).all()


def test_the_imputing_chain_draws_from_the_conditional() -> None:
    """The exact posterior makes pseudo-Gibbs a Gibbs sampler: its mean is the conditional one."""
    x = plausible(1)
    expected, _ = conditional(x)
    model, _ = linear_model()
    many = x.repeat(3000, 1, 1, 1)
    generator = torch.Generator().manual_seed(0)
    drawn = impute(model, many, known_mask(3000), steps=60, generator=generator)
    assert torch.equal(drawn[:, :, 0], many[:, :, 0])
    error = drawn[:, 0, 1].std(0) / 3000**0.5
    assert ((drawn[:, 0, 1].mean(0) - expected[0]).abs() < 5 * error).all()
    # Its noise is the model's: at least σ.
    assert (drawn[:, 0, 1].std(0) > 0.9 * SIGMA).all()


def test_imputation_without_draws_settles_at_the_conditional_mean() -> None:
    x = plausible(3)
    expected, _ = conditional(x)
    model, _ = linear_model()
    found = impute(model, x, known_mask(3), steps=400)
    torch.testing.assert_close(found[:, 0, 1], expected, rtol=0.0, atol=1e-6)


def test_denoising_is_the_reconstruction_of_what_is_given() -> None:
    model, x = model_of("conv"), images(3)
    torch.testing.assert_close(denoise(model, x), model.reconstruct(x))
