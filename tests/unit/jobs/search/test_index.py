"""An index finds what the exact search finds, of these very embeddings, or is not asked."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from flows.cli.main import cli
from jobs.embed.drop import DropJob
from jobs.embed.settings import DropSettings
from jobs.engine import runner
from jobs.errors import InputError
from jobs.lake.paths import LakePaths as Places
from jobs.query import api as query_api
from jobs.query.api import Lake
from jobs.search import index
from tests.helpers import write_source
from tests.inline import InlineCompact, InlineEmbed, InlineStage


@pytest.fixture
def lake(trained: Places) -> Lake:
    runner.run(InlineEmbed(trained))
    return Lake(trained.uri)


def files(lake: Lake) -> list[Path]:
    return sorted(Path(lake.uri.removeprefix("file://"), "indexes").rglob("*.*"))


def recall(lake: Lake, metric: str) -> float:
    model = lake.embeddings("m")
    queries = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    found, exact = (
        model.neighbours(queries, metric=metric, approximate=approximate).to_pylist()
        for approximate in (True, False)
    )
    pairs = {(row["query"], row["image_id"]) for row in exact}
    assert len(pairs) == len(found) == 500
    return sum((row["query"], row["image_id"]) in pairs for row in found) / 500


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_it_finds_the_same_at_the_same_distances(lake: Lake, metric: str) -> None:
    built = index.build(lake, "m", metric)
    assert (built["rows"], built["made"]) == (600, True)
    assert not index.build(lake, "m", metric)["made"]
    assert recall(lake, metric) > 0.95
    model = lake.embeddings("m")
    one = lake.sql("SELECT min(image_id) AS i FROM embeddings")["i"][0].as_py()
    found, exact = (
        model.neighbours(one[:20], metric=metric, approximate=a).to_pylist() for a in (True, False)
    )
    assert one not in [row["image_id"] for row in found]
    assert found == exact


def test_it_is_asked_only_of_its_own_embeddings(lake: Lake, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="run latentlake index --model m@"):
        lake.embeddings("m").neighbours(np.zeros(4), approximate=True)
    index.build(lake, "m", "cosine")
    write_source(tmp_path / "more" / "b.parquet", range(2000, 2050))
    runner.run(InlineStage(lake, tmp_path / "more", night="2026-01-02"))
    runner.run(InlineEmbed(lake, night="2026-01-02"))
    model = lake.embeddings("m")
    with pytest.raises(InputError, match="as they are now"):
        model.neighbours(np.zeros(4), approximate=True)
    new = lake.sql("SELECT * FROM embeddings WHERE night = '2026-01-02' LIMIT 1")
    vector = np.array(new["embedding"][0].as_py(), np.float32)
    assert model.neighbours(vector, k=1)["image_id"].to_pylist() == new["image_id"].to_pylist()
    # An index of today takes the place of yesterday's, and of one of the same rows, merged.
    old = files(lake)
    assert index.build(lake, "m", "cosine")["rows"] == 650
    runner.run(InlineCompact.of(lake, "model", "m", night="2026-01-03"))
    assert index.build(lake, "m", "cosine")["made"]
    assert len(old) == len(files(lake)) == 3
    assert not set(old) & set(files(lake))
    assert recall(lake, "cosine") > 0.95


def test_it_is_asked_by_itself_among_many(lake: Lake, monkeypatch) -> None:
    asked: list[int] = []
    search = index.Index.nearest
    monkeypatch.setattr(index.Index, "nearest", lambda *given: (asked.append(1), search(*given))[1])
    index.build(lake, "m", "cosine")
    model = lake.embeddings("m")
    model.neighbours(np.ones(4))
    assert not asked
    monkeypatch.setattr(query_api, "MANY", 600)
    model.neighbours(np.ones(4))
    assert len(asked) == 1
    model.neighbours(np.ones(4), approximate=False)
    model.neighbours(np.ones(4), dataset="d")
    assert len(asked) == 1
    with pytest.raises(InputError, match="knows nothing of datasets"):
        model.neighbours(np.ones(4), dataset="d", approximate=True)


@pytest.mark.parametrize("name", ["usearch", "parquet"])
def test_a_damaged_one_is_not_believed(lake: Lake, name: str, monkeypatch) -> None:
    index.build(lake, "m", "cosine")
    monkeypatch.setattr(query_api, "MANY", 1)
    expected = lake.embeddings("m").neighbours(np.ones(4), approximate=False)
    (file,) = [path for path in files(lake) if path.suffix == f".{name}"]
    file.write_bytes(file.read_bytes()[:-100])
    assert lake.embeddings("m").neighbours(np.ones(4)).equals(expected)
    file.unlink()
    assert lake.embeddings("m").neighbours(np.ones(4)).equals(expected)
    assert index.build(lake, "m", "cosine")["made"]
    assert recall(lake, "cosine") > 0.95


def test_one_of_earlier_embeddings_takes_no_later_one_away(lake: Lake, monkeypatch) -> None:
    """Its builder was slow: embed and another builder came by meanwhile."""
    make = index._make

    def slow(snapshot, *others):
        monkeypatch.setattr(index, "_make", make)
        runner.run(InlineEmbed(lake, night="2026-01-02", redo=True))
        assert index.build(lake, "m", "cosine")["made"]
        return make(snapshot, *others)

    monkeypatch.setattr(index, "_make", slow)
    index.build(lake, "m", "cosine")
    assert recall(lake, "cosine") > 0.95
    version = lake.embeddings("m").version
    runner.run(DropJob(lake, DropSettings(model=f"m@{version}"), "2026-01-03"))
    assert not files(lake)


def test_without_usearch_it_is_said_how_to_get_it(lake: Lake, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "usearch.index", None)
    with pytest.raises(InputError, match=r"pip install 'latentlake\[index\]'"):
        index.build(lake, "m", "cosine")


def test_on_the_command_line(lake: Lake) -> None:
    where = ["--model", "m", "--lake", lake.uri]
    told = CliRunner().invoke(cli, ["index", *where, "--json"])
    assert json.loads(told.output)["rows"] == 600
    again = CliRunner().invoke(cli, ["index", *where])
    assert "600 embeddings by cosine, is there already" in again.output
    one = lake.sql("SELECT min(image_id) AS i FROM embeddings")["i"][0].as_py()
    asked = ["query", "neighbours", "--image-id", one, "-k", "3", "--approximate", "--json", *where]
    assert len(json.loads(CliRunner().invoke(cli, asked).output)) == 3
