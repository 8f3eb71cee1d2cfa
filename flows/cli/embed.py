"""The commands around embeddings: embed, drop, map, index, embed-files."""

from __future__ import annotations

from typing import Any, get_args

import click

from flows.cli.options import (
    common,
    drop_none,
    job_options,
    lake_of,
    parse_fraction,
    request_of,
    run_job,
)
from flows.cli.query import METHOD, METRIC
from jobs.embed.settings import DropSettings, EmbedSettings, MapSettings, Reconstructions
from jobs.settings import build


@click.command()
@click.option("--dataset", required=True, metavar="NAME", help="Dataset to embed.")
@click.option("--model", required=True, metavar="NAME[@VERSION|@ALIAS]", help="The bundle.")
@click.option(
    "--reconstructions",
    type=click.Choice(get_args(Reconstructions)),
    help="Whose to write as PNG; none if not given. A sample is one image in a hundred.",
)
@click.option("--alpha", metavar="SHARE", help="False-discovery rate: 5% (default) or 0.05.")
@click.option("--commit-every", type=int, metavar="N", help="Units a commit; all of them if none.")
@click.option("--scores", type=click.Choice(["all", "none"]), help="none: only encode; faster.")
@click.option(
    "--backfill/--no-backfill",
    default=None,
    help="Also, or not, images that another version of the model has embedded; also if none.",
)
@click.option("--since", metavar="DATE", help="Only images staged in that night and after it.")
@click.option("--until", metavar="DATE", help="Only images staged in that night and before it.")
@click.option("--redo", is_flag=True, help="Embed all again; old rows are replaced in one commit.")
@click.option("--batch-size", type=int, metavar="N", help="Images a forward pass.")
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    help="auto (default): a GPU a worker where the model was calibrated on one.",
)
@click.option(
    "--min-workers",
    type=int,
    metavar="N",
    help="Begin with so many, up to --workers as they find room; all of them if none.",
)
@job_options
def embed(dataset: str, model: str, alpha: str | None, **options: Any) -> None:
    """Embed and score the images that the model has not seen yet; flag the anomalies among them.

    Example: latentlake embed --dataset photos --model photos@champion
    """
    plain = ["reconstructions", "commit_every", "scores", "backfill", "since", "until", "redo"]
    plain += ["batch_size", "device", "workers", "min_workers"]
    settings = build(
        EmbedSettings,
        drop_none(
            dataset=dataset,
            model=model,
            alpha=parse_fraction("--alpha", alpha) if alpha else None,
            **{name: options[name] for name in plain},
        ),
    )
    run_job(request_of(settings, options), options)


@click.command()
@click.option("--model", required=True, metavar="NAME@VERSION|@ALIAS", help="The bundle.")
@click.option("--dataset", metavar="NAME", help="Only images of that dataset; all if none.")
@job_options
def drop(model: str, dataset: str | None, **options: Any) -> None:
    """Take a model version's embeddings, scores and anomalies out of the tables, in one commit.

    The bundle stays; files go with the next maintain.

    Example: latentlake drop --model photos@3f7a09c1d2e4
    """
    settings = build(DropSettings, drop_none(model=model, dataset=dataset))
    run_job(request_of(settings, options), options)


@click.command("map")
@click.option("--model", required=True, metavar="NAME[@VERSION|@ALIAS]", help="The bundle.")
@METHOD
@job_options
def map_command(model: str, method: str, **options: Any) -> None:
    """Lay all embeddings of a model out on a plane, as a table; again, where they have changed.

    Example: latentlake map --model photos
    """
    settings = build(MapSettings, {"model": model, "method": method})
    run_job(request_of(settings, options), options)


@click.command("index")
@click.option("--model", required=True, metavar="NAME[@VERSION|@ALIAS]", help="The bundle.")
@METRIC
@common
def index_command(model: str, metric: str, lake: str, as_json: bool) -> None:
    """Make an index of a model's embeddings, for neighbours among millions; needs usearch.

    It is of the embeddings as they are now: make it again after embed or maintain.

    Example: latentlake index --model photos
    """
    from flows.output import emit
    from jobs.search.index import build

    built = build(lake_of(lake), model, metric)
    name = f"{built['model']}@{built['model_version']}"
    what = f"{built['rows']:,} embeddings by {metric}"
    done = f"done in {built['seconds']:.1f} s" if built["made"] else "is there already"
    emit(built, as_json, f"index {name}: {what}, {done}")


@click.command("embed-files")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--model", required=True, metavar="NAME[@VERSION|@ALIAS]", help="The bundle.")
@common
def embed_files(files: tuple[str, ...], model: str, lake: str, as_json: bool) -> None:
    """Embed and score image files by hand; nothing is written. The same numbers as embed gives.

    Example: latentlake embed-files --model photos a.png b.jpg --json
    """
    from flows.output import emit, records_text
    from jobs.embed.score_files import embed_files as embed_them

    rows = embed_them(lake_of(lake), model, files)
    shown = ("file", "image_id", "p_value", "neg_elbo", "recon_nll", "recon_mse", "max_patch_error")
    emit(rows, as_json, records_text([{name: row[name] for name in shown} for row in rows]))
