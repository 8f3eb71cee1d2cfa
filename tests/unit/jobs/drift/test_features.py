"""The numbers that drift looks at beside embeddings."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from jobs.drift.features import VALUES, pixel_columns, score_columns, source_columns


def columns_of(images_NHWC: np.ndarray) -> dict[str, np.ndarray]:
    size = int(np.prod(images_NHWC.shape[1:]))
    data = pa.array([image.tobytes() for image in images_NHWC], pa.binary(size))
    return pixel_columns(pa.chunked_array([data]), images_NHWC.shape[1:])


def test_pixels_against_each_image_by_itself() -> None:
    images = np.random.default_rng(1).integers(0, 256, (600, 6, 5, 3)).astype(np.uint8)
    found = columns_of(images)
    for n in (0, 300, 599):
        x = images[n] / 255.0
        grey = x.mean(axis=2)
        assert found["brightness"][n] == pytest.approx(x.mean(), abs=1e-6)
        assert found["contrast"][n] == pytest.approx(x.std(), abs=1e-6)
        assert found["blue"][n] == pytest.approx(x[:, :, 2].mean(), abs=1e-6)
        assert found["bright"][n] == (images[n] >= 247).mean()
        across = [abs(grey[i, j + 1] - grey[i, j]) for i in range(6) for j in range(4)]
        assert found["roughness_across"][n] == pytest.approx(np.mean(across), abs=1e-6)
        down = [abs(grey[i + 1, j] - grey[i, j]) for i in range(5) for j in range(5)]
        assert found["roughness_down"][n] == pytest.approx(np.mean(down), abs=1e-6)


def test_a_dead_column_is_a_line_and_a_dead_row_another() -> None:
    images = np.full((2, 8, 8, 1), 100, np.uint8)
    images[0, :, 3] = 0
    images[1, 5] = 0
    found = columns_of(images)
    np.testing.assert_allclose(found["column_line"], [100 / 255, 0], atol=1e-6)
    np.testing.assert_allclose(found["row_line"], [0, 100 / 255], atol=1e-6)


def test_the_smallest_images_have_numbers_too() -> None:
    found = columns_of(np.full((3, 1, 1, 1), 7, np.uint8))
    assert set(found) == {"brightness", "contrast", "dark", "bright"}


def test_scores_that_not_every_image_has_are_left_out_and_told() -> None:
    notes: list[str] = []
    both = pa.table(
        {
            "recon_nll": [1.0, float("inf"), 3.0],
            "kl": [1.0, None, 2.0],
            "neg_elbo": pa.nulls(3, pa.float64()),
        }
    )
    found = score_columns(both, notes)
    assert list(found) == ["recon_nll"]
    assert found["recon_nll"].tolist() == [1.0, 3.0, 3.0]
    assert notes == ["kl: left out, since not every image has them"]
    notes = []
    assert score_columns(both.select(["neg_elbo"]), notes) == {}
    assert "without scores" in notes[0]


def source(**columns) -> pa.Table:
    held = {"source_width": [1, 2, None, 4], "source_height": [5, 6, 7, 8]}
    return pa.table(held | {"source_mode": ["L", "L", "RGB", "L"]} | columns)


def test_names_become_ones_and_zeros() -> None:
    notes: list[str] = []
    found = source_columns(source(label=[3, 3, 5, None]), 2, notes)
    assert found["source_width"].tolist() == [1, 2, 0, 4]
    assert found["source_mode=RGB"].tolist() == [0, 0, 1, 0]
    assert found["label=3"].tolist() == [1, 1, 0, 0]
    assert found["label=None"].tolist() == [0, 0, 0, 1]
    assert notes == []


def test_labels_of_one_side_alone_are_no_drift() -> None:
    notes: list[str] = []
    found = source_columns(source(label=["a", "b", None, None]), 2, notes)
    assert not any(name.startswith("label") for name in found)
    assert notes == ["label: left out, since one side alone has it"]
    assert (
        source_columns(source(label=[0.1, 0.2, 0.3, 0.4]), 2, []).keys()
        == source_columns(source(), 2, []).keys()
    )


def test_rare_names_are_one_more() -> None:
    names = [f"n{i:03d}" for i in range(VALUES + 5)] + ["n000"]
    held = {"source_width": [1] * len(names), "source_height": [1] * len(names)}
    both = pa.table(held | {"source_mode": names})
    found = source_columns(both, 3, [])
    shown = [name for name in found if name.startswith("source_mode")]
    assert len(shown) == VALUES + 1
    assert found["source_mode: another"].sum() == 5
    np.testing.assert_array_equal(np.sum([found[name] for name in shown], axis=0), 1.0)
