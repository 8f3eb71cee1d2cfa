"""Every family through the jobs: trained, bundled, embedded, scored. No job asks which it is."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.bundles import bundle
from jobs.datasets.splits import find_splits
from jobs.engine import runner
from jobs.errors import InputError
from jobs.lake.paths import LakePaths
from jobs.lake.storage import local_path, read
from jobs.promote.job import PromoteJob
from jobs.promote.settings import GateRule, PromoteSettings
from jobs.query import views
from jobs.report.write import write_report
from jobs.settings import build
from jobs.tables import catalog
from jobs.train import finalize
from jobs.train import loop as train_loop
from jobs.train.settings import TrainSettings
from tests.inline import NIGHT, InlineEmbed, InlineEvaluate, InlineTrain
from vae_core.families.linear import PixelSums, ProbabilisticPCA
from vae_core.families.registry import FAMILIES as REGISTERED
from vae_core.families.registry import family_of
from vae_core.model import to_unit_range
from vae_core.scores.names import SCORES

PLAIN = {"posterior": "deterministic", "objective": {"kind": "reconstruction"}}
LINEAR = {"network": {"kind": "linear"}}
# name → settings, the decision score, the scores that the family does not have.
DENSITY = {"bits_per_dim", "complexity_corrected"}
NO_PRIOR = DENSITY | {"kl", "neg_elbo", "typicality"}
FAMILIES: dict[str, tuple[dict, str, set[str]]] = {
    "autoencoder": (PLAIN, "recon_nll", NO_PRIOR),
    "sparse": (
        PLAIN | {"code": "sigmoid", "objective": {"kind": "reconstruction", "sparsity": 1.0}},
        "recon_nll",
        NO_PRIOR,
    ),
    "pca": (PLAIN | LINEAR | {"fit": "closed_form"}, "recon_nll", NO_PRIOR),
    "ppca": (LINEAR | {"fit": "closed_form"}, "neg_elbo", DENSITY),
    "linear-vae": (LINEAR, "neg_elbo", DENSITY),
    "optimal-sigma": ({"likelihood": {"kind": "optimal_gaussian"}}, "neg_elbo", DENSITY),
    "stochastic-bits": (
        {"likelihood": {"kind": "bernoulli", "binarisation": "stochastic"}},
        "neg_elbo",
        set(),
    ),
    "logistic-mixture": (
        {
            "likelihood": {"kind": "logistic_mixture", "components": 3},
            "network": {"kind": "residual", "widths": [8, 8], "depth": 1},
            "epochs": 1,
        },
        "neg_elbo",
        set(),
    ),
    "bfloat16": ({"score_precision": "bfloat16"}, "neg_elbo", DENSITY),
    "beta-tc": ({"objective": {"kind": "beta_tc", "beta": 4.0}}, "neg_elbo", DENSITY),
    "iwae": (
        {"objective": {"kind": "importance_weighted", "samples": 3}},
        "neg_elbo",
        DENSITY,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_goes_from_images_to_scores(family: str, staged: LakePaths) -> None:
    settings, decisive, missing = FAMILIES[family]
    runner.run(InlineTrain(staged, **settings))
    held = bundle.load(staged, *catalog.resolve_model(staged, "m"))
    assert held.about["decision_score"] == decisive
    metrics = held.about["metrics"]
    assert np.isfinite(metrics["validation_nats"])
    assert (metrics["validation_kl_nats"] is None) == ("kl" in missing)
    assert metrics["forward_flops"] > 0

    runner.run(InlineEmbed(staged))
    rows = views.sql(
        staged, "SELECT e.*, i.split FROM embeddings e JOIN images i USING (image_id)"
    ).to_pandas()
    assert len(rows) == 600
    for name in SCORES:
        assert rows[name].isna().all() == (name in missing), name
        assert name in missing or np.isfinite(rows[name]).all(), name
    assert (rows.embedding_log_var.isna().all()) == ("kl" in missing)
    # Calibrated by the very code that embeds.
    own = rows[rows.split == "calibration"]
    assert np.array_equal(np.sort(own[decisive].to_numpy()), held.calibration_scores)
    assert rows[rows.split == "test"].p_value.notna().all()


# Of each family in the registry one member that trains in a moment: a new family joins by an entry.
MEMBERS: dict[str, dict] = {
    "vae": {},
    "autoencoder": PLAIN,
    "linear": LINEAR | {"fit": "closed_form"},
}


def test_every_family_has_a_member_here() -> None:
    assert MEMBERS.keys() == REGISTERED.keys()
    for name, settings in MEMBERS.items():
        trained = TrainSettings.model_validate({"dataset": "d", "model": "m", **settings})
        assert family_of(trained.model_config_of((28, 28, 1))).name == name


@pytest.mark.slow
@pytest.mark.parametrize("family", MEMBERS)
def test_a_family_is_embedded_bit_for_bit_judged_gated_and_reported(
    family: str, staged: LakePaths
) -> None:
    settings = MEMBERS[family]
    runner.run(InlineTrain(staged, **settings))
    runner.run(InlineEmbed(staged))
    statement = "SELECT image_id, embedding, p_value FROM embeddings ORDER BY image_id"
    first = views.sql(staged, statement)
    runner.run(InlineEmbed(staged, redo=True))
    assert views.sql(staged, statement).equals(first)
    runner.run(InlineEvaluate(staged))
    # A challenger of the family is compared with the champion in pairs.
    challenger = runner.run(InlineTrain(staged, seed=1, **settings)).counts["version"]
    runner.run(InlineEvaluate(staged, model=f"m@{challenger}"))
    gate = PromoteSettings(model=f"m@{challenger}", rule=GateRule())
    outcome = runner.run(PromoteJob(staged, gate, NIGHT)).counts
    checks = {check["name"]: check for check in outcome["checks"]}
    assert checks["bound"]["passes"] is not None, checks["bound"]
    report = write_report(staged, "d", "m", NIGHT)
    assert "Reconstructions" in read(report.uri).decode()


def train_pixels(lake: LakePaths) -> torch.Tensor:
    images = catalog.images_snapshot(lake, "d")
    (split,) = find_splits(images.file_uris(), (28, 28, 1))["train"].batches(1 << 20)
    return to_unit_range(torch.from_numpy(split.pixels_NHWC))


def test_ppca_in_the_table_is_the_closed_form_s_likelihood(staged: LakePaths) -> None:
    runner.run(InlineTrain(staged, **FAMILIES["ppca"][0]))
    model = bundle.load(staged, *catalog.resolve_model(staged, "m")).network()
    x = train_pixels(staged).flatten(1)
    sums = PixelSums.zeros(torch.full((784,), 0.5))
    sums.add(x)
    exact = ProbabilisticPCA.fit(sums, 4).log_prob(x[:50])
    shaped = x[:50].reshape(-1, 1, 28, 28)
    posterior = model.encode(model.observe(shaped))
    params = model.decode(posterior.mean_ND)
    # −ELBO at the posterior mean, with what the posterior's spread adds in closed form.
    weight = model.decoder.get_parameter("0.weight").double()
    sigma2 = torch.exp(2.0 * model.likelihood.scale().double())
    spread = (posterior.log_variance_ND.double().exp() @ weight.square().T).sum(1) / (2.0 * sigma2)
    log_prob = model.likelihood.log_prob(params, model.likelihood.scale(), shaped).double()
    kl = model.kl(posterior)
    assert kl is not None
    torch.testing.assert_close(log_prob - spread - kl.double().sum(1), exact, rtol=1e-4, atol=0.05)


def test_the_optimal_sigma_is_frozen_at_the_train_split_s_error(staged: LakePaths) -> None:
    from vae_core.noise import ImageNoise, image_keys

    runner.run(InlineTrain(staged, **FAMILIES["optimal-sigma"][0]))
    model = bundle.load(staged, *catalog.resolve_model(staged, "m")).network()
    images = catalog.images_snapshot(staged, "d")
    (split,) = find_splits(images.file_uris(), (28, 28, 1))["train"].batches(1 << 20)
    x = to_unit_range(torch.from_numpy(split.pixels_NHWC))
    noise = ImageNoise(seed=0, keys_N2=torch.from_numpy(image_keys(split.image_ids)))
    with torch.no_grad():
        z = model.draw(model.encode(x), noise.sample(0, 4))
        error = (model.decode(z) - x).square().mean()
    torch.testing.assert_close(model.likelihood.scale().exp(), error.sqrt(), rtol=1e-4, atol=0.0)


def test_settings_that_do_not_go_together_are_refused_before_any_work(staged: LakePaths) -> None:
    with pytest.raises(InputError, match="deterministic one has no KL and takes reconstruction"):
        build(TrainSettings, {"dataset": "d", "model": "m", "posterior": "deterministic"})
    with pytest.raises(InputError, match="closed_form needs"):
        build(TrainSettings, {"dataset": "d", "model": "m", "fit": "closed_form"})
    refused = {
        "neg_elbo": PLAIN,
        "bits_per_dim": {},
        "complexity_bits": {},
    }
    for name, settings in refused.items():
        with pytest.raises(InputError, match=f"{name}' does not judge images .* choose from recon"):
            build(TrainSettings, {"dataset": "d", "model": "m", "decision_score": name, **settings})
    closed = FAMILIES["ppca"][0] | {"objective": {"beta": 4.0}}
    with pytest.raises(InputError, match="closed_form has its own objective"):
        build(TrainSettings, {"dataset": "d", "model": "m", **closed})
    tied = {"network": {"kind": "mlp", "tied": True}, "likelihood": {"kind": "categorical"}}
    with pytest.raises(InputError, match="tied gives one number a pixel value"):
        build(TrainSettings, {"dataset": "d", "model": "m", **tied})
    with pytest.raises(InputError, match=r"fewer latent dimensions \(784\)"):
        runner.run(InlineTrain(staged, **FAMILIES["ppca"][0], latent_dim=784))


@pytest.mark.parametrize("family", ["ppca", "optimal-sigma"])
def test_a_killed_training_of_any_fit_ends_bit_for_bit_the_same(
    family: str, staged: LakePaths, tmp_path: Path, monkeypatch
) -> None:
    """Killed after the last checkpoint, before the bundle: σ and the closed form come again."""
    settings = FAMILIES[family][0]
    root = local_path(staged.uri)
    assert root is not None
    shutil.copytree(root, tmp_path / "other")
    whole = LakePaths((tmp_path / "other").as_uri())
    runner.run(InlineTrain(whole, **settings))

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(finalize, "publish", die)
    with pytest.raises(KeyboardInterrupt):
        runner.run(InlineTrain(staged, **settings))
    monkeypatch.undo()
    monkeypatch.setattr(train_loop.Training, "_step", die)  # no step is taken again
    monkeypatch.setattr(train_loop, "closed_form", die)
    runner.run(InlineTrain(staged, **settings))
    expected, found = (
        bundle.load(lake, *catalog.resolve_model(lake, "m")) for lake in (whole, staged)
    )
    assert expected.weights.keys() == found.weights.keys()
    for name, value in expected.weights.items():
        assert torch.equal(value, found.weights[name]), name
    assert np.array_equal(expected.calibration_scores, found.calibration_scores)
