"""Objectives against each other, against closed forms, and in the limits where they meet."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.unit.vae_core.models import config_of, images, model_of, terms_of
from vae_core.autoencoder import Autoencoder
from vae_core.bounds import importance_weighted_bound, log_weights
from vae_core.config import ModelConfig, ObjectiveConfig
from vae_core.noise import StepNoise
from vae_core.normal import LOG_VAR_LIMIT
from vae_core.objectives.objectives import Objective
from vae_core.objectives.penalties import contraction, corrupt, sparsity_kl, weight_norm
from vae_core.objectives.total_correlation import kl_parts
from vae_core.posteriors import Posterior


def gradients(model: Autoencoder, loss: Tensor) -> list[Tensor]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def test_beta_weighs_the_kl_and_nothing_else() -> None:
    model, x = model_of(), images(4)
    for beta in (0.0, 1.0, 4.0):
        terms = terms_of(model, x, beta=beta)
        torch.testing.assert_close(terms.loss_N, terms.recon_nll_N + beta * terms.kl_N)


def test_the_kl_warms_up_from_nothing() -> None:
    config = ObjectiveConfig(beta=2.0, kl_warmup_steps=4)
    assert [config.beta_at(step) for step in range(6)] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]


def test_the_kl_gradient_is_never_clamped_away() -> None:
    """However far the encoder's log-variance is driven, its KL pulls it back."""
    model, x = model_of().double(), images(4).double()
    last = list(model.encoder.modules())[-1]
    for raw in (-80.0, 80.0):
        with torch.no_grad():
            last.get_parameter("bias")[3:] = raw
        kl = terms_of(model, x).kl_N.sum()
        (slope,) = torch.autograd.grad(kl, last.get_parameter("bias"))
        assert (slope[3:] * raw > 0).all()


def test_capacity_holds_the_kl_at_c() -> None:
    model, x = model_of(), images(4)
    kl = terms_of(model, x).kl_N
    terms = terms_of(model, x, kind="capacity", beta=10.0, capacity=5.0)
    torch.testing.assert_close(terms.loss_N, terms.recon_nll_N + 10.0 * (kl - 5.0).abs())
    # With C = 0 it is β-VAE.
    ours = terms_of(model, x, kind="capacity", beta=3.0).loss_N
    torch.testing.assert_close(ours, terms_of(model, x, beta=3.0).loss_N)
    config = ObjectiveConfig(kind="capacity", capacity=8.0, capacity_steps=4)
    assert [config.capacity_at(step) for step in range(5)] == [2.0, 4.0, 6.0, 8.0, 8.0]


def test_free_bits_leave_dimensions_alone_that_use_less() -> None:
    model, x = model_of(), images(16)
    with torch.no_grad():  # dimensions far apart in what they use
        list(model.encoder.modules())[-1].get_parameter("bias")[:3] = torch.tensor([0.0, 1.5, 3.0])
    posterior = model.encode(x)
    mean_kl = model.kl(posterior).mean(0)  # type: ignore[union-attr]
    between = float((mean_kl[0] + mean_kl[1]).detach() / 2)
    terms = terms_of(model, x, free_bits=between)
    expected = mean_kl.clamp_min(between).sum()
    torch.testing.assert_close(terms.shared, expected)
    torch.testing.assert_close(terms.loss_N, terms.recon_nll_N)
    # No pull on the dimension below, all of the pull on those above.
    bias = list(model.encoder.modules())[-1].get_parameter("bias")
    (slope,) = torch.autograd.grad(terms.shared, bias)
    assert slope[0] == 0.0
    assert (slope[1:3] != 0.0).all()
    none = terms_of(model, x, free_bits=1e-9)
    whole = none.loss_N.mean() + none.shared
    torch.testing.assert_close(whole, terms_of(model, x).loss_N.mean())


