"""stage, train and embed on a real Ray: the same tables for any number of workers."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from jobs.bundles import bundle
from jobs.cluster import connect as cluster_connect
from jobs.cluster.settings import RaySettings
from jobs.cluster.worker import Workers
from jobs.errors import InputError, JobError
from jobs.lake.paths import LakePaths
from jobs.query import views
from jobs.tables import catalog
from jobs.tables.delta import open_snapshot
from tests.helpers import write_source
from tests.integration.conftest import embed, stage, train
from tests.limits import RUN_S, SOON_S
from tests.serving import command_of
from vae_core.scores.names import SCORES

pytestmark = pytest.mark.integration


def rows_of(lake: LakePaths, sql: str) -> list[dict]:
    return views.sql(lake, sql).to_pylist()


def test_reruns_plan_nothing_and_every_image_is_there_once(
    trained: LakePaths, trained_folder
) -> None:
    embed(trained)
    source = trained_folder / "source"
    assert [stage(trained, source).units, train(trained).units, embed(trained).units] == [0, 0, 0]
    counts = rows_of(
        trained,
        """SELECT (SELECT count(*) FROM images) AS images,
                  (SELECT count(DISTINCT image_id) FROM images) AS distinct_images,
                  (SELECT count(*) FROM embeddings) AS embeddings,
                  (SELECT count(DISTINCT image_id) FROM embeddings) AS distinct_embeddings""",
    )
    assert set(counts[0].values()) == {1000}


def test_embeddings_and_scores_are_bit_equal_for_any_worker_count(
    trained_folder: Path, tmp_path: Path
) -> None:
    import shutil

    found = []
    for workers, batch_size in ((1, None), (2, None), (2, 100)):
        folder = tmp_path / f"{workers}-{batch_size}"
        shutil.copytree(trained_folder / "lake", folder)
        lake = LakePaths(folder.as_uri())
        embed(lake, workers=workers, batch_size=batch_size)
        found.append(views.sql(lake, "SELECT * FROM embeddings ORDER BY image_id"))
    one, two, other_batch = found
    for name in ("image_id", "embedding", "embedding_log_var", *SCORES, "p_value"):
        assert one[name].equals(two[name]), name
    for name in ("embedding", "embedding_log_var"):
        left, right = (np.array(t[name].to_pylist()) for t in (one, other_batch))
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-6)
    for name in SCORES:
        if one[name].null_count == 0:
            np.testing.assert_allclose(one[name], other_batch[name], rtol=1e-5, err_msg=name)


def test_two_ranks_train_the_model_that_one_rank_trains(trained: LakePaths) -> None:
    """Same order, same noise, same global batch: equal up to the order of sums."""
    _, version = catalog.resolve_model(trained, "m")
    two = bundle.load(trained, "m", version)
    train(trained, workers=1, model="alone")
    one = bundle.load(trained, *catalog.resolve_model(trained, "alone"))
    assert two.about["workers"] == 2
    assert one.about["workers"] == 1
    for name, value in one.weights.items():
        np.testing.assert_allclose(value, two.weights[name], rtol=1e-3, atol=1e-4, err_msg=name)
    for key in ("train_nats", "validation_nats"):
        assert one.about["metrics"][key] == pytest.approx(two.about["metrics"][key], rel=1e-4)
    np.testing.assert_allclose(one.calibration_scores, two.calibration_scores, rtol=1e-3)


def test_two_ranks_find_the_closed_form_of_one(trained: LakePaths) -> None:
    """Each has sums of its own share only; together they are those of the whole train split."""
    found = []
    for workers in (1, 2):
        model = f"ppca{workers}"
        settings = {"network": {"kind": "linear"}, "fit": "closed_form"}
        train(trained, workers=workers, model=model, **settings)
        found.append(bundle.load(trained, *catalog.resolve_model(trained, model)))
    one, two = found
    assert two.about["workers"] == 2
    for key in ("train_nats", "validation_nats"):
        assert one.about["metrics"][key] == pytest.approx(two.about["metrics"][key], rel=1e-6)
    np.testing.assert_allclose(one.calibration_scores, two.calibration_scores, rtol=1e-5)


def test_a_reader_keeps_its_snapshot_while_jobs_publish(trained: LakePaths, tmp_path: Path) -> None:
    embed(trained)
    held = open_snapshot(trained.model("m", "embeddings"))
    assert held is not None
    ids = held.read(["image_id", "neg_elbo"])
    write_source(tmp_path / "more" / "b.parquet", range(1000, 1100))
    stage(trained, tmp_path / "more", night="2026-01-02")
    embed(trained, night="2026-01-02")
    assert held.read(["image_id", "neg_elbo"]).equals(ids)
    again = open_snapshot(trained.model("m", "embeddings"), held.version)
    assert again is not None
    assert again.read(["image_id", "neg_elbo"]).equals(ids)
    newest = open_snapshot(trained.model("m", "embeddings"))
    assert newest is not None
    assert newest.partition_rows({}) == 1100


def test_nothing_of_an_embedded_ray_listens_to_the_network(trained: LakePaths) -> None:
    embed(trained)  # Ray and its workers are running
    found = {port: address for address, port in listening(descendants(os.getpid()))}
    assert len(found) > 5
    loopback = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
    assert set(found.values()) <= loopback, found


def test_an_embedded_ray_has_no_process_that_nothing_asks(trained: LakePaths) -> None:
    embed(trained)
    commands = [command_of(pid) for pid in descendants(os.getpid())]
    assert any("gcs_server" in command for command in commands)
    idle = [c for c in commands if re.search(r"/(log_)?monitor\.py", c)]
    assert idle == []


def descendants(pid: int) -> set[int]:
    """A process and all below it; Ray's daemons are in its session if not below it."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int(
                    (entry / "stat").read_text().rsplit(")", 1)[1].split()[1]
                )
            except OSError:
                continue
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def listening(pids: set[int]) -> set[tuple[str, str]]:
    """(address, port) in hexadecimal of every TCP socket that these processes listen on."""
    inodes = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for link in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    target = str(link.readlink())
                    if target.startswith("socket:["):
                        inodes.add(target[8:-1])
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                address, port = fields[1].split(":")
                found.add((address, port))
    return found


