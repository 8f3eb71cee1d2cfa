"""What one does with a trained model: move through its latent space, and repair images.

Images are float (N, C, H, W) in [0, 1], as the likelihood sees them (`Model.observe`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vae_core.bounds import normal_log_prob
from vae_core.model import Model
from vae_core.normal import standard_normal


def linear_path(start_D: Tensor, end_D: Tensor, steps: int) -> Tensor:
    """Latents on the straight line between two, both ends included, (steps, D)."""
    share_S1 = torch.linspace(0.0, 1.0, steps).to(start_D).unsqueeze(1)
    return (1.0 - share_S1) * start_D + share_S1 * end_D


def spherical_path(start_D: Tensor, end_D: Tensor, steps: int) -> Tensor:
    """Latents on the arc between two, (steps, D); the straight line where there is no one arc:
    between parallel or opposite latents, and to or from the origin.

    Shoemake 1985, "Animating rotation with quaternion curves", section 3.3. In many dimensions a
    Gaussian's mass lies near a sphere, which a straight line leaves (White 2016, "Sampling
    generative networks"). The norm goes from one to the other in equal steps.
    """
    lengths = (start_D.norm(), end_D.norm())
    cosine = torch.dot(start_D, end_D) / (lengths[0] * lengths[1]).clamp_min(1e-12)
    angle = torch.arccos(cosine.clamp(-1.0, 1.0))
    if torch.sin(angle) < 1e-4 or min(lengths) == 0.0:
        return linear_path(start_D, end_D, steps)
    share_S1 = torch.linspace(0.0, 1.0, steps).to(start_D).unsqueeze(1)
    units = (start_D / lengths[0], end_D / lengths[1])
    direction = (
        torch.sin((1.0 - share_S1) * angle) * units[0] + torch.sin(share_S1 * angle) * units[1]
    )
    length = (1.0 - share_S1) * lengths[0] + share_S1 * lengths[1]
    return length * direction / torch.sin(angle)


PATHS = {"linear": linear_path, "spherical": spherical_path}


@torch.no_grad()
def interpolate(
    model: Model, first_CHW: Tensor, second_CHW: Tensor, steps: int, path: str = "linear"
) -> Tensor:
    """Images between two, (steps, C, H, W). Raises ValueError on a path it does not know."""
    if path not in PATHS:
        raise ValueError(f"path {path!r} is unknown; known: {', '.join(PATHS)}")
    ends = model.encode(torch.stack([first_CHW, second_CHW])).mean_ND
    return model.show(PATHS[path](ends[0], ends[1], steps))


@torch.no_grad()
def traverse(model: Model, z_D: Tensor, dimension: int, values: Tensor) -> Tensor:
    """Images of one latent dimension set to each of the values, the rest fixed, (S, C, H, W)."""
    z_SD = z_D.repeat(len(values), 1)
    z_SD[:, dimension] = values.to(z_D)
    return model.show(z_SD)


def attribute_direction(mean_ND: Tensor, has_N: Tensor) -> Tensor:
    """Mean embedding of the images that have an attribute less that of those without, (D,).

    Larsen et al. 2016, "Autoencoding beyond pixels", section 4.2. Raises ValueError unless both
    kinds are there.
    """
    has = has_N.bool()
    if has.all() or not has.any():
        raise ValueError("an attribute's direction needs images with it and images without")
    return mean_ND[has].mean(0) - mean_ND[~has].mean(0)


@torch.no_grad()
def along(model: Model, z_ND: Tensor, direction_D: Tensor, amounts: Tensor) -> Tensor:
    """Images moved along a direction by each amount (negative: away), (S, N, C, H, W)."""
    moved = z_ND + amounts.to(z_ND).reshape(-1, 1, 1) * direction_D
    return model.show(moved.flatten(0, 1)).unflatten(0, (len(amounts), len(z_ND)))


@torch.no_grad()
def denoise(model: Model, noisy_NCHW: Tensor) -> Tensor:
    """Return the reconstruction of a corrupted image; best of a model trained with that
    corruption."""
    return model.show(model.encode(noisy_NCHW).mean_ND)


@torch.no_grad()
def impute(
    model: Model,
    x_NCHW: Tensor,
    known_N1HW: Tensor,
    *,
    steps: int = 50,
    generator: torch.Generator | None = None,
    start_NCHW: Tensor | None = None,
) -> Tensor:
    """Fill pixels that are not known, by encoding and decoding in turn, known ones fixed.

    Rezende et al. 2014, "Stochastic backpropagation", appendix F. With a
    generator latents and pixels are drawn, a Markov chain whose draws approach p(missing | known)
    as q approaches the posterior; without, means are taken, for one plausible filling.
    What the missing pixels of x hold is of no account; they start at start, or in mid-grey. The
    generator has to be on the model's device.
    """
    known = known_N1HW.bool()
    start = torch.full_like(x_NCHW, 0.5) if start_NCHW is None else start_NCHW
    x = torch.where(known, x_NCHW, start)
    for _ in range(steps):
        posterior = model.encode(x)
        z_ND = posterior.mean_ND
        if generator is not None:
            eps = standard_normal(z_ND.shape, generator)
            z_ND = model.draw(posterior, eps.to(z_ND))
        params = model.decode(z_ND)
        if generator is None:
            filled = model.likelihood.mean(params)
        else:
            filled = model.likelihood.sample(params, model.likelihood.scale(), generator)
        x = torch.where(known, x_NCHW, filled.to(x))
    return x


class Imputation(NamedTuple):
    """mean: E[missing | known], known pixels as they were. log_known: log p(known) in nats, (N,).

    effective_samples: (Σ w)² / Σ w² of the K weights, (N,); near 1, one sample decided.
    """

    mean_NCHW: Tensor
    log_known_N: Tensor
    effective_samples_N: Tensor


@torch.no_grad()
def impute_weighted(
    model: Model,
    x_NCHW: Tensor,
    known_N1HW: Tensor,
    *,
    samples: int = 256,
    steps: int = 10,
    generator: torch.Generator | None = None,
) -> Imputation:
    """E[missing | known] by importance sampling: exact as K grows, for any encoder.

    Weights p(known | z) p(z) / q(z), self-normalised (Mattei & Frellsen 2019, "MIWAE", eq. 13). An
    encoder is surer of a whole image than the known pixels allow, so q is the mixture of its
    posteriors of K fillings that `impute`'s chain draws (deterministic-mixture weights: Veach &
    Guibas 1995; Elvira et al. 2019, "Generalized multiple importance sampling", table 2).
    """
    known = known_N1HW.bool()
    generator = generator or torch.Generator(x_NCHW.device).manual_seed(0)
    posteriors = []
    x = impute(model, x_NCHW, known, steps=steps, generator=generator)
    for _ in range(samples):
        posteriors.append(model.encode(x))
        x = impute(model, x_NCHW, known, steps=1, generator=generator, start_NCHW=x)
    means_KND = torch.stack([posterior.mean_ND for posterior in posteriors])
    log_vars_KND = torch.stack([posterior.log_variance_ND for posterior in posteriors])
    log_sigma, likelihood = model.likelihood.scale(), model.likelihood
    log_weights, fillings = [], []
    for posterior in posteriors:
        eps = standard_normal(posterior.mean_ND.shape, generator)
        z_ND = model.draw(posterior, eps.to(means_KND))
        params = model.decode(z_ND)
        pixels_NHW = likelihood.pixel_log_prob(params, log_sigma, x_NCHW)
        seen_N = torch.where(known[:, 0], pixels_NHW, 0.0).flatten(1).sum(1)
        zero = torch.zeros_like(z_ND)
        proposal_N = torch.logsumexp(normal_log_prob(z_ND, means_KND, log_vars_KND), dim=0)
        log_weights.append(seen_N + normal_log_prob(z_ND, zero, zero) - proposal_N)
        fillings.append(likelihood.mean(params))
    # The mixture's 1/K and the mean's cancel.
    log_weights_KN = torch.stack(log_weights)
    share_KN = torch.softmax(log_weights_KN, dim=0)
    mean = (torch.stack(fillings) * share_KN[:, :, None, None, None].to(x_NCHW)).sum(0)
    return Imputation(
        torch.where(known, x_NCHW, mean.to(x_NCHW)),
        torch.logsumexp(log_weights_KN, dim=0),
        1.0 / share_KN.square().sum(0),
    )
