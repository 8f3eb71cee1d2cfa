"""Waiting where signals are handled: a timeout, a cancel, ^C."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")

SLICE_S = 0.2
END_S = 3.0


def apart(action: Callable[[], T], stop: Callable[[], None] | None = None) -> T:
    """Return what the action returns: it is done on a thread of its own while this one waits.

    Ray's waits hear signals, and drop what their handlers raise, other than KeyboardInterrupt
    (2.60): Prefect's timeout of a task, an alarm, was lost there; DuckDB turns it into an error
    of its own, and numpy does not hear it before it is done. A wait for an event drops nothing.
    stop: makes the action end soon; it is called where the wait is cut short. An action without
    one goes on in the background.
    """
    done: Future[T] = Future()
    over = threading.Event()
    context = contextvars.copy_context()  # of the task that the log lines belong to

    def body() -> None:
        try:
            done.set_result(context.run(action))
        except BaseException as error:  # noqa: BLE001 - raised again by whoever waits
            done.set_exception(error)
        finally:
            over.set()

    threading.Thread(target=body, name="apart", daemon=True).start()
    try:
        # Not Thread.join, which takes a thread for ended when it is interrupted (Python 3.11).
        while not over.wait(SLICE_S):
            pass
    except BaseException:
        if stop is not None:
            stop()
            over.wait(END_S)
        raise
    return done.result()
