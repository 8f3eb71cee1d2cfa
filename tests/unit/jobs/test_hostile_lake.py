"""Lakes that a stranger has written to: what their records name never leads out of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.engine import runner
from jobs.errors import InputError, LatentlakeError
from jobs.lake.paths import LakePaths
from jobs.lake.storage import join, local_path
from jobs.lake.uri import is_inner
from jobs.maintain.vacuum import vacuum
from jobs.query import views
from jobs.query.readonly_sql import GuardedViews
from jobs.tables.delta import open_snapshot
from tests.damaged import commit_record, tree, worked
from tests.helpers import labels_of, staged_labels, write_source
from tests.inline import InlineStage


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
    runner.run(InlineStage(LakePaths(copy.as_uri()), source.parent))
    assert staged_labels(LakePaths(copy.as_uri())) == labels_of(range(300))
    assert tree(half_done) == before


def test_the_record_of_an_older_release_is_completed_in_its_own_lake(
    lake: LakePaths, half_done: Path, source: Path
) -> None:
    renamed(commit_record(half_done), lambda table: join(lake.uri, table))
    runner.run(InlineStage(lake, source.parent))
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
    lake: LakePaths, half_done: Path, source: Path, tmp_path: Path, name
) -> None:
    other = LakePaths((tmp_path / "other").as_uri())
    write_source(tmp_path / "theirs" / "a.parquet", range(300, 350))
    runner.run(InlineStage(other, tmp_path / "theirs"))
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
        runner.run(InlineStage(lake, source.parent))
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
    lake: LakePaths, source: Path, path: str
) -> None:
    root = worked(lake, source.parent)
    one = sorted(root.glob("units/*/completions/*.json"))[0]
    body = json.loads(one.read_text())
    body["outputs"][0]["path"] = path
    one.write_text(json.dumps(body))
    with pytest.raises(InputError, match="no path in a table") as refused:
        runner.run(InlineStage(lake, source.parent))
    assert one.name in str(refused.value)


@pytest.mark.parametrize("path", OUTSIDE)
def test_a_table_s_log_never_leads_outside_its_table(
    lake: LakePaths, source: Path, path: str
) -> None:
    runner.run(InlineStage(lake, source.parent))
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
