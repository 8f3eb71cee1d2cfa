from __future__ import annotations

from pathlib import Path

import pytest

from jobs.engine import runner
from jobs.errors import InputError
from jobs.query.api import Lake
from jobs.query.image_pages import ImagePages
from tests.explored import HOSTILE, write_labelled
from tests.helpers import image_bytes, image_ids, write_files
from tests.inline import InlineStage

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """Two nights, in several shards."""
    folder = tmp_path_factory.mktemp("pages")
    made = Lake(str(folder / "lake"))
    write_labelled(folder / "source" / "a.parquet", range(250), hostile=[7])
    runner.run(InlineStage(made, folder / "source"))
    write_labelled(folder / "source" / "b.parquet", range(250, 310), hostile=[3])
    runner.run(InlineStage(made, folder / "source", night="2026-01-02"))
    return made


def leafed(pages: ImagePages, size: int) -> list[dict]:
    rows, number = [], 0
    while here := pages.page(number, size).to_pylist():
        assert len(here) <= size
        rows += here
        number += 1
    return rows


@pytest.mark.parametrize("size", [1, 7, 48, 1000])
def test_pages_have_every_image_once(lake: Lake, size: int) -> None:
    pages = ImagePages(lake, "d", night=None if size > 1 else "2026-01-02")
    rows = leafed(pages, size)
    ids = [row["image_id"] for row in rows]
    assert sorted(ids) == sorted(image_ids(range(310) if size > 1 else range(250, 310)))
    assert len(ids) == pages.count()


def test_a_page_is_the_same_again_and_in_another_process_eyes(lake: Lake) -> None:
    again = Lake(lake.uri)
    for number in (0, 3, 5):
        first = ImagePages(lake, "d").page(number, 50)
        assert first.equals(ImagePages(again, "d").page(number, 50))


@pytest.mark.parametrize("split", ["train", "validation", "calibration", "test"])
def test_filters_split_the_images_up(lake: Lake, split: str) -> None:
    whole = {row["image_id"]: row for row in leafed(ImagePages(lake, "d"), 100)}
    asked = ImagePages(lake, "d", split=split, night="2026-01-01")
    found = {row["image_id"] for row in leafed(asked, 9)}
    assert found == {
        i for i, row in whole.items() if (row["split"], row["night"]) == (split, "2026-01-01")
    }
    assert asked.count() == len(found)


def test_a_label_is_a_value_and_never_sql(lake: Lake) -> None:
    assert ImagePages(lake, "d", label=HOSTILE).count() == 2
    assert ImagePages(lake, "d", label="' OR 1=1 --").count() == 0
    assert HOSTILE in ImagePages(lake, "d").choices("label")
    assert ImagePages(lake, "d").choices("night") == ["2026-01-01", "2026-01-02"]


def test_beyond_the_last_page_there_is_nothing(lake: Lake) -> None:
    assert ImagePages(lake, "d").page(100, 50).num_rows == 0
    with pytest.raises(InputError, match="there is none"):
        ImagePages(lake, "d").page(-1, 50)


def test_images_without_labels_have_none_to_choose(tmp_path: Path) -> None:
    write_files(tmp_path / "source", {f"{n}.png": d for n, d in enumerate(image_bytes(range(5)))})
    made = Lake(str(tmp_path / "lake"))
    runner.run(InlineStage(made, tmp_path / "source"))
    pages = ImagePages(made, "d")
    assert pages.choices("label") == []
    assert pages.page(0, 10)["label"].to_pylist() == [None] * 5
    with pytest.raises(InputError, match="no column `label`"):
        ImagePages(made, "d", label="x").count()
