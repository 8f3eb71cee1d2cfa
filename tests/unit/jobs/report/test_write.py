"""A night's report: everything is there, in order, small, the same each time, and harmless."""

from __future__ import annotations

import dataclasses
import io
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import click
import numpy as np
import pytest
from PIL import Image

from flows.cli.main import cli
from jobs.embed.map import MapJob
from jobs.embed.settings import MapSettings
from jobs.engine import runner
from jobs.errors import InputError
from jobs.lake.paths import LakePaths
from jobs.lake.storage import local_path, read
from jobs.report.figures import library
from jobs.report.night import last_night
from jobs.report.write import MOST_BYTES, Report, report_uri, write_report
from tests import reported
from tests.helpers import image_bytes
from tests.inline import InlineEmbed, InlineStage, InlineTrain
from tests.limits import COMMAND_S
from tests.report_page import SECTIONS, Page, html_of, page_of

FIRST, SECOND = reported.NIGHTS


@dataclasses.dataclass(frozen=True)
class Written:
    """A night that drifted, its report, and the page: for tests that only read."""

    lake: LakePaths
    made: Report
    html: str
    page: Page


@pytest.fixture(scope="session")
def written(reported_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Written:
    folder = tmp_path_factory.mktemp("written") / "lake"
    shutil.copytree(reported_once / "lake", folder)
    lake = LakePaths(folder.as_uri())
    reported.judged(lake)
    made = write_report(lake, "d", "m", SECOND)
    html = html_of(made)
    return Written(lake, made, html, Page(html))


@pytest.fixture
def lake(nights: LakePaths) -> LakePaths:
    return nights


@pytest.fixture
def judged(lake: LakePaths) -> LakePaths:
    reported.judged(lake)
    return lake


def test_all_sections_are_there_in_order_and_none_says_that_it_is_missing(
    written: Written,
) -> None:
    made, page = written.made, written.page
    assert page.sections == SECTIONS
    charts = re.findall(r'data-chart="(\w+)"', html_of(made))
    assert charts == ["training", "rate", "map", "drift", "dimensions"]
    assert {told["id"] for told in page.all("div") if told.get("class") == "chart"} == {
        f"chart-{name}" for name in charts
    }
    for section in ("data", "reconstructions", "samples", "anomalies"):
        assert f'id="{section}"' in html_of(made)
    assert len(page.all("img")) > 100
    assert page.says("data", "truncated 3")
    assert page.says("evaluation", "better")
    assert page.says("evaluation", "intervals meet")
    assert page.says("lineage", "champion before")
    assert made.uri == report_uri(written.lake, "d", "m", SECOND)


def test_the_headline_tells_what_happened_whether_it_is_good_and_where_to_look(
    written: Written,
) -> None:
    made = written.made
    before, now = reported.versions(written.lake)
    happened, is_good, look_at = made.headline.sentences
    assert "147 new images arrived, 3 were refused and 147 were embedded" in happened
    assert f"m@{now} became champion" in happened
    assert "differ" in is_good
    assert "not valid" in is_good
    flagged = judged_anomalies(written.lake)
    assert f"{flagged} images flagged" in look_at
    assert made.headline.status == "alarm"
    assert before not in str(made.headline)
    for sentence in made.headline.sentences:
        assert written.page.says("", sentence)


def judged_anomalies(lake: LakePaths) -> int:
    from jobs.query.views import sql

    rows = sql(lake, f"SELECT count(*) AS n FROM anomalies WHERE night = '{SECOND}'")
    return rows["n"][0].as_py()


def test_after_drift_it_is_said_wherever_anomalies_are_shown(lake: LakePaths) -> None:
    quiet = page_of(write_report(lake, "d", "m", SECOND))
    assert not quiet.says("anomalies", "Calibration not valid")
    assert quiet.says("drift", "Drift was not tested on this night")
    reported.add_drift(lake, reported.versions(lake)[1], SECOND, 0.0005)
    page = page_of(write_report(lake, "d", "m", SECOND))
    assert page.says("anomalies", "Calibration not valid")
    assert page.texts["anomalies"].count("NOT VALID") == 12
    assert page.says("drift", "The p-values of the night's anomalies are not valid")


def test_evidence_of_an_anomaly_has_its_source_scores_and_a_framed_patch(written: Written) -> None:
    from jobs.report.night import look

    row = look(written.lake, "d", "m", SECOND).anomalies(1)[0]
    page = written.page
    assert page.says("anomalies", row["image_id"][:12])
    assert page.says("anomalies", f"{row['source_uri']}, row {row['source_row']}")
    assert page.says("anomalies", "q-value")
    assert page.says("anomalies", "latent dimensions")
    alts = [told["alt"] for told in page.all("img")]
    place = f"at row {row['max_patch_y']}, column {row['max_patch_x']}"
    assert any(row["image_id"][:12] in alt and place in alt for alt in alts)


def test_it_can_be_read_by_keyboard_and_screen_reader(written: Written) -> None:
    page = written.page
    assert page.all("html")[0]["lang"] == "en"
    tags = [tag for tag, _ in page.elements]
    for landmark in ("header", "nav", "main", "footer"):
        assert tags.count(landmark) == 1, landmark
    levels = [int(tag[1]) for tag in tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    ids = [told["id"] for _, told in page.elements if told.get("id")]
    assert len(ids) == len(set(ids))
    first = page.all("a")[0]
    assert first["class"] == "skip"
    assert {told["href"][1:] for told in page.all("a")} <= set(ids)
    assert all(told.get("alt") for told in page.all("img"))
    assert all(told.get("scope") in ("col", "row") for told in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table")) > 5
    assert not [k for _, told in page.elements for k in told if k.startswith("on")]
    # A chart has its words.
    for told in page.all("figure"):
        if told["class"] == "figure":
            assert told["aria-labelledby"] in ids


def test_nothing_is_fetched_and_only_its_own_scripts_may_run(written: Written) -> None:
    html, page = written.html, written.page
    for _, told in page.elements:
        for name in ("src", "href", "action", "srcset", "data"):
            assert told.get(name, "data:").startswith(("data:", "#")), told
    styles = re.findall(r"<style>(.*?)</style>", html, re.S)
    assert all(u.startswith("data:") for s in styles for u in re.findall(r"url\((.{0,20})", s))
    assert not any("@import" in style for style in styles)
    policy = next(t["content"] for t in page.all("meta") if "http-equiv" in t)
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy.split("script-src")[1].split(";")[0]
    assert len(re.findall(r"'sha256-[\w+/=]+'", policy)) == 2


def test_what_data_say_is_shown_and_never_run(lake: LakePaths) -> None:
    before, now = reported.versions(lake)
    reported.add_drift(lake, now, SECOND, None, note=f"few {reported.HOSTILE}")
    html = html_of(write_report(lake, "d", "m", SECOND))
    assert reported.HOSTILE not in html
    page = Page(html)
    assert page.says("data", reported.HOSTILE)  # a label
    assert page.says("anomalies", reported.HOSTILE)
    assert page.says("drift", f"few {reported.HOSTILE}")
    assert page.says("", reported.HOSTILE)  # the headline tells why drift was not tested
    # In the data of the charts no element can end or begin.
    for data in re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', html, re.S):
        assert not set("<>&") & set(data)
    assert before != now


def write_tar(path: Path, images: dict[int, bytes]) -> None:
    """The last of the images is cut short, and has a name to beware of."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, data in images.items():
            is_last = number == len(images) - 1
            name = "<script>alert(2)</script>" if is_last else f"{number:04d}"
            member = tarfile.TarInfo(f"{name}.png")
            body = data[: len(data) // 2] if is_last else data
            member.size = len(body)
            tar.addfile(member, io.BytesIO(body))


def test_a_file_name_that_is_a_script_is_shown(tmp_path: Path) -> None:
    lake = LakePaths((tmp_path / "lake").as_uri())
    write_tar(tmp_path / "source" / "a.tar", dict(enumerate(image_bytes(range(30)))))
    runner.run(InlineStage(lake, tmp_path / "source"))
    made = write_report(lake, "d", "m", FIRST)
    assert "<script>alert(2)" not in html_of(made)
    assert page_of(made).says("data", "<script>alert(2)</script>.png")


def test_the_same_lake_gives_the_same_bytes_in_another_process(written: Written) -> None:
    made = written.made
    again = write_report(written.lake, "d", "m", SECOND)
    assert read(again.uri).decode() == written.html
    assert again.pictures == made.pictures
    code = (
        "import sys; from jobs.lake.paths import LakePaths\n"
        "from jobs.report.write import write_report\n"
        f"write_report(LakePaths(sys.argv[1]), 'd', 'm', '{SECOND}')"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-c", code, written.lake.uri]
    subprocess.run(command, check=True, env=environment, timeout=COMMAND_S)
    assert read(made.uri).decode() == written.html


@pytest.mark.slow
def test_a_night_can_be_reported_again_after_later_ones(tmp_path: Path) -> None:
    lake = LakePaths((tmp_path / "lake").as_uri())
    reported.write_night(tmp_path / "source" / "1.parquet", range(400))
    runner.run(InlineStage(lake, tmp_path / "source", FIRST))
    runner.run(InlineTrain(lake, FIRST))
    runner.run(InlineEmbed(lake, FIRST, alpha=0.9))
    before = read(write_report(lake, "d", "m", FIRST).uri)
    reported.write_night(tmp_path / "source" / "2.parquet", range(400, 500), spoilt=20)
    runner.run(InlineStage(lake, tmp_path / "source", SECOND))
    runner.run(InlineTrain(lake, SECOND, epochs=1, promote=True))
    runner.run(InlineEmbed(lake, SECOND, alpha=0.9))
    now = reported.versions(lake)[1]
    reported.add_evaluation(lake, now, SECOND)
    reported.add_drift(lake, now, SECOND, 0.0001)
    assert read(write_report(lake, "d", "m", FIRST).uri) == before
    assert last_night(lake, "d", "m") == SECOND


def test_it_is_small_and_where_it_must_be_smaller_it_says_so(
    judged: LakePaths, written: Written
) -> None:
    assert len(library()) <= 1_500_000
    full = written.made
    assert full.bytes <= MOST_BYTES
    assert full.bytes == len(read(full.uri))
    assert full.notes == []
    less = write_report(judged, "d", "m", SECOND, most_bytes=full.bytes - 100_000)
    assert less.bytes <= full.bytes - 100_000
    page = page_of(less)
    assert page.sections == SECTIONS
    assert less.notes
    assert page.says("", less.notes[0])
    with pytest.raises(InputError, match="1,000,000 are allowed"):
        write_report(judged, "d", "m", SECOND, most_bytes=1_000_000)


def test_the_pictures_are_there_as_png(written: Written) -> None:
    pictures = written.made.pictures
    names = ["images", "reconstructions", "samples", "traversals", "anomalies"]
    assert list(pictures) == names
    for png in pictures.values():
        with Image.open(io.BytesIO(png)) as picture:
            assert picture.format == "PNG"
            assert min(picture.size) > 100


def parses(line: str) -> bool:
    words = shlex.split(line)
    assert words.pop(0) == "latentlake"
    target: click.Command = cli
    context = click.Context(cli, info_name="latentlake")
    while isinstance(target, click.Group):
        name = words.pop(0)
        target = target.commands[name]
        context = click.Context(target, parent=context, info_name=name)
    target.parse_args(context, words)
    return True


def test_the_commands_are_commands_and_answer(written: Written, staged: LakePaths) -> None:
    from click.testing import CliRunner

    from jobs.report.night import look
    from jobs.report.sections.lineage import commands_of

    for night in (
        look(written.lake, "d", "m", SECOND),
        look(written.lake, "d", "m", FIRST),
        look(staged, "d", "m", FIRST),
    ):
        lines = [line for _, line in commands_of(night)]
        assert len(lines) == 3
        for line in lines:
            assert parses(line)
            ran = CliRunner().invoke(cli, shlex.split(line)[1:])
            assert ran.exit_code == 0, (line, ran.output)


def test_mistakes_are_told_and_write_nothing(lake: LakePaths) -> None:
    with pytest.raises(InputError, match="unknown dataset 'x'"):
        write_report(lake, "x", "m", SECOND)
    with pytest.raises(InputError, match="unknown version or alias of model 'm': 'best'"):
        write_report(lake, "d", "m@best", SECOND)
    with pytest.raises(InputError, match="model name 'M/x' is not usable"):
        write_report(lake, "d", "M/x", SECOND)
    runs = Path(str(local_path(lake.uri))) / "runs"
    assert not list(runs.glob("night-*"))


def test_another_version_can_be_asked_for(judged: LakePaths) -> None:
    before, now = reported.versions(judged)
    assert page_of(write_report(judged, "d", f"m@{before}", FIRST)).says("training", f"m@{before}")
    assert page_of(write_report(judged, "d", "m@champion", SECOND)).says("training", f"m@{now}")


def test_the_newest_map_is_drawn_where_it_has_all_images(lake: LakePaths) -> None:
    assert page_of(write_report(lake, "d", "m", SECOND)).says("map", "largest variance (PCA)")
    runner.run(MapJob(lake, MapSettings(model="m", method="pca"), SECOND))
    assert page_of(write_report(lake, "d", "m", SECOND)).says("map", "latentlake map (pca)")


def test_training_curves_are_those_of_the_bundle(lake: LakePaths) -> None:
    from jobs.bundles.manifest import read_about

    history = read_about(lake, "m", reported.versions(lake)[1])["history"]
    page = page_of(write_report(lake, "d", "m", SECOND))
    assert len(history) == 2
    for row in history:
        assert np.isfinite(row["train_nats"])
        assert page.says("training", f"{row['validation_nats']:,.1f}".replace("-", "−"))
