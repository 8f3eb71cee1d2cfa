"""What a model is: one frozen tree, strict about its keys."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

NetworkKind = Literal["mlp", "conv"]
LikelihoodKind = Literal[
    "bernoulli", "continuous_bernoulli", "categorical", "gaussian", "pixel_gaussian"
]


@dataclasses.dataclass(frozen=True)
class ConfigTree:
    """Strict conversion between a frozen dataclass and plain JSON values."""

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, numbers and strings; `from_dict` gives the same config back."""
        return _plain(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Raises ValueError that names a key it does not know, and lists the known ones."""
        resolved = typing.get_type_hints(cls)
        hints = {field.name: resolved[field.name] for field in dataclasses.fields(cls)}
        unknown = sorted(set(data) - set(hints))
        if unknown:
            raise ValueError(
                f"{cls.__name__}: unknown key {unknown[0]!r}; known keys: {', '.join(hints)}"
            )
        return cls(**{key: _typed(hints[key], value) for key, value in data.items()})


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return list(value) if isinstance(value, tuple) else value


def _typed(hint: Any, value: Any) -> Any:
    if isinstance(hint, type) and issubclass(hint, ConfigTree) and isinstance(value, Mapping):
        return hint.from_dict(value)
    if typing.get_origin(hint) is tuple and isinstance(value, list):
        return tuple(value)
    if typing.get_origin(hint) is types.UnionType and isinstance(value, list):
        return tuple(value)
    return value


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _choice(name: str, value: str, kind: Any) -> None:
    known = typing.get_args(kind)
    _require(value in known, f"{name} is {value!r}; known: {', '.join(known)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkConfig(ConfigTree):
    """Encoder and decoder. `widths` are hidden units (mlp) or channels, one per halving (conv)."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    kind: NetworkKind = "conv"
    widths: tuple[int, ...] = (32, 64)
    hidden: int = 256

    def __post_init__(self) -> None:
        _choice("network.kind", self.kind, NetworkKind)
        _require(
            len(self.widths) > 0 and all(w > 0 for w in self.widths),
            f"network.widths must be positive, got {list(self.widths)}",
        )
        _require(self.hidden > 0, f"network.hidden must be positive, got {self.hidden}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LikelihoodConfig(ConfigTree):
    """How the decoder explains pixels in [0, 1].

    bernoulli: pixels are binarised at `threshold` first, so the likelihood is a real one.
    continuous_bernoulli: a density on [0, 1], with its normaliser.
    categorical: one of the 256 values a pixel can have.
    gaussian: one σ for all pixels, learned with the weights, or fixed where `sigma` is given.
    pixel_gaussian: a σ for each pixel, from the decoder.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    kind: LikelihoodKind = "gaussian"
    threshold: float = 0.5
    sigma: float | None = None

    def __post_init__(self) -> None:
        _choice("likelihood.kind", self.kind, LikelihoodKind)
        _require(
            0.0 < self.threshold < 1.0,
            f"likelihood.threshold must lie in (0, 1), got {self.threshold}",
        )
        _require(
            self.sigma is None or self.sigma > 0.0,
            f"likelihood.sigma must be positive, got {self.sigma}",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveConfig(ConfigTree):
    """loss = Σ recon_nll + β·KL per image, β rising linearly from 0 over the KL warm-up."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    beta: float = 1.0
    kl_warmup_steps: int = 0

    def __post_init__(self) -> None:
        _require(self.beta >= 0.0, f"objective.beta must be at least 0, got {self.beta}")
        _require(
            self.kl_warmup_steps >= 0,
            f"objective.kl_warmup_steps must be at least 0, got {self.kl_warmup_steps}",
        )

    def beta_at(self, step: int) -> float:
        """β of optimiser step `step` (from 0)."""
        if self.kl_warmup_steps == 0:
            return self.beta
        return self.beta * min(1.0, (step + 1) / self.kl_warmup_steps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(ConfigTree):
    """Everything that fixes the shape of a model's weights and the meaning of its outputs."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    image_shape: tuple[int, int, int]  # H, W, C
    latent_dim: int = 32
    network: NetworkConfig = NetworkConfig()
    likelihood: LikelihoodConfig = LikelihoodConfig()

    def __post_init__(self) -> None:
        _require(
            len(self.image_shape) == 3 and all(n > 0 for n in self.image_shape),
            f"image_shape must be three positive numbers H, W, C, got {list(self.image_shape)}",
        )
        _require(self.latent_dim > 0, f"latent_dim must be positive, got {self.latent_dim}")

    @property
    def pixels(self) -> int:
        """P = H·W·C."""
        height, width, channels = self.image_shape
        return height * width * channels
