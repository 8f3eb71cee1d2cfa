"""Flag a batch's anomalies and write them, once all of its images are embedded."""

from __future__ import annotations

import time

import pyarrow as pa

from jobs.embed.anomalies import anomalies_table, flag
from jobs.embed.payloads import FlagBatch
from jobs.embed.tables import EmbedTables
from jobs.engine.plan import Completion, Plan, Unit
from jobs.lake.storage import join
from jobs.schemas.spec import MODEL_PARTITION
from jobs.tables.shards import write_shard


def flag_batch(plan: Plan, tables: EmbedTables, unit: Unit, attempt: str) -> Completion:
    """Decide the batch's anomalies; write them and the batch's row.

    Args:
        plan: of the embed job.
        tables: of the model.
        unit: a closing one.
        attempt: part of the files' names.

    Returns:
        Its details have the batch's name and counts.
    """
    started = time.monotonic()
    payload = FlagBatch.of_unit(unit)
    flagged = flag(payload.batch, [join(tables.embeddings.uri, path) for path in payload.paths])
    stamp = {"night": plan.night, "job_id": plan.job_id, "unit_id": payload.batch.name}
    row = pa.Table.from_pylist([flagged.batch | stamp], schema=tables.batches.spec.file_schema)
    partition = {key: plan.settings[key] for key in MODEL_PARTITION}
    outputs = [
        write_shard(table.uri, table.spec, rows, f"{unit.unit_id}-{attempt}", partition)
        for table, rows in (
            (tables.anomalies, anomalies_table(flagged, stamp)),
            (tables.batches, row),
        )
        if rows.num_rows
    ]
    counts = {name: flagged.batch[name] for name in ("batch", "tested", "fewest_flaggable")}
    return Completion(
        unit_id=unit.unit_id,
        attempt=attempt,
        outputs=outputs,
        counts={},
        seconds=time.monotonic() - started,
        details={**counts, "anomalies": flagged.batch["flagged"]},
        kind=unit.kind,
    )
