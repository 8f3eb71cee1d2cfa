"""pythae's BaseTrainer, in an environment of its own that shares this one's torch."""

from __future__ import annotations

import json
import subprocess
import textwrap
from pathlib import Path

import numpy as np

from jobs.datasets.splits import find_splits
from jobs.engine import runner
from jobs.lake.paths import LakePaths
from jobs.tables import catalog
from tests.benchmarks.rivals import environment
from tests.helpers import ROOT
from tests.inline import InlineStage

PACKAGES = ("pythae==0.1.2", "tqdm==4.70.1", "imageio==2.38.1")
SHAPE = (28, 28, 1)
CODE = """
    import json, sys, time
    import numpy as np, torch
    from torch import nn
    torch.set_num_threads(2)
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig
    from pythae.trainers.training_callbacks import TrainingCallback
    from pythae.data.datasets import BaseDataset

    class Encoder(BaseEncoder):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(
                nn.Flatten(), nn.Linear(784, 500), nn.ReLU(), nn.Linear(500, 500), nn.ReLU()
            )
            self.mean, self.log_var = nn.Linear(500, 50), nn.Linear(500, 50)

        def forward(self, x):
            h = self.layers(x)
            return ModelOutput(embedding=self.mean(h), log_covariance=self.log_var(h))

    class Decoder(BaseDecoder):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(
                nn.Linear(50, 500), nn.ReLU(), nn.Linear(500, 500), nn.ReLU(),
                nn.Linear(500, 784), nn.Sigmoid(),
            )

        def forward(self, z):
            return ModelOutput(reconstruction=self.layers(z).reshape(-1, 1, 28, 28))

    class Clock(TrainingCallback):
        rates = []
        def on_train_step_begin(self, *a, **k): self.begun = time.perf_counter()
        def on_train_step_end(self, *a, **k):
            self.rates.append(len(train) / (time.perf_counter() - self.begun))

    data = np.load(sys.argv[1])
    train, held = (torch.from_numpy(data[n]).float() for n in ("train", "validation"))
    model = VAE(
        VAEConfig(input_dim=(1, 28, 28), latent_dim=50, reconstruction_loss="bce"),
        encoder=Encoder(), decoder=Decoder(),
    )
    config = BaseTrainerConfig(
        output_dir=sys.argv[2], num_epochs=int(sys.argv[3]), learning_rate=2e-3,
        per_device_train_batch_size=128, per_device_eval_batch_size=128, no_cuda=True,
        optimizer_cls="AdamW", optimizer_params={"weight_decay": 0.0},
        scheduler_cls="CosineAnnealingLR", scheduler_params={"T_max": int(sys.argv[3])},
    )
    labels = [torch.zeros(len(x)) for x in (train, held)]
    trainer = BaseTrainer(
        model, BaseDataset(train, labels[0]), training_config=config, callbacks=[Clock()]
    )
    trainer.train()
    model.eval()
    with torch.no_grad():
        nats = 0.0
        for start in range(0, len(held), 128):
            x = held[start : start + 128]
            for _ in range(4):
                out = model(BaseDataset(x, torch.zeros(len(x)))[:])
                nats += float(out.loss) * len(x) / 4
    print(json.dumps({"rates": Clock.rates, "validation_nats": nats / len(held)}))
"""


def fashion(folder: Path) -> LakePaths:
    """The sample that ships with the project, staged."""
    lake = LakePaths((folder / "lake-fashion").as_uri())
    source = ROOT / "flows" / "sample" / "fashion-mnist-t10k.parquet"
    runner.run(InlineStage(lake, source, rows_per_unit=None))
    return lake


def run(folder: Path, lake: LakePaths, epochs: int) -> dict[str, float]:
    """Images a second of the last epoch; negative ELBO of the validation split, in nats."""
    splits = find_splits(catalog.images_snapshot(lake, "d", None).file_uris(), SHAPE)
    data = folder / "pythae.npz"
    arrays = {}
    for name in ("train", "validation"):
        pixels = np.concatenate([b.pixels_NHWC for b in splits[name].batches(1024)])
        arrays[name] = (pixels.astype(np.float32) / 255.0 > 0.5).reshape(-1, 1, 28, 28)
    np.savez(data, **arrays)
    code = textwrap.dedent(CODE)
    done = subprocess.run(
        [
            environment(folder / "pythae", PACKAGES),
            "-c",
            code,
            data,
            folder / "pythae-out",
            str(epochs),
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    told = json.loads(done.stdout.splitlines()[-1])
    return {"images_per_s": told["rates"][-1], "validation_nats": told["validation_nats"]}
