"""An exponential moving average of a model's weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class WeightAverage:
    """Of the trained parameters; all else of a model's state is as it is.

    The average of the first steps is short, min(decay, (1 + step) / (10 + step)), so that it does
    not remember where training began.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = model
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._live: list[Tensor] = list(trained.values())
        self.average = {name: p.detach().clone() for name, p in trained.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After optimiser step `step` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        average = list(self.average.values())
        torch._foreach_lerp_(average, self._live, 1.0 - decay)  # pyright: ignore[reportPrivateImportUsage]

    def load(self, average: dict[str, Tensor]) -> None:
        """Take over an average that a checkpoint kept."""
        for name, value in self.average.items():
            value.copy_(average[name])

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Give the model the average for weights meanwhile."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for parameter, average in zip(self._live, self.average.values(), strict=True):
            current = parameter.clone()
            parameter.copy_(average)
            average.copy_(current)
