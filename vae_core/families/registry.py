"""The families by name. To add one: a module, an entry here, a case in the test of all of them."""

from __future__ import annotations

from vae_core.config import ModelConfig
from vae_core.families.base import Family
from vae_core.families.linear_models import LinearModels
from vae_core.families.plain import PlainAutoencoders
from vae_core.families.vae import VariationalAutoencoders

FAMILIES: dict[str, Family] = {
    "vae": VariationalAutoencoders(),
    "autoencoder": PlainAutoencoders(),
    "linear": LinearModels(),
}


def family_of(config: ModelConfig) -> Family:
    """Find the family that a config's model is of: exactly one owns it."""
    (found,) = (family for family in FAMILIES.values() if family.owns(config))
    return found
