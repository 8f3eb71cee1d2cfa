"""What the tables tell of one night of a dataset and a model: all that a report is made of.

Read as of that night: what later nights brought is left out, so that an old report can be made
again.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.bundles.manifest import read_about
from jobs.errors import InputError, unknown_name
from jobs.evaluate import results as evaluate_results
from jobs.evaluate.compare import Difference, compare
from jobs.lake.documents import json_column
from jobs.lake.paths import LakePaths, valid_name
from jobs.query.views import Views
from jobs.report.blocks import Missing
from jobs.schemas.dataset import image_shape_of
from jobs.tables import catalog

OF_THE_DATASET = ("stage",)
CHAMPION = "champion"

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class ReportNight:
    """version: of the model's bundle; None where there was none yet, and `no_model` says why.
    alias: that it had on the night, or would have."""

    lake: LakePaths
    dataset: str
    model: str
    version: str | None
    no_model: str
    night: str
    alias: str = CHAMPION

    @property
    def name(self) -> str:
        """Of the bundle. Raises Missing where there is none."""
        if self.version is None:
            raise Missing(self.no_model)
        return f"{self.model}@{self.version}"

    @functools.cached_property
    def _views(self) -> Views:
        return Views(self.lake)

    def ask(self, statement: str, *parameters: Any) -> list[Row]:
        """Return what a SELECT gives, by row."""
        return self._views.sql(statement, parameters).to_pylist()

    def images(self, ids: Sequence[str]) -> dict[str, np.ndarray]:
        """uint8 (H, W, C) of the dataset by image id, in the order of the ids; unknown ones are
        left out."""
        if not ids:
            return {}
        wanted = pa.table({"image_id": pa.array(ids, pa.string())})
        rows = self._views.sql(
            """SELECT image_id, image FROM images SEMI JOIN wanted USING (image_id)
               WHERE dataset = ?""",
            [self.dataset],
            {"wanted": wanted},
        )
        found = {
            row["image_id"]: np.frombuffer(row["image"], np.uint8).reshape(self.image_shape)
            for row in rows.to_pylist()
        }
        return {image_id: found[image_id] for image_id in ids if image_id in found}

    @functools.cached_property
    def image_shape(self) -> tuple[int, int, int]:
        """H, W, C of the dataset."""
        return image_shape_of(catalog.images_snapshot(self.lake, self.dataset).schema)

    @functools.cached_property
    def thumbs(self) -> dict[str, np.ndarray]:
        """Small pictures by image id, kept by whoever has made them."""
        return {}

    @functools.cached_property
    def has_labels(self) -> bool:
        """Whether the dataset has a column `label`."""
        return "label" in self._views.columns("images")

    @property
    def label(self) -> str:
        """The label of images `i` as text, for a SELECT."""
        return "CAST(i.label AS VARCHAR)" if self.has_labels else "NULL"

    @functools.cached_property
    def runs(self) -> list[Row]:
        """Finished jobs of this dataset and this model in the night, oldest first."""
        mine = {True: self.dataset, False: self.model}
        return [
            row | {"counts": json_column(row, "counts"), "config": json_column(row, "config")}
            for row in _all_runs(self.lake)
            if row["night"] == self.night
            and row["target"] == mine[row["job"] in OF_THE_DATASET]
            # Of a model that several datasets share: only what was done for this one.
            and json_column(row, "config").get("dataset") in (self.dataset, None)
        ]

    def counts(self, job: str) -> Counter[str]:
        """Return the numbers of all the night's runs of a job, added up; those of other versions
        of the model are left out."""
        total: Counter[str] = Counter()
        for run in self.runs:
            version = run["counts"].get("model_version")
            if run["job"] == job and version in (None, self.version):
                items = run["counts"].items()
                total.update({k: v for k, v in items if isinstance(v, int | float)})
        return total

    def ran(self, job: str) -> bool:
        """Whether a job ran that night."""
        return any(run["job"] == job for run in self.runs)

    @functools.cached_property
    def images_version(self) -> int | None:
        """Of the dataset after the night's staging; None for the newest."""
        table = f"datasets/{self.dataset}/images"
        known = [
            json_column(row, "versions").get(table, -1)
            for row in _all_runs(self.lake)
            if row["night"] <= self.night
        ]
        newest = max(known, default=-1)
        return newest if newest >= 0 else None

    @functools.cached_property
    def about(self) -> Row:
        """What the bundle says of itself. Raises Missing where there is none."""
        _ = self.name
        assert self.version is not None
        return read_about(self.lake, self.model, self.version)

    @functools.cached_property
    def moves(self) -> list[Row]:
        """Of the alias up to the night, oldest first, each with its night."""
        return _moves(self.lake, self.model, self.alias, self.night)

    @functools.cached_property
    def previous(self) -> str | None:
        """The version that had the alias before this one; None where there was none."""
        named = [row["version"] for row in self.moves]
        if self.version in named:
            last = len(named) - 1 - named[::-1].index(self.version)
            named = named[:last]
        others = [version for version in named if version != self.version]
        return others[-1] if others else None

    @functools.cached_property
    def versions(self) -> dict[str, Row]:
        """What the model's bundles say of themselves, in the order of their training; those that
        the night did not know yet are left out."""
        order = {row["job_id"]: row["night"] for row in _all_runs(self.lake)}
        found = {v: read_about(self.lake, self.model, v) for v in self._known_versions()}
        known = {
            v: about
            for v, about in found.items()
            if v == self.version or order.get(about["job_id"], self.night) <= self.night
        }
        place = {job_id: at for at, job_id in enumerate(order)}
        return dict(sorted(known.items(), key=lambda e: (place.get(e[1]["job_id"], -1), e[0])))

    def _known_versions(self) -> list[str]:
        if self.model not in catalog.models(self.lake):
            return []
        return catalog.bundle_versions(self.lake, self.model)

    @functools.cached_property
    def batches(self) -> list[Row]:
        """What this night's embedding compared with the calibration."""
        return self._of_the_model("batches", "ORDER BY last_version, batch")

    @functools.cached_property
    def flagged(self) -> int:
        """Count the images that were flagged."""
        return sum(row["flagged"] for row in self.batches)

    def _of_the_model(self, table: str, more: str) -> list[Row]:
        statement = f"""SELECT * FROM {table} WHERE model = ? AND model_version = ?
                        AND dataset = ? AND night = ? {more}"""
        return self.ask(statement, *self._mine, self.night)

    @property
    def _mine(self) -> tuple[str, str | None, str]:
        return self.model, self.version, self.dataset

    def anomalies(self, most: int) -> list[Row]:
        """Return the night's flagged images, most certain first, with where they came from."""
        return self.ask(
            f"""
            SELECT a.*, i.source_uri, i.source_row, i.source_member, {self.label} AS label
            FROM anomalies a LEFT JOIN images i USING (image_id, dataset)
            WHERE a.model = ? AND a.model_version = ? AND a.dataset = ? AND a.night = ?
            ORDER BY a.p_value, a.rank, a.image_id LIMIT ?
            """,
            *self._mine,
            self.night,
            most,
        )

    @functools.cached_property
    def verdicts(self) -> list[Row]:
        """The combined rows of the night, oldest first: of this version, or, where it had none
        and was trained with the night's images, of the version before it."""
        for version in (self.version, self.previous if self._is_new else None):
            mine = [row for row in self._verdicts if row["model_version"] == version]
            found = [row for row in mine if row["night"] == self.night]
            if found:
                return found
        return []

    @property
    def _is_new(self) -> bool:
        return any(
            (row["night"], row["version"]) == (self.night, self.version) for row in self.moves
        )

    @functools.cached_property
    def verdict(self) -> Row | None:
        """The one of the night that counts; None where drift was not tested."""
        return _decisive(self.verdicts)

    @functools.cached_property
    def drift(self) -> list[Row]:
        """All rows of the judgement whose verdict counts; empty where there was none."""
        if self.verdict is None:
            return []
        mine = self.verdict["job_id"], self.verdict["model_version"]
        return [row for row in self._drift if (row["job_id"], row["model_version"]) == mine]

    @functools.cached_property
    def drift_by_night(self) -> list[Row]:
        """The verdict that counts of each night that was tested, oldest first."""
        nights = sorted({row["night"] for row in self._verdicts if row["night"] <= self.night})
        found = [_decisive([r for r in self._verdicts if r["night"] == n]) for n in nights]
        return [row for row in found if row is not None]

    @functools.cached_property
    def _drift(self) -> list[Row]:
        mine = (self.model, self.dataset)
        rows = catalog.catalog_rows(self.lake, "drift")
        return [row for row in rows if (row["model"], row["dataset"]) == mine]

    @functools.cached_property
    def _verdicts(self) -> list[Row]:
        found = [row for row in self._drift if row["test"] == "combined"]
        return sorted(found, key=lambda row: (row["sequence"] or 0, row["night"]))

    @property
    def drifted(self) -> bool | None:
        """Whether the night's images differ from those before; None where it was not tested."""
        return self.verdict["drifted"] if self.verdict is not None else None

    @property
    def was_judged_before(self) -> bool:
        """Whether the verdict is of the version before, whose p-values the night does not show."""
        return self.verdict is not None and self.verdict["model_version"] != self.version

    @property
    def calibration_is_valid(self) -> bool:
        """Whether the night's p-values are valid."""
        return not self.why_not_valid

    @functools.cached_property
    def why_not_valid(self) -> str:
        """Empty where the night's p-values are valid."""
        if self.drifted and not self.was_judged_before:
            return "the night's images differ from those that the model was calibrated on"
        doubtful = {row["job_id"] for row in self.batches if not row["calibration_valid"]}
        if not doubtful:
            return ""
        for row in self._verdicts:
            is_mine = row["model_version"] == self.version and row["drifted"]
            if is_mine and doubtful & set(row["embed_jobs"] or ()):
                return f"drift was found later, on {row['night']}, with the night's images among it"
        return "scores and calibration were computed in different ways"

    def evaluated(self, version: str | None) -> list[Row]:
        """Rows of `evaluations` of a version on this dataset, of its last evaluation."""
        mine = (self.model, version, self.dataset)
        return _last(
            [
                row
                for row in catalog.catalog_rows(self.lake, "evaluations")
                if (row["model"], row["model_version"], row["dataset"]) == mine
                and row["night"] <= self.night
            ],
            "images_version",
        )

    @functools.cached_property
    def pairs(self) -> dict[tuple[str, str | None], Difference]:
        """By metric and what it is of: this version minus the one before, on the same images.

        Empty where the published images are not those of the evaluations that the night knew.
        """
        if self.version is None or self.previous is None:
            return {}
        for version in (self.version, self.previous):
            current = evaluate_results.standing(self.lake, self.model, version, self.dataset)
            if _jobs(current) != _jobs(self.evaluated(version)):
                return {}
        names = (f"{self.model}@{version}" for version in (self.previous, self.version))
        try:
            found = compare(self.lake, *names, dataset=self.dataset)
        except InputError:
            return {}
        return {(each.metric, each.of): each for each in found.differences}


