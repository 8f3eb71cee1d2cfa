"""The scores by name, with unit and direction. Imports no torch: schemas are made of it."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class ScoreInfo:
    """unit: what one step of the number means. anomalous: which way an anomaly moves it."""

    unit: str
    anomalous: str
    meaning: str


# The scores and their meaning, in the order of the table's columns.
SCORES: dict[str, ScoreInfo] = {
    "recon_nll": ScoreInfo("nats", "higher", "mean of -log p(x|z) over K posterior samples"),
    "kl": ScoreInfo("nats", "higher", "KL from the posterior to the prior"),
    "neg_elbo": ScoreInfo("nats", "higher", "recon_nll + kl, an upper bound of -log p(x)"),
    "bits_per_dim": ScoreInfo("bits", "higher", "neg_elbo / (P ln 2); discrete likelihoods only"),
    "recon_mse": ScoreInfo("squared intensity in [0, 1]", "higher", "at the posterior mean"),
    "max_patch_error": ScoreInfo(
        "squared intensity in [0, 1]", "higher", "largest mean squared error of any square patch"
    ),
    "latent_mahalanobis": ScoreInfo(
        "squared standard deviations", "higher", "distance of the posterior mean from training's"
    ),
    "typicality": ScoreInfo("nats", "higher", "|neg_elbo - its held-out mean|; weak on one image"),
    "complexity_bits": ScoreInfo("bits", "none", "DEFLATE size of the pixels; a covariate"),
    "complexity_corrected": ScoreInfo(
        "bits", "higher", "neg_elbo / ln 2 - complexity_bits; discrete likelihoods only"
    ),
}


# A family's own decision score is the first of these that it has.
DECISIVE = ("neg_elbo", "recon_nll")


def patch_side(height: int, width: int) -> int:
    """Of the square patches of max_patch_error, in pixels: a seventh of the image, at least 2."""
    return min(height, width, max(2, min(height, width) // 7))
