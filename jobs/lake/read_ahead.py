"""Reading files ahead of whoever takes them in order: storage answers several at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

READERS = 8  # files in memory at a time, beside the one that was taken


def read_ahead(
    names: Iterable[str], read: Callable[[str], T], readers: int = READERS
) -> Iterator[tuple[str, T]]:
    """Each name with what was read of it, in order. Raises what a read raised, in its turn."""
    waiting: deque[tuple[str, Future[T]]] = deque()
    with ThreadPoolExecutor(readers, thread_name_prefix="ahead") as pool:
        try:
            for name in names:
                waiting.append((name, pool.submit(read, name)))
                if len(waiting) == readers:
                    first, found = waiting.popleft()
                    yield first, found.result()
            while waiting:
                first, found = waiting.popleft()
                yield first, found.result()
        finally:
            for _, unwanted in waiting:
                unwanted.cancel()
