"""Training checkpoints in the lake: safetensors and JSON, the JSON written last.

State is the same on every rank, so the first one saves it, in the background: training goes on
while the lake is slow or away, and the next checkpoint makes up for one that failed.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from jobs.errors import InputError, JobError, LatentlakeError
from jobs.lake.documents import parsed, reading
from jobs.lake.storage import create_or_keep, delete, delete_tree, join, names_in, read

log = logging.getLogger("latentlake")

FORMAT = 2
FRESH = "train with --fresh"


@dataclasses.dataclass(kw_only=True)
class Position:
    """Where a training stands: `epochs` whole ones, `batch` batches of the next, `step` steps.

    sums: loss, recon_nll, kl in nats and images of the epoch so far, over all ranks. best: epoch,
    validation and weights file of the best epoch, once there is one.
    """

    epochs: int = 0
    batch: int = 0
    step: int = 0
    sums: list[float] = dataclasses.field(default_factory=lambda: [0.0] * 4)
    seconds: float = 0.0
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    best: dict[str, Any] | None = None
    bad_steps: int = 0

    def copy(self) -> Position:
        """As it is now."""
        return copy.deepcopy(self)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A training's state as it was saved: position, tensors, the best weights so far."""

    position: Position
    tensors: dict[str, Tensor]
    best: dict[str, Tensor] | None


def newest(folder: str) -> str | None:
    """Name of the newest checkpoint in a folder that has all it names."""
    names = set(names_in(folder))
    for name in sorted((name for name in names if name.endswith(".json")), reverse=True):
        try:
            if _named_by(folder, name) <= names:
                return name
        except InputError as error:
            log.warning("%s", error)
    return None


def _complete(folder: str) -> list[str]:
    return [name for name in names_in(folder) if name.endswith(".json")]


def load(folder: str, name: str) -> Checkpoint:
    """Raise JobError where it is of another format."""
    uri = join(folder, name)
    body = parsed(dict[str, Any], read(uri), uri, FRESH)
    if body.pop("format", None) != FORMAT:
        raise JobError(f"{uri} is a checkpoint of another release; {FRESH}")
    with reading(uri, FRESH):
        state = body.pop("state")
        position = Position(**body)
        best = position.best
        return Checkpoint(
            position,
            safetensors.torch.load(read(join(folder, state))),
            safetensors.torch.load(read(join(folder, best["weights"]))) if best else None,
        )


def clear(folder: str) -> None:
    """Remove a training's checkpoints."""
    delete_tree(folder)


def _named_by(folder: str, name: str) -> set[str]:
    uri = join(folder, name)
    body = parsed(dict[str, Any], read(uri), uri, "the one before it is taken")
    with reading(uri, "the one before it is taken"):
        return {body["state"]} | ({body["best"]["weights"]} if body["best"] else set())


class Saver:
    """Saves checkpoints of one attempt, one at a time, and keeps the newest ones."""

    def __init__(self, folder: str, attempt: str, keep: int, say: Callable[[str], None]) -> None:
        """say: tells people what could not be saved."""
        self.folder = folder
        self.attempt = attempt
        self.keep = keep
        self._say = say
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._saving: Future[None] | None = None
        self._there: set[str] = set()  # names of weights that are in the lake

    def resumed_from(self, checkpoint: Checkpoint) -> None:
        """Note that what that checkpoint needs is there already."""
        if checkpoint.position.best is not None:
            self._there.add(checkpoint.position.best["weights"])

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._saving is not None and not self._saving.done()

    def best_name(self, epoch: int) -> str:
        """Of the weights of an epoch: an attempt's own, so that two attempts never mix."""
        return f"best-{epoch:06d}-{self.attempt}.safetensors"

    def save(
        self, position: Position, tensors: dict[str, Tensor], best: dict[str, Tensor] | None
    ) -> None:
        """Save in the background. tensors and best: nobody changes them from now on."""
        assert not self.busy
        self._saving = self._pool.submit(self._save, position, tensors, best)

    def _save(
        self, position: Position, tensors: dict[str, Tensor], best: dict[str, Tensor] | None
    ) -> None:
        name = f"step-{position.step:010d}"
        try:
            name_of_best = position.best["weights"] if position.best else None
            if best is not None and name_of_best and name_of_best not in self._there:
                self._put(name_of_best, best)
                self._there.add(name_of_best)
            state = f"{name}-{self.attempt}.safetensors"
            self._put(state, tensors)
            body = {"format": FORMAT, **dataclasses.asdict(position), "state": state}
            create_or_keep(join(self.folder, f"{name}.json"), json.dumps(body).encode())
            self._thin_out(name_of_best)
        except LatentlakeError as error:
            self._say(f"checkpoint {name} was not saved: {error}; training goes on")

    def _put(self, name: str, tensors: dict[str, Tensor]) -> None:
        create_or_keep(join(self.folder, name), safetensors.torch.save(tensors))

    def _thin_out(self, best: str | None) -> None:
        """Remove all but the newest ones and what those need; the JSON of each goes first.

        best: weights that the next one will need, although none of these may.
        """
        complete = sorted(_complete(self.folder))
        needed = {best}.union(*(_named_by(self.folder, name) for name in complete[-self.keep :]))
        # Only what a checkpoint names: another attempt may have put what it has yet to name.
        for name in complete[: -self.keep]:
            old = _named_by(self.folder, name) - needed
            delete(join(self.folder, name))
            for part in sorted(old):
                delete(join(self.folder, part))

    def wait(self) -> None:
        """Until nothing is being saved."""
        if self._saving is not None:
            self._saving.result()

    def finish(self) -> None:
        """Wait for what is being written. Raises the error that it ended with."""
        self._pool.shutdown(wait=True)


def pack(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    average: dict[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Copy weights, optimiser state and averaged weights, as named tensors on the CPU."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    names = {id(p): name for name, p in model.named_parameters()}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            tensors[f"optimizer.{names[id(parameter)]}.{key}"] = value
    tensors |= {f"average.{name}": value for name, value in (average or {}).items()}
    return copied(tensors)


def copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, in row-major order, sharing nothing."""
    return {
        name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()
    }


def unpack(
    tensors: dict[str, Tensor],
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
) -> dict[str, Tensor]:
    """Do the reverse of `pack`, in place; return the averaged weights.

    Raises JobError where the checkpoint is of another model.
    """
    weights = _below("model.", tensors)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise JobError(
            f"the checkpoint is of another model than these settings make: {error}; train with "
            "--fresh, or with the code that wrote it"
        ) from error
    for name, parameter in model.named_parameters():
        state = _below(f"optimizer.{name}.", tensors)
        if state:
            optimizer.state[parameter] = {
                key: _beside(parameter, value) for key, value in state.items()
            }
    return _below("average.", tensors)


def _beside(parameter: Tensor, value: Tensor) -> Tensor:
    """On the parameter's device, and laid out as it: a fused optimiser goes by memory."""
    if value.shape != parameter.shape:
        return value.to(parameter.device)
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)}
