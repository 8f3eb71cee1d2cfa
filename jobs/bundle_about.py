"""What a bundle says about itself: `model.json`, read without torch."""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

from jobs.errors import InputError
from jobs.lake import Lake
from jobs.schema import PREPROCESSING
from jobs.storage import exists, join, read_if_there
from jobs.units import digest

FORMAT = 1


def compute_fingerprint(batch_size: int, device: str = "cpu") -> str:
    """What fixes the last digits of a score: device kind, dtype, batch shape, torch version."""
    return digest(device, "float32", batch_size, version("torch"))


def require_same_preprocessing(about: dict[str, Any], name: str) -> None:
    """Raises InputError where this release would give the model other pixels."""
    if about["data"]["preprocessing"] != PREPROCESSING:
        raise InputError(
            f"model {name} was trained on preprocessing {about['data']['preprocessing']}, this "
            f"release stages {PREPROCESSING}; train again"
        )


def is_there(lake: Lake, model: str, model_version: str) -> bool:
    """Whether a bundle is complete."""
    return exists(join(lake.bundle(model, model_version), "model.json"))


def read_about(lake: Lake, model: str, model_version: str) -> dict[str, Any]:
    """Raises InputError where the bundle is not complete, or newer than this code."""
    folder = lake.bundle(model, model_version)
    data = read_if_there(join(folder, "model.json"))
    if data is None:
        raise InputError(f"{folder} holds no complete bundle: model.json is missing; train it")
    try:
        about = json.loads(data)
    except ValueError as error:
        raise InputError(f"{folder}/model.json is broken ({error}); train it again") from error
    if about["format"] > FORMAT:
        raise InputError(f"{folder} was written by a newer latentlake; upgrade this one")
    return about
