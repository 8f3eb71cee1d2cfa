from __future__ import annotations

import tracemalloc
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.tables import duplicate_keys
from jobs.tables.duplicate_keys import Keys
from jobs.tables.image_ids import IdSet, digests
from tests.unit.jobs.tables.test_image_ids import image_id

SIGNED = st.integers(-(2**63), 2**63 - 1)


@given(
    st.lists(st.lists(SIGNED | st.integers(-3, 3), max_size=40), max_size=6),
    st.sampled_from([1, 4, 16, 1000]),
)
def test_repeats_are_those_of_a_counter(parts: list[list[int]], held: int) -> None:
    before, duplicate_keys.HELD_KEYS = duplicate_keys.HELD_KEYS, held
    try:
        with Keys() as keys:
            for part in parts:
                keys.add(np.array(part, np.int64))
            runs = [run.view(np.int64).tolist() for run in keys.partitions()]
            again = [run.view(np.int64).tolist() for run in keys.partitions()]
            found = [k for run in keys.partitions() for k in duplicate_keys.repeats(run).tolist()]
    finally:
        duplicate_keys.HELD_KEYS = before
    counts = Counter(key for part in parts for key in part)
    assert Counter(key for run in runs for key in run) == counts
    assert runs == again
    assert all(not set(one) & set(other) for one, other in pairwise(runs))
    assert Counter(found) == {k % 2**64: n - 1 for k, n in counts.items() if n > 1}


def test_memory_does_not_grow_with_the_number_of_keys() -> None:
    def peak(millions: int) -> int:
        tracemalloc.start()
        generator = np.random.default_rng(0)
        with Keys() as keys:
            for _ in range(millions * 10):
                keys.add(generator.integers(0, 2**64, 100_000, np.uint64))
            assert sum(len(run) for run in keys.partitions()) == millions * 1_000_000
        held = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return held

    assert peak(4) < 1.05 * peak(1)


def test_nothing_is_written_while_keys_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicate_keys.tempfile, "TemporaryFile", None)
    with Keys() as keys:
        keys.add(np.arange(1000))
        keys.add(np.arange(500))
        assert [len(duplicate_keys.repeats(run)) for run in keys.partitions()] == [500]


def test_first_halves_are_looked_up_in_a_set_of_ids() -> None:
    held = IdSet([digests([image_id(n) for n in range(50)])])
    asked = digests([image_id(n) for n in range(25, 100)])["high"].astype(np.uint64)
    assert held.may_have(asked).tolist() == [n < 50 for n in range(25, 100)]
    assert not IdSet().may_have(asked).any()
