"""Writing files again: a unit's own with less in them, or published ones that rows leave."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jobs.datasets.rewrite import rewritten
from jobs.engine.corrections import Correction
from jobs.engine.plan import JobContext
from jobs.lake.paths import LakePaths
from jobs.stage.payloads import StageRewrite
from jobs.stage.reconcile import leaving_order, leaving_rows
from jobs.stage.tables import StageTables
from jobs.tables.data_file import Output

Done = tuple[list[Output], dict[str, int], dict[str, Any], dict[str, list[str]]]


class Rewriter:
    """Does the corrections and rewrites of a stage job."""

    def __init__(
        self, lake: LakePaths, context: JobContext, tables: StageTables, name: str
    ) -> None:
        self.lake = lake
        self.context = context
        self.tables = {table.spec.name: table for table in tables}
        self.name = name

    def run(self, payload: StageRewrite | Correction) -> Done:
        """Rewrite; return outputs, counts, details and the published paths that they replace."""
        match payload:
            case StageRewrite():
                return self._rewritten(payload)
            case Correction():
                return self._corrected(payload)

    def _rewritten(self, payload: StageRewrite) -> Done:
        name, path = payload.table, payload.path
        order = leaving_order(self.lake, self.context.job_id, payload.order)
        leaving = _Removals(order)
        change = {
            "images": leaving.images,
            "quarantine": leaving.quarantine,
            "sources": leaving.sources,
        }[name]
        output = rewritten(self.tables[name], path, self.name, change)
        return [output] if output else [], {}, {}, {name: [path]}

    def _corrected(self, correction: Correction) -> Done:
        """Return an earlier unit's rows, less what is published elsewhere."""
        drop = _Drop(correction)
        outputs: list[Output] = []
        changes = (
            ("sources", drop.sources),
            ("quarantine", drop.quarantine),
            ("images", drop.images),
        )
        for name, change in changes:
            for number, path in enumerate(correction.outputs.get(name, [])):
                output = rewritten(self.tables[name], path, f"{self.name}-{number:03d}", change)
                outputs += [output] if output else []
        return outputs, drop.counts_left(), correction.details, {}


class _Drop:
    """What one unit loses. Sources go first: they tell which rows the other tables keep."""

    def __init__(self, correction: Correction) -> None:
        drop = correction.drop
        self.lost = pa.array(drop.get("lost", []), pa.string())
        self.published = {tuple(pair) for pair in drop.get("published", [])}
        self.promoted = {(uri, row) for uri, row, _ in drop.get("promoted", [])}
        self.gone: set[tuple[str, int]] = set()
        # What a correction cannot tell anew stays as the unit counted it.
        kept = ("files_in", "files_refused", "files_skipped")
        counts = correction.counts
        self.counts: Counter[str] = Counter({name: counts.get(name, 0) for name in kept})
        self.counts.update(dict.fromkeys(("rows_in", "rows_read", "staged", "refused"), 0))
        self._fates: Counter[str] = Counter()

    def sources(self, rows: pa.Table) -> pa.Table:
        pairs = zip(rows["source_uri"].to_pylist(), rows["etag"].to_pylist(), strict=True)
        keep = [pair not in self.published for pair in pairs]
        self.gone |= set(_places(rows.filter(pa.array([not k for k in keep]))))
        rows = rows.filter(pa.array(keep, pa.bool_()))
        staged = pc.equal(rows["fate"], "staged")  # type: ignore[attr-defined]
        is_lost = pc.is_in(rows["image_id"], self.lost)  # type: ignore[attr-defined]
        fate = pc.if_else(pc.and_(staged, is_lost), "duplicate", rows["fate"])  # type: ignore[attr-defined]
        first = pa.array([place in self.promoted for place in _places(rows)], pa.bool_())
        fate = pc.if_else(first, "staged", fate)  # type: ignore[attr-defined]
        self.counts["rows_in"] += rows.num_rows
        self.counts["rows_read"] += rows.num_rows
        self._fates.update(fate.to_pylist())
        return rows.set_column(rows.schema.get_field_index("fate"), "fate", fate)

    def counts_left(self) -> dict[str, int]:
        """Return the unit's counts. A promoted row has no image of tonight: it is the duplicate of
        one."""
        read = self._fates["staged"] + self._fates["duplicate"]
        return {**self.counts, "duplicates": read - self.counts["staged"]}

    def quarantine(self, rows: pa.Table) -> pa.Table:
        rows = self._staying(rows)
        self.counts["refused"] += rows.num_rows
        for reason, count in Counter(rows["reason"].to_pylist()).items():
            self.counts[f"refused_{reason}"] += count
        return rows

    def images(self, rows: pa.Table) -> pa.Table:
        rows = self._staying(rows)
        rows = rows.filter(pc.invert(pc.is_in(rows["image_id"], self.lost)))  # type: ignore[attr-defined]
        self.counts["staged"] += rows.num_rows
        return rows

    def _staying(self, rows: pa.Table) -> pa.Table:
        keep = [place not in self.gone for place in _places(rows)]
        return rows.filter(pa.array(keep, pa.bool_()))


