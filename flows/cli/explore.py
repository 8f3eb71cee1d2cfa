"""`latentlake explore`. Imports Panel only when it runs."""

from __future__ import annotations

import click

from flows.cli.options import DEFAULT_LAKE


@click.command()
@click.option("--port", type=click.IntRange(1, 65535), metavar="N", help="A free one if none.")
@click.option("--open/--no-open", "show", default=True, help="Open a browser; on by default.")
@click.option(
    "--lake",
    envvar="LATENTLAKE_LAKE",
    default=DEFAULT_LAKE,
    show_default=True,
    metavar="URI",
    help="Root of the lake: a folder or s3://BUCKET/PREFIX; also $LATENTLAKE_LAKE.",
)
def explore(port: int | None, show: bool, lake: str) -> None:
    """Look into a lake in a browser: anomalies, search by image, images, SQL; needs Panel.

    A page on this machine alone, which changes nothing; ^C ends it.

    Example: latentlake explore --port 5006 --no-open
    """
    from flows.explore.server import explore as serve

    serve(lake, port, show)
