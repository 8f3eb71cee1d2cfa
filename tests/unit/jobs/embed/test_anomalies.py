"""The anomalies of a batch: decided once, over all of it, whatever happened on the way."""

from __future__ import annotations

import itertools
import math
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy.stats import false_discovery_control

from jobs.bundles import bundle
from jobs.embed.sampling import in_sample
from jobs.engine import commit as engine_commit
from jobs.engine import runner
from jobs.engine.report import JobReport
from jobs.lake.paths import LakePaths
from jobs.query import views
from jobs.tables import catalog
from jobs.tables.delta import Snapshot
from jobs.tables.image_ids import digests
from tests.helpers import write_source
from tests.inline import InlineEmbed, InlineStage, OvertakenEmbed

ALPHA = 0.6  # of 60 calibration images and a few dozens tested, something has to be flagged
NIGHTS = ("2026-01-02", "2026-01-03")
PROVENANCE = ("night", "job_id", "unit_id")


@pytest.fixture
def embedded(trained: LakePaths, tmp_path: Path) -> LakePaths:
    """A first night embedded, and a second one staged: trousers among the shoes it brings."""
    runner.run(InlineEmbed(trained))
    write_source(tmp_path / "more" / "b.parquet", range(600, 900))
    runner.run(InlineStage(trained, tmp_path / "more", night=NIGHTS[0]))
    return trained


def embed(lake: LakePaths, **settings) -> JobReport:
    return runner.run(InlineEmbed(lake, night=NIGHTS[0], **({"alpha": ALPHA} | settings)))


def table(lake: LakePaths, name: str, order: str, where: str = "true") -> pa.Table:
    return views.sql(lake, f"SELECT * FROM {name} WHERE {where} ORDER BY {order}")


def anomalies(lake: LakePaths) -> pa.Table:
    return table(lake, "anomalies", "batch, rank")


def test_the_flagged_images_are_those_of_benjamini_hochberg_over_the_batch(
    embedded: LakePaths,
) -> None:
    report = embed(embedded)
    rows = table(embedded, "embeddings", "image_id", f"night = '{NIGHTS[0]}'")
    p = rows["p_value"].to_numpy()
    q = false_discovery_control(p)
    expected = {
        i: (q[n], p[n]) for n, i in enumerate(rows["image_id"].to_pylist()) if q[n] <= ALPHA + 1e-9
    }
    found = anomalies(embedded)
    assert 0 < found.num_rows < 300
    assert set(found["image_id"].to_pylist()) == set(expected)
    by_hand = np.array([expected[i] for i in found["image_id"].to_pylist()])
    np.testing.assert_allclose(found["q_value"].to_numpy(), by_hand[:, 0])
    np.testing.assert_allclose(found["p_value"].to_numpy(), by_hand[:, 1])
    assert found["rank"].to_pylist() == list(range(1, len(found) + 1))
    scores = found["neg_elbo"].to_numpy()
    assert (np.diff(found["p_value"].to_numpy()) >= 0).all()
    assert (np.diff(scores) <= 0).all()  # p-values are of it
    assert report.counts["anomalies"] == len(found)
    assert report.counts["tested"] == 300
    (calibrated,) = {len(bundle.load(embedded, *model(embedded)).calibration_scores)}
    assert report.counts["fewest_flaggable"] == math.ceil(300 / ((calibrated + 1) * ALPHA))


def model(lake: LakePaths) -> tuple[str, str]:
    return catalog.resolve_model(lake, "m")


def test_an_anomaly_carries_its_evidence(embedded: LakePaths) -> None:
    embed(embedded)
    found = anomalies(embedded).to_pylist()[0]
    where = f"image_id = '{found['image_id']}'"
    (row,) = table(embedded, "embeddings", "image_id", where).to_pylist()
    for name in ("recon_nll", "kl", "max_patch_error", "max_patch_y", "max_patch_x"):
        assert found[name] == row[name]
    mean, log_var = np.array(row["embedding"]), np.array(row["embedding_log_var"])
    kl = 0.5 * (mean**2 + np.exp(log_var) - 1 - log_var)
    assert found["latents"] == np.argsort(-kl)[:3].tolist()
    np.testing.assert_allclose(found["latent_kl"], np.sort(kl)[::-1][:3], rtol=1e-6)
    # The patch is where the error is: by hand from the reconstruction.
    (image,) = table(embedded, "images", "image_id", where).to_pylist()
    pixels = np.frombuffer(image["image"], np.uint8).reshape(28, 28) / 255.0
    network = bundle.load(embedded, *model(embedded)).network()
    with torch.no_grad():
        code = torch.tensor([row["embedding"]], dtype=torch.float32)
        recon = network.likelihood.mean(network.decode(code))[0, 0].numpy()
    error = (pixels - recon) ** 2
    y, x, side = (found[f"max_patch_{name}"] for name in ("y", "x", "side"))
    assert side == 4
    here = error[y : y + side, x : x + side].mean()
    assert here == pytest.approx(found["max_patch_error"], rel=1e-4)
    patches = [error[a : a + 4, b : b + 4].mean() for a in range(25) for b in range(25)]
    assert here == max(patches)


