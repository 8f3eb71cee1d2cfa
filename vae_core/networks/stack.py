"""Layers one after the other, in a form that torch.compile takes as a whole."""

from __future__ import annotations

from torch import Tensor, nn
from typing_extensions import override


class Stack(nn.Sequential):
    """The same as nn.Sequential, names of weights included.

    `Module.compile` leaves torch's own containers as they are, and says nothing (2.11 – 2.13): it
    traces a `forward` that is not torch's.
    """

    @override
    def forward(self, input: Tensor) -> Tensor:
        for module in self:
            input = module(input)
        return input
