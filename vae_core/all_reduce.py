"""The other ranks, where a loss needs a statistic of the whole global batch."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _SumOverRanks(torch.autograd.Function):
    """The sum over ranks. Its adjoint is the same sum: every rank's loss depends on every share."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


@dataclasses.dataclass(frozen=True, kw_only=True)
class Peers:
    """world_size: ranks in all. Alone, everything stays what it is."""

    world_size: int = 1

    def sum(self, values: Tensor) -> Tensor:
        """Return the element-wise sum over ranks; differentiable: of the sum of the ranks'
        losses."""
        if self.world_size == 1:
            return values
        return _SumOverRanks.apply(values)  # type: ignore[no-any-return]

    def gather(self, rows: Tensor, positions: slice | Tensor, count: int) -> Tensor:
        """All ranks' rows in the order of the global batch, (count, …); differentiable."""
        if self.world_size == 1:
            return rows
        whole = rows.new_zeros(count, *rows.shape[1:])
        index = torch.arange(count, device=rows.device)[positions]
        return self.sum(whole.index_copy(0, index, rows))


ALONE = Peers()
