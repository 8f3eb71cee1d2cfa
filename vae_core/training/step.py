"""One optimiser step that any loop can call, alone or as a rank of many."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from vae_core.noise import StepNoise
from vae_core.objectives.objectives import LossTerms, total_loss
from vae_core.precision import Precision


class NonFiniteLoss(ArithmeticError):
    """The loss or a gradient is not finite; the optimiser has not been stepped."""


class StepSums(NamedTuple):
    """Sums over this rank's share of the batch, in nats; gradients have been applied.

    grad_norm: of the averaged gradient, before clipping.
    """

    loss: float
    recon_nll: float
    kl: float
    images: int
    grad_norm: float


def learning_rate(step: int, *, total_steps: int, base: float, warmup_steps: int) -> float:
    """Linear warm-up, then cosine to zero: a function of the step, so that resuming is exact."""
    if step < warmup_steps:
        return base * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * base * (1.0 + math.cos(math.pi * min(1.0, progress)))


Forward = Callable[[Tensor, StepNoise, int], LossTerms]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stepper:
    """Steps of one rank.

    forward: an `Objective`, or its DDP wrapper; the step of several ranks equals that of one that
    holds the whole batch, also when their shares differ. A share may be empty. With micro_batches,
    gradients of that many parts of the share add up to the same step in less memory.
    """

    forward: Forward
    optimizer: torch.optim.Optimizer
    world_size: int = 1
    clip_norm: float | None = None
    micro_batches: int = 1
    precision: Precision = "float32"

    def step(self, x_NCHW: Tensor, noise: StepNoise, step: int) -> StepSums:
        """On this rank's share of a global batch of `noise.batch` images.

        Raises NonFiniteLoss before the optimiser steps.
        """
        loss, recon_nll, kl, norm = self._gradients(x_NCHW, noise, step).tolist()
        # The norm is of averaged gradients, so every rank sees the same one and a non-finite loss
        # on any rank stops them all.
        if not math.isfinite(norm):
            raise NonFiniteLoss(
                f"step {step}: loss {loss / max(1, len(x_NCHW))} nats an image over "
                f"{len(x_NCHW)} images, gradient norm {norm}"
            )
        self.optimizer.step()
        return StepSums(loss, recon_nll, kl, len(x_NCHW), norm)

    def step_unseen(self, x_NCHW: Tensor, noise: StepNoise, step: int) -> Tensor:
        """Do the same without waiting for an accelerator: the sums stay there, (4,) of float32.

        Loss, recon_nll, kl and gradient norm. Where the norm is not finite the optimiser, which
        must be a fused one, leaves weights and its own state as they were: look now and then.
        """
        found = self._gradients(x_NCHW, noise, step)
        # What a gradient scaler tells a fused optimiser.
        self.optimizer.found_inf = (~torch.isfinite(found[3])).float()  # type: ignore[attr-defined]
        self.optimizer.step()
        return found

    def _gradients(self, x_NCHW: Tensor, noise: StepNoise, step: int) -> Tensor:
        """Leaves the step's clipped gradients; loss, recon_nll, kl and gradient norm, (4,)."""
        self.optimizer.zero_grad(set_to_none=True)
        sums = []
        for number in range(self.micro_batches):
            last = number == self.micro_batches - 1
            with self._exchanging(last):
                sums.append(self._backward(*self._part(x_NCHW, noise, number), step))
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        with_gradient = [p for p in parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in with_gradient if p.grad is not None])
        if self.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(with_gradient, self.clip_norm, norm)
        total = sums[0] if len(sums) == 1 else torch.stack(sums).sum(0)
        return torch.cat([total, norm.detach().reshape(1).to(total)])

    def _part(self, x_NCHW: Tensor, noise: StepNoise, number: int) -> tuple[Tensor, StepNoise]:
        if self.micro_batches == 1:
            return x_NCHW, noise
        count, parts = len(x_NCHW), self.micro_batches
        rows = slice(count * number // parts, count * (number + 1) // parts)
        return x_NCHW[rows], noise.part(rows)

    def _backward(self, x_NCHW: Tensor, noise: StepNoise, step: int) -> Tensor:
        with torch.autocast(x_NCHW.device.type, torch.bfloat16, self.precision == "bfloat16"):
            terms = self.forward(x_NCHW, noise, step)
        # What all images share counts once a step.
        terms = terms._replace(shared=terms.shared / self.micro_batches)
        loss = total_loss(terms, global_count=noise.batch, world_size=self.world_size)
        minimised = terms.loss_N.sum() + len(x_NCHW) * terms.shared * self.micro_batches
        # A sum that is not finite may have a finite gradient, and no other rank knows of it.
        loss.backward(torch.where(minimised.detach().isfinite(), 1.0, math.nan).to(loss))
        return torch.stack([minimised, terms.recon_nll_N.sum(), terms.kl_N.sum()]).detach()

    def _exchanging(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Ranks exchange gradients once a step."""
        if last or not isinstance(self.forward, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.forward.no_sync()


def train_step(
    forward: Forward,
    optimizer: torch.optim.Optimizer,
    x_NCHW: Tensor,
    noise: StepNoise,
    *,
    step: int,
    world_size: int = 1,
    clip_norm: float | None = None,
) -> StepSums:
    """One step without a loop around it; see Stepper."""
    stepper = Stepper(
        forward=forward, optimizer=optimizer, world_size=world_size, clip_norm=clip_norm
    )
    return stepper.step(x_NCHW, noise, step)
