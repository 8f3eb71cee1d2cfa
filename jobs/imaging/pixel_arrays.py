"""Images that come as pixels: nested lists, fixed-size lists, tensors, fixed-size binary.

Legend: N rows, H height, W width, C channels.
"""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pyarrow as pa

CHANNELS = (1, 2, 3, 4)


@dataclasses.dataclass(frozen=True)
class Pixels:
    """One image as an array, uint8 or uint16: (H, W) or (H, W, C)."""

    array: np.ndarray

    @property
    def image_id(self) -> str:
        """sha256 of shape, dtype and pixels."""
        head = f"{list(self.array.shape)}{self.array.dtype}".encode()
        return hashlib.sha256(head + np.ascontiguousarray(self.array).tobytes()).hexdigest()


class NotPixels(ValueError):
    """A value of the column is no image; says why."""


def is_array_type(kind: pa.DataType) -> bool:
    """Whether a column of this type can hold pixels: lists of integers, tensors, fixed binary."""
    if isinstance(kind, pa.FixedShapeTensorType):
        return pa.types.is_integer(kind.value_type)
    if pa.types.is_fixed_size_binary(kind):
        return True
    depth, inner = _unnested(kind)
    return depth > 0 and pa.types.is_integer(inner)


def needs_shape(kind: pa.DataType) -> bool:
    """Whether the type alone does not tell height and width."""
    if isinstance(kind, pa.FixedShapeTensorType):
        return False
    return pa.types.is_fixed_size_binary(kind) or _unnested(kind)[0] == 1


def _unnested(kind: pa.DataType) -> tuple[int, pa.DataType]:
    depth = 0
    while _is_list(kind):
        kind, depth = kind.value_type, depth + 1
    return depth, kind


def _is_list(kind: pa.DataType) -> bool:
    return (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def pixels_of(column: pa.Array, shape: tuple[int, ...] | None) -> list[Pixels | NotPixels | None]:
    """One entry a row: the image, None for null, or why it is none.

    shape: of the array as stored, for flat columns: H×W, H×W×C or C×H×W.
    """
    if isinstance(column.type, pa.FixedShapeTensorType):
        return _tensors(column)
    if pa.types.is_fixed_size_binary(column.type):
        values = column.to_pylist()
        return [None if v is None else _image(np.frombuffer(v, np.uint8), shape) for v in values]
    return [_row(column, row, shape) for row in range(len(column))]


def _tensors(column: pa.Array) -> list[Pixels | NotPixels | None]:
    order = column.type.permutation
    found: list[Pixels | NotPixels | None] = []
    for row in range(len(column)):
        value = column.storage[row]
        if not value.is_valid:
            found.append(None)
            continue
        stored = value.values.to_numpy(zero_copy_only=False).reshape(column.type.shape)
        array = stored.transpose(order) if order is not None else stored
        found.append(_image(array.reshape(-1), array.shape))
    return found


def _row(column: pa.Array, row: int, shape: tuple[int, ...] | None) -> Pixels | NotPixels | None:
    value = column[row]
    if not value.is_valid:
        return None
    lengths: list[int] = []
    inner = value.values
    while _is_list(inner.type):
        # A regular image has rows of one length; what is ragged is no image.
        if inner.null_count:
            return NotPixels("a list inside it is null")
        sizes = np.unique(np.asarray(inner.value_lengths()))
        if len(sizes) > 1:
            return NotPixels(f"its lists have different lengths: {sizes[:4].tolist()}")
        lengths.append(len(inner))
        inner = inner.flatten()
    if inner.null_count:
        return NotPixels("a pixel is null")
    flat = inner.to_numpy(zero_copy_only=False)
    if not lengths:
        return _image(flat, shape)
    # lengths[0] = H, lengths[1] = H·W for three levels, and so on.
    sizes = [lengths[0]]
    for outer, all_inner in zip(lengths, [*lengths[1:], len(flat)], strict=True):
        sizes.append(all_inner // max(outer, 1))
    return _image(flat, tuple(sizes))


def _image(flat: np.ndarray, shape: tuple[int, ...] | None) -> Pixels | NotPixels:
    if shape is None:
        return NotPixels("its height and width are not known; name them with --array-shape")
    if int(np.prod(shape)) != flat.size or 0 in shape:
        return NotPixels(f"{flat.size} values do not make an image of {list(shape)}")
    if flat.dtype not in (np.uint8, np.uint16):
        # By the type of the column and not by what an image holds: a dark one may be of 16 bits.
        bound, kind = (65535, np.uint16) if flat.dtype == np.int16 else (255, np.uint8)
        low, high = int(flat.min()), int(flat.max())
        if low < 0 or high > bound:
            return NotPixels(
                f"its values run from {low} to {high}; pixels end at {bound} (16 bits: uint16)"
            )
        flat = flat.astype(kind)
    array = flat.reshape(shape)
    if array.ndim == 3 and shape[2] not in CHANNELS and shape[0] in CHANNELS:
        array = array.transpose(1, 2, 0)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in CHANNELS):
        return NotPixels(f"{list(shape)} is no image; H×W, H×W×C or C×H×W with 1 to 4 channels is")
    return Pixels(array)
