"""`latentlake query …`. Imports neither prefect nor ray nor torch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flows.cli.options import common
from jobs.control_characters import shown

if TYPE_CHECKING:
    from jobs.query.api import Lake

SHOWN = 200  # rows on a screen
GUARDED_ROWS, GUARDED_S = 100_000, 60.0
MAP_SHOWN = ("image_id", "dataset", "x", "y", "label", "p_value", "source_uri")
METRIC = click.option(
    "--metric",
    type=click.Choice(["cosine", "euclidean"]),
    default="cosine",
    show_default=True,
    help="Distance between embeddings.",
)
METHOD = click.option(
    "--method",
    type=click.Choice(["pca", "umap"]),
    default="pca",
    show_default=True,
    help="What lays out the plane; umap where it is installed.",
)
MODEL = click.option("--model", required=True, metavar="NAME[@VERSION|@ALIAS]", help="The bundle.")
TOP = click.option("--top", type=click.IntRange(1), default=20, show_default=True, help="Rows.")
DATASET = click.option("--dataset", metavar="NAME", help="Only images of that dataset.")
LABEL = click.option("--label", metavar="VALUE", help="Only images with that label.")


def outputs(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the ways in which rows may come out, and --lake."""
    for option in reversed(
        [
            click.option("--csv", "as_csv", is_flag=True, help="CSV on stdout."),
            click.option("--parquet", metavar="FILE", help="Write the rows there, too."),
            click.option("--grid", metavar="FILE.png", help="Draw the images found, too."),
        ]
    ):
        function = option(function)
    return common(function)


@click.group()
def query() -> None:
    """Ask the tables.

    Example: latentlake query anomalies --model photos --top 10
    """


@query.command("anomalies")
@MODEL
@click.option("--score", metavar="NAME", help="Score to rank by; the bundle's own if none.")
@TOP
@click.option("--night", metavar="DATE", help="Only images embedded on that night.")
@LABEL
@DATASET
@click.option("--flagged", is_flag=True, help="Only those flagged by their batch, with evidence.")
@outputs
def query_anomalies(lake: str, model: str, **options: Any) -> None:
    """List the most anomalous images, worst first.

    Example: latentlake query anomalies --model photos --score neg_elbo --top 10
    """
    arguments = {
        name: options[name] for name in ["score", "top", "night", "label", "dataset", "flagged"]
    }
    rows = _held(lake).embeddings(model).anomalies(**arguments)
    _emit_rows(rows, lake, options, note=_doubted(rows))


def _doubted(rows: Any) -> str:
    """Return what has to be said of p-values whose calibration does not hold; empty where all
    do."""
    pairs = zip(rows["calibration_valid"].to_pylist(), rows["p_value"].to_pylist(), strict=True)
    count = sum(valid is False and p_value is not None for valid, p_value in pairs)
    if not count:
        return ""
    return (
        f"\nthe p-values of {count} of these are not valid (calibration_valid): drift was "
        "found, or scores were computed otherwise than the calibration's; see latentlake drift"
    )


@query.command("neighbours")
@MODEL
@click.option("--image-id", metavar="ID", help="Of the image, or a unique beginning of it.")
@click.option("--image", metavar="FILE", help="An image file instead.")
@click.option("-k", type=click.IntRange(1), default=10, show_default=True, help="How many.")
@METRIC
@click.option(
    "--approximate/--exact",
    default=None,
    help="Ask the index of latentlake index, or do not; exact below a million images if none.",
)
@click.option("--night", metavar="DATE", help="Only images embedded on that night.")
@LABEL
@DATASET
@outputs
def query_neighbours(
    lake: str, model: str, image_id: str | None, image: str | None, **options: Any
) -> None:
    """List the images nearest to one by embedding.

    Example: latentlake query neighbours --model photos --image-id 3f7a09 -k 5
    """
    if (image_id is None) == (image is None):
        raise click.UsageError("give either --image-id or --image")
    arguments = {
        name: options[name] for name in ["k", "metric", "night", "label", "dataset", "approximate"]
    }
    of = Path(image) if image is not None else str(image_id)
    _emit_rows(_held(lake).embeddings(model).neighbours(of, **arguments), lake, options)


