"""Where a model computes: its device, precision and compilation."""

from __future__ import annotations

import importlib.util
from typing import Any, Protocol, TypeVar

import torch


class Placement(Protocol):
    """Where and how a model computes."""

    @property
    def device(self) -> str | torch.device:
        """Return the device: cpu, cuda, or torch's own."""
        ...

    @property
    def compiled(self) -> bool:
        """Whether networks are compiled."""
        ...

    @property
    def channels_last(self) -> bool:
        """Whether weights and images lie with their channels last."""
        ...


class Placeable(Protocol):
    """A model: its tensors move, and its networks compile in place."""

    def to(self, *arguments: Any, **more: Any) -> Any:
        """Move to a device, or to a memory format."""
        ...

    def compile_networks(self) -> None:
        """Compile the networks in place."""
        ...


M = TypeVar("M", bound=Placeable)


def place(model: M, way: Placement) -> M:
    """Put the model on the device, its networks compiled where that is wanted."""
    model.to(way.device)
    if way.channels_last:
        # Only weights of four dimensions have such a format.
        model.to(memory_format=torch.channels_last)
    if way.compiled:
        model.compile_networks()
    return model


def has_bfloat16(device: str) -> bool:
    """Whether it is fast there; older GPUs do it in steps, and a CPU is slower for it."""
    return device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def can_compile() -> bool:
    """Whether this process can compile for a GPU."""
    return importlib.util.find_spec("triton") is not None
