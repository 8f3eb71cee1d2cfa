"""Work on a thread of its own, and a wait that a signal can cut short."""

from __future__ import annotations

import contextvars
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from jobs.engine.interruptible import apart
from tests.limits import SOON_S


class Alarm(BaseException):
    """As Prefect's timeout and its cancel are."""


@pytest.fixture
def alarm_soon() -> Iterator[None]:
    def ring(*_) -> None:
        raise Alarm

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def test_it_gives_what_the_action_gives_in_its_context() -> None:
    name = contextvars.ContextVar("name", default="nobody")
    name.set("somebody")
    here = threading.current_thread()
    assert apart(lambda: (name.get(), threading.current_thread() is here), int) == (
        "somebody",
        False,
    )


def test_an_error_is_the_actions_own() -> None:
    def fail() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError, match="x"):
        apart(fail, int)


@pytest.mark.usefixtures("alarm_soon")
def test_a_signal_ends_the_wait_and_stops_the_action() -> None:
    stopped, ended = threading.Event(), threading.Event()

    def work() -> None:
        stopped.wait(2 * SOON_S)
        ended.set()

    started = time.monotonic()
    with pytest.raises(Alarm):
        apart(work, stopped.set)
    assert time.monotonic() - started < SOON_S
    assert ended.is_set()
