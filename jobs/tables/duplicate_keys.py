"""Which keys come more than once, in memory that does not grow with their number.

Beyond what fits, keys lie on local disk in partitions, of which one at a time is looked at.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import IO

import numpy as np

PARTITIONS = 256
HELD_KEYS = 1 << 17  # in memory, before they go to the disk
_SCATTER = np.uint64(0x9E3779B97F4A7C15)  # odd: keys that differ in few bits part, equal ones stay


class Keys:
    """64-bit keys, any number of times each; a context manager that removes what it wrote.

    Takes 8 bytes of disk a key (in Python's temporary folder) once there are more than HELD_KEYS,
    and in memory the keys of one partition.
    """

    def __init__(self) -> None:
        self._held: list[np.ndarray] = []
        self._count = 0
        self._file: IO[bytes] | None = None
        self._runs: list[np.ndarray] = []  # where each run's partitions begin and end in the file

    def __enter__(self) -> Keys:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, keys: np.ndarray) -> None:
        """keys: (N,) of 64-bit integers, signed or not."""
        for start in range(0, len(keys), HELD_KEYS):
            part = keys[start : start + HELD_KEYS].astype(np.uint64)
            self._held.append(part)
            self._count += len(part)
            if self._count > HELD_KEYS:
                self._write_out()

    def _write_out(self) -> None:
        keys = np.concatenate(self._held)
        self._held, self._count = [], 0
        partition = (keys * _SCATTER) >> np.uint64(56)
        order = np.argsort(partition, kind="stable")
        ends = np.searchsorted(partition[order], np.arange(PARTITIONS + 1, dtype=np.uint64))
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        begin = self._runs[-1][-1] if self._runs else 0
        self._runs.append(begin + ends)
        self._file.write(keys[order].data)

    def partitions(self) -> Iterator[np.ndarray]:
        """All keys by partition, (N,) of uint64 and sorted: equal ones come together."""
        if self._file is None:
            yield np.sort(np.concatenate([np.zeros(0, np.uint64), *self._held]))
            return
        if self._held:
            self._write_out()
        for number in range(PARTITIONS):
            parts = [self._read(int(run[number]), int(run[number + 1])) for run in self._runs]
            yield np.sort(np.concatenate(parts))

    def _read(self, start: int, stop: int) -> np.ndarray:
        assert self._file is not None
        self._file.seek(8 * start)
        return np.frombuffer(self._file.read(8 * (stop - start)), np.uint64)


def repeats(keys: np.ndarray) -> np.ndarray:
    """Of sorted keys, those that come n > 1 times, n - 1 times each."""
    return keys[1:][keys[1:] == keys[:-1]]
