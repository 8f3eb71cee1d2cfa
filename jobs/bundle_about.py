"""What a bundle says about itself: `model.json`, read without torch."""

from __future__ import annotations

import json
from typing import Any

from jobs.errors import InputError
from jobs.lake import Lake
from jobs.storage import join, read_if_there

FORMAT = 1


def read_about(lake: Lake, model: str, version: str) -> dict[str, Any]:
    """Raises InputError where the bundle is not complete, or newer than this code."""
    folder = lake.bundle(model, version)
    data = read_if_there(join(folder, "model.json"))
    if data is None:
        raise InputError(f"{folder} holds no complete bundle: model.json is missing; train it")
    about = json.loads(data)
    if about["format"] > FORMAT:
        raise InputError(f"{folder} was written by a newer latentlake; upgrade this one")
    return about
