"""The variational autoencoder: inference → generative → loss."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from vae_core.config import ModelConfig
from vae_core.gaussian import kl_to_standard_normal, reparameterise, soft_bound
from vae_core.likelihoods import LIKELIHOODS
from vae_core.networks import DECODERS, ENCODERS, split_moments


class VaeOutput(NamedTuple):
    """What one forward pass gives; the loss is a pure function of it (DDP needs that)."""

    mean_ND: Tensor
    log_var_ND: Tensor
    params_NCHW: Tensor
    log_sigma: Tensor


class ElboTerms(NamedTuple):
    """Per image, in nats: −ELBO = recon_nll_N + kl_ND summed over D."""

    recon_nll_N: Tensor
    kl_ND: Tensor


class VAE(nn.Module):
    """Gaussian encoder, standard normal prior, any likelihood of `vae_core.likelihoods`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.likelihood = LIKELIHOODS[config.likelihood.kind](config.likelihood)
        self.encoder = ENCODERS[config.network.kind](config)
        self.decoder = DECODERS[config.network.kind](config, self.likelihood.params_per_value)

    def encode(self, x_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean and log-variance, each (N, D). x in [0, 1]."""
        mean_ND, raw_ND = split_moments(self.encoder(self.likelihood.target(x_NCHW)))
        return mean_ND, soft_bound(raw_ND)

    def decode(self, z_ND: Tensor) -> Tensor:
        """The likelihood's parameters, (N, C, H, W)."""
        return self.decoder(z_ND)

    def forward(self, x_NCHW: Tensor, eps_ND: Tensor) -> VaeOutput:
        """eps: the standard normal noise of the one posterior sample, (N, D)."""
        mean_ND, log_var_ND = self.encode(x_NCHW)
        params_NCHW = self.decode(reparameterise(mean_ND, log_var_ND, eps_ND))
        return VaeOutput(mean_ND, log_var_ND, params_NCHW, self.likelihood.scale())

    def terms(self, output: VaeOutput, x_NCHW: Tensor) -> ElboTerms:
        """The two terms of −ELBO per image (Kingma & Welling 2014, eq. 3), nothing averaged."""
        target = self.likelihood.target(x_NCHW)
        recon_nll_N = -self.likelihood.log_prob(output.params_NCHW, output.log_sigma, target)
        return ElboTerms(recon_nll_N, kl_to_standard_normal(output.mean_ND, output.log_var_ND))

    def reconstruct(self, x_NCHW: Tensor) -> Tensor:
        """E[x | z = posterior mean], clamped to [0, 1] for display, (N, C, H, W)."""
        mean_ND, _ = self.encode(x_NCHW)
        return self.likelihood.mean(self.decode(mean_ND)).clamp(0.0, 1.0)


def to_unit_range(pixels_NHWC: Tensor) -> Tensor:
    """Staged uint8 pixels → float32 in [0, 1], (N, C, H, W)."""
    return pixels_NHWC.permute(0, 3, 1, 2).contiguous().float().div_(255.0)