def _jobs(rows: list[Row]) -> set[str]:
    return {row["job_id"] for row in rows}


def look(lake: LakePaths, dataset: str, model: str, night: str) -> ReportNight:
    """model: NAME, NAME@VERSION or NAME@ALIAS, as it was that night; the champion if only NAME.

    Raises InputError for an unknown dataset, version or alias; a champion that does not exist yet
    is no mistake.
    """
    catalog.require_dataset(lake, dataset)
    name, _, label = model.partition("@")
    valid_name("model", name)
    found = _moves(lake, name, label or CHAMPION, night)
    alias = label if found and label else CHAMPION
    version, why = (found[-1]["version"] if found else None), ""
    if version is None and label:
        known = catalog.bundle_versions(lake, name)
        if label not in known:
            aliases = list(catalog.aliases(lake, name))
            raise unknown_name(f"version or alias of model {name!r}:", label, [*aliases, *known])
        version = label
    if version is None:
        train = f"latentlake train --dataset {dataset} --model {name}"
        why = f"The model {name} had no champion on {night}; {train} makes one."
    return ReportNight(lake, dataset, name, version, why, night, alias)


def _decisive(verdicts: list[Row]) -> Row | None:
    """Of several in one night: the last that found drift, or else the last that tested anything."""
    for wanted in (True, False, None):
        found = [row for row in verdicts if row["drifted"] is wanted]
        if found:
            return found[-1]
    return None


