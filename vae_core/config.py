"""What a model is: one frozen tree, strict about its keys."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal, NamedTuple

from vae_core.config_tree import ConfigTree, choice, require, require_number

NetworkKind = Literal["linear", "mlp", "conv", "residual"]
Activation = Literal["silu", "tanh", "relu"]
LikelihoodKind = Literal[
    "bernoulli",
    "continuous_bernoulli",
    "categorical",
    "logistic_mixture",
    "gaussian",
    "optimal_gaussian",
    "pixel_gaussian",
]
Binarisation = Literal["threshold", "stochastic"]
PosteriorKind = Literal["gaussian", "deterministic"]
CodeKind = Literal["linear", "sigmoid"]
FitKind = Literal["gradient", "closed_form"]
ObjectiveKind = Literal[
    "elbo", "capacity", "beta_tc", "importance_weighted", "score_function", "reconstruction"
]
CorruptionKind = Literal["none", "mask", "gaussian"]


# Far above what is trained, and low enough to describe a model without building it.
LARGEST = 65_536  # units of a layer, channels, latent dimensions, pixels of a side
MOST_LAYERS = 64
LARGEST_DEPTH = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkConfig(ConfigTree):
    """Encoder and decoder.

    widths: hidden units (mlp); channels, one a halving (conv); channels, one a resolution, the
    image's own first (residual); unused (linear). hidden: units of the dense layer between
    convolutions and latents (conv). depth: residual blocks a resolution, one number for all or
    one each (residual). tied: the decoder's weights are the encoder's, transposed (linear, mlp).
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    kind: NetworkKind = "conv"
    widths: tuple[int, ...] = (32, 64)
    hidden: int = 256
    depth: int | tuple[int, ...] = 2
    activation: Activation = "silu"
    tied: bool = False

    def __post_init__(self) -> None:
        choice("network.kind", self.kind, NetworkKind)
        choice("network.activation", self.activation, Activation)
        require(
            0 < len(self.widths) <= MOST_LAYERS and all(0 < w <= LARGEST for w in self.widths),
            f"network.widths must be positive, at most {LARGEST}, and {MOST_LAYERS} of them, got "
            f"{list(self.widths)[:MOST_LAYERS]}",
        )
        require(
            0 < self.hidden <= LARGEST,
            f"network.hidden must be positive, at most {LARGEST}, got {self.hidden}",
        )
        require(
            all(d <= LARGEST_DEPTH for d in self.depths),
            f"network.depth must be at most {LARGEST_DEPTH}, got {self.depth}",
        )
        require(
            len(self.depths) == len(self.widths) and all(d >= 0 for d in self.depths),
            f"network.depth must be a number, or one for each of the {len(self.widths)} widths, "
            f"got {self.depth}",
        )
        require(
            not self.tied or self.kind in ("linear", "mlp"),
            f"network.tied needs dense layers: kind linear or mlp, not {self.kind}",
        )

    @property
    def depths(self) -> tuple[int, ...]:
        """Residual blocks at each resolution."""
        if isinstance(self.depth, int):
            return (self.depth,) * len(self.widths)
        return self.depth


