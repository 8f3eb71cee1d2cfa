"""What every command of the command line takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from jobs.lake import Lake

DEFAULT_LAKE = "./lake"


def common(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --lake and --json."""
    function = click.option(
        "--json", "as_json", is_flag=True, help="One JSON result on stdout; logs go to stderr."
    )(function)
    return click.option(
        "--lake",
        envvar="LATENTLAKE_LAKE",
        default=DEFAULT_LAKE,
        show_default=True,
        metavar="URI",
        help="Root of the lake: a folder or s3://BUCKET/PREFIX; also $LATENTLAKE_LAKE.",
    )(function)


def lake_of(uri: str) -> Lake:
    """The lake at a path or URI as a user writes it."""
    from jobs.lake import Lake
    from jobs.storage import resolve_uri

    return Lake(resolve_uri(uri))
