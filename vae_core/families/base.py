"""A family is a kind of model behind one interface: no job asks which one it holds.

Imports no torch: settings and tables are made of what a family says of a config.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

from vae_core.config import LIKELIHOOD_FACTS, ModelConfig
from vae_core.scores.names import DECISIVE, SCORES

if TYPE_CHECKING:
    from vae_core.model import Model

TrainedBy = Literal["gradient", "closed_form"]


class Family(Protocol):
    """What a kind of model is, and has. What it has not is absent, with a reason in words."""

    name: str

    def owns(self, config: ModelConfig) -> bool:
        """Whether a model of this config is one of the family."""
        ...

    def build(self, config: ModelConfig) -> Model:
        """Make the model, with first weights by torch's seed."""
        ...

    def trained_by(self, config: ModelConfig) -> TrainedBy:
        """Say how it is trained: by gradient steps, or by one pass over the train split."""
        ...

    def absent(self, config: ModelConfig) -> dict[str, str]:
        """Return the scores and metrics that it has not, by name, each with the reason."""
        ...


class NetworkFamily:
    """What the families of encoder, decoder and likelihood share."""

    def build(self, config: ModelConfig) -> Model:
        """Make the networks."""
        from vae_core.autoencoder import Autoencoder  # brings torch

        return Autoencoder(config)

    def trained_by(self, config: ModelConfig) -> TrainedBy:
        """Say what the config says."""
        return config.fit

    def absent(self, config: ModelConfig) -> dict[str, str]:
        """Return what goes with a prior where there is none, and bits where there are none."""
        found: dict[str, str] = {}
        if not LIKELIHOOD_FACTS[config.likelihood.kind].discrete:
            reason = f"the {config.likelihood.kind} likelihood is a density: it has no bits"
            found |= dict.fromkeys(OF_MASSES, reason)
        if config.posterior == "deterministic":
            found = dict.fromkeys((*OF_A_PRIOR, *OF_MASSES), NO_PRIOR) | found
        return found


NO_PRIOR = "a deterministic posterior has no prior"
OF_MASSES = ("bits_per_dim", "complexity_corrected")
OF_A_PRIOR = (
    "log_likelihood",
    "neg_elbo",
    "kl",
    "inference_gap",
    "aggregate_posterior_kl",
    "kl_dimension",
    "typicality",
)


def scores_of(family: Family, config: ModelConfig) -> list[str]:
    """Return the scores of a model that can judge an image, in the order of the tables."""
    absent = family.absent(config)
    return [n for n, info in SCORES.items() if info.anomalous == "higher" and n not in absent]


def decision_score_of(family: Family, config: ModelConfig) -> str:
    """Return the score that p-values come from where the settings name none."""
    judging = scores_of(family, config)
    return next(name for name in DECISIVE if name in judging)