@dataclasses.dataclass(frozen=True, kw_only=True)
class LikelihoodConfig(ConfigTree):
    """How the decoder explains pixels in [0, 1].

    bernoulli: pixels are binarised first, so the likelihood is a real one: at `threshold`, or
    stochastically, a pixel being 1 with the probability of its value.
    continuous_bernoulli: a density on [0, 1], with its normaliser.
    categorical: one of the 256 values a pixel can have.
    logistic_mixture: `components` discretised logistics over the 256 values, colours coupled.
    gaussian: one σ for all pixels, learned with the weights, or fixed where `sigma` is given.
    optimal_gaussian: one σ, at every step the best for the batch (σ-VAE).
    pixel_gaussian: a σ for each pixel, from the decoder.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    kind: LikelihoodKind = "gaussian"
    binarisation: Binarisation = "threshold"
    threshold: float = 0.5
    sigma: float | None = None
    components: int = 10

    def __post_init__(self) -> None:
        choice("likelihood.kind", self.kind, LikelihoodKind)
        choice("likelihood.binarisation", self.binarisation, Binarisation)
        for field in dataclasses.fields(self):
            user = _LIKELIHOOD_SETTINGS.get(field.name)
            require(
                user is None or getattr(self, field.name) == field.default or self.kind == user,
                f"likelihood.{field.name} has no use in kind {self.kind}; it belongs to {user}",
            )
        require(
            0.0 < self.threshold < 1.0,
            f"likelihood.threshold must lie in (0, 1), got {self.threshold}",
        )
        require(
            self.sigma is None or self.sigma > 0.0,
            f"likelihood.sigma must be positive, got {self.sigma}",
        )
        require(
            0 < self.components <= LARGEST,
            f"likelihood.components must be positive, at most {LARGEST}, got {self.components}",
        )


# Which kind a setting belongs to.
_LIKELIHOOD_SETTINGS = {
    "binarisation": "bernoulli",
    "threshold": "bernoulli",
    "sigma": "gaussian",
    "components": "logistic_mixture",
}


class LikelihoodFacts(NamedTuple):
    """What is true of every likelihood of a kind.

    Attributes:
        discrete: whether it is a probability mass over what a pixel can be, so that bits per
            dimension mean something.
        outputs: decoder outputs for each pixel value; None where further settings say.
    """

    discrete: bool
    outputs: int | None = 1


LIKELIHOOD_FACTS: dict[str, LikelihoodFacts] = {
    "bernoulli": LikelihoodFacts(discrete=True),
    "continuous_bernoulli": LikelihoodFacts(discrete=False),
    "categorical": LikelihoodFacts(discrete=True, outputs=256),
    "logistic_mixture": LikelihoodFacts(discrete=True, outputs=None),
    "gaussian": LikelihoodFacts(discrete=False),
    "optimal_gaussian": LikelihoodFacts(discrete=False),
    "pixel_gaussian": LikelihoodFacts(discrete=False, outputs=2),
}
# Σxxᵀ of 4,096 pixel values takes 128 MiB, its eigenvectors some 20 s.
CLOSED_FORM_PIXELS = 4096


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveConfig(ConfigTree):
    """What is minimised, per image, in nats. A setting that the kind has no use for is refused.

    elbo: Σ recon_nll + β·KL, β rising linearly from 0 over the KL warm-up. `free_bits`: nats of
    the batch's mean KL that each latent dimension has for free.
    capacity: Σ recon_nll + β·|KL − C|, C rising linearly from 0 to `capacity` nats over
    `capacity_steps`.
    beta_tc: Σ recon_nll + α·index-code MI + β·total correlation + γ·dimension-wise KL.
    importance_weighted: −log of the mean of `samples` importance weights (IWAE).
    score_function: elbo, its encoder's gradient by the score function with a leave-one-out
    baseline over `samples`; for study.
    reconstruction: Σ recon_nll, for a deterministic posterior.

    Beside any of them, `corruption` of what the encoder sees (denoising), `weight_decay`·½‖W‖²,
    a `sparsity` penalty towards a mean activation `sparsity_target`, and for a deterministic
    posterior a `contraction` penalty on the encoder's Jacobian (`probes` random directions, or
    exactly with 0).
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    kind: ObjectiveKind = "elbo"
    beta: float = 1.0
    kl_warmup_steps: int = 0
    free_bits: float = 0.0
    capacity: float = 0.0
    capacity_steps: int = 0
    alpha: float = 1.0
    gamma: float = 1.0
    samples: int = 1
    corruption: CorruptionKind = "none"
    corruption_amount: float = 0.0
    weight_decay: float = 0.0
    sparsity: float = 0.0
    sparsity_target: float = 0.05
    contraction: float = 0.0
    probes: int = 0

    def __post_init__(self) -> None:
        choice("objective.kind", self.kind, ObjectiveKind)
        choice("objective.corruption", self.corruption, CorruptionKind)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not isinstance(field.default, str):
                require_number(f"objective.{field.name}", value, field.default)
                require(value >= 0, f"objective.{field.name} must be at least 0, got {value}")
            users = _OBJECTIVE_SETTINGS.get(field.name)
            require(
                users is None or value == field.default or self.kind in users,
                f"objective.{field.name} has no use in kind {self.kind}; it belongs to "
                f"{', '.join(users or ())}",
            )
        self._check_ranges()

    def _check_ranges(self) -> None:
        require(self.samples > 0, f"objective.samples must be positive, got {self.samples}")
        require(
            self.kind != "score_function" or self.samples > 1,
            "objective.samples must be at least 2: each sample's baseline is the others' mean",
        )
        require(
            0.0 < self.sparsity_target < 1.0,
            f"objective.sparsity_target must lie in (0, 1), got {self.sparsity_target}",
        )
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name, user in (
            ("corruption_amount", "corruption"),
            ("probes", "contraction"),
            ("sparsity_target", "sparsity"),
        ):
            require(
                getattr(self, name) == defaults[name] or getattr(self, user) != defaults[user],
                f"objective.{name} has no use without objective.{user}",
            )
        require(
            self.corruption != "mask" or self.corruption_amount <= 1.0,
            f"objective.corruption_amount is a probability here, got {self.corruption_amount}",
        )

    @property
    def of_whole_batch(self) -> bool:
        """Whether it takes a statistic of the batch, so that parts of one do not add up."""
        return self.kind == "beta_tc" or self.free_bits > 0.0 or self.sparsity > 0.0

    @property
    def warm_from(self) -> int:
        """The first optimiser step with its final weights: before, losses do not compare."""
        return max(self.kl_warmup_steps, self.capacity_steps)

    def beta_at(self, step: int) -> float:
        """β of optimiser step `step` (from 0)."""
        return self.beta * self.warmup_at(step)

    def warmup_at(self, step: int) -> float:
        """Return the share of the KL term that counts at optimiser step `step` (from 0)."""
        if self.kl_warmup_steps == 0:
            return 1.0
        return min(1.0, (step + 1) / self.kl_warmup_steps)

    def capacity_at(self, step: int) -> float:
        """C of optimiser step `step` (from 0), in nats."""
        if self.capacity_steps == 0:
            return self.capacity
        return self.capacity * min(1.0, (step + 1) / self.capacity_steps)


