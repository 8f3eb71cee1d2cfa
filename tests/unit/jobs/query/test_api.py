"""What people ask of a lake, in Python and on the command line."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image

from flows.cli.main import cli
from jobs.embed.score_files import embed_files
from jobs.engine import runner
from jobs.errors import InputError
from jobs.lake.paths import LakePaths as Places
from jobs.query import views
from jobs.query.api import Embeddings, Lake
from tests.helpers import image_bytes, write_source
from tests.inline import InlineEmbed, InlineStage
from vae_core.scores.names import SCORES


@pytest.fixture
def lake(trained: Places) -> Lake:
    runner.run(InlineEmbed(trained, alpha=0.9))
    return Lake(trained.uri)


@pytest.fixture
def model(lake: Lake) -> Embeddings:
    return lake.embeddings("m@champion")


def ids(table) -> list[str]:
    return table["image_id"].to_pylist()


def test_a_lake_is_asked_by_its_path_too(lake: Lake) -> None:
    by_path = Lake(lake.uri.removeprefix("file://"))
    assert by_path.sql("SELECT count(*) AS n FROM embeddings").to_pylist() == [{"n": 600}]
    with pytest.raises(InputError, match="unknown model 'x'; known: m"):
        lake.embeddings("x")


def test_a_lake_that_is_held_answers_of_now(lake: Lake, tmp_path: Path) -> None:
    count = "SELECT count(*) AS n, count(DISTINCT images_version) AS versions FROM embeddings"
    assert lake.sql(count).to_pylist() == [{"n": 600, "versions": 1}]
    # A name that no look at the text finds, and one of a statement that is no SELECT.
    assert lake.sql("SELECT count(*) AS n FROM query_table('images')").to_pylist() == [{"n": 600}]
    assert "image_id" in lake.sql("DESCRIBE embeddings")["column_name"].to_pylist()
    write_source(tmp_path / "more" / "b.parquet", range(2000, 2050))
    runner.run(InlineStage(lake, tmp_path / "more", night="2026-01-02"))
    runner.run(InlineEmbed(lake, night="2026-01-02"))
    assert lake.sql(count).to_pylist() == [{"n": 650, "versions": 2}]
    assert lake.sql("SELECT count(*) AS n FROM runs WHERE job = 'embed'").to_pylist() == [{"n": 2}]


def test_a_question_opens_the_tables_that_it_names(trained: Places, monkeypatch) -> None:
    runner.run(InlineEmbed(trained))
    opened: list[str] = []
    real = views._snapshots
    monkeypatch.setattr(
        views, "_snapshots", lambda lake, name, v: (opened.append(name), real(lake, name, v))[1]
    )
    lake = Lake(trained.uri)
    lake.sql('WITH x AS (SELECT * FROM "Embeddings" WHERE night = ?) SELECT * FROM x', ["?"])
    assert opened == ["embeddings"]
    lake.embeddings("m").anomalies(top=3)
    assert sorted(opened) == ["batches", "embeddings", "images"]
    lake.embeddings("m").anomalies(top=3)
    assert len(opened) == 3


def test_anomalies_of_a_label(lake: Lake, model: Embeddings) -> None:
    label = lake.sql("SELECT label FROM images GROUP BY 1 ORDER BY count(*) DESC")["label"][0]
    found = model.anomalies(label=str(label), top=5)
    expected = lake.sql(
        f"""SELECT e.image_id FROM embeddings e JOIN images i USING (image_id)
            WHERE label = {label} ORDER BY neg_elbo DESC LIMIT 5"""
    )
    assert ids(found) == ids(expected)
    assert set(found["label"].to_pylist()) == {label.as_py()}
    assert {"source_uri", "source_row", "p_value"} <= set(found.column_names)


def test_flagged_anomalies_come_with_their_evidence(lake: Lake, model: Embeddings) -> None:
    found = model.anomalies(flagged=True, top=100)
    expected = lake.sql("SELECT image_id FROM anomalies ORDER BY neg_elbo DESC, image_id")
    assert len(found)
    assert ids(found) == ids(expected)
    evidence = {"q_value", "calibration_valid", "max_patch_y", "max_patch_x", "latents", "batch"}
    assert evidence <= set(found.column_names)


def test_what_has_no_neighbours_is_refused(model: Embeddings) -> None:
    with pytest.raises(InputError, match="k 0"):
        model.neighbours(np.ones(4), k=0)
    for of in (np.full(4, np.nan), np.zeros((0, 4))):
        with pytest.raises(InputError, match="at least one embedding, of finite numbers"):
            model.neighbours(of)


def test_neighbours_are_looked_for_where_it_is_said(lake: Lake, model: Embeddings) -> None:
    one = ids(lake.sql("SELECT min(image_id) AS image_id FROM embeddings"))[0]
    label = lake.sql("SELECT label FROM images GROUP BY 1 ORDER BY count(*)")["label"][0].as_py()
    found = model.neighbours(one, k=6, label=str(label))
    assert set(found["label"].to_pylist()) == {label}
    everything = model.neighbours(one, k=599)
    assert one not in ids(everything)
    by_hand = [row["image_id"] for row in everything.to_pylist() if row["label"] == label][:6]
    assert ids(found) == by_hand
    assert len(model.neighbours(one, night="1999-01-01")) == 0
    vector = lake.sql(f"SELECT embedding FROM embeddings WHERE image_id = '{one}'")["embedding"][0]
    assert ids(model.neighbours(np.array(vector.as_py()), k=1)) == [one]
    others = np.random.default_rng(0).normal(size=(3, 4))
    many = model.neighbours(others, k=2, metric="euclidean")
    assert many["query"].to_pylist() == [0, 0, 1, 1, 2, 2]
    singly = [i for other in others for i in ids(model.neighbours(other, k=2, metric="euclidean"))]
    assert ids(many) == singly
    with pytest.raises(InputError, match="has 4 numbers"):
        model.neighbours(np.zeros(3))


def test_an_image_file_has_the_neighbours_of_its_staged_self(
    lake: Lake, model: Embeddings, tmp_path: Path
) -> None:
    (data,) = image_bytes([7])
    (tmp_path / "seven.png").write_bytes(data)
    nearest = model.neighbours(tmp_path / "seven.png", k=1)
    assert nearest["cosine_distance"][0].as_py() == pytest.approx(0.0, abs=1e-6)
    assert nearest["source_row"][0].as_py() == 7


def test_files_by_hand_get_the_numbers_of_the_table(lake: Lake, tmp_path: Path) -> None:
    fresh = [600, 601, 602]
    write_source(tmp_path / "more" / "b.parquet", fresh)
    runner.run(InlineStage(lake, tmp_path / "more", night="2026-01-02"))
    runner.run(InlineEmbed(lake, night="2026-01-02"))
    files = []
    for number, data in zip(fresh, image_bytes(fresh), strict=True):
        files.append(tmp_path / f"{number}.png")
        files[-1].write_bytes(data)
    for row in embed_files(lake, "m", files):
        assert row["calibration_valid"]
        (held,) = lake.sql(
            f"SELECT * FROM embeddings WHERE image_id = '{row['image_id']}'"
        ).to_pylist()
        for name in (*SCORES, "p_value", "embedding", "max_patch_y", "max_patch_x"):
            assert row[name] == held[name], name
    (tmp_path / "broken.png").write_bytes(image_bytes([5])[0][:60])
    with pytest.raises(InputError, match=r"broken\.png: .*\(truncated\)"):
        embed_files(lake, "m", [tmp_path / "broken.png"])
    with pytest.raises(InputError, match=r"none\.png: it does not exist"):
        embed_files(lake, "m", [tmp_path / "none.png"])


def test_duplicates_are_the_pairs_nearer_than_the_threshold(lake: Lake, model: Embeddings) -> None:
    rows = lake.sql("SELECT image_id, embedding FROM embeddings ORDER BY image_id")
    matrix = np.array(rows["embedding"].to_pylist())
    far = np.sqrt(((matrix[:, None] - matrix) ** 2).sum(2))
    i, j = np.triu_indices(600, 1)
    threshold = float(np.sort(far[i, j])[20]) + 1e-9
    names = rows["image_id"].to_pylist()
    close = far[i, j] <= threshold
    expected = {frozenset((names[a], names[b])) for a, b in zip(i[close], j[close], strict=True)}
    found = model.duplicates(threshold, metric="euclidean")
    pairs = zip(ids(found), found["other_id"].to_pylist(), strict=True)
    assert {frozenset(pair) for pair in pairs} == expected
    assert len(model.duplicates(threshold, metric="euclidean", top=3)) == 3


def test_outliers_of_a_label_are_far_from_its_others(lake: Lake, model: Embeddings) -> None:
    label = lake.sql("SELECT label FROM images GROUP BY 1 ORDER BY count(*) DESC")["label"][0]
    found = model.outliers_of(str(label), top=4)
    assert set(found["label"].to_pylist()) == {label.as_py()}
    far = found["mahalanobis_distance"].to_pylist()
    assert far == sorted(far, reverse=True)
    with pytest.raises(InputError, match=r"label 'shoe' has 0 .*known labels: .*0"):
        model.outliers_of("shoe")


def run(lake: Lake, *arguments: str) -> str:
    done = CliRunner().invoke(cli, ["query", *arguments, "--lake", lake.uri])
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


def test_rows_come_out_as_table_json_csv_parquet_and_picture(lake: Lake, tmp_path: Path) -> None:
    asked = ("anomalies", "--model", "m", "--top", "12")
    rows = json.loads(run(lake, *asked, "--json"))
    assert len(rows) == 12
    text = run(lake, *asked)
    assert rows[0]["image_id"][:12] in text
    parquet, grid = tmp_path / "rows.parquet", tmp_path / "rows.png"
    out = run(lake, *asked, "--csv", "--parquet", str(parquet), "--grid", str(grid))
    read = list(csv.DictReader(io.StringIO(out)))
    assert [row["image_id"] for row in read] == [row["image_id"] for row in rows]
    assert float(read[0]["neg_elbo"]) == rows[0]["neg_elbo"]
    assert pq.read_table(parquet)["image_id"].to_pylist() == [row["image_id"] for row in rows]
    picture = np.asarray(Image.open(grid).convert("L"))
    # Every one of them is there, enlarged threefold by repetition.
    for row in rows:
        (image,) = lake.sql(
            f"SELECT image FROM images WHERE image_id = '{row['image_id']}'"
        ).to_pylist()
        pixels = np.frombuffer(image["image"], np.uint8).reshape(28, 28).repeat(3, 0).repeat(3, 1)
        assert _is_within(pixels, picture)


def _is_within(small: np.ndarray, large: np.ndarray) -> bool:
    windows = np.lib.stride_tricks.sliding_window_view(large, small.shape)
    # The grid's cells begin at a fixed step, so few places have to be tried.
    return any(
        np.array_equal(windows[y, x], small)
        for y in range(windows.shape[0])
        for x in range(16, windows.shape[1], 90)
    )


def test_each_question_is_a_command(lake: Lake, tmp_path: Path) -> None:
    one = ids(lake.sql("SELECT min(image_id) AS image_id FROM embeddings"))[0]
    assert (
        len(json.loads(run(lake, "neighbours", "--model", "m", "--image-id", one, "--json"))) == 10
    )
    pairs = ("duplicates", "--model", "m", "--threshold", "2.0", "--top", "4")
    grid = tmp_path / "pairs.png"
    assert len(json.loads(run(lake, *pairs, "--grid", str(grid), "--json"))) == 4
    assert grid.exists()
    label = str(lake.sql("SELECT min(label) AS l FROM images")["l"][0])
    outliers = json.loads(run(lake, "outliers-of", "--model", "m", "--label", label, "--json"))
    assert len(outliers) == 20
    assert run(lake, "sql", "SELECT 1 AS one", "--csv") == "one\n1\n"


def test_a_label_is_that_of_the_image_in_its_own_dataset(
    lake: Lake, model: Embeddings, trained_source: Path
) -> None:
    copy = InlineStage(lake, trained_source)
    copy.target = "copy"
    runner.run(copy)
    runner.run(InlineEmbed(lake, dataset="copy"))
    fresh = lake.embeddings("m")
    label = str(lake.sql("SELECT min(label) AS l FROM images")["l"][0])
    found = fresh.outliers_of(label, top=500, dataset="copy")
    assert set(found["dataset"].to_pylist()) == {"copy"}
    assert len(fresh.outliers_of(label, top=5000)) == 2 * len(found)
    one = ids(lake.sql("SELECT min(image_id) AS image_id FROM embeddings"))[0]
    assert set(fresh.neighbours(one, dataset="copy")["dataset"].to_pylist()) == {"copy"}
    pairs = fresh.duplicates(1e-9, dataset="copy")
    assert set(pairs["dataset"].to_pylist()) <= {"copy"}


def test_a_picture_of_rows_without_images_is_refused(lake: Lake, tmp_path: Path) -> None:
    arguments = ["query", "sql", "SELECT 1 AS one", "--grid", str(tmp_path / "x.png")]
    done = CliRunner().invoke(cli, [*arguments, "--lake", lake.uri])
    assert isinstance(done.exception, InputError)
    assert "a column image_id" in str(done.exception)
    for image_id in ("'nobody'", "NULL", "'it''s'"):
        arguments = ["query", "sql", f"SELECT {image_id} AS image_id", "--grid", "x.png"]
        done = CliRunner().invoke(cli, [*arguments, "--lake", lake.uri])
        assert "none of the rows" in str(done.exception)
