"""What training minimises: an objective turns a batch into a loss for each image, in nats."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vae_core.all_reduce import ALONE, Peers
from vae_core.bounds import importance_weighted_bound, normal_log_prob
from vae_core.config import ObjectiveConfig
from vae_core.model import Model
from vae_core.noise import StepNoise
from vae_core.objectives.penalties import contraction, corrupt, sparsity_kl, weight_norm
from vae_core.objectives.total_correlation import kl_parts
from vae_core.posteriors import Posterior


class LossTerms(NamedTuple):
    """What is minimised is the mean of loss_N over the global batch, plus `shared`.

    recon_nll_N and kl_N (zero without a prior) are for reports. All in nats.
    """

    loss_N: Tensor
    recon_nll_N: Tensor
    kl_N: Tensor
    shared: Tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """A rank's share of one step on its way through an objective."""

    model: Model
    config: ObjectiveConfig
    step: int
    target_NCHW: Tensor
    posterior: Posterior
    noise: StepNoise
    peers: Peers
    dataset_size: int

    def latents(self, samples: int = 1) -> Tensor:
        """K samples by the step's noise, (K, N, D)."""
        dim = self.model.config.latent_dim
        eps = self.noise.latent(samples, dim).to(self.target_NCHW)
        return self.model.draw(self.posterior, eps)

    def log_likelihood(self, z_KND: Tensor) -> Tensor:
        """log p(x | z_k), (K, N)."""
        samples, count = z_KND.shape[:2]
        params = self.model.decode(z_KND.flatten(0, 1))
        target = self.target_NCHW
        repeated = target.expand(samples, *target.shape).flatten(0, 1)
        log_sigma = self.model.likelihood.batch_scale(params, repeated, self.peers)
        log_prob = self.model.likelihood.log_prob(params, log_sigma, repeated)
        return log_prob.reshape(samples, count)

    def kl(self) -> Tensor:
        """(N, D)."""
        kl_ND = self.model.kl(self.posterior)
        assert kl_ND is not None
        return kl_ND

    def zero(self) -> Tensor:
        """Return a zero on the batch's device, for terms that an objective has not."""
        return self.posterior.mean_ND.new_zeros(())


class Objective(nn.Module):
    """The model with its loss. DDP wraps this, so that all that needs gradients is in forward.

    dataset_size: images of the train split, for the aggregate posterior of beta_tc.
    """

    def __init__(
        self,
        model: Model,
        config: ObjectiveConfig,
        *,
        dataset_size: int = 1,
        peers: Peers = ALONE,
    ) -> None:
        super().__init__()
        model.config.check_objective(config)
        self.model = model
        self.config = config
        self.dataset_size = dataset_size
        self.peers = peers

    def forward(self, x_NCHW: Tensor, noise: StepNoise, step: int) -> LossTerms:
        """x in [0, 1]; the noise of this share, which may be empty."""
        config = self.config
        target = self.model.observe(x_NCHW, noise)
        seen = corrupt(target, config, noise)
        if config.contraction > 0.0:
            seen = seen.detach().requires_grad_(True)
        posterior = self.model.encode(seen)
        batch = Batch(
            model=self.model,
            config=config,
            step=step,
            target_NCHW=target,
            posterior=posterior,
            noise=noise,
            peers=self.peers,
            dataset_size=self.dataset_size,
        )
        terms = OBJECTIVES[config.kind](batch)
        if config.contraction > 0.0:
            norm_N = contraction(posterior.mean_ND, seen, config.probes, noise)
            terms = terms._replace(loss_N=terms.loss_N + config.contraction * norm_N)
        return terms._replace(shared=terms.shared + self._shared(batch))

    def _shared(self, batch: Batch) -> Tensor:
        config, total = self.config, batch.zero()
        if config.weight_decay > 0.0:
            total = total + config.weight_decay * weight_norm(self.model)
        if config.sparsity > 0.0:
            sums_D = self.peers.sum(batch.posterior.mean_ND.sum(0))
            mean_D = sums_D / batch.noise.batch
            total = total + config.sparsity * sparsity_kl(mean_D, config.sparsity_target)
        return total


def elbo(batch: Batch) -> LossTerms:
    """recon_nll + β·KL (Kingma & Welling 2014, eq. 3; Higgins et al. 2017, eq. 4).

    With free bits λ, the KL of each dimension counts as max(λ, its mean over the global batch):
    Kingma et al. 2016, "Improved variational inference with inverse autoregressive flow", eq. 15.
    """
    config, beta = batch.config, batch.config.beta_at(batch.step)
    recon_N = -batch.log_likelihood(batch.latents())[0]
    kl_ND = batch.kl()
    kl_N = kl_ND.sum(1)
    if config.free_bits == 0.0:
        return LossTerms(recon_N + beta * kl_N, recon_N, kl_N, batch.zero())
    mean_D = batch.peers.sum(kl_ND.sum(0)) / batch.noise.batch
    shared = beta * mean_D.clamp_min(config.free_bits).sum()
    return LossTerms(recon_N, recon_N, kl_N, shared)


