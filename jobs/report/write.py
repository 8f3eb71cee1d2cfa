"""report: what a night did, whether it is good and what to look at, as one HTML file in the lake.

Derived from the tables: the same tables give the same file, and it may be made again.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from jobs.errors import InputError, LatentlakeError
from jobs.lake.paths import LakePaths
from jobs.lake.replace import replace
from jobs.lake.storage import join
from jobs.report.blocks import Limits, Missing, Say, Section
from jobs.report.headline import Headline, headline_of, unknown_headline
from jobs.report.html import render
from jobs.report.night import ReportNight, look
from jobs.report.png_sheets import sheets
from jobs.report.sections.anomalies import anomalies_section
from jobs.report.sections.data import data_section
from jobs.report.sections.drift import drift_section
from jobs.report.sections.evaluation import evaluation_section
from jobs.report.sections.latent_map import map_section
from jobs.report.sections.lineage import commands_section, lineage_section
from jobs.report.sections.reconstructions import (
    paintings_of,
    reconstructions_section,
    samples_section,
)
from jobs.report.sections.training import rate_section, training_section

if TYPE_CHECKING:
    from jobs.report.model_pictures import Paintings

MOST_BYTES = 5 << 20
log = logging.getLogger("latentlake")
SHARES = (1.0, 0.7, 0.5, 0.25, 0.1, 0.0)  # of the pictures and points that there is room for


@dataclasses.dataclass(frozen=True)
class Report:
    """uri: of the page. pictures: PNG bytes by name, of what the page shows. notes: what was left
    out to keep it small."""

    uri: str
    night: str
    headline: Headline
    pictures: dict[str, bytes]
    notes: list[str]
    bytes: int


def write_report(
    lake: LakePaths, dataset: str, model: str, night: str, *, most_bytes: int = MOST_BYTES
) -> Report:
    """Write `<lake>/runs/night-<dataset>-<night>/report-<model>.html`.

    model: NAME, NAME@VERSION or NAME@ALIAS; the champion of that night if only NAME. Raises
    InputError for an unknown dataset, version or alias, or where most_bytes is too few.
    """
    found = look(lake, dataset, model, night)
    headline, painted = _headline(found), _painted(found)
    page, notes = _fitting(found, headline, painted, most_bytes)
    uri = report_uri(lake, dataset, model, night)
    replace(uri, page)
    return Report(uri, night, headline, _pictures(found, painted), notes, len(page))


def report_uri(lake: LakePaths, dataset: str, model: str, night: str) -> str:
    """Where the page of a night lies; model: as it was requested."""
    return join(lake.run(f"night-{dataset}-{night}"), f"report-{model}.html")


def _headline(night: ReportNight) -> Headline:
    try:
        return headline_of(night)
    except (Missing, LatentlakeError) as error:
        log.warning("the headline of %s, night %s: %s", night.dataset, night.night, error)
        return unknown_headline(str(error))


def _pictures(night: ReportNight, painted: Paintings | str) -> dict[str, bytes]:
    """None where they cannot be made: the page is there already."""
    try:
        return sheets(night, None if isinstance(painted, str) else painted)
    except Exception:
        log.exception("no pictures of the report of %s, night %s", night.dataset, night.night)
        return {}


def _painted(night: ReportNight) -> Paintings | str:
    """Return what the model makes of images, or why there is nothing to see."""
    try:
        return paintings_of(night)
    except (Missing, LatentlakeError) as missing:
        return str(missing)


def _fitting(
    night: ReportNight, headline: Headline, painted: Paintings | str, most_bytes: int
) -> tuple[bytes, list[str]]:
    """Return the fullest page that is small enough, and what was left out for it."""
    size = 0
    for share in SHARES:
        notes = [] if share == 1.0 else [_cut(share, most_bytes)]
        title = f"{night.dataset}, night {night.night}"
        parts = sections(night, painted, Limits(share))
        page = render(title, headline, parts, notes).encode()
        if len(page) <= most_bytes:
            return page, notes
        size = len(page)
    raise InputError(f"a report of this night takes {size:,} bytes, {most_bytes:,} are allowed")


def _cut(share: float, most_bytes: int) -> str:
    kept = f"{share:.0%} of the pictures and points are" if share else "no pictures or points are"
    return f"To keep this page below {most_bytes / 2**20:.1f} MiB, {kept} shown."


def sections(night: ReportNight, painted: Paintings | str, limits: Limits) -> list[Section]:
    """All of them, in order; one whose data is missing says why."""
    paintings = None if isinstance(painted, str) else painted

    def painted_ones() -> Paintings:
        if isinstance(painted, str):
            raise Missing(painted)
        return painted

    makers: list[tuple[str, str, Callable[[], Section]]] = [
        ("data", "Data card", lambda: data_section(night, limits)),
        ("training", "Training", lambda: training_section(night)),
        ("rate", "Rate and distortion", lambda: rate_section(night)),
        (
            "reconstructions",
            "Reconstructions",
            lambda: reconstructions_section(night, painted_ones(), limits),
        ),
        ("samples", "Samples", lambda: samples_section(painted_ones(), limits)),
        ("anomalies", "Anomalies", lambda: anomalies_section(night, paintings, limits)),
        ("map", "Latent map", lambda: map_section(night, limits)),
        ("drift", "Drift", lambda: drift_section(night)),
        ("evaluation", "Evaluation", lambda: evaluation_section(night)),
        ("lineage", "Lineage", lambda: lineage_section(night)),
        ("commands", "Dig further", lambda: commands_section(night)),
    ]
    return [_made(*maker) for maker in makers]


def _made(name: str, title: str, make: Callable[[], Section]) -> Section:
    try:
        return make()
    except (Missing, LatentlakeError) as missing:
        return Section(name, title, [Say(str(missing))])
