"""What a training worker computes on and with: chosen for what it has, unless settings say."""

from __future__ import annotations

import dataclasses

import torch

from jobs.bundles.device import can_compile, has_bfloat16
from jobs.bundles.manifest import Compute
from jobs.errors import InputError
from jobs.train.settings import TrainSettings
from vae_core.precision import Precision

CONVOLUTIONS = ("conv", "residual")


@dataclasses.dataclass(frozen=True)
class Hardware:
    """What a worker computes on, and how."""

    device: torch.device
    precision: Precision
    compiled: bool
    channels_last: bool
    threads: int

    def __str__(self) -> str:
        name = "cpu" if self.device.type == "cpu" else torch.cuda.get_device_name(self.device)
        parts = [name, self.precision, "compiled" if self.compiled else "eager"]
        if self.channels_last:
            parts.append("channels last")
        if self.device.type == "cpu":
            parts.append(f"{self.threads} thread{'s' if self.threads > 1 else ''}")
        return ", ".join(parts)

    def scoring(self, settings: TrainSettings) -> Compute:
        """How the trained model's images are scored, here and by embed later.

        Compiled on a GPU only: on a CPU each of many workers would wait for its compiler.
        """
        automatic: Precision = "bfloat16" if has_bfloat16(self.device.type) else "float32"
        wanted = settings.score_precision
        return Compute(
            batch_size=settings.score_batch,
            device=self.device.type,
            precision=automatic if wanted == "auto" else wanted,
            compiled=self.compiled and self.device.type == "cuda",
            channels_last=self.channels_last,
        )


def choose(settings: TrainSettings) -> Hardware:
    """Raise InputError where a GPU is requested and the worker has none."""
    run = settings.run
    has_gpu = torch.cuda.is_available()
    if run.device == "cuda" and not has_gpu:
        raise InputError(
            "run.device is cuda, but the worker has no GPU that torch can use; set it to auto, or "
            "install torch's CUDA build"
        )
    on_gpu = has_gpu and run.device != "cpu"
    precision: Precision = "float32"
    if settings.precision != "auto":
        precision = settings.precision
    elif has_bfloat16("cuda" if on_gpu else "cpu"):
        precision = "bfloat16"
    compiled = run.compile
    if compiled is None:
        compiled = on_gpu and can_compile()
    channels_last = run.channels_last
    if channels_last is None:
        channels_last = on_gpu and settings.network.kind in CONVOLUTIONS
    device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    return Hardware(device, precision, compiled, channels_last, run.threads)
