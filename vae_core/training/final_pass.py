"""One last pass over the train split, when the weights are what they will be."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from vae_core.model import Model
from vae_core.moments import LatentMoments, LatentSums
from vae_core.noise import ImageNoise


@dataclasses.dataclass
class FinalSums:
    """Sums that add up over batches and workers: of latents, and of squared errors and values."""

    latents: LatentSums
    errors: Tensor

    @classmethod
    def zeros(cls, dim: int) -> FinalSums:
        """Make sums of nothing yet, of `dim` latents."""
        return cls(LatentSums.zeros(dim), torch.zeros(2, dtype=torch.float64))

    @torch.no_grad()
    def add(self, model: Model, target: Tensor, noise: ImageNoise) -> None:
        """target (N, C, H, W): what `model.observe` gives."""
        posterior = model.encode(target)
        self.latents.add(posterior.mean_ND, posterior.log_var_ND)
        if model.likelihood.needs_final_error and len(target):
            eps = noise.sample(0, posterior.mean_ND.shape[1]).to(target)
            recon = model.likelihood.mean(model.decode(model.draw(posterior, eps)))
            squared = (recon - target).double().square().sum().cpu()
            self.errors += torch.stack([squared, squared.new_tensor(float(target.numel()))])

    def tensors(self) -> list[Tensor]:
        """For an all-reduce in place."""
        return [*self.latents.tensors(), self.errors]

    def finish(self, model: Model) -> LatentMoments:
        """Freezes what the likelihood left moving; the moments of the aggregate posterior."""
        if model.likelihood.needs_final_error:
            model.likelihood.freeze(float(self.errors[0] / self.errors[1]))
        return LatentMoments.fit(self.latents)
