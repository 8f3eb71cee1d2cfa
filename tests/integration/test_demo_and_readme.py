"""The demo as a stranger runs it, then the commands of the README as written."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from tests.command_process import CommandProcess
from tests.helpers import LATENTLAKE, ROOT, Ran, ok, run_cli
from tests.limits import DEMO_S

pytestmark = pytest.mark.integration


def readme_blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ran]:
    """`latentlake demo` in an empty folder, with the default lake."""
    folder = tmp_path_factory.mktemp("demo")
    home = tmp_path_factory.mktemp("home")
    # The home folder must stay empty: nothing is written outside the lake and the temporary one.
    ran = ok(run_cli("demo", cwd=folder, env={"HOME": str(home)}, timeout_s=DEMO_S))
    assert list(home.iterdir()) == []
    return folder, ran


def test_the_demo_tells_its_story_and_measures_it(demo: tuple[Path, Ran]) -> None:
    folder, ran = demo
    assert "6,300 images of 9 kinds" in ran.err
    assert "3,000 images of 10 kinds" in ran.err
    assert re.search(r"2026-01-01  rows staged +6,300", ran.out)
    assert re.search(r"2026-01-02  rows staged +2,997", ran.out)
    assert re.search(r"2026-01-02  rows refused +3", ran.out)
    rates = dict(re.findall(r"^    (\w+) +(\d\.\d{3})$", ran.out, re.MULTILINE))
    assert {"recon_nll", "kl", "neg_elbo", "recon_mse", "latent_mahalanobis"} <= set(rates)
    assert float(rates["neg_elbo"]) > 0.8  # the tenth kind rises
    seen, unseen = re.search(r"seen kinds (\d\.\d+), bag (\d\.\d+)", ran.out).groups()  # type: ignore[union-attr]
    assert 0.4 < float(seen) < 0.6  # and the nine kinds are where calibration says
    assert float(unseen) < 0.2
    picture = Path(re.search(r"picture  (\S+\.png)", ran.out)[1])  # type: ignore[index]
    with Image.open(picture) as image:
        assert image.size[0] > 600
    assert {p.name for p in folder.iterdir()} == {"lake"}


def test_a_second_run_finds_nothing_to_do_and_measures_the_same(
    demo: tuple[Path, Ran], commands: CommandProcess
) -> None:
    folder, first = demo
    again = ok(commands.run("demo", "--json", cwd=folder))
    assert again.json["nothing_to_do"] is True
    shown = f"{again.json['auroc']['neg_elbo']:.3f}"
    assert f"neg_elbo               {shown}" in first.out
    plain = ok(commands.run("demo", cwd=folder))
    assert "Nothing to do" in plain.out


def test_the_commands_that_the_demo_suggests_work(
    demo: tuple[Path, Ran], commands: CommandProcess
) -> None:
    folder, ran = demo
    suggested = ran.out.split("Try next\n", 1)[1].strip().splitlines()
    assert len(suggested) == 3
    for line in suggested:
        name, *arguments = shlex.split(line)
        assert name == "latentlake"
        assert len(ok(commands.run(*arguments, cwd=folder)).out.splitlines()) >= 3


def test_the_first_command_of_the_readme_is_within_fifteen_lines() -> None:
    head = (ROOT / "README.md").read_text().splitlines()[:15]
    assert "make demo" in head
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = re.findall(r"`make (\w+)`", (ROOT / "README.md").read_text())
    assert set(named) <= set(targets)
    assert "demo" in targets


def test_the_readme_commands_run_as_written(
    demo: tuple[Path, Ran], commands: CommandProcess
) -> None:
    folder, _ = demo
    first, *others = readme_blocks("bash")
    assert first.strip() == "make demo"
    lines = [line for block in others for line in block.strip().splitlines()]
    assert lines.pop(0) == "source .venv/bin/activate"
    assert len(lines) >= 3
    for line in lines:
        name, *arguments = shlex.split(line)
        assert name == LATENTLAKE.name
        ok(commands.run(*arguments, cwd=folder))


def test_the_readme_python_runs_as_written(demo: tuple[Path, Ran]) -> None:
    import subprocess
    import sys

    folder, _ = demo
    (block,) = readme_blocks("python")
    done = subprocess.run(
        [sys.executable, "-c", block], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "neg_elbo" in done.stdout


def test_every_other_command_of_the_readme_parses(tmp_path: Path) -> None:
    """Those on the reader's own images: known options, and the YAML is a valid config."""
    import yaml

    from flows.cli.main import cli
    from flows.nightly.settings import NightlySettings
    from jobs.settings import build

    plain = re.findall(r"^latentlake (.*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(plain) >= 5
    import click

    for line in plain:
        words = shlex.split(line)
        target: click.Command = cli
        while isinstance(target, click.Group):
            target = target.commands[words.pop(0)]
        target.parse_args(click.Context(target), words)
    (block,) = readme_blocks("yaml")
    assert build(NightlySettings, yaml.safe_load(block)).train.workers == 2
