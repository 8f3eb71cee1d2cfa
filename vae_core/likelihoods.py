"""p(x | z): what the decoder's output says about pixels. Every constant is there."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae_core.config import LikelihoodConfig
from vae_core.gaussian import LOG_2PI, at_least_float32, soft_bound


class Likelihood(nn.Module, abc.ABC):
    """A likelihood over images in [0, 1]. `params` is what the decoder (and σ) gave.

    discrete: whether log_prob is a probability mass, so that bits per dimension mean something.
    params_per_value: decoder outputs for each pixel value; params are (N, C·params_per_value, H, W)
    with the parameters of one channel next to each other.
    """

    discrete: bool
    params_per_value: int = 1

    def __init__(self) -> None:
        super().__init__()
        self._no_sigma: Tensor
        self.register_buffer("_no_sigma", torch.zeros(()), persistent=False)

    @abc.abstractmethod
    def target(self, x_NCHW: Tensor) -> Tensor:
        """The image as this likelihood sees it (binarised, say); the encoder sees it too."""

    def scale(self) -> Tensor:
        """log σ, a scalar; zero where there is none. Returned by the model's forward for DDP."""
        return self._no_sigma

    @abc.abstractmethod
    def log_prob(self, params_NCHW: Tensor, log_sigma: Tensor, target_NCHW: Tensor) -> Tensor:
        """log p(target | z) in nats, summed over pixels, shape (N,)."""

    @abc.abstractmethod
    def mean(self, params_NCHW: Tensor) -> Tensor:
        """E[x | z], shape (N, C, H, W)."""

    @abc.abstractmethod
    def mode(self, params_NCHW: Tensor) -> Tensor:
        """The most probable value of each pixel, shape (N, C, H, W)."""

    @abc.abstractmethod
    def sample(
        self, params_NCHW: Tensor, log_sigma: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """A draw from p(x | z), shape (N, C, H, W)."""

    def _per_value(self, params_NCHW: Tensor) -> Tensor:
        """(N, C·Q, H, W) → (N, C, Q, H, W), in float32 at least."""
        grouped = params_NCHW.unflatten(1, (-1, self.params_per_value))
        return at_least_float32(grouped)


def _sum_pixels(values_NCHW: Tensor) -> Tensor:
    return values_NCHW.flatten(1).sum(1)


def _normal_like(like: Tensor, generator: torch.Generator | None) -> Tensor:
    x = at_least_float32(like)
    return torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)


