"""One test for every family, likelihood and network: what all of them must do."""

from __future__ import annotations

import copy
import hashlib
import itertools

import numpy as np
import pytest
import safetensors.torch
import torch

from tests.unit.vae_core.models import config_of, images
from vae_core.autoencoder import Autoencoder
from vae_core.config import LikelihoodConfig, ModelConfig, NetworkConfig, ObjectiveConfig
from vae_core.likelihoods.registry import LIKELIHOODS
from vae_core.networks.plain import ENCODERS
from vae_core.noise import StepNoise
from vae_core.objectives.objectives import Objective
from vae_core.scores.per_image import Scorer
from vae_core.size import forward_flops, parameter_count
from vae_core.training.step import train_step

# family → what the model is, what it is trained by.
FAMILIES: dict[str, tuple[dict, dict]] = {
    "vae": ({}, {}),
    "beta-tc": ({}, {"kind": "beta_tc", "beta": 2.0}),
    "iwae": ({}, {"kind": "importance_weighted", "samples": 3}),
    "free-bits": ({}, {"free_bits": 0.1}),
    "capacity": ({}, {"kind": "capacity", "capacity": 1.0}),
    "score-function": ({}, {"kind": "score_function", "samples": 4}),
    "denoising": (
        {"posterior": "deterministic"},
        {"kind": "reconstruction", "corruption": "mask", "corruption_amount": 0.2},
    ),
    "contractive": (
        {"posterior": "deterministic", "code": "sigmoid"},
        {"kind": "reconstruction", "contraction": 0.1, "probes": 1},
    ),
    "autoencoder": ({"posterior": "deterministic"}, {"kind": "reconstruction"}),
    "sparse": (
        {"posterior": "deterministic", "code": "sigmoid"},
        {"kind": "reconstruction", "sparsity": 1.0},
    ),
}
SHAPES = [(17, 23, 1), (9, 8, 2), (17, 23, 3), (8, 13, 4)]
EVERY = list(itertools.product(FAMILIES, LIKELIHOODS, ENCODERS))


def built(family: str, likelihood: str, network: str, shape=(17, 23, 2)) -> Autoencoder:
    torch.manual_seed(0)
    options, _ = FAMILIES[family]
    return Autoencoder(config_of(network, likelihood, shape=shape, **options))


def train(model: Autoencoder, family: str, x: torch.Tensor, steps: int) -> list[float]:
    """The loss of each step, the noise the same in all, so that falling is falling."""
    objective = Objective(model, ObjectiveConfig(**FAMILIES[family][1]), dataset_size=len(x))
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=5e-4, weight_decay=0.0, fused=True)
    noise = StepNoise(seed=0, step=0, batch=len(x))
    return [
        train_step(objective, optimizer, x, noise, step=step).loss / len(x) for step in range(steps)
    ]


def score(model: Autoencoder, pixels: np.ndarray, rows: np.ndarray, batch_size: int = 32):
    ids = [hashlib.sha256(str(row).encode()).hexdigest() for row in rows]
    one = Scorer(model=model, batch_size=batch_size, samples=2, seed=0)
    return one.score(pixels[rows], ids)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "likelihood", "network"), EVERY)
