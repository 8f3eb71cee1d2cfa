"""Every config is of one family, which says what its models have before there is one."""

from __future__ import annotations

import itertools
from typing import get_args

import numpy as np
import pytest
import torch

from tests.unit.vae_core.models import config_of
from vae_core.config import LikelihoodKind, NetworkKind, PosteriorKind
from vae_core.families.base import NO_PRIOR, decision_score_of, scores_of
from vae_core.families.registry import FAMILIES, family_of
from vae_core.scores.names import SCORES
from vae_core.scores.per_image import Scorer

KINDS = itertools.product(get_args(PosteriorKind), get_args(LikelihoodKind), get_args(NetworkKind))
OF_TRAINING = {"latent_mahalanobis", "typicality"}  # need the moments of a training


@pytest.mark.parametrize(("posterior", "likelihood", "network"), list(KINDS))
def test_a_config_is_of_one_family_whose_models_have_what_it_says(
    posterior: str, likelihood: str, network: str
) -> None:
    made = config_of(network, likelihood, posterior=posterior)
    assert sum(family.owns(made) for family in FAMILIES.values()) == 1
    family = family_of(made)
    torch.manual_seed(0)
    model = family.build(made)
    assert model.config == made
    assert family.trained_by(made) == made.fit
    absent = family.absent(made)
    assert model.has_prior == (NO_PRIOR not in absent.values())
    pixels = np.random.default_rng(0).integers(0, 256, (2, *made.image_shape), np.uint8)
    scorer = Scorer(model=model.eval(), batch_size=2, samples=1, seed=0)
    scores = scorer.score(pixels, [f"{n:064x}" for n in range(2)]).scores
    there = {name for name, values in scores.items() if values is not None}
    assert there == SCORES.keys() - absent.keys() - OF_TRAINING
    judging = scores_of(family, made)
    assert set(judging) == {n for n in SCORES if SCORES[n].anomalous == "higher"} - absent.keys()
    assert decision_score_of(family, made) in judging


def test_the_names_are_their_own() -> None:
    assert {name: family.name for name, family in FAMILIES.items()} == {n: n for n in FAMILIES}