def test_iwae_is_the_bound_of_its_samples_and_with_one_the_elbo() -> None:
    model, x = model_of("mlp", "bernoulli").double(), images(6).double()
    noise = StepNoise(seed=0, step=0, batch=6)
    target = model.observe(x)
    weights = log_weights(model, target, noise.latent(7, 3).double())
    found = terms_of(model, x, kind="importance_weighted", samples=7)
    torch.testing.assert_close(found.loss_N, -importance_weighted_bound(weights))
    # The logsumexp is over samples: each image's loss depends on that image alone.
    alone = -importance_weighted_bound(weights[:, :1])
    torch.testing.assert_close(found.loss_N[:1], alone)
    # One sample: log-likelihood and sampled KL.
    one = terms_of(model, x, kind="importance_weighted", samples=1)
    torch.testing.assert_close(one.loss_N, -weights_of_one(model, target, noise))


def weights_of_one(model: Autoencoder, target: Tensor, noise: StepNoise) -> Tensor:
    return log_weights(model, target, noise.latent(1, 3).double())[0]


@pytest.mark.slow
def test_the_score_function_has_the_same_gradient_and_a_larger_variance() -> None:
    """Mean over many steps against the reparameterised one; the ratio is drawn in the docs."""
    model, x = model_of("mlp", "bernoulli").double(), images(3).double()
    count = sum(p.numel() for p in model.encoder.parameters())

    def sums(draws: int, **objective) -> tuple[Tensor, Tensor]:
        module = Objective(model, ObjectiveConfig(**objective))
        total, square = (torch.zeros(count, dtype=torch.float64) for _ in range(2))
        for step in range(draws):
            noise = StepNoise(seed=1, step=step, batch=3)
            loss = module(x, noise, step).loss_N.sum()
            found = torch.autograd.grad(loss, list(model.encoder.parameters()))
            flat = torch.cat([g.flatten() for g in found])
            total += flat
            square += flat.square()
        return total / draws, square / draws - (total / draws).square()

    draws = 1500
    exact, low = sums(draws)
    ours, high = sums(draws, kind="score_function", samples=4)
    error = ((low + high) / draws).sqrt()
    moving = error > 1e-12
    off = ((ours - exact)[moving] / error[moving]).abs()
    assert off.max() < 6.0
    assert off.square().mean().sqrt() < 1.5
    # Four samples each against one: still noisier.
    assert high.sum() > 2.0 * low.sum()


def test_the_score_function_reports_the_elbo_and_leaves_the_decoder_its_gradient() -> None:
    model, x = model_of("mlp", "bernoulli").double(), images(3).double()
    terms = terms_of(model, x, kind="score_function", samples=3)
    torch.testing.assert_close(terms.loss_N, terms.recon_nll_N + terms.kl_N)
    decoder = list(model.decoder.parameters())
    ours = torch.autograd.grad(terms.loss_N.sum(), decoder, retain_graph=True)
    plain = torch.autograd.grad(terms.recon_nll_N.sum(), decoder)
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b)


def posterior_of(count: int, dim: int = 3) -> tuple[Posterior, Tensor]:
    torch.manual_seed(0)
    mean, log_var, eps = torch.randn(3, count, dim, dtype=torch.float64)
    return Posterior(mean, log_var), mean + (0.5 * log_var).exp() * eps


def test_the_parts_of_the_kl_are_exact_when_the_batch_is_the_data_set() -> None:
    posterior, z = posterior_of(12)
    parts = kl_parts(z, posterior, posterior, torch.arange(12), 12)
    spread = (0.5 * posterior.log_variance_ND).exp()
    components = torch.distributions.Normal(posterior.mean_ND, spread)
    mixture = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(torch.ones(12, dtype=torch.float64)),
        torch.distributions.Independent(components, 1),
    )
    log_qz = mixture.log_prob(z)
    marginals = sum(
        torch.distributions.MixtureSameFamily(
            torch.distributions.Categorical(torch.ones(12, dtype=torch.float64)),
            torch.distributions.Normal(posterior.mean_ND[:, d], spread[:, d]),
        ).log_prob(z[:, d])
        for d in range(3)
    )
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)
    own = components.log_prob(z).sum(1)
    torch.testing.assert_close(parts.index_code_mi_N, own - log_qz)
    torch.testing.assert_close(parts.total_correlation_N, log_qz - marginals)
    torch.testing.assert_close(parts.dimension_wise_kl_N, marginals - prior)
    torch.testing.assert_close(sum(parts), own - prior)


