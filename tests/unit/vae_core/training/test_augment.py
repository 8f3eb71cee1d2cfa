from __future__ import annotations

import pytest
import torch

from tests.unit.vae_core.models import images
from vae_core.noise import StepNoise
from vae_core.training.augment import augment


def noise(step: int = 0, batch: int = 64, positions=None) -> StepNoise:
    return StepNoise(seed=0, step=step, batch=batch, positions=positions)


def test_nothing_is_done_where_nothing_is_asked_for() -> None:
    x = images(8)
    assert augment(x, noise(batch=8)) is x
    assert len(augment(x[:0], noise(batch=8, positions=slice(0, 0)), flip=True, crop=2)) == 0


def test_about_half_of_the_images_are_mirrored() -> None:
    x = images(64, (9, 7, 3))
    found = augment(x, noise(), flip=True)
    mirrored = [torch.equal(a, b.flip(2)) for a, b in zip(found, x, strict=True)]
    same = [torch.equal(a, b) for a, b in zip(found, x, strict=True)]
    assert all(a != b for a, b in zip(mirrored, same, strict=True))
    assert 20 <= sum(mirrored) <= 44


@pytest.mark.parametrize("crop", [1, 3])
def test_a_crop_is_a_shift_of_the_mirrored_out_picture(crop: int) -> None:
    x = images(64, (9, 7, 2))
    found = augment(x, noise(), crop=crop)
    wide = torch.nn.functional.pad(x, (crop, crop, crop, crop), mode="reflect")
    shifts = set()
    for image, padded in zip(found, wide, strict=True):
        here = [
            (dy, dx)
            for dy in range(2 * crop + 1)
            for dx in range(2 * crop + 1)
            if torch.equal(image, padded[:, dy : dy + 9, dx : dx + 7])
        ]
        assert here
        shifts.update(here)
    assert len(shifts) >= (2 * crop + 1) ** 2 // 2


def test_what_is_done_belongs_to_the_place_in_the_global_batch() -> None:
    x = images(64, (8, 8, 1))
    whole = augment(x, noise(3), flip=True, crop=2)
    assert not torch.equal(whole, augment(x, noise(4), flip=True, crop=2))
    places = torch.tensor([5, 0, 63, 17])
    for positions in (places, slice(8, 20)):
        rows = positions if isinstance(positions, torch.Tensor) else torch.arange(64)[positions]
        part = augment(x[rows], noise(3, positions=positions), flip=True, crop=2)
        assert torch.equal(part, whole[rows])
