"""What a bundle says about itself: `model.json`, read without torch."""

from __future__ import annotations

import dataclasses
import json
from importlib.metadata import version
from typing import Any, Literal

from jobs.errors import InputError
from jobs.lake import Lake
from jobs.schema import PREPROCESSING
from jobs.storage import exists, join, read_if_there
from jobs.units import digest

FORMAT = 1
# Of every model.json: the bundle cannot be read without them.
PARTS = {"files", "config", "data", "scoring", "decision_score", "metrics"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compute:
    """What fixes the last digits of a score, beside the model and the image.

    device: cpu or cuda. precision: of the networks; all else runs in float32 and above.
    """

    batch_size: int
    device: str = "cpu"
    precision: Literal["float32", "bfloat16"] = "float32"
    compiled: bool = False
    channels_last: bool = False

    @property
    def fingerprint(self) -> str:
        ways = [name for name in ("compiled", "channels_last") if getattr(self, name)]
        return digest(self.device, self.precision, self.batch_size, version("torch"), *ways)

    def __str__(self) -> str:
        ways = ["compiled" if self.compiled else "eager"]
        ways += ["channels last"] if self.channels_last else []
        return f"{self.device}, {self.precision}, {', '.join(ways)}, batches of {self.batch_size}"

    def to_dict(self) -> dict[str, Any]:
        """As `model.json` has it of its calibration."""
        return dataclasses.asdict(self) | {"compute_fingerprint": self.fingerprint}


def compute_of(about: dict[str, Any], device: str, batch_size: int | None = None) -> Compute:
    """How a bundle's images are scored: as its calibration was, on that kind of device.

    On another kind eager and in float32, which is the nearest to either.
    """
    scoring = about["scoring"]
    known = {field.name for field in dataclasses.fields(Compute)}
    found = Compute(**{name: value for name, value in scoring.items() if name in known})
    if batch_size is not None:
        found = dataclasses.replace(found, batch_size=batch_size)
    return found if found.device == device else Compute(batch_size=found.batch_size, device=device)


def require_same_preprocessing(about: dict[str, Any], name: str) -> None:
    """Raises InputError where this release would give the model other pixels."""
    if about["data"]["preprocessing"] != PREPROCESSING:
        raise InputError(
            f"model {name} was trained on preprocessing {about['data']['preprocessing']}, this "
            f"release stages {PREPROCESSING}; train again"
        )


def require_same_images(
    about: dict[str, Any], name: str, dataset: str, image_shape: tuple[int, int, int]
) -> None:
    """Raises InputError where a dataset's images are none that the model `name` can read.

    image_shape: H, W, C of the dataset.
    """
    wanted = tuple(about["config"]["image_shape"])
    if image_shape != wanted:
        raise InputError(
            f"dataset {dataset!r} has images of {image_shape} (H, W, C), model {name} was trained "
            f"on {wanted}; stage at that size"
        )
    require_same_preprocessing(about, name)


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
    written = about.get("format") if isinstance(about, dict) else None
    if isinstance(written, int) and written > FORMAT:
        raise InputError(f"{folder} was written by a newer latentlake; upgrade this one")
    if not isinstance(written, int) or not about.keys() >= PARTS:
        raise InputError(
            f"{folder} holds no complete bundle: model.json is JSON, but not that of a bundle; "
            "train it again"
        )
    return about
