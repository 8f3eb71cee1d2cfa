"""Columns that a later release adds to a table, and types that do not fit."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

from jobs.embed.tables import EmbedTables
from jobs.engine import commit as engine_commit
from jobs.engine import runner
from jobs.engine.plan import Completion, Plan, Unit
from jobs.errors import InputError
from jobs.lake.paths import LakePaths
from jobs.query import views
from jobs.schemas.dataset import TableSpec
from jobs.schemas.model import RECONSTRUCTIONS, embeddings_spec
from jobs.tables.delta import Snapshot, Table, open_snapshot
from tests.helpers import write_source
from tests.inline import InlineCompact, InlineEmbed, InlineStage


def embedded(lake: LakePaths, extra: str = "") -> pa.Table:
    return views.sql(lake, f"SELECT * FROM embeddings {extra} ORDER BY image_id")


def _more(tmp_path: Path) -> Path:
    write_source(tmp_path / "more" / "b.parquet", range(600, 650))
    return tmp_path / "more"


def _older(latent_dim: int) -> TableSpec:
    spec = embeddings_spec(latent_dim)
    kept = [field for field in spec.schema if field.name not in ("max_patch_y", "model_split")]
    return dataclasses.replace(
        spec,
        schema=pa.schema(kept),
        stats=tuple(name for name in spec.stats if name != "model_split"),
    )


def _flag_nothing(plan: Plan, tables: EmbedTables, unit: Unit, attempt: str) -> Completion:
    return Completion(
        unit_id=unit.unit_id, attempt=attempt, outputs=[], counts={}, seconds=0.0, kind=unit.kind
    )


def _embed_as_before(lake: LakePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a release that had neither those columns nor batches."""
    monkeypatch.setattr("jobs.embed.tables.embeddings_spec", _older)
    monkeypatch.setattr("jobs.embed.job.flag_batch", _flag_nothing)
    runner.run(InlineEmbed(lake))
    monkeypatch.undo()


def test_a_column_of_a_later_release_is_null_in_older_rows(
    trained: LakePaths, tmp_path: Path, monkeypatch
) -> None:
    _embed_as_before(trained, monkeypatch)
    assert embedded(trained)["model_split"].null_count == 600
    runner.run(InlineStage(trained, _more(tmp_path), night="2026-01-02"))
    before = open_snapshot(trained.model("m", "embeddings"))
    assert "model_split" not in before.schema.names
    report = runner.run(InlineEmbed(trained, night="2026-01-02", alpha=0.9))
    assert (report.counts["embedded"], report.counts["tested"]) == (50, 50)
    assert report.counts["anomalies"]
    old, new = (embedded(trained, f"WHERE night = '2026-01-0{n}'") for n in (1, 2))
    assert old["max_patch_y"].null_count == 600
    assert new["max_patch_y"].null_count == 0
    # So it does for readers that are not ours, and after the files have been merged.
    table = pl.scan_delta(trained.model("m", "embeddings")).select("max_patch_y").collect()
    assert (len(table), table["max_patch_y"].null_count()) == (650, 600)
    rows = embedded(trained)
    runner.run(InlineCompact.of(trained, "model", "m", night="2026-01-03"))
    merged = embedded(trained)
    others = [name for name in rows.column_names if name != "model_split"]
    assert merged.select(others).equals(rows.select(others))
    # Not null, which would say that the image came later than the model.
    assert merged["model_split"].to_pylist().count("unknown") == 600
    runner.run(InlineEmbed(trained, night="2026-01-04"))
    assert len(views.sql(trained, "SELECT * FROM batches")) == 1  # and no second


def test_a_column_of_another_type_is_refused_with_a_way_out(
    trained: LakePaths, monkeypatch
) -> None:
    runner.run(InlineEmbed(trained))

    def other(latent_dim: int) -> TableSpec:
        spec = embeddings_spec(latent_dim)
        at = spec.schema.get_field_index("kl")
        return dataclasses.replace(spec, schema=spec.schema.set(at, pa.field("kl", pa.string())))

    monkeypatch.setattr("jobs.embed.tables.embeddings_spec", other)
    with pytest.raises(InputError, match=r"'kl' would be string, .* has double; use another name"):
        runner.run(InlineEmbed(trained, redo=True))


def test_a_new_column_hides_no_commit_that_was_cut_short(trained: LakePaths, monkeypatch) -> None:
    """The table that jobs compete for gets its column between a crash and what completes it."""
    real = Snapshot.commit

    def commit(self, *arguments, **how):
        if self.uri.endswith("anomalies"):
            raise KeyboardInterrupt
        return real(self, *arguments, **how)

    monkeypatch.setattr(Snapshot, "commit", commit)
    with pytest.raises(KeyboardInterrupt):
        runner.run(InlineEmbed(trained, reconstructions="all"))
    monkeypatch.undo()
    wider = pa.schema([*RECONSTRUCTIONS.schema, pa.field("later", pa.int64())])
    uri = trained.model("m", "reconstructions")
    Table(uri, dataclasses.replace(RECONSTRUCTIONS, schema=wider)).ensure()
    assert "later" in open_snapshot(uri).schema.names
    engine_commit.recover(trained, uri)
    assert len(open_snapshot(trained.model("m", "embeddings")).read(["image_id"])) == 600


def test_a_redo_that_adds_columns_works_once(trained: LakePaths, monkeypatch) -> None:
    _embed_as_before(trained, monkeypatch)
    redo = InlineEmbed(trained, night="2026-01-02", redo=True)
    assert runner.run(redo).counts["embedded"] == 600
    assert redo.executed
    assert len(redo.executed) == len(set(redo.executed))
    assert embedded(trained)["max_patch_y"].null_count == 0
