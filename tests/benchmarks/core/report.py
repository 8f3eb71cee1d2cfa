"""What a benchmark found, as JSON in `.bench/`, and its learning curve as it grows."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import safetensors.torch
import torch

from tests.benchmarks.core.data import FOLDER


class Report:
    """Values and a learning curve under one name."""

    def __init__(self, name: str, settings: dict[str, Any]) -> None:
        folder = FOLDER / "short" if os.environ.get("LATENTLAKE_BENCH_SHORT") else FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{name}.json"
        self.body: dict[str, Any] = {
            "name": name,
            "settings": settings,
            "torch": torch.__version__,
            "values": {},
            "curve": [],
        }

    def set(self, **values: Any) -> None:
        self.body["values"] |= values

    def curve(self, entry: dict[str, float]) -> None:
        self.body["curve"].append(entry)
        self.save(quiet=True)
        sys.stderr.write(" ".join(f"{k} {v:.5g}" for k, v in entry.items()) + "\n")

    def model(self, model: torch.nn.Module) -> None:
        """Keeps the weights, so that an estimate can be taken again."""
        tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
        safetensors.torch.save_file(tensors, self.path.with_suffix(".safetensors"))

    def save(self, *, quiet: bool = False) -> None:
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(self.body, indent=1))
        partial.rename(self.path)
        if not quiet:
            sys.stdout.write(json.dumps({"name": self.body["name"], **self.body["values"]}) + "\n")