def _places(rows: pa.Table) -> list[tuple[str, int]]:
    return list(zip(rows["source_uri"].to_pylist(), rows["source_row"].to_pylist(), strict=True))


class _Removals:
    """What published files lose with the source files that have gone."""

    def __init__(self, order: dict[str, Any]) -> None:
        self.etags = dict(order["gone"])
        self.uris = pa.array(sorted(self.etags), pa.string())
        self.homes: dict[str, tuple[str, int, str | None]] = order["homes"]
        self.night: str = order["night"]

    def images(self, rows: pa.Table) -> pa.Table:
        """Rows of gone files move to their new place, or leave."""
        gone = pc.is_in(rows["source_uri"], self.uris)  # type: ignore[attr-defined]
        if not pc.any(gone).as_py():  # type: ignore[attr-defined]
            return rows
        homes = [self.homes.get(image_id) for image_id in rows["image_id"].to_pylist()]
        has_home = pa.array([home is not None for home in homes], pa.bool_())
        for at, name in enumerate(("source_uri", "source_row", "source_member")):
            kind = rows.schema.field(name).type
            new = pa.array([home[at] if home else None for home in homes], kind)
            moved = pc.if_else(pc.and_(gone, has_home), new, rows[name])  # type: ignore[attr-defined]
            rows = rows.set_column(rows.schema.get_field_index(name), name, moved)
        return rows.filter(pc.or_(pc.invert(gone), has_home))  # type: ignore[attr-defined]

    def quarantine(self, rows: pa.Table) -> pa.Table:
        """Refusals of gone files leave."""
        return rows.filter(pc.invert(pc.is_in(rows["source_uri"], self.uris)))  # type: ignore[attr-defined]

    def sources(self, rows: pa.Table) -> pa.Table:
        """Rows of gone files are marked; rows that became a first occurrence count as staged."""
        live = pc.is_null(rows["removed_night"])  # type: ignore[attr-defined]
        leaves = pc.and_(live, leaving_rows(rows, self.uris, self.etags))  # type: ignore[attr-defined]
        night = pc.if_else(leaves, self.night, rows["removed_night"])  # type: ignore[attr-defined]
        at = rows.schema.get_field_index("removed_night")
        rows = rows.set_column(at, "removed_night", night)
        first = []
        for image_id, place in zip(rows["image_id"].to_pylist(), _places(rows), strict=True):
            home = self.homes.get(image_id)
            first.append(home is not None and (home[0], home[1]) == place)
        stays = pc.and_(live, pc.invert(leaves))  # type: ignore[attr-defined]
        promoted = pc.and_(pa.array(first, pa.bool_()), stays)  # type: ignore[attr-defined]
        fate = pc.if_else(promoted, "staged", rows["fate"])  # type: ignore[attr-defined]
        return rows.set_column(rows.schema.get_field_index("fate"), "fate", fate)
