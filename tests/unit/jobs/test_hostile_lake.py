"""Lakes that a stranger has written to: what their records name never leads out of them."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from flows.inventory import inventory, inventory_text
from jobs import bundle as bundles
from jobs import checkpoints, job, records, views
from jobs.errors import InputError, LatentlakeError
from jobs.guarded_views import GuardedViews
from jobs.lake import Lake
from jobs.storage import join, local_path
from jobs.tables import Snapshot, open_snapshot
from jobs.uris import is_inner
from jobs.vacuum import vacuum
from tests.helpers import labels_of, staged_labels, write_source
from tests.inline import InlineStage


class Killed(KeyboardInterrupt):
    pass


@pytest.fixture
def half_done(lake: Lake, source: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of a lake whose first commit has reached one table of three."""
    root = local_path(lake.uri)
    assert root is not None
    real, left = Snapshot.commit, [1]

    def commit(self, *arguments, **more):
        if not left[0]:
            raise Killed
        left[0] -= 1
        return real(self, *arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Snapshot, "commit", commit)
        with pytest.raises(Killed):
            job.run(InlineStage(lake, source.parent))
    return root


def commit_record(root: Path) -> Path:
    (found,) = root.glob("units/*/commit-*.json")
    return found


def tree(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


def renamed(record: Path, name) -> None:
    """Every table of a commit record under another name."""
    body = json.loads(record.read_text())
    for field in ("files", "removed", "schemas"):
        body[field] = {name(table): value for table, value in body[field].items()}
    record.write_text(json.dumps(body))


def test_a_commit_record_names_tables_by_their_place_in_the_lake(half_done: Path) -> None:
    body = json.loads(commit_record(half_done).read_text())
    tables = [f"datasets/d/{name}" for name in ("quarantine", "sources", "images")]
    assert list(body["files"]) == tables
    assert str(half_done) not in json.dumps(body["files"])


def test_a_lake_copied_in_the_middle_of_a_commit_completes_into_the_copy(
    half_done: Path, source: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(half_done, copy)
    before = tree(half_done)
    job.run(InlineStage(Lake(copy.as_uri()), source.parent))
    assert staged_labels(Lake(copy.as_uri())) == labels_of(range(300))
    assert tree(half_done) == before


def test_the_record_of_an_older_release_is_completed_in_its_own_lake(
    lake: Lake, half_done: Path, source: Path
) -> None:
    renamed(commit_record(half_done), lambda table: join(lake.uri, table))
    job.run(InlineStage(lake, source.parent))
    assert staged_labels(lake) == labels_of(range(300))


@pytest.mark.parametrize(
    "name",
    [
        lambda table, other: f"{other}/{table}",  # a URI of another lake
        lambda table, other: f"../other/{table}",
        lambda table, other: f"%2e%2e/other/{table}",
        lambda table, other: other.removeprefix("file://") + f"/{table}",
        lambda table, other: f"s3://bucket/{table}",
        lambda table, other: f"datasets/d/../../../other/{table}",
        lambda table, other: f"units/{table.rsplit('/', 1)[-1]}",
    ],
)
def test_a_commit_record_that_names_another_lake_is_refused_and_told(
    lake: Lake, half_done: Path, source: Path, tmp_path: Path, name
) -> None:
    other = Lake((tmp_path / "other").as_uri())
    write_source(tmp_path / "theirs" / "a.parquet", range(300, 350))
    job.run(InlineStage(other, tmp_path / "theirs"))
    before = tree(tmp_path / "other")
    record = commit_record(half_done)
    body = json.loads(record.read_text())
    # As the attack did it: the other lake's images leave.
    images = open_snapshot(other.dataset("d", "images"))
    assert images is not None
    body["removed"] = {"datasets/d/images": images.paths()}
    record.write_text(json.dumps(body))
    renamed(record, lambda table: name(table, other.uri))
    with pytest.raises(InputError) as refused:
        job.run(InlineStage(lake, source.parent))
    assert record.name in str(refused.value)
    own = tree(half_done)
    assert vacuum(lake, ["d"], [], keep_days=0.0, grace_s=0.0).files == 0  # told, and left alone
    assert tree(half_done) == own
    assert tree(tmp_path / "other") == before


OUTSIDE = [
    "../../../outside.parquet",
    "%2e%2e/%2e%2e/%2e%2e/outside.parquet",
    "..%2f..%2f..%2foutside.parquet",
    "split=train/../../../../outside.parquet",
    "/etc/outside.parquet",
    "file:///etc/outside.parquet",
    "s3://bucket/outside.parquet",
    "..?",
    "a//b.parquet",
    "",
]


@pytest.mark.parametrize("path", OUTSIDE)
def test_a_completion_whose_file_lies_outside_is_refused(
    lake: Lake, source: Path, path: str
) -> None:
    waiting = InlineStage(lake, source.parent)
    plan = records.save_plan(lake, waiting.plan())
    waiting.execute(plan, waiting.units(plan))
    root = local_path(lake.uri)
    assert root is not None
    one = sorted(root.glob("units/*/completions/*.json"))[0]
    body = json.loads(one.read_text())
    body["outputs"][0]["path"] = path
    one.write_text(json.dumps(body))
    with pytest.raises(InputError, match="no path in a table") as refused:
        job.run(InlineStage(lake, source.parent))
    assert one.name in str(refused.value)


@pytest.mark.parametrize("path", OUTSIDE)
def test_a_table_s_log_never_leads_outside_its_table(lake: Lake, source: Path, path: str) -> None:
    job.run(InlineStage(lake, source.parent))
    root = local_path(lake.uri)
    assert root is not None
    table = root / "datasets/d/images"
    staged = next(table.rglob("*.parquet"))
    shutil.copy(staged, root.parent / "outside.parquet")
    rewritten = 0
    for entry in (table / "_delta_log").glob("*.json"):
        lines = [json.loads(line) for line in entry.read_text().splitlines()]
        for line in lines:
            if "add" in line and line["add"]["path"] == str(staged.relative_to(table)):
                line["add"]["path"] = path
                rewritten += 1
        entry.write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    assert rewritten == 1
    for asked in (
        lambda: views.sql(lake, "SELECT count(*) FROM images"),
        lambda: GuardedViews(lake).ask("SELECT count(*) FROM images", 1, 60.0),
        lambda: vacuum(lake, ["d"], [], keep_days=0.0, grace_s=0.0),
    ):
        with pytest.raises(LatentlakeError, match="no path in the table"):
            asked()


def spelt_outside() -> Iterator[str]:
    """Ways to say a place that is not in the folder."""
    for path in (
        "..",
        "../x",
        "a/../../x",
        "/x",
        "//x",
        "file:/x",
        "s3://b/x",
        "C:/x",
        "a/..",
        ".",
    ):
        for _ in range(3):
            yield path
            path = quote(path, safe="").replace(".", "%2e")


@pytest.mark.parametrize("path", list(spelt_outside()))
def test_no_spelling_of_a_place_outside_is_a_name(path: str) -> None:
    assert not is_inner(path)
    with pytest.raises(InputError, match="as a name"):
        join("file:///lake", "datasets", path)


@given(st.text(max_size=30))
def test_what_is_a_name_stays_below_its_folder(path: str) -> None:
    if not is_inner(path):
        return
    found = local_path(join("file:///lake/t", path))
    assert found is not None
    assert found.parts[:3] == ("/", "lake", "t")
    assert ".." not in found.parts
    assert len(found.parts) > 3


@pytest.mark.parametrize(
    "name", ["x", "a b.parquet", "split=train/é.parquet", "a.b/..c", "night=1"]
)
def test_names_as_we_write_them_are_names(name: str) -> None:
    assert is_inner(name)


# Bundles


def bundle_of(lake: Lake) -> Path:
    root = local_path(lake.uri)
    assert root is not None
    (found,) = root.glob("models/m/bundles/*/model.json")
    return found


def put(about: dict, path: str, value) -> None:
    *folders, last = path.split(".")
    for name in folders:
        about = about[name]
    if value is None:
        del about[last]
    else:
        about[last] = value


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


SAID = [
    ("files.weights", "../../../../outside.safetensors"),
    ("files.weights", "/etc/passwd"),
    ("files.calibration", "%2e%2e"),
    ("files.sheet", "a/b.png"),
    ("files.weights", 7),
    ("files", None),
    ("config.latent_dim", 10**12),
    ("config.latent_dim", 5),  # not that of the weights
    ("config.latent_dim", "many"),
    ("config.image_shape", [10**6, 10**6, 3]),
    ("config.image_shape", [28, 28]),
    ("config.image_shape", None),
    ("config.network.widths", [65_536] * 60),
    ("config.network.widths", [1] * 10**5),
    ("config.network.widths", [[1]]),
    ("config.network.kind", "recursive"),
    ("config.network.surprise", 1),
    ("config", []),
    ("scoring.samples", 10**9),
    ("scoring.batch_size", 0),
    ("scoring.seed", 2**80),
    ("scoring.device", "tpu"),
    ("scoring", None),
    ("decision_score", "none of ours"),
    ("data.images_version", -1),
    ("data.dataset", "../other"),
    ("data", None),
    ("metrics.validation_nats", "low"),
    ("metrics.validation_nats", None),
]


@pytest.mark.parametrize(("path", "value"), SAID)
def test_a_bundle_that_says_what_cannot_be_is_told_in_a_sentence(
    trained: Lake, path: str, value
) -> None:
    file = bundle_of(trained)
    about = json.loads(file.read_text())
    put(about, path, value)
    file.write_text(json.dumps(about))
    with pytest.raises(InputError, match="is damaged, or not ours") as refused:
        bundles.load(trained, "m", file.parent.name).scorer()
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize("text", [nested(100_000), '{"format": 1, "config": ' + nested(5000) + "}"])
def test_json_that_never_ends_is_told_in_a_sentence(trained: Lake, text: str) -> None:
    bundle_of(trained).write_text(text)
    with pytest.raises(InputError, match="is damaged, or not ours"):
        bundles.load(trained, "m", bundle_of(trained).parent.name)


def as_written(folder: Path, kind: str, data: bytes) -> None:
    """A file of a bundle in the place of another, under a name that tells its content."""
    about = json.loads((folder / "model.json").read_text())
    old = about["files"][kind]
    stem, ending = old.split("-")[0], old.split(".")[-1]
    about["files"][kind] = f"{stem}-{hashlib.sha256(data).hexdigest()[:12]}.{ending}"
    (folder / about["files"][kind]).write_bytes(data)
    (folder / "model.json").write_text(json.dumps(about))


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = folder.glob("model-*.safetensors")
    return safetensors.torch.load_file(file)


def parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("weights", lambda folder: b""),
        ("weights", lambda folder: b"\xff" * 64),
        ("weights", lambda folder: (10**15).to_bytes(8, "little") + b"{}"),
        ("weights", lambda folder: safetensors.torch.save({"model.a": torch.zeros(1)})),
        (
            "weights",
            lambda folder: safetensors.torch.save(
                {n: t.reshape(-1) for n, t in weights_of(folder).items()}
            ),
        ),
        (
            "weights",
            lambda folder: safetensors.torch.save(
                {n: torch.full_like(t, torch.nan) for n, t in weights_of(folder).items()}
            ),
        ),
        ("calibration", lambda folder: b"PAR1"),
        ("calibration", lambda folder: parquet(pa.table({"score": ["a"]}))),
        ("calibration", lambda folder: parquet(pa.table({"other": [1.0]}))),
        ("calibration", lambda folder: parquet(pa.table({"score": [2.0, 1.0]}))),
        ("calibration", lambda folder: parquet(pa.table({"score": [1.0, float("nan")]}))),
    ],
)
def test_files_of_a_bundle_that_hold_something_else(trained: Lake, kind: str, data) -> None:
    folder = bundle_of(trained).parent
    as_written(folder, kind, data(folder))
    with pytest.raises(
        InputError, match=f"{kind[:5]}.* is damaged, or not ours|model-.* is damaged"
    ):
        bundles.load(trained, "m", folder.name)


