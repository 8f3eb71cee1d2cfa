from __future__ import annotations

import torch
from torch.distributions import Independent, Normal, kl_divergence

from vae_core.normal import LOG_VAR_LIMIT, kl_to_standard_normal, reparameterise, soft_bound


def test_kl_agrees_with_torch_distributions() -> None:
    mean, log_var = torch.randn(6, 5, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64)
    posterior = Independent(Normal(mean, (0.5 * log_var).exp()), 1)
    prior = Independent(Normal(torch.zeros_like(mean), torch.ones_like(mean)), 1)
    expected = kl_divergence(posterior, prior)
    torch.testing.assert_close(kl_to_standard_normal(mean, log_var).sum(1), expected)


def test_kl_is_zero_only_at_the_prior_and_keeps_precision_near_it() -> None:
    zero = torch.zeros(1, 3)
    assert kl_to_standard_normal(zero, zero).abs().max() == 0.0
    # exp(x) - 1 - x in float32 would round to zero here.
    tiny = torch.full((1, 1), 1e-3)
    torch.testing.assert_close(
        kl_to_standard_normal(torch.zeros(1, 1), tiny).item(), 2.5e-7, rtol=1e-2, atol=0.0
    )


def test_gradients_of_kl_and_sample() -> None:
    mean = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    log_var = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    eps = torch.randn(3, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(kl_to_standard_normal, (mean, log_var))
    assert torch.autograd.gradcheck(lambda m, v: reparameterise(m, v, eps), (mean, log_var))


def test_the_soft_bound_keeps_a_gradient_where_a_clamp_would_erase_it() -> None:
    raw = torch.tensor([-30.0, -1.0, 0.0, 1.0, 30.0], requires_grad=True)
    bounded = soft_bound(raw)
    bounded.sum().backward()
    assert bounded.abs().max() < LOG_VAR_LIMIT
    assert raw.grad is not None
    assert (raw.grad > 0).all()
    torch.testing.assert_close(bounded[2], torch.tensor(0.0))


def test_kl_is_computed_in_float32_under_half_precision() -> None:
    mean = torch.zeros(1, 2, dtype=torch.bfloat16)
    assert kl_to_standard_normal(mean, mean).dtype == torch.float32
