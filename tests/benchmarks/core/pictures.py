"""Learning curves of what is in `.bench/`, as `docs/pictures/learning-curves.png`.

python -m tests.benchmarks.core.pictures
"""

from __future__ import annotations

import json
from pathlib import Path

from matplotlib import pyplot as plt

from tests.benchmarks.core.data import FOLDER

TARGET = Path(__file__).parents[3] / "docs" / "pictures" / "learning-curves.png"
MNIST = {
    "mnist-bound-vae": "VAE",
    "mnist-bound-vae-long": "VAE, longer",
    "mnist-bound-iwae5": "IWAE-5",
}


def main() -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3.4), layout="constrained")
    for (name, label), colour in zip(MNIST.items(), ("C0", "C2", "C1"), strict=True):
        curve = _curve(name)
        epochs = [entry["epoch"] for entry in curve]
        left.plot(
            epochs, [-e["train_loss_nats"] for e in curve], colour, label=f"{label}: train bound"
        )
        tested = [e for e in curve if "test_elbo_nats" in e]
        left.plot(
            [e["epoch"] for e in tested],
            [e["test_elbo_nats"] for e in tested],
            f"{colour}:",
            label=f"{label}: test ELBO",
        )
    left.set(xlabel="epoch", ylabel="nats", ylim=(-105, -87), title="MNIST, dynamically binarised")
    left.legend(fontsize=7)
    curve = _curve("cifar-bits")
    epochs = [entry["epoch"] for entry in curve]
    right.plot(epochs, [e["train_bits_per_dim"] for e in curve], label="train")
    right.plot(epochs, [e["test_bits_per_dim_500"] for e in curve], "--", label="test, 500 images")
    right.set(xlabel="epoch", ylabel="bits per dimension", title="CIFAR-10")
    right.legend(fontsize=7)
    for axis in (left, right):
        axis.grid(alpha=0.3)
    TARGET.parent.mkdir(exist_ok=True)
    figure.savefig(TARGET, dpi=110)


def _curve(name: str) -> list[dict[str, float]]:
    path = FOLDER / f"{name}.json"
    return json.loads(path.read_text())["curve"] if path.exists() else []


if __name__ == "__main__":
    main()
