"""What tells an anomaly: the columns that real sources have."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from jobs.evaluate.anomaly_column import AnomalyColumn, anomaly_column

NAN = float("nan")


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ([True, False, None], [1, 0, NAN]),
        ([0, 3, None, -1], [0, 1, NAN, 1]),
        ([0.0, 0.5, None, NAN], [0, 1, NAN, NAN]),
        (["true", "False", "YES", "no", "1", "0", " true ", None], [1, 0, 1, 0, 1, 0, 1, NAN]),
        (["good", "scratch", None], [NAN, NAN, NAN]),
    ],
)
def test_what_is_true_is_anomalous(values: list, told: list) -> None:
    found = AnomalyColumn("x").read(pa.chunked_array([pa.array(values)]))
    np.testing.assert_array_equal(found, told)


@pytest.mark.parametrize(
    ("values", "value", "told"),
    [
        (["good", "scratch", None], "scratch", [0, 1, NAN]),
        ([3, 9, None], "9", [0, 1, NAN]),
        ([3.0, 9.5], "9.5", [0, 1]),
        ([True, False], "false", [0, 1]),
    ],
)
def test_a_value_is_anomalous(values: list, value: str, told: list) -> None:
    found = AnomalyColumn("x", value).read(pa.chunked_array([pa.array(values)]))
    np.testing.assert_array_equal(found, told)


def test_columns_are_found_by_name_or_by_name_and_value() -> None:
    columns = ["kind", "odd=name", "is_anomaly"]
    assert anomaly_column("kind", columns) == AnomalyColumn("kind")
    assert anomaly_column("kind=a=b", columns) == AnomalyColumn("kind", "a=b")
    assert anomaly_column("odd=name", columns) == AnomalyColumn("odd=name")
    assert anomaly_column("none", columns) is None
    assert anomaly_column("none=1", columns) is None
    assert str(AnomalyColumn("kind", "a")) == "kind=a"
