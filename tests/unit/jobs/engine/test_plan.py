from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.engine.plan import Completion, Plan, Unit, slices, total_counts
from jobs.hashing import digest
from jobs.lake.documents import parsed
from jobs.sources.base import FileRange
from jobs.stage.plan import _grouped
from jobs.tables.data_file import Output


@given(st.integers(0, 10_000), st.integers(1, 700))
def test_slices_cover_every_row_once_and_are_even(rows: int, size: int) -> None:
    found = slices(rows, size)
    assert [row for start, stop in found for row in range(start, stop)] == list(range(rows))
    lengths = [stop - start for start, stop in found]
    assert all(0 < length <= size for length in lengths)
    assert not lengths or max(lengths) - min(lengths) <= 1


@given(st.lists(st.integers(0, 300), max_size=20), st.integers(1, 120))
def test_a_stage_plan_holds_every_row_of_every_file_once(rows: list[int], size: int) -> None:
    parts = [
        FileRange(f"file:///s/{i:03}.parquet", f"e{i}", count, "parquet", start, stop)
        for i, count in enumerate(rows)
        for start, stop in slices(count, size)
    ]
    units = list(_grouped(iter(parts), size, "f"))
    held = [FileRange.from_json(raw) for unit in units for raw in unit.inputs["parts"]]
    assert held == parts
    ranges = [[p["stop"] - p.get("start", 0) for p in unit.inputs["parts"]] for unit in units]
    filled = [sum(counts) for counts in ranges]
    assert all(0 < count <= size for count in filled)
    # No tiny units: two neighbours never fit into one, unless a file was cut between them.
    assert all(a + b > size // 2 for a, b in itertools.pairwise(filled))
    assert len({unit.unit_id for unit in units}) == len(units)


def plan(**changes) -> Plan:
    values = {
        "job": "stage",
        "target": "d",
        "fingerprint": "f",
        "night": "2026-01-01",
        "base": {"images": 3},
        "settings": {},
        "units": [Unit.of("f", {"a": 1}), Unit.of("f", {"a": 2})],
    }
    return Plan(**(values | changes))


def test_a_job_id_follows_the_work_and_not_the_moment() -> None:
    assert plan().job_id == plan(base={"images": 9}).job_id
    others = [
        plan(night="2026-01-02"),
        plan(target="e"),
        plan(fingerprint="g"),
        plan(units=[Unit.of("f", {"a": 1})]),
        plan(key=["s3://b/photos"]),
    ]
    assert len({plan().job_id, *(other.job_id for other in others)}) == 6
    assert Unit.of("f", {"a": 1, "b": 2}) == Unit.of("f", {"b": 2, "a": 1})
    assert Unit.of("f", {"a": 1}).unit_id != Unit.of("g", {"a": 1}).unit_id


def test_plans_and_completions_survive_json() -> None:
    assert parsed(Plan, plan().to_json(), "a plan", "") == plan()
    output = Output(table="images", path="a.parquet", size=3, rows=2, stats={"numRecords": 2})
    done = Completion(unit_id="u", attempt="a", outputs=[output], counts={"staged": 2}, seconds=0.5)
    assert parsed(Completion, done.to_json(), "a completion", "") == done
    assert done.outputs_of("images") == [output]
    assert done.outputs_of("sources") == []
    assert total_counts([done, done]) == {"staged": 4}


def test_a_digest_is_of_content() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert digest(1) != digest("1")
    assert len(digest("x", length=12)) == 12
    with pytest.raises(TypeError):
        digest(object())
