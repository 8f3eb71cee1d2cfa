from __future__ import annotations

from flows.output import records_text, report_text
from jobs.job_report import JobReport


def test_what_looks_like_markup_is_shown_as_it_is() -> None:
    shown = records_text([{"label": "[cat]", "note": "a [/x] b", "[odd]": 1}])
    assert "[cat]" in shown
    assert "a [/x] b" in shown
    assert "[odd]" in shown


def test_hashes_are_cut_and_nothing_is_a_dash() -> None:
    shown = records_text([{"image_id": "ab" * 32, "p_value": None, "embedding": [1.0, 2.0]}])
    assert "ab" * 6 in shown
    assert "ab" * 7 not in shown
    assert " - " in shown
    assert "[2 numbers]" in shown
    assert records_text([]) == "no rows"


def test_a_report_tells_what_was_done_or_that_nothing_was() -> None:
    assert report_text(JobReport(job="stage", target="d")) == "stage d: nothing to do"
    done = JobReport(job="stage", target="d", job_ids=["x"], counts={"staged": 1234}, seconds=2.0)
    assert "staged: 1,234" in report_text(done)
