"""The map: scikit-learn's plane, UMAP's neighbourhoods, and a table that keeps up."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.manifold import trustworthiness

from flows.cli.main import cli
from jobs.embed.drop import DropJob
from jobs.embed.map import MapJob
from jobs.embed.settings import DropSettings, MapSettings
from jobs.engine import job, runner
from jobs.errors import InputError
from jobs.lake.paths import LakePaths as Places
from jobs.query.api import Lake
from jobs.schemas.vectors import vectors_of
from tests.helpers import write_source
from tests.inline import InlineEmbed, InlineStage, Overtaken

NIGHT = "2026-01-01"


@pytest.fixture
def lake(trained: Places) -> Lake:
    runner.run(InlineEmbed(trained, alpha=0.9))
    return Lake(trained.uri)


def mapped(lake: Lake, method: str = "pca", night: str = NIGHT):
    return runner.run(MapJob(lake, MapSettings(model="m", method=method), night))


def points(lake: Lake, method: str = "pca") -> np.ndarray:
    rows = lake.sql("SELECT x, y FROM maps WHERE method = ? ORDER BY image_id", [method])
    return np.stack([rows["x"].to_numpy(), rows["y"].to_numpy()], axis=1)


def vectors(lake: Lake) -> np.ndarray:
    rows = lake.sql("SELECT embedding FROM embeddings ORDER BY image_id")
    return vectors_of(rows["embedding"]).astype(np.float64)


def test_pca_is_that_of_scikit_learn(lake: Lake) -> None:
    report = mapped(lake)
    assert report.counts["mapped"] == 600
    expected = PCA(2).fit_transform(vectors(lake))
    found = points(lake)
    signs = np.sign((found * expected).sum(0))
    np.testing.assert_allclose(found * signs, expected, rtol=1e-4, atol=1e-4)


def test_a_map_keeps_up_with_its_embeddings(lake: Lake, tmp_path: Path, caplog) -> None:
    with pytest.raises(InputError, match="latentlake map --model m@"):
        lake.embeddings("m").map()
    mapped(lake)
    assert mapped(lake).units == 0
    write_source(tmp_path / "more" / "b.parquet", range(2000, 2050))
    runner.run(InlineStage(lake, tmp_path / "more", night="2026-01-02"))
    runner.run(InlineEmbed(lake, night="2026-01-02"))
    assert len(lake.embeddings("m").map()) == 600
    assert "the map of m@" in caplog.text
    assert mapped(lake, night="2026-01-03").counts["mapped"] == 650
    rows = lake.sql("SELECT count(*) AS n, count(DISTINCT image_id) AS ids FROM maps")
    assert rows.to_pylist() == [{"n": 650, "ids": 650}]
    assert len(lake.embeddings("m").map(night="2026-01-02")) == 50
    version = lake.embeddings("m").version
    runner.run(DropJob(lake, DropSettings(model=f"m@{version}"), "2026-01-04"))
    assert len(lake.sql("SELECT * FROM maps")) == 0
    with pytest.raises(InputError, match="has embedded no images yet"):
        mapped(lake)


class OvertakenMap(Overtaken, MapJob):
    def __init__(self, lake: Lake, rival: job.Job) -> None:
        super().__init__(lake, MapSettings(model="m"), NIGHT)
        self.rival = rival


def test_a_map_of_what_is_dropped_meanwhile_is_not_published(lake: Lake) -> None:
    """At the last moment, between its work and its commit."""
    drop = DropJob(lake, DropSettings(model=f"m@{lake.embeddings('m').version}"), NIGHT)
    with pytest.raises(InputError, match="has embedded no images yet"):
        runner.run(OvertakenMap(lake, drop))
    assert len(lake.sql("SELECT * FROM maps")) == 0


def test_a_map_has_no_points_of_a_dataset_that_was_dropped(lake: Lake, tmp_path: Path) -> None:
    write_source(tmp_path / "e" / "a.parquet", range(3000, 3050))

    class Other(InlineStage):
        def __init__(self) -> None:
            super().__init__(lake, tmp_path / "e")
            self.target = "e"
            self.settings = self.settings.model_copy(update={"dataset": "e"})

    runner.run(Other())
    runner.run(InlineEmbed(lake, dataset="e"))
    drop = DropJob(
        lake, DropSettings(model=f"m@{lake.embeddings('m').version}", dataset="e"), NIGHT
    )
    report = runner.run(OvertakenMap(lake, drop))
    assert report.counts["mapped"] == 600
    counts = lake.sql("SELECT dataset, count(*) AS n FROM maps GROUP BY ALL")
    assert counts.to_pylist() == [{"dataset": "d", "n": 600}]


def test_a_map_that_was_killed_is_given_up_once_it_is_old(lake: Lake, tmp_path: Path) -> None:
    class Killed(MapJob):
        def settle(self, plan, completions, head):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runner.run(Killed(lake, MapSettings(model="m"), NIGHT))
    write_source(tmp_path / "more" / "b.parquet", range(2000, 2050))
    runner.run(InlineStage(lake, tmp_path / "more", night="2026-01-02"))
    runner.run(InlineEmbed(lake, night="2026-01-02"))
    assert mapped(lake).counts["mapped"] == 650
    assert not list(Path(lake.uri.removeprefix("file://"), "units").glob("map-*/*"))


def test_one_dimension_makes_a_line(monkeypatch) -> None:
    column = pa.chunked_array([pa.array([[float(n)] for n in range(9)], pa.list_(pa.float32()))])
    one = pa.table({"image_id": ["0"] * 9, "embedding": column})
    from jobs.embed import map

    monkeypatch.setattr(map, "_each", lambda *_: [(one, vectors_of(column))])
    found = map.fit_pca(None, [])(vectors_of(column))  # type: ignore[arg-type]
    np.testing.assert_allclose(found, [[n - 4.0, 0.0] for n in range(9)], atol=1e-12)


@pytest.mark.slow
def test_umap_keeps_neighbours_together_and_is_the_same_again(lake: Lake, monkeypatch) -> None:
    # Half of the images are laid out, the others placed among them.
    monkeypatch.setattr("jobs.embed.map.FITTED", 300)
    mapped(lake, "umap")
    first = points(lake, "umap")
    assert len(first) == 600
    shuffled = np.random.default_rng(0).permutation(first)
    held = trustworthiness(vectors(lake), first, n_neighbors=10)
    assert held > trustworthiness(vectors(lake), shuffled, n_neighbors=10) + 0.2
    runner.run(InlineEmbed(lake, night="2026-01-05", redo=True))
    assert mapped(lake, "umap").counts["mapped"] == 600
    assert np.array_equal(points(lake, "umap"), first)


def test_umap_that_is_not_installed_is_asked_for(lake: Lake, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(InputError, match=r"pip install 'latentlake\[umap\]'"):
        MapJob(lake, MapSettings(model="m", method="umap"), NIGHT)


def test_embedding_atlas_can_open_the_file(lake: Lake, tmp_path: Path) -> None:
    """It reads Parquet by pandas, takes x and y as they are, and shows pictures of `bytes`."""
    where, path = ["--lake", lake.uri], str(tmp_path / "map.parquet")
    assert CliRunner().invoke(cli, ["map", "--model", "m", *where]).exit_code == 0
    asked = ["query", "map", "--model", "m", "--images", "--parquet", path, *where]
    shown = CliRunner().invoke(cli, asked)
    assert shown.exit_code == 0, shown.output
    assert "200 of 600 rows" in shown.output
    frame = pd.read_parquet(path)
    assert frame[["x", "y"]].dtypes.unique().tolist() == [np.float32]
    assert np.isfinite(frame[["x", "y"]]).all(axis=None)
    assert {"image_id", "label", "neg_elbo", "p_value", "source_uri"} <= set(frame.columns)
    # A PNG in each: Parquet of a plain struct, which DuckDB in a browser reads, too.
    assert pq.read_schema(path).field("image").type == pa.struct({"bytes": pa.binary()})
    picture = Image.open(io.BytesIO(frame["image"][0]["bytes"]))
    assert picture.size == (28, 28)
