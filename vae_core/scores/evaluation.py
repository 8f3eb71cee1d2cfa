"""How good a model is on a set of images, from sums that add up over batches and workers."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from vae_core.bounds import bound_and_elbo
from vae_core.model import Model
from vae_core.moments import LatentMoments, LatentSums
from vae_core.noise import ImageNoise
from vae_core.stats.aggregate_posterior import ACTIVE_VARIANCE


@dataclasses.dataclass
class EvaluationSums:
    """Sums over images, float64: recon_nll, squared error, KL of each dimension, latents."""

    latents: LatentSums
    recon_nll: Tensor
    squared_error: Tensor
    kl_D: Tensor

    @classmethod
    def zeros(cls, dim: int) -> EvaluationSums:
        """Make sums of nothing yet, of `dim` latents."""
        return cls(
            LatentSums.zeros(dim),
            torch.zeros((), dtype=torch.float64),
            torch.zeros((), dtype=torch.float64),
            torch.zeros(dim, dtype=torch.float64),
        )

    @torch.no_grad()
    def add(self, model: Model, x_NCHW: Tensor, noise: ImageNoise, samples: int = 1) -> None:
        """x in [0, 1]. samples: K posterior samples in recon_nll."""
        target = model.observe(x_NCHW, noise)
        posterior = model.encode(target)
        self.latents.add(posterior.mean_ND, posterior.log_var_ND)
        for k in range(samples):
            eps = noise.sample(k, posterior.mean_ND.shape[1]).to(target)
            params = model.decode(model.draw(posterior, eps))
            log_prob = model.likelihood.log_prob(params, model.likelihood.scale(), target)
            self.recon_nll -= log_prob.double().sum().cpu() / samples
        recon = model.likelihood.mean(model.decode(posterior.mean_ND))
        self.squared_error += (recon - target).double().square().sum().cpu()
        kl_ND = model.kl(posterior)
        if kl_ND is not None:
            self.kl_D += kl_ND.double().sum(0).cpu()

    def tensors(self) -> list[Tensor]:
        """For an all-reduce in place."""
        return [*self.latents.tensors(), self.recon_nll, self.squared_error, self.kl_D]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Means over images. What a deterministic posterior does not have is None.

    rate, distortion: KL and recon_nll in nats, whose sum is −ELBO (Alemi et al. 2018, "Fixing a
    broken ELBO", section 2). kl_D: rate by dimension. bits_per_dim: discrete likelihoods only.
    """

    images: int
    distortion: float
    rate: float | None
    neg_elbo: float | None
    bits_per_dim: float | None
    recon_mse: float
    kl_D: tuple[float, ...] | None
    active_units: int
    aggregate_posterior: LatentMoments

    @classmethod
    def of(cls, model: Model, sums: EvaluationSums) -> Evaluation:
        """Work out the evaluation of a model from its sums."""
        count, latents = float(sums.latents.count), sums.latents
        distortion = float(sums.recon_nll) / count
        variance_D = latents.outer_DD.diagonal() / count - (latents.mean_D / count).square()
        rate = kl_D = neg_elbo = bits = None
        if model.posterior.has_prior:
            kl_D = tuple((sums.kl_D / count).tolist())
            rate = math.fsum(kl_D)
            neg_elbo = distortion + rate
            if model.likelihood.discrete:
                bits = neg_elbo / (model.config.pixels * math.log(2.0))
        return cls(
            images=round(count),
            distortion=distortion,
            rate=rate,
            neg_elbo=neg_elbo,
            bits_per_dim=bits,
            recon_mse=float(sums.squared_error) / (count * model.config.pixels),
            kl_D=kl_D,
            active_units=int((variance_D > ACTIVE_VARIANCE).sum()),
            aggregate_posterior=LatentMoments.fit(latents),
        )


@torch.no_grad()
def inference_gap(
    model: Model, x_NCHW: Tensor, noise: ImageNoise, *, samples: int, chunk: int = 64
) -> Tensor:
    """log p(x) estimated with K samples, less the ELBO with the same samples, (N,) in nats.

    What the encoder loses: Cremer et al. 2018, "Inference suboptimality in variational
    autoencoders", eq. 6. At least 0 for every K, for log-mean-exp is at least the mean.
    """
    target = model.observe(x_NCHW, noise)
    dim = model.config.latent_dim

    bound_N, elbo_N = bound_and_elbo(
        model, target, lambda k: noise.sample(k, dim), samples=samples, chunk=chunk
    )
    return bound_N - elbo_N