# Which kinds a setting belongs to; those that are not named here belong to all.
_OBJECTIVE_SETTINGS: dict[str, tuple[str, ...]] = {
    "beta": ("elbo", "capacity", "beta_tc", "score_function"),
    "kl_warmup_steps": ("elbo", "score_function", "beta_tc"),
    "free_bits": ("elbo",),
    "capacity": ("capacity",),
    "capacity_steps": ("capacity",),
    "alpha": ("beta_tc",),
    "gamma": ("beta_tc",),
    "samples": ("importance_weighted", "score_function"),
    "contraction": ("reconstruction",),
    "probes": ("reconstruction",),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(ConfigTree):
    """Everything that fixes the shape of a model's weights and the meaning of its outputs.

    posterior: gaussian, a diagonal Gaussian with a standard normal prior (a VAE); deterministic,
    a code (an autoencoder). code: a deterministic posterior's, as the encoder gives it or squashed
    into (0, 1), which sparsity needs. fit: by gradient, or in closed form (linear networks: PCA
    for a deterministic posterior, probabilistic PCA for a Gaussian one).
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    image_shape: tuple[int, int, int]  # H, W, C
    latent_dim: int = 32
    network: NetworkConfig = NetworkConfig()
    likelihood: LikelihoodConfig = LikelihoodConfig()
    posterior: PosteriorKind = "gaussian"
    code: CodeKind = "linear"
    fit: FitKind = "gradient"

    def __post_init__(self) -> None:
        choice("posterior", self.posterior, PosteriorKind)
        choice("code", self.code, CodeKind)
        choice("fit", self.fit, FitKind)
        require(
            len(self.image_shape) == 3 and all(0 < n <= LARGEST for n in self.image_shape),
            f"image_shape must be three positive numbers H, W, C, at most {LARGEST}, got "
            f"{list(self.image_shape)}",
        )
        require(
            0 < self.latent_dim <= LARGEST,
            f"latent_dim must be positive, at most {LARGEST}, got {self.latent_dim}",
        )
        require(
            self.fit == "gradient"
            or (
                self.network.kind == "linear"
                and not self.network.tied
                and self.likelihood.kind == "gaussian"
                and self.code == "linear"
            ),
            "fit: closed_form needs network.kind: linear (not tied), likelihood.kind: gaussian "
            "and code: linear",
        )
        require(
            not self.network.tied or LIKELIHOOD_FACTS[self.likelihood.kind].outputs == 1,
            f"network.tied gives one number a pixel value, likelihood.kind {self.likelihood.kind} "
            f"needs more; take one of {', '.join(_one_output())}",
        )
        require(
            self.code == "linear" or self.posterior == "deterministic",
            "code: sigmoid needs posterior: deterministic; a Gaussian's mean is unbounded",
        )

    @property
    def pixels(self) -> int:
        """P = H·W·C."""
        height, width, channels = self.image_shape
        return height * width * channels

    def check_objective(self, objective: ObjectiveConfig) -> None:
        """Raise ValueError unless this posterior can be trained by that objective."""
        plain = objective.kind == "reconstruction"
        require(
            plain == (self.posterior == "deterministic"),
            f"objective.kind {objective.kind} does not go with a {self.posterior} posterior: a "
            "deterministic one has no KL and takes reconstruction, a gaussian one any other",
        )
        own = ObjectiveConfig(kind="reconstruction" if plain else "elbo")
        require(
            self.fit == "gradient" or objective == own,
            "fit: closed_form has its own objective, the likelihood (or the squared error): leave "
            "objective at elbo (gaussian) or reconstruction (deterministic), without settings",
        )
        require(
            objective.sparsity == 0.0 or self.code == "sigmoid",
            "objective.sparsity needs activations in (0, 1): posterior: deterministic and "
            "code: sigmoid",
        )

    def check_closed_form(self) -> None:
        """Raise ValueError where images of this shape are too large, or too small, for the fit."""
        if self.fit == "gradient":
            return
        require(
            self.pixels <= CLOSED_FORM_PIXELS,
            f"fit: closed_form takes images of at most {CLOSED_FORM_PIXELS} pixel values, these "
            f"have {self.pixels}; stage them smaller, or use fit: gradient",
        )
        require(
            self.latent_dim < self.pixels,
            f"fit: closed_form takes fewer latent dimensions ({self.latent_dim}) than pixel "
            f"values ({self.pixels})",
        )


def _one_output() -> list[str]:
    """Kinds that tied weights can serve: they give one number for each pixel value."""
    return [kind for kind, facts in LIKELIHOOD_FACTS.items() if facts.outputs == 1]
