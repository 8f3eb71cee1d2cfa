"""Ray's own way to train: read_parquet, streaming_split by Ray Train, iter_torch_batches."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.benchmarks.bare_loop import CASES

EPOCHS = 3
CODE = """
    import json, sys, tempfile, time
    import numpy as np
    import ray, torch
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from tests.benchmarks.bare_loop import CASES, bare_model

    name, source, out = sys.argv[1:]

    def loop():
        torch.set_num_threads(1)
        case = CASES[name]
        model = ray.train.torch.prepare_model(bare_model(case))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
        shard = ray.train.get_dataset_shard("train")
        height, width, channels = case.shape
        for _ in range({epochs}):
            started, count = time.perf_counter(), 0
            for batch in shard.iter_torch_batches(batch_size=case.batch):
                x = batch["image"].reshape(-1, channels, height, width).float().div_(255.0)
                optimizer.zero_grad(set_to_none=True)
                model(x).backward()
                optimizer.step()
                count += len(x)
            rate = count / (time.perf_counter() - started)
        with open(out, "w") as file:
            json.dump(rate, file)

    ray.init(address="local", num_cpus=2, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    TorchTrainer(
        loop,
        datasets={{"train": ray.data.read_parquet(source)}},
        scaling_config=ScalingConfig(num_workers=1),
        run_config=RunConfig(storage_path=tempfile.mkdtemp()),
    ).fit()
"""


def rate(name: str, folder: Path) -> float:
    """Images a second of the last of three epochs."""
    case = CASES[name]
    if not folder.exists():
        folder.mkdir(parents=True)
        size = int(np.prod(case.shape))
        generator = np.random.default_rng(0)
        kind = pa.list_(pa.uint8(), size)
        for number in range(8):
            count = int(0.8 * case.images) // 8
            flat = pa.array(generator.integers(0, 256, count * size, dtype=np.uint8))
            held = pa.FixedSizeListArray.from_arrays(flat, type=kind)
            pq.write_table(pa.table({"image": held}), folder / f"{number}.parquet")
    out = folder.with_suffix(".json")
    code = textwrap.dedent(CODE.format(epochs=EPOCHS))
    subprocess.run(
        [sys.executable, "-c", code, name, str(folder), str(out)], check=True, capture_output=True
    )
    found = float(json.loads(out.read_text()))
    shutil.rmtree(folder)
    return found