def test_every_family_trains_saves_and_scores(family: str, likelihood: str, network: str) -> None:
    model = built(family, likelihood, network)
    shape = model.config.image_shape
    x = images(6, shape)
    losses = train(model, family, x, 6)
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]

    model.eval()
    pixels = (x.permute(0, 2, 3, 1).numpy() * 255).round().astype(np.uint8)
    whole = score(model, pixels, np.arange(6))
    # Saved and loaded, from the config as JSON and the weights as safetensors.
    data = safetensors.torch.save({n: t.contiguous() for n, t in model.state_dict().items()})
    again = Autoencoder(ModelConfig.from_dict(model.config.to_dict()))
    again.load_state_dict(safetensors.torch.load(data))
    loaded = score(again.eval(), pixels, np.arange(6))
    np.testing.assert_array_equal(loaded.mean_ND, whole.mean_ND)
    np.testing.assert_array_equal(loaded.reconstruction_NHWC, whole.reconstruction_NHWC)
    # In other company, and in batches of another size: to 1e-5. (Bit for bit in test_scores.py,
    # where the layers are not as narrow as here: products with 3 or 6 columns round by place.)
    order = np.array([4, 1, 5])
    part = score(model, pixels, order)
    other = score(model, pixels, np.arange(6), batch_size=16)
    np.testing.assert_allclose(part.mean_ND, whole.mean_ND[order], rtol=1e-5, atol=1e-6)
    for name, values in whole.scores.items():
        if values is None:
            assert loaded.scores[name] is None
            continue
        assert np.isfinite(values).all(), name
        np.testing.assert_array_equal(loaded.scores[name], values, err_msg=name)
        for found, expected in ((part, values[order]), (other, values)):
            found_values = found.scores[name]
            assert found_values is not None
            np.testing.assert_allclose(found_values, expected, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(("likelihood", "network"), list(itertools.product(LIKELIHOODS, ENCODERS)))
@pytest.mark.parametrize("shape", SHAPES)
def test_odd_sizes_and_one_to_four_channels(likelihood, network, shape) -> None:
    model = built("vae", likelihood, network, shape)
    x = images(3, shape)
    assert model.reconstruct(x).shape == x.shape
    assert model.decode(torch.zeros(3, 3)).shape[1] == model.likelihood.outputs(shape[2])
    assert model.sample(2).shape == (2, *x.shape[1:])
    terms = Objective(model, ObjectiveConfig())(x, StepNoise(seed=0, step=0, batch=3), 0)
    terms.loss_N.sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.numel():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.slow
@pytest.mark.parametrize(("likelihood", "network"), list(itertools.product(LIKELIHOODS, ENCODERS)))
def test_bf16_autocast_agrees_with_float32(likelihood: str, network: str) -> None:
    """To 1% of the loss: bf16 keeps 8 bits, and all sums, exps and logs run in float32."""
    model, x = built("vae", likelihood, network), images(6, (17, 23, 2))
    train(model, "vae", x, 4)
    objective, noise = Objective(model, ObjectiveConfig()), StepNoise(seed=0, step=0, batch=6)
    with torch.no_grad():
        exact = objective(x, noise, 0)
        with torch.autocast("cpu", torch.bfloat16):
            rough = objective(x, noise, 0)
    assert rough.loss_N.dtype == torch.float32
    scale = exact.loss_N.abs().clamp_min(model.config.pixels * 0.1)
    assert ((rough.loss_N - exact.loss_N).abs() / scale).max() < 0.01
    torch.testing.assert_close(rough.kl_N, exact.kl_N, rtol=0.03, atol=0.03)


@pytest.mark.parametrize("network", ["conv", "residual"])
def test_channels_last_changes_nothing_but_the_memory(network: str) -> None:
    model = built("vae", "gaussian", network)
    x = images(4, (17, 23, 2))
    packed = copy.deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    ours = packed.encode(x.contiguous(memory_format=torch.channels_last)).mean_ND
    torch.testing.assert_close(ours, model.encode(x).mean_ND, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(packed.show(ours), model.show(ours), rtol=1e-5, atol=1e-6)


def test_residual_widths_and_depths_are_those_of_the_config() -> None:
    network = NetworkConfig(kind="residual", widths=(8, 12, 20), depth=(0, 2, 1))
    model = Autoencoder(ModelConfig(image_shape=(33, 20, 3), latent_dim=4, network=network))
    from vae_core.networks.residual import ResidualBlock

    for part in (model.encoder, model.decoder):
        found = [m.body[0].num_channels for m in part.modules() if isinstance(m, ResidualBlock)]
        assert sorted(found) == [12, 12, 20]
    with pytest.raises(ValueError, match="one for each of the 3 widths"):
        NetworkConfig(kind="residual", widths=(8, 12, 20), depth=(1, 1))


def test_a_residual_network_starts_as_the_identity_in_each_block() -> None:
    from vae_core.networks.residual import ResidualBlock

    x = torch.randn(2, 8, 5, 7)
    assert torch.equal(ResidualBlock(8, (5, 7))(x), x)


def test_parameters_and_flops_are_counted() -> None:
    """An MLP of 6 pixels, 5 hidden units and 2 latents, by hand."""
    model = Autoencoder(
        ModelConfig(
            image_shape=(2, 3, 1),
            latent_dim=2,
            network=NetworkConfig(kind="mlp", widths=(5,)),
            likelihood=LikelihoodConfig(kind="bernoulli"),
        )
    )
    assert parameter_count(model) == (6 * 5 + 5) + (5 * 4 + 4) + (2 * 5 + 5) + (5 * 6 + 6)
    assert forward_flops(model) == 2 * (6 * 5 + 5 * 4 + 2 * 5 + 5 * 6)


def test_a_residual_network_halved_down_to_one_pixel_still_tells_images_apart() -> None:
    """A normalisation of one or two values would give the same code for every image."""
    for widths in ((8, 8, 8, 8), (16, 16, 16, 16), (2, 2, 2, 2)):
        torch.manual_seed(0)
        network = NetworkConfig(kind="residual", widths=widths, depth=1)
        model = Autoencoder(ModelConfig(image_shape=(8, 8, 1), latent_dim=3, network=network))
        x = torch.rand(20, 1, 8, 8)
        assert model.encode(x).mean_ND.std(0).min() > 1e-3
        torch.testing.assert_close(model.encode(x[:1]).mean_ND, model.encode(x).mean_ND[:1])
        assert forward_flops(model) > 0


def test_tied_weights_are_the_encoder_s_transposed() -> None:
    torch.manual_seed(0)
    network = NetworkConfig(kind="mlp", widths=(6, 5), tied=True, activation="tanh")
    model = Autoencoder(ModelConfig(image_shape=(3, 4, 1), latent_dim=2, network=network))
    with torch.no_grad():
        for bias in model.decoder.parameters():
            bias.normal_()
    first, second, last = (m for m in model.encoder.modules() if isinstance(m, torch.nn.Linear))
    biases = list(model.decoder.parameters())
    z = torch.randn(7, 2)
    h = torch.tanh(z @ last.weight[:2] + biases[0])
    h = torch.tanh(h @ second.weight + biases[1])
    expected = (h @ first.weight + biases[2]).reshape(7, 1, 3, 4)
    torch.testing.assert_close(model.decode(z), expected)
    # A copy is tied to its own encoder, not to the first one's.
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.zero_()
    torch.testing.assert_close(other.decode(z), expected)


def test_half_precision_ends_at_the_posterior() -> None:
    """A density must be that of the sample drawn, and a mean of tiny activations needs digits."""
    from vae_core.objectives.objectives import total_loss

    for options, settings in (
        ({}, {"kind": "importance_weighted", "samples": 4}),
        (*FAMILIES["sparse"][:1], {"kind": "reconstruction", "sparsity": 5.0}),
    ):
        torch.manual_seed(0)
        model = Autoencoder(config_of("mlp", shape=(17, 23, 2), **options))
        if options:
            with torch.no_grad():
                list(model.encoder.modules())[-1].get_parameter("bias").fill_(-6.0)
        objective = Objective(model, ObjectiveConfig(**settings))
        x, noise = images(6, (17, 23, 2)), StepNoise(seed=0, step=0, batch=6)
        with torch.no_grad():
            exact = objective(x, noise, 0)
            with torch.autocast("cpu", torch.bfloat16):
                rough = objective(x, noise, 0)
                assert model.encode(x).mean_ND.dtype == torch.float32
        torch.testing.assert_close(rough.shared, exact.shared, rtol=0.05, atol=1e-6)
        a, b = (total_loss(t, global_count=6) for t in (rough, exact))
        assert abs(a - b) < 0.01 * abs(b)