# What was cut off blocks nothing else


DAMAGES = [lambda data: b"", lambda data: data[: len(data) // 2], lambda data: b'{"job": 1}']


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("what", ["plan.json", "units.json", "completions/*.json"])
def test_a_record_that_was_cut_off_counts_as_not_there(
    lake: Lake, source: Path, what: str, damage
) -> None:
    waiting = InlineStage(lake, source.parent)
    plan = records.save_plan(lake, waiting.plan())
    waiting.execute(plan, waiting.units(plan))
    root = local_path(lake.uri)
    assert root is not None
    file = sorted(root.glob(f"units/*/{what}"))[0]
    file.write_bytes(damage(file.read_bytes()))
    again = InlineStage(lake, source.parent)
    job.run(again)
    assert len(again.executed) == (1 if "completions" in what else 0)
    assert staged_labels(lake) == labels_of(range(300))
    assert not list(root.glob("units/*"))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_record_of_one_job_stops_no_other(
    lake: Lake, source: Path, tmp_path: Path, damage
) -> None:
    waiting = InlineStage(lake, source.parent, dataset="other")
    plan = records.save_plan(lake, waiting.plan())
    waiting.execute(plan, waiting.units(plan))
    root = local_path(lake.uri)
    assert root is not None
    for file in (root / "units" / plan.job_id).rglob("*.json"):
        file.write_bytes(damage(file.read_bytes()))
    job.run(InlineStage(lake, source.parent))
    assert staged_labels(lake) == labels_of(range(300))
    assert vacuum(lake, ["d"], [], keep_days=0.0, grace_s=0.0).files == 0
    assert staged_labels(lake) == labels_of(range(300))


def test_a_damaged_commit_record_keeps_vacuum_from_its_dataset(
    lake: Lake, half_done: Path, source: Path
) -> None:
    """Its files are nobody else's yet: they may be all that is left of the night."""
    record = commit_record(half_done)
    whole = record.read_bytes()
    record.write_bytes(whole[: len(whole) // 2])
    before = {name for name in tree(half_done) if name.endswith(".parquet")}
    assert vacuum(lake, ["d"], [], keep_days=0.0, grace_s=0.0).files == 0
    assert {name for name in tree(half_done) if name.endswith(".parquet")} == before
    with pytest.raises(InputError, match=f"{record.name} is damaged"):
        job.run(InlineStage(lake, source.parent))
    record.write_bytes(whole)
    job.run(InlineStage(lake, source.parent))
    assert staged_labels(lake) == labels_of(range(300))


def test_a_bundle_that_cannot_be_read_keeps_the_images_that_it_may_need(
    trained: Lake, tmp_path: Path
) -> None:
    """It is copied back, perhaps: until then nobody knows which those are."""
    write_source(tmp_path / "s" / "a.parquet", range(100))
    job.run(InlineStage(trained, tmp_path / "s", night="2026-01-02", max_removed=1.0))
    root = local_path(trained.uri)
    assert root is not None
    file = bundle_of(trained)
    whole = file.read_bytes()
    for broken in (b"", b'{"format": 2}'):
        file.write_bytes(broken)
        before = {name for name in tree(root) if name.endswith(".parquet")}
        assert vacuum(trained, ["d"], ["m"], keep_days=0.0, grace_s=0.0).files == 0
        assert {name for name in tree(root) if name.endswith(".parquet")} == before
    about = json.loads(whole)
    file.write_text(json.dumps(put_into(about, "data.images_version", 10**12)))
    vacuum(trained, ["d"], ["m"], keep_days=0.0, grace_s=0.0)


def put_into(about: dict, path: str, value) -> dict:
    put(about, path, value)
    return about


def test_a_moved_lake_of_an_older_release_is_maintained(
    lake: Lake, source: Path, tmp_path: Path
) -> None:
    """What a plan that was given up left there names the place that the lake had."""
    job.run(InlineStage(lake, source.parent))
    root = local_path(lake.uri)
    assert root is not None
    left = root / "units" / "stage-0123456789abcdef"
    left.mkdir(parents=True)
    record = {"files": {"file:///old/lake/datasets/d/images": []}, "counts": {}, "seconds": 1.0}
    (left / "commit-x.json").write_text(json.dumps(record))
    for path in root.rglob("*"):
        os.utime(path, (0, 0))
    assert vacuum(lake, ["d"], [], keep_days=0.0).plans == 1
    assert not left.exists()


def test_folders_that_we_would_not_write_stop_nothing(lake: Lake, source: Path) -> None:
    job.run(InlineStage(lake, source.parent))
    root = local_path(lake.uri)
    assert root is not None
    for name in ("datasets/a#b", "models/.DS%20", "units/stage-%20x", "units/*"):
        (root / name).mkdir(parents=True)
    (root / "datasets/d/images/*.parquet").write_bytes(b"x")
    assert [one["dataset"] for one in inventory(lake)["datasets"]] == ["d"]
    assert job.run(InlineStage(lake, source.parent)).units == 0
    vacuum(lake, ["d"], [], keep_days=0.0, grace_s=0.0)
    assert staged_labels(lake) == labels_of(range(300))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_checkpoint_that_was_cut_off_gives_way_to_the_one_before_it(
    tmp_path: Path, damage
) -> None:
    saver = checkpoints.Saver(tmp_path.as_uri(), "a", 2, pytest.fail)
    for step in (1, 2):
        saver.save(checkpoints.Position(step=step), {"w": torch.zeros(1)}, None)
        while saver.busy:
            time.sleep(0.01)
    newest = checkpoints.newest(tmp_path.as_uri())
    assert newest == "step-0000000002.json"
    file = tmp_path / newest
    file.write_bytes(damage(file.read_bytes()))
    found = checkpoints.newest(tmp_path.as_uri())
    assert found == "step-0000000001.json"
    assert checkpoints.load(tmp_path.as_uri(), found).position.step == 1


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_broken_bundle_costs_its_model_a_line(trained: Lake, damage) -> None:
    root = local_path(trained.uri)
    assert root is not None
    shutil.copytree(root / "models" / "m", root / "models" / "n")
    file = bundle_of(trained)
    file.write_bytes(damage(file.read_bytes()))
    found = inventory(trained)
    assert [row["dataset"] for row in found["models"]] == [None, "d"]
    assert "m " in inventory_text(found)
    vacuum(trained, ["d"], ["m", "n"], keep_days=0.0, grace_s=0.0)
    assert bundles.load(trained, "n", file.parent.name).model == "n"
