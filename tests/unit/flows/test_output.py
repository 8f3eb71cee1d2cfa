from __future__ import annotations

from flows.output import records_text, report_text
from jobs.job_report import JobReport


def test_what_looks_like_markup_is_shown_as_it_is() -> None:
    shown = records_text([{"label": "[cat]", "note": "a [/x] b", "[odd]": 1}])
    assert "[cat]" in shown
    assert "a [/x] b" in shown
    assert "[odd]" in shown


def test_hashes_are_cut_and_nothing_is_a_dash() -> None:
    row = {"image_id": "ab" * 32, "p_value": None, "embedding": [1.0] * 8, "latents": [3, 1]}
    shown = records_text([row])
    assert "ab" * 6 in shown
    assert "ab" * 7 not in shown
    assert " - " in shown
    assert "[8 numbers]" in shown
    assert "3, 1" in shown
    assert records_text([]) == "no rows"


def test_a_report_tells_what_was_done_or_that_nothing_was() -> None:
    assert report_text(JobReport(job="stage", target="d")) == "stage d: nothing to do"
    done = JobReport(job="stage", target="d", job_ids=["x"], counts={"staged": 1234}, seconds=2.0)
    assert "staged: 1,234" in report_text(done)


def test_a_patch_is_one_column_and_the_end_of_a_uri_is_shown() -> None:
    patch = {"max_patch_y": 22, "max_patch_x": 7, "max_patch_side": 4}
    shown = records_text([{"image_id": "x", **patch, "source_uri": "s3://bucket/" + "a" * 40}])
    assert "4×4 at 22, 7" in shown
    assert "max_patch_y" not in shown
    assert "…" + "a" * 30 in shown
