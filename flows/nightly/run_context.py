"""What a run's few parameters stand for: its config, its lake and its night."""

from __future__ import annotations

import dataclasses
import datetime as dt
import zoneinfo
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from pydantic import Field

from flows.prefect_env import prepare_prefect

prepare_prefect()

from prefect.runtime import flow_run  # noqa: E402

from flows.nightly.settings import NightlySettings, load_nightly, tonight  # noqa: E402
from jobs.cluster.settings import RaySettings  # noqa: E402
from jobs.errors import LatentlakeError  # noqa: E402
from jobs.lake.paths import LakePaths  # noqa: E402
from jobs.lake.storage import resolve_uri  # noqa: E402

# A form refuses what is none, by the pattern; the format gives it a calendar.
_DATE = r"^\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])$"
Night = Annotated[dt.date, Field(json_schema_extra={"pattern": _DATE})]

# Nor a key and its secret in front of a bucket: what a form takes is kept and shown.
_NO_CREDENTIAL = r"^(?![sS]3://(?!arn:)[^/]*[@:])(?!https?://[^/]*@)"
Uri = Annotated[str, Field(json_schema_extra={"pattern": _NO_CREDENTIAL})]


@dataclasses.dataclass(frozen=True)
class Opened:
    """A flow's run: its settings, lake and night."""

    settings: NightlySettings
    lake: LakePaths
    night: str

    @property
    def dataset(self) -> str:
        """Return the dataset that the run is about."""
        return self.settings.stage.dataset

    @property
    def at(self) -> tuple[str, str, RaySettings]:
        """What every task is given beside its own settings: lake, night, Ray."""
        return self.lake.uri, self.night, self.settings.ray


def opened(config: str, night: dt.date | None, lake: str | None) -> Opened:
    """Raise InputError where the config is none."""
    settings = load_nightly(config)
    uri = resolve_uri(lake or settings.lake)
    return Opened(settings, LakePaths(uri), night.isoformat() if night else _due(settings))


def _due(settings: NightlySettings) -> str:
    """Return the day on which the run was due, so that it has one night whenever it is tried
    again."""
    start = flow_run.scheduled_start_time
    if start is None:
        return tonight()
    zone = zoneinfo.ZoneInfo(settings.schedule.timezone) if settings.schedule else None
    return start.astimezone(zone).date().isoformat()


def named(what: str) -> Callable[[], str]:
    """Return the name of a run, such as `nightly photos 2026-11-21`."""

    def name() -> str:
        parameters = flow_run.parameters
        night = parameters.get("night")
        try:
            found = opened(parameters["config"], _date(night), parameters.get("lake"))
        except LatentlakeError:
            # The run itself will tell what is wrong with it.
            return f"{what} {Path(parameters['config']).stem}"
        return f"{what} {found.dataset} {found.night}"

    return name


def _date(value: dt.date | str | None) -> dt.date | None:
    return dt.date.fromisoformat(value) if isinstance(value, str) else value
