from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from jobs.imaging.phash import perceptual_hashes
from jobs.tables.image_ids import HALVES, IdSet, digests


def image_id(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


@given(st.lists(st.integers(0, 40)), st.lists(st.integers(0, 40)), st.integers(0, 5))
def test_a_set_of_ids_is_a_set(held: list[int], asked: list[int], cut: int) -> None:
    ids = pa.chunked_array(
        [[image_id(n) for n in held[:cut]], [image_id(n) for n in held[cut:]]], pa.string()
    )
    found = IdSet([digests(ids)])
    assert len(found) == len(set(held))
    assert found.has(digests([image_id(n) for n in asked])).tolist() == [n in held for n in asked]
    other = IdSet([digests([image_id(n) for n in reversed(held)]), digests([])])
    assert found == other
    assert found.within(other)
    assert IdSet([digests([image_id(n) for n in asked])]).within(found) == (set(asked) <= set(held))


def test_ids_with_equal_halves_are_told_apart() -> None:
    made = np.array([(1, 5), (1, 7), (1, 7), (2, 5)], HALVES)
    held = IdSet([made[:2]])
    assert held.has(made).tolist() == [True, True, True, False]
    assert held.has(np.array([(1, 6), (0, 5), (9, 9)], HALVES)).tolist() == [False] * 3


def test_digests_read_slices_of_arrow_arrays() -> None:
    ids = pa.array([image_id(n) for n in range(10)])
    assert np.array_equal(digests(ids.slice(3, 4)), digests(ids.slice(3, 4).to_pylist()))
    first = digests([image_id(0)])[0]
    assert f"{int(first['high']):016x}{int(first['low']):016x}" == image_id(0)[:32]


def apart(one: int, other: int) -> int:
    return bin((int(one) ^ int(other)) & (2**64 - 1)).count("1")


def test_perceptual_hashes_follow_what_a_picture_looks_like() -> None:
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (20, 8, 8, 3)).astype(np.float64)
    pictures = coarse.repeat(8, 1).repeat(8, 2)
    grain = pictures + generator.normal(0, 8, pictures.shape)
    brighter = pictures * 0.8 + 20
    hashes = [
        perceptual_hashes(p.clip(0, 255).astype(np.uint8)) for p in (pictures, grain, brighter)
    ]
    for changed in hashes[1:]:
        assert max(apart(a, b) for a, b in zip(hashes[0], changed, strict=True)) <= 12
    others = [apart(a, b) for i, a in enumerate(hashes[0]) for b in hashes[0][:i]]
    assert min(others) > 14
    half = perceptual_hashes(pictures[:, ::2, ::2].astype(np.uint8))
    assert max(apart(a, b) for a, b in zip(hashes[0], half, strict=True)) <= 12


def test_a_perceptual_hash_does_not_depend_on_company_or_threads() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (64, 40, 56, 3), dtype=np.uint8)
    whole = perceptual_hashes(pixels)
    assert np.array_equal(whole, np.concatenate([perceptual_hashes(p[None]) for p in pixels]))
    wide = np.random.default_rng(1).integers(0, 256, (3, 20, 300, 1), dtype=np.uint8)
    assert len(set(perceptual_hashes(wide).tolist())) == 3
    assert perceptual_hashes(np.zeros((0, 8, 8, 3), np.uint8)).shape == (0,)
