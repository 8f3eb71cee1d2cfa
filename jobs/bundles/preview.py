"""What a model makes of images, to be looked at: reconstructions and samples on one sheet."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from jobs.datasets.splits import ImageSet
from jobs.imaging.contact_sheet import Row, contact_sheet
from vae_core.model import Model, to_unit_range
from vae_core.moments import LatentMoments
from vae_core.noise import ImageNoise, image_keys

SHEET_IMAGES = 12  # a row


@torch.no_grad()
def sheet_of(
    model: Model, images: ImageSet, heading: str, moments: LatentMoments | None = None
) -> bytes:
    """PNG: images, their reconstructions, and samples; the same for the same weights.

    A deterministic posterior has no prior: its samples need the moments of its codes, and are
    left out without.
    """
    device = next(model.parameters()).device
    keys = torch.from_numpy(image_keys(images.image_ids)).to(device)
    x = to_unit_range(torch.from_numpy(images.pixels_NHWC).to(device))
    rows = [
        Row("images of the validation split", list(images.pixels_NHWC), []),
        Row(
            "their reconstructions",
            shown(model.reconstruct(x, ImageNoise(seed=0, keys_N2=keys))),
            [],
        ),
    ]
    if model.has_prior or moments is not None:
        sampled = model.sample(SHEET_IMAGES, torch.Generator().manual_seed(0), moments)
        fitted = "from a Gaussian fitted to the codes"
        prior = "from the prior" if model.has_prior else fitted
        rows.append(Row(f"samples {prior}", shown(sampled), []))
    return contact_sheet(heading, rows)


def shown(x_NCHW: Tensor) -> list[np.ndarray]:
    """uint8 (H, W, C) each, of values in [0, 1]."""
    pixels = x_NCHW.mul(255.0).round().to(torch.uint8).permute(0, 2, 3, 1)
    return list(pixels.cpu().contiguous().numpy())
