"""One optimiser step that any loop can call, alone or as a rank of many."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from vae_core.noise import StepNoise
from vae_core.objectives import LossTerms, total_loss


class NonFiniteLoss(ArithmeticError):
    """The loss or a gradient is not finite; the optimiser has not been stepped."""


class StepSums(NamedTuple):
    """Sums over this rank's share of the batch, in nats; gradients have been applied."""

    loss: float
    recon_nll: float
    kl: float
    images: int


def learning_rate(step: int, *, total_steps: int, base: float, warmup_steps: int) -> float:
    """Linear warm-up, then cosine to zero: a function of the step, so that resuming is exact."""
    if step < warmup_steps:
        return base * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * base * (1.0 + math.cos(math.pi * min(1.0, progress)))


def train_step(
    forward: Callable[[Tensor, StepNoise, int], LossTerms],
    optimizer: torch.optim.Optimizer,
    x_NCHW: Tensor,
    noise: StepNoise,
    *,
    step: int,
    world_size: int = 1,
    clip_norm: float | None = None,
) -> StepSums:
    """Forward, backward, step on this rank's share of a global batch of `noise.batch` images.

    forward: an `Objective`, or its DDP wrapper; the step of several ranks equals that of one that
    holds the whole batch, also when their shares differ. A share may be empty.
    Raises NonFiniteLoss before the optimiser steps.
    """
    optimizer.zero_grad(set_to_none=True)
    terms = forward(x_NCHW, noise, step)
    total = total_loss(terms, global_count=noise.batch, world_size=world_size)
    total.backward()
    # The gradient norm is of averaged gradients, so every rank sees the same one and a
    # non-finite loss on any rank stops them all.
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    held = [p for p in parameters if p.grad is not None]
    max_norm = clip_norm if clip_norm is not None else math.inf
    norm = torch.nn.utils.clip_grad_norm_(held, max_norm)
    if not (math.isfinite(norm.item()) and math.isfinite(total.item())):
        raise NonFiniteLoss(
            f"step {step}: loss {total.item()} nats an image over {len(x_NCHW)} images, "
            f"gradient norm {norm.item()}"
        )
    optimizer.step()
    minimised = terms.loss_N.sum() + len(x_NCHW) * terms.shared
    sums = (minimised, terms.recon_nll_N.sum(), terms.kl_N.sum())
    loss, recon_nll, kl = (value.item() for value in sums)
    return StepSums(loss, recon_nll, kl, len(x_NCHW))
