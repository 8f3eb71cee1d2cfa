"""What configs say of likelihoods before there is one is true of them."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from vae_core.config import LIKELIHOOD_FACTS, LikelihoodConfig, LikelihoodKind
from vae_core.likelihoods.registry import LIKELIHOODS


def test_every_likelihood_has_its_facts() -> None:
    kinds = list(get_args(LikelihoodKind))
    assert list(LIKELIHOODS) == list(LIKELIHOOD_FACTS) == kinds


@pytest.mark.parametrize("kind", LIKELIHOODS)
def test_the_facts_are_true_of_it(kind: LikelihoodKind) -> None:
    """Of one grey pixel: a mass sums to one over the values it can have, a density does not."""
    facts = LIKELIHOOD_FACTS[kind]
    likelihood = LIKELIHOODS[kind](LikelihoodConfig(kind=kind))
    if facts.outputs is not None:
        assert likelihood.outputs(3) == 3 * facts.outputs
    values = torch.arange(256).reshape(256, 1, 1, 1) / 255.0
    if kind == "bernoulli":
        values = torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1)
    params = torch.randn(1, likelihood.outputs(1), 1, 1).expand(len(values), -1, -1, -1)
    total = likelihood.log_prob(params, likelihood.scale(), values).exp().sum().item()
    assert (abs(total - 1.0) < 1e-4) == facts.discrete
