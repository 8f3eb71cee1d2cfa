"""What a model makes of images, for a report: reconstructions, errors, samples, traversals.

In float32 on the CPU, whatever the model was trained on: for the eye, not for a table. The same
bundle and images give the same pictures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from jobs.bundles.bundle import Bundle, load
from jobs.bundles.preview import shown
from jobs.lake.paths import LakePaths
from vae_core.latent_space import interpolate, traverse
from vae_core.model import Model, to_unit_range
from vae_core.noise import ImageNoise, image_keys

STEPS = 9  # of a path or a traversal
DIMENSIONS = 6
PATHS = 4
SAMPLES = 24
REACH = 3.0  # of a traversal, in standard deviations


@dataclasses.dataclass(frozen=True)
class Compared:
    """Images, what the model makes of them, and the squared error of each pixel.

    ids: N. images, reconstructions: uint8 (H, W, C) each. errors: float32 (N, H, W), of
    intensities in [0, 1], mean over channels.
    """

    ids: list[str]
    images: list[np.ndarray]
    reconstructions: list[np.ndarray]
    errors_NHW: np.ndarray


@dataclasses.dataclass(frozen=True)
class Traversal:
    """kl: of the dimension, mean over the reference images, in nats; None without a prior."""

    dimension: int
    kl: float | None
    frames: list[np.ndarray]


@dataclasses.dataclass(frozen=True)
class Paintings:
    """top: the squared error that error maps show at their brightest. has_prior: else samples are
    of a Gaussian fitted to the codes."""

    usual: Compared
    flagged: Compared
    top: float
    has_prior: bool
    samples: list[np.ndarray]
    paths: list[list[np.ndarray]]
    traversals: list[Traversal]


def image_shape(lake: LakePaths, model: str, version: str) -> tuple[int, int, int]:
    """H, W, C that a bundle takes."""
    return load(lake, model, version).config.image_shape


@torch.no_grad()
def paint(
    lake: LakePaths,
    model: str,
    version: str,
    usual: dict[str, np.ndarray],
    flagged: dict[str, np.ndarray],
) -> Paintings:
    """usual, flagged: uint8 (H, W, C) of the model's shape by image id; usual: at least one."""
    bundle = load(lake, model, version)
    network = bundle.network()
    seed = bundle.about["scoring"]["seed"]
    compared = _compare(network, usual, seed)
    x_NCHW, noise = _input(usual, seed)
    posterior = network.encode(network.observe(x_NCHW, noise))
    kl_ND = network.kl(posterior)
    weight_D = posterior.mean_ND.var(0, correction=0) if kl_ND is None else kl_ND.mean(0)
    generator = torch.Generator().manual_seed(0)
    return Paintings(
        usual=compared,
        flagged=_compare(network, flagged, seed),
        top=float(np.quantile(compared.errors_NHW, 0.995)),
        has_prior=network.has_prior,
        samples=shown(network.sample(SAMPLES, generator, bundle.moments)),
        paths=_paths(network, network.observe(x_NCHW, noise)),
        traversals=_traversals(bundle, network, posterior.mean_ND, weight_D, kl_ND is not None),
    )


def _input(images: dict[str, np.ndarray], seed: int) -> tuple[torch.Tensor, ImageNoise]:
    x_NCHW = to_unit_range(torch.from_numpy(np.stack(list(images.values()))))
    keys_N2 = torch.from_numpy(image_keys(list(images)))
    return x_NCHW, ImageNoise(seed=seed, keys_N2=keys_N2)


def _compare(network: Model, images: dict[str, np.ndarray], seed: int) -> Compared:
    if not images:
        return Compared([], [], [], np.zeros((0, 0, 0), np.float32))
    x_NCHW, noise = _input(images, seed)
    target_NCHW = network.observe(x_NCHW, noise)
    mean_NCHW = network.show(network.encode(target_NCHW).mean_ND)
    errors_NHW = (mean_NCHW - target_NCHW).square().mean(1).numpy()
    return Compared(list(images), list(images.values()), shown(mean_NCHW), errors_NHW)


def _paths(network: Model, target_NCHW: torch.Tensor) -> list[list[np.ndarray]]:
    """Between the first images and those that follow them."""
    way = "spherical" if network.has_prior else "linear"
    count = min(PATHS, len(target_NCHW) // 2)
    return [
        shown(interpolate(network, target_NCHW[2 * i], target_NCHW[2 * i + 1], STEPS, way))
        for i in range(count)
    ]


def _traversals(
    bundle: Bundle,
    network: Model,
    mean_ND: torch.Tensor,
    weight_D: torch.Tensor,
    has_kl: bool,
) -> list[Traversal]:
    """Of the dimensions that say the most, around the first image."""
    order: Sequence[int] = torch.argsort(weight_D, descending=True, stable=True).tolist()
    spread_D = mean_ND.std(0, correction=0) if not has_kl else torch.ones_like(weight_D)
    centre_D = bundle.moments.mean_D.to(mean_ND) if not has_kl else torch.zeros_like(weight_D)
    found = []
    for dimension in order[:DIMENSIONS]:
        reach = REACH * float(spread_D[dimension])
        values = torch.linspace(-reach, reach, STEPS) + float(centre_D[dimension])
        frames = shown(traverse(network, mean_ND[0], dimension, values))
        kl = float(weight_D[dimension]) if has_kl else None
        found.append(Traversal(dimension, kl, frames))
    return found
