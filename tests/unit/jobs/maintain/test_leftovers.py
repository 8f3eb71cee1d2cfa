"""What killed processes leave is swept once it is a day old, and nothing that is in use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jobs.engine import runner
from jobs.lake.paths import LakePaths
from jobs.lake.storage import create, local_path
from jobs.maintain.vacuum import vacuum
from jobs.search import index
from jobs.search.index import Index
from jobs.tables import catalog
from jobs.tables.delta import open_snapshot
from tests.damaged import age, tree
from tests.inline import InlineEmbed, InlineEvaluate


@pytest.fixture
def root(trained: LakePaths) -> Path:
    runner.run(InlineEmbed(trained))
    runner.run(InlineEvaluate(trained))
    index.build(trained, "m", "cosine")
    found = local_path(trained.uri)
    assert found is not None
    return found


DRAFT = ".{}.0123abcd.tmp"
LEFT = (
    "catalog/runs/{job}-0123abcd.parquet",
    "catalog/aliases/" + DRAFT.format("x.parquet"),
    "catalog/evaluations/orphan.parquet",
    "datasets/d/images/" + DRAFT.format("x.parquet"),
    "datasets/d/images/_delta_log/00000000000000000009.json#1",
    "datasets/d/cards/" + DRAFT.format("00000001.json"),
    "models/m/embeddings/_delta_log/00000000000000000001.json#2",
    "models/m/bundles/{version}/" + DRAFT.format("evaluation-d.json"),
    "models/m/bundles/{version}/" + DRAFT.format("model-0123.safetensors"),
    "indexes/m/{version}/" + DRAFT.format("cosine-v1-0123abcd.usearch"),
    "indexes/m/{version}/cosine-v1-0123abcd.usearch",
    "indexes/m/{version}/euclidean-v1-0123abcd.parquet",
    "runs/m-{version}/checkpoints/" + DRAFT.format("step-1.json"),
    "units/" + DRAFT.format("plan.json"),
)


def test_leftovers_go_when_they_are_old_and_nothing_else_does(
    trained: LakePaths, root: Path
) -> None:
    (version,) = (path.name for path in (root / "models/m/bundles").iterdir())
    before = tree(root)
    (job_id, *_) = (run["job_id"] for run in catalog.runs(trained))
    left = {name.format(version=version, job=job_id) for name in LEFT}
    for name in left:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x" * 10)
    assert vacuum(trained, ["d"], ["m"], keep_days=7.0).files == 0  # somebody may be writing them
    age(root, 2)
    foretold = vacuum(trained, ["d"], ["m"], keep_days=7.0, dry_run=True)
    assert set(tree(root)) == set(before) | left
    done = vacuum(trained, ["d"], ["m"], keep_days=7.0)
    assert set(done.paths) == set(foretold.paths)
    assert (done.files, done.bytes) == (len(left), 10 * len(left))
    assert tree(root) == before
    snapshot = open_snapshot(trained.model("m", "embeddings"))
    assert snapshot is not None
    assert Index.find(trained, "m", version, "cosine", snapshot) is not None


def test_the_row_of_a_job_that_has_none_is_kept(trained: LakePaths, root: Path) -> None:
    """Where the log of `catalog/runs` lost its newest entry nothing says so, and this is all."""
    log = root / "catalog/runs/_delta_log"
    before = catalog.runs(trained)
    entry = sorted(log.glob("*.json"))[-1]
    whole = entry.read_bytes()
    entry.unlink()
    age(root, 2)
    vacuum(trained, ["d"], ["m"], keep_days=0.0)
    entry.write_bytes(whole)
    assert catalog.runs(trained) == before


def test_what_links_lead_to_is_not_touched(trained: LakePaths, root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    for name in ("precious.parquet", DRAFT.format("n.json")):
        (outside / name).write_bytes(b"x")
    (root / "datasets/d/images/linked").symlink_to(outside)
    (root / "datasets/d/images/circle").symlink_to(".")
    (root / "datasets/d/images/file.parquet").symlink_to(outside / "precious.parquet")
    age(root, 2)
    age(outside, 2)
    assert vacuum(trained, ["d"], ["m"], keep_days=0.0).files == 0
    assert len(list(outside.iterdir())) == 2


def test_of_a_part_of_the_lake_only_its_own_go(trained: LakePaths, root: Path) -> None:
    for name in ("datasets/d", "datasets/other", "models/m"):
        (root / name).mkdir(exist_ok=True)
        (root / name / DRAFT.format("x")).write_bytes(b"x")
    age(root, 2)
    (gone,) = vacuum(trained, ["d"], [], keep_days=7.0).paths
    assert gone == str(root / "datasets/d" / DRAFT.format("x"))


def test_an_entry_is_never_taken_for_what_was_put_before_it(trained: LakePaths, root: Path) -> None:
    """A # ends the path of a URI: what lies before it is the entry itself."""
    log = root / "datasets/d/images/_delta_log"
    entry = log / f"{1:020}.json"
    whole = entry.read_bytes()
    (log / f"{entry.name}#1").write_bytes(b"x")
    age(root, 2)
    vacuum(trained, ["d"], ["m"], keep_days=0.0)
    assert entry.read_bytes() == whole
    assert not (log / f"{entry.name}#1").exists()


def test_an_index_whose_record_is_damaged_is_not_used_and_built_again(
    trained: LakePaths, root: Path
) -> None:
    (record,) = root.glob("indexes/m/*/*.json")
    snapshot = open_snapshot(trained.model("m", "embeddings"))
    assert snapshot is not None
    for damage in (b"", b"{}", record.read_bytes()[:20], b'{"layout": 1}'):
        record.write_bytes(damage)
        assert Index.find(trained, "m", record.parent.name, "cosine", snapshot) is None
        assert index.build(trained, "m", "cosine")["made"]
        assert Index.find(trained, "m", record.parent.name, "cosine", snapshot) is not None


def test_a_file_that_goes_while_a_folder_is_read_costs_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jobs.lake.storage import list_folder
    from jobs.lake.walk import walk

    for name in ("a", "b", "c"):
        create((tmp_path / "f" / name).as_uri(), b"x")
    real = os.scandir

    class Going:
        """One of the files has gone when it is looked at."""

        def __init__(self, folder: Path) -> None:
            self.entries = sorted(real(folder), key=lambda entry: entry.name)

        def __enter__(self):
            (tmp_path / "f" / "b").unlink(missing_ok=True)
            return iter(self.entries)

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(os, "scandir", Going)
    names = [Path(entry["name"]).name for entry in list_folder((tmp_path / "f").as_uri())]
    assert names == ["a", "c"]
    (tmp_path / "f" / "b").write_bytes(b"x")
    assert len(list(walk(tmp_path.as_uri()))) == 2
