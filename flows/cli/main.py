"""The command line. Heavy imports happen inside the commands that need them."""

from __future__ import annotations

import datetime as dt
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any, get_args

import click

from flows.cli.drift import drift
from flows.cli.embed import drop, embed, embed_files, index_command, map_command
from flows.cli.evaluate import compare, evaluate
from flows.cli.explore import explore
from flows.cli.models import aliases, promote, rollback
from flows.cli.options import (
    common,
    drop_none,
    job_options,
    lake_of,
    night_of,
    parse_fraction,
    ray_settings,
    request_of,
    run_job,
)
from flows.cli.query import query
from flows.cli.report import report
from flows.cli.train import sweep, train
from flows.nightly.settings import load_nightly, tonight, valid_night
from flows.prefect_env import NO_SURPRISES
from flows.unexpected import unexpected
from jobs import garbage_collection
from jobs.control_characters import shown
from jobs.errors import InputError, LatentlakeError
from jobs.imaging.target import Fit
from jobs.lake.uri import without_keys
from jobs.maintain.settings import MaintainSettings
from jobs.settings import build
from jobs.sources.format_names import FormatName
from jobs.stage.settings import StageSettings
from vae_core.config import LikelihoodKind, NetworkKind

NETWORKS = get_args(NetworkKind)
LIKELIHOODS = get_args(LikelihoodKind)
FORMATS = get_args(FormatName)
FITS = get_args(Fit)