def test_the_aggregate_posterior_of_a_batch_is_unbiased_for_that_of_the_data() -> None:
    """q(z) of image 0's sample, from batches that hold it and others drawn at random."""
    whole, z = posterior_of(12)
    own = Posterior(whole.mean_ND[:1], whole.log_variance_ND[:1])
    first = torch.zeros(1, dtype=torch.long)
    log_qzx = torch.distributions.Normal(own.mean_ND, (0.5 * own.log_variance_ND).exp()).log_prob(
        z[:1]
    )

    def density(parts) -> Tensor:
        return (log_qzx.sum(1) - parts.index_code_mi_N).exp()

    exact = density(kl_parts(z[:1], own, whole, first, 12))
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(3000):
        rows = torch.cat([first, 1 + torch.randperm(11, generator=generator)[:3]])
        batch = Posterior(whole.mean_ND[rows], whole.log_variance_ND[rows])
        found.append(density(kl_parts(z[:1], own, batch, first, 12)))
    stacked = torch.cat(found)
    assert (stacked.mean() - exact).abs() < 4 * stacked.std() / math.sqrt(len(stacked))


def test_a_batch_of_one_knows_no_correlation() -> None:
    posterior, z = posterior_of(1, dim=5)
    parts = kl_parts(z, posterior, posterior, torch.zeros(1, dtype=torch.long), 60_000)
    assert parts.index_code_mi_N.abs().item() < 1e-12
    assert parts.total_correlation_N.abs().item() < 1e-12


def test_a_total_correlation_of_independent_latents_is_zero_and_of_equal_ones_is_not() -> None:
    torch.manual_seed(0)
    base = torch.randn(1000, 2, dtype=torch.float64)
    small = torch.full_like(base, -3.0)
    for mean, expected in ((base, 0.0), (base[:, :1].expand(-1, 2), 0.9)):
        posterior = Posterior(mean, small)
        z = mean + (0.5 * small).exp() * torch.randn_like(mean)
        parts = kl_parts(z, posterior, posterior, torch.arange(1000), 1000)
        found = parts.total_correlation_N.mean().item()
        assert abs(found) < 0.15 if expected == 0.0 else found > expected


@pytest.mark.slow
def test_beta_tc_with_equal_weights_is_the_elbo_in_expectation() -> None:
    model, x = model_of().double(), images(4).double()
    module = Objective(model, ObjectiveConfig(kind="beta_tc"), dataset_size=100)
    draws = [module(x, StepNoise(seed=0, step=s, batch=4), s) for s in range(2000)]
    sampled = torch.stack([(d.loss_N - d.recon_nll_N).detach() for d in draws])
    error = sampled.std(0) / math.sqrt(len(draws))
    assert ((sampled.mean(0) - draws[0].kl_N).abs() < 4 * error).all()


def test_a_zero_variance_encoder_without_kl_is_the_plain_autoencoder() -> None:
    vae, plain = model_of(), model_of(posterior="deterministic")
    with torch.no_grad():
        last = list(vae.encoder.modules())[-1]
        last.get_parameter("bias")[3:] = -1e9
        last.get_parameter("weight")[3:] = 0.0
        other = list(plain.encoder.modules())[-1]
        for mine, theirs in zip(plain.encoder.parameters(), vae.encoder.parameters(), strict=True):
            mine.copy_(theirs[: len(mine)])
        assert other.get_parameter("bias").shape == (3,)
        plain.decoder.load_state_dict(vae.decoder.state_dict())
    x = images(8)
    # The bound leaves σ = e^−6; the noise that remains is small beside the code.
    assert vae.encode(x).log_variance_ND.max() == -LOG_VAR_LIMIT
    ours = terms_of(vae, x, beta=0.0).loss_N
    theirs = terms_of(plain, x, kind="reconstruction").loss_N
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=0.0)


