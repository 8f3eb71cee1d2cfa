"""What real libraries got wrong, and is tested nowhere else.

Elsewhere: the clamp that erases the KL's gradient, logsumexp over the wrong axis (objectives),
BCE on grey pixels, missing constants (likelihoods), embedding by a sample (test_autoencoder),
ranks of unequal size (test_all_reduce), padding (scores), calibration by training scores
(jobs/embed).
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.unit.vae_core.models import image_noise_of, images, model_of, terms_of
from vae_core.autoencoder import Autoencoder
from vae_core.likelihoods.registry import LIKELIHOODS
from vae_core.noise import BINARISATION, CORRUPTION, ImageNoise, StepNoise
from vae_core.scores.evaluation import Evaluation, EvaluationSums
from vae_core.stats.conformal import p_values


class Enlarged(nn.Module):
    """A network whose images are repeated 2×2."""

    def __init__(self, inner: nn.Module, *, decodes: bool) -> None:
        super().__init__()
        self.inner = inner
        self.decodes = decodes

    def forward(self, x: Tensor) -> Tensor:
        if self.decodes:
            return repeated(self.inner(x))
        return self.inner(x[:, :, ::2, ::2])


def repeated(x_NCHW: Tensor) -> Tensor:
    return x_NCHW.repeat_interleave(2, 2).repeat_interleave(2, 3)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_twice_the_resolution_is_four_times_the_reconstruction_and_the_same_kl(
    likelihood: str,
) -> None:
    """Sums over pixels and latents, so that β means the same at every size."""
    model, x = model_of("mlp", likelihood), images(5)
    terms = terms_of(model, x)
    model.encoder = Enlarged(model.encoder, decodes=False)
    model.decoder = Enlarged(model.decoder, decodes=True)
    large = terms_of(model, repeated(x))
    torch.testing.assert_close(large.recon_nll_N, 4.0 * terms.recon_nll_N, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(large.kl_N, terms.kl_N)
    torch.testing.assert_close(
        large.loss_N, 4.0 * terms.recon_nll_N + terms.kl_N, rtol=1e-5, atol=1e-3
    )


def test_a_mean_over_images_is_no_mean_of_batch_means() -> None:
    """A last batch of one image counts as one image."""
    model, x = model_of("conv").eval(), images(11)
    whole = evaluated(model, x, [11])
    parted = evaluated(model, x, [5, 5, 1])
    assert parted.neg_elbo == pytest.approx(whole.neg_elbo, rel=1e-6)
    means = [
        evaluated(model, x[rows], [len(x[rows])]).recon_mse for rows in (slice(10), slice(10, 11))
    ]
    assert whole.recon_mse == pytest.approx((10 * means[0] + means[1]) / 11, rel=1e-6)
    assert whole.recon_mse != pytest.approx(np.mean(means), rel=1e-4)


def evaluated(model: Autoencoder, x: Tensor, sizes: list[int]) -> Evaluation:
    sums, start = EvaluationSums.zeros(3), 0
    keys = image_noise_of(len(x)).keys_N2
    for size in sizes:
        rows = slice(start, start + size)
        sums.add(model, x[rows], ImageNoise(seed=0, keys_N2=keys[rows]))
        start += size
    return Evaluation.of(model, sums)


def test_ranks_draw_different_noise_and_together_that_of_one() -> None:
    whole = StepNoise(seed=3, step=5, batch=9)
    shares = [StepNoise(seed=3, step=5, batch=9, positions=slice(*r)) for r in ((0, 4), (4, 9))]
    for draw in (
        lambda noise: noise.latent(2, 4).transpose(0, 1),
        lambda noise: noise.normal(CORRUPTION, 6),
        lambda noise: noise.uniform(BINARISATION, 6),
    ):
        parts = [draw(share) for share in shares]
        assert torch.equal(torch.cat(parts), draw(whole))
        assert not torch.equal(parts[0], parts[1][:4])


def test_each_use_of_noise_has_a_stream_of_its_own() -> None:
    for noise in (StepNoise(seed=0, step=0, batch=500), image_noise_of(500)):
        streams = [noise.normal(s, 8).flatten() for s in range(4)]
        streams.append(noise.latent(3, 8)[2].flatten())
        correlation = torch.corrcoef(torch.stack(streams)) - torch.eye(5)
        assert correlation.abs().max() < 5 / 4000**0.5
        u = noise.uniform(BINARISATION, 8)
        assert u.min() >= 0.0
        assert u.max() < 1.0
        assert abs(u.mean() - 0.5) < 4 * (1 / 12 / 4000) ** 0.5


def test_a_night_without_any_anomaly_breaks_no_threshold() -> None:
    """p-values of normal images are uniform: the share below α is about α, never forced up."""
    rng = np.random.default_rng(0)
    rates = [
        (p_values(rng.normal(size=500), np.sort(rng.normal(size=999))) <= 0.01).mean()
        for _ in range(200)
    ]
    assert np.mean(rates) == pytest.approx(0.01, abs=0.002)
    assert min(rates) == 0.0
    same = p_values(np.zeros(5), np.zeros(9))
    assert (same == 1.0).all()
