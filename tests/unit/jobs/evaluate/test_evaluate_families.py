"""Every family is evaluated; one whose likelihood is known in closed form has that likelihood."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.distributions import MultivariateNormal

from jobs.bundles import bundle
from jobs.engine import runner
from jobs.lake.paths import LakePaths
from jobs.query import views
from jobs.tables import catalog
from tests.inline import InlineTrain
from tests.unit.jobs.evaluate.test_evaluate_refusals import lacking, rows_of
from tests.unit.jobs.test_families import FAMILIES
from vae_core.families.base import NO_PRIOR

BAYES = {"log_likelihood", "neg_elbo", "kl", "inference_gap", "aggregate_posterior_kl"}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_has_its_numbers_and_says_why_it_lacks_others(
    trained: LakePaths, family: str
) -> None:
    settings, decisive, absent = FAMILIES[family]
    runner.run(InlineTrain(trained, model="f", **settings))
    rows = rows_of(trained, model="f")
    missing = lacking(rows)
    expected = {"auroc", "average_precision"}
    expected |= {"bits_per_dim"} & absent
    if "kl" in absent:
        expected |= BAYES | {"kl_dimension"}
        assert missing["log_likelihood"] == NO_PRIOR
        held = views.sql(trained, "SELECT log_likelihood, samples, kl FROM evaluated")
        assert all(held[name].null_count == len(held) for name in held.column_names)
    assert missing.keys() == expected
    assert {row["of"] for row in rows if row["metric"] == "calibration_p"} == {decisive}


def exact_and_rows(lake: LakePaths) -> tuple[np.ndarray, pa.Table]:
    """log p(x) of x ~ N(b, W Wᵀ + σ² I), by torch's own density of a linear bundle's weights."""
    model = bundle.load(lake, *catalog.resolve_model(lake, "f")).network().double()
    rows = views.sql(
        lake, "SELECT image, e.* FROM images JOIN evaluated e USING (image_id) ORDER BY image_id"
    )
    pixels = np.stack([np.frombuffer(one, np.uint8) for one in rows["image"].to_pylist()])
    layer = model.decoder.get_submodule("0")
    with torch.no_grad():
        weight, mean = layer.get_parameter("weight"), layer.get_parameter("bias")
        sigma2 = torch.exp(2.0 * model.likelihood.scale())
        density = MultivariateNormal(mean, weight @ weight.T + sigma2 * torch.eye(len(mean)))
        return density.log_prob(torch.from_numpy(pixels) / 255.0).numpy(), rows


def test_a_linear_gaussian_models_log_likelihood_is_the_exact_one(trained: LakePaths) -> None:
    """Probabilistic PCA, whose posterior is exact, too: every weight is p(x), but for float32."""
    runner.run(InlineTrain(trained, model="f", network={"kind": "linear"}, fit="closed_form"))
    told = rows_of(trained, model="f", samples=16)
    exact, rows = exact_and_rows(trained)
    np.testing.assert_allclose(rows["log_likelihood"].to_numpy(), exact, rtol=1e-5)
    # The ELBO is -log p(x), but for two posterior samples: ½ Σ (ε² - 1) of four latents each.
    gap = rows["neg_elbo"].to_numpy() + exact
    assert abs(gap.mean()) < 4 * math.sqrt(4 / 2 / 2 / len(gap))
    (lost,) = (row["value"] for row in told if row["metric"] == "inference_gap")
    assert abs(lost) < 1e-3


def test_a_worse_posterior_leaves_the_bound_below_the_likelihood(trained: LakePaths) -> None:
    """A linear VAE by gradient: -ELBO, above minus the bound, above -log p(x)."""
    runner.run(InlineTrain(trained, model="f", network={"kind": "linear"}))
    rows_of(trained, model="f", samples=64)
    exact, rows = exact_and_rows(trained)
    bound, neg_elbo = rows["log_likelihood"].to_numpy(), rows["neg_elbo"].to_numpy()
    assert neg_elbo.mean() > -bound.mean() > -exact.mean()
    # 64 samples are a good part of the way.
    assert exact.mean() - bound.mean() < 0.5 * (neg_elbo.mean() + exact.mean())
