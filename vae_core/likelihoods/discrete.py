"""Likelihoods over the 256 values that a pixel can have."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from vae_core.config import LikelihoodConfig
from vae_core.likelihoods.base import CHUNK_VALUES, Likelihood, in_chunks, uniform_like
from vae_core.normal import at_least_float32, soft_bound

LEVELS = 256


class Categorical(Likelihood):
    """One of 256 values for each pixel, with 256 logits each. van den Oord et al. 2016,
    "Pixel recurrent neural networks", section 2.2.

    256·C·H·W logits an image: the normaliser is taken in chunks of images.
    """

    @override
    def pixel_log_prob(self, params_NCHW: Tensor, log_sigma: Tensor, target_NCHW: Tensor) -> Tensor:
        return in_chunks(self._log_prob, params_NCHW, pixel_values(target_NCHW))

    def _log_prob(self, params_NCHW: Tensor, values_NCHW: Tensor) -> Tensor:
        logits = self._per_value(params_NCHW)
        chosen = logits.gather(2, values_NCHW.unsqueeze(2)).squeeze(2)
        return (chosen - torch.logsumexp(logits, dim=2)).sum(1)

    @override
    def mean(self, params_NCHW: Tensor) -> Tensor:
        probability = torch.softmax(self._per_value(params_NCHW), dim=2)
        levels = torch.arange(LEVELS, device=probability.device, dtype=probability.dtype)
        return (probability * levels.reshape(1, 1, -1, 1, 1)).sum(2) / (LEVELS - 1)

    @override
    def mode(self, params_NCHW: Tensor) -> Tensor:
        logits = self._per_value(params_NCHW)
        return logits.argmax(2).to(logits.dtype) / (LEVELS - 1)

    def sample(
        self, params_NCHW: Tensor, log_sigma: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """By the largest of logits plus Gumbel noise."""
        logits = self._per_value(params_NCHW)
        gumbel = -torch.log(-torch.log(uniform_like(logits, generator)))
        return (logits + gumbel).argmax(2).to(logits.dtype) / (LEVELS - 1)


def pixel_values(x_NCHW: Tensor) -> Tensor:
    """Images in [0, 1] as the integers 0 to 255 that they were."""
    return (x_NCHW * (LEVELS - 1)).round().long().clamp_(0, LEVELS - 1)


QUANTILES = 8
_LOG_SCALE_LIMIT = 7.0
_STEP = 2.0 / (LEVELS - 1)  # between neighbouring values, on [-1, 1]


class LogisticMixture(Likelihood):
    """A mixture of discretised logistics over the values of a whole pixel, its channels coupled.

    Salimans et al. 2017, "PixelCNN++", eqs. 2 and 3. For each component and pixel the decoder
    gives a weight, and for each channel a mean, a log-scale, and how the mean moves with the
    channels before it. Values are on [-1, 1] inside.
    """

    def __init__(self, config: LikelihoodConfig) -> None:
        super().__init__(config)
        self.components = config.components

    @override
    def outputs(self, channels: int) -> int:
        return self.components * (1 + 2 * channels + channels * (channels - 1) // 2)

    def _channels(self, outputs: int) -> int:
        per_component = outputs // self.components
        return next(c for c in range(1, per_component) if self.outputs(c) == outputs)

    def _read(self, params_NCHW: Tensor) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """log weights (N, M, H, W); means and log-scales (N, C, M, H, W); for each channel the
        coefficients of those before it, (N, c, M, H, W)."""
        m, channels = self.components, self._channels(params_NCHW.shape[1])
        grouped = at_least_float32(params_NCHW).unflatten(1, (-1, m))
        log_weights = torch.log_softmax(grouped[:, 0], dim=1)
        means, raw = grouped[:, 1 : 1 + channels], grouped[:, 1 + channels : 1 + 2 * channels]
        coefficients, start = [], 1 + 2 * channels
        for c in range(channels):
            coefficients.append(torch.tanh(grouped[:, start : start + c]))
            start += c
        return log_weights, means, soft_bound(raw, _LOG_SCALE_LIMIT), coefficients

    @override
    def pixel_log_prob(self, params_NCHW: Tensor, log_sigma: Tensor, target_NCHW: Tensor) -> Tensor:
        return in_chunks(self._log_prob, params_NCHW, pixel_values(target_NCHW))

    def _log_prob(self, params_NCHW: Tensor, values_NCHW: Tensor) -> Tensor:
        log_weights, means, log_scales, coefficients = self._read(params_NCHW)
        x = values_NCHW.to(means.dtype) * _STEP - 1.0
        total = log_weights
        for c, coefficient in enumerate(coefficients):
            mean = means[:, c] + (coefficient * x[:, :c].unsqueeze(2)).sum(1)
            total = total + log_mass(values_NCHW[:, c : c + 1], mean, log_scales[:, c])
        return torch.logsumexp(total, dim=1)

    def mean(self, params_NCHW: Tensor) -> Tensor:
        """Return that of the mixture of clipped logistics before they are rounded to values.

        For the first channel at most half a value off the exact one. A later channel's location
        moves with the channels before it, and clipping makes that non-linear: the mean is taken
        over QUANTILES quantiles of each of them, given those before.
        """
        channels = self._channels(params_NCHW.shape[1])
        per_image = max(1, params_NCHW[:1].numel()) * QUANTILES ** (channels - 1)
        chunks = params_NCHW.split(max(1, CHUNK_VALUES // per_image))
        return torch.cat([self._mean(chunk) for chunk in chunks])

    def _mean(self, params_NCHW: Tensor) -> Tensor:
        log_weights, means, log_scales, coefficients = self._read(params_NCHW)
        levels = (torch.arange(QUANTILES, device=means.device, dtype=means.dtype) + 0.5) / QUANTILES
        logits = torch.logit(levels).reshape(1, 1, -1, 1, 1, 1)
        # Each channel before, at its quantiles: (N, nodes, M, H, W), the same nodes for all.
        before: list[Tensor] = []
        expected = []
        for c, coefficient in enumerate(coefficients):
            location = means[:, c].unsqueeze(1)
            for j, x in enumerate(before):
                location = location + coefficient[:, j].unsqueeze(1) * x
            scale = log_scales[:, c].exp().unsqueeze(1)
            expected.append(_clipped_mean(location, scale).mean(1))
            if c + 1 < len(coefficients):
                x = location.unsqueeze(2) + scale.unsqueeze(2) * logits
                nodes = x.clamp(-1.0, 1.0).flatten(1, 2)
                before = [parameters.repeat_interleave(QUANTILES, 1) for parameters in before]
                before.append(nodes)
        mixed = [(log_weights.exp() * channel).sum(1) for channel in expected]
        return 0.5 * (torch.stack(mixed, dim=1) + 1.0)

    def mode(self, params_NCHW: Tensor) -> Tensor:
        """Channel by channel, each given the modes of those before it."""
        log_weights, means, log_scales, coefficients = self._read(params_NCHW)
        levels = torch.arange(LEVELS, device=means.device).reshape(1, -1, 1, 1, 1)
        chosen: list[Tensor] = []
        posterior = log_weights
        for c, coefficient in enumerate(coefficients):
            location = means[:, c]
            for j in range(c):
                x = chosen[j].to(means.dtype) * _STEP - 1.0
                location = location + coefficient[:, j] * x.unsqueeze(1)
            masses = log_mass(levels, location.unsqueeze(1), log_scales[:, c].unsqueeze(1))
            best = torch.logsumexp(posterior.unsqueeze(1) + masses, dim=2).argmax(1)
            posterior = posterior + log_mass(best.unsqueeze(1), location, log_scales[:, c])
            chosen.append(best)
        return torch.stack(chosen, dim=1).to(means.dtype) / (LEVELS - 1)

    def sample(
        self, params_NCHW: Tensor, log_sigma: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw a component by Gumbel noise, then its channels in turn."""
        log_weights, means, log_scales, coefficients = self._read(params_NCHW)
        gumbel = -torch.log(-torch.log(uniform_like(log_weights, generator)))
        component = (log_weights + gumbel).argmax(1, keepdim=True)
        drawn: list[Tensor] = []
        for c, coefficient in enumerate(coefficients):
            location = means[:, c].gather(1, component).squeeze(1)
            for j in range(c):
                location = location + coefficient[:, j].gather(1, component).squeeze(1) * drawn[j]
            scale = log_scales[:, c].gather(1, component).squeeze(1).exp()
            x = location + scale * torch.logit(uniform_like(scale, generator))
            drawn.append(((x + 1.0) / _STEP).round().clamp(0, LEVELS - 1) * _STEP - 1.0)
        return 0.5 * (torch.stack(drawn, dim=1) + 1.0)


def log_mass(values: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """log of the logistic mass that rounds to each value 0 to 255, ends included; mean on [-1, 1].

    σ(a) − σ(b) = σ(a) σ(−b) (1 − e^(b − a)), which loses no digits in the tails.
    """
    inverse = torch.exp(-log_scale)
    centred = values.to(mean.dtype) * _STEP - 1.0 - mean
    above = (centred + 0.5 * _STEP) * inverse
    below = (centred - 0.5 * _STEP) * inverse
    zero = torch.zeros((), dtype=mean.dtype, device=mean.device)
    low_end, high_end = values == 0, values == LEVELS - 1
    upper = torch.where(high_end, zero, F.logsigmoid(above))
    lower = torch.where(low_end, zero, F.logsigmoid(-below))
    width = torch.log(-torch.expm1(-_STEP * inverse))
    return upper + lower + torch.where(low_end | high_end, zero, width)


def _clipped_mean(location: Tensor, scale: Tensor) -> Tensor:
    """E[clip(X, -1, 1)] of a logistic X: 1 − ∫ F over [-1, 1], the integral by softplus."""
    high = F.softplus((1.0 - location) / scale)
    low = F.softplus((-1.0 - location) / scale)
    return 1.0 - scale * (high - low)
