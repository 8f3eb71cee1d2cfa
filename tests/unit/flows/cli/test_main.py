from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest

from flows.cli.main import cli, main
from tests.helpers import run_cli, write_source

GOLDEN = Path(__file__).parents[3] / "golden" / "cli.json"


def surface(command: click.Command) -> dict[str, Any]:
    """Every option of every command: what scripts of users rely on."""
    found: dict[str, Any] = {
        "options": sorted("/".join(p.opts) for p in command.params),
        "required": sorted("/".join(p.opts) for p in command.params if p.required),
    }
    if isinstance(command, click.Group):
        found["commands"] = {name: surface(c) for name, c in sorted(command.commands.items())}
    return found


def commands(command: click.Command, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = [path]
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            found += commands(child, (*path, name))
    return found


def test_the_list_of_options_is_frozen() -> None:
    """A new option is added to the golden file; one that is there never leaves."""
    assert surface(cli) == json.loads(GOLDEN.read_text())


@pytest.mark.parametrize("path", commands(cli), ids=" ".join)
def test_every_help_page_shows_an_example_that_parses(path: tuple[str, ...]) -> None:
    command: click.Command = cli
    for name in path:
        assert isinstance(command, click.Group)
        command = command.commands[name]
    assert command.help is not None
    example = command.help.split("Example: latentlake ", 1)[1].strip()
    import shlex

    words = shlex.split(example)
    target: click.Command = cli
    context = click.Context(cli, info_name="latentlake")
    while isinstance(target, click.Group):
        name = words.pop(0)
        target = target.commands[name]
        context = click.Context(target, parent=context, info_name=name)
    target.parse_args(context, words)


@pytest.mark.parametrize("path", commands(cli), ids=" ".join)
def test_every_option_is_described(path: tuple[str, ...]) -> None:
    command: click.Command = cli
    for name in path:
        assert isinstance(command, click.Group)
        command = command.commands[name]
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name


def bad(*arguments: str, lake: Path, told: str) -> None:
    ran = run_cli(*arguments, "--lake", lake)
    assert ran.code == 2, ran.err
    assert told in ran.err, ran.err
    assert "Traceback" not in ran.err
    assert not ran.out


@pytest.mark.slow
def test_mistakes_end_with_2_and_a_sentence(tmp_path: Path) -> None:
    lake = tmp_path / "lake"
    stage = ("stage", "--dataset", "d", "--source")
    bad(*stage, str(tmp_path / "none"), lake=lake, told="does not exist")
    bad(*stage, "ftp://host/x", lake=lake, told="scheme 'ftp' is not supported; use file, s3")
    bad(*stage, str(tmp_path), "--size", "ten", lake=lake, told="--size 'ten'")
    bad(*stage, str(tmp_path), "--channels", "2", lake=lake, told="channels must be 1 or 3")
    bad(*stage, str(tmp_path), "--max-refused", "7x", lake=lake, told="write 5% or 0.05")
    bad(*stage, str(tmp_path), "--night", "soon", lake=lake, told="write YYYY-MM-DD")
    bad("stage", "--dataset", "A b", "--source", ".", lake=lake, told="use lower-case letters")
    bad("train", "--dataset", "d", "--model", "m", lake=lake, told="unknown dataset 'd'")
    bad("train", "--dataset", "d", lake=lake, told="--model")
    bad("embed", "--dataset", "d", "--model", "m", lake=lake, told="unknown dataset 'd'")
    bad("query", "anomalies", "--model", "m", lake=lake, told="unknown model 'm'")
    bad("query", "sql", "SELECT nothing FROM nowhere", lake=lake, told="nowhere")
    assert not lake.exists()


@pytest.mark.slow
def test_more_workers_than_cpus_are_refused_before_ray_starts(tmp_path: Path) -> None:
    write_source(tmp_path / "a.parquet", range(10))
    stage = ("stage", "--source", str(tmp_path / "a.parquet"), "--dataset", "d", "--workers")
    bad(*stage, "4096", lake=tmp_path / "lake", told="4096 workers requested")
    shown = run_cli(*stage, "4096", "--lake", tmp_path / "lake").err
    assert "free" in shown


def test_a_dry_run_shows_the_plan_and_writes_nothing(tmp_path: Path) -> None:
    write_source(tmp_path / "a.parquet", range(10))
    stage = ("stage", "--source", tmp_path / "a.parquet", "--dataset", "d", "--dry-run")
    ran = run_cli(*stage, "--json", "--lake", tmp_path / "lake")
    assert ran.code == 0, ran.err
    assert [unit["parts"][0]["stop"] for unit in ran.json["units"]] == [10]
    assert not (tmp_path / "lake").exists()


def test_a_lake_that_cannot_be_written_ends_with_2(tmp_path: Path) -> None:
    write_source(tmp_path / "a.parquet", range(10))
    (tmp_path / "file").write_text("in the way")
    stage = ("stage", "--source", str(tmp_path / "a.parquet"), "--dataset", "d")
    bad(*stage, lake=tmp_path / "file" / "lake", told="access denied")


def test_a_training_config_with_a_misspelt_key_names_it(tmp_path: Path) -> None:
    config = tmp_path / "train.yaml"
    config.write_text("dataset: d\nmodel: m\nnetwork: {kind: conv, wdths: [8]}\nepoch: 3\n")
    ran = run_cli("train", "--config", config, "--lake", tmp_path / "lake")
    assert ran.code == 2
    assert "epoch: unknown key; known: dataset, model, latent_dim" in ran.err
    assert "network.wdths: unknown key; known: kind, widths, hidden" in ran.err


def test_what_nobody_foresaw_is_a_sentence_and_its_traceback_a_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def broken(**_: Any) -> None:
        raise KeyError("height\x1b[31m")

    monkeypatch.setattr(cli, "main", broken)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    told = capsys.readouterr().err
    assert told.startswith("latentlake: unexpected KeyError: ")
    assert told.count("\n") == 1
    assert "\x1b" not in told
    file = Path(told.strip().rsplit(" ", 1)[-1])
    assert file.is_relative_to(tmp_path)
    assert file.stat().st_mode & 0o077 == 0
    assert "in broken" in file.read_text()
