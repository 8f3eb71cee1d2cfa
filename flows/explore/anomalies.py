"""The page "Anomalies": by model and night, with what they rest on."""

from __future__ import annotations

from typing import Any

import panel as pn
import panel_material_ui as pmui

from flows.explore.image_dialog import ImageDialog
from flows.explore.state import ExploreState
from flows.explore.widgets import Notice, PictureGrid, RowTable, filters, number
from flows.output import to_records
from jobs.errors import LatentlakeError
from jobs.query.nights import NightCounts, nights
from jobs.report.blocks import percent

PAGE = 24
MOST = 40  # pages: an anomaly list is read from its top
FLAGGED, RANKED = "flagged, with evidence", "highest scores, flagged or not"


class Anomalies:
    """The tab of flagged and most anomalous images."""

    def __init__(self, state: ExploreState, dialog: ImageDialog) -> None:
        self.state, self.dialog = state, dialog
        self.nights: dict[str, NightCounts] = {}
        models = state.models()
        self.model = pmui.Select(label="Model", options=models)
        self.night = pmui.Select(label="Night", options={})
        self.which = pmui.Select(label="Which", options=[FLAGGED, RANKED], value=FLAGGED)
        self.pages = pmui.Pagination(count=1, value=0)
        self.validity = Notice(sizing_mode="stretch_width", margin=(4, 0, 12, 0))
        self.notice = Notice(sizing_mode="stretch_width", margin=(4, 0, 12, 0))
        self.pictures = PictureGrid(sizing_mode="stretch_width", on_open=self._open)
        self.table = RowTable(sizing_mode="stretch_width", on_open=self._open)
        self.model.param.watch(lambda _: self._list_nights(), "value")
        self.night.param.watch(lambda _: self._first(), "value")
        self.which.param.watch(lambda _: self._first(), "value")
        self.pages.param.watch(lambda _: self.update(), "value")
        if models:
            self._list_nights()
        else:
            self.notice.say("Nothing has been embedded yet: latentlake train, then embed.")

    def view(self) -> list[pn.viewable.Viewable]:
        """Return what the tab shows."""
        chosen = filters(self.model, self.night, self.which)
        return [chosen, self.validity, self.notice, self.pictures, self.pages, self.table]

    def _open(self, image_id: str) -> None:
        self.dialog.open(image_id, self.model.value)

    def _list_nights(self) -> None:
        try:
            found = nights(self.state.embeddings(self.model.value))
        except LatentlakeError as error:
            self.notice.say(str(error), "error")
            return
        self.nights = {night.night: night for night in found}
        options = {f"{n.night}: {n.flagged:,} of {n.tested:,} flagged": n.night for n in found}
        self.night.param.update(options=options, value=found[0].night if found else None)
        self._first()

    def _first(self) -> None:
        if self.pages.value:
            self.pages.value = 0  # which updates
        else:
            self.update()

    def update(self) -> None:
        """Show what the choices say."""
        night = self.nights.get(self.night.value)
        if night is None:
            self.notice.say("This model has flagged no night yet: latentlake embed.")
            return
        try:
            self._show(night)
        except LatentlakeError as error:
            self.notice.say(str(error), "error")

    def _show(self, night: NightCounts) -> None:
        of = self.state.embeddings(self.model.value)
        flagged = self.which.value == FLAGGED
        at = self.pages.value * PAGE
        found = of.anomalies(top=at + PAGE + 1, night=night.night, flagged=flagged)
        rows = to_records(found.slice(at, PAGE))
        further = len(found) > at + PAGE
        least = -(-night.flagged // PAGE) if flagged else self.pages.value + 1 + further
        self.pages.count = max(1, min(MOST, max(least, self.pages.count if not flagged else 1)))
        self.pages.visible = self.pages.count > 1
        self._say(night, bool(rows), flagged)
        ids = [row["image_id"] for row in rows]
        score = found.column_names[3]
        lines = _Lines(score, night.calibration_valid)
        self.pictures.fill(rows, self.state.lake.pictures(ids), lines.of)
        self.table.fill(
            [_narrow(row, score, night) for row in rows], ids, f"The same, night {night.night}"
        )

    def _say(self, night: NightCounts, any_rows: bool, flagged: bool) -> None:
        if night.calibration_valid:
            text = f"{night.flagged:,} of {night.tested:,} images were flagged at a "
            text += f"false-discovery rate of {percent(night.alpha)}, on average over calibrations"
            if night.drift_tested:
                self.validity.say(f"Calibration valid: {text}.", "good")
            else:
                unknown = "Drift was not tested: whether p- and q-values are valid is unknown"
                self.validity.say(f"{unknown}. If they are, {text}.", "warning")
        else:
            text = "CALIBRATION NOT VALID on this night: p- and q-values are not valid, and "
            text += f"no rate of false alarms is kept. Why: {night.why}."
            self.validity.say(text, "error")
        empty = "Nothing was flagged on this night."
        empty += f" “{RANKED}” shows what came nearest." if flagged else ""
        self.notice.say("" if any_rows else empty)


class _Lines:
    """What stands below a picture."""

    def __init__(self, score: str, valid: bool) -> None:
        self.score, self.valid = score, valid

    def of(self, row: dict[str, Any]) -> list[str]:
        known = [name for name in ("q_value", "p_value") if row.get(name) is not None]
        doubt = "" if self.valid else " (not valid)"
        parts = [f"{name[0]} = {number(row[name])}{doubt}" for name in known]
        parts = parts or ["no p: trained on"]
        label = [str(row["label"])] if row.get("label") is not None else []
        return [*parts, f"{self.score} {number(row[self.score])}", *label]


def _narrow(row: dict[str, Any], score: str, night: NightCounts) -> dict[str, Any]:
    names = ("image_id", "q_value", "p_value", "calibration_valid", score, "label", "dataset")
    names += ("source_uri", "source_row", "batch")
    values = {name: row[name] for name in names if name in row}
    if not night.calibration_valid and "calibration_valid" in values:
        values["calibration_valid"] = False  # drift was found after the row was written
    return values
