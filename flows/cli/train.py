"""The commands that train: one training, or a sweep over settings."""

from __future__ import annotations

from typing import Any, get_args

import click

from flows.cli.options import (
    drop_none,
    job_options,
    lake_of,
    night_of,
    ray_settings,
    request_of,
    run_job,
)
from jobs.errors import InputError
from jobs.settings import build, load_yaml
from jobs.sweep import trial as sweep_trial
from jobs.sweep.settings import SweepSettings
from jobs.train.settings import TrainSettings
from vae_core.config import LikelihoodKind, NetworkKind

NETWORKS = get_args(NetworkKind)
LIKELIHOODS = get_args(LikelihoodKind)


@click.command()
@click.option("--dataset", metavar="NAME", help="Dataset to train on.")
@click.option("--model", metavar="NAME", help="Name of the model.")
@click.option("--config", metavar="FILE", help="YAML of training settings; options override it.")
@click.option("--epochs", type=int, metavar="N", help="Passes over the train split.")
@click.option("--batch-size", type=int, metavar="N", help="Global batch, for any worker count.")
@click.option("--learning-rate", type=float, metavar="X", help="Peak learning rate.")
@click.option("--latent-dim", type=int, metavar="D", help="Latent dimensions.")
@click.option("--network", type=click.Choice(NETWORKS), help="Encoder and decoder.")
@click.option("--likelihood", type=click.Choice(LIKELIHOODS), help="Of pixels.")
@click.option("--beta", type=float, metavar="X", help="Weight of the KL term.")
@click.option("--seed", type=int, metavar="N", help="Of weights, order and noise.")
@click.option("--images-version", type=int, metavar="V", help="Snapshot; the newest if none.")
@click.option("--alias", metavar="NAME", help="Alias for the bundle; champion if none.")
@click.option("--promote", is_flag=True, default=None, help="Move the alias here.")
@click.option("--fresh", is_flag=True, help="Do not go on from an earlier attempt's checkpoint.")
@job_options
def train(
    config: str | None,
    fresh: bool,
    network: str | None,
    likelihood: str | None,
    beta: float | None,
    **options: Any,
) -> None:
    """Train a VAE on a dataset and publish it as a bundle.

    Example: latentlake train --dataset photos --model photos --epochs 20 --workers 2
    """
    values = load_yaml(config) if config is not None else {}
    for key, name, value in (
        ("network", "kind", network),
        ("likelihood", "kind", likelihood),
        ("objective", "beta", beta),
    ):
        if value is not None:
            group = values.get(key, {})
            if not isinstance(group, dict):
                raise InputError(f"{key}: write a mapping in {config}, such as {name}: {value}")
            values[key] = {**group, name: value}
    plain = "dataset model epochs batch_size learning_rate latent_dim seed images_version alias "
    values |= drop_none(**{name: options[name] for name in (plain + "promote workers").split()})
    for name in ("dataset", "model"):
        if name not in values:
            raise click.UsageError(f"Missing option '--{name}' (or '{name}' in --config).")
    settings = build(TrainSettings, values)
    run_job(request_of(settings, options, fresh=fresh), options)


@click.command()
@click.option("--config", required=True, metavar="FILE", help="YAML of the sweep.")
@click.option("--trials", type=int, metavar="N", help="How many settings are tried.")
@job_options
def sweep(config: str, trials: int | None, **options: Any) -> None:
    """Try settings at random, give up the worse ones early, and publish the best as a bundle.

    --workers says how many trials run at a time, one CPU each.

    Example: latentlake sweep --config sweep.yaml --trials 32
    """
    values = load_yaml(config) | drop_none(trials=trials, concurrent=options["workers"])
    settings = build(SweepSettings, values)
    from flows.output import emit, records_text, report_text
    from jobs.sweep import job as sweeps

    if options["dry_run"]:
        drawn = [trial.drawn for trial in sweep_trial.draw(settings)]
        emit(drawn, options["as_json"], "\n".join(map(str, drawn)))
        return
    report, tried = sweeps.sweep(
        lake_of(options["lake"]), settings, night_of(options), ray_settings(options)
    )
    rows_shown = [
        {**one.trial.drawn, "validation_nats": one.validation_nats, "epochs": one.epochs}
        for one in tried
    ]
    emit(
        {"trials": rows_shown, "train": report.to_dict()},
        options["as_json"],
        f"{records_text(rows_shown)}\n{report_text(report)}",
    )
