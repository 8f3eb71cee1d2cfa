"""Reading ahead: in order, bounded, and with errors in their turn."""

from __future__ import annotations

import threading
import time

import pytest

from jobs.lake.read_ahead import read_ahead
from tests.limits import SOON_S


def test_what_is_read_comes_in_order_however_long_each_takes() -> None:
    def read(name: str) -> int:
        time.sleep(0.002 * (int(name) % 5))
        return int(name)

    names = [str(number) for number in range(40)]
    assert list(read_ahead(names, read, 4)) == [(name, int(name)) for name in names]
    assert list(read_ahead([], read)) == []


def test_several_are_read_at_once() -> None:
    together = threading.Barrier(4, timeout=SOON_S)
    assert len(list(read_ahead("abcdefgh", lambda name: together.wait(), 4))) == 8


def test_no_more_is_held_than_was_allowed() -> None:
    begun: list[str] = []
    taken = read_ahead([str(number) for number in range(100)], lambda n: begun.append(n), 4)
    for _ in range(10):
        next(taken)
    assert len(begun) <= 10 + 4
    taken.close()
    assert len(begun) <= 10 + 4


def test_an_error_comes_after_what_was_before_it() -> None:
    def read(name: str) -> str:
        if name == "c":
            raise ValueError(name)
        return name

    taken = read_ahead("abcd", read, 4)
    assert [next(taken), next(taken)] == [("a", "a"), ("b", "b")]
    with pytest.raises(ValueError, match="c"):
        next(taken)
