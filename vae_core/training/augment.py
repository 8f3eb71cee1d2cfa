"""Flips and crops of a training batch, on its own device, by noise that belongs to the image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vae_core.noise import AUGMENTATION, Noise


def augment(x_NCHW: Tensor, noise: Noise, *, flip: bool = False, crop: int = 0) -> Tensor:
    """Mirrors half of the images left to right; shifts each by up to `crop` pixels either way.

    What a shift uncovers is the picture's own mirror image at that edge: flat borders would be
    something to learn. crop must be smaller than both sides.
    """
    if not len(x_NCHW) or not (flip or crop):
        return x_NCHW
    u_N3 = noise.uniform(AUGMENTATION, 3).to(x_NCHW.device)
    if flip:
        mirrored = (u_N3[:, 0] < 0.5).reshape(-1, 1, 1, 1)
        x_NCHW = torch.where(mirrored, x_NCHW.flip(3), x_NCHW)
    return _shifted(x_NCHW, (u_N3[:, 1:] * (2 * crop + 1)).long(), crop) if crop else x_NCHW


def _shifted(x_NCHW: Tensor, offsets_N2: Tensor, crop: int) -> Tensor:
    count, _, height, width = x_NCHW.shape
    padded = F.pad(x_NCHW, (crop, crop, crop, crop), mode="reflect").permute(0, 2, 3, 1)
    device = x_NCHW.device
    rows_NH = offsets_N2[:, :1] + torch.arange(height, device=device)
    columns_NW = offsets_N2[:, 1:] + torch.arange(width, device=device)
    images = torch.arange(count, device=device).reshape(-1, 1, 1)
    return padded[images, rows_NH[:, :, None], columns_NW[:, None, :]].permute(0, 3, 1, 2)
