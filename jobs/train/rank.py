"""A training worker's place among all of them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch.distributed as dist
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Rank:
    """index: from 0. What several ranks do together, every one of them has to call."""

    index: int = 0
    world_size: int = 1

    @classmethod
    def here(cls) -> Rank:
        """Of this process in the process group; alone where there is none."""
        return cls(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else cls()

    @property
    def is_first(self) -> bool:
        """Whether it is the rank that writes."""
        return self.index == 0

    def sum(self, values: Tensor) -> Tensor:
        """Sum over ranks by element, in place; return the same tensor."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: np.ndarray) -> np.ndarray:
        """All ranks' arrays, one after the other in rank order."""
        if self.world_size == 1:
            return value
        parts: list[Any] = [None] * self.world_size
        dist.all_gather_object(parts, value)
        return np.concatenate(parts)

    def agree(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def wait(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            dist.barrier()
