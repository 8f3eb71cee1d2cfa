"""The page "SQL": one SELECT at a time over the views, which cannot do anything else."""

from __future__ import annotations

import time

import panel as pn
import panel_material_ui as pmui

from flows.explore.image_dialog import ImageDialog
from flows.explore.state import SQL_ROWS, SQL_S, ExploreState
from flows.explore.widgets import Notice, RowTable, filters
from flows.output import to_records
from jobs.errors import LatentlakeError
from jobs.query.views import SPECS
from jobs.report.blocks import counted

SETTLE_S = 0.3
EXAMPLES = {
    "images by dataset and split": "SELECT dataset, split, count(*) AS images\n"
    "FROM images GROUP BY ALL ORDER BY ALL",
    "anomalies by night": "SELECT model, night, count(*) AS flagged, min(q_value) AS least_q\n"
    "FROM anomalies GROUP BY ALL ORDER BY night DESC",
    "refusals by reason": "SELECT dataset, reason, count(*) AS refused\n"
    "FROM quarantine GROUP BY ALL ORDER BY refused DESC",
    "highest scores": "SELECT image_id, dataset, night, neg_elbo, p_value\n"
    "FROM embeddings ORDER BY neg_elbo DESC LIMIT 50",
    "the last runs": "SELECT job, target, night, finished_at, seconds\n"
    "FROM runs ORDER BY sequence DESC NULLS LAST, finished_at DESC",
}


class Sql:
    """The tab of guarded statements."""

    def __init__(self, state: ExploreState, dialog: ImageDialog) -> None:
        self.state, self.dialog = state, dialog
        first = next(iter(EXAMPLES))
        self.examples = pmui.Select(label="Examples", options=list(EXAMPLES), value=first)
        self.statement = pmui.TextAreaInput(
            label="SELECT statement (DuckDB)",
            value=EXAMPLES[first],
            rows=5,
            max_length=20_000,
            sizing_mode="stretch_width",
            stylesheets=["textarea { font-family: monospace; }"],
        )
        self.run = pmui.Button(label="Run", color="primary")
        self.notice = Notice(sizing_mode="stretch_width", margin=(4, 0, 12, 0))
        self.table = RowTable(sizing_mode="stretch_width", on_open=self._open)
        self.examples.param.watch(self._take_example, "value")
        self.run.on_click(lambda _: self.ask())
        text = (
            f"Views: {', '.join(SPECS)}. At most {SQL_ROWS} rows are shown, within {SQL_S:.0f} s; "
        )
        self.notice.say(text + "nothing can be changed, and no other file is read.")

    def view(self) -> list[pn.viewable.Viewable]:
        """Return what the tab shows."""
        return [filters(self.examples, self.run), self.statement, self.notice, self.table]

    def _open(self, image_id: str) -> None:
        models = self.state.models()
        self.dialog.open(image_id, next(iter(models.values()), None))

    def _take_example(self, event) -> None:
        self.statement.value = EXAMPLES[event.new]

    def ask(self) -> None:
        """Run the statement and show its rows."""
        # Panel gathers what is typed for 50 ms, and a press may come before the last of it.
        time.sleep(SETTLE_S)
        statement = (self.statement.value_input or self.statement.value or "").strip()
        started = time.monotonic()
        try:
            found, more = self.state.guarded.ask(statement, SQL_ROWS, SQL_S)
            records = to_records(found)
        except (LatentlakeError, OverflowError, ValueError) as error:  # a date that Python has not
            self.table.fill([])
            self.notice.say(str(error), "error")
            return
        first = found.column_names[:1] == ["image_id"]
        ids = [str(record["image_id"] or "") for record in records] if first else []
        self.table.fill(records, ids)
        took = f"{counted(len(found), 'row')} in {time.monotonic() - started:.2f} s"
        more_told = f"; there are more, the first {SQL_ROWS} are shown" if more else ""
        self.notice.say(took + more_told, "warning" if more else "good")
