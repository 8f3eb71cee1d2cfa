"""Encoders (image → features) and decoders (latents → the likelihood's parameters).

features: numbers the encoder gives for each latent dimension. outputs: numbers the decoder gives
for each pixel. Any height and width do: the decoders mirror the encoders' sizes exactly.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from typing_extensions import override

from vae_core.config import ModelConfig
from vae_core.networks.residual import residual_decoder, residual_encoder
from vae_core.networks.resolutions import halved
from vae_core.networks.stack import Stack

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
}


class LinearEncoder(nn.Module):
    """The mean is linear in the image, the log-variance the same for all images.

    The encoder of the linear VAE: Lucas et al. 2019, "Don't blame the ELBO!", eq. 9.
    """

    def __init__(self, pixels: int, latent_dim: int, features: int) -> None:
        super().__init__()
        self.mean = nn.Linear(pixels, latent_dim)
        self.raw_log_var = nn.Parameter(torch.zeros(latent_dim * (features - 1)))

    @override
    def forward(self, x_NCHW: Tensor) -> Tensor:
        mean_ND = self.mean(x_NCHW.flatten(1))
        raw = self.raw_log_var.expand(len(mean_ND), -1)
        return torch.cat([mean_ND, raw.to(mean_ND.dtype)], dim=1)


class TiedDecoder(nn.Module):
    """Dense layers whose weights are an encoder's, transposed; the biases are its own.

    Of the encoder's last layer it takes the rows that give the mean.
    """

    def __init__(self, layers: list[nn.Linear], latent_dim: int, activation: nn.Module) -> None:
        super().__init__()
        # A tuple, so that the weights stay the encoder's alone: saved once, counted once.
        self._layers = tuple(layers[::-1])
        self.latent_dim = latent_dim
        self.activation = activation
        self.biases = nn.ParameterList(
            [nn.Parameter(torch.zeros(layer.in_features)) for layer in self._layers]
        )

    @override
    def forward(self, z_ND: Tensor) -> Tensor:
        h = z_ND
        for i, (layer, bias) in enumerate(zip(self._layers, self.biases, strict=True)):
            weight = layer.weight[: self.latent_dim] if i == 0 else layer.weight
            h = h @ weight + bias
            if i < len(self._layers) - 1:
                h = self.activation(h)
        return h


def _mlp_layers(sizes: list[int], activation: str) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), ACTIVATIONS[activation]()]
    return layers


def _unflatten(config: ModelConfig, outputs: int) -> nn.Module:
    height, width, _ = config.image_shape
    return nn.Unflatten(1, (outputs, height, width))


def _tied(config: ModelConfig, outputs: int, encoder: nn.Module) -> nn.Module:
    assert outputs == config.image_shape[2], "ModelConfig refuses other likelihoods"
    layers = [m for m in encoder.modules() if isinstance(m, nn.Linear)]
    activation = ACTIVATIONS[config.network.activation]()
    tied = TiedDecoder(layers, config.latent_dim, activation)
    return Stack(tied, _unflatten(config, outputs))


def linear_encoder(config: ModelConfig, features: int) -> nn.Module:
    """(N, C, H, W) → (N, features·D)."""
    return LinearEncoder(config.pixels, config.latent_dim, features)


def linear_decoder(config: ModelConfig, outputs: int, encoder: nn.Module) -> nn.Module:
    """(N, D) → (N, outputs, H, W)."""
    if config.network.tied:
        return _tied(config, outputs, encoder)
    height, width, _ = config.image_shape
    layer = nn.Linear(config.latent_dim, outputs * height * width)
    return Stack(layer, _unflatten(config, outputs))


def mlp_encoder(config: ModelConfig, features: int) -> nn.Module:
    """(N, C, H, W) → (N, features·D)."""
    widths = list(config.network.widths)
    layers = _mlp_layers([config.pixels, *widths], config.network.activation)
    return Stack(nn.Flatten(), *layers, nn.Linear(widths[-1], features * config.latent_dim))


def mlp_decoder(config: ModelConfig, outputs: int, encoder: nn.Module) -> nn.Module:
    """(N, D) → (N, outputs, H, W)."""
    if config.network.tied:
        return _tied(config, outputs, encoder)
    height, width, _ = config.image_shape
    widths = list(config.network.widths)[::-1]
    layers = _mlp_layers([config.latent_dim, *widths], config.network.activation)
    last = nn.Linear(widths[-1], outputs * height * width)
    return Stack(*layers, last, _unflatten(config, outputs))


def conv_encoder(config: ModelConfig, features: int) -> nn.Module:
    """(N, C, H, W) → (N, features·D); one strided convolution a halving."""
    activation = ACTIVATIONS[config.network.activation]
    layers: list[nn.Module] = []
    channels = config.image_shape[2]
    for width in config.network.widths:
        layers += [nn.Conv2d(channels, width, 3, stride=2, padding=1), activation()]
        channels = width
    height, width = halved(config.image_shape, len(config.network.widths))[-1]
    hidden = config.network.hidden
    layers += [nn.Flatten(), nn.Linear(channels * height * width, hidden), activation()]
    return Stack(*layers, nn.Linear(hidden, features * config.latent_dim))


def conv_decoder(config: ModelConfig, outputs: int, encoder: nn.Module) -> nn.Module:
    """(N, D) → (N, outputs, H, W)."""
    activation = ACTIVATIONS[config.network.activation]
    sizes = halved(config.image_shape, len(config.network.widths))[::-1]
    widths = list(config.network.widths)[::-1]
    (height, width), hidden = sizes[0], config.network.hidden
    layers: list[nn.Module] = [
        nn.Linear(config.latent_dim, hidden),
        activation(),
        nn.Linear(hidden, widths[0] * height * width),
        activation(),
        nn.Unflatten(1, (widths[0], height, width)),
    ]
    channels = [*widths[1:], widths[-1]]
    for n_in, n_out, small, large in zip(widths, channels, sizes[:-1], sizes[1:], strict=True):
        # (n - 1)·2 - 2 + 3 + padding gives 2n - 1 or 2n: the size that the encoder halved.
        padding = (large[0] - (2 * small[0] - 1), large[1] - (2 * small[1] - 1))
        layers.append(
            nn.ConvTranspose2d(n_in, n_out, 3, stride=2, padding=1, output_padding=padding)
        )
        layers.append(activation())
    layers.append(nn.Conv2d(widths[-1], outputs, 3, padding=1))
    return Stack(*layers)


ENCODERS: dict[str, Callable[[ModelConfig, int], nn.Module]] = {
    "linear": linear_encoder,
    "mlp": mlp_encoder,
    "conv": conv_encoder,
    "residual": residual_encoder,
}
DECODERS: dict[str, Callable[[ModelConfig, int, nn.Module], nn.Module]] = {
    "linear": linear_decoder,
    "mlp": mlp_decoder,
    "conv": conv_decoder,
    "residual": residual_decoder,
}