@query.command("duplicates")
@MODEL
@click.option(
    "--threshold",
    type=click.FloatRange(0),
    default=1e-3,
    show_default=True,
    help="Nearer than this.",
)
@METRIC
@TOP
@DATASET
@outputs
def query_duplicates(lake: str, model: str, **options: Any) -> None:
    """Pairs of images whose embeddings are almost the same, nearest first.

    Example: latentlake query duplicates --model photos --threshold 0.001
    """
    arguments = {name: options[name] for name in ["threshold", "metric", "top", "dataset"]}
    _emit_rows(_held(lake).embeddings(model).duplicates(**arguments), lake, options)


@query.command("outliers-of")
@MODEL
@click.option("--label", required=True, metavar="VALUE", help="The label.")
@TOP
@DATASET
@outputs
def query_outliers_of(lake: str, model: str, label: str, **options: Any) -> None:
    """Images that are least like the others of their label: wrong labels come up.

    Example: latentlake query outliers-of --model photos --label cat
    """
    found = _held(lake).embeddings(model)
    rows = found.outliers_of(label, top=options["top"], dataset=options["dataset"])
    _emit_rows(rows, lake, options)


@query.command("map")
@MODEL
@METHOD
@click.option("--images", is_flag=True, help="With the pictures, for a viewer; see --parquet.")
@click.option("--night", metavar="DATE", help="Only images embedded on that night.")
@LABEL
@DATASET
@outputs
def query_map(lake: str, model: str, **options: Any) -> None:
    """Every embedding as a point on a plane, with its scores; latentlake map makes the plane.

    Example: latentlake query map --model photos --images --parquet map.parquet
    """
    arguments = {name: options[name] for name in ["method", "images", "night", "label", "dataset"]}
    _emit_rows(_held(lake).embeddings(model).map(**arguments), lake, options, MAP_SHOWN)


@query.command("sql")
@click.argument("statement")
@click.option(
    "--guarded",
    is_flag=True,
    help=f"For a statement that somebody else wrote: one SELECT, of these tables alone, within "
    f"{GUARDED_S:.0f} s; as explore asks.",
)
@outputs
def query_sql(lake: str, statement: str, guarded: bool, **options: Any) -> None:
    """Run SQL (DuckDB) over images, sources, quarantine, embeddings, reconstructions, anomalies,
    batches, maps, evaluated, evaluations, drift, aliases, runs.

    It runs with your own rights: a statement may read and write any file that you may.

    Example: latentlake query sql "SELECT dataset, count(*) FROM images GROUP BY ALL"
    """
    opened = _held(lake)
    if guarded:
        from jobs.query.readonly_sql import GuardedViews

        rows, more = GuardedViews(opened).ask(statement, GUARDED_ROWS, GUARDED_S)
        note = f"\nthe first {GUARDED_ROWS:,} rows: --guarded gives no more" if more else ""
        _emit_rows(rows, lake, options, note=note)
        return
    _emit_rows(opened.sql(statement), lake, options)


def _held(lake: str) -> Lake:
    from jobs.query.api import Lake

    return Lake(lake)


def _emit_rows(
    table: Any,
    lake: str,
    options: dict[str, Any],
    columns: Sequence[str] | None = None,
    note: str = "",
) -> None:
    """columns: those that a screen has room for; all of them if None. note: below the rows."""
    from flows.output import csv_text, emit, records_text, to_records, write_parquet

    if options["parquet"]:
        write_parquet(table, options["parquet"])
    if options["grid"]:
        from jobs.query.grid import draw_grid

        draw_grid(_held(lake), table, options["grid"])
    if options["as_csv"]:
        text = csv_text(table)
        click.echo(shown(text) if sys.stdout.isatty() else text, nl=False)
        return
    if options["as_json"]:
        emit(to_records(table), True, "")
        return
    among = [name for name in columns or table.column_names if name in table.column_names]
    text = records_text(to_records(table.select(among).slice(0, SHOWN)))
    if len(table) > SHOWN:
        text += f"\n{SHOWN} of {len(table):,} rows; --csv, --json or --parquet FILE give all"
    emit(None, False, text + note)
