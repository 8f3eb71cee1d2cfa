"""DuckDB, Polars and pandas read the tables in processes that import nothing of ours."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.lake.paths import LakePaths
from tests.helpers import ROOT
from tests.integration.conftest import embed

pytestmark = pytest.mark.integration

# deltalake's and pyarrow's threads abort a process that ends, now and then.
ENDING = "\nimport os, sys\nsys.stdout.flush()\nos._exit(0)\n"
PREAMBLE = """
import json, sys
embeddings, images = sys.argv[1:3]
"""
READERS = {
    "duckdb": """
import duckdb
from deltalake import DeltaTable
e, i = (DeltaTable(uri).file_uris() for uri in (embeddings, images))
row = duckdb.sql(f'''
    SELECT count(*), count(DISTINCT e.image_id), min(len(e.embedding)), max(len(e.embedding)),
           sum(e.neg_elbo), count(e.p_value), min(octet_length(i.image)), sum(e.embedding[1])
    FROM read_parquet({e}, hive_partitioning = true) e
    JOIN read_parquet({i}) i USING (image_id)
    WHERE e.dataset = 'd' ''').fetchall()[0]
cast = duckdb.sql(f"SELECT embedding::FLOAT[4] AS v FROM read_parquet({e}) LIMIT 1").fetchall()[0]
assert len(cast[0]) == 4
""",
    "polars": """
import polars as pl
e, i = pl.scan_delta(embeddings), pl.scan_delta(images)
t = e.join(i, on="image_id").filter(pl.col("dataset") == "d").collect()
lengths = t["embedding"].list.len()
row = (t.height, t["image_id"].n_unique(), lengths.min(), lengths.max(), t["neg_elbo"].sum(),
       t["p_value"].count(), t["image"].bin.size().min(), t["embedding"].list.get(0).sum())
assert t["embedding"].cast(pl.Array(pl.Float32, 4)).dtype == pl.Array(pl.Float32, 4)
""",
    "pandas": """
from deltalake import DeltaTable
e, i = DeltaTable(embeddings).to_pandas(), DeltaTable(images).to_pandas()
t = e.merge(i, on="image_id")
t = t[t.dataset == "d"]
lengths = t.embedding.map(len)
row = (len(t), t.image_id.nunique(), lengths.min(), lengths.max(), t.neg_elbo.sum(),
       t.p_value.count(), t.image.map(len).min(), sum(float(v[0]) for v in t.embedding))
""",
}
POSTSCRIPT = """
ours = {"jobs", "flows", "vae_core", "ray", "torch", "prefect"}
assert not ours & {name.split(".")[0] for name in sys.modules}
print(json.dumps([float(value) for value in row]))
"""


def test_three_engines_read_the_same_rows(trained, tmp_path: Path) -> None:
    embed(trained)
    tables = [
        uri.removeprefix("file://")
        for uri in (trained.model("m", "embeddings"), trained.dataset("d", "images"))
    ]
    found = {}
    for name, code in READERS.items():
        done = subprocess.run(
            [sys.executable, "-c", PREAMBLE + code + POSTSCRIPT + ENDING, *tables],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
        )
        assert done.returncode == 0, f"{name}: {done.stderr}"
        found[name] = json.loads(done.stdout)
    assert found["duckdb"][:4] == [1000, 1000, 4, 4]
    assert 0 < found["duckdb"][5] < 1000
    assert found["duckdb"][6] == 28 * 28
    assert found["polars"] == pytest.approx(found["duckdb"], rel=1e-4)
    assert found["pandas"] == pytest.approx(found["duckdb"], rel=1e-4)


GUIDE = (ROOT / "docs" / "tables.md").read_text()
BLOCKS = dict(re.findall(r"```python (\w+)\n(.*?)```", GUIDE, re.S))


@pytest.fixture(scope="module")
def asked(trained_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("asked") / "lake"
    shutil.copytree(trained_folder / "lake", folder)
    embed(LakePaths(folder.as_uri()), alpha=0.9)
    return folder


@pytest.mark.parametrize("name", BLOCKS)
def test_the_guide_s_examples_run(asked: Path, name: str) -> None:
    code = BLOCKS[name]
    for of, to in (("models/photos", "models/m"), ("datasets/photos", "datasets/d")):
        code = code.replace(of, to)
    code = code.replace('"photos@champion"', '"m@champion"').replace("'photos'", "'d'")
    done = subprocess.run(
        [sys.executable, "-c", f"LAKE, DIMENSION = {str(asked)!r}, 4\n{code}{ENDING}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_there_are_examples() -> None:
    assert set(BLOCKS) == {"duckdb", "polars", "pandas", "pyarrow", "latentlake"}