def test_images_that_made_the_model_enter_no_batch(trained: LakePaths) -> None:
    report = runner.run(InlineEmbed(trained, alpha=0.9))
    rows = table(trained, "embeddings", "image_id")
    splits = rows["model_split"].to_pylist()
    assert report.counts["tested"] == splits.count("test")
    fair = dict(zip(rows["image_id"].to_pylist(), splits, strict=True))
    assert {fair[i] for i in anomalies(trained)["image_id"].to_pylist()} <= {"test"}


def test_batches_are_named_by_the_versions_that_they_cover(
    embedded: LakePaths, tmp_path: Path
) -> None:
    embed(embedded)
    runner.run(InlineEmbed(embedded, night=NIGHTS[1], alpha=ALPHA))  # nothing to do
    write_source(tmp_path / "third" / "c.parquet", range(900, 930))
    runner.run(InlineStage(embedded, tmp_path / "third", night=NIGHTS[1]))
    runner.run(InlineEmbed(embedded, night=NIGHTS[1], alpha=ALPHA))
    batches = table(embedded, "batches", "last_version").to_pylist()
    assert [row["tested"] for row in batches][1:] == [300, 30]
    for before, after in itertools.pairwise(batches):
        assert after["first_version"] == before["last_version"] + 1
    assert [row["batch"] for row in batches] == [
        f"v{row['first_version']}-v{row['last_version']}" for row in batches
    ]
    flagged = table(embedded, "anomalies", "image_id").to_pylist()
    for row in batches:
        assert row["flagged"] == sum(one["batch"] == row["batch"] for one in flagged)
    assert {row["calibration_valid"] for row in batches} == {True}


def test_scores_that_were_computed_otherwise_mark_the_calibration(embedded: LakePaths) -> None:
    embed(embedded, batch_size=50)
    assert set(anomalies(embedded)["calibration_valid"].to_pylist()) == {False}


def test_a_crash_at_any_commit_changes_nothing_of_it(
    embedded: LakePaths, tmp_path, monkeypatch
) -> None:
    root = Path(embedded.uri.removeprefix("file://"))
    shutil.copytree(root, tmp_path / "undisturbed")
    whole = LakePaths((tmp_path / "undisturbed").as_uri())
    embed(whole)
    expected = anomalies(whole).drop_columns(["job_id"])
    assert expected.num_rows
    real = Snapshot.commit
    for name in ("reconstructions", "anomalies", "batches", "embeddings"):
        shutil.copytree(root, tmp_path / name)
        lake = LakePaths((tmp_path / name).as_uri())

        def commit(self, *arguments, at=name, **how):
            if self.uri.endswith(at):
                raise KeyboardInterrupt
            return real(self, *arguments, **how)

        monkeypatch.setattr(Snapshot, "commit", commit)
        with pytest.raises(KeyboardInterrupt):
            embed(lake)
        monkeypatch.setattr(Snapshot, "commit", real)
        runner.run(InlineEmbed(lake, night=NIGHTS[1], alpha=ALPHA))
        assert anomalies(lake).drop_columns(["job_id"]).equals(expected), name
        assert table(lake, "batches", "batch").num_rows == 2


def batches_of(lake: LakePaths) -> list[dict]:
    """Those after the first night's."""
    return table(lake, "batches", "last_version").to_pylist()[1:]


def test_each_of_many_commits_is_a_batch_of_its_own(embedded: LakePaths, monkeypatch) -> None:
    monkeypatch.setattr("jobs.embed.job.UNIT_ROWS", 40)
    report = embed(embedded, commit_every=3)
    assert len(report.job_ids) == 3
    batches = batches_of(embedded)
    assert [row["tested"] for row in batches] == [100, 100, 100]
    assert report.counts["tested"] == report.counts["embedded"] == 300
    names = [row["batch"] for row in batches]
    last = batches[0]["last_version"]
    assert sorted(names) == [f"v{last}-v{last}", f"v{last}-v{last}.2", f"v{last}-v{last}.3"]
    rows = anomalies(embedded).to_pylist()
    assert rows
    for row in batches:
        here = [one for one in rows if one["batch"] == row["batch"]]
        assert len(here) == row["flagged"]
        assert sorted(one["rank"] for one in here) == list(range(1, len(here) + 1))


