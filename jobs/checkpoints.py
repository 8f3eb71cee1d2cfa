"""Training checkpoints in the lake: safetensors and JSON, the JSON written last."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import safetensors.torch
import torch

from jobs.storage import create_or_keep, delete_tree, join, list_folder, read


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """State after `epochs` whole epochs and `step` optimiser steps."""

    epochs: int
    step: int
    history: list[dict[str, Any]]
    tensors: dict[str, torch.Tensor]


def newest(folder: str) -> str | None:
    """Name of the newest complete checkpoint in a folder."""
    names = [entry["name"].rsplit("/", 1)[-1] for entry in list_folder(folder)]
    return max((name for name in names if name.endswith(".json")), default=None)


def save(folder: str, attempt: str, checkpoint: Checkpoint) -> None:
    """The state's name carries the attempt, so that two attempts never mix."""
    name = f"epoch-{checkpoint.epochs:06d}"
    state = f"{name}-{attempt}.safetensors"
    create_or_keep(join(folder, state), safetensors.torch.save(checkpoint.tensors))
    body = {
        "epochs": checkpoint.epochs,
        "step": checkpoint.step,
        "history": checkpoint.history,
        "state": state,
    }
    create_or_keep(join(folder, f"{name}.json"), json.dumps(body).encode())


def load(folder: str, name: str) -> Checkpoint:
    body = json.loads(read(join(folder, name)))
    tensors = safetensors.torch.load(read(join(folder, body["state"])))
    return Checkpoint(body["epochs"], body["step"], body["history"], tensors)


def clear(folder: str) -> None:
    delete_tree(folder)


def pack(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Weights and optimiser state as named tensors."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    names = {id(p): name for name, p in model.named_parameters()}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            tensors[f"optimizer.{names[id(parameter)]}.{key}"] = value
    return {name: value.detach().clone().contiguous() for name, value in tensors.items()}


def unpack(
    tensors: dict[str, torch.Tensor], model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """The reverse of `pack`, in place."""
    prefix = "model."
    model.load_state_dict(
        {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)}
    )
    for name, parameter in model.named_parameters():
        start = f"optimizer.{name}."
        state = {n.removeprefix(start): v for n, v in tensors.items() if n.startswith(start)}
        if state:
            optimizer.state[parameter] = state