def test_a_plain_autoencoder_minimises_the_squared_error_and_its_constant() -> None:
    model, x = model_of(posterior="deterministic"), images(4)
    with torch.no_grad():
        model.likelihood.get_parameter("raw_log_sigma").zero_()
    terms = terms_of(model, x, kind="reconstruction")
    error = (x - model.decode(model.encode(x).mean_ND)).square().flatten(1).sum(1)
    expected = 0.5 * error + 0.5 * 72 * math.log(2 * math.pi)
    torch.testing.assert_close(terms.loss_N, expected)
    assert terms.kl_N.tolist() == [0.0] * 4


def sparse_config() -> ModelConfig:
    return config_of(posterior="deterministic", code="sigmoid")


def test_sparsity_is_the_kl_of_bernoullis_and_least_at_the_target() -> None:
    means = torch.tensor([0.02, 0.2, 0.9], dtype=torch.float64)
    expected = sum(
        torch.distributions.kl_divergence(
            torch.distributions.Bernoulli(torch.tensor(0.2, dtype=torch.float64)),
            torch.distributions.Bernoulli(m),
        )
        for m in means
    )
    torch.testing.assert_close(sparsity_kl(means, 0.2), expected)
    assert sparsity_kl(torch.full((3,), 0.2), 0.2).abs() < 1e-6
    assert torch.isfinite(sparsity_kl(torch.tensor([0.0, 1.0]), 0.2))
    model, x = Autoencoder(sparse_config()), images(8)
    terms = terms_of(model, x, kind="reconstruction", sparsity=2.0, sparsity_target=0.2)
    code = model.encode(x).mean_ND
    assert ((code > 0) & (code < 1)).all()
    torch.testing.assert_close(terms.shared, 2.0 * sparsity_kl(code.mean(0), 0.2))


def test_training_with_sparsity_brings_the_mean_activation_to_the_target() -> None:
    torch.manual_seed(0)
    model, x = Autoencoder(sparse_config()), images(32)
    objective = {"kind": "reconstruction", "sparsity": 500.0, "sparsity_target": 0.1}
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for step in range(150):
        optimizer.zero_grad()
        terms = terms_of(model, x, step=step, **objective)
        (terms.loss_N.mean() + terms.shared).backward()
        optimizer.step()
    assert model.encode(x).mean_ND.mean(0).tolist() == pytest.approx([0.1] * 3, abs=0.03)


def test_the_contraction_is_the_squared_norm_of_the_jacobian() -> None:
    model = Autoencoder(sparse_config()).double()
    seen = images(5).double().requires_grad_(True)
    noise = StepNoise(seed=0, step=0, batch=5)
    exact = contraction(model.encode(seen).mean_ND, seen, 0, noise)
    for n in range(5):
        jacobian = torch.autograd.functional.jacobian(
            lambda image: model.encode(image).mean_ND, seen[n : n + 1].detach()
        )
        torch.testing.assert_close(exact[n], jacobian.square().sum())
    many = contraction(model.encode(seen).mean_ND, seen, 3000, noise)
    torch.testing.assert_close(many, exact, rtol=0.15, atol=0.0)
    # Second-order: the penalty has a gradient.
    assert sum(g.abs().sum() for g in gradients(model, exact.sum())) > 0