class _Shown(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return shown(without_keys(super().format(record)))


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="latentlake")
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
def cli(verbose: bool) -> None:
    """From a bucket of images to a queryable table of embeddings and anomaly scores.

    Example: latentlake demo
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Shown("%(asctime)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(handlers=[handler], force=True)
    logging.getLogger("latentlake").setLevel(logging.DEBUG if verbose else logging.INFO)


@cli.command()
@click.option("--source", required=True, metavar="URI", help="A file, a folder or a pattern.")
@click.option("--dataset", required=True, metavar="NAME", help="Table of staged images.")
@click.option("--format", type=click.Choice(FORMATS), help="Of the source; found out if none.")
@click.option("--image-column", metavar="NAME", help="Of Parquet, a.b if nested; found if none.")
@click.option("--array-shape", metavar="HxW[xC]", help="Of flat pixel columns.")
@click.option("--size", metavar="N|HxW", default="64", show_default=True, help="Staged size.")
@click.option("--channels", type=int, default=3, show_default=True, help="1 grey, 3 colour.")
@click.option("--fit", type=click.Choice(FITS), help="To the aspect; crop if none.")
@click.option("--background", metavar="RRGGBB", help="Behind transparency; white if none.")
@click.option("--max-pixels", type=int, metavar="N", help="Refuse larger images; 100 million.")
@click.option("--exact", is_flag=True, help="Decode JPEG at full size always; slower.")
@click.option("--rows-per-unit", type=int, metavar="N", help="Source rows a unit, and a shard.")
@click.option("--max-refused", metavar="SHARE", help="Fail above it: 5% (default) or 0.05.")
@click.option("--max-removed", metavar="SHARE", help="Fail above it: 10% (default) or 0.1.")
@job_options
def stage(
    size: str,
    array_shape: str | None,
    background: str | None,
    max_refused: str | None,
    max_removed: str | None,
    **options: Any,
) -> None:
    """Stage what is new in a source into a dataset; what has left the source leaves it.

    A source is Parquet with encoded images or pixels, a folder of image files, or WebDataset
    tars. Folders such as label=cat become columns.

    Example: latentlake stage --source s3://bucket/photos --dataset photos --size 64
    """
    height, width = _size(size)
    plain = "source dataset format image_column channels fit max_pixels exact rows_per_unit workers"
    settings = build(
        StageSettings,
        drop_none(
            **{name: options[name] for name in plain.split()},
            height=height,
            width=width,
            array_shape=_array_shape(array_shape) if array_shape else None,
            background=_colour(background) if background else None,
            max_refused=parse_fraction("--max-refused", max_refused) if max_refused else None,
            max_removed=parse_fraction("--max-removed", max_removed) if max_removed else None,
        ),
    )
    run_job(request_of(settings, options), options)


def _size(text: str) -> tuple[int, int]:
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdigit() for part in parts):
        raise InputError(f"--size {text!r}: write one number, or HEIGHTxWIDTH")
    return int(parts[0]), int(parts[-1])


def _array_shape(text: str) -> list[int]:
    parts = text.lower().split("x")
    if len(parts) not in (2, 3) or not all(part.isdigit() for part in parts):
        raise InputError(f"--array-shape {text!r}: write HxW, HxWxC or CxHxW, such as 32x32x3")
    return [int(part) for part in parts]


def _colour(text: str) -> list[int]:
    try:
        return list(bytes.fromhex(text.removeprefix("#")))
    except ValueError as error:
        raise InputError(f"--background {text!r}: write RRGGBB, such as ffffff") from error


for _command in (
    embed,
    drop,
    map_command,
    index_command,
    embed_files,
    query,
    train,
    sweep,
    promote,
    rollback,
    aliases,
    evaluate,
    compare,
    drift,
    report,
    explore,
):
    cli.add_command(_command)


@cli.command()
@click.option("--dataset", metavar="NAME", help="Only this dataset.")
@click.option("--model", metavar="NAME", help="Only this model.")
@click.option("--compact/--no-compact", default=True, help="Merge small shards; on by default.")
@click.option("--vacuum/--no-vacuum", default=True, help="Remove unneeded files; on by default.")
@click.option("--keep-days", type=float, metavar="N", help="Keep snapshots this young; 7 if none.")
@job_options
def maintain(
    dataset: str | None, model: str | None, compact: bool, vacuum: bool, **options: Any
) -> None:
    """Merge small shards and remove files that nothing needs any more.

    A snapshot that a bundle was trained on, that an unfinished job reads, or that was the newest
    within the last days is never touched.

    Example: latentlake maintain --keep-days 7
    """
    values = drop_none(dataset=dataset, model=model, compact=compact, vacuum=vacuum)
    values |= drop_none(keep_days=options["keep_days"], workers=options["workers"])
    settings = build(MaintainSettings, values)
    from flows.output import emit
    from jobs.dispatch.run import run
    from jobs.maintain.run import maintain as run_maintain
    from jobs.maintain.run import maintained_text

    if options["dry_run"]:
        lake, night = lake_of(options["lake"]), night_of(options)
        done = run_maintain(lake, settings, night, ray_settings(options), dry_run=True)
    else:
        done = run(request_of(settings, options))
    emit(done, options["as_json"], maintained_text(done))


@cli.command()
@click.option("--dataset", required=True, metavar="NAME", help="Dataset to describe.")
@click.option("--images-version", type=int, metavar="V", help="Snapshot; the newest if none.")
@common
def describe(dataset: str, images_version: int | None, lake: str, as_json: bool) -> None:
    """Describe a dataset: counts, sizes, modes, pixel statistics, labels, refusals, a picture.

    Example: latentlake describe --dataset photos
    """
    from flows.output import emit
    from jobs.datasets.card import card_text, card_uri, dataset_card

    opened = lake_of(lake)
    card = dataset_card(opened, dataset, images_version)
    picture = card_uri(opened, dataset, card["images_version"], "png") if card["images"] else None
    shown = f"\n  picture: {picture}" if picture else ""
    emit({**card, "picture": picture}, as_json, card_text(card) + shown)


@cli.command("list")
@common
def list_(lake: str, as_json: bool) -> None:
    """Datasets, models with their versions and aliases, and the last runs.

    Example: latentlake list
    """
    from flows.inventory import inventory, inventory_text
    from flows.output import emit

    found = inventory(lake_of(lake))
    emit(found, as_json, inventory_text(found))


@cli.command()
@click.option("--config", required=True, metavar="FILE", help="YAML of the nightly settings.")
@click.option("--night", metavar="DATE", help="Logical night, YYYY-MM-DD; today if none.")
@click.option("--retrain", is_flag=True, help="Train a new champion, whatever the config's rule.")
@click.option("--lake", envvar="LATENTLAKE_LAKE", metavar="URI", help="Overrides the config's.")
@click.option("--json", "as_json", is_flag=True, help="One JSON result on stdout.")
def nightly(config: str, night: str | None, retrain: bool, lake: str | None, as_json: bool) -> None:
    """Run the whole flow, as Prefect runs it: stage, train where it is time to, embed.

    Example: latentlake nightly --config nightly.yaml --night 2026-11-21
    """
    load_nightly(config)  # its mistakes are reported before Prefect starts
    on = dt.date.fromisoformat(valid_night(night or tonight()))
    from flows import temporary_server

    temporary_server.begin()
    from flows.nightly import flow
    from flows.output import emit, report_text
    from flows.serve.automations import tagged

    temporary_server.wait()
    with tagged():
        reports = flow.nightly(config, on, retrain, lake)
    emit(
        [report.to_dict() for report in reports],
        as_json,
        "\n".join(report_text(report) for report in reports),
    )


@cli.command()
@click.argument("configs", nargs=-1, metavar="CONFIG...")
@click.option("--port", type=int, default=4200, show_default=True, help="Of the UI, on loopback.")
@click.option("--home", metavar="FOLDER", help="Of the server's database; a temporary one if none.")
@click.option(
    "--runs-at-once", type=click.IntRange(1), default=2, show_default=True, help="Flow runs."
)
@click.option(
    "--show-login",
    is_flag=True,
    help="Print what the page asks for, which commands need in PREFECT_API_AUTH_STRING; no server.",
)
def serve(
    configs: tuple[str, ...], port: int, home: str | None, runs_at_once: int, show_login: bool
) -> None:
    """Start a Prefect server with its UI, a worker and the deployments of nightly configs, here.

    Example: latentlake serve nightly.yaml
    """
    from flows.login import login_of
    from flows.prefect_env import private_folder
    from flows.serve.serve import serve as run_server

    folder = Path(home) if home else private_folder() / "serve"
    if show_login:
        click.echo(login_of(folder.absolute()))
        return
    if not configs:
        raise click.UsageError("Missing argument 'CONFIG...'.")
    run_server(configs, port, folder.absolute(), runs_at_once)


@cli.command()
@common
def demo(lake: str, as_json: bool) -> None:
    """Two nights on the sample that ships with the project: nine kinds of clothing, then a tenth.

    Example: latentlake demo
    """
    from flows import temporary_server

    temporary_server.begin()
    from flows.demo import run_demo
    from flows.output import emit

    temporary_server.wait()
    numbers = run_demo(lake)
    emit(numbers.result, as_json, numbers.text)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """Entry point: exit code 0, 1 failed, 2 bad usage or bad input."""
    os.environ |= NO_SURPRISES
    garbage_collection.seldom()
    if threading.current_thread() is threading.main_thread():
        # As Ctrl-C. Ray would take it for itself, but for a listener (jobs.cluster.connect).
        signal.signal(signal.SIGTERM, _interrupt)
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        click.echo("stopped", err=True)
        sys.exit(1)
    except click.ClickException as error:
        error.message = shown(without_keys(error.message))  # pyright: ignore[reportAttributeAccessIssue]
        error.show()
        sys.exit(error.exit_code)
    except LatentlakeError as error:
        click.echo(f"latentlake: {shown(without_keys(str(error)))}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader of our output has left; so do we, without a second complaint at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:  # noqa: BLE001 - whatever it is, an operator reads a sentence
        click.echo(f"latentlake: {shown(without_keys(unexpected(error)))}", err=True)
        sys.exit(1)
