"""The linear probe of evaluate: which test images' labels it reads from features."""

from __future__ import annotations

import numpy as np
import torch

from vae_core.stats.probe import LinearProbe

MOST_CLASSES = 1000  # a column with more values is no class label

Labels = list[str | None]


def probe_problem(name: str, train: Labels, test: Labels) -> str | None:
    """Why no probe can be fitted; None where it can."""
    classes = {label for label in train if label is not None}
    if not classes:
        return f"no image of the train split has a label in {name!r}"
    if len(classes) == 1:
        return f"{name!r} is {next(iter(classes))!r} for all images of the train split"
    if len(classes) > MOST_CLASSES:
        return f"{name!r} has {len(classes):,} values in the train split: no class label"
    if all(label is None for label in test):
        return f"no image of the test split has a label in {name!r}"
    return None


def probe_right(
    train_ND: np.ndarray, train: Labels, test_ND: np.ndarray, test: Labels
) -> np.ndarray:
    """1 where the label of a test image is read right, 0 where wrong, NaN without one, (N,).

    A label that the train split does not have is read wrong.
    """
    labelled = np.array([label is not None for label in train])
    classes = sorted({label for label in train if label is not None})
    number = {label: place for place, label in enumerate(classes)}
    targets = torch.tensor([number[label] for label in train if label is not None])
    fitted = LinearProbe.fit(torch.from_numpy(train_ND[labelled]), targets)
    predicted = fitted.predict(torch.from_numpy(test_ND)).tolist()
    right = [
        None if label is None else float(classes[guess] == label)
        for guess, label in zip(predicted, test, strict=True)
    ]
    return np.array(right, np.float64)
