"""`latentlake query …`. Imports neither prefect nor ray nor torch."""

from __future__ import annotations

from typing import Any

import click

from flows.options import common, lake_of


@click.group()
def query() -> None:
    """Ask the tables.

    Example: latentlake query anomalies --model photos --top 10
    """


@query.command("anomalies")
@click.option("--model", required=True, metavar="NAME[@VERSION|@ALIAS]", help="The bundle.")
@click.option("--score", metavar="NAME", help="Score to rank by; the bundle's own if none.")
@click.option("--top", type=click.IntRange(1), default=20, show_default=True, help="Rows.")
@click.option("--night", metavar="DATE", help="Only images embedded on that night.")
@click.option("--dataset", metavar="NAME", help="Only images of that dataset.")
@common
def query_anomalies(
    lake: str,
    as_json: bool,
    model: str,
    score: str | None,
    top: int,
    night: str | None,
    dataset: str | None,
) -> None:
    """The most anomalous images, worst first.

    Example: latentlake query anomalies --model photos --score neg_elbo --top 10
    """
    from jobs import query as queries

    _emit_rows(
        queries.anomalies(lake_of(lake), model, score=score, top=top, night=night, dataset=dataset),
        as_json,
    )


@query.command("neighbours")
@click.option("--model", required=True, metavar="NAME[@VERSION|@ALIAS]", help="The bundle.")
@click.option("--image-id", required=True, metavar="ID", help="Or a unique beginning of it.")
@click.option("-k", type=click.IntRange(1), default=10, show_default=True, help="How many.")
@click.option(
    "--metric",
    type=click.Choice(["cosine", "euclidean"]),
    default="cosine",
    show_default=True,
    help="Distance between embeddings.",
)
@common
def query_neighbours(
    lake: str, as_json: bool, model: str, image_id: str, k: int, metric: str
) -> None:
    """The images nearest to one by embedding.

    Example: latentlake query neighbours --model photos --image-id 3f7a09 -k 5
    """
    from jobs import query as queries

    _emit_rows(queries.neighbours(lake_of(lake), model, image_id, k=k, metric=metric), as_json)


@query.command("sql")
@click.argument("statement")
@common
def query_sql(lake: str, as_json: bool, statement: str) -> None:
    """SQL (DuckDB) over images, sources, quarantine, embeddings, reconstructions, aliases, runs.

    Example: latentlake query sql "SELECT dataset, count(*) FROM images GROUP BY ALL"
    """
    from jobs import query as queries

    _emit_rows(queries.sql(lake_of(lake), statement), as_json)


def _emit_rows(table: Any, as_json: bool) -> None:
    from flows.output import emit, records_text
    from jobs.query import to_records

    records = to_records(table)
    emit(records, as_json, "" if as_json else records_text(records))