def test_one_percent_of_broken_images_is_quarantined(tmp_path: Path) -> None:
    lake = LakePaths((tmp_path / "lake").as_uri())
    write_source(tmp_path / "s" / "a.parquet", range(400), broken=[3, 150, 250, 399])
    report = stage(lake, tmp_path / "s")
    assert (report.counts["staged"], report.counts["refused"]) == (396, 4)
    assert rows_of(lake, "SELECT count(*) AS n FROM quarantine") == [{"n": 4}]


def test_half_of_the_images_broken_publishes_nothing(tmp_path: Path) -> None:
    lake = LakePaths((tmp_path / "lake").as_uri())
    write_source(tmp_path / "s" / "a.parquet", range(200), broken=range(100))
    with pytest.raises(JobError, match="100 of 200 rows refused"):
        stage(lake, tmp_path / "s")
    assert rows_of(lake, "SELECT count(*) AS n FROM images") == [{"n": 0}]
    assert rows_of(lake, "SELECT count(*) AS n FROM runs") == [{"n": 0}]


def test_more_workers_than_the_cluster_has_is_refused_at_once(
    trained: LakePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.cluster.connect.GRACE_S", 10 * RUN_S)  # nothing is waited for
    with pytest.raises(InputError, match=r"64 workers requested.*2 CPUs, \d of them free"):
        embed(trained, workers=64)
    with pytest.raises(InputError, match=r"64 workers requested"):
        train(trained, workers=64, streams=64, seed=9)
    with pytest.raises(InputError, match="on a GPU each, but the cluster has 0"):
        embed(trained, device="cuda", workers=2)


def test_an_actor_that_is_killed_costs_its_unit_another_try(
    trained: LakePaths, monkeypatch
) -> None:
    """The worker process kills itself in its first attempt at a unit; the table is whole."""
    from jobs.cluster import executor

    flag = Path(trained.uri.removeprefix("file://")) / "killed-once"
    executor.run_units(
        DiesOnce,
        trained,
        _embed_plan(trained),
        _embed_plan(trained).units,
        workers=Workers(2),
        ray_settings=RaySettings(cpus=2),
        report_count="embedded",
    )
    assert flag.exists()
    report = embed(trained)
    assert report.counts["embedded"] == 1000
    ids = views.sql(trained, "SELECT image_id FROM embeddings")["image_id"].to_pylist()
    assert len(ids) == len(set(ids)) == 1000


def _embed_plan(lake: LakePaths):
    from jobs.embed.job import EmbedJob
    from jobs.embed.settings import EmbedSettings

    settings = EmbedSettings(dataset="d", model="m")
    return EmbedJob(lake, settings, "2026-01-01", RaySettings(cpus=2)).plan()


class DiesOnce:
    """An embed worker that kills its own process the first time it is asked."""

    def __init__(self, lake, context) -> None:
        from jobs.embed.worker import EmbedWorker

        self.inner = EmbedWorker(lake, context)
        self.flag = Path(lake.uri.removeprefix("file://")) / "killed-once"

    def execute(self, unit, attempt):
        import os
        import signal

        if not self.flag.exists():
            self.flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.inner.execute(unit, attempt)


@ray.remote(num_cpus=0)
class Child:
    def parent(self) -> int:
        return os.getppid()


def test_workers_are_forked_and_start_by_themselves_where_the_server_has_ended(
    trained: LakePaths, trained_folder: Path, tmp_path: Path
) -> None:
    """The last one: those after it would start without."""
    embed(trained)
    server = cluster_connect._fork_server
    assert server is not None
    made: Any = Child.remote()  # type: ignore[attr-defined]
    assert ray.get(made.parent.remote(), timeout=SOON_S) == server.process.pid
    ray.kill(made)
    server.end()
    made = Child.remote()  # type: ignore[attr-defined]
    assert ray.get(made.parent.remote(), timeout=SOON_S) != server.process.pid
    ray.kill(made)
    other = LakePaths((tmp_path / "other").as_uri())
    assert stage(other, trained_folder / "source").counts["staged"] == 1000
