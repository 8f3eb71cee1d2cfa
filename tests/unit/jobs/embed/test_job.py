"""embed as a whole, but for Ray: every image once, calibrated, the same numbers every time."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from jobs.bundles import bundle
from jobs.bundles.manifest import Compute
from jobs.engine import commit as engine_commit
from jobs.engine import runner
from jobs.errors import InputError
from jobs.lake.paths import LakePaths
from jobs.query import api as query_api
from jobs.query import views
from jobs.schemas.model import RECONSTRUCTIONS, embeddings_spec
from jobs.tables import catalog
from jobs.tables.delta import Snapshot, open_snapshot
from tests.helpers import write_source
from tests.inline import InlineEmbed, InlineStage, InlineTrain, OvertakenEmbed
from vae_core.scores.names import SCORES
from vae_core.stats.conformal import p_values

PNGS = "SELECT image_id, png FROM reconstructions"


def embedded(lake: LakePaths, extra: str = "") -> pa.Table:
    return views.sql(lake, f"SELECT * FROM embeddings {extra} ORDER BY image_id")


def test_every_image_is_embedded_once_and_a_rerun_has_nothing_to_do(trained: LakePaths) -> None:
    report = runner.run(InlineEmbed(trained))
    assert report.counts["embedded"] == 600
    rows = embedded(trained)
    images = views.sql(trained, "SELECT image_id FROM images ORDER BY image_id")
    assert rows["image_id"].to_pylist() == images["image_id"].to_pylist()
    again = InlineEmbed(trained, night="2026-01-02")
    assert runner.run(again).units == 0
    assert again.executed == []


def test_rows_of_a_file_are_sorted_by_id(trained: LakePaths) -> None:
    runner.run(InlineEmbed(trained, reconstructions="all"))
    for table in ("embeddings", "reconstructions"):
        snapshot = open_snapshot(trained.model("m", table))
        assert snapshot is not None
        for _, rows in snapshot.read_each(["image_id"]):
            ids = rows["image_id"].to_pylist()
            assert ids == sorted(ids)


def test_only_new_images_are_embedded_the_next_night(trained: LakePaths, tmp_path: Path) -> None:
    runner.run(InlineEmbed(trained))
    before = embedded(trained)
    write_source(tmp_path / "more" / "b.parquet", range(600, 650))
    runner.run(InlineStage(trained, tmp_path / "more", night="2026-01-02"))
    report = runner.run(InlineEmbed(trained, night="2026-01-02"))
    assert report.counts["embedded"] == 50
    rows = embedded(trained)
    assert len(rows) == len(set(rows["image_id"].to_pylist())) == 650
    old = embedded(trained, "WHERE night = '2026-01-01'")
    assert old.equals(before)


def test_the_numbers_are_the_models_own_and_deterministic(trained: LakePaths) -> None:
    runner.run(InlineEmbed(trained))
    rows = embedded(trained)
    held = bundle.load(trained, *catalog.resolve_model(trained, "m"))
    images = views.sql(trained, "SELECT image_id, image FROM images ORDER BY image_id")
    pixels = np.stack(
        [np.frombuffer(b, np.uint8).reshape(28, 28, 1) for b in images["image"].to_pylist()]
    )
    # In another order and in other company than the units had.
    order = np.random.default_rng(0).permutation(len(pixels))
    ids = images["image_id"].to_pylist()
    scored = held.scorer().score(pixels[order], [ids[i] for i in order])
    back = np.argsort(order)
    assert np.array_equal(np.array(rows["embedding"].to_pylist(), np.float32), scored.mean_ND[back])
    for name in SCORES:
        values = scored.scores[name]
        if values is None:
            assert rows[name].null_count == 600
        else:
            assert np.array_equal(rows[name].to_numpy(), values[back]), name


def test_p_values_follow_the_rules_of_who_is_fair(trained: LakePaths, tmp_path: Path) -> None:
    write_source(tmp_path / "more" / "b.parquet", range(600, 800))
    runner.run(InlineStage(trained, tmp_path / "more", night="2026-01-02"))
    runner.run(InlineEmbed(trained))
    rows = views.sql(
        trained,
        """SELECT e.neg_elbo, e.p_value, i.split, i.night FROM embeddings e
           JOIN images i USING (image_id) ORDER BY image_id""",
    ).to_pandas()
    calibration = bundle.load(trained, *catalog.resolve_model(trained, "m")).calibration_scores
    old, new = rows[rows.night == "2026-01-01"], rows[rows.night == "2026-01-02"]
    shaped = old[old.split.isin(["train", "validation"])]
    assert len(shaped) > 400
    assert shaped.p_value.isna().all()
    # Later arrivals are all fair, whatever their split.
    np.testing.assert_allclose(new.p_value, p_values(new.neg_elbo.to_numpy(), calibration))
    test = old[old.split == "test"]
    np.testing.assert_allclose(test.p_value, p_values(test.neg_elbo.to_numpy(), calibration))
    own = old[old.split == "calibration"]
    assert len(own) == len(calibration)
    # Calibration went through the same code path: the scores are the same to the last bit.
    assert np.array_equal(np.sort(own.neg_elbo.to_numpy()), calibration)
    by_hand = [(calibration >= s).sum() / len(calibration) for s in own.neg_elbo]
    np.testing.assert_allclose(own.p_value, by_hand)


def test_reconstructions_are_pngs_in_a_table_of_their_own(trained: LakePaths) -> None:
    runner.run(InlineEmbed(trained, reconstructions="all"))
    rows = views.sql(trained, "SELECT image_id, png FROM reconstructions")
    assert len(rows) == 600
    image = Image.open(io.BytesIO(rows["png"][0].as_py()))
    assert (image.size, image.mode) == ((28, 28), "L")


def test_reconstructions_can_be_asked_for_later(trained: LakePaths) -> None:
    runner.run(InlineEmbed(trained))
    before = embedded(trained)
    report = runner.run(InlineEmbed(trained, night="2026-01-02", reconstructions="all"))
    assert (report.counts["embedded"], report.counts["reconstructed"]) == (0, 600)
    assert embedded(trained).equals(before)
    assert len(views.sql(trained, "SELECT DISTINCT image_id FROM reconstructions")) == 600
    assert runner.run(InlineEmbed(trained, night="2026-01-03", reconstructions="all")).units == 0


def test_a_piece_of_a_shard_is_of_its_own_rows(
    trained: LakePaths, tmp_path: Path, monkeypatch
) -> None:
    """Units that begin in the middle of a shard, and want some of its images."""
    folder = tmp_path / "other"
    shutil.copytree(trained.uri.removeprefix("file://"), folder)
    other = LakePaths(folder.as_uri())
    runner.run(InlineEmbed(trained, reconstructions="all"))
    monkeypatch.setattr("jobs.embed.job.UNIT_ROWS", 1)
    monkeypatch.setattr("jobs.embed.sampling.SAMPLE", 10)
    runner.run(InlineEmbed(other, reconstructions="none"))
    runner.run(InlineEmbed(other, reconstructions="sample"))
    expected, found = (
        {row["image_id"]: row["png"] for row in views.sql(of, PNGS).to_pylist()}
        for of in (trained, other)
    )
    assert len(found) > 10
    assert found == {image_id: expected[image_id] for image_id in found}
    same = ["image_id", "embedding", "p_value"]
    assert embedded(other).select(same).equals(embedded(trained).select(same))


def test_an_image_that_was_trained_on_has_no_p_value_in_any_dataset(
    trained: LakePaths, trained_source: Path
) -> None:
    copy = InlineStage(trained, trained_source)
    copy.target = "copy"
    runner.run(copy)
    runner.run(InlineEmbed(trained, dataset="copy"))
    rows = views.sql(
        trained,
        """SELECT i.split, count(*) AS n, count(e.p_value) AS p FROM embeddings e
           JOIN images i USING (image_id, dataset) WHERE dataset = 'copy' GROUP BY ALL""",
    ).to_pylist()
    assert {row["split"]: row["p"] for row in rows if row["split"] in ("train", "validation")} == {
        "train": 0,
        "validation": 0,
    }
    assert all(row["p"] == row["n"] for row in rows if row["split"] in ("calibration", "test"))
    # The same image in two datasets can still be requested by its whole id.
    runner.run(InlineEmbed(trained))
    image_id = rows and views.sql(trained, "SELECT min(image_id) AS i FROM images")["i"][0].as_py()
    assert len(query_api.Lake(trained.uri).embeddings("m").neighbours(image_id, k=3)) == 3


def test_a_killed_embed_of_one_dataset_is_left_alone_by_another(
    trained: LakePaths, trained_source: Path, monkeypatch
) -> None:
    from jobs.engine import commit as engine_commit
    from jobs.engine import records

    copy = InlineStage(trained, trained_source)
    copy.target = "copy"
    runner.run(copy)
    monkeypatch.setattr(
        engine_commit, "commit", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        runner.run(InlineEmbed(trained))
    monkeypatch.undo()
    runner.run(InlineEmbed(trained, dataset="copy"))
    assert len(records.unfinished_plans(trained, "embed", "m")) == 1
    again = InlineEmbed(trained)
    runner.run(again)
    assert again.executed == []  # its units were kept
    assert len(embedded(trained)) == 1200


def test_another_batch_shape_than_the_calibrations_is_said(trained: LakePaths, caplog) -> None:
    InlineEmbed(trained).plan()
    assert "bit for bit" not in caplog.text
    InlineEmbed(trained, batch_size=50).plan()
    assert "agree to about 1e-5, not bit for bit" in caplog.text


def test_p_values_hold_where_scores_were_computed_as_the_calibrations(trained: LakePaths) -> None:
    def valid() -> list[bool]:
        return views.sql(trained, "SELECT calibration_valid AS v FROM batches")["v"].to_pylist()

    assert InlineEmbed(trained).workers.device == "cpu"
    runner.run(InlineEmbed(trained))
    assert valid() == [True]
    # As if it had been calibrated on a GPU: one is requested, and a worker without says so.
    about = Path(trained.bundle(*catalog.resolve_model(trained, "m")).removeprefix("file://"))
    text = (about / "model.json").read_text()
    told = json.loads(text)["scoring"]
    on_gpu = Compute(batch_size=told["batch_size"], device="cuda").fingerprint
    text = text.replace(told["compute_fingerprint"], on_gpu).replace('"cpu"', '"cuda"')
    (about / "model.json").write_text(text)
    embed = InlineEmbed(trained, night="2026-01-02", redo=True)
    assert embed.workers.device == "auto"
    assert InlineEmbed(trained, device="cpu").workers.device == "cpu"
    runner.run(embed)
    assert valid() == [False]


def test_a_crash_between_the_two_tables_is_completed(trained: LakePaths, monkeypatch) -> None:
    real = Snapshot.commit

    def commit(self, job_id, outputs, metadata, *more, **how):
        if self.uri.endswith("embeddings"):
            raise KeyboardInterrupt
        return real(self, job_id, outputs, metadata, *more, **how)

    monkeypatch.setattr(Snapshot, "commit", commit)
    with pytest.raises(KeyboardInterrupt):
        runner.run(InlineEmbed(trained, reconstructions="all"))
    monkeypatch.undo()
    again = InlineEmbed(trained, night="2026-01-02", reconstructions="all")
    runner.run(again)
    assert again.executed == []
    for table in ("embeddings", "reconstructions"):
        rows = views.sql(trained, f"SELECT image_id, night FROM {table}")
        assert len(rows) == len(set(rows["image_id"].to_pylist())) == 600
        assert set(rows["night"].to_pylist()) == {"2026-01-01"}


def test_two_embeds_at_once_leave_every_image_once(trained: LakePaths, tmp_path: Path) -> None:
    runner.run(InlineStage(trained, _more(tmp_path), night="2026-01-02"))
    rival = InlineEmbed(trained, night="2026-01-03")
    runner.run(OvertakenEmbed(trained, rival, night="2026-01-02", reconstructions="all"))
    for table in ("embeddings", "reconstructions"):
        ids = views.sql(trained, f"SELECT image_id FROM {table}")["image_id"].to_pylist()
        assert len(ids) == len(set(ids))
    assert len(embedded(trained)) == 650


def _more(tmp_path: Path) -> Path:
    write_source(tmp_path / "more" / "b.parquet", range(600, 650))
    return tmp_path / "more"


def test_a_model_of_another_image_size_is_refused(trained: LakePaths, tmp_path: Path) -> None:
    other = InlineStage(trained, _more(tmp_path), height=16, width=16)
    other.target = "small"
    runner.run(other)
    with pytest.raises(InputError, match=r"\(16, 16, 1\).*\(28, 28, 1\)"):
        runner.run(InlineEmbed(trained, dataset="small"))


def test_a_new_version_embeds_into_its_own_partition(trained: LakePaths) -> None:
    runner.run(InlineEmbed(trained))
    runner.run(InlineTrain(trained, seed=5, promote=True))
    runner.run(InlineEmbed(trained))
    counts = views.sql(
        trained, "SELECT model_version, count(*) AS n FROM embeddings GROUP BY ALL"
    ).to_pylist()
    assert [row["n"] for row in counts] == [600, 600]


def test_every_score_column_states_its_unit_and_direction() -> None:
    schema = embeddings_spec(4).schema
    for name in (*SCORES, "p_value"):
        metadata = schema.field(name).metadata
        assert metadata[b"unit"]
        assert metadata[b"anomalous"] in (b"higher", b"lower", b"none")
    for spec in (embeddings_spec(4), RECONSTRUCTIONS):
        assert all(field.metadata[b"comment"] for field in spec.schema)


def test_neighbours_and_anomalies_agree_with_plain_numpy(trained: LakePaths) -> None:
    runner.run(InlineEmbed(trained))
    rows = embedded(trained)
    matrix = np.array(rows["embedding"].to_pylist(), np.float64)
    ids = rows["image_id"].to_pylist()
    for metric in ("cosine", "euclidean"):
        found = (
            query_api.Lake(trained.uri).embeddings("m").neighbours(ids[5][:16], k=7, metric=metric)
        )
        if metric == "euclidean":
            distance = np.sqrt(((matrix - matrix[5]) ** 2).sum(1))
        else:
            unit = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
            distance = 1 - unit @ unit[5]
        distance[5] = np.inf
        expected = [ids[i] for i in np.argsort(distance)[:7]]
        assert found["image_id"].to_pylist() == expected
    worst = query_api.Lake(trained.uri).embeddings("m").anomalies(score="recon_mse", top=9)
    order = np.argsort(-rows["recon_mse"].to_numpy())[:9]
    assert worst["image_id"].to_pylist() == [ids[i] for i in order]
    assert len(query_api.Lake(trained.uri).embeddings("m").anomalies(night="1999-01-01")) == 0
    with pytest.raises(InputError, match=r"unknown score 'loss'; known: .*neg_elbo"):
        query_api.Lake(trained.uri).embeddings("m").anomalies(score="loss")
    with pytest.raises(InputError, match="no embedded image"):
        query_api.Lake(trained.uri).embeddings("m").neighbours("zz")


def test_codes_alone_are_the_same_codes_and_nothing_else(trained: LakePaths) -> None:
    runner.run(InlineEmbed(trained, scores="none"))
    codes = embedded(trained)
    for name in (*SCORES, "p_value", "max_patch_y"):
        assert codes[name].null_count == 600, name
    assert views.sql(trained, "SELECT tested FROM batches")["tested"].to_pylist() == [0]
    runner.run(InlineEmbed(trained, redo=True))
    whole = embedded(trained)
    assert whole["neg_elbo"].null_count == 0
    for name in ("image_id", "embedding", "embedding_log_var", "model_split"):
        assert codes[name].equals(whole[name]), name


def test_redone_embeddings_replace_the_old_ones_in_one_commit(
    trained: LakePaths, tmp_path: Path, monkeypatch
) -> None:
    runner.run(InlineEmbed(trained, reconstructions="all", alpha=0.9))
    runner.run(InlineStage(trained, _more(tmp_path), night="2026-01-02"))
    runner.run(InlineEmbed(trained, night="2026-01-02", alpha=0.9))
    before = embedded(trained)
    history = open_snapshot(trained.model("m", "embeddings")).version
    redo = {"redo": True, "night": "2026-01-03", "alpha": 0.9}
    monkeypatch.setattr(
        engine_commit, "commit", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        runner.run(InlineEmbed(trained, **redo))
    monkeypatch.undo()
    assert embedded(trained).equals(before)
    again = InlineEmbed(trained, **redo)
    report = runner.run(again)
    assert again.executed == []  # what was done is not done again, nor the whole a second time
    assert report.counts["embedded"] == 650
    assert open_snapshot(trained.model("m", "embeddings")).version == history + 1
    after = embedded(trained)
    assert set(after["night"].to_pylist()) == {"2026-01-03"}
    same = [n for n in before.column_names if n not in ("night", "job_id", "unit_id")]
    same.remove("images_version")
    assert after.select(same).equals(before.select(same))
    assert len(views.sql(trained, "SELECT * FROM reconstructions")) == 0
    (batch,) = views.sql(trained, "SELECT * FROM batches").to_pylist()
    tested = before.filter(pa.compute.is_valid(before["p_value"]))["model_split"].to_pylist()
    assert batch["tested"] == sum(split != "calibration" for split in tested)
    flagged = views.sql(trained, "SELECT image_id FROM anomalies")["image_id"].to_pylist()
    assert len(flagged) == len(set(flagged)) == batch["flagged"]
    # Whoever asks again means it.
    assert runner.run(InlineEmbed(trained, **redo)).counts["embedded"] == 650


def test_a_redo_begins_anew_where_another_embed_came_first(
    trained: LakePaths, tmp_path: Path
) -> None:
    runner.run(InlineEmbed(trained))
    runner.run(InlineStage(trained, _more(tmp_path), night="2026-01-02"))
    rival = InlineEmbed(trained, night="2026-01-03")
    runner.run(OvertakenEmbed(trained, rival, night="2026-01-02", redo=True))
    ids = embedded(trained)["image_id"].to_pylist()
    assert len(ids) == len(set(ids)) == 650
