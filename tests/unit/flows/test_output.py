"""What leaves on stdout, for people and for other programs."""

from __future__ import annotations

import csv
import io

import pyarrow as pa
import pytest

from flows.output import csv_text


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "=HYPERLINK(1)"])
def test_no_text_is_a_formula_in_a_spreadsheet(text: str) -> None:
    table = pa.table({text: [text], "n": [-1.5], "l": [["=1"]], "plain": ["a=1"]})
    head, row = csv.reader(io.StringIO(csv_text(table), newline=""))
    assert head == [f"'{text}", "n", "l", "plain"]
    assert row == [f"'{text}", "-1.5", '["=1"]', "a=1"]
