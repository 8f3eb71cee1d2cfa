"""What is added to a reconstruction loss so that a code does not merely copy, and denoising."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vae_core.config import ObjectiveConfig
from vae_core.noise import CORRUPTION, PROBES, Noise


def corrupt(target_NCHW: Tensor, objective: ObjectiveConfig, noise: Noise) -> Tensor:
    """Return what a denoising encoder sees: pixels set to 0 with probability q, or with N(0, s²)
    added.

    All channels of a masked pixel go together. Vincent et al. 2010, "Stacked denoising
    autoencoders", section 3.3.
    """
    if objective.corruption == "none" or not len(target_NCHW):
        return target_NCHW
    _, _, height, width = target_NCHW.shape
    amount = objective.corruption_amount
    if objective.corruption == "mask":
        u = noise.uniform(CORRUPTION, height * width).to(target_NCHW)
        return target_NCHW * (u.reshape(-1, 1, height, width) >= amount)
    eps = noise.normal(CORRUPTION, target_NCHW[0].numel()).to(target_NCHW)
    return target_NCHW + amount * eps.reshape(target_NCHW.shape)


def weight_norm(model: nn.Module) -> Tensor:
    """½ Σ w² over the weights of linear and convolution layers, biases and norms left out."""
    squares = [
        module.weight.square().sum()
        for module in model.modules()
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)
    ]
    return 0.5 * torch.stack(squares).sum()


def sparsity_kl(mean_activation_D: Tensor, target: float) -> Tensor:
    """Σ_d KL(Bernoulli(target) ‖ Bernoulli(mean activation of unit d)) in nats, a scalar.

    Ng 2011, "Sparse autoencoder", CS294A lecture notes, section 3. Activations lie in (0, 1).
    """
    # A unit that is never (or always) on would make it infinite.
    tiny = torch.finfo(mean_activation_D.dtype).eps
    rho = mean_activation_D.clamp(tiny, 1.0 - tiny)
    kept = target * (torch.log(torch.as_tensor(target)) - torch.log(rho))
    rest = (1.0 - target) * (torch.log(torch.as_tensor(1.0 - target)) - torch.log1p(-rho))
    return (kept + rest).sum()


def contraction(code_ND: Tensor, seen_NCHW: Tensor, probes: int, noise: Noise) -> Tensor:
    """‖∂code/∂image‖² (Frobenius) of each image, (N,), differentiable.

    Rifai et al. 2011, "Contractive auto-encoders", eq. 7. Exactly, one backward pass for each
    code dimension (probes = 0), or Hutchinson's unbiased estimate ‖vᵀJ‖², v ~ N(0, I), mean over
    `probes` directions. seen must require its gradient and be what code was computed from.
    """
    dim = code_ND.shape[1]
    if probes == 0:
        eye = torch.eye(dim, dtype=code_ND.dtype, device=code_ND.device)
        directions = [row.expand_as(code_ND) for row in eye]
        scale = 1.0
    else:
        drawn = noise.normal(PROBES, probes * dim).to(code_ND)
        directions = list(drawn.reshape(-1, probes, dim).unbind(1))
        scale = 1.0 / probes
    total = code_ND.new_zeros(len(code_ND))
    for direction in directions:
        (row,) = torch.autograd.grad(code_ND, seen_NCHW, direction, create_graph=True)
        total = total + row.flatten(1).square().sum(1)
    return scale * total
