from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from vae_core.noise import StepNoise, image_keys, image_noise, philox4x32


def ids(count: int) -> list[str]:
    return [hashlib.sha256(str(i).encode()).hexdigest() for i in range(count)]


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # known answers of Random123's kat_vectors, philox 4x32, 10 rounds
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0xFFFFFFFF,) * 4,
            (0xFFFFFFFF,) * 2,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_answers(counter, key, expected) -> None:
    assert tuple(philox4x32(torch.tensor([counter]), key)[0].tolist()) == expected


def test_an_image_draws_the_same_noise_in_any_batch_and_order() -> None:
    keys = torch.from_numpy(image_keys(ids(50)))
    whole = image_noise(keys, seed=3, k=1, dim=7)
    order = torch.randperm(50)
    assert torch.equal(image_noise(keys[order], seed=3, k=1, dim=7), whole[order])
    assert torch.equal(image_noise(keys[17:18], seed=3, k=1, dim=7), whole[17:18])


def test_seed_sample_and_image_each_change_the_noise() -> None:
    keys = torch.from_numpy(image_keys(ids(2)))
    base = image_noise(keys, seed=0, k=0, dim=8)
    assert not torch.equal(base, image_noise(keys, seed=1, k=0, dim=8))
    assert not torch.equal(base, image_noise(keys, seed=0, k=1, dim=8))
    assert not torch.equal(base[0], base[1])


def test_the_noise_is_standard_normal_and_uncorrelated() -> None:
    keys = torch.from_numpy(image_keys(ids(20_000)))
    noise = image_noise(keys, seed=0, k=0, dim=6).double().numpy()
    assert np.abs(noise.mean(0)).max() < 4 / np.sqrt(len(noise))
    covariance = np.cov(noise.T)
    assert np.abs(covariance - np.eye(6)).max() < 5 * np.sqrt(2 / len(noise))
    fourth = (noise**4).mean()
    assert abs(fourth - 3.0) < 5 * np.sqrt(96 / noise.size)


def test_step_noise_is_a_function_of_seed_and_step() -> None:
    def drawn(seed: int, step: int) -> torch.Tensor:
        return StepNoise(seed=seed, step=step, batch=8).latent(1, 3)[0]

    first = drawn(1, 5)
    assert torch.equal(first, drawn(1, 5))
    assert not torch.equal(first, drawn(1, 6))
    assert not torch.equal(first, drawn(2, 5))
