"""How large a model is, and how much work an image is."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vae_core.model import Model


def parameter_count(module: nn.Module) -> int:
    """Trainable numbers in a module."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


@torch.no_grad()
def forward_flops(model: Model) -> int:
    """Floating-point operations of encoding and decoding one image, a multiply-add counted as 2.

    Matrix products and convolutions, as torch's own counter finds them; what is element-wise is
    left out.
    """
    height, width, channels = model.config.image_shape
    like = next(model.parameters())
    x = torch.zeros(1, channels, height, width, device=like.device, dtype=like.dtype)
    with FlopCounterMode(display=False) as counter:
        model.decode(model.encode(x).mean_ND)
    return counter.get_total_flops()