def test_masking_takes_whole_pixels_with_probability_q_and_gaussian_noise_has_its_size() -> None:
    x = torch.ones(400, 3, 8, 8)
    noise = StepNoise(seed=0, step=0, batch=400)
    masked = corrupt(x, ObjectiveConfig(corruption="mask", corruption_amount=0.3), noise)
    assert set(masked.unique().tolist()) == {0.0, 1.0}
    assert (masked == masked[:, :1]).all()
    assert 1.0 - masked.mean().item() == pytest.approx(0.3, abs=0.01)
    noisy = corrupt(x, ObjectiveConfig(corruption="gaussian", corruption_amount=0.2), noise)
    assert (noisy - x).std().item() == pytest.approx(0.2, abs=0.005)
    assert torch.equal(corrupt(x, ObjectiveConfig(), noise), x)


def test_denoising_reconstructs_the_clean_image_from_the_corrupted_one() -> None:
    model, x = model_of(posterior="deterministic"), images(6)
    settings = {"kind": "reconstruction", "corruption": "mask", "corruption_amount": 0.5}
    noise = StepNoise(seed=0, step=0, batch=6)
    seen = corrupt(x, ObjectiveConfig(**settings), noise)
    params = model.decode(model.encode(seen).mean_ND)
    expected = -model.likelihood.log_prob(params, model.likelihood.scale(), x)
    torch.testing.assert_close(terms_of(model, x, **settings).loss_N, expected)


def test_weight_decay_is_half_the_squared_weights_and_tied_ones_count_once() -> None:
    model = model_of(posterior="deterministic")
    weights = [p for name, p in model.named_parameters() if name.endswith("weight")]
    torch.testing.assert_close(weight_norm(model), 0.5 * sum(w.square().sum() for w in weights))
    terms = terms_of(model, images(3), kind="reconstruction", weight_decay=0.3)
    torch.testing.assert_close(terms.shared, 0.3 * weight_norm(model))
    from vae_core.config import NetworkConfig

    tied = Autoencoder(
        ModelConfig(
            image_shape=(8, 9, 1),
            latent_dim=3,
            network=NetworkConfig(kind="mlp", widths=(6, 5), tied=True),
            posterior="deterministic",
        )
    )
    own = [p for name, p in tied.encoder.named_parameters() if name.endswith("weight")]
    torch.testing.assert_close(weight_norm(tied), 0.5 * sum(w.square().sum() for w in own))
    names = [name for name, _ in tied.decoder.named_parameters()]
    assert names == ["0.biases.0", "0.biases.1", "0.biases.2"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "elbo", "samples": 5}, r"samples has no use in kind elbo; it belongs to imp"),
        ({"kind": "importance_weighted", "beta": 2.0}, "beta has no use in kind importance"),
        ({"kind": "score_function"}, "samples must be at least 2"),
        ({"free_bits": -1.0}, "free_bits must be at least 0"),
        ({"corruption": "mask", "corruption_amount": 1.5}, "is a probability"),
        ({"contraction": 1.0}, "contraction has no use in kind elbo"),
        ({"corruption_amount": 0.2}, r"corruption_amount has no use without objective\.corruption"),
        ({"sparsity_target": 0.2}, r"sparsity_target has no use without objective\.sparsity"),
        ({"kind": "reconstruction", "probes": 2}, r"no use without objective\.contraction"),
        ({"beta": None}, "beta must be a number"),
        ({"kind": "importance_weighted", "samples": 2.5}, "samples must be a whole number"),
    ],
)
def test_settings_that_would_be_ignored_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ObjectiveConfig(**settings)


def test_an_objective_that_does_not_go_with_the_posterior_is_refused() -> None:
    with pytest.raises(ValueError, match="deterministic one has no KL and takes reconstruction"):
        Objective(model_of(posterior="deterministic"), ObjectiveConfig())
    with pytest.raises(ValueError, match="reconstruction does not go with a gaussian"):
        Objective(model_of(), ObjectiveConfig(kind="reconstruction"))
    with pytest.raises(ValueError, match="needs activations"):
        Objective(
            model_of(posterior="deterministic"),
            ObjectiveConfig(kind="reconstruction", sparsity=1.0),
        )
