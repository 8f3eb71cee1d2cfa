"""Sets of image ids at 16 bytes an id, for as many images as a dataset has.

An image id is a sha256; its first 128 bits are as good an identity as all of it: among 10⁹ images,
the chance that any two agree in them is 10⁻²¹.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

HALVES = np.dtype([("high", ">u8"), ("low", ">u8")])
_DIGIT = np.full(256, 255, np.uint8)
_DIGIT[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)


def digests(ids: Any) -> np.ndarray:
    """Return the first 128 bits of hexadecimal image ids, (N,) of two unsigned 64-bit halves.

    ids: a list of strings, or an Arrow array or chunked array of them, without nulls.
    """
    if isinstance(ids, pa.ChunkedArray):
        parts = [digests(chunk) for chunk in ids.chunks]
        return np.concatenate(parts) if parts else np.zeros(0, HALVES)
    text = _characters(ids)
    nibbles = _DIGIT[text[:, :32]]
    assert not len(nibbles) or nibbles.max() < 16, "an image id is hexadecimal"
    packed = (nibbles[:, 0::2] << 4) | nibbles[:, 1::2]
    return np.ascontiguousarray(packed).view(HALVES)[:, 0]


def _characters(ids: Any) -> np.ndarray:
    if not isinstance(ids, pa.Array):
        return np.frombuffer("".join(ids).encode(), np.uint8).reshape(len(ids), 64)
    ids = ids.cast(pa.string())
    assert not ids.null_count
    offsets = np.frombuffer(ids.buffers()[1], np.int32)[ids.offset : ids.offset + len(ids) + 1]
    data = ids.buffers()[2]
    if not len(ids):
        return np.zeros((0, 64), np.uint8)
    text = np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]]
    return text.reshape(len(ids), 64)


class IdSet:
    """An immutable set of image ids."""

    def __init__(self, parts: Iterable[np.ndarray] = ()) -> None:
        """parts: as `digests` gives them; an id may come several times."""
        arrays = [np.zeros(0, HALVES), *parts]
        high = np.concatenate([part["high"].astype(np.uint64) for part in arrays])
        low = np.concatenate([part["low"].astype(np.uint64) for part in arrays])
        order = np.lexsort((low, high))
        high, low = high[order], low[order]
        first = np.ones(len(high), bool)
        first[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
        self.high, self.low = high[first], low[first]

    def __len__(self) -> int:
        return len(self.high)

    def has(self, wanted: np.ndarray) -> np.ndarray:
        """Which of the digests are in the set, (N,) of bool."""
        high, low = wanted["high"].astype(np.uint64), wanted["low"].astype(np.uint64)
        found = np.zeros(len(wanted), bool)
        at = np.searchsorted(self.high, high, "left")
        # Equal first halves with other second halves: never in practice, a few steps at most.
        while True:
            live = (at < len(self.high)) & ~found
            live[live] = self.high[at[live]] == high[live]
            if not live.any():
                return found
            found[live] = self.low[at[live]] == low[live]
            at[live] += 1

    def may_have(self, high: np.ndarray) -> np.ndarray:
        """For which first halves of an id the set has an id that begins so, (N,) of bool."""
        if not len(self):
            return np.zeros(len(high), bool)
        at = np.searchsorted(self.high, high)
        return self.high[np.minimum(at, len(self) - 1)] == high

    def within(self, other: IdSet) -> bool:
        """Whether all of its ids are in the other set, too."""
        sorted_ids = np.zeros(len(self), HALVES)
        sorted_ids["high"], sorted_ids["low"] = self.high, self.low
        return bool(other.has(sorted_ids).all())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, IdSet):
            return NotImplemented
        return np.array_equal(self.high, other.high) and np.array_equal(self.low, other.low)

    __hash__ = None  # type: ignore[assignment]