def last_night(lake: LakePaths, dataset: str, model: str) -> str:
    """Return the newest night that has a run of the dataset, or of the model. Raises InputError."""
    catalog.require_dataset(lake, dataset)
    name = model.partition("@")[0]
    nights = [
        row["night"]
        for row in catalog.runs(lake)
        if row["target"] == (dataset if row["job"] in OF_THE_DATASET else name)
    ]
    if not nights:
        raise InputError(f"dataset {dataset!r} has no finished run yet; run latentlake stage first")
    return max(nights)


def _all_runs(lake: LakePaths) -> list[Row]:
    return catalog.runs(lake)


def _moves(lake: LakePaths, model: str, alias: str, night: str) -> list[Row]:
    nights = {row["job_id"]: row["night"] for row in catalog.runs(lake)}
    rows = [
        row | {"night": row.get("night") or nights.get(row["job_id"], "")}
        for row in catalog.catalog_rows(lake, "aliases")
        if (row["model"], row["alias"]) == (model, alias)
    ]
    return sorted((r for r in rows if r["night"] <= night), key=lambda r: r["sequence"])


def _last(rows: list[Row], version: str) -> list[Row]:
    """Those of the job that read the newest snapshot; of several, of the newest night."""

    def age(row: Row) -> tuple[int, str, str]:
        known = row[version] if row[version] is not None else -1
        return known, row["night"], row["job_id"]

    newest = max(rows, key=age, default=None)
    return [row for row in rows if newest is not None and row["job_id"] == newest["job_id"]]
