"""What a stage unit does: read, hash, decode, write; or write earlier files again."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from itertools import groupby

import pyarrow.compute as pc

from jobs.engine.plan import Completion, JobContext, Unit
from jobs.errors import RejectedInput, StorageError
from jobs.lake.paths import LakePaths
from jobs.sources.base import FileRange, Layout, ReadsMany, SourceBatch
from jobs.sources.format_names import FormatName
from jobs.sources.pinned_read import SourceChanged
from jobs.sources.registry import format_of
from jobs.stage.payloads import ReadRanges, payload_of
from jobs.stage.rewrite import Rewriter
from jobs.stage.rows import UnitRows
from jobs.stage.tables import stage_tables
from jobs.tables.delta import Snapshot, open_snapshot
from jobs.tables.image_ids import IdSet, digests


class StageWorker:
    """One a worker process; knows the images that were published when the plan was made."""

    def __init__(self, lake: LakePaths, context: JobContext) -> None:
        self.context = context
        self.lake = lake
        settings = context.settings
        self.tables = stage_tables(lake, settings["dataset"], settings)
        shape = settings["array_shape"]
        self.layout = Layout(array_shape=tuple(shape) if shape else None)
        self.columns = [name for name, _ in settings["passthrough"]]

    @functools.cached_property
    def published(self) -> Snapshot | None:
        """Return the images table as the plan saw it; None where there was none."""
        version = self.context.base["images"]
        return open_snapshot(self.tables.images.uri, version) if version >= 0 else None

    @functools.cached_property
    def known(self) -> IdSet:
        """Return the ids of the images that the plan knew."""
        if self.published is None:
            return IdSet()
        return self.published.image_ids()

    def execute(self, unit: Unit, attempt: str) -> Completion:
        """Do one unit; see Worker."""
        started = time.monotonic()
        name = f"{unit.unit_id}-{attempt}"
        match payload_of(unit):
            case ReadRanges(parts):
                rows, skipped = self._staged(parts, unit.unit_id, name)
                outputs, counts, replaces = rows.outputs, dict(rows.counts), {}
                details = {"skipped": sorted(skipped)} if skipped else {}
            case payload:
                rewriter = Rewriter(self.lake, self.context, self.tables, name)
                outputs, counts, details, replaces = rewriter.run(payload)
        return Completion(
            unit_id=unit.unit_id,
            attempt=attempt,
            outputs=outputs,
            counts=counts,
            seconds=time.monotonic() - started,
            details=details,
            kind=unit.kind,
            replaces=replaces,
        )

    def _staged(self, parts: list[FileRange], unit_id: str, name: str) -> tuple[UnitRows, set[str]]:
        """Stage the unit's rows; return them and the files that were left for the next run.

        A file that turns out bad in its middle has given rows already: then every file is read
        once to judge it, and the unit begins again without the bad ones.
        """
        try:
            return self._attempt(parts, unit_id, name, {})
        except (RejectedInput, SourceChanged):
            verdicts = {(p.uri, p.start): v for p in parts if (v := self._verdict(p)) is not None}
        try:
            return self._attempt(parts, unit_id, f"{name}b", verdicts)
        except (RejectedInput, SourceChanged) as error:
            raise StorageError(f"a source file changes while it is read: {error}") from error

    def _attempt(
        self,
        parts: list[FileRange],
        unit_id: str,
        name: str,
        verdicts: dict[tuple[str, int], RejectedInput | SourceChanged],
    ) -> tuple[UnitRows, set[str]]:
        rows = UnitRows(self.context, self.tables, self.known, unit_id, name)
        skipped: set[str] = set()
        for name_of_format, group in groupby(parts, key=_format_name):
            source_format = format_of(name_of_format)
            if isinstance(source_format, ReadsMany):
                _add_files(rows, source_format.read_many(list(group)), skipped)
                continue
            for part in group:
                verdict = verdicts.get((part.uri, part.start))
                if isinstance(verdict, SourceChanged):
                    skipped.add(part.uri)
                    rows.counts["files_skipped"] += part.start == 0
                    continue
                rows.counts["files_in"] += part.start == 0
                refused = RejectedInput(*part.refused) if part.refused else verdict
                if refused is not None:
                    rows.refuse_part(part, refused)
                    continue
                own = self._own(part.uri) if part.replaces else None
                for batch in source_format.read(part, self.layout, self.columns):
                    rows.add(batch, own)
        rows.close()
        return rows, skipped

    def _verdict(self, part: FileRange) -> RejectedInput | SourceChanged | None:
        """Read a part to its end, keeping nothing."""
        source_format = format_of(part.format)
        if part.refused or isinstance(source_format, ReadsMany):
            return None
        try:
            for _ in source_format.read(part, self.layout, self.columns):
                pass
        except (RejectedInput, SourceChanged) as verdict:
            return verdict
        return None

    def _own(self, uri: str) -> IdSet:
        """Return the published images whose first occurrence lies in a file."""
        if self.published is None:
            return IdSet()
        return IdSet(
            digests(rows["image_id"].filter(pc.equal(rows["source_uri"], uri)))  # type: ignore[attr-defined]
            for _, rows in self.published.read_each(["image_id", "source_uri"])
        )


def _add_files(
    rows: UnitRows, read: Iterator[SourceBatch | list[FileRange]], skipped: set[str]
) -> None:
    """Files that are one row each."""
    for found in read:
        if isinstance(found, SourceBatch):
            rows.counts["files_in"] += len(found.images)
            rows.add(found)
        else:
            rows.counts["files_skipped"] += len(found)
            skipped.update(part.uri for part in found)


def _format_name(part: FileRange) -> FormatName:
    return part.format
