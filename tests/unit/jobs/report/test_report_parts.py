"""Parts of a report by themselves: numbers, pictures, the plane, figures, the page's escaping."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
import re
from collections import Counter
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.decomposition import PCA

from jobs.control_characters import CONTROLS
from jobs.evaluate.compare import Difference
from jobs.lake.paths import LakePaths
from jobs.report.blocks import Chart, Limits, Rows, Say, Section, number, p_text, percent
from jobs.report.data_uris import (
    FRAME_WIDTH,
    OUTLINE,
    beside,
    cell,
    data_uri,
    heat,
    outlined,
    smaller,
)
from jobs.report.figures import Line, bars_figure, embedded, lines_figure, p_values_figure
from jobs.report.headline import Headline, headline_of
from jobs.report.html import in_script, render
from jobs.report.night import ReportNight
from jobs.report.sections.evaluation import _difference, _paired
from jobs.report.sections.latent_map import pca_plane

ATTACK = "</script><script>alert(1)</script><!--\u2028&"


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (1234567, "1,234,567"),
        (-12.3456, "−12.35"),
        (1234.56, "1,234.6"),
        (123456.7, "123,457"),
        (0.000123456, "0.0001235"),
        ("text", "text"),
    ],
)
def test_numbers_have_few_digits_and_a_minus(value: Any, told: str) -> None:
    assert number(value) == told


def test_p_values_are_never_told_to_be_zero() -> None:
    assert p_text(0.0) == "p < 0.0001"
    assert p_text(0.04) == "p = 0.04"
    assert p_text(None) == "no p-value"


def test_shares_below_a_hundredth_are_not_told_to_be_zero() -> None:
    told = [percent(share) for share in (0.004, 0.05, 0.1, 0.999, 1.0)]
    assert told == ["0.4%", "5%", "10%", "99.9%", "100%"]


def test_limits_leave_one_of_what_there_is_and_none_at_nothing() -> None:
    assert Limits().of(12) == 12
    assert Limits(0.1).of(12) == 2
    assert Limits(0.0).of(2000) == 0


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_the_plane_is_that_of_scikit_learn(dim: int) -> None:
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(300, dim)) * np.arange(dim, 0, -1) + 100.0
    found = pca_plane(vectors.astype(np.float32))
    expected = PCA(min(2, dim)).fit_transform(vectors)
    signs = np.sign((found[:, : expected.shape[1]] * expected).sum(0))
    np.testing.assert_allclose(found[:, : expected.shape[1]] * signs, expected, atol=1e-2)
    assert dim > 1 or not found[:, 1].any()


@pytest.mark.parametrize(("y", "x"), [(0, 0), (3, 5), (6, 6)])
def test_the_frame_is_around_the_patch_and_hides_none_of_it(y: int, x: int) -> None:
    image = np.random.default_rng(0).integers(0, 50, (10, 10, 3), np.uint8)
    times, side, edge = 3, 4, FRAME_WIDTH
    shown = outlined(image, y, x, side, times)
    big = image.repeat(times, 0).repeat(times, 1)
    assert shown.shape == (30 + 2 * edge, 30 + 2 * edge, 3)
    rows = slice(edge + y * times, edge + (y + side) * times)
    columns = slice(edge + x * times, edge + (x + side) * times)
    inside = big[y * times : (y + side) * times, x * times : (x + side) * times]
    assert np.array_equal(shown[rows, columns], inside)
    framed = np.all(shown == OUTLINE, axis=2)
    assert framed.sum() == (side * times + 2 * edge) ** 2 - (side * times) ** 2
    assert framed[rows.start - 1, columns.start - 1]


def test_errors_grow_from_black_to_bright_and_stop_at_the_top() -> None:
    colours = heat(np.array([[0.0, 0.25, 0.5, 1.0, 9.0]]), 1.0).astype(int).sum(2)[0]
    assert colours[0] < 10
    assert list(colours) == sorted(colours)
    assert colours[3] == colours[4]
    assert np.isfinite(heat(np.zeros((2, 2)), 0.0)).all()


def test_small_images_keep_their_pixels_and_large_ones_get_smaller() -> None:
    generator = np.random.default_rng(0)
    small = generator.integers(0, 255, (28, 28, 1), np.uint8)
    assert smaller(small, 96) is small
    shown = cell(small, "a", 56)
    data = base64.b64decode(shown.uri.partition(",")[2])
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), small[:, :, 0])
    large = generator.integers(0, 255, (300, 150, 3), np.uint8)
    assert smaller(large, 96).shape == (96, 48, 3)
    assert len(cell(large, "a", 56).uri) < len(data_uri(large, lossy=False)) / 5


def test_between_pictures_there_is_nothing() -> None:
    whole = beside([np.full((4, 4, 1), 9, np.uint8), np.full((2, 3, 3), 7, np.uint8)], gap=2)
    assert whole.shape == (4, 9, 4)
    assert not whole[:, 4:6, 3].any()
    assert whole[1:3, 6:, 3].all()
    assert not whole[0, 6:, 3].any()


def a_figure() -> Any:
    return lines_figure("epoch", "nats", [Line("train", [1, 2], [3.0, 2.0])], 2)


def test_the_same_figure_is_the_same_text_however_many_came_before() -> None:
    first = embedded("a", a_figure())
    for _ in range(3):
        bars_figure("x", "y", ["1"], [2.0])
    assert embedded("a", a_figure()) == first
    item = json.loads(first)
    assert item["target_id"] == "chart-a"
    assert item["root_id"] == item["doc"]["roots"][0]["id"]
    # What is referred to has come before.
    seen: set[str] = set()
    for found in re.finditer(r'"type":"object","name":"[^"]*","id":"(o\d+)"|"id":"(o\d+)"', first):
        made, referred = found.groups()
        seen |= {made} if made else set()
        assert made or referred in seen


def test_a_night_below_its_level_is_marked_otherwise() -> None:
    text = embedded("a", p_values_figure(["1", "2"], [0.5, 0.001], [0.01, 0.01]))
    assert '"circle","diamond"' in text


def test_data_in_a_script_cannot_end_it_and_come_back_as_they_were() -> None:
    text = in_script(json.dumps({"name": ATTACK}, ensure_ascii=False))
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"name": ATTACK}


def page_with(*sections: Section) -> str:
    headline = Headline("good", ATTACK, ATTACK, ATTACK)
    return render(ATTACK, headline, sections, [ATTACK])


def test_a_page_has_no_control_characters_of_the_data() -> None:
    evil = "red\x1b[31m\x9b\u202egnp.exe"
    rows = Rows(evil, (evil, evil), [(evil, evil)])
    section = Section("s", evil, [Say(evil), rows])
    html = render(evil, Headline("good", evil, evil, evil), [section], [evil])
    assert html.count("red") > 5
    assert not CONTROLS.findall(html)


def test_every_value_of_every_block_is_escaped() -> None:
    figure = lines_figure(ATTACK, ATTACK, [Line(ATTACK, [1], [1.0])])
    chart = Chart("c", ATTACK, ATTACK, figure)
    rows = Rows(ATTACK, (ATTACK, ATTACK), [(ATTACK, ATTACK)])
    html = page_with(Section("s", ATTACK, [Say(ATTACK), rows, chart]))
    assert "<script>alert" not in html
    assert html.count("alert(1)") > 10


def test_the_policy_names_the_scripts_that_are_there() -> None:
    html = page_with(Section("s", "S", [Chart("c", "C", "told", a_figure())]))
    scripts = re.findall(r"<script>(.*?)</script>", html, re.S)
    named = set(re.findall(r"&#39;sha256-([\w+/=]+)&#39;", html))
    hashes = {base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts}
    assert len(scripts) == 2
    assert hashes == named
    assert "<script>" not in page_with(Section("s", "S", [Say("no chart")]))


@pytest.mark.parametrize(
    ("ours", "theirs", "better", "told"),
    [
        ((1.0, 2.0), (3.0, 4.0), "higher", "worse"),
        ((1.0, 2.0), (3.0, 4.0), "lower", "better"),
        ((5.0, 6.0), (3.0, 4.0), "higher", "better"),
        ((1.0, 3.5), (3.0, 4.0), "lower", "intervals meet"),
        ((1.0, 2.0), (3.0, 4.0), "none", ""),
        ((None, None), (3.0, 4.0), "lower", ""),
    ],
)
def test_better_is_said_only_where_intervals_are_apart(ours, theirs, better, told) -> None:
    same = {"better": better, "images_version": 1}
    row, before = ({"low": low, "high": high, **same} for low, high in (ours, theirs))
    assert _difference(row, before) == told
    assert _difference(row, before | {"images_version": 2}) == ""
    assert _difference(row, None) == ""


@pytest.mark.parametrize(
    ("ends", "better", "told"),
    [
        ((0.5, 1.5), "higher", "1 [0.5 to 1.5], better"),
        ((0.5, 1.5), "lower", "1 [0.5 to 1.5], worse"),
        ((-1.5, -0.5), "lower", "1 [-1.5 to -0.5], better"),
        ((-0.5, 1.5), "lower", "1 [-0.5 to 1.5]"),
        ((0.5, 1.5), "none", "1 [0.5 to 1.5]"),
        ((None, None), "higher", "1"),
    ],
)
def test_pairs_are_better_or_worse_where_zero_is_outside(ends, better, told) -> None:
    pair = Difference("neg_elbo", None, 2.0, 3.0, 1.0, *ends, "nats", better, 80, None)
    assert _paired(pair).replace("−", "-") == told
    doubtful = _paired(dataclasses.replace(pair, note="few images"))
    assert "better" not in doubtful
    assert "worse" not in doubtful


def a_verdict(drifted: bool | None = False, **more: Any) -> dict[str, Any]:
    told = {"test": "combined", "drifted": drifted, "p_value": 0.4, "note": None, "sequence": 1}
    where = {"night": "2026-01-01", "model_version": "v", "job_id": "j", "embed_jobs": ["e"]}
    return {**told, **where, **more}


def a_night(**more: Any) -> ReportNight:
    """One of which a headline is made: three images came, all is well. more: what was read."""
    stage = Counter({"staged": 3, "rows_in": 3})
    jobs = {"stage": stage, "embed": Counter({"embedded": 3})} | more.pop("counts", {})
    batch = {"tested": 3, "flagged": 0, "alpha": 0.05, "fewest_flaggable": 1}
    batch |= {"calibration_valid": more.pop("batch_valid", True), "job_id": "e"}
    held = {
        "runs": [{"job": "stage", "counts": {}}],
        "moves": [],
        "_drift": [a_verdict()],
        "batches": [batch],
        "flagged": 0,
        "counts": lambda job: jobs.get(job, Counter()),
        "ran": lambda job: job in jobs,
    }
    version, no_model = more.pop("version", "v"), more.pop("no_model", "")
    found = ReportNight(LakePaths("memory://"), "d", "m", version, no_model, "2026-01-01")
    found.__dict__.update(held | more)
    return found


def moved(night: str, version: str) -> dict[str, Any]:
    return {"night": night, "version": version, "reason": "it gained"}


def test_a_headline_of_a_good_night() -> None:
    found = headline_of(a_night())
    assert found.status == "good"
    assert found.sentences == [
        "3 new images arrived and 3 were embedded.",
        "No drift was found (p = 0.4): nothing speaks against the p-values.",
        "None of 3 scored images was flagged as an anomaly.",
    ]


@pytest.mark.parametrize(
    ("more", "status", "told"),
    [
        ({"_drift": [a_verdict(True)]}, "alarm", "not valid tonight"),
        ({"_drift": [a_verdict(True), a_verdict(sequence=2)]}, "alarm", "not valid tonight"),
        ({"batch_valid": False}, "alarm", "in different ways"),
        (
            {
                "batch_valid": False,
                "_drift": [a_verdict(None), a_verdict(True, night="2026-01-02", sequence=2)],
            },
            "alarm",
            "drift was found later, on 2026-01-02",
        ),
        (
            {
                "moves": [moved("2025-12-01", "old"), moved("2026-01-01", "v")],
                "_drift": [a_verdict(True, model_version="old")],
            },
            "alarm",
            "differ from those of m@old, the champion before (p = 0.4); m@v was trained with them.",
        ),
        (
            {
                "moves": [moved("2025-12-01", "old"), moved("2025-12-02", "v")],
                "_drift": [a_verdict(True, model_version="old")],
            },
            "look",
            "drift was not tested",
        ),
        ({"_drift": []}, "look", "Drift was not tested"),
        (
            {"flagged": 1},
            "look",
            "image flagged as anomalies among 3 scored, at a false-discovery rate of 5%.",
        ),
        (
            {"flagged": 2, "batch_valid": False},
            "alarm",
            "among 3 scored; their p-values are not valid, so no rate of false alarms is kept.",
        ),
        ({"counts": {"stage": Counter(staged=90, refused=9, rows_in=99)}}, "alarm", "9 were"),
        ({"counts": {"stage": Counter(staged=98, refused=1, rows_in=99)}}, "look", "1 was refused"),
        ({"counts": {"stage": Counter(), "embed": Counter()}}, "quiet", "no new image"),
        ({"runs": [], "batches": []}, "quiet", "No job of d or m finished"),
        ({"batches": []}, "good", "No image was scored"),
        ({"version": None, "no_model": "No champion.", "batches": []}, "good", "No champion."),
        (
            {"moves": [moved("2026-01-01", "w")]},
            "good",
            "m@w became champion: it gained.",
        ),
        (
            {"runs": [{"job": "promote", "counts": {"version": "w", "why": "m@w failed"}}]},
            "look",
            " m@w failed.",
        ),
        (
            {
                "runs": [
                    {
                        "job": "promote",
                        "counts": {"version": "w", "why": "it passed"}
                        | {"promoted": True, "alias": "staging"},
                    }
                ]
            },
            "good",
            "m@w was given the alias staging: it passed.",
        ),
        (
            {"runs": [{"job": "train", "counts": {"version": "w"}}]},
            "good",
            "m@w was trained, and is not the champion.",
        ),
    ],
)
def test_a_headline_by_rule(more: dict[str, Any], status: str, told: str) -> None:
    found = headline_of(a_night(**more))
    assert found.status == status
    assert told.lower() in str(found).lower()
    assert all(sentence.endswith(".") for sentence in found.sentences)


def test_other_libraries_models_are_not_embedded() -> None:
    first = embedded("a", a_figure())
    assert '"defs"' not in first
    import panel  # noqa: F401  its models are known to the whole process

    assert embedded("a", a_figure()) == first
