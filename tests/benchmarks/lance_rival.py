"""The questions of bench_query, asked of a Lance dataset of the same rows."""

from __future__ import annotations

import json
import subprocess
import textwrap
from pathlib import Path

import numpy as np

from tests.benchmarks.rivals import environment

PACKAGES = (
    "pylance==14.0.2",
    "lance-namespace==0.13.0",
    "lance-namespace-urllib3-client==0.13.0",
)
CODE = """
    import json, sys, time
    from pathlib import Path
    import lance
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from lance.dataset import ColumnOrdering

    told = json.loads(Path(sys.argv[1]).read_text())
    folder, queries = Path(told["folder"]), np.array(told["queries"], np.float32)
    pa.set_cpu_count(2)

    def rows(path):
        table = pq.read_table(path, columns=["image_id", "neg_elbo", "embedding"])
        flat = table["embedding"].combine_chunks().flatten().cast(pa.float32())
        vectors = pa.FixedSizeListArray.from_arrays(flat, 64)
        return table.select(["image_id", "neg_elbo"]).append_column("embedding", vectors)

    if not (folder / "done").exists():
        for number, path in enumerate(told["files"]):
            lance.write_dataset(rows(path), str(folder / "rows"),
                mode="append" if number else "create")
        data = lance.dataset(str(folder / "rows"))
        data.create_scalar_index("image_id", "BTREE")
        started = time.perf_counter()
        data.create_index("embedding", "IVF_HNSW_SQ", metric="cosine", num_partitions=1)
        (folder / "index_s").write_text(str(time.perf_counter() - started))
        (folder / "done").touch()
    data = lance.dataset(str(folder / "rows"))

    def seconds(ask):
        ask()
        started = time.perf_counter()
        ask()
        return time.perf_counter() - started

    def nearest(query, **how):
        near = {"column": "embedding", "q": query, "k": 10, "metric": "cosine", **how}
        found = data.to_table(columns=["image_id", "_distance"], nearest=near)
        return found["image_id"].to_pylist()

    def top():
        order = ColumnOrdering("neg_elbo", ascending=False)
        how = {"order_by": [order], "limit": 100, "with_row_id": True}
        return data.scanner(columns=["image_id", "neg_elbo"], **how).to_table()

    exact = {"use_index": False}
    quick = {"use_index": True, "ef": 64}
    hits = [len({*nearest(q, **exact)} & {*nearest(q, **quick)}) for q in queries]
    one = told["image_id"]
    print(json.dumps({
        "top 100 by score, s": seconds(top),
        "look-up by id, s": seconds(
            lambda: data.to_table(columns=["neg_elbo"], filter=f"image_id = '{one}'")),
        "10 nearest of one, exact, s": seconds(lambda: nearest(queries[0], **exact)),
        "10 nearest by the index, ms": 1e3 * seconds(lambda: nearest(queries[0], **quick)),
        "recall@10 of the index": sum(hits) / (10 * len(hits)),
        "index made in, s": float((folder / "index_s").read_text()),
    }))
"""


def ask(folder: Path, files: list[str], image_id: str, queries_QD: np.ndarray) -> dict[str, float]:
    """folder: of Lance's environment and of its dataset, which is made once of Parquet files."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    question = {
        "folder": str(folder / "data"),
        "files": files,
        "image_id": image_id,
        "queries": queries_QD.tolist(),
    }
    (folder / "question.json").write_text(json.dumps(question))
    done = subprocess.run(
        [
            environment(folder / "environment", PACKAGES),
            "-c",
            textwrap.dedent(CODE),
            folder / "question.json",
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])
