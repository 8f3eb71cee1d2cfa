"""Numbers of an image that drift looks at beside its embedding: scores, pixels, where it came from.

Each function gives columns of both sides together, (N,) by name.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.datasets.splits import pixels_of
from vae_core.scores.names import SCORES

VALUES = 20  # of a column of names, the most frequent; the rest is one more
DARK, BRIGHT = 8, 247  # of 255: what is at most so dark, at least so bright
AT_ONCE = 256  # images whose pixels are worked on as float32

Columns = dict[str, np.ndarray]


def score_columns(both: pa.Table, notes: list[str]) -> Columns:
    """Those that every image has; an infinite one counts as the largest finite one."""
    found: Columns = {}
    partly = []
    for name in SCORES:
        values = both[name] if name in both.column_names else pa.nulls(len(both), pa.float64())
        if values.null_count == len(values):
            continue
        values_N = values.to_numpy()
        finite_N = np.isfinite(values_N)
        if np.isnan(values_N).any() or not finite_N.any():
            partly.append(name)
            continue
        found[name] = np.clip(values_N, values_N[finite_N].min(), values_N[finite_N].max())
    if partly:
        notes.append(f"{', '.join(partly)}: left out, since not every image has them")
    if not found and not partly:
        notes.append("the images were embedded without scores: they were left out")
    return found


def pixel_columns(images: pa.ChunkedArray, image_shape: tuple[int, int, int]) -> Columns:
    """Of staged pixels, in shares of full brightness.

    brightness, contrast: mean and standard deviation; dark, bright: share of pixels; roughness:
    mean difference of neighbours; line: the largest mean difference of a column (or row) to those
    beside it, as a dead one has it; of colour also each channel's mean.
    """
    pixels_NHWC = pixels_of(images, image_shape)
    starts = range(0, len(pixels_NHWC), AT_ONCE)
    parts = [_of_pixels(pixels_NHWC[start : start + AT_ONCE]) for start in starts]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _of_pixels(pixels_NHWC: np.ndarray) -> Columns:
    x_NHWC = pixels_NHWC.astype(np.float32) / 255.0
    grey_NHW = x_NHWC.mean(axis=3)
    pixels = (1, 2, 3)
    found = {
        "brightness": x_NHWC.mean(axis=pixels),
        "contrast": x_NHWC.std(axis=pixels),
        "dark": (pixels_NHWC <= DARK).mean(axis=pixels),
        "bright": (pixels_NHWC >= BRIGHT).mean(axis=pixels),
    }
    for name, across in (("column", grey_NHW), ("row", grey_NHW.transpose(0, 2, 1))):
        way = "across" if name == "column" else "down"
        if across.shape[2] > 1:
            found[f"roughness_{way}"] = np.abs(np.diff(across, axis=2)).mean(axis=(1, 2))
        if across.shape[2] > 2:
            beside = (across[:, :, :-2] + across[:, :, 2:]) / 2.0
            found[f"{name}_line"] = np.abs((across[:, :, 1:-1] - beside).mean(axis=1)).max(axis=1)
    if x_NHWC.shape[3] == 3:
        mean_NC = x_NHWC.mean(axis=(1, 2))
        found |= {name: mean_NC[:, c] for c, name in enumerate(("red", "green", "blue"))}
    return {name: values.astype(np.float64) for name, values in found.items()}


def source_columns(both: pa.Table, arrivals: int, notes: list[str]) -> Columns:
    """Sizes as they came, and a column of ones and zeros for each mode and label.

    arrivals: rows of them, which come first.
    """
    found: Columns = {}
    for name in ("source_width", "source_height"):
        found[name] = pc.fill_null(both[name], 0).to_numpy().astype(np.float64)  # type: ignore[attr-defined]
    for name in ("source_mode", "label"):
        if name not in both.column_names or pa.types.is_floating(both[name].type):
            continue
        values = both[name].to_pylist()
        has = [any(v is not None for v in side) for side in (values[:arrivals], values[arrivals:])]
        if has[0] != has[1]:
            notes.append(f"{name}: left out, since one side alone has it")
        elif all(has):
            found |= _indicators(name, [str(value) for value in values])
    return found


def _indicators(name: str, values: list[str]) -> Columns:
    counts = Counter(values)
    often = sorted(counts, key=lambda value: (-counts[value], value))[:VALUES]
    given_N = np.array(values, object)
    found = {f"{name}={value}": (given_N == value).astype(np.float64) for value in often}
    if len(counts) > VALUES:
        found[f"{name}: another"] = 1.0 - np.sum(list(found.values()), axis=0)
    return found