def capacity(batch: Batch) -> LossTerms:
    """recon_nll + β·|KL − C|.

    Burgess et al. 2018, "Understanding disentangling in β-VAE", eq. 8.
    """
    recon_N = -batch.log_likelihood(batch.latents())[0]
    kl_N = batch.kl().sum(1)
    distance_N = (kl_N - batch.config.capacity_at(batch.step)).abs()
    return LossTerms(recon_N + batch.config.beta * distance_N, recon_N, kl_N, batch.zero())


def beta_tc(batch: Batch) -> LossTerms:
    """recon_nll + α·MI + β·TC + γ·dimension-wise KL: Chen et al. 2018, eq. 4."""
    config, noise = batch.config, batch.noise
    z_KND = batch.latents()
    recon_N = -batch.log_likelihood(z_KND)[0]
    everyone = slice(None) if noise.positions is None else noise.positions
    mine = batch.posterior
    others = Posterior(
        batch.peers.gather(mine.mean_ND, everyone, noise.batch),
        batch.peers.gather(mine.log_variance_ND, everyone, noise.batch),
    )
    rows = torch.arange(noise.batch)[everyone.cpu() if isinstance(everyone, Tensor) else everyone]
    parts = kl_parts(z_KND[0], mine, others, rows, batch.dataset_size)
    weighted_N = (
        config.alpha * parts.index_code_mi_N
        + config.beta * parts.total_correlation_N
        + config.gamma * parts.dimension_wise_kl_N
    )
    warm = config.warmup_at(batch.step)
    return LossTerms(recon_N + warm * weighted_N, recon_N, batch.kl().sum(1), batch.zero())


def importance_weighted(batch: Batch) -> LossTerms:
    """−log (1/K) Σ_k p(x, z_k) / q(z_k | x): Burda et al. 2016, eq. 8."""
    z_KND = batch.latents(batch.config.samples)
    log_likelihood_KN = batch.log_likelihood(z_KND)
    prior_KN = normal_log_prob(z_KND, torch.zeros_like(z_KND), torch.zeros_like(z_KND))
    mean, log_var = batch.posterior.mean_ND, batch.posterior.log_variance_ND
    weights_KN = log_likelihood_KN + prior_KN - normal_log_prob(z_KND, mean, log_var)
    loss_N = -importance_weighted_bound(weights_KN)
    return LossTerms(loss_N, -log_likelihood_KN.mean(0), batch.kl().sum(1), batch.zero())


def score_function(batch: Batch) -> LossTerms:
    """elbo, the encoder's gradient of E_q[log p(x|z)] by the score function.

    (1/K) Σ_k (f_k − mean of the other f) ∇ log q(z_k|x), f_k = log p(x|z_k): Williams 1992 with
    the leave-one-out baseline of Mnih & Rezende 2016 (VIMCO) and Kool et al. 2019. Unbiased. The
    KL's gradient is exact, the decoder's the ordinary one.
    """
    samples = batch.config.samples
    z_KND = batch.latents(samples).detach()
    log_likelihood_KN = batch.log_likelihood(z_KND)
    mean, log_var = batch.posterior.mean_ND, batch.posterior.log_variance_ND
    log_q_KN = normal_log_prob(z_KND, mean, log_var)
    centred_KN = log_likelihood_KN - log_likelihood_KN.mean(0)
    signal_KN = (centred_KN * (samples / (samples - 1))).detach()
    through_q_N = (signal_KN * log_q_KN).mean(0)
    recon_N = -log_likelihood_KN.mean(0)
    kl_N = batch.kl().sum(1)
    # Of value zero: it brings the gradient and leaves the loss what it is.
    bringing_N = through_q_N.detach() - through_q_N
    loss_N = recon_N + bringing_N + batch.config.beta_at(batch.step) * kl_N
    return LossTerms(loss_N, recon_N, kl_N, batch.zero())


def reconstruction(batch: Batch) -> LossTerms:
    """recon_nll of the code. With a Gaussian of fixed σ, squared error / 2σ² and its constant."""
    recon_N = -batch.log_likelihood(batch.posterior.mean_ND.unsqueeze(0))[0]
    return LossTerms(recon_N, recon_N, torch.zeros_like(recon_N), batch.zero())


OBJECTIVES: dict[str, Callable[[Batch], LossTerms]] = {
    "elbo": elbo,
    "capacity": capacity,
    "beta_tc": beta_tc,
    "importance_weighted": importance_weighted,
    "score_function": score_function,
    "reconstruction": reconstruction,
}


def total_loss(terms: LossTerms, *, global_count: int, world_size: int = 1) -> Tensor:
    """Return a rank's scalar to differentiate, in nats an image.

    DDP averages gradients over ranks, so a rank's sum is scaled by world_size / global_count and
    what all ranks share counts once.
    """
    return terms.loss_N.sum() * (world_size / global_count) + terms.shared