def publish_one_part(lake: LakePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three units of the night are published, then the job dies."""
    monkeypatch.setattr("jobs.embed.job.UNIT_ROWS", 40)
    real, done = engine_commit.commit, []

    def commit(*arguments) -> None:
        if done:
            raise KeyboardInterrupt
        done.append(real(*arguments))

    monkeypatch.setattr(engine_commit, "commit", commit)
    with pytest.raises(KeyboardInterrupt):
        embed(lake, commit_every=3)
    monkeypatch.setattr(engine_commit, "commit", real)


def test_a_crash_between_two_commits_leaves_the_rest_to_the_next_batch(
    embedded: LakePaths, monkeypatch
) -> None:
    publish_one_part(embedded, monkeypatch)
    embed(embedded)
    assert [row["tested"] for row in batches_of(embedded)] == [100, 100, 100]
    ids = anomalies(embedded)["image_id"].to_pylist()
    assert len(ids) == len(set(ids)) > 0


def test_a_part_whose_rest_has_left_keeps_its_batch(
    embedded: LakePaths, tmp_path: Path, monkeypatch
) -> None:
    """A part is published, then the job dies, then images of both parts leave."""
    publish_one_part(embedded, monkeypatch)
    held = set(table(embedded, "embeddings", "image_id")["image_id"].to_pylist())
    rows = table(embedded, "images", "source_row", f"night = '{NIGHTS[0]}'").to_pylist()
    stay = [600 + row["source_row"] for row in rows if row["image_id"] in held][:50]
    (tmp_path / "more" / "b.parquet").unlink()
    write_source(tmp_path / "more" / "c.parquet", stay)
    runner.run(InlineStage(embedded, tmp_path / "more", night=NIGHTS[1], max_removed=1.0))
    embed(embedded, commit_every=3)
    left = set(table(embedded, "images", "image_id")["image_id"].to_pylist())
    # The part that was under way is ended as it was planned.
    assert [row["tested"] for row in batches_of(embedded)] == [100, 100]
    assert set(anomalies(embedded)["image_id"].to_pylist()) <= left
    assert embed(embedded).job_ids == []


def test_of_two_embeds_at_once_each_image_is_flagged_once(embedded: LakePaths) -> None:
    rival = InlineEmbed(embedded, night=NIGHTS[1], alpha=ALPHA)
    runner.run(OvertakenEmbed(embedded, rival, night=NIGHTS[0], alpha=ALPHA))
    ids = anomalies(embedded)["image_id"].to_pylist()
    assert len(ids) == len(set(ids)) > 0
    assert table(embedded, "batches", "batch")["tested"].to_pylist()[1:] == [300]


def test_an_anomaly_whose_image_leaves_leaves_too(embedded: LakePaths, tmp_path: Path) -> None:
    embed(embedded)
    before = anomalies(embedded)["image_id"].to_pylist()
    (tmp_path / "more" / "b.parquet").unlink()
    write_source(tmp_path / "more" / "c.parquet", range(600, 620))
    runner.run(InlineStage(embedded, tmp_path / "more", night=NIGHTS[1], max_removed=1.0))
    runner.run(InlineEmbed(embedded, night=NIGHTS[1], alpha=ALPHA))
    left = set(table(embedded, "images", "image_id")["image_id"].to_pylist())
    assert anomalies(embedded)["image_id"].to_pylist() == [i for i in before if i in left]


def drawn(lake: LakePaths) -> set[str]:
    return set(views.sql(lake, "SELECT image_id FROM reconstructions")["image_id"].to_pylist())


def test_reconstructions_of_anomalies_alone(embedded: LakePaths) -> None:
    embed(embedded, reconstructions="anomalies")
    rows = views.sql(embedded, f"SELECT image_id FROM embeddings WHERE p_value <= {ALPHA}")
    # Those of the first night, too, which were embedded without.
    assert drawn(embedded) == set(rows["image_id"].to_pylist())
    assert embed(embedded, reconstructions="anomalies").units == 0
    assert set(anomalies(embedded)["image_id"].to_pylist()) <= drawn(embedded)


def test_reconstructions_of_a_sample(embedded: LakePaths, monkeypatch) -> None:
    monkeypatch.setattr("jobs.embed.sampling.SAMPLE", 7)
    embed(embedded, reconstructions="sample")
    ids = views.sql(embedded, "SELECT image_id FROM embeddings")["image_id"]
    expected = ids.filter(pa.array(in_sample(digests(ids)))).to_pylist()
    assert 80 < len(expected) < 180
    assert drawn(embedded) == set(expected)
    assert embed(embedded, reconstructions="sample").units == 0
    embed(embedded, reconstructions="all")
    assert len(drawn(embedded)) == 900
