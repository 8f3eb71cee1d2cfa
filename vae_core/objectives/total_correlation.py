"""The KL term taken apart: index-code information, total correlation, dimension-wise KL.

Chen et al. 2018, "Isolating sources of disentanglement in variational autoencoders", eq. 2. The
three add up to log q(z|x) − log p(z), whose mean over samples is the KL, whatever q(z) is taken
to be; so an error in estimating the aggregate posterior moves nats between them and loses none.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from vae_core.normal import at_least_float32, normal_log_density
from vae_core.posteriors import Posterior


class KlParts(NamedTuple):
    """One-sample estimates for each image, in nats; their sum estimates its KL."""

    index_code_mi_N: Tensor
    total_correlation_N: Tensor
    dimension_wise_kl_N: Tensor


def kl_parts(
    z_ND: Tensor, own: Posterior, others: Posterior, own_rows_N: Tensor, dataset_size: int
) -> KlParts:
    """Return the parts for samples z of posteriors `own`, which are rows own_rows_N of `others`
    (M, D).

    The aggregate posterior q(z) = (1/T) Σ_t q(z|x_t) of T = dataset_size images is estimated from
    M of them: an image's own posterior, which is in it for certain, weighs 1/T, each of the rest
    (T − 1) / (T (M − 1)). That is unbiased for q(z) where the rest are drawn without replacement,
    and exact for M = T. (The stratified sampling of appendix C.2 of the paper, its weights averaged
    over the order of the batch.)
    """
    z, mean, log_var = (at_least_float32(t) for t in (z_ND, others.mean_ND, others.log_variance_ND))
    density_NMD = normal_log_density(z.unsqueeze(1), mean, log_var)
    weights_NM = _log_weights(own_rows_N, len(mean), max(dataset_size, len(mean)))
    weights_NM = weights_NM.to(density_NMD)
    log_qz_N = torch.logsumexp(density_NMD.sum(2) + weights_NM, dim=1)
    log_qz_ND = torch.logsumexp(density_NMD + weights_NM.unsqueeze(2), dim=1)
    own_mean, own_log_var = at_least_float32(own.mean_ND), at_least_float32(own.log_variance_ND)
    log_qzx_N = normal_log_density(z, own_mean, own_log_var).sum(1)
    log_pz_N = normal_log_density(z, torch.zeros_like(z), torch.zeros_like(z)).sum(1)
    return KlParts(log_qzx_N - log_qz_N, log_qz_N - log_qz_ND.sum(1), log_qz_ND.sum(1) - log_pz_N)


def _log_weights(own_rows_N: Tensor, rows: int, dataset_size: int) -> Tensor:
    if rows == 1:
        # A batch of one knows of no other posterior than its own.
        return torch.zeros(len(own_rows_N), 1)
    rest = (dataset_size - 1) / (dataset_size * (rows - 1))
    weights = torch.full((len(own_rows_N), rows), math.log(rest))
    weights[torch.arange(len(own_rows_N)), own_rows_N.cpu()] = -math.log(dataset_size)
    return weights
