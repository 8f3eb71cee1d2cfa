"""What a bundle says about itself: `model.json`, read without torch."""

from __future__ import annotations

import dataclasses
from importlib.metadata import version
from typing import Annotated, Any, Literal, NotRequired

from pydantic import AfterValidator, ConfigDict, Field
from typing_extensions import TypedDict

from jobs.errors import InputError
from jobs.hashing import digest
from jobs.lake.documents import checked, damaged, parsed
from jobs.lake.paths import LakePaths
from jobs.lake.storage import exists, join, read_if_there
from jobs.lake.uri import is_plain
from jobs.schemas.dataset import PREPROCESSING
from vae_core.config import ModelConfig
from vae_core.precision import Precision
from vae_core.scores.names import SCORES

FORMAT = 1
AGAIN = "train it again"


def _plain(name: str) -> str:
    if not is_plain(name):
        raise ValueError(f"{name!r} is no name of a file beside it")
    return name


def _score(name: str) -> str:
    if name not in SCORES:
        raise ValueError(f"unknown score {name!r}")
    return name


_Name = Annotated[str, AfterValidator(_plain)]
_Count = Annotated[int, Field(ge=0)]


class _Part(TypedDict):
    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]


class _Files(_Part):
    weights: _Name
    calibration: _Name
    sheet: NotRequired[_Name]


class _Data(_Part):
    dataset: _Name
    images_version: _Count
    preprocessing: int
    calibration_images: NotRequired[_Count]


class _Scoring(_Part):
    samples: Annotated[int, Field(gt=0, le=65_536)]
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)]
    batch_size: Annotated[int, Field(gt=0, le=65_536)]
    device: NotRequired[Literal["cpu", "cuda"]]
    precision: NotRequired[Literal["float32", "bfloat16"]]
    compiled: NotRequired[bool]
    channels_last: NotRequired[bool]
    compute_fingerprint: NotRequired[str]


class _Metrics(_Part):
    validation_nats: float
    validation_kl_nats: NotRequired[float | None]


class _Manifest(_Part):
    """What every model.json says: the bundle cannot be read without it."""

    files: _Files
    config: dict[str, Any]
    data: _Data
    scoring: _Scoring
    decision_score: Annotated[str, AfterValidator(_score)]
    metrics: _Metrics
    history: NotRequired[list[dict[str, Any]]]
    bad_steps: NotRequired[_Count]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compute:
    """What fixes the last digits of a score, beside the model and the image.

    device: cpu or cuda. precision: of the networks; all else runs in float32 and above.
    """

    batch_size: int
    device: str = "cpu"
    precision: Precision = "float32"
    compiled: bool = False
    channels_last: bool = False

    @property
    def fingerprint(self) -> str:
        """Name all that fixes the last digits of a score."""
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
    """Raise InputError where this release would give the model other pixels."""
    if about["data"]["preprocessing"] != PREPROCESSING:
        raise InputError(
            f"model {name} was trained on preprocessing {about['data']['preprocessing']}, this "
            f"release stages {PREPROCESSING}; train again"
        )


def require_same_images(
    about: dict[str, Any], name: str, dataset: str, image_shape: tuple[int, int, int]
) -> None:
    """Raise InputError where a dataset's images are none that the model `name` can read.

    image_shape: H, W, C of the dataset.
    """
    wanted = tuple(about["config"]["image_shape"])
    if image_shape != wanted:
        raise InputError(
            f"dataset {dataset!r} has images of {image_shape} (H, W, C), model {name} was trained "
            f"on {wanted}; stage at that size"
        )
    require_same_preprocessing(about, name)


def is_there(lake: LakePaths, model: str, model_version: str) -> bool:
    """Whether a bundle is complete."""
    return exists(join(lake.bundle(model, model_version), "model.json"))


def config_of(
    lake: LakePaths, model: str, model_version: str, about: dict[str, Any]
) -> ModelConfig:
    """Return the config in what `read_about` gave. Raises InputError where it is damaged."""
    uri = join(lake.bundle(model, model_version), "model.json")
    return checked(ModelConfig, about["config"], uri, AGAIN)


def read_about(lake: LakePaths, model: str, model_version: str) -> dict[str, Any]:
    """Raise InputError where the bundle is not complete, or newer than this code."""
    folder = lake.bundle(model, model_version)
    data = read_if_there(join(folder, "model.json"))
    if data is None:
        raise InputError(f"{folder} holds no complete bundle: model.json is missing; train it")
    uri = join(folder, "model.json")
    about = parsed(dict[str, Any], data, uri, AGAIN)
    written = about.get("format")
    if isinstance(written, int) and written > FORMAT:
        raise InputError(f"{folder} was written by a newer latentlake; upgrade this one")
    if written != FORMAT:
        raise damaged(uri, f"it is of format {written!r}", AGAIN)
    checked(_Manifest, about, uri, AGAIN)
    return about
