"""Parts of `latentlake explore` without a server: what they say of what they are given."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pyarrow as pa
import pytest

from flows.explore.anomalies import Anomalies
from flows.explore.image_dialog import ImageDialog
from flows.explore.page import contents
from flows.explore.sql import Sql
from flows.explore.widgets import LONGEST, Notice
from jobs.query.nights import NightCounts

FAR = pa.table({"at": pa.array([2**62], pa.timestamp("s"))})  # no date of Python's


def sql_page(*answers: pa.Table) -> Sql:
    """Its questions are answered so, in turn."""
    left = list(answers)
    guarded = SimpleNamespace(ask=lambda *_: (left.pop(0), False))
    return Sql(cast(Any, SimpleNamespace(guarded=guarded)), cast(ImageDialog, None))


def test_no_old_table_stands_under_an_answer_that_cannot_be_shown() -> None:
    page = sql_page(pa.table({"n": [1]}), FAR)
    page.ask()
    assert page.table.rows == [["1"]]
    assert page.notice.text.startswith("1 row in ")
    page.ask()
    assert page.table.rows == []
    assert page.notice.kind == "error"
    assert page.notice.text


def test_rows_open_their_own_images_and_long_cells_are_cut() -> None:
    table = pa.table({"image_id": ["a", None, "c"], "text": ["x" * 9999, "", ""]})
    page = sql_page(table)
    page.ask()
    assert page.table.ids == ["a", "", "c"]
    assert page.table.rows[0][1] == "x" * LONGEST


def test_two_columns_of_a_name_are_an_answer() -> None:
    page = sql_page(pa.table([["a"], ["b"]], names=["image_id", "image_id"]))
    page.ask()
    assert page.notice.kind == "good"
    assert len(page.table.rows) == 1


def test_a_page_that_cannot_be_made_says_so() -> None:
    def broken() -> list[Any]:
        raise OSError("the disk is gone")

    (told,) = contents("Search", broken)
    assert isinstance(told, Notice)
    assert (told.kind, told.visible) == ("error", True)
    assert "the disk is gone" in told.text


@pytest.mark.parametrize(
    ("valid", "tested", "kind", "told"),
    [
        (True, True, "good", "Calibration valid: 2 of 900 images were flagged"),
        (True, False, "warning", "Drift was not tested: "),
        (False, True, "error", "CALIBRATION NOT VALID"),
    ],
)
def test_a_calibration_is_called_valid_only_where_drift_was_tested(
    valid: bool, tested: bool, kind: str, told: str
) -> None:
    page = SimpleNamespace(validity=Notice(), notice=Notice())
    why = "" if valid else "drift was found"
    night = NightCounts("2026-01-01", 900, 2, 0.004, valid, why, tested)
    Anomalies._say(cast(Anomalies, page), night, any_rows=True, flagged=True)
    assert page.validity.kind == kind
    assert page.validity.text.startswith(told)
    assert ("rate of 0.4%" in page.validity.text) == valid
