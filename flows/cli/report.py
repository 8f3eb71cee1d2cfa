"""`latentlake report`: a night as one page."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from flows.cli.options import common, lake_of
from flows.nightly.settings import valid_night
from jobs.errors import InputError


@click.command()
@click.option("--dataset", required=True, metavar="NAME", help="Whose night it was.")
@click.option(
    "--model", required=True, metavar="NAME[@VERSION|@ALIAS]", help="The bundle that judged it."
)
@click.option("--night", metavar="DATE", help="YYYY-MM-DD; the last one that has a run if none.")
@click.option("--out", metavar="FILE", help="Write the page there, too.")
@click.option("--open", "is_shown", is_flag=True, help="Show the page in a browser.")
@common
def report(
    dataset: str,
    model: str,
    night: str | None,
    out: str | None,
    is_shown: bool,
    lake: str,
    as_json: bool,
) -> None:
    """Write a night as one HTML page in the lake: what happened, is it good, what to look at.

    The page needs no network and no server, and is small enough to mail.

    Example: latentlake report --dataset photos --model photos --open
    """
    from flows.output import emit
    from jobs.report.night import last_night
    from jobs.report.write import write_report

    opened = lake_of(lake)
    on = valid_night(night) if night else last_night(opened, dataset, model)
    made = write_report(opened, dataset, model, on)
    file = _copied(made.uri, out) if out else None
    if is_shown:
        _show(file or _local(made.uri))
    values = {
        "uri": made.uri,
        "night": made.night,
        "status": made.headline.status,
        "headline": made.headline.sentences,
        "notes": made.notes,
        "bytes": made.bytes,
        "file": str(file) if file else None,
    }
    lines = [made.headline.word, *(f"  {s}" for s in [*made.headline.sentences, *made.notes])]
    lines.append(f"  page: {file or made.uri} ({made.bytes / 2**20:.1f} MiB)")
    emit(values, as_json, "\n".join(lines))


def _copied(uri: str, out: str) -> Path:
    from jobs.lake.storage import read

    file = Path(out).absolute()
    try:
        file.write_bytes(read(uri))
    except OSError as error:
        raise InputError(f"--out {out}: {error.strerror}") from error
    return file


def _local(uri: str) -> Path:
    """Return the page as a file here; of a lake elsewhere, a copy that outlives this process."""
    from jobs.lake.storage import local_path

    path = local_path(uri)
    folder = Path(tempfile.mkdtemp(prefix="latentlake-")) if path is None else None
    return _copied(uri, str(folder / "report.html")) if folder is not None else Path(str(path))


def _show(file: Path) -> None:
    import webbrowser

    if not webbrowser.open(file.as_uri()):
        click.echo(f"no browser could be started; open {file}", err=True)
