"""When a night trains: where there is no champion, where its rule says so, or on request."""

from __future__ import annotations

import dataclasses
import datetime as dt

from flows.nightly.settings import RetrainSettings
from jobs.bundles.manifest import read_about
from jobs.drift.results import drift_found
from jobs.engine import records
from jobs.lake.documents import json_column
from jobs.lake.paths import LakePaths
from jobs.tables import catalog
from jobs.train.settings import TrainSettings

NAMED = ("dataset", "alias", "promote")  # a training goes on with a plan of the same


@dataclasses.dataclass(frozen=True)
class Champion:
    """night, images: of the last training, whether or not its bundle became the champion, so that
    one that the gate refused is not repeated each night; night is None where the catalog does not
    tell. drifted: whether images have been found to come from elsewhere that it did not train on.
    """

    name: str
    night: str | None
    images: int
    drifted: bool = False


def champion_of(lake: LakePaths, settings: TrainSettings) -> Champion | None:
    """Return the bundle that has the training's alias now; None where there is none."""
    if settings.model not in catalog.models(lake):
        return None
    version = catalog.aliases(lake, settings.model).get(settings.alias)
    if version is None:
        return None
    nights = {row["job_id"]: row["night"] for row in catalog.runs(lake)}
    last = read_about(lake, settings.model, _last_trained(lake, settings) or version)
    data = last["data"]
    return Champion(
        name=f"{settings.model}@{version}",
        night=nights.get(last["job_id"]),
        images=_rows(lake, data["dataset"], data["images_version"]),
        drifted=drift_found(
            lake, settings.model, version, settings.dataset, after=data["images_version"]
        ),
    )


def _last_trained(lake: LakePaths, settings: TrainSettings) -> str | None:
    """Version of the newest bundle of the model and dataset; None where no run tells."""
    runs = [r for r in catalog.runs(lake) if (r["job"], r["target"]) == ("train", settings.model)]
    versions = [json_column(row, "counts").get("version") for row in runs]
    known = catalog.bundle_versions(lake, settings.model)
    mine = [v for v in versions if v in known and _dataset(lake, settings, v) == settings.dataset]
    return mine[-1] if mine else None


def _dataset(lake: LakePaths, settings: TrainSettings, version: str) -> str:
    return read_about(lake, settings.model, version)["data"]["dataset"]


def why_train(
    rule: RetrainSettings, champion: Champion | None, night: str, images: int, requested: bool
) -> str | None:
    """Why the night trains, in words; None where it does not. images: in the dataset now."""
    if champion is None:
        return "there is no champion yet"
    if requested:
        return "it was requested"
    if rule.every_nights is not None and champion.night is not None:
        passed = (dt.date.fromisoformat(night) - dt.date.fromisoformat(champion.night)).days
        if passed >= rule.every_nights:
            return f"{champion.name} is {passed} nights old"
    if rule.drift and champion.drifted:
        return f"images have drifted from those of {champion.name}"
    more = images - champion.images
    if rule.new_images is not None and more >= rule.new_images:
        return f"there are {more:,} images more than {champion.name} was trained on"
    return None


def reason_to_train(
    lake: LakePaths, settings: TrainSettings, rule: RetrainSettings, night: str, requested: bool
) -> str | None:
    """Return why a lake's model is trained this night; None where it is not."""
    images = _rows(lake, settings.dataset)
    why = why_train(rule, champion_of(lake, settings), night, images, requested)
    return why or ("a training was left unfinished" if left_unfinished(lake, settings) else None)


def left_unfinished(lake: LakePaths, settings: TrainSettings) -> bool:
    """Whether a training by these settings was given up, as at its timeout: it can go on."""
    plans = records.unfinished_plans(lake, "train", settings.model)
    theirs = [TrainSettings.model_validate(plan.settings) for plan in plans]
    return any(
        all(getattr(one, name) == getattr(settings, name) for name in NAMED)
        and one.fingerprint_of() == settings.fingerprint_of()
        for one in theirs
    )


def _rows(lake: LakePaths, dataset: str, version: int | None = None) -> int:
    """Of an images snapshot, the newest if no version is given, from the log alone."""
    return sum(file.rows for file in catalog.images_snapshot(lake, dataset, version).files())
