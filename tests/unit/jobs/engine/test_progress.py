from __future__ import annotations

import logging

from jobs.engine import progress
from jobs.engine.progress import Progress, listening


def test_what_is_left_is_told_once_all_is_planned(monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    work = Progress("stage d", "rows_in")
    work.planned = 4
    now[0] = 10.0
    work.add({"rows_in": 500, "refused": 3})
    assert str(work) == "stage d: 1 of 4+ units, 500 rows_in, 50/s, 3 refused"
    assert work.seconds_left is None
    work.all_planned = True
    assert work.seconds_left == 30.0
    assert str(work).endswith("3 refused, 0:30 left")


def test_reports_come_every_few_seconds_and_once_more_at_the_end(monkeypatch, caplog) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    work = Progress("embed d", "embedded")
    heard: list[str] = []
    with caplog.at_level(logging.INFO, "latentlake"), listening(lambda p: heard.append(str(p))):
        for second in range(13):
            now[0] = float(second)
            work.report()
        work.planned = 1
        work.add({"embedded": 7})
        work.finished()
    assert len(heard) == len(caplog.records) == 3
    assert heard[-1].startswith("embed d: 1 of 1 units, 7 embedded")
    work.finished()
    assert len(heard) == 3  # nobody listens any more