def _uniform_like(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Uniform in (0, 1), never an end."""
    x = at_least_float32(like)
    drawn = torch.rand(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    tiny = torch.finfo(drawn.dtype).eps
    return drawn.clamp(tiny, 1.0 - tiny)


class Bernoulli(Likelihood):
    """Binarised pixels; params are logits. Kingma & Welling 2014, appendix C.1."""

    discrete = True

    def __init__(self, config: LikelihoodConfig) -> None:
        super().__init__()
        self.threshold = config.threshold

    def target(self, x_NCHW: Tensor) -> Tensor:
        return (x_NCHW > self.threshold).to(x_NCHW.dtype)

    def log_prob(self, params_NCHW: Tensor, log_sigma: Tensor, target_NCHW: Tensor) -> Tensor:
        logits, target = at_least_float32(params_NCHW), at_least_float32(target_NCHW)
        return -_sum_pixels(F.binary_cross_entropy_with_logits(logits, target, reduction="none"))

    def mean(self, params_NCHW: Tensor) -> Tensor:
        return torch.sigmoid(at_least_float32(params_NCHW))

    def mode(self, params_NCHW: Tensor) -> Tensor:
        return (params_NCHW > 0).to(at_least_float32(params_NCHW).dtype)

    def sample(
        self, params_NCHW: Tensor, log_sigma: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        return torch.bernoulli(self.mean(params_NCHW), generator=generator)


class Gaussian(Likelihood):
    """N(x; params, σ²) with one σ for all pixels. Kingma & Welling 2014, appendix C.2.

    σ is a parameter of the model (Rybkin et al. 2021, σ-VAE), or fixed by the config.
    """

    discrete = False

    def __init__(self, config: LikelihoodConfig) -> None:
        super().__init__()
        start = torch.tensor(math.log(config.sigma if config.sigma is not None else 0.2))
        self.raw_log_sigma = nn.Parameter(start, requires_grad=config.sigma is None)

    def target(self, x_NCHW: Tensor) -> Tensor:
        return x_NCHW

    def scale(self) -> Tensor:
        if not self.raw_log_sigma.requires_grad:
            return self.raw_log_sigma
        return soft_bound(self.raw_log_sigma)

    def log_prob(self, params_NCHW: Tensor, log_sigma: Tensor, target_NCHW: Tensor) -> Tensor:
        error = at_least_float32(target_NCHW) - at_least_float32(params_NCHW)
        pixels = error[0].numel() if len(error) else 0
        constant = pixels * (log_sigma + 0.5 * LOG_2PI)
        return -0.5 * _sum_pixels(error.square()) * torch.exp(-2.0 * log_sigma) - constant

    def mean(self, params_NCHW: Tensor) -> Tensor:
        return at_least_float32(params_NCHW)

    def mode(self, params_NCHW: Tensor) -> Tensor:
        return self.mean(params_NCHW)

    def sample(
        self, params_NCHW: Tensor, log_sigma: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        return self.mean(params_NCHW) + log_sigma.exp() * _normal_like(params_NCHW, generator)


class PixelGaussian(Likelihood):
    """N(x; μ, σ²) with μ and σ of each pixel value from the decoder.

    Kingma & Welling 2014, appendix C.2, with the variance an output. Parameters: μ, raw log σ².
    """

    discrete = False
    params_per_value = 2

    def __init__(self, config: LikelihoodConfig) -> None:
        super().__init__()

    def target(self, x_NCHW: Tensor) -> Tensor:
        return x_NCHW

    def _moments(self, params_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = self._per_value(params_NCHW).unbind(2)
        return mean, soft_bound(raw)

    def log_prob(self, params_NCHW: Tensor, log_sigma: Tensor, target_NCHW: Tensor) -> Tensor:
        mean, log_var = self._moments(params_NCHW)
        squared = (at_least_float32(target_NCHW) - mean).square()
        return -0.5 * _sum_pixels(squared * torch.exp(-log_var) + log_var + LOG_2PI)

    def mean(self, params_NCHW: Tensor) -> Tensor:
        return self._moments(params_NCHW)[0]

    def mode(self, params_NCHW: Tensor) -> Tensor:
        return self.mean(params_NCHW)

    def sample(
        self, params_NCHW: Tensor, log_sigma: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        mean, log_var = self._moments(params_NCHW)
        return mean + torch.exp(0.5 * log_var) * _normal_like(mean, generator)


# Around λ = 1/2 the normaliser's closed form is 0/0; its Taylor series takes over there.
_LOGIT_CUT = 0.05


class ContinuousBernoulli(Likelihood):
    """A density on [0, 1] whose logits are the decoder's, with the normaliser that a Bernoulli
    log-likelihood of grey pixels leaves out. Loaiza-Ganem & Cunningham 2019, eq. 7.
    """

    discrete = False

    def __init__(self, config: LikelihoodConfig) -> None:
        super().__init__()

    def target(self, x_NCHW: Tensor) -> Tensor:
        return x_NCHW

    def log_prob(self, params_NCHW: Tensor, log_sigma: Tensor, target_NCHW: Tensor) -> Tensor:
        logits, target = at_least_float32(params_NCHW), at_least_float32(target_NCHW)
        bernoulli = -F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        return _sum_pixels(bernoulli + log_normaliser(logits))

    def mean(self, params_NCHW: Tensor) -> Tensor:
        """λ / (2λ − 1) + 1 / (2 tanh⁻¹(1 − 2λ)), eq. 8; in logits, 1 / (1 − e^−η) − 1 / η."""
        logits = at_least_float32(params_NCHW)
        near = logits.abs() < _LOGIT_CUT
        safe = torch.where(near, torch.ones_like(logits), logits)
        closed = -1.0 / torch.expm1(-safe) - 1.0 / safe
        series = 0.5 + logits / 12.0 - logits**3 / 720.0
        return torch.where(near, series, closed)

    def mode(self, params_NCHW: Tensor) -> Tensor:
        return (params_NCHW > 0).to(at_least_float32(params_NCHW).dtype)

    def sample(
        self, params_NCHW: Tensor, log_sigma: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """By the inverse of the distribution function: log1p(u·(e^η − 1)) / η."""
        logits = at_least_float32(params_NCHW)
        u = _uniform_like(logits, generator)
        near = logits.abs() < 1e-3
        safe = torch.where(near, torch.ones_like(logits), logits)
        # Mirrored where η > 0, so that e^η never overflows.
        size = -safe.abs()
        drawn = torch.log1p(u * torch.expm1(size)) / size
        drawn = torch.where(safe > 0, 1.0 - drawn, drawn)
        return torch.where(near, u, drawn).clamp(0.0, 1.0)


def log_normaliser(logits: Tensor) -> Tensor:
    """log C(λ) of the continuous Bernoulli with λ = sigmoid(logits).

    C = η / tanh(η / 2): 2 tanh⁻¹(1 − 2λ) / (1 − 2λ) in logits; 2 at η = 0.
    """
    near = logits.abs() < _LOGIT_CUT
    safe = torch.where(near, torch.ones_like(logits), logits)
    half = 0.5 * safe
    closed = torch.log(safe.abs()) - torch.log(torch.tanh(half).abs())
    series = math.log(2.0) + logits**2 / 12.0 - 7.0 * logits**4 / 1440.0
    return torch.where(near, series, closed)


LEVELS = 256
_CHUNK_VALUES = 2**22  # logits handled at once by the categorical likelihood


class Categorical(Likelihood):
    """One of 256 values for each pixel, with 256 logits each. van den Oord et al. 2016, section 3.

    256·C·H·W logits an image: the normaliser is taken in chunks of images.
    """

    discrete = True
    params_per_value = LEVELS

    def __init__(self, config: LikelihoodConfig) -> None:
        super().__init__()

    def target(self, x_NCHW: Tensor) -> Tensor:
        return x_NCHW

    def log_prob(self, params_NCHW: Tensor, log_sigma: Tensor, target_NCHW: Tensor) -> Tensor:
        values = pixel_values(target_NCHW)
        per_image = max(1, params_NCHW[:1].numel())
        size = max(1, _CHUNK_VALUES // per_image)
        chunks = zip(params_NCHW.split(size), values.split(size), strict=True)
        return torch.cat([self._log_prob(params, value) for params, value in chunks])

    def _log_prob(self, params_NCHW: Tensor, values_NCHW: Tensor) -> Tensor:
        logits = self._per_value(params_NCHW)
        chosen = logits.gather(2, values_NCHW.unsqueeze(2)).squeeze(2)
        return _sum_pixels(chosen - torch.logsumexp(logits, dim=2))

    def mean(self, params_NCHW: Tensor) -> Tensor:
        probability = torch.softmax(self._per_value(params_NCHW), dim=2)
        levels = torch.arange(LEVELS, device=probability.device, dtype=probability.dtype)
        return (probability * levels.reshape(1, 1, -1, 1, 1)).sum(2) / (LEVELS - 1)

    def mode(self, params_NCHW: Tensor) -> Tensor:
        logits = self._per_value(params_NCHW)
        return logits.argmax(2).to(logits.dtype) / (LEVELS - 1)

    def sample(
        self, params_NCHW: Tensor, log_sigma: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """By the largest of logits plus Gumbel noise."""
        logits = self._per_value(params_NCHW)
        gumbel = -torch.log(-torch.log(_uniform_like(logits, generator)))
        return (logits + gumbel).argmax(2).to(logits.dtype) / (LEVELS - 1)


def pixel_values(x_NCHW: Tensor) -> Tensor:
    """Images in [0, 1] as the integers 0 to 255 that they were."""
    return (x_NCHW * (LEVELS - 1)).round().long().clamp_(0, LEVELS - 1)


LIKELIHOODS: dict[str, Callable[[LikelihoodConfig], Likelihood]] = {
    "bernoulli": Bernoulli,
    "continuous_bernoulli": ContinuousBernoulli,
    "categorical": Categorical,
    "gaussian": Gaussian,
    "pixel_gaussian": PixelGaussian,
}
