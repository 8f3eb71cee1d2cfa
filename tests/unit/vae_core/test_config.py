from __future__ import annotations

import pytest

from vae_core.config import LikelihoodConfig, ModelConfig, NetworkConfig, ObjectiveConfig


def test_a_config_survives_json_unchanged() -> None:
    config = ModelConfig(
        image_shape=(17, 23, 3),
        latent_dim=5,
        network=NetworkConfig(kind="mlp", widths=(8, 4)),
        likelihood=LikelihoodConfig(kind="bernoulli", threshold=0.4),
    )
    assert ModelConfig.from_dict(config.to_dict()) == config
    assert config.pixels == 17 * 23 * 3


def test_a_misspelt_key_is_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown key 'latent_dims'; known keys: image_shape, la"):
        ModelConfig.from_dict({"image_shape": [8, 8, 1], "latent_dims": 4})
    with pytest.raises(ValueError, match="NetworkConfig: unknown key 'width'"):
        ModelConfig.from_dict({"image_shape": [8, 8, 1], "network": {"width": [4]}})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ModelConfig(image_shape=(8, 0, 1)), "image_shape"),
        (lambda: ModelConfig(image_shape=(8, 8, 1), latent_dim=0), "latent_dim"),
        (lambda: NetworkConfig(kind="transformer"), "known: linear, mlp, conv, residual"),
        (lambda: NetworkConfig(widths=()), "widths"),
        (lambda: LikelihoodConfig(kind="poisson"), "known: bernoulli, continuous_bernoulli"),
        (lambda: LikelihoodConfig(sigma=0.0), "sigma"),
        (lambda: ObjectiveConfig(beta=-1.0), "beta"),
    ],
)
def test_values_out_of_range_are_refused(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_beta_rises_linearly_over_the_warm_up_and_stays() -> None:
    objective = ObjectiveConfig(beta=4.0, kl_warmup_steps=4)
    assert [objective.beta_at(step) for step in range(6)] == [1.0, 2.0, 3.0, 4.0, 4.0, 4.0]
    assert ObjectiveConfig(beta=2.0).beta_at(0) == 2.0
