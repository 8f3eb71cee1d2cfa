"""One optimiser step that any loop can call, alone or as a rank of many."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from vae_core.config import ObjectiveConfig
from vae_core.vae import VAE, VaeOutput


class NonFiniteLoss(ArithmeticError):
    """The loss or a gradient is not finite; the optimiser has not been stepped."""


class StepSums(NamedTuple):
    """Sums over this rank's share of the batch, in nats; gradients have been applied."""

    recon_nll: float
    kl: float
    images: int


def learning_rate(step: int, *, total_steps: int, base: float, warmup_steps: int) -> float:
    """Linear warm-up, then cosine to zero: a function of the step, so that resuming is exact."""
    if step < warmup_steps:
        return base * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * base * (1.0 + math.cos(math.pi * min(1.0, progress)))


def loss_sum(
    model: VAE, output: VaeOutput, x_NCHW: Tensor, beta: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Σ over images of recon_nll + β·KL, and the two sums themselves; scalars in nats."""
    terms = model.terms(output, x_NCHW)
    recon, kl = terms.recon_nll_N.sum(), terms.kl_ND.sum()
    return recon + beta * kl, recon, kl


def train_step(
    model: VAE,
    forward: Callable[[Tensor, Tensor], VaeOutput],
    optimizer: torch.optim.Optimizer,
    x_NCHW: Tensor,
    eps_ND: Tensor,
    *,
    objective: ObjectiveConfig,
    step: int,
    global_count: int,
    world_size: int = 1,
    clip_norm: float | None = None,
) -> StepSums:
    """Forward, backward, step on this rank's share of a global batch of `global_count` images.

    forward: the model itself, or its DDP wrapper (DDP averages gradients over ranks, so local
    sums are scaled by world_size / global_count, and the step equals that of one rank holding
    the whole batch, also when the shares differ). The share may be empty.
    Raises NonFiniteLoss before the optimiser steps.
    """
    optimizer.zero_grad(set_to_none=True)
    total, recon, kl = loss_sum(model, forward(x_NCHW, eps_ND), x_NCHW, objective.beta_at(step))
    (total * (world_size / global_count)).backward()
    # The gradient norm is of averaged gradients, so every rank sees the same one and a
    # non-finite loss on any rank stops them all.
    parameters = [p for p in model.parameters() if p.grad is not None]
    max_norm = clip_norm if clip_norm is not None else math.inf
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    if not (math.isfinite(norm.item()) and math.isfinite(total.item())):
        raise NonFiniteLoss(
            f"step {step}: loss {total.item()} nats over {len(x_NCHW)} images, "
            f"gradient norm {norm.item()}"
        )
    optimizer.step()
    return StepSums(recon.item(), kl.item(), len(x_NCHW))
