"""Models of the training benchmarks, and the loop that anyone would write for them."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import torch
from torch import Tensor, nn


@dataclasses.dataclass(frozen=True)
class Case:
    """A model and images for it. network: of the settings; images: staged."""

    shape: tuple[int, int, int]
    network: dict[str, Any]
    images: int
    batch: int
    latent: int = 32

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "network": self.network,
            "latent_dim": self.latent,
            "batch_size": self.batch,
            "likelihood": {"kind": "bernoulli", "binarisation": "stochastic"}
            if self.shape[2] == 1
            else {"kind": "gaussian"},
        }


CASES = {
    "mlp 28x28x1": Case((28, 28, 1), {"kind": "mlp", "widths": [500, 500]}, 20_000, 128, 50),
    "conv 32x32x3": Case((32, 32, 3), {"kind": "conv", "widths": [32, 64, 128]}, 6_000, 128),
    "conv 64x64x3": Case((64, 64, 3), {"kind": "conv", "widths": [32, 64, 128]}, 2_500, 128),
}


class Bare(nn.Module):
    """The same VAE as anyone would write it: encoder, decoder, loss in one function."""

    def __init__(self, case: Case, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.bernoulli = case.shape[2] == 1

    def forward(self, x: Tensor) -> Tensor:
        if self.bernoulli:
            x = torch.bernoulli(x)
        mean, log_var = self.encoder(x).chunk(2, dim=1)
        z = mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)
        out = self.decoder(z)
        if self.bernoulli:
            recon = nn.functional.binary_cross_entropy_with_logits(out, x, reduction="sum")
        else:
            recon = 0.5 * (out - x).square().sum()
        kl = -0.5 * (1.0 + log_var - mean.square() - log_var.exp()).sum()
        return (recon + kl) / len(x)


def bare_model(case: Case) -> Bare:
    """With the very networks that `latentlake train` makes of the settings."""
    from jobs.train.settings import TrainSettings
    from vae_core.autoencoder import Autoencoder

    torch.manual_seed(0)
    settings = TrainSettings.model_validate({"dataset": "d", "model": "m", **case.settings})
    made = Autoencoder(settings.model_config_of(case.shape))
    return Bare(case, made.encoder, made.decoder)


def bare_rate(case: Case, rows: int, epochs: int) -> float:
    """Images a second over the last of some epochs, pixels in memory as float."""
    model = bare_model(case)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
    height, width, channels = case.shape
    x = torch.rand(rows, channels, height, width)
    rate = 0.0
    for _ in range(epochs):
        order = torch.randperm(rows)
        started = time.perf_counter()
        for start in range(0, rows, case.batch):
            optimizer.zero_grad(set_to_none=True)
            model(x[order[start : start + case.batch]]).backward()
            optimizer.step()
        rate = rows / (time.perf_counter() - started)
    return rate
